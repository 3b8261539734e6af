"""The script for napari: it compiles, and what it hands over is what lies on disk, in its place."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput
from volflow.report.colors import class_color
from volflow.store.meta import Level
from volflow.store.ngff import write_group

NAMES = ("background", "liver", "tumour")


@pytest.fixture
def scan(tmp_path):
    array = np.random.default_rng(0).random((20, 40, 50), dtype="f4")
    meta = {"spacing": (2.5, 0.8, 0.8), "translation": (10.0, 0, -4), "unit": "millimeter"}
    return store(tmp_path / "scan.zarr", array, orientation="SAR", **meta)


@pytest.fixture
def opened(monkeypatch):
    """Runs a script with a napari that only writes down what it is asked."""

    class Viewer:
        def __init__(self):
            self.calls, self.camera = [], SimpleNamespace()

        def add_image(self, data, **options):
            self.calls.append(("image", data, options))

        def add_labels(self, data, **options):
            self.calls.append(("labels", data, options))

    def colormap(**options):
        return options["color_dict"]

    utils = SimpleNamespace(DirectLabelColormap=colormap, Colormap=list)
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(Viewer=Viewer, utils=utils))

    def run(*paths):
        names = {"__name__": "script"}
        exec(compile(vf.napari_snippet(*paths), "script.py", "exec"), names)
        return names["viewer"]

    return run


def test_a_scan_is_handed_over_in_its_place(scan, opened):
    viewer = opened(scan)
    ((kind, data, options),) = viewer.calls
    assert kind == "image"
    np.testing.assert_array_equal(data.compute(), vf.open(scan)[:])
    assert options["scale"] == (2.5, 0.8, 0.8)
    assert options["translate"] == (10, 0, -4)
    assert options["units"] == ("millimeter",) * 3
    assert (options["name"], options["colormap"]) == ("scan", "gray")
    assert 0 <= options["contrast_limits"][0] < options["contrast_limits"][1] <= 1
    assert viewer.camera.orientation == ("towards", "up", "right")


def test_a_result_on_another_grid_lies_over_it(scan, opened, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (10, 20, 25)).astype("u1")
    meta = {"spacing": (5000.0, 1600, 1600), "unit": "micrometer", "kind": "classes"}
    path = store(tmp_path / "seg.zarr", labels, channels=NAMES, translation=(1250, 0, 0), **meta)
    kind, data, options = opened(scan, path).calls[1]
    assert kind == "labels"
    np.testing.assert_array_equal(data.compute(), labels)
    assert options["scale"] == pytest.approx((5, 1.6, 1.6))  # in the unit of the scan
    assert options["translate"] == pytest.approx((1.25, 0, 0))
    assert options["units"] == ("millimeter",) * 3
    colors = {None: "gray", 0: "transparent", 1: class_color(1), 2: class_color(2)}
    assert options["colormap"] == colors
    assert options["features"] == {"index": [0, 1, 2], "class": list(NAMES)}


def test_scores_are_a_layer_per_channel(scan, opened, tmp_path):
    scores = np.random.default_rng(0).random((3, 20, 40, 50), dtype="f4")
    path = store(tmp_path / "p.zarr", scores, channels=NAMES, unit="millimeter")
    calls = opened(scan, path).calls[1:]
    assert [options["name"] for _, _, options in calls] == [f"p: {name}" for name in NAMES]
    assert [options.get("visible", True) for _, _, options in calls] == [False, True, True]
    for number, (kind, data, options) in enumerate(calls):
        assert kind == "image"
        np.testing.assert_array_equal(data.compute(), scores[number])
        assert options["colormap"] == [class_color(number) + alpha for alpha in ("00", "FF")]


def test_every_level_of_a_pyramid_is_handed_over(opened, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (32, 32, 32)).astype("u1")
    path = store(tmp_path / "a.zarr", array)
    group = zarr.open_group(path)
    group.create_array("1", data=array[::2, ::2, ::2], chunks=(16, 16, 16))
    volume = vf.open(path)
    write_group(group, volume.meta, (volume.levels[0], Level("1", (2, 2, 2), (0.5, 0.5, 0.5))))
    ((_, data, options),) = opened(path).calls
    assert options["multiscale"] is True
    assert [level.shape for level in data] == [(32, 32, 32), (16, 16, 16)]
    np.testing.assert_array_equal(data[1].compute(), array[::2, ::2, ::2])


def test_what_neuroglancer_cannot_show_is_no_matter(opened, tmp_path):
    for dtype in ("f8", "f2", "bool", "i8"):
        zarr.create_array(tmp_path / f"{dtype}.zarr", data=np.eye(3, dtype=dtype)[None])
    paths = [str(tmp_path / f"{dtype}.zarr") for dtype in ("f8", "f2", "bool", "i8")]
    kinds = [kind for kind, _, _ in opened(*paths).calls]
    assert kinds == ["image", "image", "labels", "labels"]


def test_a_timepoint_is_opened_again(opened, tmp_path):
    array = np.arange(3 * 8).reshape(3, 2, 2, 2).astype("u1")
    zarr.create_array(tmp_path / "a.zarr", data=array, dimension_names=["t", "z", "y", "x"])
    ((_, data, _),) = opened(vf.open(tmp_path / "a.zarr", timepoint=2)).calls
    np.testing.assert_array_equal(data.compute(), array[2])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ("SAR", ("towards", "up", "right")),
        ("SAL", ("towards", "up", "left")),  # mirrored voxels are mirrored back
        ("SPL", ("towards", "down", "left")),
        ("LSP", ("towards", "up", "right")),
        ("PIR", ("towards", "down", "right")),
    ],
)
def test_the_head_is_up_and_nothing_is_mirrored(opened, tmp_path, orientation, turned):
    path = store(tmp_path / "a.zarr", np.ones((2, 2, 2), "u1"), orientation=orientation)
    viewer = opened(path)
    assert viewer.camera.orientation == turned
    # Axes of the patient on the screen (right, up, towards) form a right hand.
    x, y = (1 if turned[2] == "right" else -1), (1 if turned[1] == "up" else -1)
    screen = {"z": (0, 0, 1), "y": (0, y, 0), "x": (x, 0, 0)}
    seen = {}
    for axis, letter in zip("zyx", orientation, strict=True):
        sign = 1 if letter in "RAS" else -1
        seen["RAS"["RLAPSI".index(letter) // 2]] = sign * np.array(screen[axis])
    np.testing.assert_array_equal(np.cross(seen["R"], seen["A"]), seen["S"])


def test_odd_names_do_not_break_the_script(opened, tmp_path):
    folder = tmp_path / 'it\'s "odd"\n#\\'
    folder.mkdir()
    path = store(folder / "a'\n\"b.zarr", np.ones((2, 2, 2), "u1"))
    ((_, data, options),) = opened(path).calls
    assert options["name"] == "a'\n\"b"
    assert data.shape == (2, 2, 2)


def test_refused_like_every_view(tmp_path):
    with pytest.raises(InvalidInput, match="there is no volume to view"):
        vf.napari_snippet()
    with pytest.raises(InvalidInput, match=r"gone\.zarr does not exist"):
        vf.napari_snippet(tmp_path / "gone.zarr")


@pytest.mark.slow
def test_writing_it_needs_neither_napari_nor_dask(scan):
    code = (
        f"import sys, volflow as vf; vf.napari_snippet({scan!r});"
        "print([name for name in ('napari', 'dask', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
