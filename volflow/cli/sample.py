"""The command ``volflow sample``: patches as a training would get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volflow.cli.values import (
    Json,
    PlanOnly,
    Quiet,
    beside,
    given,
    inputs,
    progress,
    say,
)
from volflow.errors import InvalidInput
from volflow.option import numbers

if TYPE_CHECKING:
    from volflow.sampling.samplers import Sampler

__all__ = ["sample"]

Text = str | None
SHOWN, MOST_SHOWN, COUNTED = 32, 200, 1000  # patches of a sheet, of a chart
# Voxels emitted per voxel decoded: patches of a chart share superchunks; hardly two of a sheet do,
# which is to show many places.
REUSE, SPREAD = 4, 0.001
# The samplers, each with the options that belong to it.
SAMPLERS = {
    "uniform": ("border",),
    "weighted": ("border", "weight"),
    "label": ("border", "probabilities"),
    "grid": ("overlap",),
}


def sample(  # noqa: PLR0913  one parameter per option that people type
    cases: Annotated[
        list[str],
        typer.Argument(
            metavar="CASES...",
            help="A folder with images/ and labels/, one or more scans, or the arrays of one scan"
            " as name=path.",
        ),
    ],
    sampler: Annotated[str, typer.Option(help="uniform, weighted, label, or grid.")] = "uniform",
    patch: Annotated[str, typer.Option(help="Voxels: 64, or 32,96,96 (z,y,x).")] = "64",
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", help="How many patches: 32; 1000 with --stats."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Where patches fall instead of what they show.")
    ] = False,
    out: Annotated[
        Text,
        typer.Option("--out", "-o", help="The picture (.png, .pdf, .svg). Default: beside CASES."),
    ] = None,
    border: Annotated[
        Text, typer.Option(help="inside: patches lie in the volume; pad: centres lie anywhere.")
    ] = None,
    label: Annotated[
        Text, typer.Option(help="Name of the array of classes; by default the first.")
    ] = None,
    weight: Annotated[Text, typer.Option(help="Name of the array of weights: weight.")] = None,
    probabilities: Annotated[
        Text, typer.Option(help="Of each class, such as 0=1,1=3; by default all voxels above 0.")
    ] = None,
    overlap: Annotated[
        Text, typer.Option(help="Of a grid: in voxels, or as a fraction below 1.")
    ] = None,
    axis: Annotated[
        Text, typer.Option(help="Across the slices shown: z, y, x, axial, coronal or sagittal.")
    ] = None,
    classes: Annotated[
        Text, typer.Option(help="Names of the classes from 0 on: background,liver,tumour.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random places.")] = 0,
    dpi: Annotated[int, typer.Option(help="Pixels per inch of the picture.")] = 150,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw patches as a training would get them: a sheet of slices, or where they fall.

    Where patches fall: volflow sample cases/ --sampler label --stats
    """
    typed = given(border=border, weight=weight, probabilities=probabilities, overlap=overlap)
    _check(sampler, typed)
    _check_picture(stats, axis, count)
    from volflow.report.pictures.preview import check_target, save

    one = inputs(cases[:1]) if "=" in cases[0] else cases[0]
    first = one if isinstance(one, str) else next(iter(one.values()))
    target = Path(out) if out else beside(first, "-centres" if stats else "-patches")
    if not plan:
        check_target(target, dpi)
    from volflow.sampling.cases.open_cases import open_cases
    from volflow.sampling.samplers import GridSampler
    from volflow.sampling.stream import PatchStream
    from volflow.sampling.stream_options import StreamOptions

    opened = open_cases(_named(cases))
    label = label or next((name for name in opened[0].sources if name in opened[0].classes), None)
    chosen = _sampler(sampler, numbers("patch", patch), typed, label)
    number = count or (COUNTED if stats else SHOWN)
    options = StreamOptions(
        chosen,
        None if isinstance(chosen, GridSampler) else number,
        seed=seed,
        reuse=REUSE if stats else SPREAD,
    )
    stream = PatchStream.from_options(opened, options, progress=progress(quiet))
    if plan:
        counts = stream.case_counts()
        planned = {"sampler": repr(chosen), "cases": counts, "peak_bytes": stream.plan.peak_bytes}
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        say(planned, as_json, f"{chosen}\n{stream.plan}\ncases       {told}")
        return
    from volflow.report.pictures.patch_counts import facts_text
    from volflow.report.pictures.patch_pictures import patch_sheet, patch_stats

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    if stats:
        figure = patch_stats(stream, patches=count, label=label, classes=names)
    else:
        figure = patch_sheet(stream, tiles=number, label=label, classes=names, **given(axis=axis))
    save(figure, target, dpi)
    facts = {"path": str(target), "sampler": repr(chosen), **getattr(figure, "facts", {})}
    say(facts, as_json, f"{facts_text(facts)}\n{target}")


def _check(sampler: str, typed: Mapping[str, Any]) -> None:
    """Refuse options that do not belong to the sampler."""
    if sampler not in SAMPLERS:
        raise InvalidInput(f"sampler must be {', '.join(SAMPLERS)}; given {sampler!r}")
    for option in typed:
        if option not in SAMPLERS[sampler]:
            fits = [name for name, options in SAMPLERS.items() if option in options]
            raise InvalidInput(
                f"--{option} does not belong to the sampler {sampler}; leave it out, or add"
                f" --sampler {' or '.join(fits)}"
            )


def _check_picture(stats: bool, axis: str | None, count: int | None) -> None:
    """Refuse what the picture cannot show."""
    if stats and axis is not None:
        raise InvalidInput(f"--axis {axis} is that of a sheet, --stats shows all; leave one out")
    if count is not None and count < 1:
        raise InvalidInput(f"--count must be at least 1, given {count}")
    if count is not None and count > MOST_SHOWN and not stats:
        raise InvalidInput(
            f"a sheet shows {MOST_SHOWN} patches at most, given {count}; add --stats"
        )


def _named(words: Sequence[str]) -> str | list[str] | dict[str, str]:
    """One case or folder, several scans, or the arrays of one scan by name."""
    if len(words) > 1 and not any("=" in word for word in words):
        return list(words)
    return inputs(words)


def _sampler(name: str, patch: Any, typed: Mapping[str, Any], label: str | None) -> Sampler:
    from volflow.sampling import samplers

    if name == "grid":
        overlap = numbers("overlap", typed.get("overlap", "0"))
        return samplers.GridSampler(patch, overlap)
    border = given(border=typed.get("border"))
    if name == "weighted":
        return samplers.WeightedSampler(patch, typed.get("weight", "weight"), **border)
    if name == "label":
        shares = _probabilities(typed.get("probabilities"))
        return samplers.LabelSampler(patch, label or "label", shares, **border)
    return samplers.UniformSampler(patch, **border)


def _probabilities(text: str | None) -> dict[int, float] | None:
    """Weights by class, as typed.

    Examples
    --------
    >>> _probabilities("0=1, 2=0.5")
    {0: 1.0, 2: 0.5}
    """
    if text is None:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        weights = {int(value): float(weight) for value, weight in pairs}
    except ValueError:
        weights = {}
    if not weights:
        raise InvalidInput(
            f"probabilities must be class=weight with commas between, such as 0=1,1=3; given"
            f" {text!r}"
        )
    return weights
