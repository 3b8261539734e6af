"""Arrays that lie in no file, served to a viewer: what is looked at is computed, and no more."""

from __future__ import annotations

import itertools
import json
from urllib.error import HTTPError
from urllib.request import urlopen

import dask.array as da
import numpy as np
import pytest
import torch
import xarray
import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

import volflow as vf
from volflow.errors import InvalidInput
from volflow.store.volume import open_volume


def root_of(layer):
    source = layer["source"]
    source = source[0] if isinstance(source, list) else source
    return source["url"].removeprefix("zarr3://")


def over_http(root):
    """The array at a URL as zarr reads it, all of whose chunks are asked for now."""
    found = {"zarr.json": urlopen(root + "zarr.json").read()}
    meta = json.loads(found["zarr.json"])
    chunk = meta["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (-(-n // side) for n, side in zip(meta["shape"], chunk, strict=True))
    for index in itertools.product(*map(range, counts)):
        key = "/".join(["c", *map(str, index)])
        found[key] = urlopen(root + key).read()
    stored = {key: Buffer.from_bytes(content) for key, content in found.items()}
    return zarr.open_array(MemoryStore(stored), mode="r")


def counted(values, chunks):
    """A Dask array of values, and the list of the chunks that were computed of it."""
    computed = []

    def note(block, block_info=None):
        computed.append(block_info[0]["chunk-location"])
        return block

    array = da.from_array(values, chunks=chunks, name=False)
    return array.map_blocks(note, dtype=values.dtype, meta=values[:0, :0, :0]), computed


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 999, (20, 33, 40)).astype("u2")


def test_only_the_chunks_that_are_asked_for_are_computed(values):
    array, computed = counted(values, (8, 16, 16))
    with vf.view(array, port=0) as shown:
        assert computed == [(1, 1, 1)]  # whose values say what is black and white
        (layer,) = shown.state["layers"]
        assert layer["name"] == "array"
        stored = json.load(urlopen(root_of(layer) + "zarr.json"))
        assert stored["chunk_grid"]["configuration"]["chunk_shape"] == [8, 16, 16]
        assert len(computed) == 1
        chunk = np.frombuffer(urlopen(root_of(layer) + "c/2/2/0").read(), "<u2")
        assert computed == [(1, 1, 1), (2, 2, 0)]
        expected = np.zeros((8, 16, 16), "u2")
        expected[:4, :1] = values[16:, 32:, :16]
        np.testing.assert_array_equal(chunk.reshape(8, 16, 16), expected)
        for missing in ("c/3/0/0", "c/0/0", "zarr.jso", ".zattrs"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(root_of(layer) + missing)
        assert len(computed) == 2


def test_what_is_served_is_read_by_zarr(values):
    """All channels of a place come of one computation."""
    computed = []

    def scores(block):
        computed.append(1)
        return np.stack([block, block / 2])

    lazy = da.from_array(values.astype("f8"), chunks=(20, 20, 20), name=False)
    lazy = lazy.map_blocks(
        scores, new_axis=0, chunks=((2,), *lazy.chunks), dtype="f8", meta=np.zeros((0, 0, 0, 0))
    )
    with vf.view(lazy, port=0) as shown:
        computed.clear()
        array = over_http(root_of(shown.state["layers"][0]))
        assert array.dtype == "float32"  # which viewers know
        np.testing.assert_allclose(array[:], np.stack([values, values / 2]))
    assert len(computed) <= 4


def test_spacing_unit_and_place_are_known_of_a_data_array(values):
    coords = {
        axis: ("zyx"[n], np.arange(size) * step + 5.0, {"units": "mm"})
        for n, (axis, size, step) in enumerate(zip("zyx", values.shape, (2, 0.5, 0.5), strict=True))
    }
    array = xarray.DataArray(values, dims=tuple("zyx"), coords=coords)
    with vf.view(array, port=0) as shown:
        assert shown.state["dimensions"] == {"x": [5e-4, "m"], "y": [5e-4, "m"], "z": [2e-3, "m"]}
        matrix = np.array(shown.state["layers"][0]["source"]["transform"]["matrix"])
        np.testing.assert_allclose(matrix[:, -1], [5 / 2 - 0.5, 5 / 0.5 - 0.5, 5 / 0.5 - 0.5])


def test_lies_over_a_volume(tmp_path, values):
    scan = vf.write(values, tmp_path / "scan.zarr", progress=False)
    with vf.view(scan, values > 500, torch.from_numpy(values / 999.0), port=0) as shown:
        names = [layer["name"] for layer in shown.state["layers"]]
        assert names == ["scan", "array 1", "array 2"]
        mask = root_of(shown.state["layers"][1])
        assert shown.state["layers"][1]["type"] == "segmentation"
        assert json.load(urlopen(mask + "zarr.json"))["data_type"] == "uint8"
        chunk = np.frombuffer(urlopen(mask + "c/0/0/0").read(), "u1").reshape(20, 33, 40)
        np.testing.assert_array_equal(chunk, values > 500)


def test_a_network_is_looked_at_where_it_is(values):
    scores = vf.map_model(values.astype("f4"), torch.nn.Identity(), patch=16)
    with vf.view(values, scores, port=0) as shown:
        array = over_http(root_of(shown.state["layers"][1]))
        np.testing.assert_allclose(array[0], values, rtol=1e-5)


def test_a_volume_in_memory_is_shown(values):
    volume = open_volume(zarr.array(values, chunks=(8, 8, 8)))
    with vf.view(volume, port=0) as shown:
        array = over_http(root_of(shown.state["layers"][0]))
        np.testing.assert_array_equal(array[:], values)


def test_what_fails_is_said_in_one_line_and_is_no_zeros(values, caplog):
    def fails(block):
        if block.size and block[0, 0, 0] == values[0, 0, 0]:
            raise ZeroDivisionError("not here")
        return block

    lazy = da.from_array(values, chunks=(8, 16, 16), name=False)
    lazy = lazy.map_blocks(fails, dtype="u2", meta=values[:0, :0, :0])
    with vf.view(lazy, port=0) as shown:
        with pytest.raises(HTTPError, match="500"):
            urlopen(root_of(shown.state["layers"][0]) + "c/0/0/0")
        urlopen(root_of(shown.state["layers"][0]) + "c/0/0/1").read()
    assert caplog.messages == ["/volumes/0/c/0/0/0: ZeroDivisionError: not here"]


def test_what_viewers_do_not_know_is_refused(values):
    with pytest.raises(InvalidInput, match=r"an array holds int64, .* array\.astype\(.int32.\)"):
        vf.view(values.astype("i8"), port=0)
    with pytest.raises(InvalidInput, match="a script for napari opens volumes from disk"):
        vf.napari_snippet(values)


def test_large_pieces_are_cut(values):
    array = da.zeros((512, 1024, 1024), chunks=-1, dtype="u1")
    with vf.view(array, port=0, window=(0, 1)) as shown:
        stored = json.load(urlopen(root_of(shown.state["layers"][0]) + "zarr.json"))
    sides = stored["chunk_grid"]["configuration"]["chunk_shape"]
    assert sides == [256, 512, 512]
