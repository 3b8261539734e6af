"""Scores of cases kept beside their table, so that a batch that was stopped goes on where it was.

::

    scores.csv.volflow/cases.jsonl      a line of JSON for each case that was scored

A line counts while the volumes of its case and the options that decide the scores are the same. A
process may die at any moment: a line that was torn is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from volflow.errors import writing_failed
from volflow.store.atomic import parse_json
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.records import typed
from volflow.volumes.evaluate.class_scores import ClassScores
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions
from volflow.volumes.evaluate.label_pair import LabelPair

__all__ = ["KeptScores"]

VERSION = 1  # of the scores; raised where the same volumes get others
RECORD = "cases.jsonl"
DECIDE = ("classes", "distances", "tolerance", "max_distance")  # options on which scores depend


@dataclass(frozen=True)
class KeptCase:
    """The scores of a case, and a hash of what they depend on."""

    case: str
    key: str
    rows: tuple[ClassScores, ...]


@dataclass
class KeptScores:
    """The record beside a table.

    Parameters
    ----------
    path
        The file; None where nothing is kept.
    options
        As given to `evaluate`.
    """

    path: Path | None
    options: EvaluateOptions
    found: dict[str, KeptCase] = field(default_factory=dict)

    @classmethod
    def beside(cls, csv: str | os.PathLike[str] | None, options: EvaluateOptions) -> KeptScores:
        """Return the record beside a table, with what it holds; lines that are damaged are not."""
        if csv is None:
            return cls(None, options)
        path = journal_dir(Path(csv).expanduser().absolute()) / RECORD
        kept = cls(path, options)
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                case = typed(KeptCase, parse_json(line))
            except ValueError:
                continue
            kept.found[case.case] = case
        return kept

    def get(self, case: str, pair: LabelPair) -> tuple[ClassScores, ...] | None:
        """Return the scores of a case; None where they are not known, or of other volumes."""
        kept = self.found.get(case)
        if kept is None or not kept.key or kept.key != self._key(pair):
            return None
        return kept.rows

    def add(self, case: str, pair: LabelPair, rows: tuple[ClassScores, ...]) -> None:
        """Keep the scores of a case.

        Raises
        ------
        RunFailed
            If they cannot be written; StoreFull where no space is left.
        """
        key = "" if self.path is None else self._key(pair)
        if self.path is None or not key:
            return
        # The break comes first: the line before may have been torn by a kill.
        line = f"\n{json.dumps(asdict(KeptCase(case, key, rows)))}".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise writing_failed(error)(
                f"the scores of {case} cannot be kept in {self.path}: {error.strerror}"
            ) from error

    def _key(self, pair: LabelPair) -> str:
        """Return a hash of all that decides scores; empty where volumes cannot be identified."""
        if any(source.unidentified for source in pair.sources):
            return ""
        chosen = [getattr(self.options, name) for name in DECIDE]
        facts = [VERSION, str(chosen), repr(pair.spacing), *(s.identity() for s in pair.sources)]
        return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
