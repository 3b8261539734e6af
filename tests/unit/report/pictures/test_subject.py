"""Subjects of pictures: their levels, their boxes, whether they are classes."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.views import views
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.subject import (
    Subject,
    few_values,
    open_subject,
    open_together,
    same_box,
)
from volflow.store.formats.sources import ArraySource
from volflow.store.meta import Level, Meta
from volflow.store.ngff import write_group
from volflow.store.volume import open_volume


def subject(shape, name="a", dtype="f8", channel=0, **meta):
    axes = ("c", "z", "y", "x")[-len(shape) :]
    source = ArraySource(np.zeros(shape, dtype), Meta(axes, **meta))
    return Subject(name, source, source, channel)


def pyramid(path, shape=(40, 40, 40), count=3, spacing=(1.0, 1.0, 1.0)):
    group = zarr.create_group(path)
    levels = []
    for n in range(count):
        sizes = [-(-size // 2**n) for size in shape]
        group.create_array(str(n), data=np.full(sizes, n, "f4"), chunks=(8, 8, 8))
        scale = tuple(s * 2**n for s in spacing)
        levels.append(
            Level(str(n), scale, tuple((a - b) / 2 for a, b in zip(scale, spacing, strict=True)))
        )
    write_group(group, Meta(spacing=spacing, unit="millimeter"), levels)
    return path


@pytest.mark.parametrize(
    ("meta", "shape", "text"),
    [
        ({"spacing": (2, 1, 1)}, (4, 5, 6), "a and b must cover the same box .* 8 × 5 × 6"),
        ({"orientation": "SAR"}, (4, 5, 6), "same orientation .* SAR and SPL"),
        ({"unit": "micrometer"}, (4, 5, 6), "same unit .* micrometer and millimeter"),
    ],
)
def test_volumes_of_different_boxes_are_refused(meta, shape, text):
    scan = subject((4, 5, 6), "b", unit="millimeter", orientation="SPL")
    with pytest.raises(InvalidInput, match=text):
        same_box(subject(shape, **meta), scan)


def test_half_size_result_covers_the_same_box():
    same_box(subject((3, 3, 3), spacing=(2, 2, 2)), subject((5, 5, 5), "b"))


def test_levels_that_fit_and_levels_alike(tmp_path):
    scan = open_subject(pyramid(tmp_path / "scan.zarr"))
    result = open_subject(pyramid(tmp_path / "half.zarr", (20, 20, 20), 2, (2.0, 2.0, 2.0)))
    assert scan.at_level(None, 40).level.level == 0
    assert scan.at_level(None, 39).level.level == 1
    assert scan.at_level(2, 40).level.level == 2
    for level, like in ((0, 1), (1, 2)):
        assert scan.like(result.at_level(level, 99)).level.level == like
    assert result.like(scan.at_level(2, 99)).level.level == 1
    array = subject((3, 3, 3))
    assert array.like(scan).level is array.finest  # it has one level
    with pytest.raises(InvalidInput, match="a has no levels, given level 1; leave it out"):
        array.at_level(1, 99)
    with pytest.raises(InvalidInput, match="level must be 0 to 2, given 7"):
        scan.at_level(7, 99)


def test_what_is_shown_is_said(tmp_path):
    scan = open_subject(pyramid(tmp_path / "scan.zarr"))
    assert scan.at_level(0, 99).shown() == "level 0"
    assert scan.at_level(2, 99).shown() == "level 2, 4 × 4 × 4 mm"
    assert scan.at_level(0, 20).shown(average=True) == "level 0, mean of 2 × 2 × 2 voxels"
    assert subject((3, 50, 50)).at_level(None, 20).shown() == "one of 1 × 3 × 3 voxels"
    assert subject((3, 50, 50)).at_level(None, 99).shown() == ""


def test_pictures_of_a_level_lie_where_its_voxels_do(tmp_path):
    """Of a pyramid whose levels share the centre of their first voxel, not its edge."""
    path = pyramid(tmp_path / "a.zarr")
    group = zarr.open_group(path, mode="r+")
    ome = group.attrs["ome"]
    for dataset in ome["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"] = dataset["coordinateTransformations"][:1]
    group.attrs["ome"] = ome
    scan = open_subject(path)
    (one,) = scan.at_level(2, 99).cut([scan.slice(views(None)[0], 20)])
    assert one.extent == (-1.5, 38.5, 38.5, -1.5)


def test_classes_are_told_from_images():
    few, many = (Cut(np.arange(n).reshape(1, n), (0, n, 1, 0)) for n in (32, 33))
    assert few_values([few, few])
    assert not few_values([few, many])
    labels = subject((2, 2, 2), dtype="u1")
    assert labels.whole
    assert not labels.named_classes(None)
    assert labels.named_classes(["a", "b"])
    assert subject((2, 2, 2), kind="classes").named_classes(None)
    assert not subject((2, 2, 2)).whole  # floats are scores
    assert subject((3, 2, 2, 2), channel=None).named_classes(None)
    assert not subject((3, 2, 2, 2), channel=1).named_classes(None)


def test_channels_are_chosen_or_merged():
    scores = np.zeros((3, 2, 4, 5), "f4")
    assert open_subject(scores).channel == 0
    assert open_subject(scores, merge=True).channel is None
    assert open_subject(scores, 2, merge=True).channel == 2
    assert open_subject(scores[0], merge=True).channel == 0
    for channel in (3, -1):
        with pytest.raises(InvalidInput, match=f"channel must be 0 … 2, given {channel}"):
            open_subject(scores, channel)


def test_content_is_sought_at_the_coarsest_useful_level(tmp_path, monkeypatch):
    import volflow.report.pictures.subject as module

    scan = open_subject(pyramid(tmp_path / "scan.zarr"))
    for useful, level in ((1, 2), (11, 1), (20, 1), (40, 0), (99, 0)):
        monkeypatch.setattr(module, "COARSE", useful)
        assert np.unique(scan.scan()) == [level]


def test_names(tmp_path):
    scan = pyramid(tmp_path / "scan.zarr")
    assert open_subject(scan).name == "scan.zarr"
    assert open_subject(f"{scan}/").name == "scan.zarr"
    assert open_subject(open_volume(scan)).name == "scan.zarr"
    assert open_subject(np.zeros((2, 2, 2))).name == "array"
    assert open_subject(zarr.ones(shape=(2, 2, 2))).name == "volume"


def test_equal_names_are_with_distinct_names_by_their_folders(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    a, b = (pyramid(tmp_path / name / "1.zarr") for name in ("images", "labels"))
    for volumes, over, names in (
        ([a], b, ["images/1.zarr", "labels/1.zarr"]),
        ([b, a], None, ["labels/1.zarr", "images/1.zarr"]),
        ([a, a], a, ["1.zarr", "1.zarr", "1.zarr"]),
        ([a], np.zeros((40, 40, 40)), ["1.zarr", "array"]),
    ):
        opened, under = open_together(volumes, over, None)
        assert [one.name for one in filter(None, (*opened, under))] == names
