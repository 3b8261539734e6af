"""Cases: everything opens to the same arrays, and what cannot be sampled together is refused."""

from __future__ import annotations

import pickle

import cloudpickle
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases import named_arrays as module
from volflow.sampling.cases.open_cases import open_cases
from volflow.store.formats.sources import stem
from volflow.store.volume import open_volume

SHAPE = (20, 33, 40)
MM = {"spacing": (2.0, 1.0, 1.0), "unit": "millimeter"}


def voxels(shape=SHAPE, dtype="int16", seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def save_npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def save_nifti(path, zyx, spacing=(1.0, 1.0, 2.0)):
    nib = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(zyx.T, np.diag([*spacing, 1.0])).to_filename(path)
    return path


def folder(base, *names, parts=("images", "labels")):
    for part in parts:
        (base / part).mkdir(parents=True)
        for n, name in enumerate(names):
            dtype = "uint8" if part == "labels" else "int16"
            store(base / part / f"{name}.zarr", voxels(dtype=dtype, seed=n), **MM)
    return base


def padded(array, roi):
    """The oracle: everything padded far enough, then cut."""
    array = array if array.ndim == 4 else array[None]
    pad = [(0, 0), (50, 50), (50, 50), (50, 50)]
    box = Roi(tuple(a + 50 for a in roi.start), tuple(b + 50 for b in roi.stop))
    return np.pad(array, pad)[:, *box.slices()]


@pytest.fixture(params=["numpy", "dask", "zarr", "path", "volume", "npy", "nii"])
def one(request, tmp_path):
    """A volume in each of its forms, and its voxels."""
    array = voxels()
    if request.param == "numpy":
        return array, array
    if request.param == "dask":
        return da.from_array(array, chunks=(7, 16, 40)) + 0, array
    if request.param == "zarr":
        return zarr.create_array({}, data=array, chunks=(8, 8, 8)), array
    if request.param == "npy":
        return save_npy(tmp_path / "scan.npy", array), array
    if request.param == "nii":
        return save_nifti(tmp_path / "scan.nii", array), array
    path = store(tmp_path / "scan.zarr", array, **MM)
    return (open_volume(path) if request.param == "volume" else path), array


def test_every_form_of_a_volume_reads_the_same(one):
    x, array = one
    (case,) = open_cases(x)
    assert list(case.sources) == ["image"]
    assert case.shape == SHAPE
    assert case.sources["image"].dtype == array.dtype
    assert case.classes == frozenset()
    assert case.voxel_bytes("image") == array.itemsize
    for roi in (Roi.full(SHAPE), Roi((3, 4, 5), (13, 5, 40)), Roi((-9, 20, -1), (4, 50, 60))):
        np.testing.assert_array_equal(case.read("image", roi), padded(array, roi))


boxes = st.tuples(*[st.tuples(st.integers(-30, 45), st.integers(0, 50)) for _ in range(3)])


@given(boxes, st.integers(1, 3))
def test_a_read_is_a_cut_from_the_padded_volume(box, channels):
    array = voxels((channels, 12, 9, 14), "uint8")
    roi = Roi(tuple(a for a, _ in box), tuple(a + n for a, n in box))
    roi = Roi(roi.start, tuple(min(50, b) for b in map(max, roi.start, roi.stop)))
    (case,) = open_cases(array)
    found = case.read("image", roi)
    assert found.shape == (channels, *roi.shape)
    np.testing.assert_array_equal(found, padded(array, roi))


def test_large_boxes_are_read_in_whole_chunk_layers(tmp_path, monkeypatch):
    array = voxels((2, 50, 20, 20))
    (case,) = open_cases(store(tmp_path / "a.zarr", array))  # chunks of 16
    read = []
    source = case.sources["image"]
    monkeypatch.setattr(
        type(source), "read", lambda self, roi: read.append(roi) or array[roi.slices()]
    )
    monkeypatch.setattr(module, "READ_BYTES", 1)
    roi = Roi((5, -3, 2), (45, 18, 25))
    np.testing.assert_array_equal(case.read("image", roi), padded(array, roi))
    assert [(r.start[1], r.stop[1]) for r in read] == [(5, 16), (16, 32), (32, 45)]
    read.clear()
    monkeypatch.setattr(module, "READ_BYTES", 2**24)
    case.read("image", roi)
    assert len(read) == 1


def test_reads_into_an_array_that_is_used_again():
    array = voxels()
    (case,) = open_cases(array)
    out = np.full((1, 8, 8, 8), 77, "int16")
    roi = Roi((-4, 0, 36), (4, 8, 44))
    assert case.read("image", roi, out=out) is out
    np.testing.assert_array_equal(out, padded(array, roi))
    np.testing.assert_array_equal(case.read("image", roi.shift((90, 0, 0)), out=out), 0)
    with pytest.raises(InvalidInput, match=r"out must be int16 \(1, 8, 8, 8\) .* given int32"):
        case.read("image", roi, out=out.astype("int32"))


def test_chunks_are_those_that_are_stored(tmp_path):
    path = store(tmp_path / "a.zarr", voxels())
    uneven = da.from_array(voxels(), chunks=((3, 15, 2), (33,), (20, 20))) + 0
    assert open_cases(path)[0].chunk == (16, 16, 16)
    assert open_cases(open_volume(path).dask())[0].chunk == (16, 16, 16)
    assert open_cases(uneven)[0].chunk == (15, 33, 20)
    assert open_cases(voxels((2, 100, 30, 70)))[0].chunk == (64, 30, 64)


def test_names_of_cases(tmp_path):
    a, b = (store(tmp_path / name, voxels(), **MM) for name in ("a.zarr", "b.ome.zarr"))
    assert [c.name for c in open_cases([a, {"image": b}, voxels()])] == ["a", "b", "case2"]
    assert [c.name for c in open_cases({"q": {"image": a}, "p": {"image": b}})] == ["q", "p"]
    (case,) = open_cases({"name": "patient 7", "image": a, "label": voxels(dtype="uint8")})
    assert (case.name, list(case.sources)) == ("patient 7", ["image", "label"])
    assert [c.name for c in open_cases(open_cases([a, b]))] == ["a", "b"]
    assert stem("x.NII.GZ") == "x"


def test_the_first_case_leads_and_others_take_its_order():
    a, b = voxels(), voxels(dtype="uint8")
    first, second = open_cases([{"image": a, "label": b}, {"label": b, "image": a}])
    assert list(first.sources) == list(second.sources) == ["image", "label"]
    assert second.lead == "image"


def test_which_arrays_hold_classes(tmp_path):
    stored = store(tmp_path / "organs.zarr", voxels(dtype="uint8"), kind="classes")
    arrays = {"image": voxels(), "mask": voxels(), "Segmentation": voxels(), "organs": stored}
    assert open_cases(arrays)[0].classes == {"mask", "Segmentation", "organs"}
    chosen = open_cases(arrays, classes="image")
    assert chosen[0].classes == {"image"}
    assert open_cases(chosen)[0].classes == {"image"}
    assert open_cases(arrays, classes=())[0].classes == frozenset()
    with pytest.raises(InvalidInput, match="classes names truth, but the arrays are image, mask"):
        open_cases(arrays, classes=["truth"])


def test_a_folder_of_cases(tmp_path):
    base = folder(tmp_path / "cases", "b", "a", "c", parts=("labels", "images", "weights"))
    (base / "images" / "notes.txt").write_text("not a volume")
    (base / "images" / "a.zarr.volflow").mkdir()
    (base / ".cache").mkdir()
    cases = open_cases(base)
    assert [c.name for c in cases] == ["a", "b", "c"]
    assert [list(c.sources) for c in cases] == [["image", "label", "weight"]] * 3
    assert cases[0].classes == {"label"}
    np.testing.assert_array_equal(cases[1].read("image", Roi.full(SHAPE))[0], voxels(seed=0))
    more = {"image": voxels(), "label": voxels(dtype="uint8"), "weight": voxels()}
    assert [c.name for c in open_cases([base, more])] == ["a", "b", "c", "case3"]


def test_a_folder_may_mix_formats_and_a_file_gives_way_to_its_conversion(tmp_path):
    base = tmp_path / "cases"
    save_nifti(base / "images" / "a.nii.gz", voxels())
    save_npy(base / "labels" / "a.npy", voxels(dtype="uint8"))
    vf.convert(base / "images" / "a.nii.gz", base / "images" / "a.zarr", progress=False)
    assert open_cases(base)[0].sources["image"].path.endswith("a.zarr")
    save_npy(base / "labels" / "b.npy", voxels(dtype="uint8"))
    save_npy(base / "images" / "b.npy", voxels())
    store(base / "images" / "b.zarr", voxels())  # which may hold anything
    with pytest.raises(InvalidInput, match=r"names of cases must differ.* b.npy and b.zarr"):
        open_cases(base)


def test_a_folder_that_lacks_files(tmp_path):
    base = folder(tmp_path / "cases", "a", "b")
    store(base / "images" / "c.zarr", voxels())
    store(base / "labels" / "d.zarr", voxels())
    with pytest.raises(
        InvalidInput, match=r"2 of 4 cases .* c: no file in labels/; d: no file in images/; .*skip"
    ):
        open_cases(base)
    assert [case.name for case in open_cases(base, skip_bad=True)] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"no case was found in .* images/"):
        open_cases(tmp_path / "empty")


def test_files_that_are_compressed_as_a_whole_are_refused_together(tmp_path):
    for case in "ab":
        save_nifti(tmp_path / "images" / f"{case}.nii.gz", voxels())
    save_npy(tmp_path / "images" / "c.npy", voxels())
    with pytest.raises(InvalidInput, match=r"2 of 3 cases hold files .* volflow convert CASES"):
        open_cases(tmp_path)
    assert [case.name for case in open_cases(tmp_path, skip_bad=True)] == ["c"]


@pytest.mark.parametrize("name", ["cases", "{case}", "table"])
def test_both_doors_are_one(tmp_path, name):
    """What `find_cases` takes, and what it returns, opens."""
    base = folder(tmp_path / "cases", "a", "b", parts=("images",))
    table = tmp_path / "t.csv"
    table.write_text("case,image\na,cases/images/a.zarr\nb,cases/images/b.zarr\n")
    pattern = str(base / "images" / "{case}.zarr")
    source = {"cases": base, "{case}": pattern, "table": table}[name]
    for x in (source, vf.find_cases(source)):
        assert [case.name for case in open_cases(x)] == ["a", "b"]


def test_all_faults_are_told_at_once_and_may_be_left_out(tmp_path):
    cut = tmp_path / "cut.npy"
    cut.write_bytes(save_npy(tmp_path / "whole.npy", voxels()).read_bytes()[:200])
    good = {"image": voxels(), "label": voxels(dtype="uint8")}
    cases = {
        "a": good,
        "b": {**good, "label": voxels(dtype="uint8")[1:]},
        "c": {**good, "image": cut},
        "d": {"image": voxels()},
        "e": good,
    }
    with pytest.raises(InvalidInput, match=r"3 of 5 cases have faults: b: .* shape .*; c: .*; d: "):
        open_cases(cases)
    assert [case.name for case in open_cases(cases, skip_bad=True)] == ["a", "e"]
    with pytest.raises(InvalidInput, match="faults"):
        open_cases({name: cases[name] for name in "bc"}, skip_bad=True)


def test_streams_leave_out_what_cannot_be_used():
    cases = {"a": {"image": voxels()}, "b": {"image": voxels()[None, None]}, "c": voxels()}
    cases["c"] = {"image": cases["c"]}
    sampler = vf.UniformSampler(4)
    with pytest.raises(InvalidInput, match="a volume is zyx or czyx"):
        vf.PatchStream(cases, sampler, 2)
    stream = vf.PatchStream(cases, sampler, 2, skip_bad=True)
    assert [case.name for case in stream.cases] == ["a", "c"]
    assert vf.sample(cases, sampler, 2, skip_bad=True).shape == (2, 1, 4, 4, 4)


def test_tensors_give_the_patches_of_arrays():
    arrays = {"image": voxels(dtype="float32"), "label": voxels(dtype="uint8") % 3}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for sampler in (vf.LabelSampler(4), vf.WeightedSampler(4, weight="label")):
        (a,), (b,) = (vf.PatchStream(one, sampler, 1) for one in (arrays, tensors))
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["location"], b["location"])


def test_arrays_without_spacing_adopt_that_of_the_others(tmp_path):
    label = store(tmp_path / "l.zarr", voxels(dtype="uint8"), orientation="SAR", **MM)
    for image in (voxels(), da.from_array(voxels()) + 1, zarr.create_array({}, data=voxels())):
        (case,) = open_cases({"image": image, "label": label})
        assert (case.spacing, case.unit) == ((2.0, 1.0, 1.0), "millimeter")
        assert case.meta.orientation == "SAR"
        assert case.meta.axes == ("z", "y", "x")
        assert case.meta.kind == "image"


def test_a_dask_array_that_reads_a_volume_is_that_volume(tmp_path):
    path = store(tmp_path / "scan.zarr", voxels(), **MM)
    (case,) = open_cases(open_volume(path).dask())
    assert (case.name, case.spacing) == ("scan", (2.0, 1.0, 1.0))
    assert case.identity() == open_cases(path)[0].identity()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"array": voxels((20, 33, 41))},
            r"image has shape \(20, 33, 40\) and label \(20, 33, 41\)",
        ),
        ({"spacing": (2.0, 1.0, 1.01)}, "image has spacing 2×1×1 mm and label 2×1×1.01 mm"),
        ({"unit": "micrometer"}, "image has spacing 2×1×1 mm and label 2×1×1 µm"),
        ({"orientation": "SAL"}, "image has orientation SAR and label SAL"),
    ],
)
def test_arrays_of_a_case_share_one_grid(tmp_path, other, message):
    image = store(tmp_path / "i.zarr", voxels(), orientation="SAR", **MM)
    meta = {**MM, **other}
    label = store(tmp_path / "l.zarr", meta.pop("array", voxels()), **meta)
    with pytest.raises(InvalidInput, match=f'in "i" {message}; '):
        open_cases({"image": image, "label": label})


def test_a_spacing_that_differs_by_rounding_is_the_same(tmp_path):
    image = store(tmp_path / "i.zarr", voxels(), **MM)
    label = store(tmp_path / "l.zarr", voxels(), spacing=(2.0005, 1.0, 1.0))
    assert open_cases({"image": image, "label": label})[0].spacing == (2.0, 1.0, 1.0)


def test_cases_of_several_dtypes_are_read_in_one_that_holds_them_all():
    a, b = open_cases([voxels(dtype="int16"), voxels(dtype="float32")])
    assert a.read("image", Roi((0, 0, 0), (2, 2, 2))).dtype == np.float32
    assert a.voxel_bytes("image") == b.voxel_bytes("image") == 4
    np.testing.assert_array_equal(a.read("image", Roi.full(SHAPE))[0], voxels())


def test_cases_may_not_differ_in_arrays_or_channels(tmp_path):
    a = store(tmp_path / "a.zarr", voxels(), **MM)
    b = store(tmp_path / "b.zarr", voxels((9, 9, 9)), spacing=(5.0, 1.0, 1.0))
    assert [c.shape for c in open_cases([a, b])] == [SHAPE, (9, 9, 9)]
    with pytest.raises(InvalidInput, match='holds 1 channels in "a" and 2 channels in "case1"'):
        open_cases([a, voxels((2, 9, 9, 9))])
    with pytest.raises(InvalidInput, match='"case1" holds image, label and "a" image'):
        open_cases([a, {"image": voxels(), "label": voxels()}])


def test_values_stand_beside_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("scan", voxels())
    texts = {"site": "Basel", "note": "x" * 5000, "empty": "", "version": "v1.2", "by": "Dr. Su"}
    numbers = {"age": 45, "dose": np.float64(0.5), "smokes": np.bool_(1), "n": np.array(7)}
    (case,) = open_cases({"image": torch.from_numpy(voxels()), **texts, **numbers})
    assert case.values == {**texts, "age": 45, "dose": 0.5, "smokes": True, "n": 7}
    assert list(case.sources) == ["image"]
    assert open_cases(case)[0].values == case.values
    assert pickle.loads(pickle.dumps(case)).values == case.values
    (named,) = open_cases({"p": {"name": "a", "image": "scan.npy", "site": "Basel"}})
    assert (repr(named), named.identity()) == (
        "Case(p, 20×33×40, image int16, site='Basel')",
        open_cases({"p": {"image": "scan.npy"}})[0].identity(),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"age": 1}, {}), '"case0" holds age and "case1" none; give each all of them'),
        (({"age": 1}, {"age": "old"}), 'but age is 1 in "case0" and \'old\' in "case1"'),
        (
            ({"id": 2**63}, {"id": 1}),
            'within 64 bits, but id is 9223372036854775808 in "case0"; give',
        ),
        (({"site": "a.nrd"}, {"site": "b"}), "a.nrd does not exist; check the path"),
        (({"site": "a/b"}, {"site": "b"}), "a/b does not exist; check the path"),
        (({"at": None}, {"at": None}), "a volume is a path, .* given NoneType"),
    ],
)
def test_values_that_do_not_share_a_batch(values, message):
    with pytest.raises(InvalidInput, match=message):
        open_cases([{"image": voxels(), **one} for one in values])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "there are no cases"),
        ({"image": "nowhere"}, "at least one array, given none; .*; image names no file"),
        ({}, "a case holds at least one array"),
        ({"a": {"image": voxels()}, "b": voxels()}, "either the arrays of one case or cases"),
        ([{"name": "a", "image": voxels()}] * 2, "case names must differ, given a more than once"),
        (da.from_array(voxels())[voxels() > 5], r"unknown sizes, shape \(nan,\); call x.compute_"),
        (da.zeros((4, 4)).astype("complex64"), "the array holds complex64"),
        (da.zeros((1, 2, 3, 4, 5)), "a volume is zyx or czyx and not empty"),
        ("nowhere.zarr", "does not exist; check the path"),
    ],
)
def test_what_makes_no_cases_is_refused(x, message):
    with pytest.raises(InvalidInput, match=message):
        open_cases(x)


def test_a_compressed_file_must_be_converted_first(tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", voxels())
    command = r"convert it first: volflow convert \S+/scan\.nii\.gz \S+/scan\.zarr$"
    with pytest.raises(InvalidInput, match=command):
        open_cases(path)
    truth = save_nifti(tmp_path / "truth.nii.gz", voxels())
    command = r"convert it first: volflow convert --labels \S+/truth\.nii\.gz \S+/truth\.zarr$"
    with pytest.raises(InvalidInput, match=command):
        open_cases({"image": voxels(), "label": truth})


def test_a_case_pickles_without_voxels(tmp_path):
    path = store(tmp_path / "scan.zarr", voxels((64, 64, 64)), **MM)
    label = save_npy(tmp_path / "label.npy", voxels((64, 64, 64)))
    (case,) = open_cases({"image": path, "label": label})
    wire = pickle.dumps(case)
    assert len(wire) < 20_000
    again = pickle.loads(wire)
    assert again.identity() == case.identity()
    roi = Roi((60, 0, 0), (70, 4, 4))
    np.testing.assert_array_equal(again.read("label", roi), case.read("label", roi))
    lazy = open_volume(path).dask().map_blocks(lambda b: b * 2)
    (computed,) = cloudpickle.loads(cloudpickle.dumps(open_cases(lazy)))
    np.testing.assert_array_equal(computed.read("image", roi), 2 * case.read("image", roi))


def test_only_the_box_of_a_dask_array_is_computed():
    seen = []

    def double(block, block_info=None):
        seen.append(block_info[0]["chunk-location"])
        return block * 2

    array = da.from_array(voxels(), chunks=(10, 33, 40)).map_blocks(double, dtype="int16")
    (case,) = open_cases(array)
    roi = Roi((-2, 0, 0), (6, 5, 5))
    seen.clear()
    np.testing.assert_array_equal(case.read("image", roi), padded(voxels() * 2, roi))
    assert seen == [(0, 0, 0)]


def test_identity_follows_the_voxels_and_the_names(tmp_path):
    def identity(**arrays):
        return open_cases({"name": "a", **arrays})[0].identity()

    a, b = voxels(seed=1), voxels(seed=2)
    lazy = da.from_array(a, chunks=10) + 1
    known = [identity(image=x) for x in (a, b, lazy, lazy + 1, save_npy(tmp_path / "a.npy", a))]
    known += [identity(label=a), identity(image=a, label=b)]
    assert len(set(known)) == len(known)
    assert known[0] == identity(image=a.copy())
    assert known[2] == identity(image=da.from_array(a, chunks=10) + 1)
    assert repr(open_cases({"name": "a", "image": a, "label": b})[0]) == (
        "Case(a, 20×33×40, image int16, label int16)"
    )
