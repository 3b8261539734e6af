"""Methods behind one protocol: what predictions ask of them, and what journals hold of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

import volflow as vf
from tests.nets import random_net
from volflow.errors import ResumeRefused, SourceChanged
from volflow.infer import methods, request
from volflow.infer.method import adopt
from volflow.infer.methods import METHODS, method_of, open_request
from volflow.infer.predict import plan_predict
from volflow.infer.predict_options import PredictOptions
from volflow.model.forward import Output
from volflow.model.spec import make_spec
from volflow.store.journal.journal import Record

SAVED = {
    "grid": [2, 1, 1],
    "outputs": [["", 2, [1, 1, 1]]],
    "dtype": "float32",
    "precision": "float32",
    "device": "cpu",
    "batch_size": 4,
    "threads": 2,
    "block": [8, 16, 16],
    "chunk": [8, 8, 8],
    "shard": [8, 16, 16],
    "peak_bytes": 12345,
    "exact": None,
}
STEP = {
    "given": [0], "stores": [3], "statistics": [], "block": [16, 16, 16],
    "peak_bytes": 10, "seconds": 1.5, "flops": 2.5,
}  # fmt: skip
EXACT = {**SAVED, "batch_size": 1, "exact": {"sizes": [16, 16, 16], "passes": [STEP]}}


def options_of(blend: str) -> PredictOptions:
    return PredictOptions(patch=8, blend=blend)


@pytest.mark.parametrize("blend", METHODS)
def test_a_bundle_may_ask_for_the_blends_of_all_methods(blend):
    assert make_spec({"blend": blend}).blend == blend


@pytest.mark.parametrize(("blend", "saved"), [("gaussian", SAVED), ("exact", EXACT)])
def test_a_journal_of_a_version_before_is_read_and_written_as_it_was(blend, saved):
    settings = METHODS[blend].read(saved)
    assert settings.outputs == (Output("", 2, (1, 1, 1)),)
    assert settings.block == (8, 16, 16)
    assert json.loads(json.dumps(settings.to_dict((2, 1, 1)))) == saved


@pytest.mark.parametrize(("blend", "saved"), [("gaussian", EXACT), ("exact", SAVED)])
def test_a_journal_of_another_method_is_refused(blend, saved, tmp_path):
    options = PredictOptions(patch=8 if blend == "gaussian" else None, blend=blend)
    scan = np.ones((16, 16, 16), "float32")
    asked = open_request(scan, random_net(), tmp_path / "out.zarr", options)
    assert method_of(asked).read(saved) is None
    with pytest.raises(ResumeRefused, match="another blend than"):
        adopt(method_of(asked), asked, Record("predict", {}, saved))


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"batch_size": 0}, {"block": [8, 8]}, {"dtype": 3}]
)
def test_a_journal_that_says_what_cannot_be_is_refused(wrong, tmp_path):
    scan = np.ones((16, 16, 16), "float32")
    asked = open_request(scan, random_net(), tmp_path / "out.zarr", options_of("crop"))
    with pytest.raises(ResumeRefused, match="is not one of predict"):
        adopt(method_of(asked), asked, Record("predict", {}, SAVED | wrong))


@pytest.mark.parametrize("blend", ["gaussian", "exact"])
def test_a_plan_makes_nothing_on_disk_and_no_array(blend, tmp_path, client, monkeypatch, assumed):
    """What is not converted yet is known by its spec."""

    def never(*args, **options):
        raise AssertionError("a plan makes no array")

    for name in ("create_group", "create_array", "open_group"):
        monkeypatch.setattr(zarr, name, never)
    scan = np.ones((16, 17, 18), "float32")
    given = {} if blend == "exact" else {"patch": 8}
    plan = plan_predict(
        {"": scan}, random_net(), tmp_path / "out.zarr", blend=blend, cluster=client, **given
    )
    assert plan.blocks == plan.to_dict()["blocks"] > 0
    assert dict(plan.facts)["input"] == "ndarray (16, 17, 18)"
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_opened_and_checked_once(tmp_path, predict, monkeypatch):
    np.save(tmp_path / "scan.npy", np.ones((16, 17, 18), "float32"))
    opened, checked = [], []
    open_input, framed_image = request.open_input, request.framed_image
    monkeypatch.setattr(request, "open_input", lambda x: opened.append(x) or open_input(x))
    monkeypatch.setattr(
        request, "framed_image", lambda *args: checked.append(args) or framed_image(*args)
    )
    predict(tmp_path / "scan.npy", random_net())
    assert opened == [tmp_path / "scan.npy"]
    assert len(checked) == 1


def test_an_input_that_changes_behind_the_plan_is_refused(tmp_path, predict, monkeypatch):
    scan = np.ones((16, 17, 18), "float32")
    np.save(tmp_path / "scan.npy", scan)
    decide = methods.patches.decide

    def slowly(*args):
        settings = decide(*args)
        np.save(tmp_path / "scan.npy", scan[:12])
        return settings

    with monkeypatch.context() as patch:
        patch.setattr(methods.patches, "decide", slowly)
        with pytest.raises(SourceChanged, match=r"has shape \(12, 17, 18\), and had"):
            predict(tmp_path / "scan.npy", random_net())
    assert predict(tmp_path / "scan.npy", random_net()).shape == (2, 12, 17, 18)


def test_a_third_method_is_a_line(tmp_path, predict, stored, scan, monkeypatch):
    """Whatever has the functions of the protocol runs a prediction; nobody asks which it is."""
    patches, calls = methods.patches, []

    class Third:
        """The method of patches, which notes what is asked of it."""

        def __getattr__(self, name):
            calls.append(name)
            return getattr(patches, name)

    monkeypatch.setitem(methods.METHODS, "crop", Third())
    volume = stored(scan)
    options = {"patch": 8, "blend": "crop", "batch_size": 2}
    result = predict(volume, random_net(), **options)
    lazy = vf.map_model(volume, random_net(), block=8, **options)
    assert np.array_equal(lazy.compute(), result[:])
    assert set(calls) == {"check", "decide", "plan", "prepared", "boxes"}
