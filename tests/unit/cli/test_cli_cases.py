"""`volflow predict` of many cases: words to arguments, what is printed, the exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volflow.cli import run
from volflow.jobs.batch import predict_cases as module
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.jobs.batch.result_table import CaseRow, CaseTable

TABLE = CaseTable((CaseRow("p1", "done", seconds=1.0),), summary="s.html")
FAILED = CaseTable((CaseRow("p1", "failed", "cut short"), CaseRow("p2", "done")))


@pytest.fixture
def called(monkeypatch):
    """Records how the library's function is called; it returns what the test puts there."""
    calls, returned = [], [TABLE]

    def predict_cases(*args, **options):
        calls.append((args, options))
        return returned[0]

    monkeypatch.setattr(module, "predict_cases", predict_cases)
    return calls, returned


def test_a_pattern(called, capsys):
    words = ["predict", "in/{case}.nii.gz", "out/{case}.nii.gz", "-m", "net/"]
    assert run([*words, "-q"]) == 0
    assert called[0] == [
        (
            ("in/{case}.nii.gz", "net/", "out/{case}.nii.gz"),
            vars(BatchOptions(progress=False)),
        )
    ]
    assert capsys.readouterr().out == ""  # what goes well is no news
    assert run(words) == 0
    assert capsys.readouterr().out == "1 case: 1 done; s.html\n"


def test_channels_and_options(called):
    line = (
        "predict t1=in/{case}_t1.nii.gz flair=in/{case}_flair.nii.gz out/{case}.zarr -m net/"
        " --since 24h --retry-failed --at-once 3 --on-failure cmd --patch 96 --overwrite"
    )
    assert run(line.split()) == 0
    (args, options), *_ = called[0]
    assert args[0] == {"t1": "in/{case}_t1.nii.gz", "flair": "in/{case}_flair.nii.gz"}
    assert options == vars(
        BatchOptions(
            since="24h", retry_failed=True, at_once=3, on_failure="cmd", patch=96, overwrite=True
        )
    )


def test_a_table(called):
    assert run(["predict", "--cases", "t.csv", "out/{case}.zarr", "-m", "net/"]) == 0
    assert called[0][0][0] == ("t.csv", "net/", "out/{case}.zarr")


@pytest.mark.parametrize("word", ["--plan", "--dry-run"])
def test_a_plan_is_a_dry_run(called, word, capsys):
    called[1][0] = CaseTable((CaseRow("p1", "refused", "made with another model"),))
    assert run(["predict", "{case}.npy", "{case}.zarr", "-m", "net/", word]) == 0
    assert called[0][0][1]["dry_run"] is True
    assert "p1    refused           made with another model" in capsys.readouterr().out


def test_failures_are_named_and_end_with_1(called, capsys):
    called[1][0] = FAILED
    assert run(["predict", "{case}.npy", "{case}.zarr", "-m", "net/"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "p1  failed: cut short\n2 cases: 1 failed, 1 done\n"
    assert shown.err == ""
    assert run(["predict", "{case}.npy", "{case}.zarr", "-m", "net/", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"failed": 1, "done": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict out.zarr -m net", "needs either VOLUME or --cases"),
        ("predict a.zarr out/{case}.zarr --cases t.csv -m net", "needs either VOLUME or --cases"),
        ("predict a.zarr out.zarr -m net --since 24h", "--since goes with many cases; write"),
        ("predict a.zarr out.zarr -m net --on-failure x", "--on-failure goes with many cases"),
        ("predict --cases t.csv out.zarr -m net", "out.zarr needs {case} in it"),
        ("predict {case}.zarr out.zarr -m net", "out.zarr needs {case} in it"),
        ("predict a.zarr {case}_out.zarr -m net", "a.zarr is neither a pattern with {case}, a"),
        ("predict {case}.zarr {case}.npy -m net", "nothing matches {case}.zarr"),
    ],
)
def test_slips_are_one_line_and_exit_code_2(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((3, 4, 5)))
    assert run(line.split()) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
