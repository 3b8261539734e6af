"""The handle of a detached run that writes one output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volflow.engine.detached.handle import Handle
from volflow.engine.observing.run_facts import run_facts
from volflow.store.volume import Volume, open_volume

__all__ = ["DetachedRun"]


@dataclass(frozen=True)
class DetachedRun(Handle[Volume | dict[str, Volume]]):
    """A prediction that its cluster drives; it needs neither this object nor this process.

    The same call finds it again, ``volflow status`` its output, and ``DetachedRun.of(out)`` it.

    Parameters
    ----------
    out
        Path or URL of the output.
    key
        Of the driver's task, as the scheduler and its dashboard name it.
    cluster
        Address of the scheduler, or a client of it.
    """

    operation = "predict"

    def status(self) -> dict[str, Any]:
        """Return how far it is, as ``volflow status --json`` says of an output.

        Only the journal is read: ``state`` is ``"running"``, ``"done"``, ``"stopped"`` or
        ``"silent"``, ``done`` and ``total`` count blocks, ``detached`` says how it ended.
        """
        return run_facts(self.out)

    def _opened(self, result: Mapping[str, Any]) -> Volume | dict[str, Volume]:
        volumes = {name: open_volume(str(path)) for name, path in result.items()}
        return volumes.get("", volumes)
