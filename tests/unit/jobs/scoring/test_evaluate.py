"""`vf.evaluate`: one case and many, what is refused together, what is written."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import volflow as vf
from tests.surface_oracle import whole_scores
from volflow.cli import run
from volflow.errors import InvalidInput, RunFailed
from volflow.store.meta import Meta


def maps(seed=0, shape=(20, 24, 28)):
    """A truth of two classes and a prediction of it with errors."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, "uint8")
    truth[4:14, 5:15, 6:20] = 1
    truth[8:12, 16:22, 3:9] = 2
    pred = np.roll(truth, rng.integers(-2, 3, 3).tolist(), (0, 1, 2))
    pred[rng.random(shape) < 0.002] = 1
    return pred, truth


@pytest.fixture
def folders(tmp_path):
    """Three cases as files: seg/ and labels/."""
    for case in ("p1", "p2", "p3"):
        for folder, voxels in zip(("seg", "labels"), maps(int(case[1])), strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"{case}.npy", voxels)
    return tmp_path


def patterns(folder):
    return str(folder / "seg/{case}.npy"), str(folder / "labels/{case}.npy")


def check(scores, pred, truth, **options):
    for label in (1, 2):
        for name, value in whole_scores(pred, truth, label, **options).items():
            assert getattr(scores, name)[label] == pytest.approx(value, rel=1e-12), name


def test_one_case_of_any_kind(tmp_path):
    pred, truth = maps()
    stored = vf.write(da.from_array(truth), tmp_path / "t.zarr", spacing=(3, 1, 0.5), unit="mm",
                      progress=False)  # fmt: skip
    np.save(tmp_path / "p.npy", pred)
    for one in (pred, da.from_array(pred, chunks=9), tmp_path / "p.npy", pred.astype("float32")):
        scores = vf.evaluate(one, stored, tolerance=1.5, progress=False)
        check(scores, pred, truth, spacing=(3, 1, 0.5), tolerance=1.5)
    assert scores.unit == "millimeter"
    assert "distances in mm, surface Dice at 1.5" in str(scores)
    assert "<table>" in scores._repr_html_()


def test_classes_are_all_that_occur_or_those_chosen():
    pred, truth = np.array([[[0, 1, 1, -1]]]), np.array([[[0, 1, 3, 3]]])
    assert list(vf.evaluate(pred, truth).classes) == [1, 3]
    scores = vf.evaluate(pred, truth, classes=[0, 1, 7])
    assert scores.dice[0] == 1.0
    assert math.isnan(scores.dice[7])
    assert math.isnan(scores.hd95[7])
    assert scores.table[2]["pred_voxels"] == 0


def test_a_class_of_one_of_the_two():
    pred, truth = np.array([[[1, 1, 0]]]), np.array([[[0, 2, 0]]])
    scores = vf.evaluate(pred, truth)
    assert (scores.dice, scores.recall[2]) == ({1: 0.0, 2: 0.0}, 0.0)
    assert scores.hd95 == {1: math.inf, 2: math.inf}
    assert scores.surface_dice == {1: 0.0, 2: 0.0}
    assert math.isnan(scores.precision[2])
    assert math.isnan(scores.recall[1])
    assert scores.volume_similarity == {1: 2.0, 2: -2.0}


def test_a_distance_beyond_the_bound_is_said_to_be_so(tmp_path):
    truth = np.zeros((5, 5, 60), "uint8")
    pred = truth.copy()
    truth[2, 2, 5] = pred[2, 2, 55] = 1
    scores = vf.evaluate(pred, truth, max_distance=20)
    assert math.isnan(scores.hd95[1])
    assert scores.table[0]["hd95"] == "> 20"
    assert scores.table[0]["mean_surface_distance"] == "> 20"
    assert scores.table[0]["worst_distance"] == "> 20"
    assert scores.surface_dice[1] == 0.0
    assert "> 20" in str(scores)
    scores.to_csv(tmp_path / "s.csv")
    scores.to_json(tmp_path / "s.json")
    assert "> 20" in (tmp_path / "s.csv").read_text()
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["table"][0]["hd95"] == found["table"][0]["worst_distance"] == "> 20"
    assert vf.evaluate(pred, truth, max_distance=50).hd95[1] == 50.0
    assert vf.evaluate(pred, truth).hd95[1] == 50.0


def test_many_cases_have_means_intervals_and_a_table(folders):
    scores = vf.evaluate(*patterns(folders), progress=False)
    assert scores.cases == ("p1", "p2", "p3")
    each = [whole_scores(*maps(n), 1) for n in (1, 2, 3)]
    for name in ("dice", "hd95"):
        values = [one[name] for one in each]
        assert getattr(scores, name)[1] == pytest.approx(np.mean(values), rel=1e-12)
        summary = scores.summary[name][1]
        assert summary.median.value == pytest.approx(np.median(values), rel=1e-12)
        assert min(values) <= summary.low <= summary.mean.value <= summary.high <= max(values)
    assert [(row["case"], row["class"]) for row in scores.table] == [
        (case, label) for case in scores.cases for label in (1, 2)
    ]
    assert "3 cases; 95 % interval of the mean by bootstrap" in str(scores)


def test_a_class_that_a_case_lacks_is_left_out_of_the_mean():
    one, other = np.array([[[1, 0]]]), np.array([[[1, 2]]])
    scores = vf.evaluate({"a": one, "b": other}, {"a": one, "b": other})
    assert [(r["case"], r["class"], r["dice"]) for r in scores.table][:1] == [("a", 1, 1.0)]
    assert math.isnan(scores.table[1]["dice"])
    assert scores.dice == {1: 1.0, 2: 1.0}
    assert scores.summary["dice"][2].cases == 1


def test_a_case_without_any_class_is_a_case():
    one, none = np.array([[[1, 0]]]), np.array([[[0, 0]]])
    scores = vf.evaluate({"a": one, "b": none}, {"a": one, "b": none})
    assert scores.cases == ("a", "b")
    assert scores.summary["dice"][1].cases == 1
    assert vf.evaluate(none, none).table == []


def test_the_mean_with_a_case_beyond_the_bound_is_not_known():
    near, far = np.zeros((2, 1, 1, 60), "uint8")
    near[..., 5] = far[..., 55] = 1
    scores = vf.evaluate({"a": near, "b": near, "c": far}, dict.fromkeys("abc", near),
                         max_distance=20)  # fmt: skip
    assert math.isnan(scores.hd95[1])
    summary = scores.summary["hd95"][1]
    assert summary.mean.above == pytest.approx(20 / 3)
    assert summary.median.value == 0.0
    assert math.isnan(summary.low)


def test_all_faults_are_told_together(folders):
    np.save(folders / "seg/p4.npy", maps()[0])
    np.save(folders / "labels/p2.npy", maps()[1][:-1])
    with pytest.raises(InvalidInput, match="2 of 4 cases have faults") as refused:
        vf.evaluate(*patterns(folders), progress=False)
    assert "p2: p2.npy and p2.npy lie on different grids" in str(refused.value)
    assert "p4: has no truth in" in str(refused.value)
    scores = vf.evaluate(*patterns(folders), skip_bad=True, progress=False)
    assert scores.cases == ("p1", "p3")
    assert set(scores.failed) == {"p2", "p4"}


def test_a_case_that_fails_stops_no_other(folders):
    np.save(folders / "seg/p2.npy", maps()[0] + 0.5)
    with pytest.raises(RunFailed, match=r"1 of 3 cases have no scores: p2 \(p2: p2.npy: voxel"):
        vf.evaluate(*patterns(folders), csv=folders / "s.csv", progress=False)
    with (folders / "s.csv").open() as file:  # what was scored is written all the same
        assert {row["case"] for row in csv.DictReader(file)} == {"p1", "p3"}
    assert vf.evaluate(*patterns(folders), skip_bad=True, progress=False).cases == ("p1", "p3")


def test_one_volume_against_many_is_refused(folders):
    with pytest.raises(InvalidInput, match="must both be one volume, or both many cases"):
        vf.evaluate(patterns(folders)[0], maps()[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"tolerance": -1},
            "tolerance must be a number of 0 or more, in the unit of the spacing, given -1",
        ),
        ({"tolerance": math.nan}, "tolerance must be a number of 0 or more"),
        (
            {"max_distance": 0},
            "max_distance must be a number above 0, in the unit of the spacing, given 0",
        ),
        ({"tolerance": 5, "max_distance": 3}, "tolerance 5 lies beyond max_distance 3"),
        ({"classes": 1}, r"classes must be a sequence of whole numbers such as \[1, 2\], given 1"),
        ({"classes": []}, "classes must be a sequence of whole numbers"),
        ({"classes": [0.5]}, "classes must be a sequence of whole numbers"),
        ({"over": "scan.zarr"}, "over is the scan under pictures; name their folder"),
        ({"csv": "missing/s.csv"}, "the folder of missing/s.csv does not exist"),
        ({"csv": "label.nii.gz"}, "csv must name a file that ends in .csv, given label.nii.gz"),
        ({"csv": "held.csv"}, "held.csv is a folder, and csv names a file; choose another name"),
        ({"pictures": "file.png"}, "pictures names a folder, and file.png is a file; choose"),
        ({"tolerence": 1}, "evaluate has no option 'tolerence'; did you mean 'tolerance'"),
    ],
)
def test_options_that_fit_nothing_are_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("held.csv").mkdir()
    Path("file.png").touch()
    with pytest.raises(InvalidInput, match=said):
        vf.evaluate(*maps(), **options)


def test_a_table_of_scores_never_replaces_the_table_of_its_cases(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("case,label\np1,p1.nii.gz\n")
    with pytest.raises(InvalidInput, match=r"cases\.csv would replace its own input"):
        vf.evaluate(table, table, csv=table)


def test_two_that_hold_no_class_are_said_to(tmp_path):
    scores = vf.evaluate(np.zeros((4, 4, 4), "u1"), np.zeros((4, 4, 4), "u1"))
    assert str(scores).endswith("neither holds a class but 0")


def test_large_class_numbers_are_told_apart():
    near = np.full((4, 4, 4), 2**60 + 1, "uint64")
    near[0] = 2**60 + 2
    scores = vf.evaluate(near, np.where(near == 2**60 + 1, near, 0).astype("int64"))
    assert scores.dice == {2**60 + 1: 1.0, 2**60 + 2: 0.0}
    assert scores.hd95[2**60 + 1] == 0.0
    assert vf.evaluate(near, near, classes=[np.int64(2**60 + 2)]).dice == {2**60 + 2: 1.0}


def test_an_empty_volume_is_refused():
    with pytest.raises(InvalidInput, match="a volume is zyx or czyx and not empty"):
        vf.evaluate(np.zeros((0, 4, 4), "uint8"), np.zeros((0, 4, 4), "uint8"))


def test_too_many_classes_are_refused():
    many = np.arange(5000, dtype="int32").reshape(10, 20, 25)
    with pytest.raises(InvalidInput, match=r"more than 4096 classes.*choose some"):
        vf.evaluate(many, many)
    assert vf.evaluate(many, many, classes=[7, 4900]).dice == {7: 1.0, 4900: 1.0}


def test_without_scipy_voxels_are_counted(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(InvalidInput, match=r'need scipy.*pip install "volflow\[evaluate\]"'):
        vf.evaluate(*maps())
    scores = vf.evaluate(*maps(), distances=False)
    assert scores.dice[1] == whole_scores(*maps(), 1)["dice"]
    assert "hd95" not in scores.table[0]
    assert math.isnan(scores.hd95[1])


def test_the_command(folders, capsys):
    pred, truth = patterns(folders)
    assert run(["evaluate", pred, truth, "-q", "--csv", str(folders / "s.csv")]) == 0
    assert capsys.readouterr().out == ""
    assert run(["evaluate", pred, truth, "--json", "--classes", "1", "--tolerance", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cases"], found["tolerance"], len(found["table"])) == (3, 2.0, 3)
    with (folders / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["dice"]) == whole_scores(*maps(1), 1)["dice"]
    np.save(folders / "seg/p4.npy", maps()[0])
    assert run(["evaluate", pred, truth]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["evaluate", pred, truth, "--skip-bad", "--counts", "-q"]) == 0
    np.save(folders / "seg/p4.npy", maps()[0] + 0.5)
    np.save(folders / "labels/p4.npy", maps()[1])
    assert run(["evaluate", pred, truth, "--counts"]) == 1
    told = capsys.readouterr()
    assert "1 of 4 cases have no scores: p4 (p4: p4.npy: voxel" in told.err
    assert "3 cases; 95 % interval" in told.out  # those of the others are shown all the same
    assert "without scores: p4" in told.out


def test_a_batch_goes_on_where_it_was(folders, capsys):
    pred, truth = patterns(folders)
    words = ["evaluate", pred, truth, "--csv", str(folders / "s.csv")]
    assert run(words) == 0
    first = (folders / "s.csv").read_text()
    assert "p2 done (2 of 3)" in capsys.readouterr().err
    np.save(folders / "seg/p2.npy", maps(7)[0])
    with (folders / "s.csv.volflow/cases.jsonl").open("ab") as file:
        file.write(b'\n{"case": "p3", "key": "torn')
    assert run(words) == 0
    told = capsys.readouterr().err
    assert [state in told for state in ("p1 kept", "p2 done", "p3 kept")] == [True] * 3
    again = (folders / "s.csv").read_text()
    assert first.splitlines()[1] == again.splitlines()[1]
    assert first.splitlines()[3] != again.splitlines()[3]
    assert run([*words, "--tolerance", "2"]) == 0
    assert "p1 done" in capsys.readouterr().err


def test_names_of_classes_are_those_of_the_truth(tmp_path):
    pred, truth = maps()
    meta = Meta(kind="classes", channels=("background", "liver", "tumour"))
    stored = vf.write(da.from_array(truth), tmp_path / "t.zarr", meta=meta, progress=False)
    assert vf.evaluate(pred, stored).classes == {1: "liver", 2: "tumour"}
    assert vf.evaluate(stored, pred).table[0]["name"] == "liver"


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("a.nii", b"this is no image, but text\n" * 40, 2, "a.nii"),
        ("a.npy", b"", 3, "a.npy"),
        ("gone.zarr", None, 2, "gone.zarr does not exist"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, capsys, name, content, code, said):
    np.save(tmp_path / "t.npy", maps()[1])
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = run(["evaluate", str(tmp_path / name), str(tmp_path / "t.npy")])
    line = capsys.readouterr().err
    assert (found, line.count("\n")) == (code, 1)
    assert said in line


@pytest.mark.slow
def test_pictures_of_the_worst_places(folders):
    scan = np.random.default_rng(0).normal(size=(20, 24, 28)).astype("float32")
    out = folders / "pictures"
    vf.evaluate(*patterns(folders), pictures=out, over=dict.fromkeys(("p1", "p2", "p3"), scan),
                progress=False)  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [
        "worst-class-1.png",
        "worst-class-2.png",
    ]
    vf.evaluate(*maps(), pictures=out)
    assert (out / "worst-classes.png").stat().st_size > 10_000
    with pytest.raises(InvalidInput, match="the scan under the label maps must lie on their grid"):
        vf.evaluate(*maps(), pictures=out, over=scan[:-1])
