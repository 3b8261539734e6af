"""A batch that is killed, or started twice, does each case once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import volflow as vf

pytestmark = pytest.mark.chaos

CASES = 6
PATIENCE_S = 120
CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"
NAMED = "tests.nets:slow"  # results say how their model was named
OPTIONS = {"patch": 8, "batch_size": 2, "progress": False}


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "out").mkdir()
    for n in range(CASES):
        np.save(tmp_path / f"p{n}.npy", np.random.default_rng(n).random((16, 9, 8), "f4") + 0.1)
    (tmp_path / "bad.npy").write_text("no scan")
    return tmp_path


@pytest.fixture
def expected(scans):
    """What quiet predictions write."""
    made = {}
    for n in range(CASES):
        out = scans / f"quiet{n}.nii.gz"
        vf.predict(scans / f"p{n}.npy", NAMED, out, **OPTIONS)
        made[f"p{n}"] = out.read_bytes()
    return made


@pytest.fixture
def started(scans, root):
    """Starts the batch in a process of its own."""
    running = []

    def start(*words, sleep="0.1"):
        line = [
            "predict", f"{scans}/{{case}}.npy", f"{scans}/out/{{case}}.nii.gz",
            "--model", NAMED, "--patch", "8", "--batch-size", "2", *words,
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", CLI, *line], text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(root), "VOLFLOW_TEST_SLEEP": sleep},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(scans) -> list[str]:
    """The cases that were done, as often as each was, of all runs."""
    logs = sorted((scans / "out" / "{case}.nii.gz.volflow").glob("log-*.txt"))
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    return [words[1] for words in lines if words[2:3] == ["done"]]


def wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def results(scans) -> dict[str, bytes]:
    found = Path(scans / "out").glob("*.nii.gz")
    return {path.name.removesuffix(".nii.gz"): path.read_bytes() for path in found}


@pytest.mark.parametrize("at_once", ["1", "2"])
def test_killed_twice_each_case_is_done_once(scans, expected, started, at_once):
    for count in (1, 3):
        driver = started("--at-once", at_once)
        wait_for(lambda count=count: len(ended(scans)) >= count, driver)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert set(results(scans)) <= set(expected)  # never under its name before it is whole
    driver = started("--json", sleep="0")
    shown, told = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1, told
    table = json.loads(shown)
    assert {row["case"]: row["status"] for row in table["cases"] if row["status"] != "kept"}
    assert [row["case"] for row in table["cases"] if row["status"] == "failed"] == ["bad"]
    assert results(scans) == expected
    # The one that was killed between its record and its line of the log has no line.
    silent = [case for case in expected if case not in ended(scans)]
    kept = [row["case"] for row in table["cases"] if row["status"] == "kept"]
    assert set(silent) <= set(kept)
    assert sorted([*ended(scans), *silent]) == sorted(expected)


def test_two_timers_at_once(scans, expected, started):
    first = started()
    wait_for(lambda: len(ended(scans)) >= 1, first)
    second = started()
    _, told = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 4
    assert f"is being written by process {first.pid} on" in told
    _, told = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 1, told
    assert "bad  failed: " not in told  # which is printed
    assert results(scans) == expected
    assert sorted(ended(scans)) == sorted(expected)


def test_terminated_it_ends_in_one_line(scans, expected, started):
    driver = started("--at-once", "2")
    wait_for(lambda: len(ended(scans)) >= 1, driver)
    driver.send_signal(signal.SIGTERM)
    _, told = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1
    assert "volflow: stopped; what is done is kept, run the same command again" in told
    assert "Traceback" not in told
    driver = started(sleep="0")
    driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1
    assert results(scans) == expected
