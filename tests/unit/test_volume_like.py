"""Every function that takes a volume takes every `VolumeLike`, with equal results or one line."""

from __future__ import annotations

from functools import cache

import dask.array as da
import numpy as np
import pytest
import torch
import zarr

import volflow as vf
from volflow.errors import InvalidInput

xarray = pytest.importorskip("xarray")
nibabel = pytest.importorskip("nibabel")

SHAPE = (10, 12, 14)
VOXELS = np.random.default_rng(0).integers(0, 200, SHAPE).astype("int16")
KINDS = (
    "path", "url", "npy", "nii", "nii.gz", "volume", "zarr", "numpy", "memmap", "dask",
    "stored dask", "persisted dask", "xarray", "lazy xarray", "torch",
)  # fmt: skip
STORED = {"path", "url", "volume", "zarr"}  # which a viewer or a pyramid needs
SAMPLER = vf.GridSampler(8)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, client):
    """The same voxels in each of their forms; those on disk are only read."""
    folder = tmp_path_factory.mktemp("volumes")
    path = str(vf.convert(VOXELS, folder / "a.zarr", chunk=4, shard=8, progress=False).path)
    np.save(folder / "a.npy", VOXELS)
    for suffix in ("nii", "nii.gz"):
        nibabel.Nifti1Image(VOXELS.T, np.eye(4)).to_filename(folder / f"a.{suffix}")
    on_grid = xarray.DataArray(VOXELS.transpose(2, 0, 1), dims=("x", "z", "y"))
    return {
        "path": path,
        "url": f"file://{path}",
        "npy": folder / "a.npy",
        "nii": str(folder / "a.nii"),
        "nii.gz": str(folder / "a.nii.gz"),
        "volume": vf.open(path),
        "zarr": zarr.open_array(f"{path}/0", mode="r"),
        "numpy": VOXELS,
        "memmap": np.load(folder / "a.npy", mmap_mode="r"),
        "dask": da.from_array(VOXELS - 1, chunks=7) + 1,
        "stored dask": vf.open(path).dask(),
        "persisted dask": client.persist(da.from_array(VOXELS - 1, chunks=7)) + 1,
        "xarray": on_grid,
        "lazy xarray": (on_grid.chunk(x=5) - 1) + 1,
        "torch": torch.from_numpy(VOXELS).requires_grad_(requires_grad=False),
    }


@pytest.fixture(scope="module")
def known(volumes, client, tmp_path_factory):
    """What a function makes of the NumPy array, or of the volume where it must lie on the disk."""

    @cache
    def result(name):
        x = volumes["path" if name in ON_DISK else "numpy"]
        return FUNCTIONS[name](x, tmp_path_factory.mktemp("known"), client)

    return result


def computed(x, client):
    return np.asarray(client.compute(x).result())


def planes(figure):
    return [(plane["axis"], plane["index"]) for plane in figure.facts["planes"]]


def ordered(patches):
    """Patches in an order that does not follow chunks."""
    return sorted(patch.tobytes() for patch in patches)


def patches(x, tmp_path, client):
    return np.stack([one["image"].numpy() for one in vf.PatchStream(x, SAMPLER, memory="1GiB")])


def exported(x, tmp_path, client):
    return np.load(vf.export(x, tmp_path / "out.npy"))


# What each function makes of a volume; the same of every kind of it.
FUNCTIONS = {
    "convert": lambda x, out, client: vf.convert(
        x, out / "out.zarr", cluster=client, progress=False
    )[...],
    "write": lambda x, out, client: vf.write(x, out / "out.zarr", cluster=client, progress=False)[
        ...
    ],
    "write like": lambda x, out, client: vf.write(
        VOXELS, out / "out.zarr", like=x, cluster=client, progress=False
    )[...],
    "export": exported,
    "statistics": lambda x, out, client: vf.statistics(x, cluster=client).to_dict(),
    "sample": lambda x, out, client: ordered(computed(vf.sample(x, SAMPLER), client)),
    "PatchStream": patches,
    "map_overlap": lambda x, out, client: computed(
        vf.map_overlap(lambda b: b + 1, x, depth=1, boundary="reflect", dtype="i2"), client
    ),
    "map_model": lambda x, out, client: computed(
        vf.map_model(x, torch.nn.Identity(), patch=8, like=VOXELS), client
    ),
    "predict": lambda x, out, client: vf.predict(
        x, torch.nn.Identity(), out / "out.zarr", patch=8, mask=x, cluster=client, progress=False
    )[...],
    "preview": lambda x, out, client: planes(vf.preview(x)),
    "compare": lambda x, out, client: vf.compare(x, VOXELS, over=x).facts["difference"],
    "contact_sheet": lambda x, out, client: planes(vf.contact_sheet(x, tiles=2)),
    "open": lambda x, out, client: vf.open(x)[...],
    "pyramid": lambda x, out, client: len(vf.pyramid(x, cluster=client, progress=False).levels),
    "view": lambda x, out, client: vf.view(x, port=0).close(),
    "napari_snippet": lambda x, out, client: "napari" in vf.napari_snippet(x),
    "verify": lambda x, out, client: vf.verify(x),
}
# Where a kind makes no sense one line says why, and what to do.
BY_PARTS = "is compressed as a whole and cannot be read by parts; convert it first: volflow convert"
NEEDS_A_PART = ("write", "statistics", "sample", "PatchStream", "map_overlap", "map_model")
ON_DISK = {
    "open": r"a volume is opened from a path, .* given \w+; store other arrays with vf\.conver",
    "pyramid": r"a volume is opened from a path, .* given \w+; store other arrays with vf\.convert",
    "napari_snippet": r"a script for napari opens volumes from disk, .* store it first, vf\.write",
    "verify": r"only outputs on disk can be verified, given a \w+ in memory; give the path of an ",
}
ON_FILES = dict.fromkeys(
    [*ON_DISK, "view"], "is a file, not a Zarr store; convert it first: vf.convert"
) | {"verify": "has no receipt in .*; only files that volflow wrote can be verified"}
ON_AN_ARRAY = {
    "pyramid": "is an array of the volume .*; give that one",
    "verify": ON_DISK["verify"],
}


def refusal(name, kind):
    """What a function says of a kind; None where it takes it."""
    if kind == "nii.gz" and name in NEEDS_A_PART:
        return BY_PARTS
    if kind == "zarr":
        return ON_AN_ARRAY.get(name)
    if (name, kind) == ("napari_snippet", "stored dask"):  # it is known where its voxels are
        return None
    if kind in ("npy", "nii", "nii.gz"):
        return ON_FILES.get(name)
    return None if kind in STORED else ON_DISK.get(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_every_volume(name, kind, volumes, known, tmp_path, client):
    function, x = FUNCTIONS[name], volumes[kind]
    expected = refusal(name, kind)
    if expected is None:
        np.testing.assert_equal(function(x, tmp_path, client), known(name))
        return
    with pytest.raises(InvalidInput, match=expected) as refused:
        function(x, tmp_path, client)
    assert "\n" not in str(refused.value)


MASKED = {
    "numpy": (np.ma.masked_less(VOXELS, 9), r"mask; say what masked voxels hold: array.filled\(va"),
    "dask": (da.ma.masked_less(da.from_array(VOXELS), 9), r"dask\.array\.ma\.filled\(array, val"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ON_DISK and n != "write like"])
def test_a_mask_is_not_lost(name, kind, tmp_path, client):
    x, message = MASKED[kind]
    with pytest.raises(InvalidInput, match=message):
        FUNCTIONS[name](x, tmp_path, client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["write", "sample", "export"])
def test_a_mask_that_shows_only_in_the_blocks_is_not_lost(name, tmp_path, client):
    lying = da.from_array(VOXELS).map_blocks(
        lambda block: np.ma.masked_less(block, 9), meta=VOXELS[:0, :0, :0]
    )
    with pytest.raises(InvalidInput, match="the array is masked, and a volume has no mask"):
        FUNCTIONS[name](lying, tmp_path, client)


def test_a_dataset_is_a_case():
    dataset = xarray.Dataset(
        {"image": (("z", "y", "x"), VOXELS), "label": (("z", "y", "x"), VOXELS > 9)}
    )
    sample = next(iter(vf.PatchStream(dataset, SAMPLER)))
    np.testing.assert_array_equal(sample["image"][0], VOXELS[:8, :8, :8])
    assert sample["label"].dtype == torch.bool


def test_tensors_that_numpy_does_not_know_are_refused():
    with pytest.raises(InvalidInput, match=r"torch\.bfloat16, .* NumPy array; give x\.float\(\)"):
        vf.statistics(torch.zeros(2, 2, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{case}.nii.gz", "this takes one volume, not a pattern"),
        ("*.nii.gz", "many volumes, where they are taken, are written with {case}"),
        ("a.zarr", "check the path"),
    ],
)
def test_a_pattern_where_one_volume_is_taken_is_said_to_be_one(tmp_path, name, said):
    for function in (vf.open, vf.statistics):
        with pytest.raises(InvalidInput) as told:
            function(tmp_path / name)
        assert str(told.value) == f"{tmp_path / name} does not exist; {said}"
