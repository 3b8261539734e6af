"""NRRD: what its headers can say, beside what pynrrd reads, and the lies that they tell."""

import bz2
import gzip

import nrrd
import numpy as np
import pytest

from tests.unit.store.formats.test_sources import (
    SourceContract,
    assert_refused_in_one_line,
    random_zyx,
    read_in_slabs,
)
from tests.unit.volumes.test_export import stored, to_store
from volflow.errors import Damaged, InvalidInput
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta
from volflow.volumes.export import export


def header(**fields):
    """A header of 11 × 6 × 7 voxels of int16; fields are replaced, those that are None left out."""
    known = {
        "type": "short",
        "dimension": 3,
        "sizes": "7 6 11",
        "space": "left-posterior-superior",
        "space directions": "(2,0,0) (0,3,0) (0,0,4)",
        "encoding": "raw",
        "endian": "little",
    }
    known |= {name.replace("_", " "): value for name, value in fields.items()}
    lines = [f"{name}: {value}" for name, value in known.items() if value is not None]
    return "\n".join(["NRRD0005", *lines, "", ""]).encode()


def write(path, voxels=None, **fields):
    """Write voxels, by default of the header's shape, or bytes, behind a header."""
    data = random_zyx() if voxels is None else voxels
    path.write_bytes(header(**fields) + (data if isinstance(data, bytes) else data.tobytes()))
    return path


class TestNrrd(SourceContract):
    def make(self, folder, voxels):
        return write(folder / "a.nrrd", voxels)


class TestGzipNrrd(SourceContract):
    sequential = True

    def make(self, folder, voxels):
        packed = gzip.compress(b"skipped" + voxels.tobytes())
        return write(folder / "a.nrrd", packed, encoding="gz", byte_skip=7)


class TestBzip2Nrrd(SourceContract):
    sequential = True

    def make(self, folder, voxels):
        return write(folder / "a.nrrd", bz2.compress(voxels.tobytes()), encoding="bzip2")


class TestDetachedNrrd(SourceContract):
    def make(self, folder, voxels):
        (folder / "data").mkdir()
        data = b"one\ntwo\nand" + voxels.astype(">i2").tobytes()
        (folder / "data/vóxels 1.raw").write_bytes(data)
        skips = {"line skip": 2, "byteskip": 3}
        return write(folder / "a.nhdr", b"", datafile="data/vóxels 1.raw", endian="big", **skips)


class TestNrrdWhoseVoxelsEndTheFile(SourceContract):
    def make(self, folder, voxels):
        (folder / "a.raw").write_bytes(b"who knows how long" + voxels.tobytes())
        return write(folder / "a.nhdr", b"", data_file="a.raw", byte_skip=-1)


COLOURS = {"dimension": 4, "sizes": "3 7 6 11", "kinds": "RGB-color domain domain domain"}
COLOURS["space directions"] = "none (2,0,0) (0,3,0) (0,0,4)"


class TestNrrdOfColours(SourceContract):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "uint8")

    def make(self, folder, voxels):
        return write(folder / "a.nrrd", np.moveaxis(voxels, 0, -1), type="uchar", **COLOURS)


@pytest.mark.parametrize("name", ["brain1_image.nrrd", "brain1_label.nrrd"])
def test_real_files_equal_what_pynrrd_reads(name, shared_data):
    path = shared_data("nrrd_pyradiomics") / name
    voxels, said = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(read_in_slabs(path), voxels)
    meta = open_source(path).meta
    steps = said["space directions"] * (-1, -1, 1)
    np.testing.assert_allclose(np.array(meta.affine)[:3, :3].T, steps, atol=1e-6)
    place = said["space origin"] * (-1, -1, 1)
    np.testing.assert_allclose(np.array(meta.affine)[:3, 3], place, atol=1e-6)
    assert (meta.orientation, meta.unit) == ("SAL", "millimeter")
    np.testing.assert_allclose(meta.spacing, (6.5, 0.78125, 0.78125))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("Right-Anterior-Superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAST", (-1, 1, 1)),
    ],
)
def test_axes_lie_where_its_space_says(tmp_path, space, signs):
    steps = np.array([[0.7, 0.1, 0.06], [-0.1, 0.9, -0.8], [0.05, 2.4, -1.1]])
    vectors = " ".join(f"({a}, {b}, {c})" for a, b, c in steps)
    place = {"space origin": "(90.5,-126,72.25)", "measurement frame": "(1,0,0) (0,1,0) (0,0,1)"}
    meta = open_source(
        write(tmp_path / "a.nrrd", space=space, **place, space_directions=vectors)
    ).meta
    wanted = np.eye(4)
    wanted[:3] = np.c_[steps.T, (90.5, -126, 72.25)] * np.array(signs)[:, None]
    np.testing.assert_allclose(meta.affine, wanted, atol=1e-12)
    np.testing.assert_allclose(meta.spacing, np.linalg.norm(steps, axis=1)[::-1])


@pytest.mark.parametrize(
    ("fields", "spacing", "unit", "oriented"),
    [
        ({}, (4, 3, 2), "millimeter", True),
        ({"space units": '"um" "um" "um"'}, (4, 3, 2), "micrometer", True),
        ({"space": "3D-right-handed"}, (4, 3, 2), None, False),
        ({"space": None, "space dimension": 3}, (4, 3, 2), None, False),
        ({"space": None, "space directions": None}, (1, 1, 1), None, False),
        (
            {"space": None, "space directions": None, "spacings": "5 6 7", "units": '"a" "a" "a"'},
            (7, 6, 5), "a", False,
        ),
        ({"space": "LPST", "space directions": "(2,0,0,0) (0,3,0,0) (0,0,4,0)"}, (4, 3, 2),
         "millimeter", True),
    ],
)  # fmt: skip
def test_spacing_and_unit(tmp_path, fields, spacing, unit, oriented):
    meta = open_source(write(tmp_path / "a.nrrd", **fields)).meta
    assert (meta.spacing, meta.unit) == (spacing, unit)
    assert (meta.orientation, meta.affine is not None) == ("SPL" if oriented else None, oriented)


NONE = {"space": None, "space directions": None}


@pytest.mark.parametrize(
    ("fields", "stored", "turned"),
    [
        ({"sizes": "7 66", "dimension": 2, **NONE}, (66, 7), lambda v: v[None]),
        ({"sizes": "7 6 11 1", "dimension": 4, **NONE}, (11, 6, 7), lambda v: v),
        ({**COLOURS, "sizes": "1 7 6 11"}, (11, 6, 7), None),
        ({"sizes": "7 6 1 11", "dimension": 4, **NONE}, (11, 6, 7), lambda v: v),
        ({"sizes": "7 3 2 11", "dimension": 4, **NONE}, (11, 2, 3, 7), lambda v: v),
        ({"sizes": "7 3 2 1 11", "dimension": 5, **NONE, "kinds": "domain domain domain list list"},
         (11, 2, 3, 7), lambda v: v),
        ({"sizes": "3 7 22", **NONE, "kinds": "vector space space"}, (22, 7, 3),
         lambda v: np.moveaxis(v, -1, 0)[:, None]),
        ({"sizes": "3 7 22", **NONE, "spacings": "nan 2 2"}, (22, 7, 3),
         lambda v: np.moveaxis(v, -1, 0)[:, None]),
        ({"sizes": "7 6 1 11", "dimension": 4, "kinds": "domain domain domain list",
          "space directions": "(2,0,0) (0,3,0) (0,0,4) none"}, (11, 1, 6, 7), lambda v: v),
        ({"sizes": "7 6 1 11", "dimension": 4, "space": "LPST",
          "space directions": "(2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,9)"}, (11, 1, 6, 7),
         lambda v: v),
    ],
)  # fmt: skip
def test_axes_beyond_space_are_channels(tmp_path, fields, stored, turned):
    path = write(tmp_path / "a.nrrd", **fields)
    voxels = random_zyx().reshape(stored)
    np.testing.assert_array_equal(read_in_slabs(path), voxels if turned is None else turned(voxels))
    theirs, _ = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(theirs.ravel(), voxels.ravel())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"type": "block"}, InvalidInput, "its voxels are of type 'block'"),
        ({"encoding": "ascii"}, InvalidInput, "stored as 'ascii'; raw, gzip and bzip2 can be read"),
        ({"encoding": "hex"}, InvalidInput, "its voxels are stored as 'hex'"),
        ({"data file": "LIST\na.raw\nb.raw"}, InvalidInput, "spread over several files, 'LIST'"),
        ({"data file": "a%03d.raw 1 9 1"}, InvalidInput, "spread over several files, 'a%03d.raw"),
        ({"data file": "../a.raw"}, InvalidInput, r"voxels are in \.\./a\.raw, outside its own"),
        ({"data file": "/etc/passwd"}, InvalidInput, "are in /etc/passwd, outside its own folder"),
        ({"data file": "x/../../a"}, InvalidInput, "outside its own folder"),
        ({"data file": "a.raw"}, InvalidInput, r"voxels are in a\.raw, which does not exist"),
        ({"data file": "."}, InvalidInput, "which does not exist"),
        ({"data file": "a\0b"}, InvalidInput, "which does not exist"),
        ({"dimension": 4, "sizes": "7 3 2 11", "space directions": "(1,0,0) none (0,1,0) (0,0,1)"},
         InvalidInput, "channels lies between those of space"),
        ({"dimension": 5, "sizes": "7 3 2 2 11", **NONE}, InvalidInput, "at most one further axis"),
        ({"dimension": 1, "sizes": "462", **NONE}, InvalidInput, "1 lie in space"),
        ({"space units": '"mm" "mm" "um"'}, InvalidInput, "different units, mm, mm, um; write"),
        ({"endian": None}, Damaged, "endian '' is neither little nor big"),
        ({"encoding": None}, Damaged, "it has no field encoding"),
        ({"sizes": "7 -6 11"}, Damaged, r"sizes \[7, -6, 11\] are not all positive"),
        ({"sizes": "7 6"}, Damaged, "dimension and sizes do not fit, given 2 sizes"),
        ({"sizes": "7 6 eleven"}, Damaged, "invalid literal for int"),
        ({"sizes": "7 6 12"}, Damaged, "is cut short"),
        ({"sizes": f"7 6 {2**70}"}, Damaged, "is cut short"),
        ({"sizes": f"7 6 {2**70}", "encoding": "gzip"}, Damaged, "is cut short"),
        ({"byte skip": 1}, Damaged, "is cut short"),
        ({"byte skip": 2**90}, Damaged, "is cut short"),
        ({"byte skip": -2}, Damaged, "line skip 0 and byte skip -2 go backwards"),
        ({"byte skip": -1, "encoding": "gzip"}, Damaged, "byte skip -1 go backwards"),
        ({"line skip": 10**9}, Damaged, "has less lines than are to be skipped"),
        ({"space directions": "(2,0,0) (0,3,0)"}, Damaged, "are not one for each of 3 axes"),
        ({"space directions": "(2,0,0) (0,3,0) x"}, Damaged, "'x' is not a vector"),
        ({"space directions": "(2,0,0) (0,3,0) (0,0,x)"}, Damaged, "could not convert string"),
        ({"space directions": "(2,0,0) (0,3,0) (0,0,0)"}, InvalidInput, "spacing must be positive"),
        ({"space directions": "(2,0,0) (0,3,0) (0,1,0)"}, InvalidInput, "affine must map voxels"),
        ({"space directions": "(2,0,0) (0,3,0) (0,0,nan)"}, InvalidInput, "spacing must be"),
        ({"space directions": "(2,0,0) (0,3,0) (0,0,1e300)"}, InvalidInput, "spacing must be"),
        ({"space origin": "(1,2)"}, Damaged, "has not three numbers"),
        ({"space origin": "(1,2,inf)"}, InvalidInput, "affine must be a finite"),
        ({"kinds": "domain"}, Damaged, "kinds 'domain' are not one for each of 3 axes"),
        ({"Sizes": "7 6 11"}, Damaged, "it has the field 'Sizes' twice"),
        ({"no colon\nand": 1}, Damaged, "the line 'no colon' has no colon"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, fields, error, message):
    assert_refused_in_one_line(write(tmp_path / "a.nrrd", **fields), error, message)


@pytest.mark.parametrize("content", [b"", b"NRRD", b"NRRD0004", b"\0" * 5000, b"P6\n7 6\n255\n"])
def test_other_bytes_are_refused(tmp_path, content):
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.nrrd(: damaged NRRD header| is not a NRRD file)"):
        open_source(tmp_path / "a.nrrd")


def test_a_header_without_an_end_is_not_read_to_the_end_of_the_file(tmp_path):
    with (tmp_path / "a.nrrd").open("wb") as file:
        file.write(b"NRRD0004\n")
        file.truncate(2**33)  # a sparse file
    with pytest.raises(InvalidInput, match="no end of a header within 4 MiB"):
        open_source(tmp_path / "a.nrrd")


def test_a_file_without_a_suffix_is_known_by_its_first_bytes(tmp_path):
    assert open_source(write(tmp_path / "scan")).meta.spacing == (4, 3, 2)


# Written


def fields_of(path):
    return nrrd.read_header(str(path))


@pytest.mark.parametrize("space", ["LPS", "right-anterior-superior", "left-anterior-superior"])
@pytest.mark.parametrize("unit", ['"mm" "mm" "mm"', '"um" "um" "um"', None])
def test_a_file_comes_back(tmp_path, space, unit):
    more = {"space origin": "(90.5,-126,72.25)", "space units": unit}
    vectors = "(0.7,0.1,0.06) (-0.1,0.9,-0.8) (0.05,2.4,-1.1)"
    frame = {"measurement frame": "(1,0,0) (0,0,1) (0,1,0)", "content": "x"}
    path = write(
        tmp_path / "a.nrrd",
        type="short\nmodality:=DWMRI",
        space=space,
        space_directions=vectors,
        **more,
        **frame,
    )
    before = open_source(path)
    after = export(to_store(before, tmp_path / "a.zarr"), tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read_in_slabs(after), read_in_slabs(path))
    meta = open_source(after).meta
    np.testing.assert_allclose(meta.affine, before.meta.affine, atol=1e-12)
    assert (meta.spacing, meta.unit) == (before.meta.spacing, before.meta.unit)
    said, was = fields_of(after), fields_of(path)
    for name in ("space directions", "space origin", "measurement frame", "modality", "content"):
        np.testing.assert_array_equal(said[name], was[name])
    assert said["space"][:4] == {"LPS": "left"}.get(space, space[:4])


def test_others_go_into_the_space_of_itk_in_millimetres(tmp_path):
    meta = Meta(("c", "z", "y", "x"), (4, 3, 2), "micrometer", (10, 20, 30), "SAR",
                channels=("t1", "flaír"), kind="classes")  # fmt: skip
    voxels = random_zyx((2, 5, 6, 7), "uint8")
    path = export(stored(tmp_path / "a.zarr", voxels, meta), tmp_path / "a.nrrd")
    said = fields_of(path)
    assert said["space"] == "left-posterior-superior"
    wanted = np.diag((-0.002, -0.003, 0.004))
    np.testing.assert_allclose(said["space directions"][:3], wanted)
    assert np.isnan(said["space directions"][3]).all()
    np.testing.assert_allclose(said["space origin"], (-0.03, -0.02, 0.01))
    assert said["space units"] == ["mm"] * 3
    np.testing.assert_array_equal(nrrd.read(str(path), index_order="C")[0], voxels)
    again = open_source(path).meta
    assert (again.kind, again.channels) == ("classes", ("t1", "flaír"))
    np.testing.assert_allclose(again.spacing, (0.004, 0.003, 0.002))


def test_a_volume_that_lies_nowhere_is_not_put_into_a_body(tmp_path):
    meta = Meta(spacing=(4, 3, 2), translation=(8, 9, 10))
    path = export(stored(tmp_path / "a.zarr", random_zyx(), meta), tmp_path / "a.nrrd")
    again = open_source(path).meta
    assert "space" not in fields_of(path)
    assert (again.orientation, again.unit, again.translation) == (None, None, (8, 9, 10))


def test_what_others_than_the_voxels_mean_is_not_kept_for_other_voxels(tmp_path):
    """Names of segments, for an image that was made from a segmentation."""
    pairs = "short\nSegment0_ID:=Segment_1\nSegment0_Name:=liver"
    path = write(tmp_path / "a.nrrd", type=pairs)
    source = open_source(path)
    assert source.meta.kind == "classes"
    volume = to_store(source, tmp_path / "a.zarr")
    assert fields_of(export(volume, tmp_path / "b.nrrd"))["Segment0_Name"] == "liver"
    scores = Meta(spacing=source.meta.spacing, source=source.meta.source)
    volume = stored(tmp_path / "s.zarr", random_zyx(dtype="float16"), scores)
    said = fields_of(export(volume, tmp_path / "s.nrrd"))
    assert "Segment0_Name" not in said
    assert said["type"] == "float"
