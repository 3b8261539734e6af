"""Previews: what they draw, what they refuse, what they leave unread."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import volflow.report.pictures.preview as preview_module
import volflow.report.pictures.subject as subject_module
import volflow.report.planes as planes_module
from volflow.errors import InvalidInput
from volflow.report.colors import class_color
from volflow.report.pictures.compare import compare
from volflow.report.pictures.page import fitted, text_width
from volflow.report.pictures.preview import contact_sheet, preview, save
from volflow.store.meta import Meta
from volflow.store.volume import open_volume

pytest.importorskip("matplotlib", reason="extra report")


@pytest.mark.slow
def test_classes_over_a_scan(result, scan, words):
    figure = preview(result, over=scan)
    assert [axes.get_label() for axes in figure.axes] == ["axial", "coronal", "sagittal"]
    said = words(figure)
    assert "seg.zarr over scan.zarr" in said
    assert "20 × 50 × 60 voxels   ·   2 × 1 × 1 mm   ·   SAR   ·   uint8" in said
    assert {"liver", "tumour", "R", "L", "A", "P", "S", "I"} <= set(said)
    assert any(text.endswith(" mm") for text in said)
    assert [len(axes.images) for axes in figure.axes] == [2, 2, 2]
    # The plane is that with most classes, and its voxels have their true aspect.
    assert figure.facts["planes"][0]["index"] in (13, 14)
    assert f"axial   z = {figure.facts['planes'][0]['index']}" in said
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


def test_scores_of_one_channel_are_heat(scan, stored, words):
    array = np.random.default_rng(0).random((1, 20, 50, 60), "f4")
    meta = Meta(("c", "z", "y", "x"), (2, 1, 1), "millimeter", channels=("lesion",))
    figure = preview(stored(array, meta), over=scan)
    assert len(figure.axes) == 4  # three planes and the scale of the heat
    assert any(text.endswith("1   lesion") for text in words(figure))


def test_scores_of_several_channels_show_their_argmax(scan, stored, words):
    array = np.zeros((3, 20, 50, 60), "f4")
    array[0] = 0.5
    array[2, :, 10:20] = 1
    meta = Meta(("c", "z", "y", "x"), (2, 1, 1), "millimeter", channels=("none", "a", "b"))
    path = stored(array, meta)
    said = words(preview(path, over=scan))
    assert "b" in said
    assert "a" not in said
    assert len(preview(path, over=scan, channel=2).axes) == 4


def test_scaled_result_lies_over_its_scan(scan, stored):
    half = np.ones((10, 25, 30), "u1")
    meta = Meta(spacing=(4, 2, 2), unit="millimeter", orientation="SAR", kind="classes")
    figure = preview(stored(half, meta), over=scan)
    first, second = figure.axes[0].images
    assert first.get_extent() == second.get_extent()


def test_a_result_on_a_coarser_grid_is_not_squeezed(stored):
    """15 voxels of 4 mm reach beyond the 59 of 1 mm that they cover."""
    labels = np.ones((10, 13, 15), "u1")
    meta = Meta(spacing=(4, 4, 4), unit="millimeter", kind="classes")
    figure = preview(stored(labels, meta), over=np.zeros((40, 52, 59)))
    first, second = figure.axes[0].images
    assert tuple(first.get_extent()) == (0, 59, 52, 0)
    assert tuple(second.get_extent()) == (0, 60, 52, 0)


def test_labels_without_kind_count_as_classes_over_a_scan(words):
    labels = np.zeros((8, 9, 10), "i4")
    labels[2:5, 2:6, 3:7] = 3
    assert "class 3" in words(preview(labels, over=np.random.default_rng(0).random((8, 9, 10))))
    assert "three" in words(preview(labels, classes={3: "three"}))


def test_of_many_instances_few_are_listed_and_the_rest_counted(words):
    labels = np.arange(20 * 20 * 20, dtype="i4").reshape(20, 20, 20)
    figure = preview(labels, over=np.zeros((20, 20, 20)), classes=["background"])
    told = words(figure)
    assert sum(text.startswith("class ") for text in told) == 32
    assert "and 1109 more" in told


@pytest.mark.slow
def test_a_legend_of_long_names_stays_on_the_page(words):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    labels = np.arange(1, 18**3 + 1, dtype="i4").reshape(18, 18, 18) % 117
    names = [f"structure with quite a long name on the left side {n}" for n in range(117)]
    for figure in (
        preview(labels, classes=names),
        contact_sheet(labels, classes=names, tiles=6),
        compare(labels, labels + (labels == 5), classes=names),
    ):
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in figure.texts:
            box = text.get_window_extent(renderer)
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            assert box.y1 <= figure.bbox.y1


def labels_at(z, y, x, side=64):
    labels = np.zeros((side,) * 3, "u1")
    labels[z : z + 8, y : y + 8, x : x + 8] = 1
    return labels


def test_a_pyramid_is_searched_and_shown_at_fitting_levels(pyramid, monkeypatch, reads, words):
    monkeypatch.setattr(subject_module, "COARSE", 16)
    monkeypatch.setattr(preview_module, "LONGEST", 40)
    path = pyramid(labels_at(40, 8, 24), Meta(kind="classes", unit="millimeter"))
    figure = preview(path, over=np.zeros((64, 64, 64), "f4"))
    # Sought at the coarsest: 16 planes in two layers of chunks; shown at the finest that fits.
    assert [level for level, _ in reads] == [2] * 2 + [1] * 3
    assert sum(box.size for level, box in reads if level == 1) == 3 * 32 * 32
    assert 40 <= figure.facts["planes"][0]["index"] < 48
    assert figure.facts["level"] == 1
    told = "shown: level 1, 2 × 2 × 2 mm; array mean of 2 × 2 × 2 voxels"
    assert any(text.endswith(told) for text in words(figure))


@pytest.mark.slow
def test_scan_and_result_each_have_their_level(pyramid, stored, monkeypatch, reads):
    """A scan with three levels under a result of half its resolution with two, or with none."""
    monkeypatch.setattr(preview_module, "LONGEST", 16)
    scan = pyramid(np.random.default_rng(0).random((64, 64, 64), "f4"), Meta(), "scan.zarr")
    half = Meta(spacing=(2, 2, 2), translation=(0.5, 0.5, 0.5), kind="classes")
    result = pyramid(labels_at(0, 0, 0, 32), half, "half.zarr", count=2)
    plain = stored(labels_at(0, 0, 0), Meta(kind="classes"), "plain.zarr", chunk=8)

    def seen(path, **options):
        reads.clear()
        figure = preview(path, over=scan, at="center", **options)
        assert {axes.images[1].get_array().shape[0] for axes in figure.axes} == {
            axes.images[1].get_array().shape[1] for axes in figure.axes
        }
        return {level: max(box.shape) for level, box in reads}

    assert seen(result) == {1: 16, 2: 16}  # the result's, the scan's
    assert seen(plain) == {0: 64, 2: 16}
    # The scan follows the result to the level of like voxels.
    assert seen(result, level=0) == {0: 32, 1: 32}
    assert seen(result, level=1) == {1: 16, 2: 16}


@pytest.mark.slow
def test_a_large_volume_without_levels_is_thinned_while_it_is_read(
    stored, monkeypatch, reads, words
):
    monkeypatch.setattr(preview_module, "LONGEST", 20)
    monkeypatch.setattr(planes_module, "PIECE_VOXELS", 4 * 8 * 8)
    rows = np.arange(96, dtype="f4")[:, None] * np.ones((16, 96, 96), "f4")
    figure = preview(stored(rows, Meta(), chunk=8))
    assert max(box.size for _, box in reads) <= 4 * 8 * 8
    assert any(text.endswith("shown: mean of 1 × 5 × 5 voxels") for text in words(figure))
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (20, 20, 4)
    assert tuple(image.get_extent()) == (0, 100, 100, 0)  # the last pixel reaches over the edge
    assert figure.axes[0].get_xlim() == (0, 96)

    labels = (np.indices((16, 96, 96)).sum(axis=0) % 2 * 7).astype("u1")
    figure = preview(stored(labels, Meta(kind="classes"), "labels.zarr", chunk=8))
    assert any(text.endswith("shown: one of 1 × 5 × 5 voxels") for text in words(figure))
    colors = np.unique(figure.axes[0].images[0].get_array().reshape(-1, 4), axis=0)
    want = tuple(bytes.fromhex(class_color(7)[1:]))
    assert [tuple(color[:3]) for color in colors] == [(0, 0, 0), want]  # nothing in between


def test_only_three_planes_are_read(scan, reads):
    preview(scan)
    assert sum(box.size for _, box in reads) == 50 * 60 + 20 * 60 + 20 * 50


def test_classes_are_drawn_without_interpolation(result, scan):
    figure = preview(result, over=scan)
    for axes in figure.axes:
        assert [image.get_interpolation() for image in axes.images] == ["bicubic", "nearest"]


def test_names_are_not_mathematics(tmp_path, stored, words):
    r"""Nor do they break the page: $\frac$ is a name like others, so is half a sign."""
    name = "\udcff$\\frac{$ <b>" + "long" * 60 + ".zarr"
    labels = np.ones((4, 5, 6), "u1")
    path = stored(labels, Meta(kind="classes"))
    figure = preview(path, classes={1: "$_$ two\nlines" + "x" * 200})
    save(figure, tmp_path / "a.png", 40)
    assert any(text.startswith("$_$ two lines") and "…" in text for text in words(figure))
    wide = figure.get_size_inches()[0]
    assert text_width(fitted(name, 3, 14), 14) <= 3
    for text in figure.texts:
        assert "\n" not in text.get_text()
        assert text.get_window_extent().x1 <= wide * figure.dpi


def test_a_long_legend_wraps_below_the_panels(words):
    labels = np.arange(31, dtype="u1")[:, None, None] * np.ones((31, 40, 31), "u1")
    labels = labels.transpose(1, 0, 2)
    names = [f"a class with a rather long name, {n}" for n in range(31)]
    figure = preview(labels, classes=names)
    listed = [text for text in figure.texts if text.get_text().startswith("a class")]
    assert [text.get_text() for text in listed] == names[1:]
    lowest = min(axes.get_window_extent().y0 for axes in figure.axes)
    boxes = [text.get_window_extent() for text in listed]
    assert max(box.y1 for box in boxes) < lowest
    assert min(box.y0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) < figure.get_size_inches()[0] * figure.dpi


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("window", "low", "high"), [((-160, 240), -160, 240), ("Soft-Tissue", -150, 250)]
)
def test_a_window_says_what_is_black_and_white(window, low, high):
    hounsfield = np.broadcast_to(np.linspace(-1000, 1000, 401), (3, 3, 401))
    mask = np.ones(hounsfield.shape, "u1")
    for figure, white in ((preview(hounsfield, window=window), 255),
                          (preview(mask, hounsfield, window=window), 204)):  # fmt: skip
        shown = figure.axes[0].images[0].get_array()[1, :, 0]
        np.testing.assert_array_equal(shown == 0, hounsfield[0, 0] <= low + (high - low) / white)
        np.testing.assert_array_equal(shown == white, hounsfield[0, 0] >= high)


def test_single_slice_has_one_panel():
    assert [a.get_label() for a in preview(np.zeros((1, 30, 40))).axes] == ["xy"]


def test_thin_slab_stacks_its_side_views():
    boxes = [a.get_window_extent() for a in preview(np.zeros((4, 60, 60))).axes]
    assert boxes[1].x0 == pytest.approx(boxes[2].x0)
    assert boxes[1].y0 > boxes[2].y1


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 1, 1)])
def test_what_has_no_plane_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"no plane of it is more than a line; there is nothing"):
        preview(np.ones(shape))


def test_positions_may_be_numpys():
    planes = preview(np.ones((4, 5, 6)), at=np.array([1, 2, 3])).facts["planes"]
    assert [plane["index"] for plane in planes] == [1, 2, 3]


def test_signs_that_no_font_has_are_boxes_without_a_warning(tmp_path):
    labels = np.ones((4, 5, 6), "u1")
    save(preview(labels, classes=["", "肝臓 🧠"]), tmp_path / "a.png", 40)


def test_a_legend_of_several_rows_has_columns():
    labels = np.arange(1, 21, dtype="u1")[:, None, None] * np.ones((20, 20, 20), "u1")
    names = ["", *("a long name of a class" + "a" * (n % 7) for n in range(20))]
    figure = preview(labels.transpose(1, 0, 2), classes=names)
    listed = [text for text in figure.texts if text.get_text().startswith("a long name")]
    places = [text.get_position() for text in listed]
    lefts, rows = ({round(place[n], 6) for place in places} for n in (0, 1))
    assert len(rows) > 1
    assert len(lefts) == -(-20 // len(rows))


def test_notebooks_show_the_figure():
    assert preview(np.zeros((4, 5, 6)))._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"at": (9, 0, 0)}, r"inside \(4, 5, 6\), given \(9, 0, 0\)"),
        ({"at": "middle"}, '"center", "content" or a voxel .* given \'middle\''),
        ({"at": (1, 2)}, "a voxel z, y, x"),
        ({"channel": 1}, r"channel must be 0 … 0, given 1"),
        ({"level": 1}, r"array has no levels, given level 1"),
        ({"window": (40, 40)}, r"the lower first, or the name .* given \(40, 40\); such as"),
        ({"window": (0, np.inf)}, "window must be two numbers"),
        ({"window": "lng"}, "window 'lng' is neither two numbers nor a name; did you mean 'lung'"),
        ({"window": 7}, "window must be two numbers, shown black and white"),
        ({"percentiles": (99, 1)}, r"two numbers from 0 to 100, the lower first, given \(99, 1\)"),
        ({"at": (1.5, 2, 3)}, r"a voxel z, y, x inside \(4, 5, 6\), given \(1.5, 2, 3\)"),
        ({"at": 0}, r"a voxel z, y, x inside \(4, 5, 6\), given 0"),
        ({"at": ()}, r"a voxel z, y, x inside \(4, 5, 6\), given \(\)"),
        ({"channel": "a"}, r"channel must be 0 … 0, given 'a'"),
        ({"level": "a"}, r"level must be a whole number, given 'a'"),
        ({"classes": "liver"}, r"classes must be names .* given 'liver'; such as"),
        ({"classes": {1: 2}}, r"classes must be names .* given \{1: 2\}; such as"),
        ({"percentiles": 5}, r"two numbers from 0 to 100, the lower first, given 5"),
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


@pytest.mark.slow
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
