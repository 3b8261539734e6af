"""Whether an image looks like a label map: told of the voxels, read as little as will do."""

from __future__ import annotations

import numpy as np
import pytest

import volflow.report.facts.label_hint as label_hint_module
from volflow.report.facts.label_hint import STREAM_PLANES, label_hint
from volflow.store.formats.nifti import open_nifti
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta
from volflow.store.volume import open_volume

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 200, (24, 24, 24)).astype("i2")
# Of 64 classes, each in a box of its own.
MANY = (np.arange(64).reshape(4, 4, 4) + 1).repeat(6, 0).repeat(6, 1).repeat(6, 2)


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        (NOISE, None),
        (NOISE % 3, "it holds only 3 different whole numbers"),
        ((NOISE % 3).astype("f4"), "it holds only 3 different whole numbers"),
        ((NOISE % 3) * 0.3, None),
        (NOISE > 100, None),
        (NOISE * 0, None),
        (MANY.astype("u2"), "it holds whole numbers that are alike over large regions"),
        ((NOISE % 3)[None], "it holds only 3 different whole numbers"),
        (np.stack([NOISE % 3] * 2), None),
    ],
)
def test_by_values_and_regions(voxels, said):
    assert label_hint(open_source(voxels)) == said


def test_not_of_label_maps_nor_of_what_is_damaged(stored, tmp_path):
    labels = (NOISE % 3).astype("u1")
    assert label_hint(open_volume(stored(labels, Meta(kind="classes")))) is None
    image = stored(labels, Meta(), "image.zarr", chunk=12)
    assert "only 3 different" in label_hint(open_volume(image))
    (image / "0" / "c" / "0" / "0" / "0").write_bytes(b"damaged")
    assert label_hint(open_volume(image)) is None


def test_of_an_image_only_the_beginning_is_read(tmp_path, monkeypatch):
    nib = pytest.importorskip("nibabel")
    nib.Nifti1Image(NOISE, np.eye(4)).to_filename(tmp_path / "scan.nii.gz")
    source = open_nifti(str(tmp_path / "scan.nii.gz"))
    starts = []
    plain = type(source).slabs

    def slabs(self, depth):
        for roi, voxels in plain(self, depth):
            starts.append(roi.start[0])
            yield roi, voxels

    monkeypatch.setattr(type(source), "slabs", slabs)
    assert label_hint(source) is None
    assert starts == [0]
    monkeypatch.setattr(label_hint_module, "SAMPLE_BYTES", 1)
    nib.Nifti1Image(MANY.astype("i2"), np.eye(4)).to_filename(tmp_path / "labels.nii.gz")
    labels = open_nifti(str(tmp_path / "labels.nii.gz"))
    starts.clear()
    said = label_hint(labels)
    assert starts == [0]
    assert MANY.shape[0] > STREAM_PLANES
    assert said == "what was looked at holds only 32 different whole numbers"
