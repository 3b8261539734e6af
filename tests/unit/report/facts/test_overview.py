"""How far runs are, from their journals alone: pace, state, holder, bottleneck, many at once."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.cli import run
from volflow.engine.observing.run_facts import SILENT_S, pace, run_facts
from volflow.errors import Damaged, InvalidInput
from volflow.report.facts.overview import look_at, outputs_below
from volflow.report.facts.run_state import run_text
from volflow.store.journal.history import Finished, find_holder, finished_blocks
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.layout import ShardEntry


def begun(out, done: int, total: int = 4, at_s: float | None = None) -> Journal:
    """The journal of an output with blocks done, each ten seconds after the one before."""
    journal = Journal(journal_dir(out))
    record = Record("predict", {"input": "a"}, {"grid": [1, 1, total]})
    last_s = time.time() if at_s is None else at_s
    with journal.lock():
        session = journal.begin(record)
        for n in range(done):
            entry = ShardEntry("0", (0, 0, 0, 16 * n), (3, 16, 16, 16 * n + 16), 0)
            journal.mark(n, [entry], {"read": 3.0, "model": 1.0}, session=session)
            when_s = last_s - 10 * (done - 1 - n)
            os.utime(journal.directory / "done" / f"{n:08d}.json", (when_s, when_s))
        journal.end()
    return journal


def held(journal: Journal, host: str, pid: int, since_s: float) -> None:
    """Note a holder in a lock, as a driver does, without holding it."""
    lock = journal.directory / "lock"
    lock.write_text(json.dumps({"pid": pid, "host": host}))
    os.utime(lock, (since_s, since_s))


class TestPace:
    def test_counts_the_blocks_of_the_run_at_work_from_its_beginning(self):
        earlier = [Finished(n, float(n), 100, "a:1", {}) for n in range(9)]
        own = [Finished(9 + n, 1010.0 + 10 * n, 100, "a:1", {}) for n in range(3)]
        found = pace([*earlier, *own], left=4, since_s=1000, now_s=1034)
        assert found == {"blocks_per_s": 0.1, "voxels_per_s": 10.0, "left_s": 36.0}

    def test_of_many_blocks_the_last_ones_count(self):
        slow = [Finished(n, 100.0 * n, 0, "a:1", {}) for n in range(100)]
        quick = [replace(slow[0], at_s=9900.0 + n) for n in range(1, 65)]
        found = pace([*slow, *quick], left=8, since_s=0, now_s=9964)
        assert found["blocks_per_s"] == pytest.approx(64 / 64, rel=0.05)
        assert found["voxels_per_s"] is None

    def test_what_does_not_run_has_no_time_left(self):
        done = [Finished(n, 10.0 * n, 0, "a:1", {}) for n in range(5)]
        found = pace(done, left=3, since_s=None, now_s=1e6)
        assert (found["blocks_per_s"], found["left_s"]) == (0.1, None)

    @given(
        times=st.lists(st.floats(0, 1e9), max_size=130),
        left=st.integers(0, 10**6),
        since_s=st.none() | st.floats(0, 1e9),
    )
    def test_never_negative_whatever_the_times(self, times, left, since_s):
        done = [Finished(n, at_s, 8, "", {}) for n, at_s in enumerate(sorted(times))]
        found = pace(done, left, since_s, now_s=1e9)
        assert all(value is None or value >= 0 for value in found.values())


class TestState:
    def test_stopped_and_done(self, tmp_path):
        begun(tmp_path / "a.zarr", done=2)
        facts = run_facts(tmp_path / "a.zarr")
        assert (facts["state"], facts["done"], facts["total"]) == ("stopped", 2, 4)
        assert facts["blocks_per_s"] == pytest.approx(0.1)
        assert facts["voxels_per_s"] == pytest.approx(0.1 * 16**3)  # of one channel
        assert "run the same command again" in run_text(facts)
        begun(tmp_path / "b.zarr", done=4)
        assert run_facts(tmp_path / "b.zarr")["state"] == "done"

    def test_running_in_a_process_that_is_named(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=2)
        with journal.lock():
            facts = run_facts(tmp_path / "a.zarr")
            assert find_holder(journal).alive is True
        assert (facts["state"], facts["holder"]["pid"]) == ("running", os.getpid())
        assert f"held by process {os.getpid()} on {socket.gethostname()}" in run_text(facts)
        assert find_holder(journal) is None
        json.dumps(facts)

    def test_time_left_while_it_runs(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=3, at_s=time.time() - 1)
        lock = journal.directory / "lock"
        with journal.lock():
            os.utime(lock, (time.time() - 31, time.time() - 31))
            facts = run_facts(tmp_path / "a.zarr")
        assert facts["left_s"] == pytest.approx(9, abs=3)
        assert "0.1 blocks/s · 410 voxels/s · about 0:0" in run_text(facts)

    def test_a_holder_that_was_killed(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=2)
        code = (
            "import os, pathlib; from volflow.store.journal.journal import Journal\n"
            f"with Journal(pathlib.Path({str(journal.directory)!r})).lock():\n"
            "    os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        holder = find_holder(journal)
        assert (holder.alive, holder.host) == (False, socket.gethostname())
        facts = run_facts(tmp_path / "a.zarr")
        assert facts["state"] == "stopped"
        assert f"left by process {holder.pid}" in run_text(facts)

    def test_a_holder_on_another_machine_is_judged_by_what_it_records(self, tmp_path):
        now_s = time.time()
        journal = begun(tmp_path / "a.zarr", done=2, at_s=now_s - 5)
        held(journal, "elsewhere", 7, now_s - 20)
        facts = run_facts(tmp_path / "a.zarr")
        assert (facts["state"], facts["holder"]["alive"]) == ("running", None)
        assert "cannot be seen from this machine" in run_text(facts)
        shutil.rmtree(journal.directory)
        journal = begun(tmp_path / "a.zarr", done=2, at_s=now_s - SILENT_S - 5)
        held(journal, "elsewhere", 7, now_s - SILENT_S - 20)
        facts = run_facts(tmp_path / "a.zarr")
        assert facts["state"] == "silent"
        assert "it has recorded nothing for 10 min" in run_text(facts)

    def test_a_look_never_keeps_a_driver_out(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=2)
        held(journal, socket.gethostname(), os.getpid(), time.time())
        with (journal.directory / "lock").open() as looking:
            fcntl.flock(looking, fcntl.LOCK_SH)
            with pytest.raises(InvalidInput, match="is being written"), journal.lock():
                pass  # as long as it is kept
        find_holder(journal)
        with journal.lock():
            assert find_holder(journal).alive

    @pytest.mark.parametrize("noted", ["{", "[]", '{"pid": 1}', '{"pid": "x", "host": 1}', "\0"])
    def test_a_damaged_lock_names_nobody(self, tmp_path, noted):
        journal = begun(tmp_path / "a.zarr", done=2)
        (journal.directory / "lock").write_text(noted)
        assert find_holder(journal) is None
        assert run_facts(tmp_path / "a.zarr")["state"] == "stopped"

    def test_the_worker_of_a_block_is_named_and_old_journals_are_read(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=2)
        me = f"{socket.gethostname()}:{os.getpid()}"
        path = journal.directory / "done" / "00000001.json"
        saved = json.loads(path.read_text())
        assert saved.pop("worker") == me
        path.write_text(json.dumps(saved))  # as before workers were recorded
        count, found = finished_blocks(journal)
        assert count == 2
        assert [one.worker for one in sorted(found, key=lambda one: one.block)] == [me, ""]
        path.write_text("torn")
        assert finished_blocks(journal)[0] == 1
        assert run_facts(tmp_path / "a.zarr")["done"] == 1

    def test_of_a_long_run_the_newest_records_are_read(self, tmp_path):
        journal = begun(tmp_path / "a.zarr", done=4)
        count, found = finished_blocks(journal, most=2)
        assert (count, [one.block for one in found]) == (4, [2, 3])

    def test_inputs_that_are_converted_first_stand_for_their_run(self, tmp_path):
        main = Journal(tmp_path / "seg.zarr.volflow")
        main.make_place()
        begun(main.directory / "input.zarr", done=1)
        assert list(outputs_below(tmp_path)) == [str(tmp_path / "seg.zarr")]
        facts = run_facts(tmp_path / "seg.zarr")
        assert (facts["done"], facts["path"]) == (1, str(tmp_path / "seg.zarr"))
        begun(main.directory / "input.zarr", done=4)
        assert run_facts(tmp_path / "seg.zarr")["state"] == "stopped"  # the output is not done
        with main.lock():
            assert run_facts(tmp_path / "seg.zarr")["state"] == "running"
        begun(tmp_path / "seg.zarr", done=3)
        assert run_facts(tmp_path / "seg.zarr")["done"] == 3

    def test_passes_of_an_exact_prediction_stand_for_it_until_it_writes(self, tmp_path):
        main = begun(tmp_path / "a.zarr", done=0)
        one = Journal(main.passes / "000")
        one.directory.mkdir(parents=True)
        with main.lock():
            session = one.begin(Record("pass", {}, {"grid": [3]}))
            one.mark(0, [], {"model": 1.0}, session=session)
            facts = run_facts(tmp_path / "a.zarr")
        assert (facts["operation"], facts["done"], facts["total"]) == ("pass", 1, 3)
        assert (facts["state"], facts["holder"]["pid"]) == ("running", os.getpid())

    def test_a_level_that_is_not_finished_is_named(self, tmp_path):
        main = begun(tmp_path / "a.zarr", done=4)
        level = Journal(main.directory / "levels" / "1")
        level.directory.mkdir(parents=True)
        session = level.begin(Record("pyramid", {}, {"grid": [1, 1, 2]}))
        level.mark(0, [], {}, session=session)
        facts = run_facts(tmp_path / "a.zarr")
        assert (facts["state"], facts["levels"]) == ("stopped", {"1": [1, 2]})
        assert "level 1: 1 of 2 blocks done" in run_text(facts)
        level.mark(1, [], {}, session=session)
        assert run_facts(tmp_path / "a.zarr")["state"] == "done"


class TestMany:
    @pytest.fixture
    def night(self, tmp_path):
        """A folder with three outputs: done, stopped, and one in a folder of its own."""
        (tmp_path / "case").mkdir()
        for name, done in (("a.zarr", 4), ("b.zarr", 1), ("case/seg.nii.gz", 4)):
            begun(tmp_path / name, done=done)
        (tmp_path / "a.zarr" / "0").mkdir(parents=True)
        return tmp_path

    def test_a_folder_stands_for_the_outputs_in_it(self, night):
        names = ["a.zarr", "b.zarr", "case/seg.nii.gz"]
        assert list(outputs_below(night)) == [str(night / name) for name in names]
        found = look_at([night])
        assert (len(found.runs), found.refused, found.exit_code) == (3, (), 1)
        text = found.text()
        assert "2 of 3 outputs done, 9 of 12 blocks" in text
        assert f"{night / 'b.zarr'}: predict: 1 of 4 blocks done" in text
        assert "a.zarr" not in text

    def test_exit_codes(self, night, tmp_path):
        assert look_at([night / "a.zarr"]).exit_code == 0
        with Journal(journal_dir(night / "b.zarr")).lock():
            assert look_at([night]).exit_code == 4
            begun(tmp_path / "c.zarr", done=0)
            assert look_at([night]).exit_code == 1
            assert look_at([night]).running
        assert look_at([night, night / "nothing"]).exit_code == 2

    def test_what_is_no_output_is_said_and_the_others_are_shown(self, night, capsys):
        assert run(["status", str(night / "a.zarr"), str(night / "gone.zarr"), "https://b/x"]) == 2
        out, error = capsys.readouterr()
        assert "4 of 4 blocks done" in out
        assert [line.split(" ")[0] for line in error.splitlines()] == ["volflow:"] * 2
        assert "gone.zarr has no journal" in error
        assert "https://b/x" in error

    def test_a_damaged_journal_hides_no_other(self, night, capsys):
        (night / "b.zarr.volflow" / "plan.json").write_text("{")
        found = look_at([night])
        assert (len(found.runs), found.exit_code) == (2, Damaged.exit_code)
        assert run(["status", str(night), "--json"]) == 3
        said = json.loads(capsys.readouterr().out)
        assert (said["done"], said["total"]) == (8, 8)
        assert [one["path"] for one in said["refused"]] == [str(night / "b.zarr")]

    def test_an_empty_folder_is_refused(self, tmp_path, capsys):
        assert run(["status", str(tmp_path)]) == 2
        assert "has no journal" in capsys.readouterr().err

    def test_watching_ends_with_the_run(self, night, capsys):
        assert run(["status", str(night / "a.zarr"), "--watch", "3600"]) == 0
        assert "4 of 4 blocks done" in capsys.readouterr().out
