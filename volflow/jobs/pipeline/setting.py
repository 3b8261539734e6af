"""Settings of steps, taken from the options objects that commands and Python calls have."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field

__all__ = ["Setting", "settings_of", "written"]

# Names in annotations of options that are imported for type checkers only, as a file has them.
_AS_WRITTEN: dict[str, Any] = {
    "VolumeLike": str, "Cluster": str | int | None, "Progress": bool | None, "Meta": dict,
    "Foreground": bool | float, "ModelLike": str, "npt": types.SimpleNamespace(ArrayLike=str),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting of a step.

    Parameters
    ----------
    kind
        Its type, as pydantic takes it.
    help
        A line on what it does.
    needed
        Whether it must be given.
    read
        Turns its name and a text into its value, as on the command line.
    """

    kind: Any
    help: str = ""
    needed: bool = True
    read: Callable[[str, Any], Any] | None = None


def settings_of(options: type) -> dict[str, Setting]:
    """Return the settings that an options object declares, by name.

    Those that no command line takes, and whether progress is shown, are left out.

    Examples
    --------
    >>> from volflow.volumes.volume_options import PyramidOptions
    >>> settings_of(PyramidOptions)["levels"].kind == (int | None)
    True
    """
    hints = typing.get_type_hints(options, localns=_AS_WRITTEN)
    return {
        one.name: Setting(
            written(hints[one.name]), str(one.metadata["help"]), False, one.metadata["read"]
        )
        for one in fields(options)
        if one.metadata and one.name != "progress"
    }


def written(kind: Any) -> Any:
    """Return a type as the values in a file have it: paths are texts, there are no functions.

    Examples
    --------
    >>> written(str | os.PathLike[str] | Callable[[int], int] | None) == (str | None)
    True
    >>> written(Sequence[int])
    list[int]
    """
    origin, inner = get_origin(kind), get_args(kind)
    if os.PathLike in (kind, origin) or (isinstance(kind, type) and issubclass(kind, os.PathLike)):
        return str
    if origin in (Union, types.UnionType):
        kinds = [written(one) for one in inner if get_origin(one) is not Callable]
        return Union[tuple(dict.fromkeys(kinds))]  # noqa: UP007 - of a list
    if origin is tuple and inner[-1:] != (Ellipsis,):
        sides = Field(min_length=len(inner), max_length=len(inner))
        return Annotated[list[written(inner[0])], sides]  # type: ignore[misc]
    if origin in (Sequence, list, tuple):
        return list[written(inner[0])]  # type: ignore[misc]
    if origin is Mapping:
        return dict[written(inner[0]), written(inner[1])]  # type: ignore[misc]
    return kind
