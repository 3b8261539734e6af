"""What the commands share: options of one spelling, values as people type them, output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volflow.errors import InvalidInput

if TYPE_CHECKING:
    from volflow.engine.plan import Plan
    from volflow.engine.progress import Progress

__all__ = [
    "OUT",
    "Json",
    "PlanOnly",
    "Quiet",
    "beside",
    "given",
    "inputs",
    "say",
    "say_facts",
    "say_plan",
]

OUT = "The picture (.png, .pdf, .svg)."
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print the plan and run nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were typed; what was not is left to its own default."""
    return {name: value for name, value in options.items() if value is not None}


def inputs(volumes: Sequence[str]) -> str | dict[str, str]:
    """One volume, or several by name.

    Raises
    ------
    InvalidInput
        Where several are given and one has no name, or two have the same.

    Examples
    --------
    >>> inputs(["scan.zarr"])
    'scan.zarr'
    >>> inputs(["t1=a.zarr", "flair=b.zarr"])
    {'t1': 'a.zarr', 'flair': 'b.zarr'}
    """
    pairs = [re.fullmatch(r"([A-Za-z]\w*)=(.+)", volume) for volume in volumes]
    if len(volumes) == 1 and (pairs[0] is None or Path(volumes[0]).exists()):
        return volumes[0]
    named: dict[str, str] = {}
    for volume, pair in zip(volumes, pairs, strict=True):
        if pair is None:
            raise InvalidInput(
                f"several volumes need names, given {volume!r}; write name=path for each,"
                " such as t1=a.zarr flair=b.zarr"
            )
        if pair[1] in named:
            raise InvalidInput(f"two volumes are named {pair[1]!r}; give each its own name")
        named[pair[1]] = pair[2]
    return named


def beside(volume: str, suffix: str) -> Path:
    """Return the path of a picture that was not named: beside its volume, here for a URL.

    Examples
    --------
    >>> str(beside("scans/p01.nii.gz", "-seams")), str(beside("https://host/p01.zarr", ""))
    ('scans/p01-seams.png', 'p01.png')
    """
    from volflow.store.formats.sources import stem

    path = Path(volume)
    folder = Path() if "://" in volume else path.parent
    return folder / f"{stem(path.name or path.absolute().name)}{suffix}.png"


def say(facts: Mapping[str, Any], as_json: bool, text: str, progress: Progress = None) -> None:
    """Print a result on standard output, for machines, or for people who did not ask for quiet."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
    elif progress is not False:
        typer.echo(text)


def say_facts(facts: Mapping[str, Any], as_json: bool, progress: Progress = None) -> None:
    """Print what is known of a volume or a file."""
    from volflow.report.facts.info import facts_text

    say(facts, as_json, facts_text(facts), progress)


def say_plan(plan: Plan, as_json: bool) -> None:
    """Print the plan of a run that is not started."""
    say(plan.to_dict(), as_json, plan.describe())
