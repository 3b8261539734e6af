"""A result says which model made it, without its journal and after it was copied and exported."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

import volflow as vf
from volflow.report.facts.info import facts_of, facts_text
from volflow.store.volume import open_volume

BAD = {"model": "m", "weights": "w", "options": [1]}


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 99, (20, 18, 16), "uint8")
    nibabel.Nifti1Image(voxels.T, np.diag([1, 2, 3, 1])).to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    net = vf.UNet(1, 2, features=(4,))
    vf.save_model(net, tmp_path / "edges", patch=8)
    return tmp_path / "edges"


def test_a_volume_and_what_is_exported_of_it(scan, bundle, tmp_path, client):
    options = {"output": "classes", "cluster": client, "progress": False}
    vf.predict(scan, bundle, tmp_path / "seg.zarr", **options)
    shutil.rmtree(tmp_path / "seg.zarr.volflow")
    shutil.copytree(tmp_path / "seg.zarr", tmp_path / "sent.zarr")
    made = json.loads(open_volume(tmp_path / "sent.zarr").meta.made)
    assert (made["model"], made["options"]["patch"]) == ("edges", [8, 8, 8])
    assert len(made["weights"]) == 64
    facts = facts_of(tmp_path / "sent.zarr")
    assert facts["made_by"] == made
    line = f"made by      edges (weights {made['weights'][:12]}, patch [8, 8, 8], blend gaussian)"
    assert line in facts_text(facts)

    vf.export(tmp_path / "sent.zarr", tmp_path / "seg.nii.gz")
    image = nibabel.load(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, vf.open(tmp_path / "sent.zarr")[:])
    np.testing.assert_array_equal(image.affine, nibabel.load(scan).affine)
    assert image.header["descrip"].item().decode() == f"volflow: edges {made['weights'][:16]}"
    (note,) = image.header.extensions
    assert json.loads(note.get_content().decode().removeprefix("volflow: ")) == made
    assert vf.convert(tmp_path / "seg.nii.gz", tmp_path / "back.zarr", progress=False).shape


def test_what_is_computed_of_it_was_not_made_by_the_model(scan, bundle, tmp_path, client):
    scores = vf.predict(scan, bundle, tmp_path / "a.zarr", cluster=client, progress=False)
    mask = vf.write(scores.dask()[0] > 0, tmp_path / "b.zarr", like=scan, progress=False)
    assert (scores.meta.made != "", mask.meta.made) == (True, "")
    again = vf.convert(tmp_path / "a.zarr", tmp_path / "c.zarr", progress=False)
    assert again.meta.made == scores.meta.made


@pytest.mark.parametrize("made", [7, "x", {"model": 3}, {"model": "m", "weights": None}, BAD])
def test_what_others_wrote_there_is_ignored(scan, tmp_path, made):
    volume = vf.convert(scan, tmp_path / "a.zarr", progress=False)
    before = volume.identity()
    path = tmp_path / "a.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["volflow"]["made"] = made
    path.write_text(json.dumps(root))
    again = vf.open(tmp_path / "a.zarr")
    assert (again.meta.made, again.identity()) == ("", before)
