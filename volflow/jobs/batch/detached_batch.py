"""A batch that its cluster drives: handed over or found, and the handle of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from volflow.engine.cluster import connect
from volflow.engine.clusters.sight import check_sight
from volflow.engine.detached.hand_over import (
    DetachedCall,
    hand_over,
    lasting_cluster,
    refuse_watching,
)
from volflow.engine.detached.handle import Handle
from volflow.engine.time_limit import TimeLimit, current_limit, limited
from volflow.errors import Damaged
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_log import BatchLog
from volflow.jobs.batch.batch_state import batch_state
from volflow.jobs.batch.case_record import CaseRecord, batch_dir
from volflow.jobs.batch.night import Night
from volflow.jobs.batch.perform_batch import perform_batch
from volflow.jobs.batch.result_table import CaseTable
from volflow.jobs.batch.triage import Asked
from volflow.store.atomic import plain
from volflow.store.journal.journal import Journal

if TYPE_CHECKING:
    from distributed import Client

    from volflow.model.spec import Model
    from volflow.store.remote.address import Location

__all__ = ["DetachedBatch", "detached_batch"]


@dataclass(frozen=True)
class DetachedBatch(Handle[CaseTable]):
    """A batch that its cluster drives; it needs neither this object nor this process.

    The same call finds it again, ``volflow status`` its results, and ``DetachedBatch.of(out)`` it.

    Parameters
    ----------
    out
        Pattern of the results.
    key
        Of the driver's task, as the scheduler and its dashboard name it.
    cluster
        Address of the scheduler, or a client of it.
    """

    operation = "predict_cases"

    @classmethod
    def _folder_of(cls, out: str) -> Location:
        return batch_dir(out)

    def status(self) -> dict[str, Any]:
        """Return how far it is, as ``volflow status --json`` says of a pattern of results.

        Only the batch's record is read: ``counts`` says how many cases there are of each state,
        ``running`` whether it is at work, ``detached`` how it ended.
        """
        return batch_state(self.out).to_dict()

    def _opened(self, result: Mapping[str, Any]) -> CaseTable:
        try:
            return CaseTable.from_dict(result)
        except ValueError as error:
            raise Damaged(
                f"the result noted in {self._folder} is damaged: {error}; make the same call again,"
                " which finds what is done"
            ) from error


@dataclass(frozen=True)
class DrivenBatch:
    """A batch as it travels to its driver: its cases by absolute paths, its model loaded."""

    batch: AskedBatch
    model: Model
    asked: Asked
    todo: frozenset[str]
    limit: TimeLimit | None

    def __call__(self, client: Client, begun: bool) -> dict[str, Any]:
        """Do what is left on a client, and return the table; what is done, its record says."""
        batch = replace(self.batch, options=replace(self.batch.options, cluster=client))
        with limited(self.limit):
            return perform_batch(batch, self.model, self.asked, self.todo).to_dict()


def detached_batch(batch: AskedBatch, model: Any) -> DetachedBatch:
    """Hand a batch over to its cluster, or find that the same call has done so.

    Parameters
    ----------
    batch, model
        What is asked for, and the model as it was given.

    Raises
    ------
    InvalidInput
        Where it cannot work, or the cluster would end with this process.
    Locked
        Where another run of the batch is at work.
    """
    from volflow.infer.detach import named

    options, folder = batch.options, batch_dir(batch.out)
    refuse_watching(options.progress)
    cluster = lasting_cluster(options.cluster)
    night = Night(batch, model, CaseRecord(folder), BatchLog(folder, progress=False))
    loaded, (_, left) = named(night.load()), night.left()
    seen = {one.case: one.inputs for one in left}
    todo = frozenset(one.case for one in left if not one.verdict.idle)
    driven = DrivenBatch(_travelling(batch), loaded, night.asked, todo, current_limit())
    call = DetachedCall(
        DetachedBatch.operation, batch.out, Journal(folder), _digest(night, seen), driven
    )
    volumes = [volume for case in batch.cases for volume in batch.seen(case).values()]
    with connect(cluster, **options.connection) as client:
        key = hand_over(client, call, check=partial(check_sight, client, batch.out, *volumes))
    return DetachedBatch(batch.out, key, cluster)


def _digest(night: Night, seen: Mapping[str, Mapping[str, str]]) -> str:
    """Return the digest of all that decides what becomes of each case."""
    text = json.dumps(
        [plain(asdict(night.asked)), night.batch.options.on_failure, seen], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _travelling(batch: AskedBatch) -> AskedBatch:
    """Return a batch as it travels: its volumes as where they lie, arrays whole."""
    options = batch.options
    mask = None if options.mask is None else _placed(options.mask)
    cases = {
        case: {name: _placed(volume) for name, volume in volumes.items()}
        for case, volumes in batch.cases.items()
    }
    alone = replace(options, mask=mask, cluster=None, progress=options.progress is True)
    return replace(batch, cases=cases, options=alone)


def _placed(volume: Any) -> Any:
    from volflow.infer.detach import travelling
    from volflow.volumes.arrays.inputs import open_input

    known = isinstance(volume, str | os.PathLike)
    return travelling(volume, None if known else open_input(volume))
