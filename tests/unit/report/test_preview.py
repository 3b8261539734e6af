"""Previews: what they draw, what they refuse, what they leave unread."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.report.preview import preview, save
from volflow.store.create import create
from volflow.store.meta import Level, Meta
from volflow.store.ngff import write_group
from volflow.store.volume import Volume, open_volume

pytest.importorskip("matplotlib", reason="extra report")

SCAN = Meta(spacing=(2, 1, 1), unit="millimeter", orientation="SAR")


def store(path, array, meta):
    volume = create(path, array.shape, array.dtype, meta, chunk=16, shard=32)
    volume.write(Roi.full(volume.shape), array)
    return path


@pytest.fixture
def scan(tmp_path):
    z, y, x = np.ogrid[:20, :50, :60]
    return store(tmp_path / "scan.zarr", (z * 5.0 + y + x).astype("f4"), SCAN)


@pytest.fixture
def result(tmp_path):
    labels = np.zeros((20, 50, 60), "u1")
    labels[12:16, 10:30, 20:40] = 1
    labels[13:15, 15:20, 25:30] = 2
    meta = Meta(
        spacing=(2, 1, 1), unit="millimeter", orientation="SAR", kind="classes",
        channels=("background", "liver", "tumour"),
    )  # fmt: skip
    return store(tmp_path / "seg.zarr", labels, meta)


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return found


def test_classes_over_a_scan(result, scan):
    figure = preview(result, over=scan)
    assert [axes.get_label() for axes in figure.axes] == ["axial", "coronal", "sagittal"]
    said = texts(figure)
    assert "seg.zarr over scan.zarr" in said
    assert "20 × 50 × 60 voxels   ·   2 × 1 × 1 mm   ·   SAR   ·   uint8" in said
    assert {"liver", "tumour", "R", "L", "A", "P", "S", "I"} <= set(said)
    assert any(text.endswith(" mm") for text in said)
    axial = figure.axes[0]
    assert [len(axes.images) for axes in figure.axes] == [2, 2, 2]
    # The plane is that with most classes, and its voxels have their true aspect.
    assert int(axial.get_title(loc="left").split("= ")[1]) in (13, 14)
    sides = [axes.get_window_extent() for axes in figure.axes]
    assert sides[0].width / sides[0].height == pytest.approx(60 / 50, rel=1e-3)
    assert sides[1].width / sides[1].height == pytest.approx(60 / 40, rel=1e-3)
    assert sides[2].width / sides[0].width == pytest.approx(50 / 60, rel=1e-3)


def test_overlay_lies_on_its_voxels(result, scan):
    figure = preview(result, over=scan, at=(13, 17, 27))
    overlay = figure.axes[0].images[1].get_array()
    shown = np.flip(open_volume(result)[13], axis=(0, 1))  # SAR: down is P, right is L
    np.testing.assert_array_equal(overlay[..., 3] > 0, shown > 0)
    assert len({tuple(color) for color in overlay[shown == 2]}) == 1


def test_scores_of_one_channel_are_heat(scan, tmp_path):
    array = np.random.default_rng(0).random((1, 20, 50, 60), "f4")
    meta = Meta(("c", "z", "y", "x"), (2, 1, 1), "millimeter", channels=("lesion",))
    figure = preview(store(tmp_path / "p.zarr", array, meta), over=scan)
    assert len(figure.axes) == 4  # three planes and the scale of the heat
    assert any("lesion" in text for text in texts(figure))


def test_scores_of_several_channels_show_their_argmax(scan, tmp_path):
    array = np.zeros((3, 20, 50, 60), "f4")
    array[0] = 0.5
    array[2, :, 10:20] = 1
    meta = Meta(("c", "z", "y", "x"), (2, 1, 1), "millimeter", channels=("none", "a", "b"))
    path = store(tmp_path / "p.zarr", array, meta)
    said = texts(preview(path, over=scan))
    assert "b" in said
    assert "a" not in said
    assert len(preview(path, over=scan, channel=2).axes) == 4


def test_scaled_result_lies_over_its_scan(scan, tmp_path):
    half = np.ones((10, 25, 30), "u1")
    meta = Meta(spacing=(4, 2, 2), unit="millimeter", orientation="SAR", kind="classes")
    figure = preview(store(tmp_path / "h.zarr", half, meta), over=scan)
    first, second = figure.axes[0].images
    assert first.get_extent() == second.get_extent()


def test_labels_without_kind_count_as_classes_over_a_scan():
    labels = np.zeros((8, 9, 10), "i4")
    labels[2:5, 2:6, 3:7] = 3
    assert "class 3" in texts(preview(labels, over=np.random.default_rng(0).random((8, 9, 10))))
    assert "three" in texts(preview(labels, classes={3: "three"}))


def test_many_instances_are_counted_not_listed():
    labels = np.arange(20 * 20 * 20, dtype="i4").reshape(20, 20, 20)
    figure = preview(labels, over=np.zeros((20, 20, 20)), classes=["background"])
    assert any(text.endswith(" labels") for text in texts(figure))


def test_a_pyramid_is_searched_and_shown_at_fitting_levels(tmp_path, monkeypatch):
    monkeypatch.setattr("volflow.report.preview.COARSE", 16)
    monkeypatch.setattr("volflow.report.preview.LONGEST", 40)
    labels = np.zeros((64, 64, 64), "u1")
    labels[40:48, 8:16, 24:32] = 1
    path = store(tmp_path / "seg.zarr", labels, Meta(kind="classes"))
    group = zarr.open_group(path, mode="r+")
    levels = [Level("0", (1, 1, 1))]
    for n in (1, 2):
        step = 2**n
        group.create_array(str(n), data=labels[::step, ::step, ::step], chunks=(8, 8, 8))
        levels.append(Level(str(n), (step,) * 3, ((step - 1) / 2,) * 3))
    write_group(group, Meta(kind="classes"), levels)
    read = []
    original = Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, roi: read.append(self.level) or original(self, roi)
    )
    figure = preview(path, over=np.zeros((64, 64, 64), "f4"))
    assert read == [2] * 16 + [1] * 3  # sought at the coarsest, shown at the finest that fits
    assert 40 <= int(figure.axes[0].get_title(loc="left").split()[3]) < 48
    preview(path, over=path, level=2)


def test_only_three_planes_are_read(scan, monkeypatch):
    read = []
    original = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, roi: read.append(roi) or original(self, roi))
    preview(scan)
    assert sum(roi.size for roi in read) == 50 * 60 + 20 * 60 + 20 * 50


@pytest.mark.parametrize(
    "array",
    [
        np.full((6, 7, 8), np.nan),
        np.zeros((6, 7, 8), "u1"),
        np.full((6, 7, 8), np.inf, "f4"),
        np.array([[[-5, 2**62]] * 2] * 2),
        np.zeros((6, 7, 8), bool),
    ],
)
def test_odd_values_are_drawn(array, tmp_path):
    save(preview(array), tmp_path / "a.png")
    save(preview(array.astype("f8"), over=array), tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_single_slice_has_one_panel():
    assert [a.get_label() for a in preview(np.zeros((1, 30, 40))).axes] == ["xy"]


def test_thin_slab_stacks_its_side_views():
    boxes = [a.get_window_extent() for a in preview(np.zeros((4, 60, 60))).axes]
    assert boxes[1].x0 == pytest.approx(boxes[2].x0)
    assert boxes[1].y0 > boxes[2].y1


def test_notebooks_show_the_figure():
    assert preview(np.zeros((4, 5, 6)))._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"at": (9, 0, 0)}, r"inside \(4, 5, 6\), given \(9, 0, 0\)"),
        ({"at": "middle"}, '"center", "content" or a voxel .* given \'middle\''),
        ({"at": (1, 2)}, "a voxel z, y, x"),
        ({"channel": 1}, r"channel must be 0 … 0, given 1"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(InvalidInput, match=text):
        preview(np.zeros((4, 5, 6)), **options)


def test_unknown_picture_format_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"\.png, \.pdf, \.svg or \.jpg, given .*a\.zarr"):
        save(preview(np.zeros((4, 5, 6))), tmp_path / "a.zarr")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"the folder of .*gone/a\.png does not exist"):
        save(preview(np.zeros((4, 5, 6))), tmp_path / "gone" / "a.png")


def test_missing_matplotlib_names_the_extra(root):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, volflow as vf\n"
        "try:\n    vf.preview(np.zeros((4, 5, 6)))\n"
        "except vf.errors.InvalidInput as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert 'pip install "volflow[report]"' in done.stdout
