"""The command ``volflow pyramid``: coarser levels for viewers and previews."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from volflow.cli.values import (
    Cluster,
    Json,
    Memory,
    Overwrite,
    PlanOnly,
    Quiet,
    Wait,
    given,
    progress,
    say,
)

__all__ = ["pyramid"]


def pyramid(  # noqa: PLR0913 - a command takes flat options
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume that volflow wrote.")
    ],
    levels: Annotated[
        int | None,
        typer.Option(help="How many coarser levels. Default: until no side exceeds 64 voxels."),
    ] = None,
    cluster: Cluster = None,
    wait: Wait = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write coarser levels of a volume: means of an image, the commonest of classes.

    Each is made from the one before it, in bounded memory. Run again after an interruption, the
    command does only what is left.
    """
    options: dict[str, Any] = given(levels=levels, cluster=cluster, wait=wait, memory=memory)
    options["overwrite"] = overwrite

    from volflow.volumes.pyramid.pyramid import plan_pyramid
    from volflow.volumes.pyramid.pyramid import pyramid as write_levels

    if plan:
        planned = plan_pyramid(volume, **options)
        say(planned.to_dict(), as_json, planned.describe())
        return
    from volflow.report.facts.info import facts_text, volume_facts

    facts = volume_facts(write_levels(volume, progress=progress(quiet), **options))
    say(facts, as_json, facts_text(facts))
