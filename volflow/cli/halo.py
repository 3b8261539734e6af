"""The command ``volflow halo``: what exact inference takes, and what seams do to a result."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.values import Json, Memory, Quiet, beside, given, inputs, per_axis, say
from volflow.errors import InvalidInput

__all__ = ["halo"]

_volume = partial(typer.Option, rich_help_panel="On a volume")
Text = str | None


def halo(  # noqa: PLR0913  one parameter per option that people type
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A bundle, a .pt2 file, or package.module:callable."),
    ],
    channels: Annotated[int | None, typer.Option(help="Of its input; a bundle's, or 1.")] = None,
    shape: Annotated[
        Text, typer.Option(help="Of the volume, z,y,x (y,x of slices); by default very large.")
    ] = None,
    weights: Annotated[Text, typer.Option(help="Weights for package.module:callable.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow model files that can run code.")
    ] = False,
    on: Annotated[
        list[str] | None,
        _volume("--on", help="Measure the seams on this volume; repeated as name=path."),
    ] = None,
    patch: Annotated[Text, _volume(help="The model's window: 96, or 96,96,48.")] = None,
    overlap: Annotated[list[str] | None, _volume(help="May be repeated; 0, 0.25 and 0.5.")] = None,
    blend: Annotated[
        list[str] | None, _volume(help="May be repeated: crop, average, hann; gaussian.")
    ] = None,
    regions: Annotated[int | None, _volume(help="How many are measured: 2.")] = None,
    frame: Annotated[Text, _volume(help="The axes that the model expects, such as RAS.")] = None,
    normalize: Annotated[Text, _volume(help="minmax, zscore or percentile.")] = None,
    activation: Annotated[Text, _volume(help="After blending: softmax or sigmoid.")] = None,
    device: Annotated[Text, _volume(help="cpu, cuda or cuda:1; by default the best.")] = None,
    seed: Annotated[int | None, _volume(help="Of the draw of regions.")] = None,
    memory: Memory = None,
    out: Annotated[
        Text,
        _volume("--out", "-o", help="The picture (.png, .pdf, .svg). Default: beside the volume."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell what exact inference of a model takes; on a volume, what the seams of patches cost.

    With --on the model is run on regions whole, by the exact blend and in blended patches.
    """
    typed: dict[str, Any] = given(
        patch=per_axis("patch", patch),
        overlaps=None if overlap is None else [per_axis("overlap", one) for one in overlap],
        blends=blend,
        regions=regions,
        frame=frame,
        normalize=normalize,
        activation=activation,
        device=device,
        seed=seed,
        memory=memory,
    )
    if on is None:
        _check_alone({**typed, **given(out=out)})
        from volflow.infer.halo import halo as find

        found = find(model, channels, _sides(shape), weights=weights, trust=trust)
        say(found.to_dict(), as_json, found.describe())
        return
    for name, value in (("channels", channels), ("shape", shape)):
        if value is not None:
            raise InvalidInput(f"--{name} is that of the volume given by --on; leave it out")
    from volflow.report.pictures.preview import check_target, save
    from volflow.report.pictures.stack import drawing

    named = inputs(on)
    first = named if isinstance(named, str) else next(iter(named.values()))
    target = Path(out) if out else beside(first, "-seams")
    check_target(target)
    drawing()  # refuses before minutes of work
    from volflow.infer.seams.certify import certify_seams
    from volflow.report.pictures.seams_figure import seams_figure

    told = None if quiet else partial(typer.echo, err=True)
    certificate = certify_seams(named, model, weights=weights, trust=trust, progress=told, **typed)
    save(seams_figure(certificate), target)
    facts = {"path": str(target), **certificate.to_dict()}
    say(facts, as_json, f"{certificate.describe()}\n{target}")


def _check_alone(typed: dict[str, Any]) -> None:
    """Refuse what only means something on a volume."""
    names = {"overlaps": "overlap", "blends": "blend"}
    for name in typed:
        raise InvalidInput(
            f"--{names.get(name, name)} says how a volume is run; add --on scan.zarr, or leave it"
            " out"
        )


def _sides(text: str | None) -> tuple[int, ...] | None:
    """Sides of a volume or a slice, as typed.

    Examples
    --------
    >>> _sides("512,512,300"), _sides("64,64"), _sides(None)
    ((512, 512, 300), (64, 64), None)
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (2, 3) or not all(part.strip().isdecimal() for part in parts):
        raise InvalidInput(
            f"shape must be whole numbers z,y,x, or y,x of slices, given {text!r}; write for"
            " example 512,512,300"
        )
    return tuple(int(part) for part in parts)
