"""The state with which Neuroglancer shows volumes, against what each field must hold."""

from __future__ import annotations

import json
from itertools import product
from urllib.parse import unquote

import numpy as np
import pytest
import zarr

from tests.stores import store
from volflow.errors import InvalidInput
from volflow.report.colors import class_color
from volflow.report.viewers.appearance import appearances, direction
from volflow.report.viewers.neuroglancer import as_bytes, class_names, fragment, viewer_state
from volflow.store.volume import open_volume

AT = "http://127.0.0.1:8642"
NAMES = ("background", "liver", "tumour")


def state_of(*paths):
    return viewer_state(appearances(paths), AT)


@pytest.fixture
def scan(tmp_path):
    z, y, x = np.ogrid[:20, :40, :50]
    meta = {"spacing": (2.5, 0.8, 0.8), "unit": "millimeter", "orientation": "SAR"}
    return store(tmp_path / "scan.zarr", (z + y + x).astype("u2"), **meta)


@pytest.fixture
def result(tmp_path):
    labels = np.zeros((10, 20, 25), "u1")
    labels[5:, 10:, 12:] = 1
    meta = {"spacing": (5000.0, 1600, 1600), "unit": "micrometer", "orientation": "SAR"}
    meta |= {"translation": (1250.0, 400, 400), "kind": "classes", "channels": NAMES}
    return store(tmp_path / "seg.zarr", labels, **meta)


def test_scales_are_in_metres_and_dimensions_are_named(scan, result):
    state = state_of(scan, result)
    assert list(state["dimensions"]) == ["x", "y", "z"]
    for axis, size in (("x", 0.8), ("y", 0.8), ("z", 2.5)):
        length, unit = state["dimensions"][axis]
        assert (length, unit) == (pytest.approx(size * 1e-3), "m")
    under, over = state["layers"]
    assert list(under["source"]["transform"]["outputDimensions"]) == ["z", "y", "x"]
    sizes = over["source"][0]["transform"]["outputDimensions"]
    assert sizes["z"] == [pytest.approx(5e-3), "m"]
    assert sizes["x"] == [pytest.approx(1.6e-3), "m"]


def test_the_cut_is_the_middle(scan, tmp_path):
    state = state_of(scan)
    # Neuroglancer counts from the corner of a voxel whose centre is the origin: at -1/2.
    assert state["position"] == [25, 20, 10]
    assert state["crossSectionScale"] * 420 == pytest.approx(20 * 2.5 / 0.8)
    assert state["projectionScale"] > 20 * 2.5 / 0.8
    assert state["layout"] == "4panel"
    moved = store(tmp_path / "b.zarr", np.zeros((4, 4, 4), "u1"), translation=(100.0, 0, -8))
    assert state_of(moved)["position"] == [-8 + 2, 2, 100 + 2]


def test_a_scan_is_a_grey_layer(scan):
    (layer,) = state_of(scan)["layers"]
    assert (layer["type"], layer["name"]) == ("image", "scan")
    assert layer["source"]["url"] == f"zarr3://{AT}/volumes/0/"
    assert "matrix" not in layer["source"]["transform"]
    assert "shader" not in layer
    low, high = layer["shaderControls"]["normalized"]["range"]
    assert 0 < low < high < 107


def test_classes_are_a_segmentation_with_colours_and_names(scan, result):
    state = state_of(scan, result)
    layer = state["layers"][1]
    assert (layer["type"], layer["name"]) == ("segmentation", "seg")
    assert layer["segmentColors"] == {"1": class_color(1), "2": class_color(2)}
    assert layer["segments"] == ["1", "2"]
    assert layer["source"][0]["url"] == f"zarr3://{AT}/volumes/1/"
    assert layer["source"][1] == f"precomputed://{AT}/names/1"
    assert state["selectedLayer"] == {"layer": "seg", "visible": True}
    named = class_names(appearances([scan, result])[1])
    assert named["@type"] == "neuroglancer_segment_properties"
    assert named["inline"]["ids"] == ["1", "2"]
    assert named["inline"]["properties"][0]["values"] == ["liver", "tumour"]


def test_unnamed_classes_are_all_shown(scan, tmp_path):
    path = store(tmp_path / "cells.zarr", np.arange(8000, dtype="u4").reshape(20, 20, 20))
    group = zarr.open_group(path)
    group.update_attributes({"volflow": {"kind": "classes"}})
    state = state_of(scan, path)
    layer = state["layers"][1]
    assert layer["type"] == "segmentation"
    assert not {"segments", "segmentColors", "tab"} & set(layer)
    assert "selectedLayer" not in state


def test_scores_lie_over_the_scan_in_the_colours_of_their_classes(scan, tmp_path):
    scores = np.random.default_rng(0).random((3, 20, 40, 50), dtype="f4")
    meta = {"spacing": (2.5, 0.8, 0.8), "unit": "millimeter", "channels": NAMES}
    layers = state_of(scan, store(tmp_path / "scores.zarr", scores, **meta))["layers"][1:]
    assert [layer["name"] for layer in layers] == [f"scores: {name}" for name in NAMES]
    assert [layer.get("visible", True) for layer in layers] == [False, True, True]
    for number, layer in enumerate(layers):
        assert layer["localPosition"] == [number]
        assert layer["localDimensions"] == {"c'": [1, ""]}
        names = layer["source"]["transform"]["outputDimensions"]
        assert list(names) == ["c'", "z", "y", "x"]
        assert layer["shaderControls"]["normalized"]["range"] == [0, 1]
        assert f'"{class_color(number)}"' in layer["shader"]
        assert "emitRGBA" in layer["shader"]


def test_channels_of_a_ground_add_up(tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (2, 8, 8, 8)).astype("u2")
    colors = ("0000FF", "00FF00")
    layers = state_of(store(tmp_path / "a.zarr", array, colors=colors))["layers"]
    assert [layer.get("blend") for layer in layers] == [None, "additive"]
    assert [layer["opacity"] for layer in layers] == [1, 1]
    assert '"#00FF00"' in layers[1]["shader"]
    assert "emitRGB(" in layers[1]["shader"]


def test_without_unit_lengths_have_none(tmp_path):
    path = store(tmp_path / "a.zarr", np.zeros((4, 4, 4), "u1"), spacing=(3.0, 1, 1))
    state = state_of(path)
    assert state["dimensions"]["z"] == [3.0, ""]
    assert "crossSectionOrientation" not in state


def rotated(quaternion, vector):
    """A vector turned by a unit quaternion x, y, z, w."""
    axis, w = np.array(quaternion[:3]), quaternion[3]
    vector = np.asarray(vector, float)
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)


ORIENTATIONS = [
    "".join(letters)
    for letters in product("RLAPSI", repeat=3)
    if sorted("RAS"["RLAPSI".index(letter) // 2] for letter in letters) == list("ARS")
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_head_is_up(tmp_path, orientation):
    assert len(ORIENTATIONS) == 48
    path = store(tmp_path / "a.zarr", np.zeros((2, 3, 4), "u1"), orientation=orientation)
    state = state_of(path)
    # The viewer's axes: to the right, down, away.
    axial, front = state["crossSectionOrientation"], state["projectionOrientation"]
    assert np.linalg.norm(axial) == pytest.approx(1)
    np.testing.assert_allclose(rotated(axial, (0, 1, 0)), direction(orientation, "P"), atol=1e-12)
    np.testing.assert_allclose(rotated(axial, (0, 0, 1)), direction(orientation, "I"), atol=1e-12)
    np.testing.assert_allclose(rotated(front, (0, 1, 0)), direction(orientation, "I"), atol=1e-12)
    np.testing.assert_allclose(rotated(front, (0, 0, 1)), direction(orientation, "P"), atol=1e-12)


def test_a_volume_without_orientation_is_shown_as_the_others(tmp_path, scan):
    plain = store(tmp_path / "a.zarr", np.zeros((20, 40, 50), "f4"), unit="millimeter")
    expected = state_of(scan)["crossSectionOrientation"]
    assert state_of(plain, scan)["crossSectionOrientation"] == expected


@pytest.mark.parametrize(
    ("version", "names", "own"),
    [
        (3, None, ["dim_0", "dim_1", "dim_2"]),
        (3, ["Z", "y", "x"], ["Z", "y", "x"]),
        (2, None, ["d0", "d1", "d2"]),
    ],
)
def test_a_plain_array_is_put_in_its_place(tmp_path, scan, version, names, own):
    options = {} if names is None else {"dimension_names": names}
    zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 5, 6), chunks=(4, 4, 4), dtype="i2",
        zarr_format=version, **options,
    )  # fmt: skip
    source = state_of(scan, str(tmp_path / "a.zarr"))["layers"][1]["source"]
    assert source["url"] == f"zarr{version}://{AT}/volumes/1/"
    transform = source["transform"]
    assert transform["outputDimensions"] == {axis: [1e-3, "m"] for axis in "zyx"}
    assert transform["inputDimensions"] == {name: [1e-3, "m"] for name in own}
    assert transform["matrix"] == [[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5]]


def foreign(path, version, unit):
    """An OME-Zarr 0.4 image as another program might write it."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("full res", shape=(4, 4, 4), chunks=(4, 4, 4), dtype="u1")
    axes = [{"name": n, "type": "space"} | ({"unit": unit} if unit else {}) for n in "zyx"]
    steps = [
        {"type": "scale", "scale": [2, 1, 1]},
        {"type": "translation", "translation": [8, 0, 1]},
    ]
    image = {"axes": axes, "datasets": [{"path": "full res", "coordinateTransformations": steps}]}
    group.attrs["multiscales"] = [image | ({"version": version} if version else {})]
    return str(path)


def test_levels_that_neuroglancer_cannot_read_are_replaced_by_the_finest(tmp_path):
    good = state_of(foreign(tmp_path / "a.zarr", "0.4", "micrometer"))["layers"][0]["source"]
    assert good["url"] == f"zarr2://{AT}/volumes/0/"
    for version, unit in (
        (None, "micrometer"),
        ("0.3", "micrometer"),
        ("0.4", "micron"),
        ("0.4", "odd"),
    ):
        path = foreign(tmp_path / "b.zarr", version, unit)
        source = state_of(path)["layers"][0]["source"]
        assert source["url"] == f"zarr2://{AT}/volumes/0/full%20res/"
        # In voxels: 8 / 2 - 1/2, 0 - 1/2, 1 - 1/2.
        assert [row[-1] for row in source["transform"]["matrix"]] == [3.5, -0.5, 0.5]


def test_one_slice_and_one_timepoint(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(30, 40), chunks=(16, 16), dtype="u1")
    state = state_of(str(tmp_path / "a.zarr"))
    assert (list(state["dimensions"]), state["layout"]) == (["x", "y"], "xy")
    assert state["position"] == [20, 15]
    zarr.create_array(
        tmp_path / "t.zarr", shape=(3, 4, 5, 6), chunks=(1, 4, 4, 4), dtype="u1",
        dimension_names=["t", "z", "y", "x"],
    )  # fmt: skip
    volume = open_volume(tmp_path / "t.zarr", timepoint=2)
    (layer,) = state_of(volume)["layers"]
    assert (layer["localDimensions"], layer["localPosition"]) == ({"t'": [1, ""]}, [2])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_mask_is_served_as_bytes(tmp_path, zarr_format):
    mask = np.random.default_rng(0).random((6, 7, 8)) > 0.5
    path = tmp_path / "mask.zarr"
    zarr.create_array(path, data=mask, chunks=(4, 4, 4), zarr_format=zarr_format)
    (one,) = appearances([path])
    texts = as_bytes(one)
    assert viewer_state([one], "")["layers"][0]["name"] == "mask"
    for name, text in texts.items():  # what a viewer is given in place of the files
        (path / name.removeprefix("/volumes/0/")).write_text(text)
    served = zarr.open_array(path, mode="r")
    assert served.dtype == "uint8"
    np.testing.assert_array_equal(served[:], mask)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_dtypes_that_cannot_be_shown(tmp_path, dtype):
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 4, 4), chunks=(4, 4, 4), dtype=dtype)
    message = rf"a\.zarr holds {dtype}, which Neuroglancer cannot show \(uint8.*--napari"
    with pytest.raises(InvalidInput, match=message) as caught:
        state_of(str(tmp_path / "a.zarr"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"]
)
def test_dtypes_that_can(tmp_path, dtype):
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        array = zarr.create_array(
            path, shape=(4, 4, 4), chunks=(4, 4, 4), dtype=dtype, zarr_format=version
        )
        array[0] = 1
        assert state_of(str(path))["layers"][0]["type"] == "image"


def test_int64_of_zarr_2_is_shown(tmp_path):
    zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 4, 4), chunks=(4, 4, 4), dtype="i8", zarr_format=2
    )
    assert state_of(str(tmp_path / "a.zarr"))["layers"]


def test_codecs_that_cannot_be_read(tmp_path):
    from numcodecs import BZ2, Delta

    options = {"shape": (4, 4, 4), "chunks": (4, 4, 4), "dtype": "u2", "zarr_format": 2}
    zarr.create_array(tmp_path / "a.zarr", **options, compressors=BZ2())
    with pytest.raises(InvalidInput, match="compressed with bz2, which Neuroglancer cannot read"):
        state_of(str(tmp_path / "a.zarr"))
    zarr.create_array(tmp_path / "b.zarr", **options, filters=[Delta("u2")])
    with pytest.raises(InvalidInput, match="compressed with delta"):
        state_of(str(tmp_path / "b.zarr"))


def test_a_state_survives_its_link(scan, result):
    state = state_of(scan, result)
    text = fragment(state)
    assert text.startswith("!%7B")
    assert not set(text) & set(' "<>\\^`{|}#')
    assert json.loads(unquote(text[1:])) == state
