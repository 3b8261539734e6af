"""Runs that their cluster drives: handed over, found, cancelled, begun again; in one process."""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client

from tests.processes import wait_for
from tests.relay import Fault
from volflow.engine.clusters import forms
from volflow.engine.detached import driver_task, hand_over, handle
from volflow.engine.detached.detached_run import DetachedRun
from volflow.engine.detached.hand_over import (
    DetachedCall,
    find_run,
    lasting_cluster,
    require_lasting,
)
from volflow.engine.observing.run_facts import SILENT_S, run_facts
from volflow.engine.wanted import check_wanted
from volflow.errors import InvalidInput, Locked, MemoryRefused, RunFailed
from volflow.report.facts.overview import look_at
from volflow.report.facts.run_state import run_text
from volflow.store.atomic import write_json
from volflow.store.create import create
from volflow.store.journal import lease
from volflow.store.journal.detachment import (
    DONE,
    Detachment,
    Ending,
    has_begun,
    keep_detachment,
    keep_ending,
    read_detachment,
    read_ending,
    run_before,
)
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import begin_anew
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.remote import access
from volflow.store.remote import address as address_module
from volflow.store.remote.address import Address, is_stored

PATIENCE_S = 60


@pytest.fixture
def client(local):
    with Client(local.scheduler_address, set_as_default=False) as client:
        yield client
        wait_for(lambda: not driver_task._driving)


# What the calls of this process were given, and what holds them up.
seen: list[bool] = []
go_on = threading.Event()


@pytest.fixture(autouse=True)
def _afresh():
    seen.clear()
    go_on.clear()
    yield
    go_on.set()


def writes(out, client, begun):
    """Begins the output, once, and has a block computed by the cluster."""
    begin(out)
    seen.append(begun)
    with journal_of(out).lock():
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE_S) == 3
    return {"": str(out)}


def waits(out, client, begun):
    """Waits amid its work until it is told to go on, or is no longer wanted."""
    found = writes(out, client, begun)
    with journal_of(out).lock():
        while not go_on.wait(0.01):
            check_wanted()
    return found


def fails(error, client, begun):
    raise error


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.zarr"


@pytest.fixture
def call(out):
    def make(perform=None, digest="a"):
        perform = perform or partial(writes, out)
        return DetachedCall("predict", str(out), journal_of(out), digest, perform, str(out))

    return make


@pytest.fixture
def detach(client, address):
    """Hands a call over, as if the scheduler were in another process."""

    def run(call, by=client):
        return DetachedRun(call.out, hand_over.hand_over(by, call), address)

    return run


class RunContract:
    """Inherited by each place that an output may lie in, which is ``out``."""

    def test_a_worker_of_one_thread_drives_it_and_computes_its_blocks(self, client, detach, call):
        run = detach(call())
        assert run.key.startswith("predict-out.zarr-")
        result = run.result()
        assert np.array_equal(result[:], np.zeros((2, 2, 2)))
        assert run.result().path == result.path
        assert seen == [False]
        assert run.status()["detached"]["ended"] == "done"
        assert DetachedRun.of(run.out) == run
        wait_for(lambda: handle.state_of_task(client, run.key) is None)
        assert client.list_datasets() == ()

    def test_though_who_handed_it_over_is_gone(self, local, detach, call, out):
        asked = call(partial(waits, out))
        with Client(local.scheduler_address, set_as_default=False) as first:
            run = detach(asked, first)
        wait_for(lambda: seen)
        go_on.set()
        assert run.result().shape == (2, 2, 2)

    def test_its_error_is_the_same(self, detach, call):
        run = detach(call(partial(fails, MemoryRefused("1 GiB is too little"))))
        for _ in range(2):
            with pytest.raises(MemoryRefused, match=r"^1 GiB is too little$"):
                run.result()
        facts = run.status()
        assert facts["state"] == "stopped"
        assert "  ended  1 GiB is too little" in run_text(facts).splitlines()

    def test_it_is_found_by_the_same_call_while_it_runs(self, client, detach, call, out):
        asked = call(partial(waits, out))
        run = detach(asked)
        assert detach(asked) == run
        assert find_run(client, asked) == run.key
        with pytest.raises(Locked, match=f"a detached run of another input, .*{run.key} at tcp:"):
            find_run(client, call(digest="b"))
        go_on.set()
        run.result()
        wait_for(lambda: find_run(client, asked) is None)
        again = detach(asked)
        assert again.key != run.key
        again.result()
        with pytest.raises(RunFailed, match="another run has begun since, and nothing is known"):
            run.result()

    def test_an_output_that_another_driver_holds_is_refused(self, detach, call):
        asked = call()
        with asked.locked.lock(), pytest.raises(Locked, match="is being written by process"):
            detach(asked)
        assert read_detachment(asked.folder) is None

    def test_cancelled_it_stops_and_the_same_call_goes_on(self, detach, call, out):
        asked = call(partial(waits, out))
        run = detach(asked)
        wait_for(lambda: seen)
        run.cancel()
        with asked.locked.lock():  # nobody holds it
            pass
        with pytest.raises(RunFailed, match="was cancelled; what is done is kept, and the same"):
            run.result()
        assert run.status()["state"] == "stopped"
        go_on.set()
        assert detach(asked).result().shape == (2, 2, 2)

    def test_with_its_worker_it_is_begun_again_on_another(self, local, client, detach, call, out):
        run = detach(call(partial(waits, out)))
        wait_for(lambda: seen)
        local.scale(2)
        client.wait_for_workers(2, timeout=PATIENCE_S)
        (first,) = (address for address, keys in client.processing().items() if run.key in keys)
        scheduler = local.scheduler
        local.sync(scheduler.remove_worker, first, stimulus_id="test", close=True)
        wait_for(lambda: len(seen) > 1)
        go_on.set()
        assert run.result().shape == (2, 2, 2)
        assert seen == [False, True]
        local.scale(1)

    def test_whether_the_output_has_begun_since(self, call, out):
        asked = call()
        assert not has_begun(keep_note(asked.folder, out))
        begin(out)
        assert has_begun(keep_note(asked.folder, out))
        last = run_before(str(out))
        assert not has_begun(keep_note(asked.folder, out, before=last))
        with asked.locked.lock():  # it goes on
            asked.locked.begin(Record("predict", {}, {"grid": [1]}))
        assert not has_begun(keep_note(asked.folder, out, before=last))
        with asked.locked.lock():
            begin_anew(out, asked.locked, Record("predict", {}, {"grid": [1]}))
            assert not has_begun(keep_note(asked.folder, out, before=last))
        begin(out)
        assert has_begun(keep_note(asked.folder, out, before=last))
        write_json(asked.folder / "plan.json", [])
        assert not has_begun(keep_note(asked.folder, out, before=last))

    def test_an_ending_is_that_of_its_driver(self, call):
        folder = call().folder
        call().journal.make_place()
        keep_ending(folder, Ending("first", DONE))
        assert read_ending(folder, "first") == Ending("first", DONE)
        assert read_ending(folder, "second") is None
        write_json(folder / "ended.json", ["first"])
        assert read_ending(folder, "first") is None

    def test_no_note_of_it_is_refused(self, out):
        with pytest.raises(InvalidInput, match=r"has no note of a detached run, or a damaged one"):
            DetachedRun.of(out)

    def test_the_note_of_many_outputs_is_refused(self, call, out):
        keep_note(call().folder, out, operation="predict_cases")
        with pytest.raises(InvalidInput, match="by predict_cases, and a DetachedRun is of predict"):
            DetachedRun.of(out)


class TestOnADisk(RunContract):
    pass


@pytest.mark.slow
class TestOnAStore(RunContract):
    @pytest.fixture
    def out(self, s3):
        return Address("s3://bucket/results/out.zarr")

    def test_a_lease_that_its_first_driver_left_is_waited_for(self, detach, call, out, monkeypatch):
        """Nobody gives back the lease of a process that was killed."""
        monkeypatch.setattr(lease, "LAPSE_S", 1.0)
        asked = call()
        with monkeypatch.context() as killed:
            killed.setattr(lease.Lease, "give_back", lambda self: None)
            run = detach(asked)
        assert run.result().shape == (2, 2, 2)

    def test_one_that_does_not_answer_is_not_one_without_a_note(self, s3, call, out, monkeypatch):
        monkeypatch.setattr(access, "PATIENCE_S", 0.1)
        asked = call()
        keep_note(asked.folder, out)
        s3.fault = lambda request: Fault("status")
        address_module._connected.cache_clear()
        with pytest.raises(RunFailed, match=r"cannot be read: .*when the store answers"):
            read_detachment(asked.folder)
        address_module._connected.cache_clear()


def begin(out):
    """Begin the output, unless it has begun."""
    journal = journal_of(out)
    with journal.lock():
        if not is_stored(out):
            journal.begin(Record("predict", {}, {"grid": [1]}))
            create(out, VolumeSpec.of((2, 2, 2), "uint8", Meta(), chunk=2))
            journal.end()


def keep_note(folder, store, since_s=0.0, before=None, operation="predict"):
    folder.mkdir(exist_ok=True)
    note = Detachment(operation, str(store), "tcp://far:8786", "key", "a", since_s, before)
    keep_detachment(folder, note)
    return note


class TestDriven:
    def test_outputs_have_their_names(self, detach, call, out):
        def named(client, begun):
            path = writes(out, client, begun)[""]
            return {"seg": path, "edge": path}

        assert sorted(detach(call(named)).result()) == ["edge", "seg"]

    def test_an_error_that_is_not_ours_is_one_line(self, detach, call, caplog):
        run = detach(call(partial(fails, ValueError("no\nnumber"))))
        with pytest.raises(RunFailed) as failed:
            run.result()
        assert str(failed.value) == f"{run.out}: the driver failed, ValueError: no"
        assert "ValueError: no\nnumber" in caplog.text

    def test_one_that_does_not_stop_is_told_of_each_time(self, detach, call, out, monkeypatch):
        run = detach(call(partial(waits, out)))
        wait_for(lambda: seen)
        monkeypatch.setattr(handle, "STOP_S", 0.0)
        monkeypatch.setattr(DetachedRun, "_is_driven", lambda run, client: True)
        for _ in range(2):
            with pytest.raises(RunFailed, match="was told to stop and has not within 0 s"):
                run.cancel()

    def test_what_has_ended_stays_as_it_is(self, detach, call):
        run = detach(call())
        run.result()
        run.cancel()
        assert run.result().shape == (2, 2, 2)


class TestLost:
    def test_without_a_word_it_says_so(self, client, call, monkeypatch):
        asked = call()
        keep_note(asked.folder, asked.store)
        monkeypatch.setattr(handle, "NOTED_S", 0.0)
        run = DetachedRun(asked.out, "key", client)
        with pytest.raises(RunFailed, match="its driver is gone without a word"):
            run.result()

    @pytest.mark.parametrize("ending", [None, Ending("key", "MemoryRefused", "too little")])
    def test_with_its_scheduler_what_is_noted_stays_known(self, call, monkeypatch, ending):
        monkeypatch.setattr(forms, "ANSWER_S", 0.1)
        asked = call()
        keep_note(asked.folder, asked.store)
        if ending:
            keep_ending(asked.folder, ending)
        kind, text = (MemoryRefused, "^too") if ending else (RunFailed, "no Dask scheduler answers")
        run = DetachedRun.of(asked.out, "tcp://127.0.0.1:1")
        with pytest.raises(kind, match=text):
            run.result()
        if ending:
            run.cancel()  # which leaves it as it is
            assert read_ending(asked.folder, "key") == ending
        else:
            with pytest.raises(RunFailed, match="no Dask scheduler answers"):
                run.cancel()

    def test_a_driver_without_a_note_does_nothing(self, client, call, monkeypatch, caplog):
        monkeypatch.setattr(driver_task, "PATIENCE_S", 0.0)
        asked = call()
        asked.folder.mkdir()
        client.submit(driver_task.drive, b"", str(asked.folder), key="other").result(PATIENCE_S)
        assert "finds no note of it" in caplog.text

    def test_one_that_is_over_does_nothing(self, client, call):
        asked = call()
        keep_note(asked.folder, asked.store)
        keep_ending(asked.folder, Ending("key", DONE))
        client.submit(driver_task.drive, b"", str(asked.folder), key="key").result(PATIENCE_S)
        assert read_ending(asked.folder, "key") == Ending("key", DONE)


class TestStatus:
    def test_before_a_block_is_planned(self, out, tmp_path):
        keep_note(journal_of(out).directory, out, time.time())
        (facts,) = look_at([tmp_path]).runs
        assert (facts["state"], facts["done"], facts["total"]) == ("running", 0, 0)
        first, second = run_text(facts).splitlines()
        assert first == f"{out}: predict: no block is planned yet"
        assert second.startswith("  detached  driven by the cluster at tcp://far:8786, since 2")

    def test_of_one_that_is_silent(self, out):
        keep_note(journal_of(out).directory, out, time.time() - 2 * SILENT_S)
        facts = run_facts(out)
        assert facts["state"] == "silent"
        assert "it records nothing: the same command finds it" in run_text(facts)


class TestRefused:
    @pytest.mark.parametrize(
        ("cluster", "named"),
        [
            (None, "threads"),
            ("threads", "'threads'"),
            ("processes", "'processes'"),
            (4, "4"),
            ("cuda", "'cuda'"),
            ("slurm:8", "'slurm:8'"),
            ("inproc://1/2", "'inproc://1/2'"),
            (SimpleNamespace(scheduler_address="tcp://1:2"), "a SimpleNamespace"),
        ],
    )
    def test_clusters_that_end_with_this_process(self, cluster, named):
        with pytest.raises(InvalidInput) as refused:
            lasting_cluster(cluster)
        assert str(refused.value) == (
            f"detach needs a cluster that outlives this process, and {named} ends with it; start a"
            ' Dask scheduler and workers, and give its address: cluster="tcp://host:8786"'
            " (--cluster)"
        )

    def test_a_client_of_such_a_cluster(self, local):
        refused = pytest.raises(InvalidInput, match="and a Client ends with it")
        with Client(local, set_as_default=False) as client, refused:
            lasting_cluster(client)

    def test_the_active_client_counts(self, local):
        with Client(local.scheduler_address) as client:
            assert lasting_cluster(None) is client

    def test_a_scheduler_in_this_process(self, client):
        with pytest.raises(InvalidInput, match=r"the scheduler at tcp:.* lives in it; start one"):
            require_lasting(client)

    def test_more_than_may_travel(self, detach, call, monkeypatch):
        monkeypatch.setattr(hand_over, "MOST_BYTES", 2**20)
        asked = call(partial(fails, np.zeros(2**18)))
        with pytest.raises(InvalidInput, match=r"holds 2 MiB, more than 1 MiB; store its"):
            detach(asked)
        assert not asked.folder.exists()

    def test_what_cannot_travel(self, detach, call):
        with pytest.raises(InvalidInput, match="travels to the cluster, and this one cannot: "):
            detach(call(partial(fails, threading.Lock())))
