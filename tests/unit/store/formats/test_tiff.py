"""TIFF files as sources: how their voxels are stored, and which of their images is meant."""

import importlib
import struct
import sys
import zlib
from typing import ClassVar

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import SourceContract, random_zyx
from volflow.errors import Damaged, InvalidInput, Unreadable
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source
from volflow.store.formats.tiff import tiff_pages

tifffile = pytest.importorskip("tifffile", reason="extra tiff")

GREY = {"photometric": "minisblack"}


def save(path, voxels, **options):
    tifffile.imwrite(path, voxels, **{**GREY, **options})
    return path


class Tiff(SourceContract):
    """A stack of pages; `options` say how it is stored."""

    options: ClassVar = {}
    name = "a.tif"

    def make(self, folder, voxels):
        return save(folder / self.name, voxels, **self.options)


class TestOfRawPages(Tiff):
    options: ClassVar = {"metadata": None}


class TestOfOneRawRun(Tiff):
    """All planes behind one page, as ImageJ has them in files of any size."""

    options: ClassVar = {"truncate": True}


class TestOfTheOtherByteOrder(Tiff):
    options: ClassVar = {"byteorder": ">", "bigtiff": True}

    def voxels(self):
        return random_zyx(dtype=">f4")


class TestOfStrips(Tiff):
    options: ClassVar = {"compression": "zlib", "predictor": True, "rowsperstrip": 4}


class TestOfTiles(Tiff):
    options: ClassVar = {"compression": "zlib", "tile": (16, 16), "bigtiff": True}


class TestOfDeepTiles(Tiff):
    options: ClassVar = {"compression": "zlib", "tile": (16, 16, 16), "volumetric": True}


class TestOfLzw(Tiff):
    options: ClassVar = {"compression": "lzw"}

    @pytest.fixture(autouse=True)
    def _needs(self):
        pytest.importorskip("imagecodecs")


class TestOfBits(Tiff):
    def voxels(self):
        return random_zyx() > 0


def test_many_bits_lie_in_few_bytes(tmp_path):
    voxels = random_zyx((1, 800, 900)) > 0
    np.testing.assert_array_equal(open_source(save(tmp_path / "a.tif", voxels))[:], voxels)


class TestOfImagej(Tiff):
    """Channels lie side by side for each z."""

    def voxels(self):
        return random_zyx((3, 11, 6, 7))

    def make(self, folder, voxels):
        mixed = voxels.transpose(1, 0, 2, 3)
        return save(folder / self.name, mixed, imagej=True, metadata={"axes": "ZCYX"})


class TestOfOme(TestOfImagej):
    name = "a.ome.tif"

    def make(self, folder, voxels):
        options = {"metadata": {"axes": "CZYX"}, "compression": "zlib"}
        return save(folder / self.name, voxels, **options)


class TestOfColors(Tiff):
    """Samples side by side in a page."""

    options: ClassVar = {"photometric": "rgb"}

    def voxels(self):
        return random_zyx((3, 11, 6, 7), "uint8")

    def make(self, folder, voxels):
        return save(folder / self.name, np.moveaxis(voxels, 0, -1), **self.options)


class TestOfPackedColors(TestOfColors):
    options: ClassVar = {"photometric": "rgb", "compression": "zlib", "tile": (16, 16)}


class TestOfColorsOneByOne(TestOfColors):
    options: ClassVar = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}

    def make(self, folder, voxels):
        return save(folder / self.name, np.moveaxis(voxels, 0, 1), **self.options)


class TestOfFolder(Tiff):
    """One file for each plane, whose numbers are not padded."""

    def make(self, folder, voxels):
        (folder / "planes").mkdir()
        (folder / "planes" / "notes.txt").write_text("a Tuesday")
        (folder / "planes" / ".z3.tif").write_bytes(b"a lock")
        for number, plane in enumerate(voxels):
            save(folder / "planes" / f"slice{number + 5}.TIF", plane, **self.options)
        return folder / "planes"


class TestOfFolderOfColors(TestOfColors):
    def make(self, folder, voxels):
        return TestOfFolder.make(self, folder, np.moveaxis(voxels, 0, -1))


class TestOfFolderOfStrips(TestOfFolder):
    options: ClassVar = {"compression": "zlib", "rowsperstrip": 2}


def test_what_is_decoded_as_a_whole(tmp_path):
    voxels = np.zeros((4, 64, 48, 3), "uint8")
    colors = {"photometric": "rgb", "compression": "zlib"}
    tiles = open_source(save(tmp_path / "a.tif", voxels, tile=(16, 32), **colors))
    strips = open_source(save(tmp_path / "b.tif", voxels, rowsperstrip=8, **colors))
    assert (tiles.decoded, strips.decoded) == ((3, 1, 16, 32), (3, 1, 8, 48))
    assert open_source(save(tmp_path / "c.tif", voxels[..., 0])).decoded == (1, 1, 1)


def test_rows_are_mapped_some_at_a_time(tmp_path, monkeypatch):
    voxels = random_zyx((3, 11, 6, 7), "uint8")
    colors = {"photometric": "rgb", "planarconfig": "separate"}
    path = save(tmp_path / "a.tif", np.moveaxis(voxels, 0, 1), **colors)
    monkeypatch.setattr(tiff_pages, "MOST_MAPPED", 2 * 7)
    np.testing.assert_array_equal(open_source(path)[1:, 3:9, 1:6, 2:5], voxels[1:, 3:9, 1:6, 2:5])


def test_only_the_tiles_of_a_box_are_decoded(tmp_path):
    voxels = random_zyx((2, 64, 64))
    path = save(tmp_path / "a.tif", voxels, compression="zlib", tile=(16, 16))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[1].dataoffsets[5], file.pages[1].databytecounts[5]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = bytes(count)
    path.write_bytes(content)
    source = open_source(path)  # nothing is decoded
    np.testing.assert_array_equal(source[0], voxels[0])
    np.testing.assert_array_equal(source[1, 32:], voxels[1, 32:])
    np.testing.assert_array_equal(source[1, :, 32:], voxels[1, :, 32:])
    with pytest.raises(Unreadable, match=r"a\.tif cannot be decoded in its page 1 \(.*; copy it"):
        source[1, 20, 20]


def test_tiles_that_were_never_written_are_empty(tmp_path):
    path = save(tmp_path / "a.tif", random_zyx((1, 32, 32)), compression="zlib", tile=(16, 16))
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["TileByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    assert not open_source(path)[0, :16, :16].any()


def pyramid(path, images=1, **more):
    """Images of three levels, whose coarser ones hang below the pages of the finest."""
    voxels = random_zyx((3, 66, 64), "uint16")
    with tifffile.TiffWriter(path, ome=True) as file:
        for number in range(images):
            options = {"tile": (16, 16), "compression": "zlib", **GREY}
            said = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeZ": 2, "Name": f"im{number}"}
            file.write(voxels + number, subifds=2, metadata={**said, **more}, **options)
            for step in (2, 4):
                file.write((voxels + number)[:, ::step, ::step], subfiletype=1, **options)
    return voxels


def test_levels_of_a_pyramid(tmp_path):
    voxels = pyramid(tmp_path / "a.ome.tif")
    for level, step in enumerate((1, 2, 4)):
        source = open_source(tmp_path / "a.ome.tif", ImageChoice(level=level))
        np.testing.assert_array_equal(source[:], voxels[:, ::step, ::step])
        assert source.meta.spacing == (2, 0.5 * step, 0.5 * step)
        assert source.meta.translation == (0, 0.25 * (step - 1), 0.25 * (step - 1))
    with pytest.raises(InvalidInput, match="has 3 levels, given level 3; choose 0 to 2"):
        open_source(tmp_path / "a.ome.tif", ImageChoice(level=3))


def test_one_image_of_several(tmp_path):
    voxels, path = pyramid(tmp_path / "a.ome.tif", images=2), tmp_path / "a.ome.tif"
    both = [open_source(path, ImageChoice(series=n)) for n in (0, 1)]
    np.testing.assert_array_equal(both[1][:], voxels + 1)
    assert both[0].identity() != both[1].identity()
    np.testing.assert_array_equal(open_source(f"{path}::im1")[0], voxels[0] + 1)
    with pytest.raises(InvalidInput) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} holds 2 images; choose one with series= (--series, or {path}::0): 0 (im0):"
        " 3 × 66 × 64 uint16, 1 (im1): 3 × 66 × 64 uint16"
    )
    for wrong in (2, "im2"):
        with pytest.raises(InvalidInput, match=f"holds 2 images, given {wrong}; choose one"):
            open_source(path, ImageChoice(series=wrong))


def test_pages_of_different_shapes_are_images_of_their_own(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for shape in ((9, 8), (9, 8), (7, 5)):
            file.write(np.ones(shape, "uint8"), metadata=None, **GREY)
    assert open_source(tmp_path / "a.tif", ImageChoice(series=0)).shape == (2, 9, 8)
    with pytest.raises(InvalidInput, match="holds 2 images; choose one with series="):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"imagej": True}),
        ("a.ome.tif", {"compression": "zlib"}),
    ],
)
def test_one_timepoint_of_several(tmp_path, name, options):
    axes = "TZCYX" if name == "a.tif" else "CTZYX"
    voxels = random_zyx((2, 4, 3, 9, 8))  # tczyx
    stored = np.einsum(f"tczyx->{axes.lower()}", voxels)
    path = save(tmp_path / name, stored, metadata={"axes": axes}, **options)
    second = open_source(path, ImageChoice(timepoint=1))
    np.testing.assert_array_equal(second[:], voxels[1])
    assert second.identity() != open_source(path, ImageChoice(timepoint=0)).identity()
    with pytest.raises(InvalidInput, match="has 2 timepoints; choose one of 0 to 1 with timep"):
        open_source(path)
    with pytest.raises(InvalidInput, match="has 2 timepoints, given timepoint 2; choose one"):
        open_source(path, ImageChoice(timepoint=2))


@pytest.mark.parametrize(
    ("axes", "shape", "found"),
    [
        ("QYX", (5, 9, 8), (5, 9, 8)),
        ("YX", (9, 8), (1, 9, 8)),
        ("CYX", (5, 9, 8), (5, 1, 9, 8)),
        ("QQYX", (2, 5, 9, 8), (2, 5, 9, 8)),  # as a .npy file: channels, z, y, x
        ("TZCYX", (1, 5, 1, 9, 8), (5, 9, 8)),
    ],
)
def test_axes(tmp_path, axes, shape, found):
    voxels = np.arange(np.prod(shape), dtype="uint16").reshape(shape)
    source = open_source(save(tmp_path / "a.tif", voxels, metadata={"axes": axes}))
    assert source.shape == found
    np.testing.assert_array_equal(source[:], voxels.reshape(found))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("QQQYX", (2, 3, 5, 9, 8)), ("HZYX", (2, 5, 9, 8)), ("ZCYXS", (2, 2, 9, 8, 3))],
)
def test_axes_that_a_volume_has_not(tmp_path, axes, shape):
    photometric = "rgb" if axes[-1] == "S" else "minisblack"
    voxels = np.zeros(shape, "uint8")
    path = save(tmp_path / "a.tif", voxels, metadata={"axes": axes}, photometric=photometric)
    with pytest.raises(InvalidInput, match=f"has the axes {axes[0]} {shape[0]}, .*; a volume has"):
        open_source(path)


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    pytest.importorskip("imagecodecs")
    without = importlib.import_module("tifffile._imagecodecs")
    paths = {
        name: save(tmp_path / f"{name}.tif", random_zyx(dtype="uint8"), compression=name)
        for name in ("lzw", "jpeg", "zlib")
    }
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    codecs = tifffile.TIFF.DECOMPRESSORS
    monkeypatch.setattr(codecs, "_codecs", {1: bytes, 8: bytes, 50013: bytes})
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", without)
    for name in ("lzw", "jpeg"):
        with pytest.raises(InvalidInput, match=f"holds {name.upper()}, which needs imagecodecs"):
            open_source(paths[name])
    assert open_source(paths["zlib"]).shape == (11, 6, 7)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", random_zyx())
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InvalidInput, match=r'needs? tifffile, .*; pip install "volflow\[tiff\]"'):
        open_source(path)


def test_a_strip_may_not_inflate_beyond_its_rows(tmp_path, monkeypatch):
    options = {"compression": "zlib", "rowsperstrip": 1000}
    path = save(tmp_path / "a.tif", np.zeros((1, 1000, 1000), "uint8"), **options)
    bomb = zlib.compress(bytes(2**26))
    with tifffile.TiffFile(path) as file:
        tags = [
            file.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")
        ]
    content = bytearray(path.read_bytes())
    for at, value in zip(tags, (len(content), len(bomb)), strict=True):
        struct.pack_into("<I", content, at, value)
    path.write_bytes(content + bomb)
    monkeypatch.setattr(tiff_pages, "SLACK", 2**15)
    monkeypatch.setattr(tiff_pages, "find_spec", lambda _: None)  # as without imagecodecs
    with pytest.raises(Unreadable, match=r"\d+ bytes stand for more than 1000000"):
        open_source(path)[0, 0]


# Files that lie


def little(path, *pages):
    """A TIFF whose pages are offsets of the next one and tags (code, type, count, value)."""
    content = b"II*\0" + struct.pack("<I", 8)
    for following, *tags in pages:
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        content += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    path.write_bytes(content)
    return path


def page(width=8, height=9, offset=0, count=72, following=0, compression=1):
    tags = (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression)
    return (following, *tags, (262, 3, 1, 1), (273, 4, 1, offset), (279, 4, 1, count))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([page(following=8)], "has pages that lead in a circle"),
        ([page(following=10**9)], "is cut short or damaged after 1 pages"),
        ([page(offset=90)], "is cut short"),
        ([page(width=2**31, height=2**31, offset=8, count=10)], "is cut short"),
        (
            [page(width=2**31, height=2**31, offset=8, count=10, compression=8)],
            "10 bytes stand for 4611686018",
        ),
        ([page(width=0, offset=8)], "holds no image"),
        ([page(offset=8, count=10, compression=7777)], "holds 7777, which cannot be decoded"),
        ([(0, (256, 4, 1, 8))], "holds no image"),
        ([], "is cut short or damaged after 0 pages"),
    ],
)
def test_pages_that_lie_are_refused(tmp_path, made, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(little(tmp_path / "a.tif", *made))[0, 0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"a picture" * 100, b"II*\0" + bytes(4)])
def test_other_bytes_are_refused(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"is not a TIFF file|is a TIFF file without pages"):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_cut_file_is_refused_at_once(tmp_path, options, keep):
    path = save(tmp_path / "a.tif", random_zyx(), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(Damaged, match=r"a\.tif"):
        open_source(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'SizeZ="11"', b'SizeZ="99"', "is an OME-TIFF of 99 planes and has 11 pages"),
        (b'PlaneCount="11"', b'PlaneCount="99"', "is an OME-TIFF of 99 planes and has 11 pages"),
        (b'SizeZ="11"', b'SizeZ="-1"', "has OME-XML whose SizeZ is -1"),
        (b"<Pixels", b"<<Pixels", "holds damaged OME-XML"),
        (b"<Pixels", b"<a>" * 9999 + b"</a>" * 9999 + b"<Pixels", "is nested too deeply"),
    ],
)
def test_descriptions_that_lie_are_refused(tmp_path, old, new, message):
    path = save(tmp_path / "a.ome.tif", random_zyx(), metadata={"axes": "ZYX"}, compression=8)
    told = tifffile.tiffcomment(path).encode()
    assert old in told
    save(path, random_zyx(), description=told.replace(old, new), metadata=None, ome=False)
    with pytest.raises(InvalidInput, match=message):
        open_source(path)


def test_slices_that_are_not_there_are_not_believed(tmp_path):
    path = save(tmp_path / "a.tif", random_zyx(), imagej=True, metadata={"axes": "ZYX"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"images=11\nslices=11", b"images=99\nslices=99"))
    np.testing.assert_array_equal(open_source(path)[:], random_zyx())


# Folders


def planes(folder, names, **shapes):
    folder.mkdir()
    for name in names:
        save(folder / name, np.full(shapes.get(name[0], (9, 8)), 7, shapes.get("dtype", "uint8")))
    return folder


def test_planes_that_differ_are_named(tmp_path):
    folder = planes(tmp_path / "a", ["a1.tif", "a2.tif", "b3.tif"], b=(9, 7))
    with pytest.raises(InvalidInput, match=r"b3\.tif is 9 × 7 uint8, a1\.tif 9 × 8 uint8; keep"):
        open_source(folder)
    turned = open_source(planes(tmp_path / "c", ["a1.tif", "b2.tif"], b=(8, 9)))  # of one size
    with pytest.raises(InvalidInput, match=r"b2\.tif is 8 × 9 uint8, a1\.tif 9 × 8 uint8; keep"):
        turned[:]


def test_a_stack_in_a_folder_is_named(tmp_path):
    folder = planes(tmp_path / "a", ["a1.tif"])
    save(folder / "a0.tif", random_zyx())
    with pytest.raises(InvalidInput, match=r"a0\.tif has 11 pages, .* convert the file by itself"):
        open_source(folder)


def test_names_that_count_along_two_axes_are_refused(tmp_path):
    names = [f"z{z}_c{c}.tif" for z in range(3) for c in range(2)]
    with pytest.raises(InvalidInput, match=r"holds 3 × 2 files, which count along 2 axes, from z0"):
        open_source(planes(tmp_path / "a", names))
    dated = [f"day{n // 2}_{n}.tif" for n in range(6)]
    assert open_source(planes(tmp_path / "b", dated)).shape == (6, 9, 8)


def test_a_folder_follows_its_files(tmp_path):
    folder = planes(tmp_path / "a", ["a1.tif", "a2.tif"])
    before = open_source(folder).identity()
    assert open_source(folder).identity() == before
    save(folder / "a3.tif", np.zeros((9, 8), "uint8"))
    assert open_source(folder).identity() != before


@pytest.mark.parametrize("choice", [{"level": 1}, {"timepoint": 0}, {"series": "a"}])
def test_a_folder_has_no_choice(tmp_path, choice):
    folder = planes(tmp_path / "a", ["a1.tif", "a2.tif"])
    with pytest.raises(InvalidInput, match=r"is a folder of planes, of which no .* can be chosen"):
        open_source(folder, ImageChoice(**choice))


def test_a_plane_that_cannot_be_read_is_named(tmp_path):
    folder = planes(tmp_path / "a", ["a1.tif"])
    (folder / "a2.tif").mkdir()
    with pytest.raises(InvalidInput, match=r"a2\.tif cannot be read: Is a directory"):
        open_source(folder)


def test_one_file_of_an_ome_tiff_of_several(tmp_path):
    path = save(tmp_path / "a.ome.tif", random_zyx(), metadata={"axes": "ZYX"})
    parts = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:{z}</UUID>'
        "</TiffData>"
        for z, name in enumerate(["a.ome.tif", "../../etc/passwd"])
    )
    xml = tifffile.tiffcomment(path)
    told = xml.replace('<TiffData IFD="0" PlaneCount="11"/>', parts)
    assert told != xml
    save(path, random_zyx(), description=told.encode(), metadata=None, ome=False)
    with pytest.raises(InvalidInput, match="is one of 2 files of an OME-TIFF; convert the folder"):
        open_source(path)


def test_a_renamed_ome_tiff_is_read_from_itself(tmp_path):
    path = save(tmp_path / "a.ome.tif", random_zyx(), metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(path)
    part = '<TiffData IFD="0" PlaneCount="11"'
    told = xml.replace(f"{part}/>", f'{part}><UUID FileName="b.ome.tif">urn:1</UUID></TiffData>')
    assert told != xml
    save(path, random_zyx(), description=told.encode(), metadata=None, ome=False)
    np.testing.assert_array_equal(open_source(path)[:], random_zyx())
