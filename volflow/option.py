"""The options of a journey, declared once in a frozen dataclass that all its callers share.

A field of it holds the option's name, type and default, and, made by `option`, how it is typed on
the command line. The journey's own signature repeats names, types and defaults for editors and
readers; a test compares the two.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from volflow.errors import InvalidInput

__all__ = [
    "called_like",
    "from_keywords",
    "journey",
    "nearest",
    "number_or_word",
    "numbers",
    "option",
    "value_or_word",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def option(
    default: Any,
    help: str,
    panel: str = "Options",
    *,
    names: tuple[str, ...] = (),
    read: Callable[[str, Any], Any] | None = None,
    many: bool = False,
) -> Any:
    """Return a dataclass field that can be typed on a command line.

    Parameters
    ----------
    default, help
        Its value where it is not given, and a line on what it does.
    panel
        The heading under which help lists it.
    names
        Its spellings where that is not its name; ``("--on/--off",)`` of a switch with both.
    read
        Turns its name and what was typed into its value, or raises InvalidInput. Without it the
        type of the option decides: a switch, a whole number, a number or text.
    many
        Whether it may be typed several times, each one an item of its value.
    """
    typed = {"help": help, "panel": panel, "names": names, "read": read, "many": many}
    return field(default=default, metadata=typed)


def from_keywords(kind: type[T], keywords: Mapping[str, Any]) -> T:
    """Return the options of a call: those among its keywords, or its ``locals()`` at the start.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Options:
    ...     side: int = option(64, "Voxels.")
    >>> def cut(volume, *, side=64):
    ...     return from_keywords(Options, locals())
    >>> cut("scan.zarr", side=32)
    Options(side=32)
    """
    named: Any = kind
    return kind(**{one.name: keywords[one.name] for one in fields(named) if one.name in keywords})


def journey(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a public journey: an option that it does not know is refused by our own error.

    Examples
    --------
    >>> @journey
    ... def cut(volume, *, side=64): ...
    >>> cut("scan.zarr", sides=32)
    Traceback (most recent call last):
    volflow.errors.InvalidInput: cut has no option 'sides'; did you mean 'side'?
    """
    return _checked(function, inspect.signature(function))


def called_like(other: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the signature of another; it gets the options that were given as keywords."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        returned = inspect.signature(function).return_annotation
        return _checked(function, inspect.signature(other).replace(return_annotation=returned))

    return decorate


def _checked(function: Callable[..., R], signature: inspect.Signature) -> Callable[..., R]:
    @wraps(function)
    def call(*args: Any, **keywords: Any) -> R:
        for name in keywords.keys() - signature.parameters.keys():
            raise InvalidInput(_unknown(function.__qualname__, name, list(signature.parameters)))
        return function(*args, **keywords)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _unknown(function: str, name: str, known: list[str]) -> str:
    function = function.removesuffix(".__init__")
    return f"{function} has no option {name!r}; {nearest(name, known, 'its options are')}"


def nearest(name: str, known: list[str], others: str = "there are") -> str:
    """Return the known name that was probably meant, or all of them.

    Examples
    --------
    >>> nearest("ovrlap", ["patch", "overlap"]), nearest("zzz", ["patch", "overlap"])
    ("did you mean 'overlap'?", 'there are patch, overlap')
    """
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"{others} {', '.join(known) or 'none'}"


def numbers(name: str, text: str) -> Any:
    """A number, or one per axis, as typed: whole numbers stay whole.

    Raises
    ------
    InvalidInput
        Where it is neither.

    Examples
    --------
    >>> numbers("patch", "96"), numbers("patch", "96,96,48"), numbers("overlap", "0.25")
    (96, (96, 96, 48), 0.25)
    """
    try:
        found = tuple(_number(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3):
        raise InvalidInput(
            f"{name} must be one number or three with commas (z,y,x), given {text!r};"
            " write for example 96 or 96,96,48"
        )
    return found[0] if len(found) == 1 else found


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)


def number_or_word(name: str, text: str) -> int | str:
    """A whole number where the text is one, else the text.

    Examples
    --------
    >>> number_or_word("batch_size", "4"), number_or_word("batch_size", "auto")
    (4, 'auto')
    """
    return int(text) if text.isdecimal() else text


def lengths(name: str, text: str) -> Any:
    """A length or a word, or one per axis, as typed: numbers, or texts with a unit.

    Examples
    --------
    >>> lengths("spacing", "1.5"), lengths("spacing", "1,1,3mm"), lengths("spacing", "stored")
    (1.5, (1.0, 1.0, '3mm'), 'stored')
    """
    found = tuple(value_or_word(name, part.strip()) for part in text.split(","))
    return found[0] if len(found) == 1 else found


def value_or_word(name: str, text: str) -> float | str:
    """A number of any sign where the text is one, else the text.

    Examples
    --------
    >>> value_or_word("padding", "-1024"), value_or_word("padding", "edge")
    (-1024.0, 'edge')
    """
    try:
        return float(text)
    except ValueError:
        return text
