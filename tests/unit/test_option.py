"""Options: signatures and options objects agree; wrong names and wrong numbers are refused."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

import pytest

import volflow as vf
from volflow.cli.typed import spelled
from volflow.engine.run_options import OutputOptions
from volflow.errors import InvalidInput
from volflow.infer.predict_options import (
    HaloOptions,
    PredictOptions,
    SeamsOptions,
    VerifyOptions,
)
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.jobs.batch.convert_cases_options import ConvertCasesOptions
from volflow.option import numbers
from volflow.sampling.stream_options import StreamOptions
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions
from volflow.volumes.resample.resample_options import ResampleOptions
from volflow.volumes.volume_options import (
    ConvertOptions,
    ExportOptions,
    PyramidOptions,
    StatisticsOptions,
    WriteOptions,
)

JOURNEYS = {
    vf.convert: ConvertOptions,
    vf.plan_convert: ConvertOptions,
    vf.write: WriteOptions,
    vf.export: ExportOptions,
    vf.pyramid: PyramidOptions,
    vf.plan_pyramid: PyramidOptions,
    vf.resample: ResampleOptions,
    vf.plan_resample: ResampleOptions,
    vf.statistics: StatisticsOptions,
    vf.predict: PredictOptions,
    vf.plan_predict: PredictOptions,
    vf.predict_cases: BatchOptions,
    vf.convert_cases: ConvertCasesOptions,
    vf.halo: HaloOptions,
    vf.certify_seams: SeamsOptions,
    vf.PatchStream.__init__: StreamOptions,
    vf.map_model: PredictOptions,
    vf.verify: VerifyOptions,
    vf.evaluate: EvaluateOptions,
    vf.run: OutputOptions,
    vf.plan_run: OutputOptions,
}
# What a signature takes beside its options, or says otherwise.
GIVEN = {"self", "volume", "model", "out", "source", "array", "cases", "x", "path"}
GIVEN |= {"pipeline", "variables", "pred", "truth"}
# The options of a stream are what its hash depends on.
BESIDE = {vf.PatchStream.__init__: {"cluster", "progress"}, vf.map_model: {"like", "block"}}
# Who drives a run changes nothing of it.
BESIDE |= {call: {"detach"} for call in (vf.predict, vf.plan_predict, vf.predict_cases)}
# Where an option is called like what others are given.
OWN = {vf.verify: {"model"}}
# What no command line can say.
UNTYPED = {WriteOptions: {"like", "meta"}, VerifyOptions: {"normalize", "activation"}}
# An array is lazy: nothing is stored, and neither a batch nor a tile is searched for.
LAZY = {"chunk", "shard", "levels", "keep", "resume", "batch_size", "overwrite"}
LAZY |= {"cluster", "workers", "resources", "wait", "memory", "device_memory", "progress"}


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: journey.__qualname__)
def test_signature_and_options_object_agree(journey):
    parameters = inspect.signature(journey).parameters
    without = LAZY if journey is vf.map_model else set()
    beside = (GIVEN | BESIDE.get(journey, set()) | without) - OWN.get(journey, set())
    wanted = {
        one.name: (one.type, inspect.Parameter.empty if one.default is MISSING else one.default)
        for one in fields(JOURNEYS[journey])
        if one.name not in without
    }
    said = {
        name: (one.annotation, one.default)
        for name, one in parameters.items()
        if name not in beside
    }
    assert said == wanted


@pytest.mark.parametrize(
    "kind", [k for k in dict.fromkeys(JOURNEYS.values()) if k is not StreamOptions]
)
def test_every_option_can_be_typed(kind):
    """But for what no command line can say, and for `write`, which is no command."""
    untyped = {one.name for one in fields(kind) if not one.metadata}
    assert untyped <= {"progress", "resume"} | UNTYPED.get(kind, set())
    typed = [spelled(one) for one in fields(kind) if one.metadata]
    assert len(typed) == len(set(typed))


@pytest.mark.parametrize(
    "call",
    [
        lambda: vf.predict("a.zarr", "net", "b.zarr", ovrlap=0.5),
        lambda: vf.plan_predict("a.zarr", "net", "b.zarr", ovrlap=0.5),
        lambda: vf.map_model("a.zarr", "net", ovrlap=0.5),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(call):
    with pytest.raises(InvalidInput, match="has no option 'ovrlap'; did you mean 'overlap'"):
        call()


def test_a_name_like_no_other_is_told_with_all():
    with pytest.raises(InvalidInput, match="pyramid has no option 'zzz'; its options are vol"):
        vf.pyramid("a.zarr", zzz=1)
    with pytest.raises(InvalidInput, match="PatchStream has no option 'sed'; did you mean 'seed'"):
        vf.PatchStream("a.zarr", vf.UniformSampler(8), 4, sed=1)


def test_a_plan_takes_what_its_journey_takes():
    """Editors and type checkers see the same keywords; what comes back is a plan."""
    for plan, journey in ((vf.plan_predict, vf.predict), (vf.plan_pyramid, vf.pyramid)):
        one, other = inspect.signature(plan), inspect.signature(journey)
        assert one.parameters == other.parameters
        assert one.return_annotation == "Plan"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("64", 64),
        ("0.25", 0.25),
        ("64,32,16", (64, 32, 16)),
        (" 1, 0.5,2", (1, 0.5, 2)),
    ],
)
def test_numbers_per_axis(text, want):
    got = numbers("patch", text)
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize("text", ["", "x", "1,2", "1,2,3,4", "1,,2", "0x10"])
def test_wrong_numbers_are_refused(text):
    with pytest.raises(InvalidInput, match="patch must be one number or three"):
        numbers("patch", text)
