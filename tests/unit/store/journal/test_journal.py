import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from volflow.errors import InvalidInput, Locked, ResumeRefused, RunFailed, Superseded
from volflow.store.atomic import differences, plain, write_json
from volflow.store.journal.failures import Failure
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.layout import ShardEntry

RECORD = Record(
    "predict",
    {
        "input": "a" * 64,
        "weights": "1a2b3c4d" + "0" * 56,
        "settings": {"overlap": 0.25, "p": (96,)},
    },
    {"grid": (2, 3, 4), "batch": 4},
)
ENTRY = ShardEntry("0", (0, 0, 0), (64, 64, 64), 123)


@pytest.fixture
def journal(tmp_path):
    return Journal(journal_dir(tmp_path / "out.zarr"))


@pytest.fixture
def begun(journal):
    journal.begin(RECORD)
    return journal


def other(**parts):
    return Record(RECORD.operation, {**RECORD.fingerprint, **parts}, RECORD.settings)


def full_disk(monkeypatch):
    def replace(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", replace)


def test_one_output_has_one_journal_by_whatever_name(tmp_path, monkeypatch):
    directory = tmp_path.resolve() / "out.zarr.volflow"
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "link").symlink_to("out.zarr")
    monkeypatch.chdir(tmp_path)
    for name in (f"{tmp_path}/out.zarr", f"{tmp_path}/out.zarr//", "out.zarr", Path("link")):
        assert journal_dir(name) == directory


def test_a_url_has_no_folder():
    with pytest.raises(InvalidInput, match=r"local file system, .*; got s3:"):
        journal_dir("s3://bucket/out.zarr")


def test_making_a_journal_touches_no_file_and_it_pickles(journal):
    assert pickle.loads(pickle.dumps(journal)) == journal
    assert journal.recorded() is None
    assert journal.done() == {}
    assert not journal.directory.exists()


def test_the_first_record_is_kept_and_read_back_as_json_gives_it(begun):
    assert begun.recorded() == Record(
        "predict", plain(RECORD.fingerprint), {"grid": [2, 3, 4], "batch": 4}
    )


def test_the_same_record_resumes_whether_tuples_lists_or_numpy_numbers(begun):
    first = begun.begin(RECORD)
    again = begun.begin(
        Record("predict", RECORD.fingerprint, {"grid": [2, 3, np.int64(4)], "batch": 4})
    )
    assert first != again
    begun.check(again)


def test_what_has_no_json_form_is_a_programming_error(journal):
    with pytest.raises(TypeError, match="object has no JSON form"):
        journal.begin(Record("predict", {"model": object()}))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (other(weights="9f8e7d6c" + "0" * 56), "weights: 1a2b3c4d… → 9f8e7d6c…;"),
        (other(settings={"overlap": 0.5, "p": [96]}), "settings.overlap: 0.25 → 0.5;"),
        (other(settings={"overlap": 0.25, "p": [64]}), "settings.p: [96] → [64];"),
        (other(settings={"p": [96]}), "settings.overlap: 0.25 → absent;"),
        (other(version=2), "version: absent → 2;"),
        (Record("convert", RECORD.fingerprint, RECORD.settings), "operation: predict → convert;"),
        (Record("predict", RECORD.fingerprint, {"batch": 2}), "settings.batch: 4 → 2;"),
    ],
)
def test_another_run_is_refused_saying_what_changed(begun, record, text):
    with pytest.raises(ResumeRefused) as refusal:
        begun.begin(record)
    message = str(refusal.value)
    assert text in message
    assert "overwrite=True" in message
    assert "\n" not in message
    assert begun.recorded().operation == "predict"


def test_a_result_of_another_version_is_refused_as_such(journal):
    journal.begin(other(version=1))
    changed = Record(
        "predict", {**RECORD.fingerprint, "version": 2, "code": {"net": "0" * 64}}, RECORD.settings
    )
    with pytest.raises(ResumeRefused) as refusal:
        journal.begin(changed)
    assert str(refusal.value) == (
        f"{str(journal.directory).removesuffix('.volflow')} was started by a volflow whose predict"
        " gives other values (version 1, now version 2); finish it with that volflow,"
        " or begin again (overwrite=True, --overwrite), or choose another output"
    )


def test_of_many_changes_the_first_are_named(journal):
    journal.begin(other(code={f"mine.m{n}": "1" * 64 for n in range(9)}))
    with pytest.raises(ResumeRefused) as refusal:
        journal.begin(other(code={f"mine.m{n}": "2" * 64 for n in range(9)}))
    assert "code.mine.m0: 11111111… → 22222222…; code.mine.m1: " in str(refusal.value)
    assert "mine.m3: 11111111… → 22222222…; and 5 more; use those again" in str(refusal.value)


def test_one_and_one_point_zero_differ_and_nan_equals_itself():
    assert differences({"overlap": 1}, {"overlap": 1.0}) == ["overlap: 1 → 1.0"]
    assert differences({"fill": float("nan")}, {"fill": float("nan")}) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"format": 1, "oper', "it is damaged"),
        ("[]", "its format is 'list', expected 1"),
        ('{"format": 2}', "its format is 2, expected 1"),
        ('{"format": 1, "operation": "predict"}', "parts of it are missing"),
    ],
)
def test_a_damaged_or_foreign_record_is_refused_in_one_line(begun, text, why):
    (begun.directory / "plan.json").write_text(text)
    for use in (begun.recorded, lambda: begun.begin(RECORD)):
        with pytest.raises(InvalidInput) as refusal:
            use()
        assert why in str(refusal.value)
        assert "plan.json" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_blocks_are_marked_read_in_order_and_forgotten(begun):
    begun.mark(12, [ENTRY, ENTRY], {"read": 0.5})
    begun.mark(3, [], {})
    assert (begun.directory / "done" / "00000012.json").exists()
    assert list(begun.done().items()) == [(3, ()), (12, (ENTRY, ENTRY))]
    assert begun.stages() == {3: {}, 12: {"read": 0.5}}
    assert list(begun.done([12, 4, 3, 3])) == [3, 12]
    begun.forget([12, 99])
    assert list(begun.done()) == [3]


def test_numpy_numbers_may_be_marked(begun):
    begun.mark(np.int64(1), [ShardEntry("0", (np.int64(0),), (np.int64(4),), np.uint32(7))], {})
    assert begun.done() == {1: (ShardEntry("0", (0,), (4,), 7),)}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": [{}], "stages": {}}', '"a"'])
def test_a_torn_block_record_is_not_done(begun, text):
    begun.mark(0, [ENTRY], {})
    begun.mark(1, [ENTRY], {})
    (begun.directory / "done" / "00000001.json").write_text(text)
    assert begun.done() == {0: (ENTRY,)}


def test_blocks_without_a_record_do_not_count_for_the_next_run(begun):
    begun.mark(0, [ENTRY], {})
    (begun.directory / "plan.json").unlink()
    begun.begin(other(weights="other"))
    assert begun.done() == {}


def test_clear_forgets_the_run_but_not_the_sidecars(begun):
    begun.mark(0, [ENTRY], {})
    (begun.directory / "statistics-all.json").write_text("{}")
    begun.clear()
    assert begun.recorded() is None
    assert begun.done() == {}
    assert (begun.directory / "statistics-all.json").exists()
    begun.begin(other(weights="other"))


def test_clear_and_end_of_what_never_began(journal):
    journal.clear()
    journal.end()
    assert not journal.directory.exists()


def test_leftovers_of_killed_writers_are_swept(begun):
    leftover = begun.directory / "done" / ".00000001.json.abc.tmp"
    leftover.write_text("{")
    begun.begin(RECORD)
    assert not leftover.exists()


def test_the_record_of_a_block_that_comes_late_is_refused(begun):
    """A worker that was stopped comes back after another has done its block."""
    session = begun.begin(RECORD)
    begun.mark(0, [ENTRY], {"read": 1.0}, session=session)
    first = (begun.directory / "done" / "00000000.json").read_bytes()
    begun.mark(0, [ENTRY], {"read": 99.0}, session=session)
    assert (begun.directory / "done" / "00000000.json").read_bytes() == first
    (begun.directory / "done" / "00000000.json").write_text('{"block": 0, "ent')  # a power cut
    begun.mark(0, [ENTRY], {"read": 2.0}, session=session)
    assert begun.stages() == {0: {"read": 2.0}}


def test_a_block_that_was_given_up_is_remembered_until_it_is_done(begun):
    lost = Failure(7, "[0:8, 0:8, 0:8]", "its worker died")
    begun.failures.note(Failure(3, "", "OSError: it did not work"))
    begun.failures.note(lost)
    (begun.directory / "failed" / "00000009.json").write_text('{"block": 9, "bo')
    begun.begin(RECORD)  # it is tried again, and may be killed before
    assert begun.failures.read() == [Failure(3, "", "OSError: it did not work"), lost]
    begun.mark(3, [ENTRY], {})
    assert begun.failures.read() == [lost]
    begun.begin(RECORD)
    begun.forget([3])
    assert begun.failures.read() == [lost]
    begun.clear()
    assert begun.failures.read() == []


def test_a_task_outliving_its_driver_stops(begun):
    first = begun.begin(RECORD)
    begun.check(first)
    second = begun.begin(RECORD)
    with pytest.raises(Superseded, match="was replaced by another"):
        begun.check(first)
    with pytest.raises(Superseded):
        begun.mark(5, [ENTRY], {}, session=first)
    begun.mark(6, [ENTRY], {}, session=second)
    assert list(begun.done()) == [6]
    begun.end()
    with pytest.raises(Superseded, match="has ended"):
        begun.check(second)


def test_a_full_disk_leaves_no_half_record_and_loses_nothing_done(begun, monkeypatch):
    begun.mark(0, [ENTRY], {})
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(RunFailed, match="no space left on device; what is done is kept"):
            begun.mark(1, [ENTRY], {})
    assert sorted(path.name for path in (begun.directory / "done").iterdir()) == ["00000000.json"]
    assert begun.done() == {0: (ENTRY,)}


def test_a_full_disk_at_the_begin(journal, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(RunFailed, match="no space left"), journal.lock():
        journal.begin(RECORD)
    assert sorted(path.name for path in journal.directory.iterdir()) == ["done", "lock"]


def test_a_journal_deleted_under_way(begun):
    session = begun.begin(RECORD)
    for path in sorted(begun.directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(RunFailed, match="no such file or directory"):
        begun.mark(0, [ENTRY], {})
    with pytest.raises(Superseded):
        begun.check(session)


def test_a_missing_folder_is_refused(tmp_path):
    journal = Journal(journal_dir(tmp_path / "absent" / "out.zarr"))
    with pytest.raises(InvalidInput, match=r"the folder .*absent does not exist"), journal.lock():
        pass
    with pytest.raises(InvalidInput, match="does not exist"):
        journal.begin(RECORD)


def test_a_folder_that_cannot_be_written_is_refused(journal, monkeypatch):
    def mkdir(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(InvalidInput, match="permission denied"), journal.lock():
        pass


def test_a_file_in_the_place_of_the_journal(journal):
    journal.directory.write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"), journal.lock():
        pass


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, 1)
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, 2)
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_lock_in_the_same_process_is_refused(journal):
    with journal.lock():
        with pytest.raises(Locked, match=f"process {os.getpid()} on "), journal.lock():
            pass
        assert json.loads((journal.directory / "lock").read_text())["pid"] == os.getpid()
    assert (journal.directory / "lock").read_text() == ""
    with journal.lock():
        pass


def test_the_lock_is_released_when_the_work_raises(journal):
    with pytest.raises(KeyError), journal.lock():
        raise KeyError
    with journal.lock():
        pass


HOLDER = """
import sys
from pathlib import Path
from volflow.store.journal.journal import Journal

with Journal(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.chaos
def test_a_driver_in_another_process_is_refused_until_it_dies(journal):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(journal.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked) as refusal, journal.lock():
            pass
        message = str(refusal.value)
        assert f"out.zarr is being written by process {holder.pid} on " in message
        assert refusal.value.exit_code == 4
        holder.kill()
    with journal.lock():
        assert json.loads((journal.directory / "lock").read_text())["pid"] == os.getpid()
