"""What a batch is asked to do: its cases, where their results go, and which of them count."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.infer.predict_options import PredictOptions
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.option import from_keywords
from volflow.sampling.cases.case_folders import cases_of_folder, is_case_folder
from volflow.sampling.cases.find_cases import CASE, find_cases
from volflow.sampling.cases.names import check_names
from volflow.sampling.cases.values import Text
from volflow.store.formats.sources import split_part

__all__ = ["AskedBatch", "moment"]

BESIDE = ("label", "weight")  # volumes of these names are no inputs of a network
AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(m|min|h|d|days?|w|weeks?)(?:\s+ago)?")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class AskedBatch:
    """Cases by name, each with its volumes by name, and where their results go.

    Parameters
    ----------
    cases
        What networks see: a volume called ``label`` is left out.
    out
        The pattern of results, absolute.
    options
        As they were given.
    dropped
        Cases that are results of this batch, or did not change of late.
    """

    cases: Mapping[str, Mapping[str, Any]]
    out: str
    options: BatchOptions
    dropped: int = 0

    @classmethod
    def of(cls, cases: Any, out: Any, options: BatchOptions) -> AskedBatch:
        """Return a batch, checked; no volume is opened.

        Raises
        ------
        InvalidInput
            If no case is found, or the pattern of results has no ``{case}`` or no folder.
        """
        pattern = os.path.abspath(Path(os.fspath(out)).expanduser())  # noqa: PTH100 - keeps links
        if "://" in os.fspath(out):
            raise InvalidInput(f"the results of a batch lie on a local file system; got {out}")
        if CASE not in Path(pattern).name and CASE not in pattern:
            raise InvalidInput(
                f"{out} needs {CASE} in it, which stands for the name of each case; write for"
                " example out/{case}.nii.gz"
            )
        folder = Path(pattern.partition(CASE)[0] + "_").parent
        if not folder.is_dir():
            raise InvalidInput(f"the folder {folder} does not exist; make it first")
        if options.at_once is not None and options.at_once < 1:
            raise InvalidInput(f"at_once must be 1 or more; got {options.at_once}")
        every = {name: _inputs(volumes) for name, volumes in _named(cases).items()}
        results = {_place(pattern.replace(CASE, name)) for name in every}
        # One that lies in a folder beside the images is found with them.
        every = {name: _without(volumes, results) for name, volumes in every.items()}
        since = moment(options.since) if options.since else None
        kept = {
            name: volumes
            for name, volumes in every.items()
            if not results & {_place(one) for one in volumes.values()}
            and (since is None or any(_changed(one) >= since for one in volumes.values()))
        }
        return cls(kept, pattern, options, len(every) - len(kept))

    def out_of(self, case: str) -> str:
        """Return the path of a case's result."""
        return self.out.replace(CASE, case)

    def mask_of(self, case: str) -> Any:
        """Return the mask of a case, if there is one."""
        mask = self.options.mask
        if isinstance(mask, str | os.PathLike):
            return os.fspath(mask).replace(CASE, case)
        return mask

    def seen(self, case: str) -> dict[str, Any]:
        """Return all that decides the result of a case, by name: its volumes and its mask."""
        mask = self.mask_of(case)
        return {**self.cases[case], **({} if mask is None else {"mask": mask})}

    def given(self, case: str) -> Any:
        """Return a case as `predict` takes it: one volume, or several by name."""
        volumes = self.cases[case]
        return next(iter(volumes.values())) if len(volumes) == 1 else dict(volumes)

    @property
    def single(self) -> PredictOptions:
        """The options of `predict`, of each case."""
        return from_keywords(PredictOptions, vars(self.options))


def moment(text: str) -> float:
    """Return a moment, in seconds since 1970, of a date, a time, or a while ago.

    Examples
    --------
    >>> moment("2026-11-29T20:00+00:00")
    1795982400.0
    >>> moment("24h") < moment("90m") < moment("1 min ago")
    True
    """
    ago = AGO.fullmatch(text.strip())
    try:
        if ago is None:
            return datetime.fromisoformat(text.strip()).timestamp()
        past = timedelta(**{UNITS[ago[2][0]]: float(ago[1])})
        return (datetime.now().astimezone() - past).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"since must be a date, a time or a while ago, given {text!r}; write for example"
            " 2026-11-29, 2026-11-29T20:00, 24h or 7d"
        ) from None


def _named(cases: Any) -> Mapping[str, Any]:
    if isinstance(cases, str | os.PathLike) and is_case_folder(os.fspath(cases)):
        found = cases_of_folder(Path(cases).expanduser(), images_only=True)
        check_names(found)
        return found
    if not isinstance(cases, Mapping):
        return find_cases(cases)
    texts = [one for one in cases.values() if isinstance(one, str | os.PathLike)]
    if texts and len(texts) == len(cases) and any(CASE in os.fspath(one) for one in texts):
        return find_cases({name: os.fspath(one) for name, one in cases.items()})
    if not cases:
        raise InvalidInput("there are no cases; give at least one")
    check_names(map(str, cases))
    return {str(name): volumes for name, volumes in cases.items()}


def _inputs(volumes: Any) -> dict[str, Any]:
    """Return the volumes of a case that a network sees, by name; a value beside them is none."""
    named = volumes if isinstance(volumes, Mapping) else {"image": volumes}
    found = {
        str(name): volume
        for name, volume in named.items()
        if name not in BESIDE and not isinstance(volume, int | float | Text)
    }
    if not found:
        raise InvalidInput(
            f"a case needs a volume that is not its {' or '.join(BESIDE)}; got {dict(named)}"
        )
    return found


def _without(volumes: Mapping[str, Any], results: set[str | None]) -> dict[str, Any]:
    """Return the volumes of a case without results of the batch, but for the first."""
    lead = next(iter(volumes))
    return {
        name: volume
        for name, volume in volumes.items()
        if name == lead or _place(volume) not in results
    }


def _place(volume: Any) -> str | None:
    return os.path.realpath(volume) if isinstance(volume, str | os.PathLike) else None


def _changed(volume: Any) -> float:
    """Return when a volume changed last: of a Zarr its metadata; others count as new."""
    if not isinstance(volume, str | os.PathLike) or "://" in os.fspath(volume):
        return float("inf")
    path, _ = split_part(os.fspath(volume))
    times = [float("-inf")]
    for one in (path, path / "zarr.json", path / ".zattrs"):
        try:
            times.append(one.stat().st_mtime)
        except OSError:
            continue
    return max(times)
