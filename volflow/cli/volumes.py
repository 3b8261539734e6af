"""Commands that bring volumes in and out, measure and show them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.values import (
    Json,
    PlanOnly,
    Quiet,
    beside,
    given,
    progress,
    say,
    say_plan,
)
from volflow.errors import InvalidInput
from volflow.option import numbers
from volflow.volumes.volume_options import ConvertOptions, ExportOptions, StatisticsOptions

__all__ = ["convert", "export", "info", "preview", "statistics"]


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A .nii, .nii.gz or .npy file, or Zarr v2 or v3."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The OME-Zarr volume to write.")],
    options: ConvertOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a file to a sharded OME-Zarr 0.5 volume with its spacing and orientation.

    The file is never held whole. Run again after an interruption, it does only what is left; all of
    it where the source has changed meanwhile, as a file that was still being uploaded. A finished
    volume whose source has changed is refused unless --overwrite is given.
    """
    from volflow.volumes.convert import convert as run_convert
    from volflow.volumes.convert import plan_convert

    options = replace(options, progress=progress(quiet))
    if plan:
        say_plan(plan_convert(source, out, **vars(options)), as_json)
        return
    from volflow.report.facts.info import facts_text, volume_facts

    facts = volume_facts(run_convert(source, out, **vars(options)))
    say(facts, as_json, facts_text(facts))


def info(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="A volume, or a file that can be converted.")
    ],
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--image",
            help="Take the volume for a label map, or for an image, from now on; only its metadata"
            " change, and coarser levels made for the other are removed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show kind, shape, spacing, orientation, layout and size of a volume or file."""
    from volflow.report.facts.info import facts_of, facts_text

    if labels is not None:
        if Path(volume).is_file():
            kind = "--labels" if labels else "--image"
            raise InvalidInput(
                f"{volume} is a file and is not changed; convert it:"
                f" volflow convert {kind} {volume} OUT"
            )
        from volflow.volumes.kind import set_kind

        set_kind(volume, "classes" if labels else "image")
    facts = facts_of(volume)
    say(facts, as_json, facts_text(facts))


def statistics(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    options: StatisticsOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure range, mean, deviation and percentiles, and keep them beside the volume."""
    from volflow.volumes.statistics import statistics as measure

    found = measure(volume, **vars(replace(options, progress=progress(quiet))))
    say(found.to_dict(), as_json, str(found))


def export(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="The .nii, .nii.gz or .npy file to write.")
    ],
    options: ExportOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Write a volume back as a file, on the axes, orientation and affine of its source.

    A file that holds it already is left alone; any other that is there, such as one that was edited
    since, is refused without --overwrite.
    """
    from volflow.report.facts.info import facts_of, facts_text

    if plan:
        from volflow.volumes.export import check_file, refuse_changed

        path = check_file(out, overwrite=options.overwrite)
        if not options.overwrite:
            refuse_changed(path)
        facts = facts_of(volume)
        planned = {"operation": "export", "out": out, "volume": facts}
        say(planned, as_json, f"export to {out}\n{facts_text(facts)}")
        return
    from volflow.volumes.export import export as write_file

    write_file(volume, out, **vars(options))
    facts = facts_of(out)
    say(facts, as_json, facts_text(facts))


def preview(  # noqa: PLR0913  one parameter per option that people type
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume or result to show.")],
    over: Annotated[str | None, typer.Option(help="The scan underneath.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another result: both, and how they differ.")
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(help="Many planes along an axis: z, y, x, axial, coronal or sagittal."),
    ] = None,
    tiles: Annotated[int | None, typer.Option(help="How many planes of a sheet: 24.")] = None,
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
    as_json: Json = False,
) -> None:
    """Draw planes of a volume, reading only these: a scan, or a result over its scan.

    Many planes along an axis: volflow preview scan.zarr --sheet z

    Two results and how they differ: volflow preview a.zarr --against b.zarr --over scan.zarr
    """
    from volflow.report.pictures.preview import check_target, save

    _check_picture(sheet, tiles, against, at)
    target = Path(out) if out else beside(volume, _suffix(sheet, against))
    check_target(target, dpi)
    options: dict[str, Any] = {
        "level": level,
        "channel": channel,
        "classes": None if classes is None else [name.strip() for name in classes.split(",")],
    }
    place = at if at in (None, "center", "content") else numbers("at", at)
    if sheet is not None:
        from volflow.report.pictures.preview import contact_sheet

        figure = contact_sheet(volume, over, axis=sheet, **given(tiles=tiles), **options)
    elif against is not None:
        from volflow.report.pictures.compare import compare

        figure = compare(volume, against, over, at=place, **options)
    else:
        from volflow.report.pictures.preview import preview as draw

        figure = draw(volume, over, at=place, **options)
    save(figure, target, dpi)
    say({"path": str(target), **getattr(figure, "facts", {})}, as_json, str(target))


def _check_picture(
    sheet: str | None, tiles: int | None, against: str | None, at: str | None
) -> None:
    """Refuse options that belong to different pictures."""
    if sheet is not None and against is not None:
        raise InvalidInput("--sheet and --against are two pictures; ask for one at a time")
    if tiles is not None and sheet is None:
        raise InvalidInput(f"--tiles {tiles} needs the axis of a sheet; add --sheet z")
    if at is not None and sheet is not None:
        raise InvalidInput("--at places three planes, --sheet shows many; leave one out")


def _suffix(sheet: str | None, against: str | None) -> str:
    """What the name of a picture adds to the name of its volume."""
    from volflow.sampling.cases.open_cases import stem

    axis = "" if sheet is None else f"-{sheet}"
    return axis if against is None else f"{axis}-against-{stem(Path(against).name)}"
