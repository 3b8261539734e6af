"""What a random check of some of many things says of all of them: the exact bound."""

from __future__ import annotations

import math
from fractions import Fraction

__all__ = ["most_wrong"]

# The chance that is left to more than the bound: 5 %.
CHANCE = Fraction(1, 20)


def most_wrong(total: int, drawn: int, wrong: int = 0, chance: Fraction = CHANCE) -> int:
    """Return how many of all things may be wrong, after some were drawn without replacement.

    More than that would have shown ``wrong`` or fewer among the drawn with a probability of at
    most ``chance``: they are excluded at a confidence of ``1 - chance``. The hypergeometric
    distribution is summed in whole numbers, so nothing is rounded.

    Parameters
    ----------
    total, drawn
        How many things there are, and how many of them were drawn and checked.
    wrong
        How many of the drawn were wrong.
    chance
        The probability of an error of this statement.

    Examples
    --------
    One of 20 is overlooked by 19 draws in one case of 20, of 21 a little more often:

    >>> most_wrong(20, 19), most_wrong(21, 19), most_wrong(20, 20), most_wrong(20, 0)
    (0, 1, 0, 20)
    >>> most_wrong(1000, 58), most_wrong(1000, 58, wrong=2)
    (48, 102)
    """
    ways = math.comb(total, drawn)

    def plausible(bad: int) -> bool:
        found = range(min(wrong, bad, drawn) + 1)
        few = sum(math.comb(bad, i) * math.comb(total - bad, drawn - i) for i in found)
        return few * chance.denominator > ways * chance.numerator

    # The more are wrong, the less likely it is that few are drawn: the limit is found by halving.
    low, high = wrong, total - (drawn - wrong)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plausible(middle) else (low, middle - 1)
    return low
