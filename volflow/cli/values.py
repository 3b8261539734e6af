"""What the commands share: options of one spelling, values as people type them, output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.errors import InvalidInput

__all__ = [
    "Cluster",
    "Json",
    "Memory",
    "Overwrite",
    "PlanOnly",
    "Quiet",
    "Wait",
    "beside",
    "given",
    "inputs",
    "number_or_word",
    "per_axis",
    "progress",
    "say",
]

Cluster = Annotated[
    str | None,
    typer.Option(
        help="Where to run: threads, processes, a number of processes, or tcp://host:port of a"
        " Dask scheduler. Default: threads of this process.",
    ),
]
Wait = Annotated[
    str | None,
    typer.Option(
        help="How long to wait where the cluster has no worker: seconds, or a text such as"
        " 10m. Default: as long as it takes."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="What one worker may use, such as 2GiB. Default: a share of what is free."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print the plan and run nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were typed; what was not is left to its own default."""
    return {name: value for name, value in options.items() if value is not None}


def progress(quiet: bool) -> bool | None:
    """The ``progress`` argument of the library: False hides it, None chooses by the terminal."""
    return False if quiet else None


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


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)


def per_axis(name: str, text: str | None) -> Any:
    """A number, or one per axis, as typed: whole numbers stay whole.

    Raises
    ------
    InvalidInput
        Where it is neither.

    Examples
    --------
    >>> per_axis("patch", "96"), per_axis("patch", "96,96,48"), per_axis("overlap", "0.25")
    (96, (96, 96, 48), 0.25)
    """
    if text is None:
        return None
    try:
        numbers = tuple(_number(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise InvalidInput(
            f"{name} must be one number or three with commas (z,y,x), given {text!r};"
            " write for example 96 or 96,96,48"
        )
    return numbers[0] if len(numbers) == 1 else numbers


def number_or_word(text: str | None) -> int | str | None:
    """A whole number where the text is one, else the text.

    Examples
    --------
    >>> number_or_word("4"), number_or_word("auto")
    (4, 'auto')
    """
    return int(text) if text is not None and text.isdecimal() else text


def beside(volume: str, suffix: str) -> Path:
    """Return the path of a picture that was not named: beside its volume, here for a URL.

    Examples
    --------
    >>> str(beside("scans/p01.nii.gz", "-seams")), str(beside("https://host/p01.zarr", ""))
    ('scans/p01-seams.png', 'p01.png')
    """
    from volflow.sampling.cases.open_cases import stem

    path = Path(volume)
    folder = Path() if "://" in volume else path.parent
    return folder / f"{stem(path.name or path.absolute().name)}{suffix}.png"


def say(facts: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print a result on standard output, for people or for machines."""
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str) if as_json else text)
