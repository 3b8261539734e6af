"""Values of DICOM headers, taken as they stand: pydicom would warn of each spelt carelessly."""

from __future__ import annotations

from typing import Any

__all__ = ["first_item", "longs_of", "numbers_of", "text_of", "whole_of"]

LARGEST = 1e30  # products of such numbers are finite


def first_item(data: Any, keyword: str) -> Any:
    """Return the first item of a sequence; None if there is none, or no header."""
    items = None if data is None else data.get(keyword)
    return items[0] if items else None


def text_of(data: Any, keyword: str) -> str:
    """Return a value as text, ``""`` if it is absent."""
    raw = data.get_item(keyword)
    value = b"" if raw is None or raw.value is None else raw.value
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")


def numbers_of(data: Any, keyword: str) -> tuple[float, ...]:
    """Return the numbers of a value that is text; () if it is absent.

    Raises
    ------
    ValueError
        If one is no number, or larger than what can be computed with.
    """
    text = text_of(data, keyword)
    values = tuple(float(part) for part in text.split("\\")) if text else ()
    if not all(abs(value) <= LARGEST for value in values):
        raise ValueError(f"{keyword} is {text}")
    return values


def whole_of(data: Any, keyword: str, default: int | None = None) -> int:
    """Return a whole number of 16 bits.

    Raises
    ------
    ValueError
        If it is absent, and there is no default.
    """
    raw = data.get_item(keyword)
    if raw is None or not raw.value:
        if default is None:
            raise ValueError(f"it has no {keyword}")
        return default
    if not isinstance(raw.value, bytes):
        return int(raw.value)
    return int.from_bytes(raw.value[:2], "little" if raw.is_little_endian else "big")


def longs_of(data: Any, keyword: str) -> list[int]:
    """Return whole numbers of 64 bits."""
    raw = data.get_item(keyword)
    value = raw.value if raw is not None and raw.value else b""
    return [int.from_bytes(value[n : n + 8], "little") for n in range(0, len(value), 8)]
