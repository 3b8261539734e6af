"""Commands that bring volumes in and out, measure and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.values import (
    Cluster,
    Json,
    Memory,
    Overwrite,
    PlanOnly,
    Quiet,
    given,
    per_axis,
    progress,
    say,
)
from volflow.errors import InvalidInput

__all__ = ["convert", "export", "info", "preview", "statistics"]


def convert(  # noqa: PLR0913  one parameter per option that people type
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A .nii, .nii.gz or .npy file, or Zarr v2 or v3."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The OME-Zarr volume to write.")],
    chunk: Annotated[
        str | None,
        typer.Option(help="Voxels of a compressed piece: 64, or 16,128,128 (z,y,x)."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Voxels of a stored object, a multiple of the chunk.")
    ] = None,
    cluster: Cluster = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a file to a sharded OME-Zarr 0.5 volume with its spacing and orientation.

    The file is never held whole. Run again after an interruption, it does only what is left.
    """
    from volflow.ops.convert import convert as run_convert
    from volflow.ops.convert import plan_convert

    options: dict[str, Any] = given(
        chunk=per_axis("chunk", chunk),
        shard=per_axis("shard", shard),
        cluster=cluster,
        memory=memory,
    )
    if plan:
        planned = plan_convert(source, out, **options)
        say(planned.to_dict(), as_json, planned.describe())
        return
    from volflow.report.info import facts_text, volume_facts

    volume = run_convert(source, out, overwrite=overwrite, progress=progress(quiet), **options)
    facts = volume_facts(volume)
    say(facts, as_json, facts_text(facts))


def info(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="A volume, or a file that can be converted.")
    ],
    as_json: Json = False,
) -> None:
    """Show shape, spacing, orientation, layout and size; no voxel is read."""
    from volflow.report.info import facts_of, facts_text

    facts = facts_of(volume)
    say(facts, as_json, facts_text(facts))


def statistics(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    foreground: Annotated[
        str | None,
        typer.Option(help="nonzero, or a number: only voxels above it count. Default: all."),
    ] = None,
    cluster: Cluster = None,
    memory: Memory = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure range, mean, deviation and percentiles, and keep them beside the volume."""
    from volflow.ops.statistics import statistics as measure

    options = given(foreground=_foreground(foreground), cluster=cluster, memory=memory)
    found = measure(volume, progress=progress(quiet), **options)
    say(found.to_dict(), as_json, str(found))


def export(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="The .nii, .nii.gz or .npy file to write.")
    ],
    overwrite: Overwrite = False,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Write a volume back as a file, on the axes, orientation and affine of its source."""
    from volflow.report.info import facts_of, facts_text

    if plan:
        facts = facts_of(volume)
        planned = {"operation": "export", "out": out, "volume": facts}
        say(planned, as_json, f"export to {out}\n{facts_text(facts)}")
        return
    from volflow.ops.export import export as write_file

    write_file(volume, out, overwrite=overwrite)
    facts = facts_of(out)
    say(facts, as_json, facts_text(facts))


def preview(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume or result to show.")],
    over: Annotated[str | None, typer.Option(help="The scan underneath.")] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="The picture (.png, .pdf, .svg). Default: beside VOLUME."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="center, content, or a voxel z,y,x. Default: by content.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes from 0 on: background,liver,tumour.")
    ] = None,
    channel: Annotated[int | None, typer.Option(help="Which channel to show.")] = None,
    level: Annotated[int | None, typer.Option(help="Which level of the pyramid.")] = None,
    dpi: Annotated[int, typer.Option(help="Pixels per inch of the picture.")] = 150,
) -> None:
    """Draw three orthogonal planes, reading only these: a scan, or a result over its scan."""
    from volflow.report.preview import preview as draw
    from volflow.report.preview import save

    figure = draw(
        volume,
        over,
        level=level,
        channel=channel,
        at=at if at in (None, "center", "content") else per_axis("at", at),
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
    )
    target = Path(out) if out else Path(volume.rstrip("/")).with_suffix(".png")
    save(figure, target, dpi)
    typer.echo(str(target))


def _foreground(text: str | None) -> bool | float | None:
    if text is None or text == "nonzero":
        return None if text is None else True
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"foreground must be nonzero or a number, given {text!r}; leave it out for all voxels"
        ) from None
