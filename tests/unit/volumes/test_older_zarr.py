"""OME-Zarr 0.4: what older software reads, and what is refused."""

import gzip
import json

import numpy as np
import pytest
import zarr

from tests.unit.store.formats.test_nrrd import header
from tests.unit.store.formats.test_sources import random_zyx
from tests.unit.volumes.test_export import stored
from volflow.cli import run
from volflow.errors import Damaged, InvalidInput, MemoryRefused
from volflow.store.meta import Level, Meta
from volflow.store.ngff import write_group
from volflow.store.volume import open_volume
from volflow.volumes.export import export

IMAGE = Meta(("c", "z", "y", "x"), (2, 1, 0.5), "micrometer", (5, 6, 7), "SAL", channels=("a", "b"))
CLASSES = Meta(
    spacing=(2, 1, 0.5), unit="millimeter", kind="classes", colors=("000000", "00FF00"),
    affine=np.diag([0.5, 1, 2, 1]).tolist(),
)  # fmt: skip


def levels(folder, meta, dtype):
    """A volume of two levels, whose chunks do not divide it."""
    voxels = random_zyx((2, 9, 10, 11)[-len(meta.axes) :], "uint8") % 3
    volume = stored(folder / "a.zarr", voxels.astype(dtype), meta)
    group, coarse = zarr.open_group(volume.path), meta.regrid((2, 2, 2))
    group.create_array("1", data=voxels[..., ::2, ::2, ::2].astype(dtype), chunks=volume.chunks)
    finest = Level("0", meta.spacing, meta.translation)
    write_group(group, meta, [finest, Level("1", coarse.spacing, coarse.translation)])
    return open_volume(volume.path)


@pytest.mark.parametrize(("meta", "dtype"), [(IMAGE, "float16"), (CLASSES, "uint16")])
@pytest.mark.parametrize("memory", ["1GiB", "34MiB"])
def test_all_levels_are_there_and_valid(tmp_path, meta, dtype, memory):
    yaozarrs = pytest.importorskip("yaozarrs")
    models = pytest.importorskip("ome_zarr_models.v04")
    volume = levels(tmp_path, meta, dtype)
    path = export(volume.path, tmp_path / "old.zarr", ngff="0.4", memory=memory)
    assert path == tmp_path / "old.zarr"
    group = zarr.open_group(path, mode="r", zarr_format=2)
    if dtype != "float16":  # which yaozarrs' 0.4 does not count among numbers
        yaozarrs.validate_zarr_store(str(path))
    models.Image.from_zarr(group)
    if meta.kind == "classes":
        label = models.ImageLabel.from_zarr(group).attributes.image_label
        assert [color.label_value for color in label.colors] == [0, 1]
    for level in (0, 1):
        old, new = open_volume(path, level), open_volume(volume.path, level)
        np.testing.assert_array_equal(old[...], new[...])
        assert (old.meta, old.dtype, old.chunks) == (new.meta, new.dtype, new.chunks)
        keys = [file.name for file in (path / str(level)).rglob("*") if file.is_file()]
        assert set(keys) - {".zarray", ".zattrs"} <= set(map(str, range(9)))


def test_tensorstore_reads_the_same(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    volume = levels(tmp_path, IMAGE, "uint16")
    export(volume, tmp_path / "old.zarr", ngff="0.4")
    at = {"driver": "file", "path": f"{tmp_path}/old.zarr/0"}
    read = tensorstore.open({"driver": "zarr", "kvstore": at}).result().read().result()
    np.testing.assert_array_equal(read, volume[...])


def test_a_level_is_written_with_those_that_are_coarser(tmp_path):
    volume = open_volume(levels(tmp_path, IMAGE, "uint16").path, level=1)
    path = export(volume, tmp_path / "old.zarr", ngff="0.4")
    assert len(open_volume(path).levels) == 1
    assert open_volume(path).meta == volume.meta


def test_what_is_no_volume_of_ours_is_written_too(tmp_path):
    packed = gzip.compress(random_zyx().tobytes())
    (tmp_path / "a.nrrd").write_bytes(header(encoding="gzip") + packed)
    for x in (tmp_path / "a.nrrd", random_zyx()):
        path = export(x, tmp_path / f"{type(x).__name__}.zarr", ngff="0.4")
        np.testing.assert_array_equal(open_volume(path)[...], random_zyx())


def test_by_command(tmp_path, capsys, monkeypatch):
    levels(tmp_path, CLASSES, "uint8")
    monkeypatch.chdir(tmp_path)
    assert run(["export", "a.zarr", "old.zarr", "--ngff", "0.4", "--plan"]) == 0
    assert not (tmp_path / "old.zarr").exists()
    assert run(["export", "a.zarr", "old.zarr", "--ngff", "0.4"]) == 0
    assert "label map" in capsys.readouterr().out
    assert json.loads((tmp_path / "old.zarr/.zgroup").read_text()) == {"zarr_format": 2}
    assert run(["export", "a.zarr", "old.zarr", "--ngff", "0.4", "--overwrite"]) == 2


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("old.zarr", {}, r"names a Zarr volume.*copy it with convert, or give ngff=\"0\.4\""),
        (
            "old.zarr",
            {"ngff": "0.5"},
            r"ngff must be \"0\.4\", given '0\.5'; OME-Zarr 0\.5 is what",
        ),
        ("a.zarr", {"ngff": "0.4"}, "exists; choose another name"),
        ("a.zarr", {"ngff": "0.4", "overwrite": True}, "exists; choose another name"),
        ("old.nii", {"ngff": "0.4"}, r"old\.nii cannot name a Zarr volume"),
        ("no/old.zarr", {"ngff": "0.4"}, "the folder .*no does not exist"),
        (
            "s3://bucket/old.zarr",
            {"ngff": "0.4"},
            "is a URL, and OME-Zarr 0.4 is written to a disk",
        ),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, out, options, message):
    stored(tmp_path / "a.zarr", random_zyx())
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match=message):
        export("a.zarr", out, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_memory_that_holds_no_chunk_is_refused(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_zyx())
    with pytest.raises(MemoryRefused, match=r"chunks of \[4, 4, 4\] voxels need memory of"):
        export(volume, tmp_path / "old.zarr", ngff="0.4", memory="1MiB")


def test_a_damaged_volume_leaves_nothing(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_zyx())
    (shard,) = tmp_path.glob("a.zarr/0/c/1/0/0")
    shard.write_bytes(shard.read_bytes()[:30])
    with pytest.raises(Damaged):
        export(volume, tmp_path / "old.zarr", ngff="0.4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]
