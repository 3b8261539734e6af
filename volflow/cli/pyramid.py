"""The command ``volflow pyramid``: coarser levels for viewers and previews."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from volflow.cli.values import Json, PlanOnly, Quiet, progress, say, say_plan
from volflow.volumes.volume_options import PyramidOptions

__all__ = ["pyramid"]


def pyramid(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume that volflow wrote.")
    ],
    options: PyramidOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write coarser levels of a volume: means of an image, the commonest of classes.

    Each is made from the one before it, in bounded memory. Run again after an interruption, the
    command does only what is left.
    """
    from volflow.volumes.pyramid.pyramid import plan_pyramid
    from volflow.volumes.pyramid.pyramid import pyramid as write_levels

    options = replace(options, progress=progress(quiet))
    if plan:
        say_plan(plan_pyramid(volume, **vars(options)), as_json)
        return
    from volflow.report.facts.info import facts_text, volume_facts

    facts = volume_facts(write_levels(volume, **vars(options)))
    say(facts, as_json, facts_text(facts))
