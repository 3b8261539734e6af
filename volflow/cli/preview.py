"""The command ``volflow preview``: planes of a volume as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.values import DPI, OUT, Json, beside, class_names, given, say
from volflow.errors import InvalidInput
from volflow.option import numbers, option

__all__ = ["preview"]

LAYER = ("level", "channel", "classes")  # options of all three pictures


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
    """The options of `volflow preview`, some of which belong to one of its three pictures."""

    over: str | None = option(None, "The scan underneath.")
    against: str | None = option(None, "Another result: both, and how they differ.")
    sheet: str | None = option(
        None, "Many planes along an axis: z, y, x, axial, coronal or sagittal."
    )
    tiles: int | None = option(None, "How many planes a sheet shows. Default: 24.")
    out: str | None = option(None, f"{OUT} Default: beside VOLUME.", names=("--out", "-o"))
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
    dpi: int = option(150, DPI)


def preview(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume or result to show.")],
    options: PreviewOptions,
    as_json: Json = False,
) -> None:
    """Draw planes of a volume, reading only these: a scan, or a result over its scan.

    Many planes along an axis: volflow preview scan.zarr --sheet z

    Two results and how they differ: volflow preview a.zarr --against b.zarr --over scan.zarr
    """
    from volflow.report.pictures.preview import check_target, save

    _check(options)
    over, sheet, against = options.over, options.sheet, options.against
    target = Path(options.out) if options.out else beside(volume, _suffix(sheet, against))
    check_target(target, options.dpi)
    shown: dict[str, Any] = {name: getattr(options, name) for name in LAYER}
    if sheet is not None:
        from volflow.report.pictures.preview import contact_sheet

        figure = contact_sheet(volume, over, axis=sheet, **given(tiles=options.tiles), **shown)
    elif against is not None:
        from volflow.report.pictures.compare import compare

        figure = compare(volume, against, over, at=options.at, **shown)
    else:
        from volflow.report.pictures.preview import preview as draw

        figure = draw(volume, over, at=options.at, **shown)
    save(figure, target, options.dpi)
    say({"path": str(target), **getattr(figure, "facts", {})}, as_json, str(target))


def _check(options: PreviewOptions) -> None:
    """Refuse options that belong to different pictures."""
    if options.sheet is not None and options.against is not None:
        raise InvalidInput("--sheet and --against are two pictures; ask for one at a time")
    if options.tiles is not None and options.sheet is None:
        raise InvalidInput(f"--tiles {options.tiles} needs the axis of a sheet; add --sheet z")
    if options.at is not None and options.sheet is not None:
        raise InvalidInput("--at places three planes, --sheet shows many; leave one out")


def _suffix(sheet: str | None, against: str | None) -> str:
    """What the name of a picture adds to the name of its volume."""
    from volflow.sampling.cases.open_cases import stem

    axis = "" if sheet is None else f"-{sheet}"
    return axis if against is None else f"{axis}-against-{stem(Path(against).name)}"
