"""Units and lengths for display: symbols of units, names, prefixes, times, round scale bars."""

from __future__ import annotations

import math

__all__ = [
    "NGFF_UNITS",
    "clock",
    "length_of_bar",
    "metres",
    "si",
    "unit_name",
    "unit_sign",
    "units_in",
]

# Metres and symbol by the NGFF name of the unit, ascending.
_UNITS = {
    "angstrom": (1e-10, "Å"),
    "nanometer": (1e-9, "nm"),
    "micrometer": (1e-6, "µm"),
    "millimeter": (1e-3, "mm"),
    "centimeter": (1e-2, "cm"),
    "meter": (1.0, "m"),
}
_SPELLINGS = {sign: name for name, (_, sign) in _UNITS.items()} | {
    "um": "micrometer", "μm": "micrometer", "micron": "micrometer", "microns": "micrometer",
    "å": "angstrom", "ångström": "angstrom",
}  # fmt: skip
_BAR_UNITS = ("nanometer", "micrometer", "millimeter")
_PREFIXES = {
    "yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6,
    "milli": -3, "centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9,
    "tera": 12, "peta": 15, "exa": 18, "zetta": 21, "yotta": 24,
}  # fmt: skip
# All that NGFF 0.5 names, in metres.
NGFF_UNITS = {
    "angstrom": 1e-10, "inch": 0.0254, "foot": 0.3048, "yard": 0.9144, "mile": 1609.344,
    "parsec": 3.0856775814913673e16,
} | {f"{prefix}meter": 10.0**power for prefix, power in _PREFIXES.items()}  # fmt: skip


def unit_sign(unit: str | None) -> str:
    """Return the symbol of a unit: its name if unknown, "" for None.

    Examples
    --------
    >>> unit_sign("millimeter"), unit_sign("parsec"), unit_sign(None)
    ('mm', 'parsec', '')
    """
    return _UNITS[unit][1] if unit in _UNITS else unit or ""


def unit_name(text: object) -> str | None:
    """Return the NGFF name of a unit in any usual spelling; None if there is none.

    Examples
    --------
    >>> unit_name("mm"), unit_name("Micrometres"), unit_name("degrees_north"), unit_name("")
    ('millimeter', 'micrometer', 'degrees_north', None)
    """
    given = "" if text is None else str(text).strip()
    if given in ("", "1"):
        return None
    if given in _SPELLINGS:
        return _SPELLINGS[given]
    plain = given.lower().removesuffix("s").replace("metre", "meter")
    return next((name for name in (plain, _SPELLINGS.get(plain)) if name in _UNITS), given)


def metres(unit: str | None) -> float | None:
    """Return the length of a unit in metres, however it is spelled; None if it is not known.

    Examples
    --------
    >>> metres("millimeter"), metres("angstrom"), metres("pixel")
    (0.001, 1e-10, None)
    """
    return NGFF_UNITS.get(unit_name(unit) or "")


def units_in(unit: str | None, other: str | None) -> float | None:
    """Return how many of another unit one of a unit is; None if one of them is not known.

    Examples
    --------
    >>> units_in("millimeter", "micrometer"), units_in("mm", "pixel")
    (1000.0, None)
    """
    length, own = metres(unit), metres(other)
    # As decimals: a ratio of two powers of ten is one, but for rounding.
    return None if length is None or own is None else float(f"{length / own:.12g}")


def length_of_bar(wide: float, unit: str | None) -> tuple[float, str]:
    """Return a round length of about a quarter of ``wide``, and its label.

    Examples
    --------
    >>> length_of_bar(197, "millimeter"), length_of_bar(0.9, "millimeter")
    ((50.0, '50 mm'), (0.2, '200 µm'))
    >>> length_of_bar(64, None)
    (10.0, '10')
    """
    target = wide / 3.5
    power = 10.0 ** math.floor(math.log10(target))
    length = power * max(step for step in (1, 2, 5) if step == 1 or step * power <= target)
    if unit not in _UNITS:
        return length, f"{length:g} {unit or ''}".rstrip()
    whole = length * _UNITS[unit][0]
    fitting = [name for name in _BAR_UNITS if whole >= 0.999 * _UNITS[name][0]]
    factor, sign = _UNITS[fitting[-1] if fitting else unit]
    return length, f"{whole / factor:g} {sign}"


def si(value: float) -> str:
    """Return a value with three digits and the prefix of its unit.

    Examples
    --------
    >>> si(12_345_678.0) + "voxels/s"
    '12.3 Mvoxels/s'
    """
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


def clock(seconds: float) -> str:
    """Return a time as on a clock.

    Examples
    --------
    >>> clock(75), clock(7384)
    ('1:15', '2:03:04')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
