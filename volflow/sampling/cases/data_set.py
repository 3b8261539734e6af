"""What the ``dataset.json`` of a data set says, of the Decathlon or of nnU-Net: channels, classes.

It lies in the folder of the volumes, or in the one above.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from volflow.errors import InvalidInput
from volflow.store.atomic import read_json

__all__ = ["CARD", "channels_named", "classes_named"]

CARD = "dataset.json"

T = TypeVar("T")


def channels_named(folder: Path) -> tuple[str, ...]:
    """Return the channels of nnU-Net's images, in order; none where none are named.

    Raises
    ------
    InvalidInput
        If the description cannot be read.
    """
    return _said(folder, _channels) or ()


def classes_named(folder: Path) -> frozenset[int]:
    """Return the classes of labels; none where none are named.

    Raises
    ------
    InvalidInput
        If the description cannot be read.
    """
    return _said(folder, _classes) or frozenset()


def _said(folder: Path, read: Callable[[Any], T]) -> T | None:
    """Return what is read out of the description beside volumes, if there is one."""
    for path in (folder / CARD, folder.parent / CARD):
        if not path.is_file():
            continue
        try:
            return read(read_json(path))
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{path} cannot be read as the description of a data set: {error}; repair it, or"
                " move it elsewhere"
            ) from error
    return None


def _channels(card: Any) -> tuple[str, ...]:
    # The first version of nnU-Net, and the Decathlon, say modality.
    old = card.get("modality")
    named = card.get("channel_names") or (old if isinstance(old, dict) else {})
    names = [str(named[str(n)]) for n in range(len(named))]
    # Two channels may have one name there; their numbers differ.
    numbers = [f"{n:04}" for n in range(len(names))]
    return tuple(names if len(set(names)) == len(names) else numbers)


def _classes(card: Any) -> frozenset[int]:
    """The Decathlon names a text by each number, nnU-Net a number, or several, by each text."""
    found: list[int] = []
    for key, value in (card.get("labels") or {}).items():
        numbers = [key] if isinstance(value, str) and not value.isdecimal() else value
        found += map(int, numbers if isinstance(numbers, list) else [numbers])
    return frozenset(found)
