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
    key = [int(seed) % _WORD, (int(epoch) * 2**16 + purpose) % _WORD]
    counter = [0, 0, int(index) % _WORD, 0]
    # As uint64: a list with a number from 2^63 on would pass through floats and lose its last bits.
    philox = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return np.random.Generator(philox)
