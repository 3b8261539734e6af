"""Each array of each case is converted once; what fails is named, and stops nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import volflow as vf
from volflow.cli import run
from volflow.errors import InvalidInput, RunFailed
from volflow.sampling.samplers import UniformSampler
from volflow.volumes.convert import plan_convert

SHAPE = (9, 10, 11)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three cases of images and labels."""
    monkeypatch.chdir(tmp_path)
    for n, case in enumerate("abc"):
        for name, dtype in (("images", "int16"), ("labels", "uint8")):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "in" / name / f"{case}.npy", np.full(SHAPE, n, dtype))
    return tmp_path / "in"


def convert(*args, **options):
    return vf.convert_cases(*args, progress=False, **options)


def times(base):
    """When each file of a cache was written."""
    return {path: path.stat().st_mtime_ns for path in Path(base).rglob("zarr.json")}


@pytest.mark.slow
def test_what_is_returned_is_read_by_streams_and_found_again(folder):
    found = convert(folder, "cache")
    assert found == vf.find_cases(Path("cache").absolute())
    assert list(found["b"]) == ["image", "label"]
    assert (vf.open(found["b"]["image"])[...] == 1).all()
    assert [vf.open(found["c"][name]).meta.kind for name in found["c"]] == ["image", "classes"]
    stream = vf.PatchStream(found, UniformSampler(8), patches_per_case=1, progress=False)
    assert {sample["case"] for sample in stream} == {"a", "b", "c"}


@pytest.mark.slow
def test_only_what_is_new_or_changed_is_converted(folder):
    convert(folder, "cache")
    before = times("cache")
    np.save(folder / "images" / "b.npy", np.full(SHAPE, 77, "int16"))
    for name in ("images", "labels"):
        np.save(folder / name / "d.npy", np.full(SHAPE, 3, "uint8"))
    found = convert(folder, "cache")
    after = times("cache")
    touched = {
        path.relative_to("cache").parts[:2] for path in after if after[path] != before.get(path)
    }
    assert touched == {("b", "image.zarr"), ("d", "image.zarr"), ("d", "label.zarr")}
    assert (vf.open(found["b"]["image"])[...] == 77).all()
    assert convert(folder, "cache") == found
    assert times("cache") == after


def test_values_of_cases_are_kept(folder):
    found = convert({"a": {"image": folder / "images" / "a.npy", "age": 45}}, "cache")
    assert found["a"] == {"image": str(Path("cache/a/image.zarr").absolute()), "age": 45}


def test_one_that_is_gone_from_the_cache_is_made_again(folder):
    found = convert(folder, "cache")
    Path(found["a"]["label"]).rename("elsewhere")
    assert convert(folder, "cache") == found
    assert (vf.open(found["a"]["label"])[...] == 0).all()


def test_a_failure_stops_no_other(folder):
    data = (folder / "images" / "b.npy").read_bytes()
    (folder / "images" / "b.npy").write_bytes(data[:-50])
    (folder / "labels" / "c.npy").write_bytes(b"nothing")
    message = r"2 of 3 cases could not be converted: b, c \(b: .*b.npy.*\); mend .*skip_bad=True"
    with pytest.raises(RunFailed, match=message):
        convert(folder, "cache")
    assert list(convert(folder, "cache", skip_bad=True)) == ["a"]
    (folder / "images" / "b.npy").write_bytes(data)
    assert list(convert(folder, "cache", skip_bad=True)) == ["a", "b"]


def test_what_does_not_fit_a_share_of_the_memory_comes_alone(folder):
    layout = {"chunk": 128, "shard": 128}
    np.save(folder / "images" / "a.npy", np.zeros((128,) * 3, "uint8"))
    np.save(folder / "images" / "b.npy", np.ones((128,) * 3, "uint8"))
    need = plan_convert(folder / "images" / "a.npy", "a.zarr", **layout).peak_bytes
    found = convert(str(folder / "images/{case}.npy"), "cache", memory=need, at_once=3, **layout)
    assert list(found) == ["a", "b", "c"]


def test_labels_of_no_whole_numbers_are_refused(folder):
    np.save(folder / "labels" / "a.npy", np.full(SHAPE, 0.5, "f4"))
    with pytest.raises(RunFailed, match=r"1 of 3 cases could not be converted: a \(a: .*whole"):
        convert(folder, "cache")


@pytest.mark.parametrize(
    ("cases", "out", "message"),
    [
        ({}, "cache", "holds at least one array"),
        ({"../a": {"image": np.ones(SHAPE)}}, "cache", r"'\.\./a' cannot be"),
        ({"a": {"../x": np.ones(SHAPE)}}, "cache", r"'\.\./x' cannot be"),
        ({"a": {"image": np.ones(SHAPE)}}, "s3://b/cache", "a folder of a local disk"),
        ({"a": {"image": "nothing.npy"}}, "cache", r"1 of 1 cases could not.*does not exist"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, monkeypatch, cases, out, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidInput, RunFailed), match=message):
        convert(cases, out)
    assert not Path("x.zarr").exists()


def test_the_command(folder, capsys):
    assert run(["convert", "in", "cache", "--plan"]) == 0
    assert "3 cases: 3 new" in capsys.readouterr().out
    assert not Path("cache").exists()
    (folder / "images" / "b.npy").write_bytes(b"nothing")
    assert run(["convert", "in", "cache", "-q"]) == 1
    assert "3 cases: 1 failed, 2 done" in capsys.readouterr().out
    assert run(["convert", "in", "cache", "-q", "--skip-bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"failed": 1, "kept": 2}
    assert run(["convert", "in", "cache", "--labels"]) == 2
    assert "--labels/--image goes with one volume" in capsys.readouterr().err
    assert run(["convert", "in/images/a.npy", "a.zarr", "--at-once", "2"]) == 2
    assert "--at-once goes with many cases" in capsys.readouterr().err


@pytest.mark.slow
def test_real_cases(tmp_path, shared_data):
    nib = pytest.importorskip("nibabel")
    found = vf.find_cases(shared_data("hippocampus_msd"))
    some = {case: found[case] for case in list(found)[:4]}
    cache = convert(some, tmp_path / "cache")
    assert vf.check_cases(cache, labels=True).ok
    for case, volumes in some.items():
        for name, path in volumes.items():
            expected = np.asarray(nib.load(path).dataobj).T
            np.testing.assert_array_equal(vf.open(cache[case][name])[...], expected)
