from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from volflow.errors import InvalidInput
from volflow.model.bundle import Model, evaluating, load_model, save_model
from volflow.model.spec import Spec
from volflow.model.unet import UNet

FIELDS = {
    "channels": ["t1", "flair"],
    "classes": ["background", "grey", "white"],
    "patch": [32, 32, 16],
    "overlap": 0.25,
    "blend": "gaussian",
    "frame": "RAS",
    "spacing": [1, 1, 2.5],
    "unit": "millimeter",
    "normalize": "zscore",
    "output": "classes",
    "description": "für α-Tests",
}


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet(2, 3, features=(2, 4))


@pytest.fixture
def bundle(tmp_path):
    save_model(unet(), tmp_path / "net", **FIELDS)
    return tmp_path / "net"


def edit(bundle, **changes):
    card = bundle / "bundle.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def test_round_trip_keeps_weights_and_spec(bundle):
    model = load_model(bundle)
    image = torch.rand(1, 2, 8, 8, 8)
    assert torch.equal(model.module(image), unet().eval()(image))
    assert not model.module.training
    assert model.spec == Spec(
        channels=("t1", "flair"),
        classes=("background", "grey", "white"),
        patch=(32, 32, 16),
        overlap=0.25,
        blend="gaussian",
        frame="RAS",
        spacing=(1.0, 1.0, 2.5),
        unit="millimeter",
        normalize="zscore",
        output="classes",
        description="für α-Tests",
    )
    assert {p.name for p in bundle.iterdir()} == {"bundle.json", "weights.safetensors"}
    assert [p.name for p in bundle.parent.iterdir()] == ["net"]


def test_both_files_get_the_users_permissions(bundle):
    (bundle.parent / "other").write_text("")
    wanted = (bundle.parent / "other").stat().st_mode
    assert {path.stat().st_mode for path in bundle.iterdir()} == {wanted}


def test_bundle_json_names_it_too(bundle):
    assert load_model(bundle / "bundle.json").digest == load_model(str(bundle)).digest


def test_digest_is_that_of_the_module_and_of_every_copy(bundle):
    model = load_model(bundle)
    assert model.digest == load_model(unet()).digest == load_model(bundle).digest
    assert pickle.loads(pickle.dumps(model)).digest == model.digest
    assert load_model(pickle.loads(pickle.dumps(model)).module).digest == model.digest


def test_changed_weights_change_the_digest(bundle):
    before = load_model(bundle).digest
    state = load_file(bundle / "weights.safetensors")
    state["head.bias"] = state["head.bias"] + 1e-7
    save_file(state, bundle / "weights.safetensors")
    assert load_model(bundle).digest != before


def test_a_loaded_model_can_be_saved_again_with_another_field(bundle, tmp_path):
    model = load_model(bundle)
    again = save_model(model, tmp_path / "again", blend="hann")
    assert again.digest == model.digest
    assert again.spec.blend == "hann"
    assert again.spec.frame == "RAS"


def test_double_weights_stay_double_and_half_ones_compute_in_float32(tmp_path):
    kept = save_model(unet().double(), tmp_path / "double").module
    assert {p.dtype for p in kept.parameters()} == {torch.float64}
    small = save_model(unet().half(), tmp_path / "half").module
    assert load_file(tmp_path / "half/weights.safetensors")["head.bias"].dtype == torch.float16
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_a_loaded_model_outlives_its_files(bundle):
    model = load_model(bundle)
    weights = bundle / "weights.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    assert load_model(model.module).digest == model.digest


def test_existing_path_is_kept_unless_overwritten(bundle):
    before = load_model(bundle).digest
    with pytest.raises(InvalidInput, match="exists; pass overwrite=True"):
        save_model(unet(1), bundle)
    assert load_model(bundle).digest == before
    after = save_model(unet(1), bundle, overwrite=True)
    assert load_model(bundle).digest == after.digest != before
    assert [p.name for p in bundle.parent.iterdir()] == ["net"]


def test_nothing_but_a_bundle_is_overwritten(bundle):
    (bundle / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="is not a bundle, so it is not overwritten"):
        save_model(unet(), bundle, overwrite=True)
    assert (bundle / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InvalidInput, match="is not a bundle"):
        save_model(unet(), bundle / "thesis.txt", overwrite=True)


def test_a_refused_save_leaves_nothing(tmp_path):
    with pytest.raises(InvalidInput, match="unknown key 'pach'"):
        save_model(unet(), tmp_path / "net", pach=3)
    with pytest.raises(InvalidInput, match="1 channels are named, the U-Net takes 2"):
        save_model(unet(), tmp_path / "net", channels=["t1"])
    with pytest.raises(InvalidInput, match="2 classes are named, the U-Net scores 3"):
        save_model(unet(), tmp_path / "net", classes=["a", "b"], output="classes")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_bundle(bundle, monkeypatch):
    before = load_model(bundle).digest

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volflow.model.bundle.save_file", full)
    with pytest.raises(InvalidInput, match=r"cannot be written: .*No space left"):
        save_model(unet(1), bundle, overwrite=True)
    assert load_model(bundle).digest == before
    assert [p.name for p in bundle.parent.iterdir()] == ["net"]


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        save_model(unet(), tmp_path / "file" / "net")


def test_other_modules_need_an_architecture_and_trust(tmp_path):
    torch.manual_seed(0)
    linear = nn.Linear(3, 2)
    with pytest.raises(InvalidInput, match=r'pass architecture="package\.module:callable"'):
        save_model(linear, tmp_path / "net")
    with pytest.raises(InvalidInput, match="do not fit Linear: weight has shape"):
        save_model(
            linear,
            tmp_path / "net",
            architecture="torch.nn:Linear",
            arguments={"in_features": 4, "out_features": 2},
        )
    saved = save_model(
        linear,
        tmp_path / "net",
        architecture="torch.nn:Linear",
        arguments={"in_features": 3, "out_features": 2},
        channels=["a", "b", "c"],
    )
    with pytest.raises(InvalidInput, match=r"would run the code 'torch\.nn:Linear'; pass trust"):
        load_model(tmp_path / "net")
    loaded = load_model(tmp_path / "net", trust=True)
    assert torch.equal(loaded.module.weight, linear.weight)
    assert loaded.digest == saved.digest == load_model(linear).digest


def test_arguments_that_are_no_json_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="arguments must be plain JSON values"):
        save_model(
            nn.Linear(2, 2),
            tmp_path / "net",
            architecture="torch.nn:Linear",
            arguments={"in_features": 2, "out_features": 2, "dtype": torch.float32},
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pach": 3}, "bundle.json: unknown key 'pach'; known are"),
        ({"patch": "big"}, "bundle.json: patch is 'big'; expected"),
        ({"version": 2}, "version 2; this volflow reads version 1"),
        ({"architecture": 3}, "architecture must be a string"),
        ({"arguments": [1]}, "arguments a JSON object"),
        ({"arguments": {"in_channels": 2}}, "arguments do not fit: .*out_channels"),
        ({"arguments": {"in_channels": 2, "out_channels": 3, "depth": 5}}, "'depth'"),
        ({"arguments": {"in_channels": 2, "out_channels": 3, "features": 4}}, "do not fit"),
        (
            {"arguments": {"in_channels": 2, "out_channels": 3, "features": [60000, 60000]}},
            "do not fit UNet: .*shape",
        ),
        (
            {"arguments": {"in_channels": 2, "out_channels": 3, "features": [10**9, 10**9]}},
            "whole channel counts from 1 to 65536; got channels",
        ),
        ({"arguments": {"in_channels": 2, "out_channels": 3, "features": [4] * 17}}, "1 to 16 lev"),
        ({"channels": ["t1"]}, "1 channels are named, the U-Net takes 2"),
        ({"architecture": "resnet"}, "would run the code 'resnet'"),
    ],
)
def test_broken_cards_are_one_line(bundle, changes, says):
    edit(bundle, **changes)
    with pytest.raises(InvalidInput, match=says) as caught:
        load_model(bundle)
    assert "\n" not in str(caught.value)


def test_unknown_architecture_is_refused_even_on_trust(bundle):
    edit(bundle, architecture="resnet")
    with pytest.raises(InvalidInput, match="unknown architecture 'resnet'"):
        load_model(bundle, trust=True)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff"])
def test_damaged_json_is_one_line(bundle, text):
    (bundle / "bundle.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"bundle\.json (cannot be read|has version None)"):
        load_model(bundle)


def test_missing_parts_are_named(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"is not a model bundle: bundle\.json is missing"):
        load_model(tmp_path / "empty")
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InvalidInput, match="cannot be read: SafetensorError"):
        load_model(bundle)
    weights.unlink()
    with pytest.raises(InvalidInput, match=r"weights\.safetensors do not exist"):
        load_model(bundle)


def test_evaluating_gives_every_layer_its_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm3d(1), nn.Dropout())
    net[1].eval()
    with evaluating(net) as same:
        assert same is net
        assert not any(layer.training for layer in net.modules())
    assert [layer.training for layer in net.modules()] == [True, True, False, True]


def test_evaluating_gives_the_modes_back_after_an_error():
    net = nn.Dropout()
    with pytest.raises(KeyError, match="stop"), evaluating(net):
        raise KeyError("stop")
    assert net.training


def test_a_model_handed_over_is_left_as_it_is():
    net = unet().train()
    model = load_model(net)
    assert model.module is net
    assert net.training
    assert load_model(model) is model
    assert model.spec == Spec()
    assert repr(model) == f"Model(volflow.model.unet.UNet, digest {model.digest[:12]})"
    assert isinstance(model, Model)
