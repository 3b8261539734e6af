"""A run of a batch: which cases are left, each of them predicted, what became of them recorded."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volflow import __version__
from volflow.errors import (
    InvalidInput,
    Locked,
    MemoryRefused,
    ResumeRefused,
    StoreFull,
    TimeUp,
    first_line,
)
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_log import BatchLog, now
from volflow.jobs.batch.bundle_identity import bundle_identity
from volflow.jobs.batch.case_record import STARTED, CaseRecord, PastCase
from volflow.jobs.batch.in_turn import SMALL_VOXELS, small_first
from volflow.jobs.batch.result_table import CaseRow
from volflow.jobs.batch.triage import (
    Asked,
    Verdict,
    identity_of_volume,
    in_the_way,
    is_finished,
    settings_asked,
    triage,
    wrote,
)
from volflow.store.formats.exported import stored_behind
from volflow.store.journal.journal import Journal, journal_dir

if TYPE_CHECKING:
    from distributed import Client

    from volflow.model.spec import Model

__all__ = ["Left", "Night"]


@dataclass(frozen=True)
class Left:
    """A case, the identities of its volumes, and what is to be done with it."""

    case: str
    inputs: dict[str, str]
    verdict: Verdict


@dataclass
class Night:
    """A run of a batch.

    Parameters
    ----------
    batch, model
        What is asked for, and the model as it was given, or loaded.
    record, log
        Where it is told.
    known
        What is asked of every case, where that is known already.
    rows
        What became of each case, so far.
    tried
        The cases that this run began.
    """

    batch: AskedBatch
    model: Any
    record: CaseRecord
    log: BatchLog
    known: InitVar[Asked | None] = None
    rows: dict[str, CaseRow] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    asked: Asked = field(init=False)
    at_work: set[str] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self, known: Asked | None) -> None:
        options = self.batch.options
        self.asked = known or Asked(
            self._identify(), settings_asked(options), options.overwrite, options.retry_failed
        )

    def _identify(self) -> str:
        """Return what identifies the model: by its files, or else it is loaded."""
        known = ""
        if isinstance(self.model, str | os.PathLike) and self.batch.options.weights is None:
            known = bundle_identity(self.model)
        if not known:
            model = self.load()
            code = [dict(model.code.modules), dict(model.code.packages)]
            known = hashlib.sha256(json.dumps([model.digest, code]).encode()).hexdigest()
        return f"{known} {__version__}"

    def load(self) -> Model:
        """Return the model, loaded once."""
        from volflow.model.bundle import load_model

        options = self.batch.options
        weights = options.weights if isinstance(self.model, str | os.PathLike) else None
        self.model = load_model(self.model, weights, trust=options.trust)
        model: Model = self.model
        return model

    def left(self) -> tuple[dict[str, PastCase], list[Left]]:
        """Return the record, and all cases with what is to be done with them."""
        known, found = self.record.read(), []
        for case in self.batch.cases:
            seen = self.batch.seen(case)
            inputs = {name: identity_of_volume(volume) for name, volume in seen.items()}
            past, out = known.get(case), self.batch.out_of(case)
            verdict = triage(past, inputs, self.asked, partial(is_finished, out, past))
            found.append(Left(case, inputs, verdict))
        return known, found

    def planned(self, left: Left, past: PastCase | None) -> CaseRow:
        """Return the row of a case before anything is done with it."""
        status = "refused" if left.verdict.status == "differs" else left.verdict.status
        if left.verdict.idle and past is not None:
            return replace(past.row, status=status)
        return self._row(left, status, left.verdict.reason)

    def _row(self, left: Left, status: str, reason: str = "", **more: Any) -> CaseRow:
        out, seen = self.batch.out_of(left.case), self.batch.seen(left.case)
        shown = {
            name: os.fspath(one) if isinstance(one, str | os.PathLike) else type(one).__name__
            for name, one in seen.items()
        }
        return CaseRow(left.case, status, reason, out=out, volumes=shown, **more)

    def run(self, todo: Sequence[Left]) -> None:
        """Predict cases: small ones several at a time, then each large one alone."""
        from volflow.engine.cluster import connect, memory_per_worker
        from volflow.engine.clusters.plugins import with_plugin
        from volflow.model.bundle import evaluating
        from volflow.model.resident import ModelPlugin, held

        options, model = self.batch.options, self.load()
        plugin = ModelPlugin(model.module, model.digest, options.device)
        connected = connect(options.cluster, **options.connection)
        with (
            evaluating(model.module), held(plugin), connected as client,
            with_plugin(client, plugin),
        ):  # fmt: skip

            def work(one: Left, share_bytes: int, last: bool) -> CaseRow | None:
                row = self.predict(one, client, share_bytes, last=last)
                if row is not None:
                    self._ended(one, row)
                return row

            jobs = small_first(
                todo, self._is_small, work, options.at_once or _seats(client), client,
                memory_per_worker(client, options.memory), self.stop, self._halt,
            )  # fmt: skip
            with closing(jobs) as ended:
                for _ in ended:
                    pass

    def _ended(self, left: Left, row: CaseRow) -> None:
        self.rows[left.case] = row
        done = sum(case in self.rows for case in self.tried)
        reason = f": {row.reason}" if row.reason else ""
        self.log.line(f"{row.case} {row.status} in {row.seconds:.1f} s{reason} ({done} ended)")

    def _is_small(self, left: Left) -> bool:
        """Return True also of a case that cannot be opened, which its turn will tell."""
        from volflow.volumes.arrays.inputs import open_input

        with suppress(OSError, InvalidInput):
            shape = open_input(next(iter(self.batch.cases[left.case].values()))).shape
            return prod(shape[-3:]) <= SMALL_VOXELS
        return True

    def predict(
        self, left: Left, client: Client, memory_bytes: int, *, last: bool
    ) -> CaseRow | None:
        """Predict one case and record what became of it.

        Parameters
        ----------
        left, client, memory_bytes
            The case, where it is computed, and within which budget per worker.
        last
            Whether a refusal for memory counts; else None is returned, and nothing recorded.

        Raises
        ------
        StoreFull
            Where no space is left: other cases would find none either.
        RunFailed
            Where the cluster is gone.
        Superseded
            Where nobody wants this run any more.
        """
        from volflow.engine.wanted import check_wanted
        from volflow.infer.predict import predict

        check_wanted()
        batch, case = self.batch, left.case
        out, options = batch.out_of(case), batch.options
        anew = left.verdict.anew or (options.overwrite and in_the_way(out))
        settings = replace(
            batch.single, weights=None, cluster=client, memory=memory_bytes,
            overwrite=anew, mask=batch.mask_of(case),
            progress=options.progress if last and not callable(options.progress) else False,
        )  # fmt: skip
        self.tried.add(case)
        past = PastCase(
            self._row(left, STARTED), left.inputs, self.asked.model, self.asked.settings
        )
        self.record.add(past)
        began, status, reason, final, trace = time.monotonic(), "done", "", False, ""
        self.at_work.add(out)
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            predict(batch.given(case), self.model, out, **vars(settings))
        except (StoreFull, TimeUp):
            raise
        except MemoryRefused as error:
            if not last:
                return None
            status, reason = "failed", first_line(error)
        except ResumeRefused as error:
            status, reason = "refused", first_line(error)
        except Exception as error:  # whatever it is, other cases are done
            check_wanted()
            if self.stop.is_set() or client.status != "running":
                raise
            status, reason, trace = "failed", first_line(error), traceback.format_exc()
            final = _is_final(error, out)
        finally:
            self.at_work.discard(out)
        if trace and not final:
            self.log.line(f"{case}: {reason}", trace)
        seconds = round(time.monotonic() - began, 3)
        row = self._row(
            left, status, reason, seconds=seconds, model_s=_model_seconds(out), at=now()
        )
        self.record.add(replace(past, row=row, final=final, wrote=wrote(out)))
        return row

    def _halt(self) -> None:
        """Have the tasks of cases that are at work stop at their next look."""
        for out in tuple(self.at_work):
            for place in (stored_behind(out) or Path(out), *journal_dir(out).glob("*.zarr")):
                with suppress(Exception):
                    Journal(journal_dir(place)).end()


def _seats(client: Client) -> int:
    """Return how many small cases are computed at a time: one for each worker of a cluster.

    In this process two at a time took no less than one after the other (`benchmarks/night.py`).
    """
    from volflow.engine.cluster import is_embedded
    from volflow.engine.workers import expected_workers

    return 1 if is_embedded(client) else expected_workers(client)


def _is_final(error: Exception, out: str) -> bool:
    """Return True for a failure that the same files, model and settings give each time."""
    if not isinstance(error, InvalidInput) or isinstance(error, Locked):
        return False
    # Else it may be the result that is at fault, or its folder.
    return not Path(out).exists() and os.access(Path(out).parent, os.W_OK)


def _model_seconds(out: str) -> float:
    """Return the seconds that the network took for a result, over all its runs."""
    try:
        stages = Journal(journal_dir(stored_behind(out) or out)).stages()
    except Exception:  # it is damaged, or was never begun
        return 0.0
    return round(sum(block.get("model", 0.0) for block in stages.values()), 3)
