"""Volumes in notebooks: a small picture, a table, nothing that costs or raises or escapes."""

from __future__ import annotations

import base64
import os
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import zarr

from volflow.geometry.roi import Roi
from volflow.report.colors import class_color
from volflow.report.facts import card as module
from volflow.report.facts.card import decoded_bytes, png, thumbnail, volume_html
from volflow.store.create import create
from volflow.store.meta import Level, Meta, VolumeSpec
from volflow.store.ngff import write_group
from volflow.store.volume import Volume, open_volume

VOID = {"img"}


def decode(file):
    """A PNG without filters, as rows, columns, red, green, blue; every checksum is checked."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        tag, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", file[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(tag + data)
        parts[tag] = data
        at += 12 + length
    wide, high, depth, kind, *rest = struct.unpack(">2I5B", parts[b"IHDR"])
    assert (depth, kind, rest) == (8, 2, [0, 0, 0])
    assert parts[b"IEND"] == b""
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(high, 1 + 3 * wide)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(high, wide, 3)


class Page(HTMLParser):
    """Words and tags of a page, whose tags are checked to be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags, self.pictures = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in VOID:
            self.pictures.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)

    @property
    def picture(self):
        (found,) = self.pictures
        return decode(base64.b64decode(found["src"].removeprefix("data:image/png;base64,")))


def stored(tmp_path, array, meta, name="a.zarr"):
    volume = create(
        tmp_path / name, VolumeSpec.of(array.shape, array.dtype, meta, chunk=16, shard=32)
    )
    volume.write(Roi.full(volume.shape), array)
    return volume


def test_a_png_is_what_was_drawn():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    np.testing.assert_array_equal(decode(png(pixels)), pixels)


def test_other_programs_read_the_png():
    image = pytest.importorskip("matplotlib.image", reason="extra report")
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    read = image.imread(io.BytesIO(png(pixels)), "png")
    np.testing.assert_array_equal(np.round(255 * read[..., :3]), pixels)


def test_the_table_says_what_the_volume_is(tmp_path):
    meta = Meta(
        spacing=(2.5, 1, 1), unit="millimeter", orientation="SAR", kind="classes",
        channels=("background", "liver", "tumour"), colors=("000000", "AA0000", "00BB00"),
    )  # fmt: skip
    volume = stored(tmp_path, np.ones((20, 40, 50), "u2"), meta)
    page = Page(volume._repr_html_())
    for words in (
        "a.zarr",
        "z 20 × y 40 × x 50",
        "uint16",
        "2.5 × 1 × 1 mm",
        "50 × 40 × 50 mm",
        "SAR",
        "24 of 16 × 16 × 16, 8 KiB each",
        "4 of 32 × 32 × 32, 64 KiB each",
        "liver",
        "axial, z = 10; left R, up A",
    ):
        assert words in page.words
    size = next(words for words in page.words if "in memory" in words)
    files = sum(len(names) for _, _, names in os.walk(volume.path))
    assert re.fullmatch(rf"78\.1 KiB in memory, [\d.]+ KiB stored in {files} files", size)
    html = volume._repr_html_()
    assert html.count("#AA0000") == 1
    assert "background:#000000" not in html  # the background is clear


def test_the_middle_plane_is_shown_as_a_radiologist_sees_it(tmp_path):
    ramp = np.zeros((9, 20, 30), "u1")
    ramp[4] = np.arange(20)[:, None] * 2 + np.arange(30)
    volume = stored(tmp_path, ramp, Meta(orientation="SAR"))
    page = Page(volume._repr_html_())
    low, high = np.percentile(ramp[4], (1, 99.5), method="nearest").astype(float)
    want = (255 * np.clip((np.flip(ramp[4]) - low) / (high - low), 0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(page.picture, np.repeat(want[..., None], 3, axis=-1))
    assert "width:200px;height:133px" in page.pictures[0]["style"]


def test_classes_have_the_colours_of_the_pictures(tmp_path):
    labels = np.zeros((5, 8, 8), "i4")
    labels[2, :4], labels[2, 4:, :2] = 1, 9
    page = Page(stored(tmp_path, labels, Meta(kind="classes"))._repr_html_())
    for value in (1, 9):
        color = tuple(bytes.fromhex(class_color(value)[1:]))
        np.testing.assert_array_equal((page.picture == color).all(axis=-1), labels[2] == value)
    assert not page.picture[labels[2] == 0].any()
    assert "image-rendering:pixelated" in page.pictures[0]["style"]


def test_proportions_are_true(tmp_path):
    volume = stored(tmp_path, np.zeros((3, 20, 40), "u1"), Meta(spacing=(1, 4, 1)))
    assert "width:100px;height:200px" in volume._repr_html_()


def test_a_single_slice_across_x_is_shown(tmp_path):
    volume = stored(tmp_path, np.zeros((20, 40, 1), "u1"), Meta())
    assert "yz, x = 0" in Page(volume._repr_html_()).words
    line = stored(tmp_path, np.zeros((20, 1, 1), "u1"), Meta(), "line.zarr")
    assert "no picture: no plane is more than a line" in Page(line._repr_html_()).words


def pyramid(tmp_path, side=64, count=4):
    group = zarr.create_group(tmp_path / "p.zarr")
    levels = []
    for n in range(count):
        array = np.random.default_rng(n).random([side >> n] * 3).astype("f4")
        group.create_array(str(n), data=array, chunks=(8, 8, 8))
        levels.append(Level(str(n), (2.0**n,) * 3, ((2**n - 1) / 2,) * 3))
    write_group(group, Meta(unit="millimeter"), levels)
    return open_volume(tmp_path / "p.zarr")


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """A volume of four levels, which is only read."""
    return pyramid(tmp_path_factory.mktemp("levels"))


@pytest.fixture
def reads(monkeypatch):
    seen = []
    original = Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, roi: seen.append(self.level) or original(self, roi)
    )
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("useful", "level"), [(65, 0), (64, 0), (33, 0), (20, 1), (9, 2), (1, 3)])
def test_the_coarsest_level_that_shows_enough_is_read(levels, monkeypatch, reads, useful, level):
    monkeypatch.setattr(module, "USEFUL", useful)
    page = Page(levels._repr_html_())
    assert set(reads) == {level}
    assert page.picture.shape == (64 >> level, 64 >> level, 3)
    assert "0 of 4: 1 × 1 × 1; 2 × 2 × 2; 4 × 4 × 4; 8 × 8 × 8 mm" in page.words
    assert "xy, z = 32" in page.words


def test_what_costs_too_much_is_not_read(levels, monkeypatch, reads):
    view = next(iter(module.views(None)))
    assert decoded_bytes(levels, view) == 8 * 64 * 64 * 4
    monkeypatch.setattr(module, "MOST_DECODED", 8 * 32 * 32 * 4)
    Page(levels._repr_html_())
    assert set(reads) == {1}  # level 0 would be better to look at, but costs too much
    reads.clear()
    monkeypatch.setattr(module, "MOST_DECODED", 100)
    assert "no picture: a plane decodes 2 KiB; vf.pyramid adds levels" in levels._repr_html_()
    assert reads == []


def test_a_volume_of_hundreds_of_terabytes_costs_nothing(tmp_path, reads):
    meta = Meta(("c", "z", "y", "x"), (5, 0.5, 0.5), "micrometer")
    volume = create(tmp_path / "big.zarr", VolumeSpec.of((40, 5000, 30000, 30000), "u2", meta))
    page = Page(volume._repr_html_())
    assert reads == []
    assert any(words.startswith("no picture: a plane decodes 2") for words in page.words)
    assert any(words.startswith("327 TiB in memory") for words in page.words)


def test_a_million_files_are_not_counted(levels, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 100)
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scandir(path))
    assert "more than 100 files stored, not counted" in levels._repr_html_()
    assert len(seen) < 120
    in_memory = open_volume(zarr.ones(shape=(3, 4, 5), dtype="u1"))._repr_html_()
    assert "60 B in memory<" in in_memory


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('\"&')</script>"
    folder = tmp_path / "<img src=x onerror=alert(1)>\udcff"
    folder.mkdir()
    names = ("background", evil, "</td></table>", '" onmouseover="alert(1)')
    meta = Meta(unit=evil, kind="classes", channels=names)
    volume = stored(folder, np.ones((4, 5, 6), "u1"), meta, 'a"><b>.zarr')
    page = Page(volume._repr_html_())
    assert set(page.tags) <= {"div", "img", "table", "tbody", "tr", "td", "span"}
    assert len(page.pictures) == 1
    assert 'a"><b>.zarr' in page.words
    assert any(evil in words for words in page.words)
    volume._repr_html_().encode()  # as a notebook stores it


def test_many_names_are_cut_short(tmp_path):
    meta = Meta(kind="classes", channels=tuple(f"class {n}" for n in range(50)))
    page = Page(stored(tmp_path, np.zeros((4, 5, 6), "u1"), meta)._repr_html_())
    assert sum(words.startswith("class ") for words in page.words) == 32
    assert any("… and 18 more" in words for words in page.words)


def test_a_damaged_store_shows_its_facts(tmp_path):
    volume = stored(tmp_path, np.random.default_rng(0).random((20, 40, 50)), Meta())
    for path in (tmp_path / "a.zarr" / "0" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"123")
    page = Page(volume._repr_html_())
    assert page.pictures == []
    assert any(
        words.startswith("no picture: ") and "cannot be read" in words for words in page.words
    )
    assert "z 20 × y 40 × x 50" in page.words


@pytest.mark.slow
def test_a_deleted_store_and_a_missing_level_show_their_facts(tmp_path):
    import shutil

    volume = pyramid(tmp_path)
    shutil.rmtree(tmp_path / "p.zarr" / "1")
    page = Page(volume._repr_html_())
    assert any("level '1'" in words for words in page.words)
    shutil.rmtree(tmp_path / "p.zarr")
    page = Page(volume._repr_html_())
    assert page.pictures == []
    assert "z 64 × y 64 × x 64" in page.words


@pytest.mark.parametrize(
    "array",
    [
        np.full((6, 7, 8), np.nan, "f4"),
        np.full((6, 7, 8), np.inf),
        np.zeros((6, 7, 8), bool),
        np.full((6, 7, 8), 2**63, "u8"),
        np.full((2, 6, 7, 8), -1, "i1"),
    ],
)
def test_odd_voxels_are_shown(tmp_path, array):
    axes = ("c", "z", "y", "x")[-array.ndim :]
    for kind in ("image", "classes"):
        volume = stored(tmp_path, array, Meta(axes, kind=kind), f"{kind}.zarr")
        pixels, _, caption = thumbnail(volume)
        assert pixels.shape == (7, 8, 3)
        assert ("channel 0" in caption) == (array.ndim == 4)


def test_the_name_of_a_volume_inside_a_store(tmp_path):
    group = zarr.create_group(tmp_path / "cell.zarr")
    inner = group.create_group("labels/nuclei")
    inner.create_array("0", data=np.ones((3, 4, 5), "u1"))
    write_group(inner, Meta(), [Level("0", (1.0, 1.0, 1.0))])
    volume = open_volume(tmp_path / "cell.zarr" / "labels" / "nuclei")
    assert "cell.zarr/labels/nuclei" in Page(volume_html(volume)).words
