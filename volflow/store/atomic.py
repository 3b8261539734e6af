"""Small files, written atomically: complete or absent, even if the writer is killed."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from volflow.store.aside import file_aside
from volflow.store.remote.address import Address, Location

__all__ = [
    "differences",
    "encoded",
    "parse_json",
    "plain",
    "read_each",
    "read_json",
    "write_file",
    "write_json",
]

MOST_BYTES = 64 * 2**20  # of a metadata file; those of a pyramid have a few thousand
AT_ONCE, SIDE_BY_SIDE = 256, 16  # objects that are read ahead, and together
DEEPEST = 64  # nested containers; ours and NGFF's nest about ten deep


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path | Address):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def plain(value: Any) -> Any:
    """Return the value as JSON stores it: tuples become lists, NumPy numbers Python numbers.

    Raises
    ------
    TypeError
        If a part has no JSON form.

    Examples
    --------
    >>> plain({"patch": (96, 96, 96), 1: Path("a")})
    {'patch': [96, 96, 96], '1': 'a'}
    """
    return json.loads(json.dumps(value, default=_encode))


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return the differences between two JSON values by key, as lines ``name: old → new``.

    Examples
    --------
    >>> differences({"weights": "1a2b3c4d5e6f7a8b9c", "settings": {"overlap": 0.25}},
    ...             {"weights": "9f8e7d6c5b4a39281f", "settings": {"overlap": 0.5}})
    ['weights: 1a2b3c4d… → 9f8e7d6c…', 'settings.overlap: 0.25 → 0.5']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else str(key)
            lines += differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return lines
    # Texts are compared, not values: 1 and 1.0 mean different overlaps, and NaN equals itself.
    a, b = _text(old), _text(new)
    return [] if a == b else [f"{name}: {_short(a)} → {_short(b)}"]


_ABSENT = object()
MOST_SHOWN = 40  # of a list in a difference


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _short(text: str) -> str:
    short = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1…", text.strip('"'))
    return f"{short[: MOST_SHOWN - 1]}…" if len(short) > MOST_SHOWN and short[0] in "[{" else short


def write_file(path: Location, data: bytes) -> None:
    """Write a file, or an object on a store, that others see whole or not at all.

    It survives the death of this process, but not a power cut: like the voxels, it is not
    flushed to the disk.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is still there.
    """
    if isinstance(path, Address):
        path.write_bytes(data)
        return
    with file_aside(path) as (part, file):
        file.write(data)
        file.flush()
        part.replace(path)


def write_json(path: Location, value: Any) -> None:
    """Write a value as JSON, atomically as `write_file`.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is still there.
    """
    write_file(path, encoded(value))


def encoded(value: Any) -> bytes:
    """Return a value as JSON, as `write_json` writes it."""
    return json.dumps(value, default=_encode).encode()


def read_json(path: Location, most_bytes: int = MOST_BYTES) -> Any:
    """Return the value of a JSON file; all JSON, trusted or not, is read by this function.

    Raises
    ------
    ValueError
        If it is not JSON (as after a power cut), too large, or nested too deeply.
    OSError
        If it cannot be read.
    """
    if isinstance(path, Address):
        return parse_json(path.read_bytes(most_bytes))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"it has {size} bytes, more than {most_bytes}")
        return parse_json(file.read(size + 1))


def read_each(paths: Iterable[Location]) -> Iterator[tuple[Location, Callable[[], Any]]]:
    """Yield paths, each with what reads its JSON; objects of a store are read side by side.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.json")
    >>> write_json(path, [1, 2])
    >>> [read() for _, read in read_each([path])]
    [[1, 2]]
    """
    pending = iter(paths)
    while some := list(itertools.islice(pending, AT_ONCE)):
        if isinstance(some[0], Path):
            yield from ((path, partial(read_json, path)) for path in some)
        else:
            with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(some))) as pool:
                found = [pool.submit(read_json, path) for path in some]
            yield from ((path, one.result) for path, one in zip(some, found, strict=True))


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If it is not JSON, or nested so deeply that recursive code would overflow the stack.

    Examples
    --------
    >>> parse_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse_json(b"[" * 100 + b"]" * 100)
    Traceback (most recent call last):
    ValueError: it is nested more than 64 deep
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        value, deep = None, True
    else:
        deep = _is_deep(value)
    if deep:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    return value


def _is_deep(value: Any) -> bool:
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not layer:
            return False
    return True
