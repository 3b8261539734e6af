"""The scripts that users copy: run as they are, checked against the whole volume."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

import volflow as vf
from tests.oracle import sliding_window
from volflow.model.unet import UNet

SHAPE = (34, 26, 22)
CLASSES = ("other", "white matter")
SIGMA = 0.75


@pytest.fixture(scope="module")
def script(root):
    return root / "pipelines" / "segment_mri.py"


@pytest.fixture(scope="module")
def net():
    """Of weights so large that scores are neither all alike nor all 0 or 1."""
    torch.manual_seed(1)
    net = UNet(1, len(CLASSES), features=(4, 8), norm="none")
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, net):
    """A scan as NIfTI and as a volume of many shards, and a bundle."""
    folder = tmp_path_factory.mktemp("mri")
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    ball = np.hypot(np.hypot(z - 15, y - 12), x - 12) * 9
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    voxels = np.clip(220 - ball + noise, 3, 250).astype("uint8")
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    Nifti1Image(voxels.transpose(2, 1, 0), affine).to_filename(folder / "scan.nii.gz")
    scan = vf.convert(
        folder / "scan.nii.gz", folder / "scan.zarr", chunk=8, shard=16, progress=False
    )
    assert np.array_equal(scan[:], voxels)
    vf.save_model(net, folder / "bundle", patch=16, classes=CLASSES, normalize="minmax")
    return folder


@pytest.fixture(scope="module")
def scores(folder, net):
    """Of white matter: the whole volume smoothed, one global sliding window, softmax."""
    voxels = vf.open(folder / "scan.zarr")[:].astype("float32")
    low, high = voxels.min(), voxels.max()
    image = ndimage.gaussian_filter((voxels - low) / (high - low), SIGMA, mode="nearest")
    logits = sliding_window(image[None], net, (16, 16, 16), 0.25, "gaussian")
    return torch.softmax(torch.from_numpy(logits), dim=0)[CLASSES.index("white matter")].numpy()


def loaded(script, monkeypatch):
    """The script as a module of this process."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script.stem, module)  # its functions travel by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def segment(folder, script, monkeypatch):
    """Runs the script in this process."""
    module = loaded(script, monkeypatch)
    monkeypatch.chdir(folder)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(script), *words, "--model", "bundle"])
        module.main()

    return run


def same(found, scores):
    """Whether a mask is that of the scores, but for those that rounding could decide."""
    clear = np.abs(scores - np.median(scores)) > 1e-5
    assert clear.mean() > 0.99
    assert scores.std() > 0.01
    return np.array_equal(found[clear], (scores > np.median(scores))[clear])


def entries(out):
    return {p: p.stat().st_mtime_ns for p in (out.parent / f"{out.name}.volflow/done").iterdir()}


class TestSegmentMri:
    @pytest.mark.slow
    def test_threads_and_processes_give_the_voxels_of_the_whole(
        self, segment, script, folder, scores, capsys
    ):
        options = ["--sigma", str(SIGMA), "--threshold", str(np.median(scores))]
        segment("scan.zarr", "threads.zarr", *options)
        told = re.fullmatch(r"threads.zarr: (\d+) of \1 blocks verified\n", capsys.readouterr().out)
        assert int(told[1]) > 1
        found = vf.open(folder / "threads.zarr")
        assert same(found[:], scores)
        assert (found.dtype, found.shards) == (np.uint8, (16, 16, 16))
        assert found.spacing == (2.0, 1.5, 1.0)
        assert (found.meta.kind, found.meta.channels) == ("classes", ("other", "white matter"))

        words = ["scan.zarr", "processes.zarr", "--model", "bundle", "--cluster", "2", *options]
        done = subprocess.run(
            [sys.executable, str(script), *words], cwd=folder, check=False,
            capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(script.parents[1])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert np.array_equal(vf.open(folder / "processes.zarr")[:], found[:])

    def test_a_file_is_converted_and_a_second_run_computes_nothing(self, segment, folder, scores):
        options = ["--sigma", str(SIGMA), "--threshold", str(np.median(scores))]
        segment("scan.nii.gz", "file.zarr", *options)
        assert same(vf.open(folder / "file.zarr")[:], scores)
        done = {p: p.stat().st_mtime_ns for p in folder.glob("file.zarr.volflow/done/*")}
        assert done
        segment("scan.nii.gz", "file.zarr", *options)
        assert done == {p: p.stat().st_mtime_ns for p in folder.glob("file.zarr.volflow/done/*")}

    def test_a_plan_counts_and_writes_nothing(self, segment, folder, capsys):
        before = sorted(folder.rglob("*"))
        segment("scan.zarr", "planned.zarr", "--plan")
        volume, counts = capsys.readouterr().out.splitlines()
        assert volume == repr(vf.open(folder / "scan.zarr"))
        blocks, tasks = map(int, re.fullmatch(r"(\d+) blocks in (\d+) tasks", counts).groups())
        assert 1 < blocks <= tasks
        assert sorted(folder.rglob("*")) == before

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["nowhere.zarr", "x.zarr"], "nowhere.zarr does not exist; check the path"),
            (["scan.nii.gz", "x.zarr", "--plan"], "is a file, not a Zarr store; convert it first"),
            (["scan.zarr", "scan.zarr"], "scan.zarr would replace its own input"),
            (
                ["scan.zarr", "x.zarr", "--tissue", "liver"],
                "the model knows no 'liver'; its classes: other, white matter",
            ),
            (["scan.zarr", "x.zarr", "--percentiles", "90", "10"], "no contrast is left; choose"),
            (["scan.zarr", "x.zarr", "--cluster", "gpu"], "unknown cluster 'gpu'; use threads, "),
            (["scan.zarr", "x.zarr", "--sigma", "nan"], "--sigma: invalid number value: 'nan'"),
        ],
    )
    def test_a_mistake_is_one_line_and_writes_nothing(self, segment, folder, words, line, capsys):
        with pytest.raises(SystemExit) as ended:
            segment(*words)
        assert ended.value.code == 2
        *usage, told = capsys.readouterr().err.splitlines()
        assert told.startswith("segment_mri.py: ")
        assert line in told
        assert not [word for word in usage if "Traceback" in word]
        assert not (folder / "x.zarr").exists()


class TestTrainFromDask:
    @pytest.fixture
    def train(self, root, monkeypatch, tmp_path):
        """Runs the script in this process, beside a noisy ball of many shards and its label."""
        script = root / "pipelines" / "train_from_dask.py"
        module = loaded(script, monkeypatch)
        z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
        ball = np.hypot(np.hypot(z - 17, y - 13), x - 11) < 8
        noise = np.random.default_rng(0).normal(0, 60, SHAPE)
        grid = {"chunk": 8, "shard": 16, "spacing": (1, 1, 1), "unit": "mm", "progress": False}
        vf.write((100 + 100 * ball + noise).astype("float32"), tmp_path / "scan.zarr", **grid)
        vf.write(ball.astype("uint8"), tmp_path / "label.zarr", **grid)
        monkeypatch.chdir(tmp_path)

        def run(*words):
            monkeypatch.setattr(sys, "argv", [str(script), *words])
            module.main()
            return module

        return run

    @pytest.mark.slow
    def test_a_filter_patches_and_a_loop_make_a_bundle_that_finds_the_ball(self, train, capsys):
        words = ["scan.zarr", "label.zarr", "bundle", "--sigma", "1", "--patch", "16"]
        module = train(*words, "--steps", "40", "--cluster", "threads")
        *steps, wrote = capsys.readouterr().out.splitlines()
        losses = [float(line.split()[-1]) for line in steps]
        assert len(losses) == 10
        assert losses[-1] < 0.7 * losses[0]
        assert wrote == "wrote bundle"

        scan, ball = vf.open("scan.zarr"), vf.open("label.zarr")[:]
        found = vf.map_model(module.prepared(scan, 1.0, progress=False), "bundle", like=scan)
        mask = found.compute()
        assert 2 * (mask * ball).sum() / (mask.sum() + ball.sum()) > 0.8

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["nowhere.zarr", "label.zarr", "b"], "nowhere.zarr does not exist; check the path"),
            (["scan.zarr", "label.zarr", "label.zarr"], "label.zarr exists; add --overwrite, or"),
            (
                ["scan.zarr", "label.zarr", "b", "--patch", "8", "--classes", "a", "b", "c"],
                'array "label" has no voxel of class 2',
            ),
        ],
    )
    def test_a_mistake_is_one_line_before_the_training(self, train, words, line, capsys):
        with pytest.raises(SystemExit) as ended:
            train(*words)
        assert ended.value.code == 2
        *_, told = capsys.readouterr().err.splitlines()
        assert told.startswith("train_from_dask.py: ")
        assert line in told
