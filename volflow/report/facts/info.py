"""The facts that ``volflow info`` prints: shape, grid, layout, size and state of the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from volflow.engine.observing.run_facts import run_facts
from volflow.errors import InvalidInput
from volflow.geometry.budget import format_bytes
from volflow.report.facts.grid_facts import file_sizes, grid_facts, lengths, times
from volflow.report.facts.label_hint import label_hint
from volflow.report.facts.run_state import run_line
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source, split_part
from volflow.store.journal.journal import journal_of
from volflow.store.journal.levels import place_of
from volflow.store.opening import is_zarr
from volflow.store.slabs import Source
from volflow.store.volume import Volume, open_volume

__all__ = ["facts_of", "facts_text", "volume_facts"]


def facts_of(path: str | os.PathLike[str], choice: ImageChoice | None = None) -> dict[str, Any]:
    """Return the facts of a volume, or of a file or folder that can be converted.

    Few voxels are read, to see whether an image looks like a label map.

    Parameters
    ----------
    path
        An OME-Zarr image, a Zarr array, or a file or folder of any format that is read.
    choice
        Which image of several.

    Returns
    -------
    dict
        Plain values, for JSON.

    Raises
    ------
    InvalidInput
        If it is neither.
    """
    text, choice = os.fspath(path), ImageChoice() if choice is None else choice
    if choice == ImageChoice() and ("://" in text or is_zarr(Path(text).expanduser())):
        return volume_facts(open_volume(text))  # also one that is not complete
    source = open_source(text, choice)
    if isinstance(source, Volume):
        return volume_facts(source)
    place, _ = split_part(text)
    sizes = list(file_sizes(place)) if place.is_dir() else [place.stat().st_size]
    return {
        "path": text,
        **grid_facts(source.shape, source.dtype, source.meta),
        **_hinted(source, f"volflow convert --labels {text} OUT"),
        "read": "front to back" if source.sequential else "anywhere",
        "stored_bytes": sum(sizes),
    }


def volume_facts(volume: Volume) -> dict[str, Any]:
    """Return the facts of an open volume as plain values."""
    facts = {
        "path": volume.path,
        **grid_facts(volume.shape, volume.dtype, volume.meta),
        **_hinted(volume, _marking(volume)),
        "chunks": list(volume.chunks),
        "shards": None if volume.shards is None else list(volume.shards),
        "levels": [{"path": level.path, "spacing": list(level.scale)} for level in volume.levels],
    }
    if volume.path is not None and Path(volume.path).is_dir():
        sizes = list(file_sizes(volume.path))
        facts |= {"stored_bytes": sum(sizes), "objects": len(sizes)}
        if journal_of(volume.path).recorded() is not None:
            facts["run"] = run_facts(volume.path)
    elif volume.path is not None:  # behind a URL, perhaps one that shows nothing else
        with suppress(InvalidInput):
            if journal_of(volume.path).recorded() is not None:
                facts["run"] = run_facts(volume.path)
    return facts


def _hinted(image: Source, remedy: str) -> dict[str, Any]:
    """Return the signs that an image is a label map, and the command that makes it one."""
    hint = label_hint(image)
    if hint is None:
        return {}
    return {"looks_like": "classes", "hint": f"{hint}; if these are classes: {remedy}"}


def _marking(volume: Volume) -> str:
    """Return the command that makes a label map of a volume, by a copy if need be."""
    try:
        place_of(volume)
    except InvalidInput:
        ours = False
    else:
        ours = volume.dtype.kind != "f"
    path = volume.path or "VOLUME"
    return f"volflow info --labels {path}" if ours else f"volflow convert --labels {path} OUT"


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return facts as lines of text.

    Examples
    --------
    >>> import zarr
    >>> vol = open_volume(zarr.ones(shape=(30, 40, 50), chunks=(10, 10, 10), dtype="uint8"))
    >>> print(facts_text(volume_facts(vol)))
    in memory
      kind         image
      shape        30 × 40 × 50 (zyx) uint8
      spacing      1 × 1 × 1
      chunks       10 × 10 × 10
      raw          58.6 KiB
    """
    unit = facts["unit"]
    spacings = [lengths(level["spacing"], unit) for level in facts.get("levels", ())]
    rows = {
        "kind": _kind(facts),
        "shape": f"{times(facts['shape'])} ({facts['axes']}) {facts['dtype']}",
        "spacing": lengths(facts["spacing"], unit),
        "orientation": f"{facts['orientation']} for zyx" if facts["orientation"] else "",
        "classes" if facts["kind"] == "classes" else "channels": ", ".join(facts["channels"]),
        "made by": _maker(facts.get("made_by")),
        "chunks": times(facts.get("chunks") or ()),
        "shards": times(facts.get("shards") or ()),
        "levels": f"{len(spacings)}: {', '.join(spacings)}" if len(spacings) > 1 else "",
        "read": facts.get("read", ""),
        "raw": format_bytes(facts["raw_bytes"]),
        "stored": _stored_text(facts),
        "run": run_line(facts["run"]) if "run" in facts else "",
    }
    lines = [f"  {name:11}  {value}" for name, value in rows.items() if value]
    return "\n".join([facts["path"] or "in memory", *lines])


def _kind(facts: Mapping[str, Any]) -> str:
    kind = "label map" if facts["kind"] == "classes" else "image"
    return f"{kind}, though {facts['hint']}" if "hint" in facts else kind


def _maker(made: Mapping[str, Any] | None) -> str:
    """Return the model that computed the voxels, and by which settings, in a line."""
    if made is None:
        return ""
    options = made.get("options") or {}
    settings = ", ".join(
        f"{name} {options[name]}" for name in ("patch", "blend") if name in options
    )
    return f"{made['model']} (weights {made['weights'][:12]}{settings and ', ' + settings})"


def _stored_text(facts: Mapping[str, Any]) -> str:
    if "stored_bytes" not in facts:
        return ""
    size, raw = facts["stored_bytes"], facts["raw_bytes"]
    text = format_bytes(size)
    if size and raw:
        factor, compared = (
            f"{max(raw / size, size / raw):.3g}",
            "smaller" if size < raw else "larger",
        )
        text += ", as much as raw" if factor == "1" else f", {factor} times {compared} than raw"
    return text + (f", {facts['objects']} files" if "objects" in facts else "")
