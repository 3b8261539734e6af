"""Arrays whose bytes stand in the other order than the machine's give the same voxels."""

from __future__ import annotations

import json

import dask.array as da
import nibabel
import numpy as np
import pytest
import torch
import zarr

import volflow as vf

SCAN = (np.random.default_rng(0).random((20, 12, 10)) * 1000).astype(">u2")
FORMS = ("NumPy", "memmap", "Dask", "Zarr 2", "Zarr 3", "NIfTI")


@pytest.fixture
def given(tmp_path):
    """The scan as a user has it, big-endian in every form."""

    def give(form):
        if form == "NumPy":
            return SCAN
        if form == "memmap":
            np.save(tmp_path / "scan.npy", SCAN)
            return np.load(tmp_path / "scan.npy", mmap_mode="r")
        if form == "Dask":
            return da.from_array(SCAN, chunks=8)[::-1][::-1]
        if form.startswith("Zarr"):
            version = int(form[-1])
            codec = {"serializer": zarr.codecs.BytesCodec(endian="big")} if version == 3 else {}
            array = zarr.create_array(
                tmp_path / "scan.zarr", shape=SCAN.shape, chunks=(8, 8, 8), dtype=">u2",
                zarr_format=version, **codec,
            )  # fmt: skip
            array[:] = SCAN
            return tmp_path / "scan.zarr"
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(">u2")
        image = nibabel.Nifti1Image(SCAN.transpose(2, 1, 0), np.eye(4), header)
        nibabel.save(image, tmp_path / "scan.nii")
        return tmp_path / "scan.nii"

    return give


def lazily(form, given):
    """The same as a Dask array, none of whose tasks turns the bytes."""
    if form.startswith("Zarr"):
        return da.from_zarr(given)[::-1][::-1]
    if form == "NIfTI":
        return da.from_array(nibabel.load(given).dataobj, chunks=(10, 8, 8)).T
    return da.from_array(given, chunks=8)[::-1][::-1] if form != "Dask" else given


@pytest.mark.parametrize("form", FORMS)
def test_write_stores_them_little_endian(given, form, tmp_path):
    x = given(form)
    array = lazily(form, x)
    assert array.dtype.newbyteorder("=") == np.uint16
    out = tmp_path / "out.zarr"
    for one, path in ((array, out), (x, tmp_path / "again.zarr")):
        volume = vf.write(one, path, progress=False)
        assert volume.dtype == np.dtype("=u2")
        assert np.array_equal(volume[:], SCAN)
        assert vf.verify(path).ok
    codecs = json.loads((out / "0" / "zarr.json").read_text())["codecs"]
    assert '"endian": "little"' in json.dumps(codecs)
    assert '"endian": "big"' not in json.dumps(codecs)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_networks_see_their_values(given, form, client, tmp_path):
    x, net = given(form), torch.nn.Identity()
    options = {"blend": "crop", "patch": 8, "normalize": lambda block: block / 10}
    result = vf.predict(x, net, tmp_path / "out.zarr", cluster=client, progress=False, **options)
    np.testing.assert_allclose(result[0], SCAN / 10, rtol=1e-6)
    assert np.array_equal(vf.map_model(x, net, **options).compute(), result[:])
    exact = vf.predict(
        x, net, tmp_path / "exact.zarr", blend="exact", normalize="minmax", cluster=client,
        progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(exact[0], (SCAN - SCAN.min() * 1.0) / np.ptp(SCAN), atol=1e-6)
    same = vf.map_overlap(lambda block: block, x, depth=1, boundary="reflect", dtype="u2")
    assert np.array_equal(same.compute(), SCAN)


@pytest.mark.parametrize("form", FORMS[:1] + FORMS[3:])
def test_convert_and_streams_take_them(given, form, tmp_path):
    x = given(form)
    volume = vf.convert(x, tmp_path / "out.zarr", progress=False)
    assert np.array_equal(volume[:], SCAN)
    case = {"image": x, "label": x}
    stream = vf.PatchStream([case], vf.LabelSampler(4), patches_per_epoch=3, seed=0)
    for patch in stream:
        z, y, x, *_ = (int(at) for at in patch["location"])
        expected = SCAN[z : z + 4, y : y + 4, x : x + 4]
        assert np.array_equal(patch["image"][0].numpy(), expected)
