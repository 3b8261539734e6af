"""Outputs of the version before open, verify and go on; made by `tests/house/outputs.py`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import volflow as vf
from tests.house import outputs
from volflow.errors import ResumeRefused

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "outputs_before.zip"


@pytest.fixture
def known(tmp_path, monkeypatch):
    """The outputs as they were left, in the current folder; what is known of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as they were made
    known = outputs.unpack(ARCHIVE, tmp_path)
    known["same torch"] = same_build(known["versions"]["torch"])
    return known


def same_build(made: str) -> bool:
    """Whether this is the torch that they were made with; its builds count as one.

    A fingerprint names the build, so that journals made on another name this one instead.
    """
    if made.split("+")[0] != torch.__version__.split("+")[0]:
        return False
    for plan in Path().rglob("plan.json"):
        plan.write_text(plan.read_text().replace(f'"{made}"', f'"{torch.__version__}"'))
    return True


def times(*folders: str) -> dict[str, int]:
    """When each file was written; opening an output touches its lock alone."""
    found = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in found if path.name != "lock"}


def test_each_volume_and_level_opens_with_its_voxels(known):
    assert len(known["voxels"]) == 7
    for name, digest in known["voxels"].items():
        path, level = name.split("/")
        voxels = np.ascontiguousarray(vf.open(path, level=int(level))[:])
        assert hashlib.sha256(voxels.tobytes()).hexdigest() == digest, name
    scan = vf.open("scan.zarr")
    assert (scan.spacing, scan.orientation) == (
        (2.5, pytest.approx(0.8), pytest.approx(0.7)),
        "SPL",
    )
    assert np.array_equal(scan[:], outputs.waves())
    assert vf.open("truth.zarr").meta.kind == "classes"


@pytest.mark.parametrize(
    "name",
    ["scan", "truth", "written", "blended", "exact", "classes.nii.gz", "exported.nii.gz"],
)
def test_each_output_verifies(known, name):
    coverage = vf.verify(name if name.endswith(".gz") else f"{name}.zarr")
    assert coverage.ok
    assert all(level.ok for level in coverage.levels)
    assert len(coverage.levels) == (2 if name == "truth" else 0)


def test_a_damaged_one_is_found(known):
    for path in Path("exact.zarr/0/c").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    assert not vf.verify("exact.zarr").ok


def test_what_is_finished_is_left_alone(known):
    """The same calls compute, measure and write nothing.

    Exact results have been rounded otherwise since: such an output is left to that version.
    """
    before = times(".")
    vf.convert("scan.nii.gz", "scan.zarr", **outputs.LAYOUT)
    vf.pyramid("truth.zarr", levels=2, progress=False)
    vf.statistics("scan.zarr", progress=False)
    case = {"image": "scan.zarr", "label": "truth.zarr"}
    vf.PatchStream(case, vf.LabelSampler(8), 10, progress=False)
    assert times(".") == before
    vf.export("truth.zarr", "exported.nii.gz")
    assert times(".").keys() == before.keys()
    if not known["same torch"]:
        return
    classes = {"output": "classes", **outputs.BLENDED}
    vf.predict("scan.zarr", outputs.net(), "blended.zarr", **classes)
    vf.predict("scan.nii.gz", outputs.net(), "classes.nii.gz", **classes)
    with pytest.raises(ResumeRefused, match=r"other values \(version 2, now version 3\)"):
        vf.predict("scan.zarr", outputs.norm_net(), "exact.zarr", **outputs.EXACT)
    after = times(".")
    assert {name for name in after if before.get(name) != after[name]} <= {
        "exported.nii.gz.volflow/export.json",  # the volume moved with the archive
        # Where they came from, which that version did not note and an audit asks for.
        "blended.zarr.volflow/provenance.json",
        "classes.nii.gz.volflow/output.zarr.volflow/provenance.json",
        "classes.nii.gz.volflow/copies.json",  # the copy of the scan goes, which that version kept
    }


def test_a_killed_prediction_goes_on(known):
    """Blocks that were done are not done again; the result is that of a run in one go."""
    done = times("half.zarr.volflow/done")
    assert 0 < len(done) < 6
    coverage = vf.verify("half.zarr")
    assert not coverage.ok
    assert not coverage.damaged
    if not known["same torch"]:
        with pytest.raises(ResumeRefused, match="torch"):
            outputs.half()
        return
    result = outputs.half()
    assert times("half.zarr.volflow/done").items() >= done.items()
    assert vf.verify("half.zarr").ok
    fresh = outputs.half("fresh.zarr")[:]
    # Blocks of another machine's processor agree to rounding.
    assert np.abs(result[:] - fresh).max() <= 1e-6 * np.abs(fresh).max()


def test_a_killed_prediction_of_another_scan_is_refused(known):
    Path("scan.zarr/0/c/0/0/0").touch()
    with pytest.raises(ResumeRefused, match=r"half\.zarr.*input"):
        outputs.half()
