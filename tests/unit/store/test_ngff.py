"""OME-Zarr metadata: what we write others accept, what others write we understand."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Level, Meta, SourceInfo, VolumeSpec
from volflow.store.ngff import read_group, write_group
from volflow.store.volume import open_volume

AFFINE = ((-0.5, 0, 0, 10), (0, 0, -2, 20), (0, 1, 0, -30), (0, 0, 0, 1))
METAS = {
    "plain": Meta(),
    "oriented": Meta(spacing=(2, 1, 0.5), unit="millimeter", orientation="PSL", affine=AFFINE),
    "channels": Meta(("c", "z", "y", "x"), unit="micrometer", channels=("a", "b")),
    "colours": Meta(("c", "z", "y", "x"), channels=("a", "b"), colors=("FF0000", "0000FF")),
    "unnamed channels": Meta(("c", "z", "y", "x"), translation=(1, 2, 3)),
    "classes": Meta(kind="classes", colors=("000000", "00FF00")),
    "from a file": Meta(source=SourceInfo("nifti1", "int16", bytes(range(256)))),
}


def make(path, meta, dtype="uint8"):
    shape = (6, 7, 8) if len(meta.axes) == 3 else (2, 6, 7, 8)
    return create(path, VolumeSpec.of(shape, dtype, meta, chunk=4, shard=8))


def group_with(attributes, arrays=("0",), shape=(4, 4, 4)):
    group = zarr.create_group(zarr.storage.MemoryStore(), attributes=attributes)
    for name in arrays:
        group.create_array(name, shape=shape, dtype="u1")
    return group


def image(axes="zyx", scale=None, **more):
    scale = scale or [1.0] * len(axes)
    return {
        "axes": [{"name": a, "type": "space"} for a in axes],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        ],
        **more,
    }


@pytest.mark.parametrize("name", METAS)
def test_metadata_survive_writing_and_reading(tmp_path, name):
    volume = make(tmp_path / "a.zarr", METAS[name])
    assert volume.meta == METAS[name]
    assert open_volume(volume.path).meta == METAS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", METAS)
def test_what_we_write_is_valid(tmp_path, name):
    yaozarrs = pytest.importorskip("yaozarrs")
    models = pytest.importorskip("ome_zarr_models.v05")
    path = make(tmp_path / "a.zarr", METAS[name]).path
    yaozarrs.validate_zarr_store(path)
    group = zarr.open_group(path, mode="r")
    models.Image.from_zarr(group)
    if METAS[name].kind == "classes":
        assert models.ImageLabel.from_zarr(group).ome_attributes.image_label is not None


def test_validators_would_notice_a_level_that_is_missing(tmp_path):
    yaozarrs = pytest.importorskip("yaozarrs")
    path = make(tmp_path / "a.zarr", Meta()).path
    text = (Path(path) / "zarr.json").read_text()
    (Path(path) / "zarr.json").write_text(text.replace('"path": "0"', '"path": "1"'))
    with pytest.raises(ValueError, match="1"):
        yaozarrs.validate_zarr_store(path)


def test_orientation_is_spelled_as_rfc_4_does(tmp_path):
    path = make(tmp_path / "a.zarr", METAS["oriented"]).path
    ome = json.loads((Path(path) / "zarr.json").read_text())["attributes"]["ome"]
    assert [axis["orientation"] for axis in ome["multiscales"][0]["axes"]] == [
        {"type": "anatomical", "value": "anterior-to-posterior"},
        {"type": "anatomical", "value": "inferior-to-superior"},
        {"type": "anatomical", "value": "right-to-left"},
    ]


def test_tensorstore_reads_the_same_sum(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    volume = make(tmp_path / "a.zarr", METAS["channels"], "uint16")
    voxels = np.random.default_rng(0).integers(0, 60000, volume.shape).astype("uint16")
    volume.write(Roi.full(volume.shape), voxels)
    kvstore = {"driver": "file", "path": f"{volume.path}/0"}
    read = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
    assert read.sum(dtype="u8") == voxels.sum(dtype="u8")
    np.testing.assert_array_equal(read, voxels)


def test_levels_keep_foreign_attributes(tmp_path):
    path = make(tmp_path / "a.zarr", METAS["oriented"]).path
    group = zarr.open_group(path, mode="r+")
    group.update_attributes({"lab": "ours"})
    group.create_array("1", shape=(3, 3, 4), dtype="u1")
    coarse = METAS["oriented"].regrid((2, 2, 2))
    levels = [
        Level("0", METAS["oriented"].spacing),
        Level("1", coarse.spacing, coarse.translation),
    ]
    write_group(group, METAS["oriented"], levels)
    assert group.attrs["lab"] == "ours"
    assert read_group(zarr.open_group(path, mode="r")) == (METAS["oriented"], tuple(levels))
    assert open_volume(path, level=1).meta == coarse


def test_a_coarser_grid_keeps_its_place_in_the_world():
    fine = METAS["oriented"]
    coarse = fine.regrid((2, 4, 1))
    # The centre of the coarse voxel (z, y, x) = (0, 0, 0) is that of the fine (0.5, 1.5, 0).
    centre = np.array(fine.affine) @ [0, 1.5, 0.5, 1]
    np.testing.assert_allclose(np.array(coarse.affine) @ [0, 0, 0, 1], centre)
    np.testing.assert_allclose(
        np.linalg.norm(np.array(coarse.affine)[:3, :3], axis=0), coarse.spacing[::-1]
    )
    assert coarse.translation == (1.0, 1.5, 0.0)


@pytest.mark.parametrize(
    ("steps", "outer", "spacing", "translation"),
    [
        ([{"type": "scale", "scale": [4, 2, 1]}], None, (4, 2, 1), (0, 0, 0)),
        (
            [
                {"type": "scale", "scale": [4, 2, 1]},
                {"type": "translation", "translation": [1, 2, 3]},
            ],
            [
                {"type": "scale", "scale": [0.5, 0.5, 0.5]},
                {"type": "translation", "translation": [10, 10, 10]},
            ],
            (2, 1, 0.5),
            (10.5, 11, 11.5),
        ),
        ([{"type": "identity"}], None, (1, 1, 1), (0, 0, 0)),
    ],
)
def test_transformations_of_level_and_image_combine(steps, outer, spacing, translation):
    multiscale = image()
    multiscale["datasets"][0]["coordinateTransformations"] = steps
    if outer:
        multiscale["coordinateTransformations"] = outer
    meta, _ = read_group(group_with({"ome": {"multiscales": [multiscale]}}))
    assert (meta.spacing, meta.translation) == (spacing, translation)


@pytest.mark.parametrize("root", ["0.4", "0.5"])
def test_versions_may_be_missing(root):
    multiscales = {"multiscales": [image(scale=[3, 2, 1])]}
    meta, levels = read_group(group_with(multiscales if root == "0.4" else {"ome": multiscales}))
    assert meta.spacing == (3, 2, 1)
    assert [level.path for level in levels] == ["0"]


BROKEN = {
    "no axes": ({"datasets": []}, "before 0.4"),
    "order": (image("xyz"), "axes must be"),
    "no scale": (image() | {"datasets": [{"path": "0"}]}, "no coordinateTransformations"),
    "short scale": (image(scale=[1.0, 1.0]), "one entry for each of 3 axes"),
    "zero scale": (image(scale=[0.0, 1.0, 1.0]), "spacing must be positive"),
    "no datasets": (image() | {"datasets": []}, "damaged OME-Zarr metadata"),
    "datasets a text": (image() | {"datasets": "0"}, "damaged OME-Zarr metadata"),
    "axes numbers": (image() | {"axes": [1, 2, 3]}, "damaged OME-Zarr metadata"),
    "rotation": (
        image() | {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]},
        "not scale or translation",
    ),
    "units": (
        image() | {"axes": [{"name": a, "unit": u} for a, u in zip("zyx", "mmk", strict=True)]},
        "different units",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_are_refused_in_one_line(name):
    multiscale, message = BROKEN[name]
    with pytest.raises(InvalidInput, match=message) as caught:
        read_group(group_with({"ome": {"multiscales": [multiscale]}}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "attributes", [{}, {"ome": 3}, {"ome": {}}, {"multiscales": []}, {"ome": {"plate": {}}}]
)
def test_a_group_that_is_no_image_is_refused(attributes):
    with pytest.raises(InvalidInput, match="not an image"):
        read_group(group_with(attributes))


@pytest.mark.parametrize(
    "fields",
    [
        {"axes": ("x", "y", "z")},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, float("nan"), 1)},
        {"spacing": (1, 1)},
        {"orientation": "RRA"},
        {"orientation": "RAX"},
        {"affine": ((1, 0), (0, 1))},
        {"kind": "labels"},
        {"colors": ("red",)},
    ],
)
def test_malformed_fields_are_refused(fields):
    with pytest.raises(InvalidInput):
        Meta(**fields)


def test_into_a_v2_group_the_older_version_is_written():
    group = zarr.create_group(zarr.storage.MemoryStore(), zarr_format=2)
    group.create_array("0", shape=(4, 4, 4), dtype="u1")
    write_group(group, Meta(kind="classes"), [Level("0", (1, 1, 1))])
    said = group.attrs.asdict()
    assert said["multiscales"][0]["version"] == said["image-label"]["version"] == "0.4"
    assert "ome" not in said
    assert read_group(group)[0].kind == "classes"


def test_a_lone_level_of_other_software(shared_data):
    volume = open_volume(shared_data("omezarr_v05_idr0062") / "6001240_labels_v0.5.zarr")
    assert volume.shape == (2, 236, 68, 67)
    assert volume.meta.channels == ("LaminB1", "Dapi")
    assert volume.unit == "micrometer"
    assert volume.spacing == pytest.approx((0.5002, 1.4416, 1.4416), abs=1e-4)
    assert [level.path for level in volume.levels] == ["2"]


def test_a_label_image_and_its_levels(shared_data):
    path = shared_data("omezarr_v05_idr0062") / "6001240_labels_v0.5.zarr" / "labels" / "0"
    labels = open_volume(path)
    assert labels.meta.kind == "classes"
    assert labels.shape == (1, 236, 275, 271)
    assert labels[...].max() == 61
    coarse = open_volume(path, level=3)
    assert coarse.shape == (1, 236, 34, 33)
    assert coarse.spacing[2] == pytest.approx(8 * labels.spacing[2])
    with pytest.raises(InvalidInput, match="level must be 0 to 3, given 4"):
        open_volume(path, level=4)
