"""What a journal promises wherever it lies: on a disk, under a lock, or on a store, by a lease."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter

import pytest

from tests.relay import Fault, objects
from volflow.errors import Damaged, InvalidInput, Locked, ResumeRefused, RunFailed, Superseded
from volflow.store.journal import lease
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.failures import Failure
from volflow.store.journal.history import find_holder, finished_blocks
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.outputs import begin_anew, discard
from volflow.store.layout import ShardEntry
from volflow.store.remote.address import Address

RECORD = Record("predict", {"input": "a" * 64}, {"grid": (2, 3, 4)})
OTHER = Record("predict", {"input": "b" * 64}, {"grid": (2, 3, 4)})
ENTRY = ShardEntry("0", (0, 0, 0), (64, 64, 64), 123)
OTHER_ENTRY = ShardEntry("0", (0, 0, 0), (64, 64, 64), 321)


def run_elsewhere(journal):
    """Do what a driver in another process does, which knows nothing of the leases of this one."""
    held = dict(lease._held)
    lease._held.clear()
    with Journal(journal.directory).lock():
        session = journal.begin(RECORD)
        journal.mark(1, [ENTRY], {}, session=session)
        journal.end(session)
    lease._held.update(held)


class JournalContract:
    """Inherited by each place that a journal may lie in; ``journal`` is a new one there."""

    @pytest.fixture
    def begun(self, journal):
        with journal.lock():
            journal.begin(RECORD)
            yield journal

    def test_has_nothing_at_first(self, journal):
        assert journal.recorded() is None
        assert journal.done() == {}
        assert journal.failures.read() == []
        assert finished_blocks(journal) == (0, [])
        assert find_holder(journal) is None

    def test_travels_to_workers(self, journal):
        assert pickle.loads(pickle.dumps(journal)) == journal

    def test_keeps_the_first_record(self, begun):
        assert begun.recorded() == Record("predict", {"input": "a" * 64}, {"grid": [2, 3, 4]})
        assert begun.begin(RECORD) != begun.begin(RECORD)
        with pytest.raises(ResumeRefused, match="input: aaaaaaaa… → bbbbbbbb…"):
            begun.begin(OTHER)

    def test_marks_reads_and_forgets_blocks(self, begun):
        session = begun.begin(RECORD)
        begun.mark(12, [ENTRY, ENTRY], {"read": 0.5}, session=session)
        begun.mark(3, [], {}, session=session)
        assert list(begun.done().items()) == [(3, ()), (12, (ENTRY, ENTRY))]
        assert list(begun.done([12, 4, 3, 3])) == [3, 12]
        assert begun.stages() == {3: {}, 12: {"read": 0.5}}
        begun.forget([12, 99])
        assert list(begun.done()) == [3]

    def test_keeps_the_first_record_of_a_block(self, begun):
        session = begun.begin(RECORD)
        begun.mark(0, [ENTRY], {"read": 1.0}, session=session)
        begun.mark(0, [ENTRY], {"read": 99.0}, session=session)
        assert begun.stages() == {0: {"read": 1.0}}

    def test_takes_a_torn_record_for_none(self, begun):
        session = begun.begin(RECORD)
        begun.mark(0, [ENTRY], {}, session=session)
        begun.mark(1, [ENTRY], {}, session=session)
        (begun.done_folder() / "00000001.json").write_bytes(b'{"block": 1, "ent')
        assert list(begun.done()) == [0]
        begun.mark(1, [ENTRY], {"read": 2.0}, session=session)
        assert begun.stages() == {0: {}, 1: {"read": 2.0}}

    def test_stops_tasks_of_an_earlier_driver(self, begun):
        first, second = begun.begin(RECORD), begun.begin(RECORD)
        with pytest.raises(Superseded, match="was replaced by another"):
            begun.check(first)
        with pytest.raises(Superseded):
            begun.mark(5, [ENTRY], {}, session=first)
        begun.end(first)  # the session of another stays
        begun.mark(6, [ENTRY], {}, session=second)
        assert list(begun.done()) == [6]
        begun.end(second)
        with pytest.raises(Superseded, match="has ended"):
            begun.check(second)

    def test_remembers_what_was_given_up_until_it_is_done(self, begun):
        lost = Failure(7, "[0:8, 0:8, 0:8]", "its worker died")
        begun.failures.note(Failure(3, "", "OSError: it did not work"))
        begun.failures.note(lost)
        begun.mark(3, [ENTRY], {})
        assert begun.failures.read() == [lost]
        begun.begin(RECORD)
        begun.clear()
        assert begun.failures.read() == []

    def test_refuses_a_damaged_record(self, begun):
        (begun.directory / "plan.json").write_bytes(b'{"format": 1, "oper')
        with pytest.raises(Damaged, match=r"plan.json cannot be used: it is damaged"):
            begun.recorded()

    def test_begins_anew(self, begun):
        begun.mark(0, [ENTRY], {})
        (begun.directory / "statistics-all.json").write_bytes(b"{}")
        begin_anew(begun.output, begun, OTHER)
        assert begun.recorded().fingerprint == OTHER.fingerprint
        assert begun.done() == {}
        assert (begun.directory / "statistics-all.json").exists()

    def test_tells_when_and_by_whom_blocks_were_done(self, begun):
        begun.mark(0, [ENTRY], {"read": 0.5})
        count, (block,) = finished_blocks(begun)
        assert (count, block.block, block.voxels, block.took_s) == (1, 0, 64**3, 0.5)
        assert abs(block.at_s - time.time()) < 3600

    def test_lets_one_driver_write(self, journal):
        with journal.lock():
            holder = find_holder(journal)
            assert holder is not None
            assert holder.alive is True
            message, again = (
                f"being written by process {holder.pid} on ",
                Journal(journal.directory),
            )
            with pytest.raises(Locked, match=message), again.lock():
                pass
        assert find_holder(journal) is None
        with pytest.raises(KeyError), journal.lock():
            raise KeyError
        with journal.lock():
            pass


class TestOnADisk(JournalContract):
    @pytest.fixture
    def journal(self, tmp_path):
        return journal_of(tmp_path / "out.zarr")


class TestOnAStore(JournalContract):
    @pytest.fixture
    def journal(self, s3):
        return journal_of("s3://bucket/scans/out.zarr")

    @pytest.mark.slow
    def test_whoever_gives_no_sign_of_life_is_replaced_and_stops(self, journal, monkeypatch):
        with journal.lock():
            first = journal.begin(RECORD)
            monkeypatch.setattr(lease, "LAPSE_S", -1.0)
            assert find_holder(journal).alive is False
            for _ in range(2):
                run_elsewhere(journal)
            uses = (lambda: journal.begin(RECORD), journal.clear, lambda: journal.forget([0]))
            for use in (*uses, lambda: begin_anew(journal.output, journal, OTHER)):
                with pytest.raises(Superseded, match="another driver took over s3://bucket/scans"):
                    use()
            with pytest.raises(Superseded, match="has ended"):
                journal.mark(0, [ENTRY], {}, session=first)
        assert list(journal.done()) == [1]
        assert find_holder(journal) is None
        kept = [key for key in objects(str(journal.directory)) if key.startswith("lease/")]
        assert max(kept) == "lease/00000003.json"

    def test_gives_signs_of_life(self, journal, s3, monkeypatch):
        monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
        with journal.lock():
            end_s = time.monotonic() + 60
            while s3.count(lambda one: one.method == "PUT" and "/lease/0" in one.path) < 4:
                assert time.monotonic() < end_s
                time.sleep(0.01)
        time.sleep(0.05)
        assert find_holder(journal) is None

    def test_numbers_its_leases_and_keeps_the_last(self, journal):
        for _ in range(3):
            with journal.lock():
                pass
        assert list(objects(str(journal.directory))) == ["lease/00000003.json"]

    def test_refuses_a_store_that_writes_over_what_is_there(self, journal, monkeypatch):
        def put(self, data):
            self.write_bytes(data)
            return True

        monkeypatch.setattr(Address, "create", put)
        with (
            pytest.raises(InvalidInput, match=r"though it was asked not to \(If-None-Match: \*\)"),
            journal.lock(),
        ):
            pass

    @pytest.mark.slow
    def test_an_answer_that_is_lost_loses_no_lease_and_no_block(self, journal, s3):
        seen = Counter()

        def lost(request):
            seen[request.path] += request.method == "PUT"
            return Fault("lost") if request.method == "PUT" and seen[request.path] == 1 else None

        s3.fault = lost
        with journal.lock():
            session = journal.begin(RECORD)
            journal.mark(0, [ENTRY], {"read": 1.0}, session=session)
            assert list(journal.done()) == [0]
        assert find_holder(journal) is None

    def test_a_bucket_that_is_not_there(self, s3):
        journal = journal_of("s3://buckte/out.zarr")
        with pytest.raises(InvalidInput, match="the bucket does not exist; check"), journal.lock():
            pass

    def test_an_outage_is_not_taken_for_damage(self, journal, s3):
        with journal.lock():
            journal.begin(RECORD)
            journal.mark(0, [ENTRY], {})
        for part in ("list-type", "/done-"):
            s3.fault = lambda one, part=part: Fault("status", 403) if part in one.path else None
            with pytest.raises(RunFailed, match=r"permission denied .*when the store answers"):
                journal.done()
        s3.fault = lambda one: None
        assert list(journal.done()) == [0]

    def test_signs_of_life_go_on_after_a_failure_of_any_kind(self, journal, monkeypatch):
        monkeypatch.setattr(lease, "HEARTBEAT_S", 0.001)
        beaten, failed = threading.Event(), threading.Event()

        def is_lost(self):
            if failed.is_set():
                beaten.set()
                return False
            failed.set()
            raise RuntimeError

        with journal.lock():
            monkeypatch.setattr(lease.Lease, "is_lost", is_lost)
            assert beaten.wait(60)

    def test_tasks_stop_before_their_output_is_deleted(self, journal, monkeypatch):
        def killed(self):
            raise KeyboardInterrupt

        with journal.lock():
            session = journal.begin(RECORD)
            monkeypatch.setattr(Address, "delete_below", killed)
            with pytest.raises(KeyboardInterrupt):
                discard(journal.output, journal)
            with pytest.raises(Superseded):
                journal.check(session)

    def test_a_record_that_arrives_when_its_run_was_replaced_counts_for_nothing(
        self, journal, monkeypatch
    ):
        """It is on its way when the next run has deleted everything."""
        with journal.lock():
            first, create = journal.begin(RECORD), Address.create

            def late(at, data):
                monkeypatch.setattr(Address, "create", create)
                begin_anew(journal.output, journal, RECORD)
                return at.create(data)

            monkeypatch.setattr(Address, "create", late)
            journal.mark(0, [ENTRY], {}, session=first)
            assert journal.done() == {}
            assert finished_blocks(journal) == (0, [])
            assert count_blocks(journal.output) == (0, 24)
            journal.failures.note(Failure(0, "", "it did not work"))
            assert len(journal.failures.read()) == 1
            second = journal.begin(RECORD)
            journal.mark(0, [OTHER_ENTRY], {}, session=second)
            assert journal.done() == {0: (OTHER_ENTRY,)}
            discard(journal.output, journal)
            assert not [*journal.directory.glob("done*")]

    def test_a_block_costs_five_requests(self, journal, s3):
        with journal.lock():
            session = journal.begin(RECORD)
            s3.requests.clear()
            journal.done([0], session=session)
            journal.check(session)
            journal.mark(0, [ENTRY], {}, session=session)
            assert Counter(one.method for one in s3.requests) == {"GET": 3, "PUT": 1}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://example.org/out.zarr", "can be read but not written; write to s3://"),
        ("memory://out.zarr", "names no object store; write to s3://"),
        ("s3://bucket", r"names a bucket, .* such as s3://bucket/out.zarr"),
        ("s3://bucket/", r"names a bucket, .* such as s3://bucket/out.zarr"),
        ("s3://bucket/a/../out.zarr", r"out\.zarr names no object: .* give the plain name"),
        ("s3://bucket/a/%2E%2e/out.zarr", "names no object"),
        ("s3://bucket/./out.zarr", "names no object"),
        ("s3://bucket//out.zarr", "names no object"),
        ("s3://bucket/out.zarr?signature=3", r"^s3://bucket/out\.zarr names no object"),
        ("s3://bucket/out.zarr#1", "names no object"),
        ("s3://me:secret@bucket/out.zarr", r"^s3://bucket/out\.zarr was given with a password"),
    ],
)
def test_urls_at_which_nothing_can_be_written(url, why):
    with pytest.raises(InvalidInput, match=why):
        journal_of(url)
