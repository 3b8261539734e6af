"""Commands that bring volumes in and out, give them levels and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volflow.cli.typed import changed
from volflow.cli.values import Json, PlanOnly, say, say_facts, say_plan
from volflow.errors import InvalidInput, RunFailed
from volflow.jobs.batch.convert_cases_options import ConvertCasesOptions
from volflow.store.formats.choice import ImageChoice
from volflow.volumes.resample.resample_options import ResampleOptions
from volflow.volumes.volume_options import (
    ConvertOptions,
    ExportOptions,
    PyramidOptions,
    StatisticsOptions,
)

__all__ = ["convert", "export", "info", "pyramid", "resample", "statistics"]

WHOLE = ImageChoice()
Stored = Annotated[str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file or folder of any format that is read, or FILE::PART of it; or Zarr. Of"
            " many cases a folder (images/, labels/), a table (.csv), or 'in/{case}.nii.gz'.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="The OME-Zarr volume to write; of many cases the folder of all."
        ),
    ],
    options: ConvertOptions,
    many: ConvertCasesOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Convert a file to a sharded OME-Zarr 0.5 volume with its spacing and orientation.

    The file is never held whole. Run again after an interruption, the command does only what is
    left; it starts over where the source has changed since, such as a file that was still being
    uploaded. A finished volume whose source has changed is refused without --overwrite.

    Of many cases each array goes to OUT/CASE/NAME.zarr; only what is new or changed is converted,
    and a case that fails stops no other. Exit code 1 where some failed.
    """
    from volflow.sampling.cases.find_cases import names_cases

    if names_cases(source):
        _refuse_single(options, many)
        _convert_cases(source, out, many, plan=plan, as_json=as_json)
        return
    beside = sorted({*changed(many)} - {*changed(options)})
    if beside:
        raise InvalidInput(f"{', '.join(beside)} goes with many cases, and {source} is one volume")
    from volflow.volumes.convert import convert as run_convert
    from volflow.volumes.convert import plan_convert

    if plan:
        say_plan(plan_convert(source, out, **vars(options)), as_json)
        return
    from volflow.report.facts.info import volume_facts

    facts = volume_facts(run_convert(source, out, **vars(options)))
    say_facts(facts, as_json, options.progress)


def _refuse_single(options: ConvertOptions, many: ConvertCasesOptions) -> None:
    """Refuse options that are of one volume."""
    single = sorted({*changed(options)} - {*changed(many)})
    if single:
        raise InvalidInput(
            f"{', '.join(single)} goes with one volume, and not with many cases; leave it out"
        )


def _convert_cases(
    cases: str, out: str, options: ConvertCasesOptions, *, plan: bool, as_json: bool
) -> None:
    from volflow.jobs.batch.convert_cases import Conversion

    asked = Conversion.of(cases, out, options)
    table = asked.planned() if plan else asked.run()
    say(table.to_dict(), as_json, str(table) if plan else table.outcome())
    if not plan and not (table.ok or (options.skip_bad and any(row.ok for row in table))):
        raise typer.Exit(RunFailed.exit_code)


def info(
    volume: Annotated[
        str,
        typer.Argument(
            metavar="VOLUME",
            help="A volume, or a file that can be converted; a folder, pattern or table of cases.",
        ),
    ],
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--image",
            help="Take the volume for a label map, or for an image, from now on; only its metadata"
            " change, and coarser levels made for the other are removed.",
        ),
    ] = None,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Of cases: read all voxels once, for volumes of classes, exact ranges of values"
            " and labels that hold other classes than dataset.json names.",
        ),
    ] = False,
    choice: ImageChoice = WHOLE,
    as_json: Json = False,
) -> None:
    """Show kind, shape, spacing, orientation, layout and size of a volume or file.

    Of many cases: how many there are, the ranges of all that, and what is wrong with which.
    """
    from volflow.sampling.cases.find_cases import names_cases

    if names_cases(volume):
        if labels is not None or choice != WHOLE:
            raise InvalidInput(f"{volume} is many cases; name one of their volumes")
        from volflow.report.facts.case_facts import case_facts, case_facts_text

        facts, faults = case_facts(volume, all_voxels=statistics)
        say(facts, as_json, case_facts_text(facts, faults))
        return
    if statistics:
        raise InvalidInput(f"--statistics is of cases; of a volume: volflow statistics {volume}")
    from volflow.report.facts.info import facts_of

    if labels is not None:
        if Path(volume).is_file():
            kind = "--labels" if labels else "--image"
            raise InvalidInput(
                f"{volume} is a file and is not changed; convert it:"
                f" volflow convert {kind} {volume} OUT"
            )
        from volflow.volumes.kind import set_kind

        set_kind(volume, "classes" if labels else "image")
    say_facts(facts_of(volume, choice), as_json)


def pyramid(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume that volflow wrote.")
    ],
    options: PyramidOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Write coarser levels of a volume: means of an image, the commonest of classes.

    Each is made from the one before it, in bounded memory. Run again after an interruption, the
    command does only what is left.
    """
    from volflow.volumes.pyramid.pyramid import plan_pyramid
    from volflow.volumes.pyramid.pyramid import pyramid as write_levels

    if plan:
        say_plan(plan_pyramid(volume, **vars(options)), as_json)
        return
    from volflow.report.facts.info import volume_facts

    say_facts(volume_facts(write_levels(volume, **vars(options))), as_json, options.progress)


def resample(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="A volume, or a file that can be converted.")
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The OME-Zarr volume to write, or a file like .nii.gz."),
    ],
    options: ResampleOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Resample a volume to another voxel size, or onto the grid of another volume.

    Voxels of a label map are never mixed. Run again after an interruption, the command does only
    what is left.
    """
    from volflow.volumes.resample.resample import plan_resample
    from volflow.volumes.resample.resample import resample as run_resample

    if plan:
        say_plan(plan_resample(volume, out, **vars(options)), as_json)
        return
    from volflow.report.facts.info import facts_of

    if options.labels is None and options.order != 0:
        _hint_at_labels(volume)
    run_resample(volume, out, **vars(options))
    say_facts(facts_of(out), as_json, options.progress)


def _hint_at_labels(volume: str) -> None:
    """Say on standard error where an image looks like a label map, whose classes must not mix."""
    from volflow.report.facts.label_hint import label_hint
    from volflow.volumes.arrays.inputs import open_input

    hint = label_hint(open_input(volume))
    if hint is not None:
        typer.echo(
            f"volflow: {volume} is resampled as an image, though {hint}; if these are classes, give"
            " --labels, which never mixes them",
            err=True,
        )


def statistics(
    volume: Stored,
    options: StatisticsOptions,
    as_json: Json = False,
) -> None:
    """Measure range, mean, deviation and percentiles, and keep them beside the volume."""
    from volflow.volumes.statistics import statistics as measure

    found = measure(volume, **vars(options))
    say(found.to_dict(), as_json, str(found))


def export(
    volume: Stored,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The file, such as out.nii.gz, .nrrd, .mha, .tif or .h5, or its URL.",
        ),
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
        from volflow.store.formats.written import refuse_unwritable
        from volflow.volumes.arrays.inputs import open_input
        from volflow.volumes.export import check_export, refuse_changed

        path = check_export(out, overwrite=options.overwrite, ngff=options.ngff)
        if options.ngff is None and options.like is None:  # else it becomes another volume
            refuse_unwritable(open_input(volume).spec, Path(path.name))
        if isinstance(path, Path) and not options.overwrite:
            refuse_changed(path)
        facts = facts_of(volume)
        planned = {"operation": "export", "out": out, "volume": facts}
        say(planned, as_json, f"export to {out}\n{facts_text(facts)}")
        return
    from volflow.volumes.export import export as write_file

    written = write_file(volume, out, **vars(options))
    if isinstance(written, Path):
        say_facts(facts_of(out), as_json)
    else:
        say({"operation": "export", "out": out, "volume": facts_of(volume)}, as_json, f"{written}")
