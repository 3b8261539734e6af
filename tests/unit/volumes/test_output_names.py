"""The name of an output says its format: one that is not written is refused, by whatever writes."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

import volflow as vf
from tests.stores import store
from volflow.cli import run
from volflow.errors import InvalidInput
from volflow.infer.predict import plan_predict
from volflow.volumes.convert import plan_convert

SCAN = np.random.default_rng(0).random((16, 16, 16), "float32")
NAMES = ["seg.xyz", "seg.mnc", "seg.nii.bz2"]


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Whether a call is refused, naming the output, and leaves nothing."""
    store(tmp_path / "scan.zarr", SCAN)
    monkeypatch.chdir(tmp_path)

    def check(call, out):
        with pytest.raises(InvalidInput, match=rf"^{out} (cannot name a Zarr|names no format)"):
            call()
        return [path.name for path in tmp_path.iterdir()] == ["scan.zarr"]

    return check


@pytest.mark.parametrize("name", NAMES)
def test_in_every_function(refused, name, client):
    quiet = {"cluster": client, "progress": False}
    net = torch.nn.Identity()
    stream = vf.PatchStream("scan.zarr", vf.GridSampler(8))
    for call in (
        lambda: vf.convert(SCAN, name, **quiet),
        lambda: plan_convert(SCAN, name, cluster=client),
        lambda: vf.write(da.from_array(SCAN), name, **quiet),
        lambda: vf.predict("scan.zarr", net, name, patch=8, **quiet),
        lambda: plan_predict("scan.zarr", net, name, patch=8, cluster=client),
        lambda: vf.GridAggregator(name, stream),
        lambda: vf.export("scan.zarr", name),
    ):
        assert refused(call, name)


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "scan.zarr"],
        ["export", "scan.zarr"],
        ["predict", "scan.zarr", "-m", "torch.nn:Identity", "--patch", "8"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("plan", [False, True])
def test_in_every_command(tmp_path, monkeypatch, capsys, words, plan):
    store(tmp_path / "scan.zarr", SCAN)
    monkeypatch.chdir(tmp_path)
    words = [words[0], words[1], "seg.xyz", *words[2:], *(["--plan"] if plan else [])]
    assert run(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith("volflow: seg.xyz ")
    assert told.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["scan.zarr"]
