"""``volflow halo``: a model's margin and cost, and the seams of its patches on a volume."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests.stores import store
from volflow.cli import run
from volflow.model.unet import UNet


def sorting():
    """For the command line: has no exact rule."""
    return Sorting()


class Sorting(nn.Module):
    def forward(self, image):
        return image.sort(-1).values


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    net = UNet(1, 2, features=(4, 8), norm="none")
    vf.save_model(net, tmp_path / "net", patch=8, classes=["background", "liver"])
    return str(tmp_path / "net")


@pytest.fixture
def scan(tmp_path):
    return store(tmp_path / "scan.zarr", np.random.default_rng(0).random((16, 18, 20), "float32"))


def refused(capsys, *words):
    assert run(["halo", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_a_model_alone(bundle, capsys):
    assert run(["halo", bundle]) == 0
    text = capsys.readouterr().out
    assert text == vf.halo(bundle).describe() + "\n"
    assert run(["halo", bundle, "--shape", "64,64,80", "--channels", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["alignment"] == [2, 2, 2]
    assert facts["blocks"][0]["block"] == 64


@pytest.mark.slow
def test_on_a_volume(bundle, scan, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra report")
    words = ["halo", bundle, "--on", scan, "--overlap", "0", "--overlap", "2,2,4"]
    assert run([*words, "--blend", "hann", "--activation", "softmax"]) == 0
    told = capsys.readouterr()
    picture = tmp_path / "scan-seams.png"
    assert told.out.splitlines()[-1] == str(picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "\nexact " in told.out
    assert "2,2,4" in told.out
    assert told.err.splitlines()[1] == "region 1: exact"


@pytest.mark.slow
def test_without_an_exact_rule(scan, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra report")
    model = "tests.unit.cli.test_cli_halo:sorting"
    assert "sort" in refused(capsys, model)
    out = str(tmp_path / "s.svg")
    words = ["--on", scan, "--patch", "8", "--overlap", "0.25", "--regions", "1", "-q", "-o", out]
    assert run(["halo", model, *words]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "no exact blend: " in told.out
    assert "gaussian" in told.out
    assert run(["halo", model, *words, "--json", "--seed", "1", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == out
    assert facts["regions"][0]["exact"] is None
    assert facts["regions"][0]["blends"][0]["forwards"] == 3 * 3 * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patch", "8"], "--patch is for a run on a volume; add --on scan.zarr"),
        (["--overlap", "0"], "--overlap is for a run on a volume"),
        (["--blend", "hann"], "--blend is for a run on a volume"),
        (["-o", "s.png"], "--out is for a run on a volume"),
        (["--shape", "64"], "shape must be whole numbers z,y,x, or y,x of slices, given '64'"),
        (["--shape", "64,a,64"], "shape must be whole numbers"),
        (["--channels", "0"], "channels must be a whole number from 1, given 0"),
    ],
)
def test_what_does_not_fit_a_model_alone(bundle, capsys, words, message):
    assert message in refused(capsys, bundle, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "8,8,8"], "--shape follows from the volume given by --on; leave it out"),
        (["--channels", "1"], "--channels follows from the volume"),
        (["-o", "seams.txt"], "a picture is written as .png"),
        (["--overlap", "half"], "overlap must be one number or three"),
        (["--blend", "exact"], "leave it out of blends"),
        (["--regions", "0"], "regions must be a whole number from 1"),
        (["--frame", "RAS"], "needs a volume with orientation"),
    ],
)
def test_what_does_not_fit_on_a_volume(bundle, scan, capsys, words, message):
    assert message in refused(capsys, bundle, "--on", scan, "-q", *words)
