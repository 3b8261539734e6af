"""DICOM series: in any order, packed in each way, and refused where they are no volume."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.dicom_files import (
    AXIAL,
    PACKED,
    SPACING,
    enhanced,
    group,
    image,
    positions,
    put_voxels,
    save,
    save_series,
)
from tests.unit.store.formats.test_sources import SourceContract, random_zyx
from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source

J2K, LOSSLESS, JPEGLS, RLE = PACKED
AFFINE = [[-0.5, 0, 0, 10], [0, -0.75, 0, -20], [0, 0, 2.5, -30.5], [0, 0, 0, 1]]


class TestSeries(SourceContract):
    def make(self, folder, voxels):
        return save_series(folder / "series", voxels)


class TestEnhanced(SourceContract):
    syntax, table = ImplicitVRLittleEndian, "basic"

    def make(self, folder, voxels):
        order = np.random.default_rng(1).permutation(len(voxels))
        made = enhanced(voxels, self.syntax, table=self.table, order=order)
        return save(made, folder / "a.dcm")


class TestRle(TestEnhanced):
    syntax = RLE


class TestJpegLs(TestEnhanced):
    syntax = JPEGLS


class TestJpeg2000WithoutTable(TestEnhanced):
    syntax, table = J2K, ""


class TestLosslessJpegWithExtendedTable(TestEnhanced):
    syntax, table = LOSSLESS, "extended"


@pytest.mark.parametrize("syntax", [*PACKED, ExplicitVRBigEndian])
def test_files_of_slices_may_be_stored_in_any_way(tmp_path, syntax):
    voxels = random_zyx((3, 6, 7))
    source = open_source(save_series(tmp_path / "a", voxels, syntax))
    np.testing.assert_array_equal(source[:], voxels)
    np.testing.assert_array_equal(source[1:2, 2:5, 3:4], voxels[1:2, 2:5, 3:4])


def test_the_grid_is_that_of_the_positions(tmp_path):
    meta = open_source(save_series(tmp_path / "a", random_zyx())).meta
    assert (meta.spacing, meta.unit, meta.orientation) == (SPACING, "millimeter", "SPL")
    np.testing.assert_allclose(meta.affine, AFFINE, atol=1e-9)
    assert open_source(save(enhanced(random_zyx()), tmp_path / "b.dcm")).meta.affine == meta.affine


def test_an_oblique_grid_equals_that_of_simpleitks_formula(tmp_path):
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    cosines = [*turn[0], *turn[1]]

    def turned(n, data):
        data.ImageOrientationPatient = [f"{value:.10f}" for value in cosines]
        where = positions(11, orientation=cosines)[n]
        data.ImagePositionPatient = [f"{value:.3f}" for value in where]

    meta = open_source(save_series(tmp_path / "a", random_zyx(), change=turned)).meta
    normal = np.cross(turn[0], turn[1])
    lps = np.stack([turn[0] * 0.5, turn[1] * 0.75, normal * 2.5], axis=1)
    flip = np.diag([-1, -1, 1])
    np.testing.assert_allclose(np.array(meta.affine)[:3, :3], flip @ lps, atol=2e-4)
    assert meta.spacing[0] == pytest.approx(2.5, abs=2e-4)


@pytest.mark.parametrize("off", [1e-10, 1e-4])
def test_what_scanners_round_is_tolerated(tmp_path, off):
    shake = np.random.default_rng(2).uniform(-1, 1, (11, 3))

    def shaken(n, data):
        data.ImageOrientationPatient = [1, -off if n % 2 else off, 0, off, 1, 0]
        data.ImagePositionPatient = [
            round(a + b * 5e-4, 6) for a, b in zip(positions(11)[n], shake[n], strict=True)
        ]

    source = open_source(save_series(tmp_path / "a", random_zyx(), change=shaken))
    assert source.meta.spacing[0] == pytest.approx(2.5, abs=1e-3)
    assert np.array_equal(source[:], random_zyx())


def test_a_single_slice_has_the_spacing_that_its_header_states(tmp_path):
    def spacing(**fields):
        made = put_voxels(image(**fields), random_zyx()[:1])
        meta = open_source(save(made, tmp_path / "a.dcm")).meta
        return meta.spacing, meta.unit

    assert spacing() == ((5, 0.75, 0.5), "millimeter")
    assert spacing(SpacingBetweenSlices=2.5) == ((2.5, 0.75, 0.5), "millimeter")
    assert spacing(SliceThickness=None) == ((1, 0.75, 0.5), "millimeter")
    assert spacing(PixelSpacing=None) == ((1, 1, 1), None)
    placed = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(AXIAL)}
    assert spacing(PixelSpacing=None, **placed) == ((1, 1, 1), None)
    assert spacing(**placed) == ((5, 0.75, 0.5), "millimeter")


# Values


@pytest.mark.parametrize(
    ("dtype", "used", "slope", "inter", "expected"),
    [
        ("u2", 12, 1, -1024, "int16"),
        ("i2", 12, 1, -1024, "int16"),
        ("i2", 16, 1, -1024, "int32"),
        ("u2", 16, 1, -1024, "int32"),
        ("u2", 16, 2, 0, "int32"),
        ("u1", 8, 1, 0, "uint8"),
        ("u2", 12, 0.5, 0, "float32"),
        ("u4", 32, 0.5, 0, "float64"),
        ("u4", 32, -1, 0, "int64"),
    ],
)
def test_values_are_scaled_without_loss(tmp_path, dtype, used, slope, inter, expected):
    numbers = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    if used < 16:
        numbers[0, 0, 0] = 2 ** (used - 1) - 1
    scale = {"RescaleSlope": slope, "RescaleIntercept": inter}
    source = open_source(save_series(tmp_path / "a", numbers, used=used, **scale))
    assert source.dtype == expected
    np.testing.assert_array_equal(source[:], numbers * float(slope) + inter)
    assert source.meta.source.dtype == np.dtype(dtype).name


def test_slices_may_be_scaled_differently(tmp_path):
    numbers = random_zyx().astype("u2")

    def scaled(n, data):
        data.RescaleSlope, data.RescaleIntercept = f"{0.1 * (n + 1):.3f}", 0

    source = open_source(save_series(tmp_path / "a", numbers, change=scaled))
    slopes = np.array([round(0.1 * (n + 1), 3) for n in range(11)])[:, None, None]
    assert source.dtype == "float32"
    np.testing.assert_array_equal(source[:], (numbers * slopes).astype("f4"))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_bits_beside_the_numbers_are_none_of_theirs(tmp_path, dtype):
    """Old scanners keep drawings in the four upper bits."""
    numbers = np.arange(120, dtype=dtype).reshape(2, 6, 10) - (60 if dtype == "i2" else 0)
    drawn = (numbers.view("u2") & 0x0FFF) | 0xA000
    source = open_source(save_series(tmp_path / "a", drawn.view(dtype), used=12))
    np.testing.assert_array_equal(source[:], numbers)

    def shifted(_, data):
        data.HighBit = 15
        data.PixelData = (np.frombuffer(data.PixelData, "<u2") << 4).tobytes()

    source = open_source(save_series(tmp_path / "b", drawn.view(dtype), used=12, change=shifted))
    np.testing.assert_array_equal(source[:], numbers)


def test_monochrome1_is_kept_as_stored(tmp_path):
    made = save_series(tmp_path / "a", random_zyx(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(open_source(made)[:], random_zyx())


@pytest.mark.parametrize("layout", ["by voxel", "by plane", "YBR_FULL"])
def test_colours_are_channels(tmp_path, layout):
    colors = np.random.default_rng(0).integers(0, 255, (4, 6, 8, 3)).astype("u1")

    def arranged(_, data):
        if layout == "by plane":
            pixels = np.frombuffer(data.PixelData, "u1").reshape(6, 8, 3)
            data.PixelData = np.moveaxis(pixels, -1, 0).tobytes()
            data.PlanarConfiguration = 1
        elif layout == "YBR_FULL":
            pixels = np.frombuffer(data.PixelData, "u1").reshape(6, 8, 3)
            ybr = pydicom.pixels.convert_color_space(pixels, "RGB", "YBR_FULL")
            data.PixelData, data.PhotometricInterpretation = ybr.tobytes(), "YBR_FULL"

    source = open_source(save_series(tmp_path / "a", colors, change=arranged))
    assert (source.shape, source.piece) == ((3, 4, 6, 8), (3, 1, 6, 8))
    assert source.meta.channels == ("red", "green", "blue")
    near = 2 if layout == "YBR_FULL" else 0
    expected = np.moveaxis(colors, -1, 0).astype(int)
    assert abs(source[:].astype(int) - expected).max() <= near
    np.testing.assert_array_equal(source[1:2, 1:3, 2:4, 3:5], source[:][1:2, 1:3, 2:4, 3:5])
    green = open_source(tmp_path / "a", ImageChoice(channel="green"))
    np.testing.assert_array_equal(green[:], source[:][1])


def test_jpeg_of_8_bits_is_near_its_original(tmp_path):
    import imagecodecs

    plane = (np.hypot(*np.mgrid[-20:20, -20:20]) * 8).astype("u1")
    made = put_voxels(image(), plane[None])
    made.PixelData = pydicom.encaps.encapsulate([imagecodecs.jpeg8_encode(plane, level=98)])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    source = open_source(save(made, tmp_path / "a.dcm"))
    assert abs(source[:][0].astype(int) - plane).max() < 5


def test_one_slice_is_decoded_for_one_slice(tmp_path, monkeypatch):
    import imagecodecs

    taken = []
    real = imagecodecs.jpeg2k_decode
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda d: taken.append(len(d)) or real(d))
    source = open_source(save(enhanced(random_zyx(), J2K), tmp_path / "a.dcm"))
    assert taken == []
    source.read(Roi((4, 0, 0), (5, 6, 7)))
    assert len(taken) == 1


# Several series, and other files between them


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    save_series(folder / "first", random_zyx())
    save_series(
        folder / "second", random_zyx((4, 3, 2)), SeriesInstanceUID="1.2.3.9", SeriesNumber=7,
        SeriesDescription="Schädel", Modality="MR", SpecificCharacterSet="ISO_IR 192",
    )  # fmt: skip
    report = image(SeriesInstanceUID="1.2.3.8", Modality="SR")
    report.file_meta = put_voxels(image(), random_zyx()).file_meta
    report.save_as(folder / "report", enforce_file_format=True)
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README.txt").write_text("scans")
    (folder / "empty").touch()
    (folder / ".DS_Store").write_bytes(b"\0" * 128 + b"DICM")
    return folder


def test_several_series_are_listed(study):
    with pytest.raises(InvalidInput) as caught:
        open_source(study)
    assert str(caught.value) == (
        f"{study} holds 2 series; choose one by its number, UID or description (--series 2, or"
        f" {study}::2): 2 'thorax' CT 11 × 6 × 7 (1.2.3.2); 7 'Schädel' MR 4 × 3 × 2 (1.2.3.9)"
    )


@pytest.mark.parametrize("series", [7, "1.2.3.9", "Schädel"])
def test_one_is_chosen(study, series):
    assert open_source(study, ImageChoice(series=series)).shape == (4, 3, 2)
    assert open_source(f"{study}::{series}").shape == (4, 3, 2)


def test_one_that_is_not_there_is_refused(study):
    with pytest.raises(InvalidInput, match="has no series 3; it holds 2 'thorax' CT 11 × 6 × 7"):
        open_source(study, ImageChoice(series=3))
    assert open_source(study / "second").identity() != open_source(study / "first").identity()


def test_a_folder_without_images_is_none_of_dicom(tmp_path):
    (tmp_path / "a.txt").write_text("no scan")
    with pytest.raises(InvalidInput, match="is a directory, but not a Zarr"):
        open_source(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InvalidInput, match="holds no DICOM image"):
        open_source(tmp_path)


# Refusals


def at(n, **fields):
    """Changes fields of the slices given."""

    def change(number, data):
        if number in (n if isinstance(n, tuple) else (n,)):
            for name, value in fields.items():
                setattr(data, name, value)

    return change


def tilted(n, data):
    x, y, z = positions(6)[n]
    data.ImagePositionPatient = [x, y + n * 0.5, z]


def gapped(n, data):
    x, y, z = positions(6)[n]
    data.ImagePositionPatient = [x, y, z + 5 * (n > 4)]


def rows(n, data):
    if n == 3:
        put_voxels(data, random_zyx((1, 8, 7)))


def wide(n, data):
    data.NumberOfFrames = 3
    put_voxels(data, random_zyx((3, 6, 7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at(3, ImagePositionPatient=positions(6)[4]), r"another lies: a/IM\d+ and a/IM\d+ at"),
        (gapped, "has slices 2.5 mm apart, but not between -20.5 and -13 mm; add the slices"),
        (tilted, "has slices that are tilted by 11.3° against their stack, as with a tilted"),
        (at(3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), r"in different orientations: \(1, 0"),
        (at(3, ImagePositionPatient=[-10, 21, -23]), "beside the line of the others: the one at"),
        (at(3, ImagePositionPatient=[-10, 20, -22.9]), "has slices 2.5 mm apart, but not between"),
        (at(3, PixelSpacing=[1, 1]), "different voxel sizes: 0.75×0.5 mm in a/IM000, 1×1 mm in"),
        (rows, "different sizes: 6 × 7 voxels in a/IM000, 8 × 7 voxels in"),
        (at(3, ImagePositionPatient=None), "and 1 of them no position in the patient, such as in"),
        (wide, "has 18 slices, and 18 of them no position in the patient"),
        (at(tuple(range(6)), ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "has no grid"),
        (at(3, PhotometricInterpretation="PALETTE COLOR"), "colours of a palette"),
        (
            at(3, ModalityLUTSequence=group(LUTExplanation="by hand")),
            "by a table",
        ),
        (at(3, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "is a mosaic"),
        (at(3, PhotometricInterpretation="CMYK"), "holds 1 × 16 bits CMYK in a voxel"),
        (at(3, BitsStored=17), "stores numbers in 17 bits up to bit 15 of 16"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, change, message):
    folder = save_series(tmp_path / "a", random_zyx((6, 6, 7)), change=change)
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)


def test_frames_at_one_position_are_refused(tmp_path):
    made = enhanced(random_zyx(), order=[0, 1, 2, 3, 4, 5] * 2)
    del made.PerFrameFunctionalGroupsSequence[11]
    made.NumberOfFrames = 11
    with pytest.raises(InvalidInput, match=r"6 or more of them where .* and 2 more; copy"):
        open_source(save(made, tmp_path / "a.dcm"))


# Damage


def damaged(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def tag(number, vr, value):
    return number.to_bytes(4, "little")[2:] + number.to_bytes(4, "little")[:2] + vr + value


ROWS = tag(0x00280010, b"US", b"\2\0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ROWS + b"\6\0", ROWS + b"\0\0", "it has 1 slices of 0 × 7 voxels"),
        (ROWS + b"\6\0", ROWS + b"\xff\xff", "is cut short"),
        (b"0.75\\0.5", b"0.75\\nan", "PixelSpacing is 0.75.nan"),
        (b"0.75\\0.5", b"0.75\\9e9", "spacing must be positive and finite"),
        (b"0.75\\0.5", b"9e99\\1.0", "PixelSpacing is 9e99.1.0"),
        (b"0.75\\0.5", b"0.75\\a.b", "could not convert string to float"),
        (tag(0x00280100, b"US", b"\2\0"), b"\x28\0\xff\xffUS\2\0", "it has no BitsAllocated"),
    ],
)
def test_headers_that_lie(tmp_path, old, new, message):
    path = save(put_voxels(image(), random_zyx()[:1]), tmp_path / "a.dcm")
    with pytest.raises(InvalidInput, match=message):
        open_source(damaged(path, old, new))


@pytest.mark.parametrize("count", ["0", "-1", "12", "999999", "many"])
def test_numbers_of_slices_that_lie(tmp_path, count):
    made = enhanced(random_zyx())
    made.add(pydicom.DataElement("NumberOfFrames", "LO", count))
    with pytest.raises(Damaged, match=r"a\.dcm (is cut short|has a damaged DICOM header)"):
        open_source(save(made, tmp_path / "a.dcm"))


@pytest.mark.parametrize("syntax", [None, J2K, RLE])
@pytest.mark.parametrize("keep", [0, 100, 140, 0.5, 0.99])
def test_cut_files(tmp_path, syntax, keep):
    made = enhanced(random_zyx((11, 40, 40)), syntax or ImplicitVRLittleEndian)
    path = save(made, tmp_path / "a.dcm")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InvalidInput, match=r"is cut short|damaged DICOM header|holds no DICOM"):
        open_source(path)


def test_other_bytes_with_this_suffix(tmp_path):
    for content in (b"", b"no scan" * 100, b"\0" * 128 + b"DICM" + b"junk" * 99):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(InvalidInput, match=r"holds no DICOM image|damaged DICOM header"):
            open_source(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", PACKED)
def test_a_slice_that_cannot_be_decoded(tmp_path, syntax):
    made = put_voxels(image(), random_zyx((1, 40, 40)), syntax)
    head = len(save(made, tmp_path / "a.dcm").read_bytes()) - len(made.PixelData)
    for begin, stop in ((head + 16, head + 96), (-80, -8)):
        content = bytearray((tmp_path / "a.dcm").read_bytes())
        content[begin:stop] = bytes(len(content[begin:stop]))
        (tmp_path / "b.dcm").write_bytes(content)
        if syntax == J2K and stop < 0:
            continue  # what stands there may be any voxels
        with pytest.raises(Damaged, match=r"b\.dcm (cannot be decoded|is cut|has a damaged)"):
            open_source(tmp_path / "b.dcm")[:]


def test_a_deflated_file(tmp_path):
    made = put_voxels(image(), random_zyx()[:1])
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    with pytest.raises(InvalidInput, match="is deflated as a whole"):
        open_source(save(made, tmp_path / "a.dcm"))


# Real files


@pytest.mark.slow
def test_what_pydicom_is_tested_with_is_read_as_pydicom_does_or_refused():
    refused, read = {}, 0
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(path for path in folder.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is wrong with them
            try:
                found = open_source(path)[:]
            except InvalidInput as error:
                refused[path.name] = str(error)
                continue
            data = pydicom.dcmread(path, force=True)
            if data.file_meta.TransferSyntaxUID != pydicom.uid.JPEGExtended12Bit:  # nor can it
                values = pydicom.pixels.apply_rescale(data.pixel_array, data)
                found = np.moveaxis(found, 0, -1) if found.ndim == 4 else found
                np.testing.assert_array_equal(found.reshape(values.shape), values, str(path))
                read += 1
    assert read > 30
    assert {"MR_truncated.dcm", "rtdose.dcm", "image_dfl.dcm"} <= refused.keys()
    assert not {"MR_small.dcm", "CT_small.dcm", "JPEG2000.dcm", "SC_rgb_rle.dcm"} & refused.keys()
    assert not [message for message in refused.values() if "\n" in message]


@pytest.mark.slow
def test_the_real_series_equals_what_pydicom_reads(shared_data):
    folder = shared_data("mr_dicom_vsseg")
    source = open_source(folder)
    files = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    files.sort(key=lambda data: float(data.ImagePositionPatient[2]))
    assert source.shape == (60, 512, 512)
    np.testing.assert_array_equal(source[:], np.stack([data.pixel_array for data in files]))
    assert source.meta.spacing == (1.5, 0.41015625, 0.41015625)
    assert source.meta.orientation == "SPL"
    x, y, z = files[0].ImagePositionPatient
    np.testing.assert_allclose(
        source.meta.affine,
        [[-0.41015625, 0, 0, -x], [0, -0.41015625, 0, -y], [0, 0, 1.5, z], [0, 0, 0, 1]],
        atol=1e-6,
    )
    assert tuple(round(value) for value in files[0].ImageOrientationPatient) == AXIAL
