"""On a store, where nothing is renamed, an output is withheld and refused as on a disk."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import zarr

import volflow as vf
from tests.relay import Fault, objects
from volflow.cli import run
from volflow.engine.observing.run_facts import run_facts
from volflow.errors import Damaged, InvalidInput, RunFailed, Superseded
from volflow.geometry.roi import Roi
from volflow.store.create import check_target, create, create_store, open_begun
from volflow.store.journal import lease
from volflow.store.journal.complete import begun_store
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.levels import list_levels
from volflow.store.journal.outputs import withheld
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.remote import address
from volflow.store.remote.address import Address, is_stored
from volflow.store.remote.zarr_store import Remote
from volflow.store.unfinished.root import ROOT, WITHHELD, is_unfinished, publish, withhold
from volflow.volumes.kind import set_kind

OUT = "s3://bucket/scans/out.zarr"
AT = Address(OUT)
SPEC = VolumeSpec.of((8, 8, 16), "u1", Meta(unit="millimeter"), chunk=4, shard=8)
VOXELS = np.arange(8 * 8 * 16, dtype="u1").reshape(8, 8, 16)


@pytest.fixture
def begun(s3):
    """An output of two blocks, of which one is done."""
    journal = journal_of(OUT)
    with journal.lock():
        journal.begin(Record("convert", {}, {"grid": [1, 1, 2]}))
        create(OUT, SPEC, finished=False)
        journal.mark(0, [], {})
        journal.end()
    return journal


@pytest.fixture
def whole(begun):
    begun.mark(1, [], {})
    publish(AT)
    return begun


def killed(*args, **options):
    raise KeyboardInterrupt


def roots():
    return sorted(key for key in objects(OUT) if "/" not in key)


def test_is_refused_in_the_words_of_a_disk(begun, capsys):
    for path in (OUT, f"{OUT}/", f"{OUT}/0"):
        with pytest.raises(InvalidInput) as refused:
            vf.open(path)
        assert str(refused.value) == (
            f"{OUT} is not complete: 1 of 2 blocks are done; wait for its run, or run the command"
            f" that started it again if that has ended (volflow status {OUT} says which)"
        )
    assert run(["info", OUT]) == 2
    assert "is not complete: 1 of 2 blocks are done" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        zarr.open(Remote(OUT), mode="r")


def test_its_own_run_opens_it_and_then_everybody(begun, tmp_path):
    assert roots() == [WITHHELD]
    volume = open_begun(OUT)
    assert (volume.path, volume.spec) == (OUT, SPEC)
    volume.write(Roi.full(SPEC.shape), VOXELS)
    for _ in range(2):  # no harm done
        publish(AT)
        assert roots() == [ROOT]
    np.testing.assert_array_equal(vf.open(OUT)[:], VOXELS)
    assert open_begun(OUT).identity() == vf.open(OUT).identity() == volume.identity()
    create(tmp_path / "out.zarr", SPEC)
    assert objects(OUT)[ROOT] == (tmp_path / "out.zarr" / ROOT).read_bytes()
    withhold(AT)
    assert roots() == [WITHHELD]
    withhold(AT)
    assert roots() == [WITHHELD]


@pytest.mark.slow
def test_several_volumes_are_withheld_each(s3, tmp_path):
    journal, store = journal_of(OUT), Address(OUT)
    with journal.lock():
        journal.begin(Record("predict", {}, {"grid": [3, 1, 1]}))
        create_store(store)
        for name in ("seg", "edge"):
            create(store / name, SPEC, finished=False)
    for path in (OUT, f"{OUT}/seg", f"{OUT}/edge/0"):
        with pytest.raises(InvalidInput, match=rf"is not complete: 0 of 3 blocks .*{OUT} says"):
            vf.open(path)
    publish(store / "seg")  # here the run is killed, and another finishes it
    assert begun_store(store / "seg") == store
    for name in ("seg", "edge"):
        assert open_begun(store / name).spec == SPEC
    publish(store / "seg", store / "edge", store)
    assert not any(WITHHELD in key for key in objects(OUT))
    assert vf.open(f"{OUT}/edge").spec == SPEC
    zarr.open_group(tmp_path / "z.zarr", mode="a")
    assert objects(OUT)[ROOT] == (tmp_path / "z.zarr" / ROOT).read_bytes()


@pytest.mark.slow
def test_it_counts_as_a_volume_where_one_would_be_replaced(begun):
    assert is_stored(AT)
    with pytest.raises(InvalidInput, match="exists; choose another name or overwrite=True"):
        check_target(OUT)
    assert check_target(OUT, overwrite=True) == OUT
    vf.convert(VOXELS, OUT, overwrite=True, progress=False)
    assert roots() == [ROOT]


def test_state_and_verification_of_an_unfinished_one(begun):
    begun.mark(1, [], {})
    assert run_facts(OUT)["state"] == "stopped"
    coverage = vf.verify(OUT)
    assert str(coverage).endswith("verified; its run has not ended, run the same command again")
    publish(AT)
    assert run_facts(OUT)["state"] == "done"
    assert vf.verify(OUT).ok


class TestRequests:
    def test_one_that_is_finished_costs_none_more_to_open(self, whole, s3):
        s3.requests.clear()
        vf.open(OUT)
        asked = [(one.method, one.path.partition("out.zarr/")[2]) for one in s3.requests]
        assert asked == [("HEAD", ROOT), *(("GET", ROOT),) * 2, ("GET", "0/zarr.json")]

    def test_a_level_opened_by_itself_one(self, whole, s3):
        s3.requests.clear()
        vf.open(f"{OUT}/0")
        assert s3.count(lambda one: WITHHELD in one.path) == 1
        assert s3.count() == 3

    def test_where_there_is_nothing_one(self, s3):
        with pytest.raises(InvalidInput, match="is not a Zarr array or group"):
            vf.open("s3://bucket/nothing.zarr")
        assert s3.count(lambda one: WITHHELD in one.path) == 1

    @pytest.mark.slow
    def test_tasks_ask_for_no_root(self, s3, client):
        options = {"chunk": 4, "shard": 8, "cluster": client, "progress": False}
        vf.convert(VOXELS, OUT, **options)
        few = s3.count(lambda one: ROOT in one.path)
        s3.requests.clear()
        vf.convert(np.tile(VOXELS, (2, 2, 1)), "s3://bucket/large.zarr", **options)
        assert s3.count(lambda one: ROOT in one.path) == few


class TestCutOff:
    """A process is killed when it has written one root and not yet deleted the other."""

    def test_when_it_publishes(self, begun, monkeypatch):
        begun.mark(1, [], {})
        with monkeypatch.context() as patch:
            patch.setattr(Address, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                publish(AT)
        assert roots() == [ROOT, WITHHELD]
        assert not is_unfinished(AT)
        assert vf.open(OUT).spec == SPEC
        assert run_facts(OUT)["state"] == "done"
        with begun.lock(), withheld(begun, AT, left=False):
            pass
        assert roots() == [ROOT]

    def test_when_it_publishes_and_the_metadata_change_then(self, begun, monkeypatch):
        begun.mark(1, [], {})
        with monkeypatch.context() as patch:
            patch.setattr(Address, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                publish(AT)
        set_kind(OUT, "classes")
        with begun.lock(), withheld(begun, AT, left=False):
            pass
        assert vf.open(OUT).meta.kind == "classes"

    def test_when_it_withholds(self, whole, monkeypatch):
        whole.forget([1])
        with monkeypatch.context() as patch:
            patch.setattr(Address, "unlink", killed)
            with pytest.raises(KeyboardInterrupt), withheld(whole, AT, left=True):
                pass
        assert roots() == [ROOT, WITHHELD]
        with withheld(whole, AT, left=True):
            assert roots() == [WITHHELD]
        assert roots() == [ROOT]

    def test_when_it_is_deleted(self, whole, monkeypatch):
        publish(AT)
        withhold(AT)
        with monkeypatch.context() as patch:
            patch.setattr(address, "_delete", killed)
            with pytest.raises(KeyboardInterrupt):
                AT.delete_below()
        assert list(objects(OUT)) == ["0/zarr.json"]
        assert check_target(OUT) == OUT  # what is left of ours


class TestReplaced:
    """A driver that gave no sign of life for too long changes no metadata any more."""

    @pytest.fixture
    def replaced(self, begun, monkeypatch):
        """Its journal, under a lease that another has taken over."""
        with begun.lock():
            monkeypatch.setattr(lease, "LAPSE_S", -1.0)
            held = dict(lease._held)
            lease._held.clear()
            with Journal(begun.directory).lock():
                pass
            lease._held.update(held)
            yield begun

    @pytest.mark.parametrize("left", [True, False])
    def test_it_neither_publishes_nor_withholds(self, replaced, left):
        if left:
            publish(AT)
        before = objects(OUT)
        with (
            pytest.raises(Superseded, match=f"another driver took over {OUT},"),
            withheld(replaced, AT, left=left),
        ):
            assert not left
        assert objects(OUT) == before

    def test_nor_deletes_what_the_next_withheld(self, begun, monkeypatch):
        """It is replaced while its root is on its way."""
        write = Address.write_bytes

        def late(at, data):
            write(at, data)
            if at == AT / ROOT:
                monkeypatch.setattr(lease.Lease, "is_lost", lambda self: True)

        monkeypatch.setattr(Address, "write_bytes", late)
        with begun.lock(), pytest.raises(Superseded), withheld(begun, AT, left=False):
            pass
        assert WITHHELD in roots()

    def test_nor_makes_or_changes_a_volume(self, replaced):
        publish(AT)
        before = objects(OUT)
        finest = vf.open(OUT)
        uses = (
            lambda: create(OUT, SPEC, overwrite=True, finished=False),
            lambda: create_store(AT / "several"),
            lambda: list_levels(finest, ()),
        )
        for use in uses:
            with pytest.raises(Superseded, match="another driver took over"):
                use()
        assert objects(OUT) == before


def test_a_root_that_cannot_be_put_in_place_is_one_line(begun, s3):
    s3.fault = lambda one: Fault("status", 403) if one.method == "PUT" else None
    with pytest.raises(RunFailed, match=r"out\.zarr cannot be finished: permission denied .*again"):
        publish(AT)
    assert roots() == [WITHHELD]
    s3.fault = lambda one: None
    publish(AT)
    s3.fault = lambda one: Fault("status", 403) if one.method == "PUT" else None
    with (
        pytest.raises(RunFailed, match="cannot be withheld while it is written: permission denied"),
        withheld(begun, AT, left=True),
    ):
        pass
    assert roots() == [ROOT]


def test_withheld_metadata_that_cannot_be_read_are_not_taken_for_damaged(begun, s3):
    s3.fault = lambda one: Fault("status", 403) if WITHHELD in one.path else None
    with pytest.raises(
        RunFailed, match=rf"cannot be opened: {WITHHELD}: permission denied .*again"
    ):
        open_begun(OUT)
    s3.fault = lambda one: None
    (AT / WITHHELD).write_bytes(b"{")
    with pytest.raises(Damaged, match=rf"{WITHHELD}: .* are damaged, write it again with overw"):
        open_begun(OUT)


def test_a_public_store_that_does_not_say_what_is_not_there(begun, s3):
    """It answers 403 for objects that are not there, and lists nothing."""
    s3.fault = lambda one: (
        None if WITHHELD in one.path or "plan.json" in one.path else Fault("status", 403)
    )
    with pytest.raises(InvalidInput, match="is not complete: how many blocks are done cannot be"):
        vf.open(OUT)


class TestPlainHttp:
    @pytest.fixture
    def web(self, tmp_path):
        """A web server before the folder, which lists nothing."""
        asked = []

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                asked.append(self.command)

        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/out.zarr", asked
            server.shutdown()
            thread.join()

    def test_an_unfinished_one_is_refused(self, web, tmp_path):
        url, asked = web
        create(tmp_path / "out.zarr", SPEC, finished=False)
        for path in (url, f"{url}/0"):
            with pytest.raises(InvalidInput, match=rf"^{url} is not complete: how many .* plain H"):
                vf.open(path)
        assert {*asked} <= {"GET", "HEAD"}
        publish(tmp_path / "out.zarr")
        assert vf.open(url).shape == vf.open(f"{url}/0").shape == SPEC.shape

    @pytest.mark.parametrize(
        ("command", "why"),
        [("status", "how far its run is cannot be told"), ("verify", "it cannot be verified")],
    )
    def test_its_journal_cannot_be_read(self, web, capsys, command, why):
        assert run([command, web[0]]) == 2
        assert capsys.readouterr().err == (
            f"volflow: {web[0]} lies behind plain HTTP, where no journal can be listed, so {why};"
            " give its address on the store that holds it (s3://, gs://, az://), or a folder with"
            " it and its journal, out.zarr.volflow\n"
        )
        assert web[1] == []
