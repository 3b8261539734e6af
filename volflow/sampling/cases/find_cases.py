"""Find cases: what of a pattern, a folder or a table belongs together, by name; nothing is opened.

The result is plain: the volumes of each case by name, in a dict by case, which `predict_cases`,
`open_cases` and `PatchStream` take.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.sampling.cases.case_folders import cases_of_folder, is_case_folder
from volflow.sampling.cases.names import check_channels, check_names, listed, names_classes
from volflow.sampling.cases.values import Text, names_file

__all__ = ["CASE", "find_cases", "names_cases"]

CASE = "{case}"
IMAGE = "image"
TABLES = (".csv", ".tsv")
INTEGER = re.compile(r"[+-]?\d+")


def find_cases(
    source: str | os.PathLike[str] | Mapping[str, str] | None = None, /, **channels: str
) -> dict[str, dict[str, Any]]:
    """Find cases by a pattern, in a folder, or in a table; no volume is opened.

    Parameters
    ----------
    source
        A pattern with ``{case}``, such as ``"in/{case}.nii.gz"`` or ``"in/{case}/t1.nii.gz"``, or
        several by the names of their channels. A folder of volumes; or one with ``images/`` and
        ``labels/``; of the Decathlon (``imagesTr/``, ``labelsTr/``, ``imagesTs/``); or of nnU-Net
        (``case_0000.nii.gz``, with its ``dataset.json``). A table (``.csv``, ``.tsv``) with a
        column ``case`` and one for each channel, whose paths are relative to it. A column of
        numbers holds values, such as an age; one of texts does, such as a site, where none holds a
        slash or ends like the name of a file (``.nii``), and it is not called ``image``,
        ``label…``, ``mask…`` or ``seg…``; neither does where a cell names what lies beside the
        table. Cells of values may be empty: NaN, or ``""``.
    **channels
        Patterns by channel: ``t1="in/{case}_t1.nii.gz", flair="in/{case}_flair.nii.gz"``.

    Returns
    -------
    dict
        By the names of the cases, sorted (of a table in its order): the paths of their volumes by
        name, and the values of a table. A single volume is called ``"image"``, the label of a
        folder ``"label"``, where there is one.

    Raises
    ------
    InvalidInput
        If nothing is found, saying what was looked for; if a channel is missing in some cases, two
        cases have one name, or a column holds numbers and texts, naming them.

    Examples
    --------
    >>> for name in ("p1_t1", "p1_flair", "p2_t1", "p2_flair"):
    ...     Path(f"{name}.npy").touch()
    >>> found = find_cases(t1="{case}_t1.npy", flair="{case}_flair.npy")
    >>> list(found), list(found["p1"])
    (['p1', 'p2'], ['t1', 'flair'])
    """
    if channels or isinstance(source, Mapping):
        if channels and source is not None:
            raise InvalidInput("cases are found by one source or by channels; given both")
        return _cases_of_patterns(dict(source) if isinstance(source, Mapping) else channels)
    if source is None:
        raise InvalidInput(
            'find_cases needs a pattern such as "in/{case}.nii.gz", a folder or a table'
        )
    text = os.fspath(source)
    path = Path(text).expanduser()
    if CASE in text:
        found: dict[str, dict[str, Any]] = dict(_cases_of_patterns({IMAGE: text}))
    elif path.is_dir():
        found = dict(cases_of_folder(path))
    elif path.suffix.lower() in TABLES:
        found = dict(_cases_of_table(path))
    else:
        raise InvalidInput(
            f"{text} is neither a pattern with {CASE}, a folder nor a table ({', '.join(TABLES)});"
            " write for example in/{case}.nii.gz"
        )
    check_names(found)
    return found


def names_cases(x: Any) -> bool:
    """Return True for a pattern, a folder or a table of cases, as `find_cases` takes them.

    Examples
    --------
    >>> names_cases("in/{case}.nii.gz"), names_cases("cases.csv"), names_cases("scan.nii.gz")
    (True, True, False)
    """
    if not isinstance(x, str | os.PathLike):
        return False
    text = os.fspath(x)
    return CASE in text or Path(text).suffix.lower() in TABLES or is_case_folder(text)


def _cases_of_patterns(patterns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the cases of patterns by channel."""
    without = [pattern for pattern in patterns.values() if CASE not in os.fspath(pattern)]
    if without:
        raise InvalidInput(
            f"{listed(map(str, without))} has no {CASE} in it, which stands for the name of a case;"
            " write for example in/{case}_t1.nii.gz"
        )
    found: dict[str, dict[str, str]] = {}
    for channel, pattern in patterns.items():
        for case, path in _matches(os.fspath(pattern)).items():
            found.setdefault(case, {})[channel] = path
    check_channels(found, patterns)
    check_names(found)
    return dict(sorted(found.items()))


def _matches(pattern: str) -> dict[str, str]:
    """Return the paths that a pattern matches, by case."""
    text = str(Path(pattern).expanduser())
    parts = text.split(CASE)
    # The second {case} and further ones stand for what the first does.
    regular = re.escape(parts[0]) + "(?P<case>[^/]+)" + "(?P=case)".join(map(re.escape, parts[1:]))
    form = re.compile(regular, re.DOTALL)
    paths = glob.glob("*".join(map(glob.escape, parts)))  # noqa: PTH207 - keeps paths as written
    found = {}
    for path in sorted(paths):
        match = form.fullmatch(path)
        if match:
            found[match["case"]] = path
    if not found:
        raise InvalidInput(
            f"no case was found: nothing matches {pattern} (looked in"
            f" {Path(parts[0] + '_').parent.absolute()}); check the pattern, in quotes"
        )
    return found


def _cases_of_table(path: Path) -> dict[str, dict[str, str | float]]:
    """Return the cases of a table, in its order."""
    cells_of = _cells_of_table(path)
    heads = list(next(iter(cells_of.values())))
    found: dict[str, dict[str, str | float]] = {case: {} for case in cells_of}
    for head in heads:
        column = {case: cells[head] for case, cells in cells_of.items()}
        for case, value in _column(path, head, column).items():
            found[case][head] = value
    check_channels(found, heads)
    kinds = [isinstance(one, int | float | Text) for one in next(iter(found.values())).values()]
    if all(kinds):
        raise InvalidInput(
            f"{path} has only values ({listed(heads)}), and no file of such a name lies beside it;"
            " give it a column of paths, such as image"
        )
    return found


def _cells_of_table(path: Path) -> dict[str, dict[str, str]]:
    """Return the cells of a table by case and head."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {(error.strerror or '').lower()}") from error
    except (UnicodeError, csv.Error) as error:
        raise InvalidInput(f"{path} is not a table of text in UTF-8: {error}") from error
    heads = [head.strip() for head in rows[0]] if rows else []
    if "case" not in heads or len(heads) < 2 or len(set(heads)) < len(heads) or "" in heads:
        raise InvalidInput(
            f'{path} needs a column "case" and one for each channel, by names that differ; its'
            f" first line has {', '.join(heads) or 'none'}"
        )
    cells_of: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(heads):
            raise InvalidInput(
                f"line {number} of {path} has {len(row)} columns, expected {len(heads)}"
            )
        cells = dict(zip(heads, (cell.strip() for cell in row), strict=True))
        case = cells.pop("case")
        if case in cells_of:
            raise InvalidInput(
                f"the names of cases must differ, but line {number} of {path} has {case!r} again"
            )
        cells_of[case] = cells
    if not cells_of:
        raise InvalidInput(f"no case was found: {path} has no line below its heads")
    return cells_of


def _column(table: Path, head: str, column: Mapping[str, str]) -> Mapping[str, str | float]:
    """Return a column's values, or its paths; a folder that is there may be called 001."""
    paths = {case: _beside(table, cell) for case, cell in column.items() if cell}
    if not paths or any(_is_there(one) for one in paths.values()):
        return paths
    numbers = _numbers(column)
    if numbers:
        return numbers
    if head.lower() == IMAGE or names_classes(head) or any(map(names_file, column.values())):
        return paths
    _refuse_mixed(table, head, column)
    return {case: Text(cell) for case, cell in column.items()}


def _refuse_mixed(table: Path, head: str, column: Mapping[str, str]) -> None:
    """Refuse a column of numbers in which a text has strayed."""
    number = next((case for case, cell in column.items() if _numbers({case: cell})), None)
    if number is not None:
        text = next(case for case, cell in column.items() if cell and not _numbers({case: cell}))
        raise InvalidInput(
            f"{head} of case {text} is {column[text]!r} in {table}, and a number elsewhere, such as"
            f" {column[number]} of {number}; a column holds paths, numbers or texts: leave a cell"
            " empty where a number is unknown"
        )


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a name
        return False


def _numbers(column: Mapping[str, str]) -> Mapping[str, float]:
    """Return the numbers of a column, NaN where a cell is empty; none if it holds another text."""
    given = [cell for cell in column.values() if cell]
    try:
        whole = len(given) == len(column) and all(map(INTEGER.fullmatch, given))
        kind: Callable[[str], float] = int if whole else float
        found = {case: kind(cell or "nan") for case, cell in column.items()}
    except ValueError:
        return {}
    return found if given else {}


def _beside(table: Path, cell: str) -> str:
    """Return a path or URL of a table; paths are relative to the table."""
    return cell if "://" in cell else str(table.parent / Path(cell).expanduser())
