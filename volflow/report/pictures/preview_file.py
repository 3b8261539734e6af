"""A preview as a file: its options, and which of the three pictures they ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.option import numbers, option
from volflow.report.grey_range import WINDOW, typed_window

__all__ = ["DPI", "PreviewOptions", "class_names", "write_preview"]

DPI = "Pixels per inch of the picture."

LAYER = ("level", "channel", "classes", "window")  # options of all three pictures


def class_names(name: str, text: str) -> list[str]:
    """Names with commas between, as typed.

    Examples
    --------
    >>> class_names("classes", "background, liver")
    ['background', 'liver']
    """
    return [one.strip() for one in text.split(",")]


def _place(name: str, text: str) -> Any:
    """Where planes are laid, as typed: a word, or a voxel."""
    if text in ("center", "content"):
        return text
    try:
        return numbers(name, text)
    except InvalidInput:
        raise InvalidInput(
            f"{name} must be center, content or a voxel z,y,x, given {text!r}; write for example"
            " 20,64,64"
        ) from None


@dataclass(frozen=True)
class PreviewOptions:
    """The options of a preview, some of which belong to one of its three pictures."""

    over: str | None = option(None, "The scan underneath.")
    against: str | None = option(None, "Another result: both, and how they differ.")
    sheet: str | None = option(
        None, "Many planes along an axis: z, y, x, axial, coronal or sagittal."
    )
    tiles: int | None = option(None, "How many planes a sheet shows. Default: 24.")
    at: Any = option(
        None,
        "Where planes cross: center, content, or a voxel z,y,x. Default: center of a volume alone,"
        " else content.",
        read=_place,
    )
    classes: list[str] | None = option(
        None, "Names of the classes from 0 on, such as background,liver,tumour.", read=class_names
    )
    channel: int | None = option(None, "Which channel to show.")
    level: int | None = option(
        None, "Which level of the pyramid. Default: the finest that the picture can show."
    )
    whole: bool = option(
        True,
        "Count how far classes agree with --against in the whole volumes, or in the planes shown.",
        names=("--whole/--planes",),
    )
    window: Any = option(None, WINDOW, read=typed_window)
    dpi: int = option(150, DPI)


def write_preview(volume: str, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Draw planes of a volume into a file, and return what it shows.

    Parameters
    ----------
    volume
        The volume or result to show.
    out
        The picture; replaced if it is there.
    **options
        Those of `PreviewOptions`.

    Raises
    ------
    InvalidInput
        For options that belong to different pictures, and as the pictures raise.
    """
    from volflow.report.pictures.preview import check_target, contact_sheet, preview, save

    asked = PreviewOptions(**options)
    _check(asked)
    target = Path(out)
    check_target(target, asked.dpi)
    shown: dict[str, Any] = {name: getattr(asked, name) for name in LAYER}
    if asked.sheet is not None:
        tiles: dict[str, Any] = {} if asked.tiles is None else {"tiles": asked.tiles}
        figure = contact_sheet(volume, asked.over, axis=asked.sheet, **tiles, **shown)
    elif asked.against is not None:
        from volflow.report.pictures.compare import compare

        figure = compare(volume, asked.against, asked.over, at=asked.at, whole=asked.whole, **shown)
    else:
        figure = preview(volume, asked.over, at=asked.at, **shown)
    save(figure, target, asked.dpi)
    return {"path": str(target), **getattr(figure, "facts", {})}


def _check(options: PreviewOptions) -> None:
    """Refuse options that belong to different pictures."""
    if options.sheet is not None and options.against is not None:
        raise InvalidInput("--sheet and --against are two pictures; ask for one at a time")
    if options.tiles is not None and options.sheet is None:
        raise InvalidInput(f"--tiles {options.tiles} needs the axis of a sheet; add --sheet z")
    if options.at is not None and options.sheet is not None:
        raise InvalidInput("--at places three planes, --sheet shows many; leave one out")
