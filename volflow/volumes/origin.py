"""What a conversion reads, in which state, and whether that is still so."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from volflow.errors import SourceChanged
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.journal import Journal
from volflow.store.slabs import Source

__all__ = ["NOTE", "Origin", "origin_of", "trusted"]

NOTE = "source.json"  # in the journal's folder: the source of the copy


@dataclass(frozen=True)
class Origin:
    """A file or store that is copied, and its state when that began.

    Parameters
    ----------
    source
        Asked again for its identity.
    path
        Of it, absolute.
    identity
        Of its state in the beginning.
    """

    source: Source
    path: str
    identity: str

    @property
    def is_file(self) -> bool:
        """Return True for a single file, whose state costs nothing to ask for."""
        return Path(self.path).is_file()

    def check(self) -> None:
        """Refuse to go on with a source that is not what it was.

        Raises
        ------
        SourceChanged
            Saying so.
        """
        if self.source.unidentified:
            return
        try:
            now = self.source.identity()
        except OSError:  # it is gone
            now = ""
        if now != self.identity:
            raise SourceChanged(
                f"{self.path} was changed while it was read, as a file is that is still being"
                " written; run the same command again when it is whole"
            )

    def note(self, journal: Journal) -> None:
        """Keep what is copied beside the journal, for `begins_anew`."""
        with suppress(OSError):  # whoever cannot write here cannot write the record either
            value = {"path": self.path, "input": self.identity}
            write_json(journal.directory / NOTE, value)

    def begins_anew(self, journal: Journal) -> str:
        """Return why a copy of the same source starts over; ``""`` where it can be resumed.

        A finished copy does so only where it cannot be told whether its source is what it was, and
        one of another source never without being asked to.
        """
        before = journal.recorded()
        if before is None or before.fingerprint.get("input") in (None, self.identity):
            return ""
        noted = {"path": self.path, "input": before.fingerprint["input"]}
        if self.source.unidentified:
            with suppress(OSError, ValueError):
                if read_json(journal.directory / NOTE) == noted:
                    return (
                        f"{self.source.unidentified}, so that it may hold something else than when"
                        " it was converted; it is converted again"
                    )
            return ""
        with suppress(OSError, ValueError, TypeError):  # damaged: nothing is known
            done, total = len(journal.done()), math.prod(before.settings.get("grid", ()))
            if read_json(journal.directory / NOTE) == noted and done < total:
                return (
                    f"{Path(self.path).name} has changed since its conversion was started ({done}"
                    f" of {total} blocks were done); it starts over"
                )
        return ""


def origin_of(source: Source) -> Origin | None:
    """Return the state of a source on a disk; None for an array in memory."""
    return None if source.path is None else Origin(source, source.path, source.identity())


def trusted(origin: Origin | None, journal: Journal) -> Origin | None:
    """Return an origin that cannot be identified as what was recorded of it."""
    before = journal.recorded()
    known = before and before.fingerprint.get("input")
    if origin is None or not known or not origin.source.unidentified:
        return origin
    return replace(origin, identity=str(known))
