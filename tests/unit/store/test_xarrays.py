"""DataArrays: the grid is read from coordinates, and given back as coordinates."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.sources import ArraySource
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import DaskSource
from volflow.volumes.arrays.inputs import open_input

xarray = pytest.importorskip("xarray")

SHAPE = (3, 4, 5)
VOXELS = np.arange(60, dtype="int16").reshape(SHAPE)
AFFINE = ((0.0, -0.5, 0.0, 9.0), (0.5, 0.0, 0.0, -2.0), (0.0, 0.0, 2.0, 40.0), (0.0, 0.0, 0.0, 1.0))
GRID = {
    "spacing": (2.0, 0.5, 0.5), "unit": "millimeter", "translation": (40.0, -2.0, 9.0),
    "orientation": "SRA", "affine": AFFINE,
}  # fmt: skip


def array(dims="zyx", voxels=VOXELS, **changed):
    """A DataArray on a grid of 2 × 0.5 × 0.5 mm, with some coordinates changed."""
    coords = {
        "z": 10 + 2.0 * np.arange(3), "y": 0.5 * np.arange(4), "x": 0.5 * np.arange(5) - 1
    }  # fmt: skip
    coords |= changed
    coords = {
        dim: xarray.Variable(dim, values, {"units": "mm"})
        for dim, values in coords.items()
        if values is not None
    }
    return xarray.DataArray(voxels, coords, dims=tuple("zyx")).transpose(*dims)


@pytest.mark.parametrize("dims", ["zyx", "xyz", "yxz"])
def test_coordinates_say_the_grid_whatever_the_order_of_axes(dims):
    source = open_input(array(dims))
    assert isinstance(source, ArraySource)
    np.testing.assert_array_equal(source.read(Roi.full(SHAPE)), VOXELS)
    meta = source.meta
    assert (meta.axes, meta.spacing, meta.unit) == (tuple("zyx"), (2, 0.5, 0.5), "millimeter")
    assert meta.translation == (10, 0, -1)


def test_a_channel_dimension_names_channels():
    x = xarray.concat([array(), array() + 60], xarray.Variable("channel", ["t1", "flair"]))
    source = open_input(x.transpose("x", "channel", "z", "y"))
    assert source.meta.channels == ("t1", "flair")
    np.testing.assert_array_equal(source.read(Roi.full(source.shape))[1], VOXELS + 60)


def test_a_slice_keeps_its_place():
    meta = open_input(array().isel(z=1)).meta
    assert (meta.translation, meta.spacing) == ((12, 0, -1), (1, 0.5, 0.5))


def test_single_precision_is_regular_enough():
    x = (np.arange(5) * 0.1 + 1000).astype("f4")
    assert open_input(array(x=x)).meta.spacing[2] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": [0, 1, 2, 4, 5]},
         r"coordinate x is not regular: it steps by 1 from x\[0\] to x\[1\] but by 2 from x\[2\] to"
         r" x\[3\]; resample it, x\.interp\(x=…\), or drop it, x\.drop_vars\('x'\)"),
        ({"y": [3.0, 2, 1, 0]},
         r"coordinate y must ascend, given 3 to 0; reverse it: x\.isel\(y=slice\(None, No"),
        ({"z": list("abc")}, "coordinate z must hold finite numbers, given <U1"),
        ({"z": [0, np.nan, 1]}, "coordinate z must hold finite numbers, given float64"),
        ({"z": None}, r"dimension z has no coordinate, but y has; .* x\.assign_coords\(z=…\)"),
    ],
)  # fmt: skip
def test_coordinates_that_are_no_grid_are_refused(changed, message):
    with pytest.raises(InvalidInput, match=message):
        open_input(array(**changed))


def test_units_that_differ_are_refused():
    x = array()
    x.coords["z"].attrs["units"] = "µm"
    with pytest.raises(InvalidInput, match="one unit, given z: micrometer, y: millimeter, x: mi"):
        open_input(x)


def test_dimensions_that_are_none_of_a_volume_are_refused():
    with pytest.raises(InvalidInput, match=r"y, x and optionally c, given time, lat, x; re"):
        open_input(xarray.DataArray(VOXELS, dims=("time", "lat", "x")))
    with pytest.raises(InvalidInput, match="one DataArray, given a Dataset of a, b; choose one"):
        open_input(xarray.Dataset({"a": array(), "b": array()}))


@pytest.mark.parametrize("channels", [(), ("t1", "flair")])
def test_a_round_trip_keeps_the_grid(tmp_path, channels):
    voxels = np.stack([VOXELS] * 2) if channels else VOXELS
    volume = vf.open(store(tmp_path / "a.zarr", voxels, channels=channels, **GRID))
    given = volume.xarray()
    assert given.dims == volume.axes
    assert given.chunks is not None
    assert given.coords["z"].attrs["units"] == "millimeter"
    # Of what is computed nothing but the coordinates is left.
    source = open_input((given + 1).transpose(*given.dims[::-1]))
    assert isinstance(source, DaskSource)
    for name in ("spacing", "unit", "translation", "channels", "orientation"):
        assert getattr(source.meta, name) == getattr(volume.meta, name), name
    np.testing.assert_allclose(source.meta.affine, AFFINE, atol=1e-12)
    written = vf.write(given + 1, tmp_path / "b.zarr", progress=False)
    np.testing.assert_array_equal(written[...], voxels + 1)
    assert (written.spacing, written.meta.translation) == (volume.spacing, (40.0, -2.0, 9.0))
    assert written.meta.channels == channels


def test_what_is_cut_out_lies_where_it_lay(tmp_path):
    volume = vf.open(store(tmp_path / "a.zarr", VOXELS, **GRID))
    part = open_input(volume.xarray().isel(z=slice(1, 3), y=slice(1, None), x=slice(0, None, 2)))
    assert part.meta.spacing == (2.0, 0.5, 1.0)
    assert part.meta.translation == (42.0, -1.5, 9.0)
    assert (np.array(part.meta.affine) @ (1, 0, 0, 1)).tolist() == pytest.approx(
        (np.array(AFFINE) @ (2, 1, 1, 1)).tolist()
    )


def test_classes_and_a_single_slice_survive(tmp_path):
    meta = {"kind": "classes", "channels": ("air", "bone"), "spacing": (5.0, 1.0, 1.0)}
    volume = vf.open(store(tmp_path / "a.zarr", VOXELS[:1].astype("u1"), **meta))
    found = open_input(volume.xarray()).meta
    assert (found.kind, found.channels, found.spacing) == ("classes", ("air", "bone"), (5, 1, 1))
    assert open_input(volume.xarray() * 0.5).meta.kind == "image"


def test_a_stored_volume_is_read_as_stored_on_the_grid_that_is_said(tmp_path):
    volume = vf.open(store(tmp_path / "a.zarr", VOXELS, **GRID))
    same = open_input(volume.xarray())
    assert isinstance(same, Volume)
    assert same.identity() == volume.identity()
    moved = volume.xarray().assign_coords(z=("z", [0.0, 3.0, 6.0], {"units": "mm"}))
    assert open_input(moved).meta.spacing == (3.0, 0.5, 0.5)


@pytest.mark.parametrize("engine", ["zarr", "scipy"])
def test_files_opened_without_chunks_are_not_loaded(tmp_path, engine):
    dataset = array().to_dataset(name="scan")
    if engine == "zarr":
        dataset.chunk(z=1).to_zarr(tmp_path / "a", consolidated=False)
        opened = xarray.open_zarr(tmp_path / "a", chunks=None, consolidated=False)
    else:
        dataset.to_netcdf(tmp_path / "a", engine="scipy")
        opened = xarray.open_dataset(tmp_path / "a", engine="scipy")
    with opened:
        x = opened["scan"].transpose("x", "y", "z")
        source = open_input(x)
        assert isinstance(source, DaskSource)
        assert not x.variable._in_memory
        np.testing.assert_array_equal(source.read(Roi((1, 0, 0), (2, 4, 5))), VOXELS[1:2])
        assert not x.variable._in_memory
        assert source.meta.translation == (10, 0, -1)


def test_attributes_of_others_do_no_harm():
    x = array().assign_attrs(orientation="north up", kind=3, classes=None)
    assert (open_input(x).meta.orientation, open_input(x).meta.kind) == (None, "image")
    with pytest.raises(InvalidInput, match=r"must hold the 16 numbers .* del x\.attrs"):
        open_input(x.assign_attrs(to_world="EPSG:4326"))


def test_without_xarray_one_line_says_so(tmp_path, monkeypatch):
    volume = vf.open(store(tmp_path / "a.zarr", VOXELS))
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(InvalidInput, match=r'pip install "volflow\[xarray\]"'):
        volume.xarray()
