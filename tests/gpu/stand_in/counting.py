"""What is counted, per stream: kernels by op, copies and their bytes, synchronisations, events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

__all__ = ["Counts"]


class Counts:
    """Numbers of what happened, by kind and stream; the difference of two is what happened between.

    A kind is a path: ``counts["sync"]`` is the sum of ``"sync/item"``, ``"sync/copy"`` and others.

    Parameters
    ----------
    of
        By kind and the name of the stream.
    """

    def __init__(self, of: Mapping[tuple[str, str], int]) -> None:
        self.of = dict(of)

    def __getitem__(self, kind: str) -> int:
        return sum(n for (k, _), n in self.of.items() if k == kind or k.startswith(f"{kind}/"))

    def __sub__(self, before: Counts) -> Counts:
        keys = self.of.keys() | before.of.keys()
        left = {k: self.of.get(k, 0) - before.of.get(k, 0) for k in keys}
        return Counts({k: n for k, n in left.items() if n})

    def __add__(self, other: Counts) -> Counts:
        keys = self.of.keys() | other.of.keys()
        return Counts({k: self.of.get(k, 0) + other.of.get(k, 0) for k in keys})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and self.of == other.of

    __hash__ = None

    def __repr__(self) -> str:
        return f"Counts({', '.join(f'{k}={n}' for k, n in sorted(self.by_kind('').items()))})"

    def on(self, stream: object) -> Counts:
        """The same of one stream, given as it prints: ``"cuda:0 stream 1"``."""
        return Counts({(k, s): n for (k, s), n in self.of.items() if s == str(stream)})

    def by_kind(self, kind: str) -> dict[str, int]:
        """Sums over streams of the kinds below one, such as ``"kernel"`` or ``"sync"``."""
        found: Counter[str] = Counter()
        for (k, _), n in self.of.items():
            if not kind or k.startswith(f"{kind}/"):
                found[k[len(kind) + 1 :] if kind else k] += n
        return dict(found)

    @property
    def streams(self) -> set[str]:
        """Names of the streams on which anything happened."""
        return {stream for _, stream in self.of}

    @property
    def kernels(self) -> int:
        """Ops that compute on the device; copies are not among them."""
        return self["kernel"]

    @property
    def h2d(self) -> int:
        """Copies from the host."""
        return self["h2d"]

    @property
    def h2d_bytes(self) -> int:
        """Their bytes."""
        return self["h2d_bytes"]

    @property
    def d2h(self) -> int:
        """Copies to the host; single numbers read by ``item`` are counted as synchronisations."""
        return self["d2h"]

    @property
    def d2h_bytes(self) -> int:
        """Their bytes."""
        return self["d2h_bytes"]

    @property
    def pageable(self) -> int:
        """Copies whose host side is not pinned, or that were waited for."""
        return self["pageable"]

    @property
    def pageable_bytes(self) -> int:
        """Their bytes."""
        return self["pageable_bytes"]

    @property
    def syncs(self) -> int:
        """Times that the host waited, for whatever reason."""
        return self["sync"]

    @property
    def loose(self) -> int:
        """Kernels whose numbers a switch left open: ``by_kind("loose")`` tells which."""
        return self["loose"]

    @property
    def events(self) -> int:
        """Events recorded."""
        return self["event"]
