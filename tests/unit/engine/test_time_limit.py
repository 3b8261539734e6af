"""Limits to the time of runs: what they mean, and that a run stops in order and goes on."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import volflow as vf
from tests.nets import slow
from tests.stores import files
from volflow.cli import run as run_cli
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Step
from volflow.engine.time_limit import current_limit, parse_limit
from volflow.errors import InvalidInput, TimeUp
from volflow.store.journal.journal import Journal, journal_dir

EVENING = datetime(2026, 11, 30, 22, 15)
OPTIONS = {"patch": 8, "overlap": 0.5, "chunk": 8, "shard": 8, "memory": "1GiB"}


@pytest.mark.parametrize(
    ("until", "moment"),
    [
        ("07:00", datetime(2026, 12, 1, 7)),
        ("7:00", datetime(2026, 12, 1, 7)),
        ("22:15", datetime(2026, 12, 1, 22, 15)),
        ("22:16", datetime(2026, 11, 30, 22, 16)),
        ("2026-12-05 07:30", datetime(2026, 12, 5, 7, 30)),
        (datetime(2026, 12, 1, 6), datetime(2026, 12, 1, 6)),
    ],
)
def test_a_time_is_the_next_of_its_name(until, moment):
    (limit,) = parse_limit(until, None, EVENING)
    assert limit.at_s == moment.timestamp()
    assert limit.text == f"at {until}"


@pytest.mark.parametrize("after", ["90s", 90, 90.0, "1.5 minutes"])
def test_a_duration_is_in_seconds_or_in_words(after):
    (limit,) = parse_limit(None, after, EVENING)
    assert limit.at_s == pytest.approx(EVENING.timestamp() + 90)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"until": "25:00"}, "until must be a time of the day like 07:00, or a date and a time"),
        ({"until": "8h"}, "given '8h'"),
        ({"until": 7}, "given 7"),
        ({"until": "2020-01-01 07:00"}, "until must lie ahead, given 2020-01-01 07:00, which has"),
        ({"after": "soon"}, "the time to run must be seconds or a text like 8h or 30m, given 'so"),
        ({"after": 0}, "given 0"),
        ({"after": "-1h"}, "given '-1h'"),
    ],
)
def test_what_is_no_time_is_refused(words, text):
    with pytest.raises(InvalidInput) as refused, vf.time_limit(**words):
        pass
    assert text in str(refused.value)


def test_of_several_limits_the_first_counts():
    assert current_limit() is None
    with vf.time_limit(after="1h"):
        outer = current_limit()
        with vf.time_limit(after="2h"):
            assert current_limit() == outer
        with vf.time_limit(after="1s", until="2099-01-01 00:00"):
            assert current_limit().text == "after 1s"
        assert current_limit() == outer
    assert current_limit() is None


def outlasts(at_s, blocks, context):
    """Four blocks, of which the third outlasts the limit."""
    for block in blocks:
        time.sleep(max(0.0, at_s + 0.5 - time.time()) if block == 2 else 0.0)
        yield Step(block, 1, result=block)


@pytest.mark.slow
def test_a_run_stops_after_the_block_at_work(client):
    with vf.time_limit(after="3s"):
        plan = Plan("count", outlasts, current_limit().at_s, ((0, 1, 2, 3),), 4, "voxels", 1, 1)
        with pytest.raises(TimeUp) as stopped:
            run(plan, cluster=client, progress=False)
    assert str(stopped.value) == (
        "count stopped after 3s; 3 of 4 blocks are done; run the same command again to do the rest"
    )


@pytest.mark.slow
def test_a_prediction_goes_on_where_it_stopped(tmp_path, monkeypatch):
    scan = np.random.default_rng(0).random((64, 9, 9), "float32") + 0.1
    out, options = tmp_path / "out.zarr", {**OPTIONS, "progress": False}
    whole = vf.predict(scan, slow(), tmp_path / "whole.zarr", **options)
    monkeypatch.setenv("VOLFLOW_TEST_SLEEP", "0.05")
    with vf.time_limit(after=1), pytest.raises(TimeUp) as stopped:
        vf.predict(scan, slow(), out, **options)
    done = Journal(journal_dir(out)).done()
    assert len(done) < 8
    if done:  # else it may not even have begun
        assert f"{len(done)} of 8 blocks are done" in str(stopped.value)
    monkeypatch.setenv("VOLFLOW_TEST_SLEEP", "0")
    vf.predict(scan, slow(), out, **options)
    assert files(out) == files(Path(whole.path))
    assert Journal(journal_dir(out)).done().items() >= done.items()


def test_on_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "scan.npy", np.ones((8, 8, 8), "uint8"))
    words = ["convert", str(tmp_path / "scan.npy"), str(tmp_path / "scan.zarr"), "--quiet"]
    assert run_cli([*words, "--for", "0.000001"]) == 1
    assert capsys.readouterr().err == (
        "volflow: convert stopped after 0.000001; 0 of 1 blocks are done; run the same command"
        " again to do the rest\n"
    )
    assert run_cli([*words, "--until", "7 o'clock"]) == 2
    assert "until must be a time of the day like 07:00" in capsys.readouterr().err
    assert run_cli([*words, "--until", "07:00", "--for", "8h"]) == 0
