"""The command ``volflow halo``: what exact inference needs, and what seams do to a result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from volflow.cli.typed import changed
from volflow.cli.values import Json, Quiet, beside, inputs, say
from volflow.errors import InvalidInput
from volflow.infer.predict_options import SEAMS, HaloOptions, SeamsOptions

__all__ = ["halo"]

_volume = partial(typer.Option, rich_help_panel=SEAMS)


def halo(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A bundle, a .pt2 file, or package.module:callable."),
    ],
    alone: Annotated[HaloOptions, "Options"],
    *,
    on: Annotated[
        list[str] | None,
        _volume("--on", help="Measure the seams on this volume; repeated as name=path."),
    ] = None,
    seams: Annotated[SeamsOptions, SEAMS],
    out: Annotated[
        str | None,
        _volume("--out", "-o", help="The picture (.png, .pdf, .svg). Default: beside the volume."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what exact inference of a model needs; on a volume, what the seams of patches cost.

    With --on, regions are computed whole, by the exact blend and in blended patches.
    """
    if on is None:
        shared = replace(seams, weights=None, trust=False)
        for name in (*changed(shared), *(["--out"] if out else [])):
            raise InvalidInput(
                f"{name} is for a run on a volume; add --on scan.zarr, or leave it out"
            )
        from volflow.infer.halo import halo as find

        found = find(model, **vars(alone))
        say(found.to_dict(), as_json, found.describe())
        return
    for name in changed(replace(alone, weights=None, trust=False)):
        raise InvalidInput(f"{name} follows from the volume given by --on; leave it out")
    from volflow.report.pictures.preview import check_target, save
    from volflow.report.pictures.stack import drawing

    named = inputs(on)
    first = named if isinstance(named, str) else next(iter(named.values()))
    target = Path(out) if out else beside(first, "-seams")
    check_target(target)
    drawing()  # refuses before minutes of work
    from volflow.infer.seams.certify import certify_seams
    from volflow.report.pictures.seams_figure import seams_figure

    progress = None if quiet else partial(typer.echo, err=True)
    certificate = certify_seams(named, model, **vars(replace(seams, progress=progress)))
    save(seams_figure(certificate), target)
    facts = {"path": str(target), **certificate.to_dict()}
    say(facts, as_json, f"{certificate.describe()}\n{target}")
