"""Random masks of dropout: a pure function of a key and of the place in the whole tensor.

A place is hashed dim by dim in 32-bit integers, so that any box of a mask is made without the
rest, with the same bits on every device.

References
----------
Wellons: Prospecting for hash functions, 2018 (the constants of the mixing, ``lowbias32``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Draws"]

# Values hashed at a time: they should stay in the cache.
HASHED = 2**16
HASHED_ON_GPU = 2**24
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32


@dataclass(frozen=True)
class Draws:
    """What the random numbers of a training step depend on, beside their place.

    Parameters
    ----------
    seed
        Of the whole training.
    step
        Number of the step.

    Examples
    --------
    >>> whole = Draws(seed=0, step=7).kept(0.5, 1, [(0, 4), (0, 100)])
    >>> part = Draws(seed=0, step=7).kept(0.5, 1, [(1, 3), (60, 80)])
    >>> bool((whole[1:3, 60:80] == part).all())
    True
    """

    seed: int
    step: int

    def kept(
        self,
        p: float,
        salt: int,
        spans: Sequence[tuple[int, int]],
        device: torch.device | None = None,
    ) -> Tensor:
        """Return a box of a mask: True where a value is kept, with probability 1 − p.

        Parameters
        ----------
        p
            Probability that a value is dropped.
        salt
            Which of several masks of the step.
        spans
            Per dim of the tensor, the range of the box.
        device
            Where the mask is wanted.
        """
        shape = [high - low for low, high in spans]
        # A number from −2³¹ to 2³¹ − 1 is kept if it is not below the limit.
        limit = round(p * 2**32) - 2**31
        if limit >= 2**31:
            return torch.zeros(shape, dtype=torch.bool, device=device)
        key = f"{self.seed} {self.step} {salt}".encode()
        words = hashlib.blake2b(key, digest_size=8).digest()
        cut = max(0, len(spans) - 2)  # the last dims in one, so that both factors are short
        rows, places = (
            _hashed(int.from_bytes(word, "little", signed=True), part, device)
            for word, part in ((words[:4], spans[:cut]), (words[4:], spans[cut:]))
        )
        result = torch.empty((len(rows), len(places)), dtype=torch.bool, device=device)
        most = HASHED if result.device.type == "cpu" else HASHED_ON_GPU
        width = max(1, min(most, len(places)))
        for first in range(0, len(rows), max(1, most // width)):
            some = slice(first, first + max(1, most // width))
            for left in range(0, len(places), width):
                part = slice(left, left + width)
                # Both are mixed already, and the last bits hardly count: half of it is enough.
                numbers = (rows[some, None] ^ places[None, part]).mul_(FIRST)
                torch.ge(_folded(numbers, 15).mul_(SECOND), limit, out=result[some, part])
        return result.reshape(shape)


def _hashed(word: int, spans: Sequence[tuple[int, int]], device: torch.device | None) -> Tensor:
    """Return a number per place of a box, flat, from a word and the place's coordinates."""
    numbers = torch.tensor([word], dtype=torch.int32, device=device)
    for low, high in spans:
        along = torch.arange(low, high, dtype=torch.int32, device=device)
        numbers = _mixed((numbers[:, None] + along).flatten())
    return numbers


def _mixed(numbers: Tensor) -> Tensor:
    """Change every bit with probability ½ whichever bit of the input changes, in place."""
    return _folded(_folded(_folded(numbers, 16).mul_(FIRST), 15).mul_(SECOND), 16)


def _folded(numbers: Tensor, shift: int) -> Tensor:
    """Let the low bits depend on the high ones, which move in without their sign."""
    high = numbers >> shift
    return numbers.bitwise_xor_(high.bitwise_and_(2 ** (32 - shift) - 1))
