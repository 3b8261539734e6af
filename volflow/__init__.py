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
    from volflow.engine.inputs import VolumeLike
    from volflow.engine.lazy import map_overlap
    from volflow.geometry.roi import Roi
    from volflow.model.bundle import load_model, save_model
    from volflow.ops.convert import convert
    from volflow.ops.export import export
    from volflow.ops.grid_aggregator import GridAggregator
    from volflow.ops.halo import halo
    from volflow.ops.map_model import map_model
    from volflow.ops.predict import predict
    from volflow.ops.pyramid import pyramid
    from volflow.ops.statistics import statistics
    from volflow.ops.write import write
    from volflow.report.compare import compare
    from volflow.report.napari import napari_snippet
    from volflow.report.preview import preview
    from volflow.report.sheet import contact_sheet
    from volflow.report.view import view
    from volflow.sampling.augment import Augment
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

__version__ = "0.1.0"

# public name -> (module, name there; "" for the module itself)
_PUBLIC = {
    "Augment": ("volflow.sampling.augment", "Augment"),
    "GridAggregator": ("volflow.ops.grid_aggregator", "GridAggregator"),
    "GridSampler": ("volflow.sampling.samplers", "GridSampler"),
    "LabelSampler": ("volflow.sampling.samplers", "LabelSampler"),
    "PatchStream": ("volflow.sampling.stream", "PatchStream"),
    "Roi": ("volflow.geometry.roi", "Roi"),
    "UniformSampler": ("volflow.sampling.samplers", "UniformSampler"),
    "Volume": ("volflow.store.volume", "Volume"),
    "VolumeLike": ("volflow.engine.inputs", "VolumeLike"),
    "WeightedSampler": ("volflow.sampling.samplers", "WeightedSampler"),
    "compare": ("volflow.report.compare", "compare"),
    "contact_sheet": ("volflow.report.sheet", "contact_sheet"),
    "convert": ("volflow.ops.convert", "convert"),
    "errors": ("volflow.errors", ""),
    "export": ("volflow.ops.export", "export"),
    "halo": ("volflow.ops.halo", "halo"),
    "load_model": ("volflow.model.bundle", "load_model"),
    "map_model": ("volflow.ops.map_model", "map_model"),
    "map_overlap": ("volflow.engine.lazy", "map_overlap"),
    "napari_snippet": ("volflow.report.napari", "napari_snippet"),
    "open": ("volflow.store.volume", "open_volume"),
    "predict": ("volflow.ops.predict", "predict"),
    "preview": ("volflow.report.preview", "preview"),
    "pyramid": ("volflow.ops.pyramid", "pyramid"),
    "sample": ("volflow.sampling.sample", "sample"),
    "save_model": ("volflow.model.bundle", "save_model"),
    "statistics": ("volflow.ops.statistics", "statistics"),
    "verify": ("volflow.store.verify", "verify"),
    "view": ("volflow.report.view", "view"),
    "write": ("volflow.ops.write", "write"),
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
