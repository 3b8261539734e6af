"""Exact inference with published networks on a real brain, against runs on the whole volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import volflow as vf
from tests.meshnet import published, whole

nib = pytest.importorskip("nibabel", reason="extra io")


# Voxels per class of each reference, and how many may differ: where two scores nearly tie.
REFERENCES = {
    "model5_gw_ae": ("seg_model5", (15_523_464, 518_540, 735_212), 3),
    "mindgrab": ("brainmask_mindgrab", (15_170_019, 1_607_197), 10),
}
PARAMETERS = {"model5_gw_ae": 5_598, "mindgrab": 146_237}
LITTLE = {"model5_gw_ae": "50MiB", "mindgrab": "60MiB"}  # of which a crop has several blocks
CROP = np.s_[112:146, 70:88, 162:174]  # sides and dilations up to 16 tell the axes apart


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data("t1_brainchop")


@pytest.fixture(scope="module")
def image(folder):
    return nib.load(folder / "t1_crop.nii.gz")


@pytest.fixture(scope="module")
def scan(image):
    """As in the file, which is how the networks see it."""
    return np.asarray(image.dataobj)


@pytest.fixture
def reference(folder):
    def load(name):
        """Classes in the order of the file, their counts, how many voxels may differ."""
        stem, counts, few = REFERENCES[name]
        classes = np.asarray(nib.load(folder / "derived" / f"{stem}.nii.gz").dataobj)
        assert np.array_equal(np.bincount(classes.ravel()), counts)
        return classes, few

    return load


@pytest.mark.parametrize("name", REFERENCES)
def test_all_weights_are_loaded(folder, name):
    module = published(folder, name).module
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]


def test_the_reference_is_that_of_the_network(folder, scan, reference):
    """Of a piece, with all that its voxels see around it."""
    classes, _ = reference("model5_gw_ae")
    core, halo = np.s_[140:152, 84:96, 160:172], 46
    margin = halo + 1  # no voxel of the core sees the outermost layer
    piece = scan[tuple(slice(s.start - margin, s.stop + margin) for s in core)].copy()
    piece.flat[[0, -1]] = scan.min(), scan.max()
    found = whole(published(folder, "model5_gw_ae"), piece).argmax(0)
    assert len(np.unique(classes[core])) == 3
    assert np.array_equal(found[(slice(margin, -margin),) * 3], classes[core])


@pytest.mark.nightly
@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_is_the_run_on_the_whole_volume(folder, scan, reference, name):
    classes, few = reference(name)
    assert np.count_nonzero(whole(published(folder, name), scan).argmax(0) != classes) <= few


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_a_crop_equals_the_run_on_its_whole(tmp_path, folder, image, name):
    network = published(folder, name)
    network = replace(network, module=network.module.double())
    crop = image.slicer[CROP]
    crop.to_filename(tmp_path / "crop.nii")
    out = tmp_path / "scores.zarr"
    found = vf.predict(
        tmp_path / "crop.nii", network.module, out, blend="exact", frame=network.frame,
        normalize=network.normalize, chunk=6, shard=12, memory=LITTLE[name], progress=False,
    )  # fmt: skip
    assert found.orientation == "AIL"
    assert len(list((tmp_path / "scores.zarr.volflow").rglob("done/*.json"))) > 1
    expected = whole(network, np.asarray(crop.dataobj))
    assert len(np.unique(expected.argmax(0))) == len(expected)
    error = np.abs(found[:].transpose(0, 3, 2, 1) - expected).max()
    assert error <= 1e-12 * np.ptp(expected)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "memory"),
    [("model5_gw_ae", "400MB"), ("model5_gw_ae", "1GB"), ("mindgrab", "400MB")],
)
def test_the_scan_in_blocks_gives_the_reference(tmp_path, folder, reference, name, memory):
    network = published(folder, name)
    found = vf.predict(
        folder / "t1_crop.nii.gz", network.module, tmp_path / "out.zarr", blend="exact",
        frame=network.frame, normalize=network.normalize, output="classes", memory=memory,
        progress=False,
    )  # fmt: skip
    classes, few = reference(name)
    assert np.count_nonzero(classes != found[:].T) <= few
