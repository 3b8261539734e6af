"""The command line: words to arguments, errors to one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import volflow
from volflow.cli import COMMANDS, main, run
from volflow.cli.values import inputs
from volflow.errors import (
    Damaged,
    InvalidInput,
    Locked,
    MemoryRefused,
    RunFailed,
    Superseded,
)
from volflow.geometry.roi import Roi
from volflow.infer.predict_options import PredictOptions
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

NAMES = ["demo", "convert", "info", "statistics", "sample", "predict", "halo", "resample"]
NAMES += ["pyramid", "evaluate", "verify", "status", "cancel", "export", "preview", "view", "run"]


@pytest.fixture
def volume(tmp_path):
    meta = Meta(spacing=(2, 1, 1), unit="millimeter", orientation="SAR")
    volume = create(
        tmp_path / "scan.zarr", VolumeSpec.of((16, 24, 32), "f4", meta, chunk=8, shard=16)
    )
    volume.write(Roi.full(volume.shape), np.random.default_rng(0).random(volume.shape, "f4"))
    return volume


@pytest.fixture
def called(monkeypatch, volume):
    """Records how the library's predict is called."""
    import volflow.infer.predict as ops

    calls = []

    def predict(*args, **options):
        calls.append((args, options))
        return volume

    def plan_predict(*args, **options):
        calls.append((args, options))
        return SimpleNamespace(describe=lambda: "the plan", to_dict=lambda: {"blocks": 3})

    monkeypatch.setattr(ops, "predict", predict)
    monkeypatch.setattr(ops, "plan_predict", plan_predict)
    return calls


def test_commands_are_exactly_these():
    assert list(COMMANDS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_has_an_example(name, capsys):
    module, example = COMMANDS[name]
    command = getattr(importlib.import_module(f"volflow.cli.{module}"), name)
    assert run([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: {example}" in text
    assert " ".join(command.__doc__.split(".")[0].split()) in text


def test_help_lists_every_command_with_what_it_does(capsys):
    assert run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, (module, _) in COMMANDS.items():
        command = getattr(importlib.import_module(f"volflow.cli.{module}"), name)
        assert f"{name} {' '.join(command.__doc__.splitlines()[0].split())}" in text


def test_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"volflow {volflow.__version__}\n"


def test_no_command_shows_help(capsys):
    assert run([]) == 0
    assert "predict" in capsys.readouterr().out


def test_predict_leaves_what_was_not_typed_to_its_own_default(called):
    assert run(["predict", "scan.zarr", "out.zarr", "--model", "net/", "-q"]) == 0
    args, options = called[0]
    assert args == ("scan.zarr", "net/", "out.zarr")
    assert options == vars(PredictOptions(progress=False))


def test_predict_passes_every_option(called, capsys):
    line = (
        "predict t1=a.zarr flair=b.zarr out.zarr -m pkg:net --weights w.safetensors --patch"
        " 96,96,48 --overlap 0.25 --blend hann --sigma-scale 0.2 --padding -1 --frame RAS"
        " --spacing 1,1,3mm"
        " --normalize zscore --activation softmax --output scores --dtype float16"
        " --batch-size 4 --device cuda --device-memory 9GB --precision tf32"
        " --cluster 4 --workers a,b --resources GPU=1"
        " --memory 2GiB --flips zyx --mask m.zarr --skip-below 0.1 --fill -1 --chunk 32"
        " --shard 64 --levels --keep --trust --overwrite --json"
    )
    assert run(line.split()) == 0
    args, options = called[0]
    assert args == ({"t1": "a.zarr", "flair": "b.zarr"}, "pkg:net", "out.zarr")
    assert options == {
        "weights": "w.safetensors", "patch": (96, 96, 48), "overlap": 0.25, "blend": "hann",
        "sigma_scale": 0.2,
        "spacing": (1.0, 1.0, "3mm"),
        "padding": -1.0, "frame": "RAS", "normalize": "zscore", "activation": "softmax",
        "output": "scores", "dtype": "float16", "batch_size": 4, "device": "cuda",
        "device_memory": "9GB",
        "precision": "tf32", "cluster": "4", "workers": "a,b", "resources": "GPU=1",
        "memory": "2GiB", "flips": "zyx",
        "mask": "m.zarr", "skip_below": 0.1, "fill": -1.0,
        "chunk": 32, "shard": 64, "levels": True, "keep": True, "trust": True, "overwrite": True,
        "progress": None, "wait": None, "resume": False,
    }  # fmt: skip
    assert json.loads(capsys.readouterr().out)["shape"] == [16, 24, 32]


def test_plan_runs_nothing(called, capsys):
    words = ["predict", "scan.zarr", "out.zarr", "--model", "net/", "--plan"]
    assert run(words) == 0
    assert capsys.readouterr().out == "the plan\n"
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"blocks": 3}


def test_several_outputs_are_told_by_name(called, monkeypatch, volume, capsys):
    import volflow.infer.predict as ops

    monkeypatch.setattr(ops, "predict", lambda *_, **__: {"mean": volume, "var": volume})
    assert run(["predict", "scan.zarr", "out.zarr", "-m", "net/", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"mean", "var"}


def test_an_exported_result_is_told_as_the_file(called, tmp_path, capsys):
    out = tmp_path / "out.npy"
    np.save(out, np.zeros((3, 4, 5), "u1"))
    assert run(["predict", "scan.zarr", str(out), "-m", "net/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidInput("overlap 96 must be below patch 96; use 95"), 2, "overlap 96 must be below"),
        (MemoryRefused("needs 3 GiB; use --patch 64"), 2, "needs 3 GiB; use --patch 64"),
        (RunFailed("2 blocks failed\nTraceback …"), 1, "2 blocks failed (--debug shows more)"),
        (Damaged("a.zarr is cut short; copy it again"), 3, "a.zarr is cut short; copy it again"),
        (Locked("a.zarr is being written"), 4, "a.zarr is being written"),
        (Superseded("the driver has ended"), 1, "the driver has ended"),
        (OSError(28, "No space left on device", "/data/o"), 1, "no space left on device: /data/o"),
        (PermissionError(13, "Permission denied", "/o"), 1, "permission denied: /o"),
        (MemoryError(), 1, "out of memory; run again with a smaller --memory"),
        (KeyboardInterrupt(), 1, "stopped; what is done is kept, run the same command again"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code, line, monkeypatch, capsys):
    import volflow.report.facts.info as module

    def fail(*_):
        raise error

    monkeypatch.setattr(module, "facts_of", fail)
    assert run(["info", "a.zarr"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"volflow: {line}")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_where_an_error_came_from(tmp_path, capsys, words):
    assert run([*words, str(tmp_path / "gone.zarr")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert "volflow/store" in told
    assert "gone.zarr" in told.splitlines()[-1]


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    import volflow.report.facts.info as module

    monkeypatch.setattr(module, "facts_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["info", "a.zarr"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["predikt"], "No such command 'predikt'"),
        (["predict", "a.zarr", "b.zarr"], "--model"),
        (["info"], "VOLUME"),
        (["info", "a.zarr", "--nonsense"], "--nonsense"),
        (["predict", "a", "b", "-m", "c", "--fill", "x"], "--fill"),
        (["predict", "a", "b", "-m", "c", "--patch", "9,9"], "patch must be one number or three"),
        (["predict", "a", "b", "c", "-m", "d"], "several volumes need names, given 'a'"),
        (["statistics", "a.zarr", "--foreground", "x"], "foreground must be nonzero or a number"),
        (["info", "gone.zarr"], "gone.zarr"),
        (["status", "gone.zarr"], "gone.zarr has no journal"),
        (["cancel", "gone.zarr"], "gone.zarr has no note of a detached run"),
        (["cancel", "https://host/gone.zarr"], "can be read but not written"),
        (["cancel", "out/{case}.zarr"], "out/{case}.zarr has no note of a detached run"),
        (["verify", "gone.zarr"], "gone.zarr has no journal"),
        (["convert", "gone.nii", "o.zarr"], "gone.nii"),
        (["export", "gone.zarr", "o.nii"], "gone.zarr"),
        (["preview", "gone.zarr"], "gone.zarr"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    told = capsys.readouterr().err
    assert text in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_info_in_words_and_json(volume, capsys):
    assert run(["info", volume.path]) == 0
    assert "16 × 24 × 32 (zyx) float32" in capsys.readouterr().out
    assert run(["info", volume.path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["orientation"] == "SAR"


def test_statistics_of_the_foreground(volume, capsys):
    assert run(["statistics", volume.path, "--foreground", "0.5", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["foreground"] == 0.5
    assert found["channels"][0]["min"] > 0.5


@pytest.mark.slow
def test_journey_of_a_file(tmp_path, volume, capsys, monkeypatch):
    """Convert, plan, verify, status, export, preview: each with its exit code."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.random.default_rng(0).integers(0, 99, (16, 24, 32), "u1"))
    assert run(["convert", "a.npy", "a.zarr", "--chunk", "8", "--shard", "16", "--plan"]) == 0
    assert "peak memory" in capsys.readouterr().out
    assert not (tmp_path / "a.zarr").exists()
    assert run(["convert", "a.npy", "a.zarr", "--chunk", "8", "--shard", "16"]) == 0
    assert "shards       16 × 16 × 16" in capsys.readouterr().out
    assert run(["status", "a.zarr", "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)["outputs"]
    assert (state["operation"], state["done"]) == ("convert", state["total"])
    assert run(["verify", "a.zarr"]) == 0
    assert "blocks verified" in capsys.readouterr().out
    assert run(["export", "a.zarr", "b.npy", "--plan"]) == 0
    assert not (tmp_path / "b.npy").exists()
    assert run(["export", "a.zarr", "b.npy"]) == 0
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    capsys.readouterr()
    assert run(["preview", "a.zarr", "--at", "3,4,5", "--dpi", "50"]) == 0
    assert capsys.readouterr().out == "a.png\n"
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_plan_of_an_export_refuses_what_the_format_cannot_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((4, 5, 6), "int64"))
    told = []
    for words in (["export", "a.npy", "a.tif", "--plan"], ["export", "a.npy", "a.tif"]):
        assert run(words) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "the volume holds int64" in told[0]


@pytest.mark.parametrize(
    ("options", "name", "holds"),
    [
        ([], "scan.png", {"planes", "level"}),
        (["--sheet", "axial", "--tiles", "3"], "scan-axial.png", {"planes"}),
        (["--against", "scan.zarr", "--at", "3,4,5"], "scan-against-scan.png", {"difference"}),
    ],
)
def test_pictures_are_written_beside_the_volume(options, name, holds, volume, capsys, monkeypatch):
    monkeypatch.chdir(Path(volume.path).parent)
    assert run(["preview", volume.path, "--dpi", "50", "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(Path(volume.path).with_name(name))
    assert Path(told["path"]).read_bytes()[:4] == b"\x89PNG"
    assert holds <= set(told)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--sheet", "z", "--against", "b.zarr"], "are two pictures; ask for one at a time"),
        (["--tiles", "4"], "--tiles 4 needs the axis of a sheet; add --sheet z"),
        (["--sheet", "z", "--at", "1,2,3"], "--at places three planes"),
        (["--at", "middle"], "at must be center, content or a voxel z,y,x, given 'middle'"),
        (["--sheet", "q"], "axis must be z, y or x, or one of axial, coronal, sagittal"),
        (["--sheet", "z", "--tiles", "999"], "tiles must be 1 to 200, given 999"),
        (["--against", "gone.zarr"], "gone.zarr does not exist"),
        (["--out", "a.zarr"], "a picture is written as .png"),
        (["--dpi", "0"], "dpi must be 20 to 600 pixels per inch, given 0"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(options, text, volume, capsys):
    assert run(["preview", volume.path, *options]) == 2
    told = capsys.readouterr().err
    assert text in told
    assert told.count("\n") == 1


def test_verify_of_a_damaged_output_fails(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 99, (16, 16, 32), "u1"))
    out = str(tmp_path / "a.zarr")
    args = [str(tmp_path / "a.npy"), out, "--chunk", "8", "--shard", "16", "-q"]
    assert run(["convert", *args]) == 0
    shard = next(path for path in (tmp_path / "a.zarr").rglob("c/*/*/*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    capsys.readouterr()
    assert run(["verify", out, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert len(told["bad"]) == 1


@pytest.mark.slow
def test_a_closed_pager_is_no_error(volume, root):
    """What `volflow info … | head -0` does to the writer."""
    code = f"import sys; from volflow.cli import run; sys.exit(run(['info', {volume.path!r}]))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_stop_cleanly(name, root):
    code = (
        "import sys, time, volflow.report.facts.info as info\n"
        "from volflow.cli import main\n"
        "def wait(*_):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "info.facts_of = wait\nsys.argv = ['volflow', 'info', 'a.zarr']\nmain()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert told == (
        "volflow: stopped; what is done is kept, run the same command again to do the rest\n"
    )


def test_main_exits_with_the_code_of_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["volflow", "info"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exited:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exited.value.code == 2


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["a.zarr"], "a.zarr"),
        (["t1=a.zarr"], {"t1": "a.zarr"}),
        (["t1=a.zarr", "t2=b=c.zarr"], {"t1": "a.zarr", "t2": "b=c.zarr"}),
        (["/data/sub=1/a.zarr"], "/data/sub=1/a.zarr"),
        (["s3://bucket/a.zarr?x=1"], "s3://bucket/a.zarr?x=1"),
    ],
)
def test_inputs_by_name(words, want):
    assert inputs(words) == want


def test_a_path_with_an_equals_sign_is_a_path_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.zarr").mkdir()
    assert inputs(["a=b.zarr"]) == "a=b.zarr"


def test_names_are_given_once():
    with pytest.raises(InvalidInput, match="two volumes are named 't1'"):
        inputs(["t1=a", "t1=b"])
