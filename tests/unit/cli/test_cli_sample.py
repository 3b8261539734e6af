"""``volflow sample``: words to samplers, pictures written, what does not fit refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.stores import store
from volflow.cli import run

pytest.importorskip("matplotlib", reason="extra report")

SHAPE = (24, 30, 36)


def voxels(seed):
    return np.random.default_rng(seed).integers(0, 90, SHAPE).astype("int16")


def classes(seed):
    labels = np.zeros(SHAPE, "u1")
    labels[8:16, 10:20, 10 + seed : 20 + seed] = 1
    labels[11:13, 14:16, 14:16] = 2
    return labels


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """A folder of two cases; it is the place where commands run."""
    monkeypatch.chdir(tmp_path)
    for folder, make in (("images", voxels), ("labels", classes), ("weights", classes)):
        (tmp_path / "cases" / folder).mkdir(parents=True)
        for n, name in enumerate("ab"):
            store(tmp_path / "cases" / folder / f"{name}.zarr", make(n))
    return "cases"


def told(capsys, *words):
    assert run(["sample", *words, "--dpi", "40", "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_sheet_beside_the_cases(cases, tmp_path, capsys):
    words = ["sample", cases, "--patch", "8", "-n", "6", "--seed", "3", "--dpi", "40", "-q"]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 patches: a ")
    assert lines[1].startswith("label ")
    assert lines[-1] == "cases-patches.png"
    assert (tmp_path / "cases-patches.png").read_bytes()[:4] == b"\x89PNG"
    assert run([*words, "--json"]) == 0  # replaces it, as previews do
    facts = json.loads(capsys.readouterr().out)
    assert facts["sampler"] == "UniformSampler(patch=(8, 8, 8), border='inside')"
    assert sum(facts["cases"].values()) == 6
    assert facts["locations"] != told(capsys, cases, "--patch", "8", "-n", "6")["locations"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sampler"),
    [
        (["--sampler", "uniform", "--border", "pad"], "UniformSampler({}, border='pad')"),
        (
            ["--sampler", "label", "--probabilities", "0=1,2=3"],
            "LabelSampler({}, label='label', probabilities={{0: 1.0, 2: 3.0}}, border='inside')",
        ),
        (["--sampler", "weighted"], "WeightedSampler({}, weight='weight', border='inside')"),
        (
            ["--sampler", "weighted", "--weight", "label"],
            "WeightedSampler({}, weight='label', border='inside')",
        ),
        (
            ["--sampler", "grid", "--overlap", "0.5"],
            "GridSampler({}, overlap=0.5, padding=(0, 0, 0))",
        ),
    ],
)
def test_samplers_as_typed(cases, capsys, options, sampler):
    facts = told(capsys, cases, "--patch", "8,10,12", "-n", "5", *options)
    assert facts["sampler"] == sampler.format("patch=(8, 10, 12)")
    assert facts["patch"] == [8, 10, 12]
    assert len(facts["locations"]) == 5
    if facts["sampler"].startswith("Label"):
        assert [one["class"] for one in facts["classes"] if one["centres"]] in ([0], [2], [0, 2])


@pytest.mark.slow
def test_where_patches_fall(cases, tmp_path, capsys):
    facts = told(capsys, cases, "--sampler", "label", "--patch", "8", "--stats")
    assert facts["path"] == "cases-centres.png"
    assert (tmp_path / "cases-centres.png").exists()
    assert facts["patches"] == 1000
    centres = {one["class"]: one["centres"] for one in facts["classes"]}
    assert centres[0] == 0
    assert centres[1] > 0.9
    assert sum(facts["along"]["z"]) == 1000
    grid = told(capsys, cases, "--sampler", "grid", "--patch", "12,15,18", "--stats")
    assert grid["cases"] == {"a": 8, "b": 8}
    few = told(capsys, cases, "--sampler", "grid", "--patch", "12,15,18", "--stats", "-n", "9")
    assert few["cases"] == {"a": 8, "b": 1}


@pytest.mark.slow
def test_the_arrays_of_one_scan_and_several_scans(cases, tmp_path, capsys):
    image, label = f"{cases}/images/a.zarr", f"{cases}/labels/a.zarr"
    named = told(
        capsys, f"image={image}", f"mask={label}", "--patch", "8", "-n", "2", "--axis", "x"
    )
    assert named["path"] == "cases/images/a-patches.png"
    assert (named["label"], named["axis"]) == ("mask", "x")
    several = told(
        capsys, image, f"{cases}/images/b.zarr", "--patch", "8", "-n", "4", "-o", "s.png"
    )
    assert list(several["cases"]) == ["a", "b"]
    assert several["label"] is None
    assert (tmp_path / "s.png").exists()


@pytest.mark.slow
def test_values_as_a_network_sees_them(cases, tmp_path, capsys):
    words = [cases, "--patch", "99", "-n", "2", "--normalize", "zscore", "--padding", "-3"]
    facts = told(capsys, *words, "--window", "-3,3")
    assert min(min(place) for place in facts["locations"]) < 0  # smaller than the patch


@pytest.mark.slow
def test_a_sheet_shows_many_cases(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{n}.npy" for n in range(16)]
    for name in names:
        np.save(name, np.zeros((8, 8, 8), "u1"))
    facts = told(capsys, *names, "--patch", "8", "-n", "16")
    assert min(facts["cases"].values()) == max(facts["cases"].values()) == 1


def test_a_plan_reads_no_image_and_writes_nothing(cases, tmp_path, capsys):
    assert run(["sample", cases, "--patch", "8", "--plan"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("UniformSampler(patch=(8, 8, 8), border='inside')\n")
    assert "32 patches" in text
    plan = told(capsys, cases, "--sampler", "grid", "--patch", "12,15,18", "--plan")
    assert plan["cases"] == {"a": 8, "b": 8}
    assert plan["peak_bytes"] > 0
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--sampler", "random"], "sampler must be uniform, weighted, label, grid; given 'random'"),
        (["--overlap", "2"], "--overlap does not belong to the sampler uniform; leave it out, or"),
        (["--probabilities", "1=1"], "or add --sampler label"),
        (["--sampler", "grid", "--border", "pad"], "add --sampler uniform or weighted or label"),
        (["--sampler", "label", "--probabilities", "x"], "must be class=weight with commas"),
        (["--sampler", "label", "--probabilities", "1=-1"], "probabilities must be finite"),
        (["--sampler", "label", "--label", "truth"], "truth"),
        (["--sampler", "weighted", "--weight", "prob"], "prob"),
        (["--patch", "8,8"], "patch must be one number or three"),
        (["--border", "out"], 'border must be "inside" or "pad"'),
        (["--count", "0"], "--count must be at least 1, given 0"),
        (["--count", "999"], "a sheet shows 200 patches at most, given 999; add --stats"),
        (["--stats", "--axis", "z"], "--axis z is that of a sheet"),
        (["--axis", "q"], "axis must be z, y or x"),
        (["--out", "a.zarr"], "a picture is written as .png"),
        (["--stats", "--window", "lung"], "--window is that of a sheet"),
        (["--normalize", "max"], "unknown normalize 'max'"),
        (["--padding", "mirror"], "padding must be a finite number"),
        (["--memory", "1KiB"], "give it memory="),
        (["b.zarr"], "b.zarr does not exist"),
        (["label=b.zarr"], "several volumes need names"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(cases, tmp_path, capsys, options, text):
    assert run(["sample", cases, "--patch", "8", "--dpi", "40", *options]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_as_many_patches_of_each_case(cases, capsys):
    words = (cases, "--patch", "8", "--patches-per-case", "3")
    assert told(capsys, *words, "--plan")["cases"] == {"a": 3, "b": 3}
    for more, said in (
        (("-n", "4"), "--count is of all cases, --patches-per-case of each; leave one out"),
        (("--sampler", "grid"), "--patches-per-case does not belong to the sampler grid"),
        (("--patches-per-case", "0"), "--patches-per-case must be at least 1, given 0"),
        (
            ("--patches-per-case", "101"),
            "a sheet shows 200 patches at most, given 202; add",
        ),
    ):
        assert run(["sample", *words, *more]) == 2
        assert said in capsys.readouterr().err
