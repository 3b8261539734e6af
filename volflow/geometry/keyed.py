"""Random numbers that are a pure function of their key: never of workers, threads or time."""

from __future__ import annotations

import numpy as np

__all__ = ["generator"]

_WORD = 2**64


def generator(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    """The generator of one purpose, in one epoch, for one thing.

    Counter-based (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): any
    of them is made at once, without those before it.

    Parameters
    ----------
    seed, epoch
        Of the stream; below 2^64 and 2^48.
    purpose
        Which decision it is for; below 2^16.
    index
        Which of the things of that purpose.

    Examples
    --------
    >>> generator(0, 1, 2, 3).integers(0, 100, 4).tolist()
    [91, 86, 43, 91]
    """
    key = [seed % _WORD, (epoch * 2**16 + purpose) % _WORD]
    counter = [0, 0, index % _WORD, 0]
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
