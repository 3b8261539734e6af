"""Parse and format amounts of memory."""

from __future__ import annotations

import re

from volflow.errors import InvalidInput

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {
    "": 1,
    **{p + "b": 1000 ** (n + 1) for n, p in enumerate("kmgtp")},
    **{p + "ib": 1024 ** (n + 1) for n, p in enumerate("kmgtp")},
    **{p: 1024 ** (n + 1) for n, p in enumerate("kmgtp")},
    "b": 1,
}


def parse_bytes(size: str | int | float, name: str = "memory") -> int:
    """Return the bytes of an amount of memory.

    Parameters
    ----------
    size
        Bytes, or a number with a unit: ``kB MB GB TB`` are powers of 1000, ``KiB MiB GiB TiB``
        (and the bare letters, as in SLURM) powers of 1024.
    name
        Of the option, for the error.

    Raises
    ------
    InvalidInput
        If the amount is not positive or cannot be parsed.

    Examples
    --------
    >>> parse_bytes("2GiB"), parse_bytes("400 MB"), parse_bytes(1e6)
    (2147483648, 400000000, 1000000)
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", size)
        unit = _UNITS.get(match[2].lower()) if match else None
        try:
            size = float(match[1]) * unit if match and unit else 0
        except ValueError:
            size = 0
    if not 1 <= size < float("inf"):
        raise InvalidInput(
            f'{name} must be a positive amount like "2GiB", "400MB" or 2_000_000_000'
        )
    return int(size)


def format_bytes(size: float) -> str:
    """Return an amount of memory as text with three digits.

    Examples
    --------
    >>> format_bytes(1536), format_bytes(3 * 2**30), format_bytes(12)
    ('1.5 KiB', '3 GiB', '12 B')
    """
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    unit = units[0]
    return f"{size:.3g} {unit}" if abs(size) < 1000 else f"{size:.0f} {unit}"
