"""The grid of a volume as plain values, and how sizes, lengths and counts are written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volflow.geometry.units import unit_sign
from volflow.store.meta import Meta

__all__ = ["counted", "file_sizes", "grid_facts", "lengths", "short_name", "times"]


def grid_facts(shape: Sequence[int], dtype: Any, meta: Meta) -> dict[str, Any]:
    """Return shape, data type, axes, spacing, unit, orientation, kind, channels and bytes."""
    return {
        "shape": list(shape),
        "dtype": str(np.dtype(dtype)),
        "axes": "".join(meta.axes),
        "spacing": list(meta.spacing),
        "unit": meta.unit,
        "orientation": meta.orientation,
        "kind": meta.kind,
        "channels": list(meta.channels),
        **({"made_by": json.loads(meta.made)} if meta.made else {}),
        "raw_bytes": math.prod(shape) * np.dtype(dtype).itemsize,
    }


def times(sizes: Sequence[float]) -> str:
    """Return sizes with signs of multiplication between them.

    Examples
    --------
    >>> times([30, 0.703125])
    '30 × 0.703125'
    """
    return " × ".join(f"{size:.6g}" if size % 1 else f"{size:.0f}" for size in sizes)


def lengths(sizes: Sequence[float], unit: str | None) -> str:
    """Return sizes with the sign of their unit."""
    return f"{times(sizes)} {unit_sign(unit)}".rstrip()


def counted(number: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short_name(path: str) -> str:
    """Return the name of a volume's store, and its place inside one.

    Examples
    --------
    >>> short_name("/data/scan.zarr"), short_name("/data/cell.zarr/labels/0")
    ('scan.zarr', 'cell.zarr/labels/0')
    """
    parts = Path(path).parts
    stores = [n for n, part in enumerate(parts) if part.endswith(".zarr")]
    return "/".join(parts[stores[0] if stores else -1 :])


def file_sizes(root: str | os.PathLike[str]) -> Iterator[int]:
    """Yield the size in bytes of each file below a folder; links are not followed."""
    pending = [os.fspath(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry.stat(follow_symlinks=False).st_size
