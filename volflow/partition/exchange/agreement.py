"""Whether all processes run the same thing: found at the start, before one waits for another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import volflow
from volflow.errors import InvalidInput
from volflow.partition.exchange.peers import Peers
from volflow.partition.graph import Graph
from volflow.partition.segments import Segment

__all__ = ["agree", "installed", "structure"]


def agree(peers: Peers, facts: Mapping[str, str]) -> None:
    """Compare facts with those of all processes; all of them raise where one differs.

    Parameters
    ----------
    peers
        The processes.
    facts
        What must be the same, by name.

    Raises
    ------
    InvalidInput
        On every process, naming what differs and between which ranks.
    """
    told = peers.told(facts)
    names = dict.fromkeys(name for one in told for name in one)
    values = {name: [one.get(name, "missing") for one in told] for name in names}
    differing = [
        f"{name} is {_by_rank(peers.ranks, found)}"
        for name, found in values.items()
        if len(set(found)) > 1
    ]
    if differing:
        raise InvalidInput(
            f"processes that work together must run the same, but {'; '.join(differing)}; start"
            " all with the same program, files and arguments"
        )


def _by_rank(ranks: Sequence[int], values: Sequence[str]) -> str:
    """Say which value is whose.

    Examples
    --------
    >>> _by_rank([0, 1, 2], ["7", "8", "7"])
    '7 on ranks 0, 2 and 8 on rank 1'
    """
    found = []
    for value in dict.fromkeys(values):
        those = [str(r) for r, other in zip(ranks, values, strict=True) if other == value]
        found.append(f"{value} on rank{'s' if len(those) > 1 else ''} {', '.join(those)}")
    return " and ".join(found)


def installed() -> dict[str, str]:
    """Return the versions that results depend on, and a digest of the code of this package."""
    root = Path(volflow.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((root / "partition").rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return {
        "the version of torch": torch.__version__,
        "the version of volflow": volflow.__version__,
        "the code of volflow": digest.hexdigest()[:16],
    }


def structure(graph: Graph, segments: Sequence[Segment]) -> str:
    """Return a digest of the ops of a network, their shapes, and how it is computed."""
    parts = graph.identity, tuple(segments)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
