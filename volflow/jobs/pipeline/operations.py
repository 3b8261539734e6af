"""The operations that a step may name: the journeys, and what they leave to be said beside options.

A journey's options stand in its options object; here stands only what it must be given, and which
of that it reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from volflow.engine.run_options import OutputOptions
from volflow.infer.predict_options import PredictOptions, VerifyOptions
from volflow.jobs.pipeline.setting import Setting, settings_of
from volflow.report.pictures.preview_file import PreviewOptions
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions
from volflow.volumes.resample.resample_options import ResampleOptions
from volflow.volumes.volume_options import (
    ConvertOptions,
    ExportOptions,
    PyramidOptions,
    StatisticsOptions,
)

__all__ = ["OPERATIONS", "WHERE", "Operation"]

# Settings that say where and how a step runs; its result does not depend on them.
WHERE = frozenset({one.name for one in fields(OutputOptions)} | {"device_memory"})

VOLUME = "A path or URL of a volume."


@dataclass(frozen=True)
class Operation:
    """What a step does.

    Parameters
    ----------
    call
        ``module:function``, imported when a step runs.
    settings
        All that it takes, by name.
    reads, writes
        Which settings are volumes or files that it reads, and that it writes.
    plan
        ``module:function`` that makes its plan; "" where there is none.
    stores
        The settings by which an array that it returns is stored; empty where it writes for itself.
    own
        Whether it is the user's: its code is part of what its result depends on, and it may read
        whatever its settings name.
    open_ended
        Whether it takes settings of any name.
    """

    call: str
    settings: Mapping[str, Setting]
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    plan: str = ""
    stores: frozenset[str] = frozenset()
    own: bool = False
    open_ended: bool = False


def _operation(
    call: str,
    given: Mapping[str, Setting],
    options: type | None = None,
    reads: str = "",
    writes: str = "",
    plan: str = "",
) -> Operation:
    declared = {} if options is None else settings_of(options)
    read, written = frozenset(reads.split()), frozenset(writes.split())
    return Operation(f"volflow.{call}", {**declared, **given}, read, written, plan)


OPERATIONS: Mapping[str, Operation] = {
    "convert": _operation(
        "volumes.convert:convert",
        {
            "source": Setting(
                str, "A file or folder of any format that is read, or Zarr v2 or v3."
            ),
            "out": Setting(str, "The OME-Zarr volume to write."),
        },
        ConvertOptions,
        reads="source",
        writes="out",
        plan="volflow.volumes.convert:plan_convert",
    ),
    "resample": _operation(
        "volumes.resample.resample:resample",
        {
            "volume": Setting(str, "The volume, as OME-Zarr or a file that can be converted."),
            "out": Setting(str, "out.zarr, or a file like out.nii.gz."),
        },
        ResampleOptions,
        reads="volume like",
        writes="out",
        plan="volflow.volumes.resample.resample:plan_resample",
    ),
    "statistics": _operation(
        "volumes.statistics:statistics",
        {"volume": Setting(str, VOLUME)},
        StatisticsOptions,
        reads="volume",
    ),
    "predict": _operation(
        "infer.predict:predict",
        {
            "volume": Setting(
                str | dict[str, str],
                "The scan, as OME-Zarr or a file that can be converted; several on one grid by"
                " name.",
            ),
            "model": Setting(str, "A bundle, a .pt2 file, or package.module:callable."),
            "out": Setting(str, "out.zarr, or a file like out.nii.gz."),
        },
        PredictOptions,
        reads="volume model mask weights",
        writes="out",
        plan="volflow.infer.predict:plan_predict",
    ),
    "pyramid": _operation(
        "volumes.pyramid.pyramid:pyramid",
        {"volume": Setting(str, "An OME-Zarr volume that volflow wrote.")},
        PyramidOptions,
        reads="volume",
        plan="volflow.volumes.pyramid.pyramid:plan_pyramid",
    ),
    "evaluate": _operation(
        "jobs.scoring.evaluate:evaluate",
        {
            "pred": Setting(str, "The label map to score; of many cases a pattern with {case}."),
            "truth": Setting(str, "The true one on the same grid, or those of many cases."),
        },
        EvaluateOptions,
        reads="pred truth over",
        writes="csv pictures",
    ),
    "verify": _operation(
        "infer.audit.audit:verify",
        {"path": Setting(str, "An output of volflow: a volume, or an exported file.")},
        VerifyOptions,
        reads="path input model mask weights",
    ),
    "export": _operation(
        "volumes.export:export",
        {
            "volume": Setting(str, VOLUME),
            "out": Setting(str, "The file to write: .nii.gz, .nrrd, .mha, .tif, .h5, .dcm, …"),
        },
        ExportOptions,
        reads="volume like",
        writes="out",
    ),
    "preview": _operation(
        "report.pictures.preview_file:write_preview",
        {"volume": Setting(str, VOLUME), "out": Setting(str, "The picture (.png, .pdf, .svg).")},
        PreviewOptions,
        reads="volume over against",
        writes="out",
    ),
}
