"""Batches that their cluster drives: the same table, the same record, found, stopped, refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import volflow as vf
from tests.nets import Slow, random_net
from tests.processes import wait_for
from volflow.cli import run
from volflow.engine.observing.run_facts import SILENT_S
from volflow.errors import Damaged, InvalidInput, Locked, RunFailed
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.jobs.batch.batch_state import batch_state
from volflow.jobs.batch.case_record import CaseRecord, batch_dir
from volflow.jobs.batch.perform_batch import perform_batch
from volflow.jobs.batch.result_table import CaseRow, CaseTable
from volflow.report.facts.overview import look_at
from volflow.store.journal.detachment import (
    DONE,
    Detachment,
    Ending,
    keep_detachment,
    keep_ending,
)

OPTIONS = {"patch": 8, "batch_size": 2, "progress": False}
NET = Slow(random_net())


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Two cases in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        np.save(f"{name}.npy", np.random.default_rng(seed).random((9, 8, 8), "f4") + 0.1)
    Path("out").mkdir()
    return tmp_path


OUT = "out/{case}.nii.gz"


@pytest.fixture
def away(address, scans):
    """Detaches the batch of these cases, which are given by a relative pattern."""

    def begin(cases="{case}.npy", model=NET, **options):
        options = {"cluster": address, "detach": True} | OPTIONS | options
        return vf.predict_cases(cases, model, OUT, **options)

    return begin


def here(cases="{case}.npy", model=NET, out=OUT, **options):
    return vf.predict_cases(cases, model, out, **OPTIONS | options)


def statuses(table):
    return {row.case: row.status for row in table}


class TestSame:
    @pytest.mark.slow
    def test_its_table_results_and_record_are_those_of_the_call_without_it(self, away, scans):
        found = away()
        table = found.result()
        assert (table.ok, statuses(table)) == (True, {"a": "done", "b": "done"})
        assert Path(table.summary).read_text().count("done") > 1
        assert found.result() == table
        assert vf.DetachedBatch.of(OUT).key == found.key
        assert vf.DetachedBatch.of(found.out) == found
        for case in "ab":
            vf.predict(scans / f"{case}.npy", NET, scans / f"{case}.nii.gz", **OPTIONS)
            done = Path(OUT.replace("{case}", case)).read_bytes()
            assert done == (scans / f"{case}.nii.gz").read_bytes()
        assert here().counts == {"kept": 2}
        assert away().result().counts == {"kept": 2}

    @pytest.mark.slow
    def test_a_bundle_is_known_again_by_its_files(self, away):
        vf.save_model(vf.UNet(1, 2, features=(2, 4)), "bundle", patch=8)
        assert away(model="bundle").result().ok
        assert here(model="bundle").counts == {"kept": 2}

    @pytest.mark.slow
    def test_arrays_and_masks_travel(self, away, scans):
        arrays = {"x": np.load("a.npy"), "y": vf.convert("b.npy", "b.zarr", progress=False)}
        np.save("x_mask.npy", np.zeros((9, 8, 8), "u1"))
        np.save("y_mask.npy", np.ones((9, 8, 8), "u1"))
        asked = {"mask": "{case}_mask.npy", "fill": 5}
        assert away(arrays, **asked).result().ok
        assert here(arrays, **asked).counts == {"kept": 2}

    @pytest.mark.slow
    def test_a_case_that_fails_is_told_and_answered_for_where_it_is_driven(self, away, scans):
        Path("bad.npy").write_text("no scan")
        table = away(on_failure=f'cp "$VOLFLOW_SUMMARY" {scans}/told').result()
        assert statuses(table) == {"a": "done", "b": "done", "bad": "failed"}
        assert "  ended  " not in batch_state(OUT).text()
        assert Path("told").read_text() == Path(table.summary).read_text()

    def test_a_driver_that_is_begun_again_answers_for_what_failed_before(self, scans):
        Path("bad.npy").write_text("no scan")
        assert not here({"bad": "bad.npy"}).ok
        again = BatchOptions(on_failure=f"touch {scans}/told", **OPTIONS)
        batch = AskedBatch.of({"bad": "bad.npy"}, OUT, again)
        perform_batch(batch, NET)
        assert not Path("told").exists()
        perform_batch(batch, NET, tried={"bad"})
        assert Path("told").exists()

    @pytest.mark.slow
    def test_by_the_command(self, scans, address, capsys):
        words = ["--model", "torch.nn:Identity", "--patch", "8", "--detach", "--cluster", address]
        assert run(["predict", "{case}.npy", OUT, *words]) == 0
        line = capsys.readouterr().out
        assert line.startswith("detached as predict_cases-{case}.nii.gz-")
        assert line.endswith(f"; volflow status '{OUT}' says how far it is\n")
        vf.DetachedBatch.of(OUT).result()
        assert run(["status", OUT, "--json"]) == 0
        (facts,) = json.loads(capsys.readouterr().out)["jobs"]
        assert (facts["counts"], facts["detached"]["ended"]) == ({"done": 2}, "done")

    def test_a_dry_run_hands_nothing_over(self, away, scans):
        assert statuses(away(dry_run=True)) == {"a": "new", "b": "new"}
        assert not batch_dir(OUT).exists()


@pytest.mark.slow
def test_at_work_it_is_found_and_cancelled_and_the_same_call_goes_on(
    away, scans, monkeypatch, capsys
):
    monkeypatch.setenv("VOLFLOW_TEST_SLEEP", "0.1")
    told = f"touch {scans}/told"
    found = away(on_failure=told)
    record = CaseRecord(batch_dir(OUT))
    wait_for(record.read)
    assert away(on_failure=told) == found
    with pytest.raises(Locked, match=rf"a detached run of another input, .*, {found.key} at tcp:"):
        away(overlap=0.5)
    with pytest.raises(Locked, match="is being written by process"):
        here()
    assert run(["status", OUT]) == 4
    assert "  detached  driven by the cluster at tcp://" in capsys.readouterr().out
    assert run(["cancel", OUT]) == 0
    done = found.status()["counts"].get("done", 0)
    assert f"was cancelled; {done} of 2 cases are done" in capsys.readouterr().out
    assert done < 2
    with pytest.raises(RunFailed, match="was cancelled; what is done is kept, and the same call"):
        found.result()
    assert {past.row.status for past in record.read().values()} <= {"started", "done"}
    assert run(["status", OUT]) == 1
    assert "  ended  " in capsys.readouterr().out
    assert not Path("told").exists()  # as where a signal ends it
    monkeypatch.setenv("VOLFLOW_TEST_SLEEP", "0")
    again = away()
    assert statuses(again.result()) == dict.fromkeys("ab", "done") | ({"a": "kept"} if done else {})
    assert run(["cancel", OUT]) == 0
    assert "had ended already (done); 2 of 2 cases are done" in capsys.readouterr().out


class TestRefused:
    def test_a_cluster_that_ends_with_this_process(self, scans):
        with pytest.raises(InvalidInput, match="detach needs a cluster that outlives this process"):
            here(detach=True)

    def test_what_watches_this_process(self, away):
        with pytest.raises(InvalidInput, match=r"progress cannot be a function .*status\(\)$"):
            away(progress=print)

    def test_what_workers_do_not_see(self, away, scans, monkeypatch):
        """All that is read is looked for, and the folder of the results."""
        asked = []

        def unseen(client, out, *inputs):
            asked.extend([out, *inputs])
            raise InvalidInput("the worker does not see it")

        monkeypatch.setattr("volflow.jobs.batch.detached_batch.check_sight", unseen)
        with pytest.raises(InvalidInput, match="the worker does not see it"):
            away(mask="{case}.npy")
        assert asked == [str(scans / OUT), "a.npy", "a.npy", "b.npy", "b.npy"]
        assert not batch_dir(OUT).exists()

    def test_a_model_that_is_not_there(self, away):
        with pytest.raises(InvalidInput, match="model 'nowhere' does not exist"):
            away(model="nowhere")

    @pytest.mark.parametrize("result", [{}, {"cases": [{"case": 1}], "seconds": 1, "summary": ""}])
    def test_a_result_that_is_damaged(self, scans, client, result):
        folder = keep_note()
        keep_ending(folder, Ending("key", DONE, result=result))
        with pytest.raises(Damaged, match=r"damaged: .*; make the same call again"):
            vf.DetachedBatch(OUT, "key", client).result()


def keep_note(since_s=0.0):
    folder = batch_dir(OUT)
    folder.mkdir()
    keep_detachment(folder, Detachment("predict_cases", "", "tcp://far:8786", "key", "a", since_s))
    return folder


class TestStatus:
    def test_before_its_driver_has_begun(self, scans):
        keep_note(time.time())
        state = batch_state(OUT)
        first, second = state.text().splitlines()
        assert first == f"{OUT}: no case is begun so far"
        assert second.startswith("  detached  driven by the cluster at tcp://far:8786, since 2")
        assert (state.running, state.exit_code) == (True, 4)

    def test_where_nothing_is_recorded(self, scans):
        keep_note(time.time() - 2 * SILENT_S)
        state = batch_state(OUT)
        assert (state.running, state.exit_code) == (False, 1)
        assert "it records nothing: the same command finds it" in state.text()

    def test_its_pattern_is_no_output_of_its_folder(self, scans):
        keep_note(time.time())
        found = look_at(["out"])
        assert found.runs == ()
        assert "out has no journal" in str(found.refused[0][1])


def test_a_table_is_what_its_plain_values_say():
    rows = (
        CaseRow("a", "done", seconds=0.5, volumes={"image": "a.npy"}),
        CaseRow("b", "failed", "x"),
    )
    table = CaseTable(rows, 1.5, "summary.html")
    assert CaseTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
