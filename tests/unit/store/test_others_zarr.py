"""OME-Zarr by other software: images side by side, labels, and what their metadata leave out."""

import json

import numpy as np
import pytest
import zarr

from volflow.errors import Damaged, InvalidInput
from volflow.report.facts.info import facts_of, facts_text
from volflow.store.volume import open_volume
from volflow.volumes.convert import convert


def voxels(shape=(6, 8, 10)):
    return np.random.default_rng(0).integers(0, 99, shape).astype("uint16")


def image(at, version="0.4", axes="zyx", shape=(6, 8, 10), path="0", **more):
    """An image as others write it: each axis with a type, spatial ones with a unit."""
    known = {"c": {"type": "channel"}, "t": {"type": "time", "unit": "second"}}
    space = {"type": "space", "unit": "micrometer"}
    steps = [{"type": "scale", "scale": [1.0] * len(axes)}]
    said = {
        "multiscales": [
            {
                "axes": [{"name": name} | known.get(name, space) for name in axes],
                "datasets": [{"path": path, "coordinateTransformations": steps}],
            }
        ]
    }
    group = zarr.create_group(at, zarr_format=2 if version == "0.4" else 3)
    sides = tuple(min(n, 4) for n in shape)
    keys = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}
    array = group.create_array(path, shape=shape, chunks=sides, dtype="uint16", **keys)
    array[...] = voxels(shape)
    group.attrs.update(
        said | more if version == "0.4" else {"ome": {"version": "0.5", **said, **more}}
    )
    return at


def collection(at, names, version="0.4", **said):
    """A group of images by these names."""
    group = zarr.create_group(at, zarr_format=2 if version == "0.4" else 3)
    group.attrs.update(said if version == "0.4" else {"ome": said})
    for name in names:
        image(at / name, version)
    return at


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("said", [{}, {"bioformats2raw.layout": 3}])
def test_the_one_image_of_a_collection_is_opened(tmp_path, version, said):
    path = collection(tmp_path / "a.zarr", ["0"], version, **said)
    collection(path / "OME", [], version, series=["0"])
    volume = open_volume(path)
    assert volume.path == str(path / "0")
    np.testing.assert_array_equal(volume[...], voxels())
    assert "micrometer" in json.dumps(facts_of(path))
    convert(path, tmp_path / "b.zarr", progress=False)
    np.testing.assert_array_equal(open_volume(tmp_path / "b.zarr")[...], voxels())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("layout", [True, False])
def test_of_several_images_one_is_asked_for(tmp_path, version, layout):
    said = {"bioformats2raw.layout": 3} if layout else {}
    path = collection(tmp_path / "a.zarr", ["0", "1", "10"], version, **said)
    collection(path / "OME", [], version, series=["0", "1"])
    there = r"there are 0, 1" if layout else r"there are 0, 1, 10"
    with pytest.raises(InvalidInput, match=rf"open one, as .*a\.zarr/0; {there}$"):
        open_volume(path)
    assert open_volume(path / "10").shape == (6, 8, 10)


def test_labels_are_listed_or_the_one_is_opened(tmp_path):
    path = image(tmp_path / "a.zarr")
    collection(path / "labels", ["nuclei", "cells"], labels=["nuclei", "cells"])
    with pytest.raises(
        InvalidInput, match=r"open one, as .*labels/nuclei; there are nuclei, cells"
    ):
        open_volume(path / "labels")
    collection(path / "other", ["nuclei"], labels=["nuclei", "lost", "../../a.zarr", "/", 3, ""])
    assert open_volume(path / "other").path == str(path / "other/nuclei")
    assert open_volume(path).path == str(path)


@pytest.mark.parametrize("labels", [3, None, {"a": 1}, [[]], ["x"] * 9999, [".."], ["\0"]])
def test_labels_that_are_none(tmp_path, labels):
    path = collection(tmp_path / "a.zarr", [], labels=labels)
    with pytest.raises(InvalidInput, match="is a Zarr group, but not an image"):
        open_volume(path)


@pytest.mark.parametrize(
    "name", ["../b.zarr/0", "/etc", "..", "../../../../etc", "0/../../b.zarr/0"]
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_points_outside_is_refused(tmp_path, version, name):
    image(tmp_path / "b.zarr", version)
    path = image(tmp_path / "a.zarr", version)
    file = path / (".zattrs" if version == "0.4" else "zarr.json")
    file.write_text(file.read_text().replace('"path": "0"', f'"path": "{name}"'))
    with pytest.raises(Damaged, match=r"level '.*' of .* cannot be opened"):
        open_volume(path)


@pytest.mark.parametrize("axes", ["tczyx", "tcyx", "tzyx", "czyx", "cyx", "yx"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_that_others_have(tmp_path, version, axes):
    sizes = dict(zip("tczyx", (2, 3, 6, 8, 10), strict=True))
    shape = tuple(sizes[axis] for axis in axes)
    path = image(tmp_path / "a.zarr", version, axes, shape, path="scale0/image")
    volume = open_volume(path, timepoint=1 if "t" in axes else None)
    stored = voxels(shape)[1] if "t" in axes else voxels(shape)
    assert volume.axes == (("c", "z", "y", "x") if "c" in axes else ("z", "y", "x"))
    np.testing.assert_array_equal(volume[...].reshape(stored.shape), stored)


@pytest.mark.parametrize(
    "omero",
    [None, {}, {"channels": None}, {"channels": [{}, {}, {}]}, {"channels": [{"label": "a"}]},
     {"channels": [{"color": "red"}] * 3}, {"channels": [{"label": None}] * 5}],
)  # fmt: skip
def test_channels_that_are_not_said(tmp_path, omero):
    path = image(tmp_path / "a.zarr", "0.5", "czyx", (3, 6, 8, 10), omero=omero)
    meta = open_volume(path).meta
    assert meta.channels in ((), ("a",))
    assert "czyx" in facts_text(facts_of(path))
    convert(path, tmp_path / "b.zarr", progress=False)
    open_volume(tmp_path / "b.zarr").xarray()


@pytest.mark.parametrize("unit", ["um", "µm", "Micrometer", "micrometers"])
def test_units_are_spelled_as_ngff_does(tmp_path, unit):
    path = image(tmp_path / "a.zarr")
    file = path / ".zattrs"
    file.write_text(file.read_text().replace('"unit": "micrometer"', f'"unit": "{unit}"', 1))
    assert open_volume(path).unit == "micrometer"
    file.write_text(file.read_text().replace('"unit"', '"unity"'))
    assert open_volume(path).unit is None
