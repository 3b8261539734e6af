"""Contact sheets: which planes, from which level, in one scale, one window, one set of colours."""

from __future__ import annotations

import numpy as np
import pytest

import volflow.report.pictures.preview as preview_module
import volflow.report.planes as planes_module
from volflow.errors import InvalidInput
from volflow.report.colors import class_color
from volflow.report.pictures.preview import contact_sheet
from volflow.store.meta import Meta
from volflow.store.volume import open_volume

pytest.importorskip("matplotlib", reason="extra report")

AIL = Meta(spacing=(1, 2, 1), unit="millimeter", orientation="AIL")


def indices(figure):
    return [plane["index"] for plane in figure.facts["planes"]]


def test_planes_are_evenly_spaced_and_labelled(result, scan, words):
    figure = contact_sheet(result, scan, tiles=5)
    assert indices(figure) == [2, 6, 10, 14, 18]
    said = words(figure)
    for index, place in (("z = 2", "4 mm"), ("z = 18", "36 mm")):
        assert index in said
        assert place in said
    assert "seg.zarr over scan.zarr" in said
    assert any(text.startswith("5 axial planes along z, towards S   ·   20 × 50") for text in said)
    assert {"liver", "tumour"} <= set(said)
    assert [said.count(letter) for letter in "RLAP"] == [1, 1, 1, 1]  # on the first tile


def test_ends_that_show_nothing_are_left_out():
    scan = np.zeros((40, 20, 20), "f4")
    scan[9:21] = np.random.default_rng(0).random((12, 20, 20)) + 1
    found = indices(contact_sheet(scan, tiles=6))
    assert 9 <= found[0] < found[-1] <= 20
    assert len(found) == 6
    # What lies over a scan counts, too: of two planes that hold something both are shown.
    seg = np.zeros((40, 20, 20), "u1")
    seg[35, 3:9, 3:9] = 1
    found = indices(contact_sheet(seg, over=scan, tiles=40))
    assert (found[0], found[-1]) == (9, 35)
    assert indices(contact_sheet(np.zeros((8, 9, 9)), tiles=4)) == [1, 3, 5, 7]


def test_positions_are_those_of_the_volume(stored, words):
    meta = Meta(spacing=(0.25, 1, 1), unit="micrometer", translation=(10.5, 0, 0))
    said = words(contact_sheet(stored(np.zeros((8, 9, 9), "u1"), meta), tiles=2))
    assert {"z = 2", "11 µm", "z = 6", "12 µm"} <= set(said)


@pytest.mark.parametrize(
    ("axis", "name", "number"),
    [("z", "coronal", 0), ("axial", "axial", 1), ("sagittal", "sagittal", 2), ("x", "sagittal", 2)],
)
def test_axes_by_letter_or_by_plane(axis, name, number):
    array = np.random.default_rng(0).random((12, 13, 14), "f4")
    figure = contact_sheet(_held(array, AIL), axis=axis, tiles=3)
    assert {axes.get_label() for axes in figure.axes} == {name}
    assert figure.facts["planes"][0]["axis"] == "zyx"[number]


def _held(array, meta):
    """A volume in memory with metadata."""
    import zarr
    from zarr.storage import MemoryStore

    from volflow.store.meta import Level
    from volflow.store.ngff import write_group

    group = zarr.create_group(MemoryStore())
    group.create_array("0", data=array, chunks=(4, 4, 4))
    write_group(group, meta, [Level("0", meta.spacing)])
    return open_volume(group)


def test_tiles_show_their_own_planes_in_true_proportions():
    array = np.zeros((6, 20, 30), "u1")
    array += np.arange(6, dtype="u1")[:, None, None]
    figure = contact_sheet(_held(array, Meta(spacing=(1, 3, 1))), tiles=6, percentiles=(0, 100))
    levels = [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes]
    assert levels == [0, 51, 102, 153, 204, 255]  # one grey window for all
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(30 / 60, rel=1e-3)


def test_a_class_has_one_colour_on_every_tile():
    """Also where a tile holds but one of them, or the classes change from tile to tile."""
    labels = np.zeros((8, 16, 16), "u1")
    for n in range(8):
        labels[n, 2:9, 2:9] = n
        labels[n, 9:14, 9:14] = 7
    figure = contact_sheet(_held(labels, Meta(kind="classes")), tiles=8)
    for n, axes in enumerate(figure.axes):
        pixels = axes.images[0].get_array()
        assert tuple(pixels[12, 12, :3]) == tuple(bytes.fromhex(class_color(7)[1:]))
        if n:
            assert tuple(pixels[4, 4, :3]) == tuple(bytes.fromhex(class_color(n)[1:]))
    listed = [text.get_text() for text in figure.texts if text.get_text().startswith("class")]
    assert listed == [f"class {n}" for n in range(1, 8)]


@pytest.mark.slow
def test_tiles_are_read_from_the_level_that_fits(pyramid, monkeypatch, reads, words):
    monkeypatch.setattr(preview_module, "SHARP", 10)  # 64 pixels, the least
    array = np.random.default_rng(0).random((16, 160, 160), "f4")
    path = pyramid(array, Meta(unit="millimeter"))
    figure = contact_sheet(path, path, tiles=16)
    assert {level for level, _ in reads} == {2}
    # Of each volume its coarsest 4 planes, each chunk layer once.
    assert sum(box.size for _, box in reads) == 2 * 4 * 40 * 40
    told = "shown: level 2, 4 × 4 × 4 mm; volume.zarr level 2, 4 × 4 × 4 mm"
    assert any(text.endswith(told) for text in words(figure))
    reads.clear()
    # Along the normal nothing is shown: there it does not matter how long the volume is.
    contact_sheet(pyramid(array[:, :16].T.copy(), Meta(), "long.zarr"), axis="z", tiles=4)
    assert {level for level, _ in reads} == {0}
    reads.clear()
    contact_sheet(path, tiles=2, level=0)
    assert {level for level, _ in reads} == {0}


@pytest.mark.slow
def test_memory_is_bounded_without_levels(stored, monkeypatch, reads):
    monkeypatch.setattr(preview_module, "SHARP", 10)
    monkeypatch.setattr(planes_module, "PIECE_VOXELS", 16 * 16 * 16)
    path = stored(np.zeros((16, 200, 200), "u1"), Meta(kind="classes"))
    figure = contact_sheet(path, tiles=16)
    assert max(box.size for _, box in reads) <= 16 * 16 * 16
    assert max(max(axes.images[0].get_array().shape) for axes in figure.axes) <= 64


@pytest.mark.slow
def test_positions_stand_on_all_tiles_or_on_none(words):
    meta = Meta(unit="millimeter")
    for tiles, stands in ((4, True), (200, False)):
        said = words(contact_sheet(_held(np.zeros((200, 8, 8), "u1"), meta), tiles=tiles))
        assert {"z = 25", "z = 175"} <= set(said)
        assert ("25 mm" in said) == ("175 mm" in said) == stands


def test_fewer_planes_than_tiles():
    assert indices(contact_sheet(np.zeros((3, 8, 8)), tiles=24)) == [0, 1, 2]
    assert indices(contact_sheet(np.zeros((1, 8, 8)))) == [0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"axis": "w"}, "axis must be z, y or x, or one of xy, xz, yz; given 'w'"),
        ({"axis": "axial"}, "axis must be z, y or x, or one of xy, xz, yz; given 'axial'"),
        ({"axis": 0}, "axis must be z, y or x"),
        ({"tiles": 0}, "tiles must be 1 to 200, given 0"),
        ({"tiles": 201}, "tiles must be 1 to 200, given 201"),
        ({"tiles": 3.0}, "tiles must be 1 to 200, given 3.0"),
        ({"tiles": "4"}, "tiles must be 1 to 200, given '4'"),
        ({"channel": 4}, "channel must be 0 … 0, given 4"),
        ({"level": 4}, "array has no levels, given level 4"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(InvalidInput, match=text):
        contact_sheet(np.zeros((4, 5, 6)), **options)


def test_a_plane_that_is_a_line_is_refused():
    with pytest.raises(InvalidInput, match=r"array has no planes across y: it is \(1, 8, 8\)"):
        contact_sheet(np.zeros((1, 8, 8)), axis="y")


def test_real_scans_have_their_orientation(shared_data, words):
    pytest.importorskip("nibabel", reason="extra io")
    path = shared_data("t1_brainchop") / "t1_crop.nii.gz"
    figure = contact_sheet(path, axis="axial", tiles=6)
    assert [plane["axis"] for plane in figure.facts["planes"]] == ["y"] * 6
    said = words(figure)
    assert any(text.startswith("6 axial planes along y, towards I") for text in said)
    # The nose points up: the head's front is in the upper half of the page.
    tile = figure.axes[2].images[0].get_array()[..., 0] > 40
    rows, columns = np.nonzero(tile)
    assert abs(columns.mean() - 128) < 12  # the head is symmetric about the middle
    assert rows.max() - rows.min() > columns.max() - columns.min()  # and longer than wide
