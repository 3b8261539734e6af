"""What TIFF files say of their voxels: sizes, units, channels; and what is not believed."""

import numpy as np
import pytest

from volflow.store.formats.sources import open_source

tifffile = pytest.importorskip("tifffile", reason="extra tiff")

CUBE = np.zeros((4, 5, 6), "uint8")
GREY = {"photometric": "minisblack"}


def meta_of(path, voxels=CUBE, **options):
    tifffile.imwrite(path, voxels, **{**GREY, **options})
    return open_source(path).meta


@pytest.mark.parametrize(
    ("said", "unit"),
    [
        ("um", "micrometer"), ("micron", "micrometer"), ("microns", "micrometer"),
        ("\\u00B5m", "micrometer"), ("nm", "nanometer"), ("mm", "millimeter"), ("inch", "inch"),
        ("pixel", None), ("", None), ("sec", None),
    ],
)  # fmt: skip
def test_imagej(tmp_path, said, unit):
    meta = meta_of(
        tmp_path / "a.tif", imagej=True, resolution=(1 / 0.0915, 4), resolutionunit=1,
        metadata={"axes": "ZYX", "spacing": 0.3, "unit": said},
    )  # fmt: skip
    assert (meta.spacing, meta.unit) == ((0.3, 0.25, 0.0915), unit)


@pytest.mark.parametrize("sign", ["µm", "μm"])  # the sign of micro, and the Greek letter
def test_imagej_with_a_micro_sign(tmp_path, sign):
    text = f"ImageJ=1.54f\nimages=4\nslices=4\nunit={sign}\nspacing=2.5\n".encode()
    dots = {"resolution": (2, 2), "resolutionunit": 1}
    meta = meta_of(tmp_path / "a.tif", description=text, metadata=None, **dots)
    assert (meta.spacing, meta.unit) == ((2.5, 0.5, 0.5), "micrometer")


def test_imagej_names_channels_by_labels(tmp_path):
    labels = {"Labels": ["dapi", "gfp"] * 4}
    said = {"axes": "ZCYX", **labels}
    meta = meta_of(tmp_path / "a.tif", np.zeros((4, 2, 5, 6), "u1"), imagej=True, metadata=said)
    assert meta.channels == ("dapi", "gfp")
    said["Labels"] = [f"slice {n}" for n in range(8)]
    meta = meta_of(tmp_path / "b.tif", np.zeros((4, 2, 5, 6), "u1"), imagej=True, metadata=said)
    assert meta.channels == ()


@pytest.mark.parametrize(
    ("said", "spacing", "unit"),
    [
        ({"X": 0.1, "Y": 0.2, "Z": 0.5}, (0.5, 0.2, 0.1), "micrometer"),
        ({"X": 0.1, "XUnit": "nm"}, (1, 0.1, 0.1), "nanometer"),
        ({"X": 100, "XUnit": "nm", "Z": 2, "ZUnit": "µm"}, (2000, 100, 100), "nanometer"),
        ({"X": 0, "Y": -1, "Z": "nan"}, (1, 1, 1), None),
        ({"X": 3, "XUnit": "pixel", "Z": 4, "ZUnit": "pixel"}, (4, 3, 3), None),
        ({"X": 3, "XUnit": "fathom"}, (1, 1, 1), None),
        ({}, (1, 1, 1), None),
    ],
)
def test_ome(tmp_path, said, spacing, unit):
    sizes = {f"PhysicalSize{name}": value for name, value in said.items()}
    meta = meta_of(tmp_path / "a.ome.tif", metadata={"axes": "ZYX", **sizes})
    assert meta.spacing == pytest.approx(spacing)
    assert meta.unit == unit


def test_ome_names_channels(tmp_path):
    said = {"axes": "CZYX", "Channel": {"Name": ["dapi", "gfp"]}}
    meta = meta_of(tmp_path / "a.ome.tif", np.zeros((2, 4, 5, 6), "u1"), metadata=said)
    assert meta.channels == ("dapi", "gfp")


def test_colors_are_named(tmp_path):
    meta = meta_of(tmp_path / "a.tif", np.zeros((5, 6, 3), "u1"), photometric="rgb")
    assert meta.channels == ("red", "green", "blue")


def test_sizes_that_no_image_has_are_not_believed(tmp_path):
    said = {"axes": "ZYX", "spacing": 1e300, "unit": "um"}
    meta = meta_of(tmp_path / "a.tif", imagej=True, resolution=(4, 4), metadata=said)
    assert (meta.spacing, meta.unit) == ((1, 1, 1), None)


def test_dots_per_inch_are_no_voxel_size(tmp_path):
    meta = meta_of(tmp_path / "a.tif", resolution=(72, 72), resolutionunit="inch")
    assert (meta.spacing, meta.unit) == ((1, 1, 1), None)


def test_tiles_in_pixels_per_centimetre_are_a_slide(tmp_path):
    dots = {"resolution": (1e4 / 0.25, 1e4 / 0.25), "resolutionunit": "centimeter"}
    slide = np.zeros((64, 64), "u1")
    meta = meta_of(tmp_path / "a.tif", slide, tile=(32, 32), **dots)
    assert (meta.spacing, meta.unit) == ((1, 0.25, 0.25), "micrometer")
    assert meta_of(tmp_path / "b.tif", slide, **dots).unit is None


def test_slides_of_aperio_say_it_in_words(tmp_path):
    text = "Aperio Image Library v11\n64x64 (32x32) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2498"
    slide = np.zeros((64, 64), "u1")
    meta = meta_of(tmp_path / "a.tif", slide, tile=(32, 32), description=text, metadata=None)
    assert (meta.spacing, meta.unit) == ((1, 0.2498, 0.2498), "micrometer")


def test_a_folder_has_the_grid_of_its_first_plane(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(3):
        options = {"resolution": (4, 4), "metadata": {"unit": "um", "spacing": 2}}
        meta_of(tmp_path / "a" / f"z{number}.tif", CUBE[0], imagej=True, **options)
    meta = open_source(tmp_path / "a").meta
    assert (meta.spacing, meta.unit) == ((2, 0.25, 0.25), "micrometer")


# Real files


def test_real_stacks(shared_data):
    image = pytest.importorskip("PIL.Image")
    sequence = pytest.importorskip("PIL.ImageSequence")
    folders = shared_data("nuclei_stardist3d"), shared_data("em_gala") / "snemi-mini"
    paths = [path for folder in folders for path in folder.glob("*.tif")]
    assert len(paths) == 5
    for path in paths:
        with image.open(path) as file:
            pages = [np.asarray(page) for page in sequence.Iterator(file)]
        source = open_source(path)
        np.testing.assert_array_equal(source[:], np.stack(pages))
        assert source.dtype == pages[0].dtype
        assert (source.meta.spacing, source.meta.unit) == ((1, 1, 1), None)
