"""The facts of many cases at once: sizes, spacings, data types, intensities, classes, faults."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from volflow.errors import VolflowError
from volflow.geometry.histogram import Histogram, measure, merge
from volflow.geometry.units import unit_sign
from volflow.report.facts.grid_facts import counted, times
from volflow.report.facts.value_counts import SAMPLE_BYTES, sampled_counts, stored_counts
from volflow.sampling.cases.case_faults import CaseFault, CaseFaults
from volflow.sampling.cases.check_cases import checked_classes
from volflow.sampling.cases.look import Opened, look_at
from volflow.sampling.cases.open_cases import is_of_classes
from volflow.store.slabs import Source
from volflow.store.volume import Volume

__all__ = ["case_facts", "case_facts_text"]

MOST_SAMPLED = 32  # cases whose values are looked at, spread over all
CASE_BYTES = SAMPLE_BYTES // 4  # raw bytes of a file that is read as a whole for them
PERCENTILES = (0.5, 50.0, 99.5)
PLANES = 16  # read at a time
WAYS: dict[str, Any] = {"min": min, "median": statistics.median, "max": max}
MOST_CLASSES = 40  # that have a line


def case_facts(cases: Any, *, all_voxels: bool = False) -> tuple[dict[str, Any], CaseFaults]:
    """Return the facts of cases as plain values, for JSON, and their faults.

    Parameters
    ----------
    cases
        As `open_cases` takes them.
    all_voxels
        Read all voxels once: for exact intensities, the volumes of classes, and faults of labels.
        Else intensities are those of stored statistics, or of a sample.
    """
    good, faults, count = look_at(cases)
    facts: dict[str, Any] = {
        "path": os.fspath(cases) if isinstance(cases, str | os.PathLike) else None,
        "cases": count,
        "used": len(good),
    }
    if good:
        leads = [next(iter(one.sources.values())) for one in good]
        units = Counter(lead.meta.unit for lead in leads)
        facts |= {
            "shape": _range([lead.shape[-3:] for lead in leads]),
            "spacing": _range([lead.meta.spacing[-3:] for lead in leads]),
            "unit": units.most_common(1)[0][0],
            "arrays": {},
        }
        for name in good[0].sources:
            sources = [one.sources[name] for one in good]
            array: dict[str, Any] = {
                "dtypes": dict(Counter(str(source.dtype) for source in sources).most_common()),
                "channels": sources[0].channels_count,
                "raw_bytes": sum(prod(x.shape) * x.dtype.itemsize for x in sources),
            }
            if any(is_of_classes(name, source) for source in sources):
                if all_voxels:
                    array["classes"], wrong = _classes(good, name)
                    faults = [*faults, *wrong]
            else:
                array["intensities"], wrong = _intensities(good, name, all_voxels=all_voxels)
                faults = [*faults, *wrong]
            facts["arrays"][name] = array
    found = CaseFaults(tuple(sorted(faults, key=lambda one: one.case)), count)
    return {**facts, "faults": found.to_dict()["faults"]}, found


def case_facts_text(facts: Mapping[str, Any], faults: CaseFaults) -> str:
    """Return the facts of cases as lines of text, with the table of their faults."""
    rows = {"cases": f"{facts['cases']}, {facts['used']} of them without faults"}
    if "shape" in facts:
        sign = unit_sign(facts["unit"])
        rows |= {
            "shape": _spread(facts["shape"], "(zyx)"),
            "spacing": _spread(facts["spacing"], sign),
        }
        for name, array in facts["arrays"].items():
            kinds = ", ".join(f"{dtype} in {n}" for dtype, n in array["dtypes"].items())
            channels = f", {array['channels']} channels" if array["channels"] > 1 else ""
            rows[name] = f"{kinds}{channels}"
            if array.get("intensities"):
                rows[f"{name} values"] = _values(array["intensities"])
            classes = list(array.get("classes", {}).items())
            if len(classes) > MOST_CLASSES:
                rows[f"{name} classes"] = f"{len(classes)}; shown are the first {MOST_CLASSES}"
            for value, one in classes[:MOST_CLASSES]:
                volume = one["volume"]
                cubed = f"{sign}³" if sign else "voxels"
                rows[f"{name} {value}"] = (
                    f"in {one['cases']} cases, {counted(one['voxels'])} voxels; {volume['min']:.6g}"
                    f" to {volume['max']:.6g} {cubed} a case, median {volume['median']:.6g}"
                )
    wide = max(map(len, rows))
    lines = [f"  {name:{wide}}  {value}" for name, value in rows.items()]
    told = [] if faults.ok else ["", str(faults)]
    return "\n".join([facts["path"] or "in memory", *lines, *told])


def _range(triples: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Return the smallest, median and largest of triples, axis by axis."""
    axes = list(zip(*triples, strict=True))
    return {name: [way(axis) for axis in axes] for name, way in WAYS.items()}


def _spread(found: Mapping[str, Sequence[float]], sign: str) -> str:
    """Return a range of triples, in words."""
    low, middle, high = (f"{times(found[name])} {sign}".strip() for name in WAYS)
    return f"{low} in all" if low == high else f"{low} to {high}, median {middle}"


def _values(found: Mapping[str, Any]) -> str:
    low, middle, high = found["percentiles"].values()
    return (
        f"{found['min']:.6g} to {found['max']:.6g}; medians over cases of percentiles"
        f" {', '.join(f'{q:g}' for q in PERCENTILES)}: {low:.6g}, {middle:.6g}, {high:.6g}"
        f" ({found['from']})"
    )


def _intensities(
    cases: Sequence[Opened], name: str, *, all_voxels: bool
) -> tuple[dict[str, Any] | None, list[CaseFault]]:
    """Return the range of values, percentiles as medians over cases, and what cannot be read."""
    step = 1 if all_voxels else max(1, -(-len(cases) // MOST_SAMPLED))
    faults: list[CaseFault] = []
    known: list[Histogram] = []
    kinds: Counter[str] = Counter()
    for case in cases[::step]:
        try:
            kind, found = _histogram(case.sources[name], all_voxels=all_voxels)
        except (VolflowError, OSError) as error:
            kind, found = "unreadable", None
            faults.append(CaseFault.of(case.name, error))
        kinds[kind] += 1
        if found is not None and found.count:
            known.append(found)
    if not known:
        return None, faults
    each = [[one.percentile(q) for q in PERCENTILES] for one in known]
    medians = [statistics.median(column) for column in zip(*each, strict=True)]
    return {
        "min": min(one.min for one in known),
        "max": max(one.max for one in known),
        "percentiles": dict(zip(map(str, PERCENTILES), medians, strict=True)),
        "from": f"of {len(cases)} cases " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
    }, faults


def _histogram(source: Source, *, all_voxels: bool) -> tuple[str, Histogram | None]:
    """Return the values of a volume in all its channels, and where they are from."""
    if isinstance(source, Volume) and not all_voxels:
        stored = stored_counts(source)
        if stored:
            return "by stored statistics", merge(stored)
        found = [one for one in sampled_counts(source) if one is not None]
        return "sampled", merge(found) if found else None
    raw = prod(source.shape) * source.dtype.itemsize
    if not all_voxels and raw > CASE_BYTES:
        return "not read, as they are large and not converted", None
    return "read whole", merge([measure(voxels) for _, voxels in source.slabs(PLANES)])


def _classes(cases: Sequence[Opened], name: str) -> tuple[dict[str, Any], list[CaseFault]]:
    """Return the volume of each class over all cases, and the faults of labels."""
    numbers: dict[int, list[int]] = {}
    volumes: dict[int, list[float]] = {}
    faults: list[CaseFault] = []
    for case in cases:
        source = case.sources[name]
        counts, wrong = checked_classes(case, name, source)
        faults += wrong
        voxel = float(np.prod(source.meta.spacing[-3:])) if source.meta.knows_spacing else 1.0
        for value, number in counts.items():
            numbers.setdefault(value, []).append(number)
            volumes.setdefault(value, []).append(number * voxel)
    return {
        str(value): {
            "cases": len(numbers[value]),
            "voxels": sum(numbers[value]),
            "volume": {word: way(volumes[value]) for word, way in WAYS.items()},
        }
        for value in sorted(numbers)
    }, faults
