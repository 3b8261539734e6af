"""The command ``volflow preview``: planes of a volume as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volflow.cli.values import OUT, Json, beside, say
from volflow.report.pictures.preview_file import PreviewOptions, write_preview

__all__ = ["preview"]


def preview(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume or result to show.")],
    options: PreviewOptions,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help=f"{OUT} Default: beside VOLUME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw planes of a volume, reading only these: a scan, or a result over its scan.

    Many planes along an axis: volflow preview scan.zarr --sheet z

    Two results and how they differ: volflow preview a.zarr --against b.zarr --over scan.zarr
    """
    target = Path(out) if out else beside(volume, _suffix(options.sheet, options.against))
    facts = write_preview(volume, target, **vars(options))
    say(facts, as_json, str(target))


def _suffix(sheet: str | None, against: str | None) -> str:
    """What the name of a picture adds to the name of its volume."""
    from volflow.store.formats.sources import stem

    axis = "" if sheet is None else f"-{sheet}"
    return axis if against is None else f"{axis}-against-{stem(Path(against).name)}"
