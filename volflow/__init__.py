"""volflow: a volume too big for memory behaves as if it fitted.

The public names below are loaded on first use, so that ``import volflow`` costs nothing and a
program that only opens volumes never loads torch.

>>> import volflow as vf
>>> roi = vf.Roi((0, 0, 0), (8, 8, 8))
>>> roi.shape
(8, 8, 8)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volflow import errors
    from volflow.geometry.roi import Roi
    from volflow.infer.aggregate.grid_aggregator import GridAggregator
    from volflow.infer.halo import halo
    from volflow.infer.lazy.map_model import map_model
    from volflow.infer.predict import predict
    from volflow.model.bundle import load_model, save_model
    from volflow.report.pictures.compare import compare
    from volflow.report.pictures.preview import preview
    from volflow.report.pictures.sheet import contact_sheet
    from volflow.report.viewers.link import view
    from volflow.report.viewers.napari import napari_snippet
    from volflow.sampling.augment.augment import Augment
    from volflow.sampling.sample import sample
    from volflow.sampling.samplers import (
        GridSampler,
        LabelSampler,
        UniformSampler,
        WeightedSampler,
    )
    from volflow.sampling.stream import PatchStream
    from volflow.store.verify import verify
    from volflow.store.volume import Volume
    from volflow.store.volume import open_volume as open
    from volflow.volumes.arrays.inputs import VolumeLike
    from volflow.volumes.convert import convert
    from volflow.volumes.export import export
    from volflow.volumes.overlap.map_overlap import map_overlap
    from volflow.volumes.pyramid.pyramid import pyramid
    from volflow.volumes.statistics import statistics
    from volflow.volumes.write import write

__version__ = "0.1.0"

# public name -> (module, name there; "" for the module itself)
_PUBLIC = {
    "Augment": ("volflow.sampling.augment.augment", "Augment"),
    "GridAggregator": ("volflow.infer.aggregate.grid_aggregator", "GridAggregator"),
    "GridSampler": ("volflow.sampling.samplers", "GridSampler"),
    "LabelSampler": ("volflow.sampling.samplers", "LabelSampler"),
    "PatchStream": ("volflow.sampling.stream", "PatchStream"),
    "Roi": ("volflow.geometry.roi", "Roi"),
    "UniformSampler": ("volflow.sampling.samplers", "UniformSampler"),
    "Volume": ("volflow.store.volume", "Volume"),
    "VolumeLike": ("volflow.volumes.arrays.inputs", "VolumeLike"),
    "WeightedSampler": ("volflow.sampling.samplers", "WeightedSampler"),
    "compare": ("volflow.report.pictures.compare", "compare"),
    "contact_sheet": ("volflow.report.pictures.sheet", "contact_sheet"),
    "convert": ("volflow.volumes.convert", "convert"),
    "errors": ("volflow.errors", ""),
    "export": ("volflow.volumes.export", "export"),
    "halo": ("volflow.infer.halo", "halo"),
    "load_model": ("volflow.model.bundle", "load_model"),
    "map_model": ("volflow.infer.lazy.map_model", "map_model"),
    "map_overlap": ("volflow.volumes.overlap.map_overlap", "map_overlap"),
    "napari_snippet": ("volflow.report.viewers.napari", "napari_snippet"),
    "open": ("volflow.store.volume", "open_volume"),
    "predict": ("volflow.infer.predict", "predict"),
    "preview": ("volflow.report.pictures.preview", "preview"),
    "pyramid": ("volflow.volumes.pyramid.pyramid", "pyramid"),
    "sample": ("volflow.sampling.sample", "sample"),
    "save_model": ("volflow.model.bundle", "save_model"),
    "statistics": ("volflow.volumes.statistics", "statistics"),
    "verify": ("volflow.store.verify", "verify"),
    "view": ("volflow.report.viewers.link", "view"),
    "write": ("volflow.volumes.write", "write"),
}

__all__ = [
    "Augment",
    "GridAggregator",
    "GridSampler",
    "LabelSampler",
    "PatchStream",
    "Roi",
    "UniformSampler",
    "Volume",
    "VolumeLike",
    "WeightedSampler",
    "compare",
    "contact_sheet",
    "convert",
    "errors",
    "export",
    "halo",
    "load_model",
    "map_model",
    "map_overlap",
    "napari_snippet",
    "open",
    "predict",
    "preview",
    "pyramid",
    "sample",
    "save_model",
    "statistics",
    "verify",
    "view",
    "write",
]


def __getattr__(name: str) -> Any:
    """Load a public name the first time it is used."""
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'volflow' has no attribute {name!r}") from None
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return [*__all__, "__version__"]
