"""The command ``volflow sample``: patches as a training would get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volflow.cli.values import OUT, Json, PlanOnly, Quiet, beside, given, inputs, say
from volflow.errors import InvalidInput
from volflow.option import numbers, option, value_or_word
from volflow.report.grey_range import WINDOW, typed_window
from volflow.report.pictures.preview_file import DPI, class_names

if TYPE_CHECKING:
    from volflow.sampling.samplers import Sampler

__all__ = ["sample"]

SHOWN, MOST_SHOWN, COUNTED = 32, 200, 1000  # patches of a sheet, of a chart
# Voxels emitted per voxel decoded: patches of a chart share superchunks; hardly two of a sheet do,
# which is to show many places.
REUSE, SPREAD = 4, 0.001
# The samplers, each with the options that belong to it.
SAMPLERS = {
    "uniform": ("border", "patches_per_case"),
    "weighted": ("border", "weight", "patches_per_case"),
    "label": ("border", "probabilities", "patches_per_case"),
    "grid": ("overlap",),
}


def as_probabilities(name: str, text: str) -> dict[int, float]:
    """Weights by class, as typed.

    Examples
    --------
    >>> as_probabilities("probabilities", "0=1, 2=0.5")
    {0: 1.0, 2: 0.5}
    """
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {int(value): float(weight) for value, weight in pairs}
    except ValueError:
        raise InvalidInput(
            f"{name} must be class=weight with commas between, such as 0=1,1=3; given {text!r}"
        ) from None


def as_patch(name: str, text: str) -> Any:
    """Voxels or lengths along the sides of a patch, as typed.

    Examples
    --------
    >>> as_patch("patch", "64"), as_patch("patch", "64mm"), as_patch("patch", "1,64mm,64mm")
    (64, '64mm', (1, '64mm', '64mm'))
    """
    if not any(map(str.isalpha, text)):
        return numbers(name, text)
    sides = tuple(int(side) if side.isdecimal() else side for side in text.split(","))
    return sides[0] if len(sides) == 1 else sides


@dataclass(frozen=True)
class SampleOptions:
    """The options of `volflow sample`, some of which belong to one sampler or picture."""

    sampler: str = option("uniform", "uniform, weighted, label or grid.")
    patch: Any = option(
        64, "Voxels per side: 64, or 32,96,96 (z,y,x); or lengths: 64mm.", read=as_patch
    )
    count: int | None = option(
        None, "How many patches. Default: 32, or 1000 with --stats.", names=("--count", "-n")
    )
    patches_per_case: int | None = option(None, "As many patches of each case, not --count of all.")
    stats: bool = option(False, "Show where patches fall, not what they hold.")
    out: str | None = option(None, f"{OUT} Default: beside CASES.", names=("--out", "-o"))
    border: str | None = option(
        None, "inside: patches lie within the volume; pad: their centres do. Default: inside."
    )
    label: str | None = option(None, "Name of the array of classes. Default: the first.")
    weight: str | None = option(None, "Name of the array of weights. Default: weight.")
    probabilities: dict[int, float] | None = option(
        None,
        "Weight of each class, such as 0=1,1=3. Default: all voxels above 0 alike.",
        read=as_probabilities,
    )
    overlap: Any = option(
        None, "Of patches of a grid, in voxels or as a fraction below 1. Default: 0.", read=numbers
    )
    axis: str | None = option(
        None,
        "The axis across slices: z, y, x (of the frame), axial, coronal or sagittal. Default: z.",
    )
    classes: list[str] | None = option(
        None, "Names of the classes from 0 on, such as background,liver,tumour.", read=class_names
    )
    frame: str | None = option(None, "The axes that a model expects, such as RAS.")
    normalize: str | None = option(
        None, "As of predict: zscore, window:-160,240 and so on. Default: as stored."
    )
    padding: float | str = option(
        0,
        "What lies outside of the volume: a normalised value, edge or reflect.",
        read=value_or_word,
    )
    window: Any = option(None, f"{WINDOW} Normalised ones with --normalize.", read=typed_window)
    skip_bad: bool = option(
        False, "Leave out cases that cannot be used, such as images without labels."
    )
    allow_mixed_spacing: bool = option(False, "Take cases of different spacing together.")
    seed: int = option(0, "Seed of the random places.")
    dpi: int = option(150, DPI)
    memory: str | None = option(
        None, "What reading patches may use, such as 2GiB. Default: a share of what is free."
    )


def sample(
    cases: Annotated[
        list[str],
        typer.Argument(
            metavar="CASES...",
            help="A folder with images/ and labels/, a table (.csv) or 'in/{case}.zarr' of cases,"
            " one or more scans, or the arrays of one scan as name=path.",
        ),
    ],
    options: SampleOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw patches as a training would get them: a sheet of slices, or where they fall.

    Where patches fall: volflow sample cases/ --sampler label --stats
    """
    _check(options)
    from volflow.report.pictures.preview import check_target, save

    stats, count = options.stats, options.count
    one = inputs(cases[:1]) if "=" in cases[0] else cases[0]
    first = one if isinstance(one, str) else next(iter(one.values()))
    target = (
        Path(options.out) if options.out else beside(first, "-centres" if stats else "-patches")
    )
    if not plan:
        check_target(target, options.dpi)
    from volflow.sampling.cases.open_cases import open_cases
    from volflow.sampling.samplers import GridSampler
    from volflow.sampling.stream import PatchStream

    opened = open_cases(_named(cases), skip_bad=options.skip_bad)
    classes = (name for name in opened[0].sources if name in opened[0].classes)
    label = options.label or next(classes, None)
    chosen = _sampler(options, label)
    each = options.patches_per_case
    number = each * len(opened) if each else count or (COUNTED if stats else SHOWN)
    _check_shown(options, number)
    stream = PatchStream(
        opened,
        chosen,
        None if isinstance(chosen, GridSampler) or each else number,
        patches_per_case=each,
        seed=options.seed,
        reuse=REUSE if stats else SPREAD,
        memory=options.memory,
        allow_mixed_spacing=options.allow_mixed_spacing,
        frame=options.frame,
        normalize=options.normalize,
        padding=options.padding,
        progress=False if quiet else None,
    )
    chosen = stream.sampler  # its patch is in voxels
    if plan:
        counts = stream.case_counts()
        planned = {"sampler": repr(chosen), "cases": counts, "peak_bytes": stream.plan.peak_bytes}
        shares = ", ".join(f"{name} {n}" for name, n in counts.items())
        say(planned, as_json, f"{chosen}\n{stream.plan}\ncases       {shares}")
        return
    from volflow.report.pictures.patch_counts import facts_text
    from volflow.report.pictures.patch_pictures import patch_sheet, patch_stats

    named: dict[str, Any] = {"label": label, "classes": options.classes}
    if stats:
        figure = patch_stats(stream, patches=count, **named)
    else:
        figure = patch_sheet(
            stream, tiles=number, **named, **given(axis=options.axis, window=options.window)
        )
    save(figure, target, options.dpi)
    facts = {"path": str(target), "sampler": repr(chosen), **getattr(figure, "facts", {})}
    say(facts, as_json, f"{facts_text(facts)}\n{target}")


def _check(options: SampleOptions) -> None:
    """Refuse options that do not belong to the sampler, or to the picture."""
    sampler, axis, count = options.sampler, options.axis, options.count
    if sampler not in SAMPLERS:
        raise InvalidInput(f"sampler must be {', '.join(SAMPLERS)}; given {sampler!r}")
    for name in ("border", "weight", "probabilities", "overlap", "patches_per_case"):
        if getattr(options, name) is not None and name not in SAMPLERS[sampler]:
            fits = [one for one, own in SAMPLERS.items() if name in own]
            raise InvalidInput(
                f"--{name.replace('_', '-')} does not belong to the sampler {sampler}; leave it"
                f" out, or add --sampler {' or '.join(fits)}"
            )
    if options.stats and axis is not None:
        raise InvalidInput(f"--axis {axis} is that of a sheet, --stats shows all; leave one out")
    if options.stats and options.window is not None:
        raise InvalidInput("--window is that of a sheet, --stats shows no values; leave one out")
    for name, asked in (("count", count), ("patches-per-case", options.patches_per_case)):
        if asked is not None and asked < 1:
            raise InvalidInput(f"--{name} must be at least 1, given {asked}")
    if count is not None and options.patches_per_case is not None:
        raise InvalidInput("--count is of all cases, --patches-per-case of each; leave one out")
    _check_shown(options, count or 0)


def _check_shown(options: SampleOptions, count: int) -> None:
    """Refuse more patches than a sheet shows."""
    if count > MOST_SHOWN and not options.stats:
        raise InvalidInput(
            f"a sheet shows {MOST_SHOWN} patches at most, given {count}; add --stats"
        )


def _named(words: Sequence[str]) -> str | list[str] | dict[str, str]:
    """One case or folder, several scans, or the arrays of one scan by name."""
    if len(words) > 1 and not any("=" in word for word in words):
        return list(words)
    return inputs(words)


def _sampler(options: SampleOptions, label: str | None) -> Sampler:
    from volflow.sampling import samplers

    patch, border = options.patch, given(border=options.border)
    if options.sampler == "grid":
        return samplers.GridSampler(patch, options.overlap or 0)
    if options.sampler == "weighted":
        return samplers.WeightedSampler(patch, options.weight or "weight", **border)
    if options.sampler == "label":
        return samplers.LabelSampler(patch, label or "label", options.probabilities, **border)
    return samplers.UniformSampler(patch, **border)
