"""Files that lie, by name: each is one clear line and exit code 2 or 3, and nothing is written."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile

import nibabel as nib
import numcodecs
import numpy as np
import pytest
import zarr

from tests.hostile_files import SHAPE, contents, replaced, scan
from volflow.cli import run
from volflow.errors import Unreadable
from volflow.geometry.roi import Roi
from volflow.report.viewers.appearance import appearances
from volflow.report.viewers.neuroglancer import viewer_state
from volflow.sampling.counts.per_cell import count_classes
from volflow.store.formats.sources import open_source
from volflow.store.volume import open_volume
from volflow.volumes.statistics import statistics


@pytest.fixture
def refused(folder, capsys):
    """Run a command line that must be refused; what it says, and the exit code."""

    def refuse(*words: str) -> tuple[str, int]:
        before = contents(folder)
        code = run([*map(str, words)])
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert contents(folder) == before
        return told, code

    return refuse


def edit(path, *changes):
    """Replace values of a JSON file, each given by its place."""
    value = json.loads(path.read_text())
    for at, new in changes:
        value = replaced(value, at, new)
    path.write_text(json.dumps(value))


def nifti(path, **fields):
    """The scan with fields of its header replaced."""
    image = nib.Nifti1Image(scan().transpose(), np.diag([1, 1, 2, 1]).astype(float))
    header = image.header.copy()
    header.set_data_offset(352)
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + bytes(4) + scan().tobytes()
    path.write_bytes(gzip.compress(data) if path.name.endswith("gz") else data)


@pytest.mark.parametrize("name", ["h.nii", "h.nii.gz"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"vox_offset": -1}, "vox_offset -1, inside the header"),
        ({"vox_offset": 347}, "vox_offset 347"),
        ({"vox_offset": 3e38}, "vox_offset 3e+38"),
        ({"vox_offset": np.nan}, "damaged NIfTI header"),
        ({"vox_offset": -np.inf}, "damaged NIfTI header"),
        ({"dim": (4, 32767, 32767, 32767, 32767, 1, 1, 1)}, "is cut short"),
        ({"dim": (7, *[32767] * 7)}, "more than one axis beyond x, y, z"),
        ({"dim": (3, 12, 0, 6, 1, 1, 1, 1)}, "has sizes [12, 0, 6]"),
        ({"dim": (-3, 12, 10, 6, 1, 1, 1, 1)}, "has sizes []"),
        ({"datatype": 1}, "a volume holds bool, integers or floats"),
        ({"datatype": 31000}, "damaged NIfTI header"),
        ({"scl_slope": 3e38, "scl_inter": 1}, "voxels are scaled by 3e+38"),
        ({"srow_x": (1e38, 0, 0, 0)}, "spacing must be positive and finite"),
        ({"srow_x": (1, 0, 0, np.inf)}, "affine must be a finite 4 x 4 matrix"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "damaged NIfTI header"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": (1, 1e-38, 1, 1, 1, 1, 1, 1)}, "spacing"),
    ],
)
def test_nifti_headers(folder, refused, name, fields, says):
    nifti(folder / name, **fields)
    told, code = refused("convert", name, "out.zarr", "-q")
    assert says in told
    assert code in (2, 3)


def test_a_sound_nifti_of_the_other_byte_order_is_read(folder):
    image = nib.Nifti1Image(scan().transpose(), np.diag([1, 1, 2, 1]).astype(float))
    swapped = nib.Nifti1Image(scan().transpose().astype(">i2"), None, image.header.as_byteswapped())
    (folder / "big.nii").write_bytes(swapped.to_bytes())
    assert np.array_equal(open_source(folder / "big.nii").read(Roi.full(SHAPE)), scan())


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({"shape": (10**15,) * 3}, "is not a .npy array or is cut short"),
        ({"shape": (2**40, 2**40, 2**40)}, "is not a .npy array or is cut short"),
        ({"shape": (-6, 10, 12)}, "is not a .npy array or is cut short"),
        ({"descr": "|O"}, "is not a .npy array or is cut short"),
        ({"descr": "|V2"}, "a volume holds bool, integers or floats"),
        ("(" * 500, "is not a .npy array or is cut short"),
        ("{" + "[" * 2000, "is not a .npy array or is cut short"),
    ],
)
def test_npy_headers(folder, refused, head, says):
    if isinstance(head, dict):
        head = repr({"descr": "<i2", "fortran_order": False, "shape": SHAPE, **head})
    text = head.encode().ljust(2118) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + scan().tobytes()
    (folder / "h.npy").write_bytes(data)
    told, code = refused("convert", "h.npy", "out.zarr", "-q")
    assert says in told
    assert code in (2, 3)


def test_a_long_npy_header_is_not_read(folder, refused):
    with (folder / "h.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31))
        file.truncate(2**32)  # a sparse file
    (folder / "h.npy").rename(folder.parent / "h.npy")  # not compared byte by byte
    told, code = refused("info", folder.parent / "h.npy")
    assert "its header has more than 65536 bytes" in told
    assert code == 3
    (folder.parent / "h.npy").unlink()


GROUP, ARRAY = "a.zarr/zarr.json", "a.zarr/0/zarr.json"
LEVELS = "attributes", "ome", "multiscales", 0, "datasets"
SCALE = *LEVELS, 0, "coordinateTransformations", 0, "scale"
CHUNK = "codecs", 0, "configuration", "chunk_shape"
GRID = "chunk_grid", "configuration", "chunk_shape"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (GROUP, [(SCALE, [1e300, 1, 1])], "spacing must be positive and finite"),
        (GROUP, [(SCALE, [1e-300, 1, 1])], "spacing must be positive and finite"),
        (GROUP, [(SCALE, [1e300] * 3)], "spacing must be positive and finite"),
        (GROUP, [(SCALE[:7], [{"type": "scale", "scale": [1e200] * 3}] * 2)], "given (inf, inf"),
        (GROUP, [((*SCALE[:6], "path"), "../../etc")], "level '../../etc'"),
        (GROUP, [((*SCALE[:6], "path"), "/etc")], "level '/etc'"),
        (GROUP, [(("attributes", "volflow", "affine"), [[0] * 4] * 4)], "affine must map voxels"),
        (GROUP, [(("attributes", "volflow", "source", "header"), "a")], "damaged OME-Zarr"),
        (ARRAY, [(("shape",), [-6, 10, 12])], "level '0' of"),
        (ARRAY, [(("shape",), [10**18, 10**18, 10**18])], "which is impossible"),
        (ARRAY, [((*GRID, 0), 0)], "which is impossible"),
        (ARRAY, [((*CHUNK, 0), 3)], "level '0' of"),
        (ARRAY, [((*GRID, 0), 4 * 10**9)], "which is impossible"),
        (ARRAY, [(("codecs", 0, "name"), "unheard of")], "level '0' of"),
        (ARRAY, [(("data_type",), "string")], "level '0' of"),
        (ARRAY, [(("shape",), [6, 10])], "level '0' of"),
        ("v2.zarr/s/.zarray", [(("dtype",), "|O")], "level 's' of"),
        ("v2.zarr/s/.zarray", [(("dtype",), [["a", "<i2"]])], "level 's' of"),
        ("v2.zarr/s/.zarray", [(("chunks",), [0, 0, 0])], "which is impossible"),
    ],
)
@pytest.mark.parametrize("command", ["info", "preview", "export"])
def test_zarr_metadata(folder, refused, file, changes, says, command):
    edit(folder / file, *changes)
    out = {"info": (), "preview": ("-o", "a.png"), "export": ("out.nii",)}[command]
    told, code = refused(command, file.split("/")[0], *out)
    assert says in told
    assert code in (2, 3)


@pytest.mark.slow
def test_a_pyramid_of_many_levels(folder, refused):
    edit(folder / GROUP, (LEVELS, ["here"]))
    steps = [{"type": "scale", "scale": [1, 1, 1]}]
    level = json.dumps({"path": "0", "coordinateTransformations": steps})
    text = (folder / GROUP).read_text().replace('"here"', ", ".join([level] * 30_000))
    (folder / GROUP).write_text(text)
    assert refused("info", "a.zarr") == (
        f"volflow: {folder}/a.zarr: it lists 30000 levels; at most 64 are possible\n", 3
    )  # fmt: skip


@pytest.mark.slow
def test_a_volume_too_large_for_anything_has_facts_and_no_pictures(folder, refused):
    """What Zarr allows: nothing is stored, and all of it is zero."""
    edit(folder / ARRAY, (("shape",), [10**6, 10**6, 10**6]))
    assert run(["info", "a.zarr"]) == 0
    for words in (["preview", "a.zarr"], ["statistics", "a.zarr", "-q"], ["pyramid", "a.zarr"]):
        told, code = refused(*words)
        assert code == 2, told
    told, code = refused("convert", "a.zarr/0", "out.zarr", "-q")
    assert code == 2, told


@pytest.mark.parametrize("depth", [70, 900, 10_000])
@pytest.mark.parametrize(
    ("file", "at", "words"),
    [
        ("a.zarr.volflow/plan.json", ("fingerprint", "x"), ("verify", "a.zarr")),
        ("a.zarr.volflow/plan.json", ("settings", "grid"), ("status", "a.zarr")),
        ("a.zarr.volflow/plan.json", ("settings", "x"), ("convert", "a.nii", "a.zarr", "-q")),
        ("bundle/bundle.json", ("arguments", "features"), ("halo", "bundle")),
        (GROUP, ("attributes", "x"), ("info", "a.zarr")),
        (ARRAY, ("attributes", "x"), ("info", "a.zarr")),
        ("v2.zarr/.zattrs", ("x",), ("info", "v2.zarr")),
    ],
)
def test_json_nested_deeply(folder, refused, file, at, words, depth):
    edit(folder / file, (at, "here"))
    text = (folder / file).read_text().replace('"here"', "[" * depth + "]" * depth)
    (folder / file).write_text(text)
    told, code = refused(*words)
    assert "it is nested more than 64 deep" in told
    assert code == 3


@pytest.mark.parametrize("words", [("verify", "a.zarr"), ("status", "a.zarr"), ("info", "a.zarr")])
@pytest.mark.parametrize("grid", [[10**13], ["many"], [[1]], {"a": 1}, [True], [-1], [10**400]])
def test_the_grid_of_a_journal(folder, refused, words, grid):
    edit(folder / "a.zarr.volflow/plan.json", (("settings", "grid"), grid))
    told, code = refused(*words)
    assert "plan.json cannot be used: its grid" in told
    assert code == 3


@pytest.mark.parametrize(
    ("at", "new", "bad"),
    [
        (("entries", 0, "stop"), [10**13] * 3, "the journal's box lies outside the array"),
        (("entries", 0, "start"), [1, 0, 0], "the journal's box is not a stored object"),
        (("entries", 0, "start"), ["a", 0, 0], None),
        (("stages",), {"read": 10**400}, None),
        (("entries", 0, "array"), "0/0", "array 0/0 cannot be opened"),
    ],
)
def test_the_records_of_a_journal(folder, capsys, at, new, bad):
    """A record that is none is no record; one that lies is found out."""
    edit(folder / "a.zarr.volflow/done/00000000.json", (at, new))
    assert run(["verify", "a.zarr", "-q"]) == (3 if bad else 1)
    assert (bad or "3 of 4 blocks verified, 0 bad, 1 missing") in capsys.readouterr().out


def test_a_record_cut_in_the_middle_is_none(folder, capsys):
    path = folder / "a.zarr.volflow/done/00000000.json"
    path.write_bytes(path.read_bytes()[:40])
    assert run(["verify", "a.zarr", "-q"]) == 1
    assert "0 bad, 1 missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ([10**9, 10**9], "whole channel counts from 1 to 65536"),
        ([4] * 10**5, "1 to 16 levels"),
        ([10**400], "whole channel counts"),
        ("ab", "whole channel counts"),
        ([65536, 65536], "do not fit"),
    ],
)
def test_the_architecture_of_a_bundle(refused, folder, features, says):
    edit(folder / "bundle/bundle.json", (("arguments", "features"), features))
    told, code = refused("halo", "bundle")
    assert says in told
    assert code == 2


@pytest.mark.parametrize("size", [2**60, 2**64 - 1, 10**8, 0])
def test_the_header_of_safetensors(refused, folder, size):
    path = folder / "bundle/weights.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    told, code = refused("halo", "bundle")
    assert "weights.safetensors cannot be read" in told
    assert code == 3


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[" * 9999, "null", '{"format": 1, "identity": 1}'])
def test_statistics_that_are_kept_are_made_anew(folder, text):
    wanted = statistics("a.zarr", progress=False)
    path = folder / "a.zarr.volflow/statistics-all.json"
    sound = json.loads(path.read_text())
    path.write_text(text)
    assert statistics("a.zarr", progress=False) == wanted
    for at, new in (("counts", [-1]), ("bins", [2**40]), ("moments", {"a": 1}), ("dtype", "O")):
        path.write_text(json.dumps(replaced(sound, ("channels", 0, at), new)))
        assert statistics("a.zarr", progress=False) == wanted


@pytest.mark.slow
def test_counts_that_are_kept_are_made_anew(folder):
    source = open_source(folder / "labels.npy")
    wanted = count_classes(source, 4, Roi.full(SHAPE), progress=False)
    path = folder / "labels.npy.volflow/classes-4x4x4.npz"
    with np.load(path) as file:
        kept = dict(file)
    cell, value, count = (kept[name] for name in ("cell", "value", "count"))
    wrong = [{"cell": cell + 10**9}, {"count": -count}, {"value": value[1:]}, {"more": cell}]
    for change in (*wrong, {"cell": cell.astype("f8")}):
        np.savez(path, **{**kept, **change})
        found = count_classes(source, 4, Roi.full(SHAPE), progress=False)
        assert np.array_equal(found.count, wanted.count)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fingerprint.npy", bytes(2**20))
    found = count_classes(source, 4, Roi.full(SHAPE), progress=False)
    assert np.array_equal(found.cell, wanted.cell)


def test_names_that_no_terminal_can_show(folder, capfd):
    """Lone surrogates are JSON, but no text."""
    edit(folder / "v2.zarr/.zattrs", (("omero", "channels", 0, "label"), "\ud800"))
    assert run(["info", "v2.zarr"]) == 0


def test_names_are_no_mathematics(folder):
    """Matplotlib takes dollars for formulas."""
    zarr.open_group(folder / "v2.zarr").attrs["omero"] = {"channels": [{"label": "$x_{"}]}
    assert run(["preview", "v2.zarr", "-o", "a.png", "--dpi", "30"]) == 0
    assert open_volume(folder / "v2.zarr").meta.channels == ("$x_{",)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("cut", [0, 15, 16, 400])
def test_a_blosc_chunk_that_is_cut_short_does_not_end_the_process(tmp_path, zarr_format, cut):
    blosc = {2: numcodecs.Blosc("lz4"), 3: zarr.codecs.BloscCodec(cname="lz4")}[zarr_format]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, chunks=SHAPE, dtype="i2", compressors=blosc,
        zarr_format=zarr_format,
    )  # fmt: skip
    array[:] = scan()
    (chunk,) = (path for path in (tmp_path / "a.zarr").rglob("*0") if path.is_file())
    data = bytearray(chunk.read_bytes()[:cut])
    data[12:16] = (2**30).to_bytes(4, "little")[: max(0, cut - 12)]
    chunk.write_bytes(data)
    with pytest.raises(Unreadable, match="bytes whose header claims"):
        open_volume(tmp_path / "a.zarr")[:]


@pytest.mark.parametrize("names", [["z"], 3, {"a": 1}, [[], {}, 0], [None, None, None]])
def test_dimensions_that_are_no_names(folder, names):
    (folder / "v2.zarr/s/.zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": names}))
    state = viewer_state(appearances(["v2.zarr/s"]), "http://localhost")
    assert "d0" in json.dumps(state)


@pytest.mark.parametrize("claimed", [10**6, 2**32 - 1])
def test_nor_does_one_inside_of_a_shard(tmp_path, claimed):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(16, 16, 16), chunks=(4, 4, 4), shards=(8, 8, 8), dtype="i2",
        compressors=zarr.codecs.BloscCodec(cname="lz4"),
    )  # fmt: skip
    array[:] = np.random.default_rng(0).integers(0, 9, (16, 16, 16), "i2")
    shard = tmp_path / "a.zarr/c/1/0/1"
    data = bytearray(shard.read_bytes())
    start, _ = struct.unpack_from("<QQ", data, len(data) - 4 - 16 * 8 + 16 * 3)  # chunk (0, 1, 1)
    struct.pack_into("<I", data, start + 12, claimed)
    shard.write_bytes(data)
    volume = open_volume(tmp_path / "a.zarr")
    assert np.array_equal(volume[8:12, :, 4:12], array[8:12, :, 4:12])
    with pytest.raises(Unreadable, match=f"bytes whose header claims {claimed}"):
        volume[8:9, 4:5, 12:13]


def test_a_path_that_no_file_system_has(refused):
    assert "file name too long" in refused("info", "a" * 999)[0]
