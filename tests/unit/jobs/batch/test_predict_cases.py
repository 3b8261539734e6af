"""A batch does what is new or changed, names what it cannot do, and goes on."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

import volflow as vf
from tests import nets
from tests.nets import Counted, random_net
from volflow.cli import run
from volflow.errors import InvalidInput, Locked, RunFailed, StoreFull
from volflow.jobs.batch import bundle_identity as bundle_identity_module
from volflow.jobs.batch import night as night_module
from volflow.jobs.batch.batch_state import batch_state
from volflow.jobs.batch.case_record import CaseRecord, batch_dir
from volflow.jobs.batch.predict_cases import predict_cases
from volflow.jobs.batch.result_table import CaseRow, CaseTable
from volflow.model import bundle as bundle_module
from volflow.store.journal.journal import Journal, journal_dir

NET = Counted(random_net())
SHAPE = (10, 11, 12)


def voxels(seed, shape=SHAPE):
    return np.random.default_rng(seed).random(shape, "float32") + 0.1


def put(folder: Path, name: str, seed: int = 0, shape=SHAPE) -> Path:
    path = folder / f"{name}.nii.gz"
    image = nibabel.Nifti1Image(voxels(seed, shape).T, np.eye(4))
    nibabel.save(image, path)
    return path


@pytest.fixture
def scans(tmp_path):
    """Three cases, and a place for results."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        put(tmp_path / "in", name, seed)
    return tmp_path / "in"


@pytest.fixture
def batch(scans, client):
    """`predict_cases` over these cases, silent."""
    pattern = str(scans / "{case}.nii.gz")
    out = str(scans.parent / "out" / "{case}_seg.nii.gz")

    def run(cases=pattern, model=NET, out=out, **options):
        options = {"patch": 8, "batch_size": 1, "cluster": client, "progress": False} | options
        return predict_cases(cases, model, out, **options)

    return run


def statuses(table):
    return {row.case: row.status for row in table}


def test_a_case_costs_the_scheduler_three_tasks(batch, client, monkeypatch):
    """Conversion, statistics, prediction; what two trials told, and a connection, is had once."""
    keys, submit = [], client.submit

    def submitted(*given, **options):
        keys.append(options["key"].partition("-")[0])
        return submit(*given, **options)

    monkeypatch.setattr(client, "submit", submitted)
    table = batch(model=random_net(seed=7), normalize="zscore", memory="1GiB")
    assert statuses(table) == {"a": "done", "b": "done", "c": "done"}
    assert keys.count("volflow") <= 1  # an offer to clusters that grow
    first, then = (
        ["trial forward", "convert", "statistics", "predict"],
        keys[keys.count("volflow") :],
    )
    assert then == [*first, *first, *first[1:]]


def break_them(folder):
    """The three ways in which a night's files are broken."""
    whole = put(folder, "short", 7).read_bytes()
    (folder / "short.nii.gz").write_bytes(whole[: len(whole) // 2])
    put(folder, "two", 8, (2, *SHAPE))
    (folder / "text.nii.gz").write_text("to be scanned again")


class TestDone:
    @pytest.mark.slow
    def test_each_case_is_what_predict_makes_of_it(self, batch, scans):
        table = batch()
        assert statuses(table) == {"a": "done", "b": "done", "c": "done"}
        assert table.ok
        for row in table:
            alone = scans.parent / f"alone_{row.case}.nii.gz"
            options = {"patch": 8, "batch_size": 1, "progress": False}
            vf.predict(scans / f"{row.case}.nii.gz", NET, alone, **options)
            assert Path(row.out).read_bytes() == alone.read_bytes()
            assert vf.verify(row.out).ok
            assert 0 < row.model_s < row.seconds

    @pytest.mark.slow
    @pytest.mark.parametrize("at_once", [1, 3])
    def test_in_any_number_at_once(self, batch, scans, at_once):
        table = batch(at_once=at_once, out=str(scans.parent / "out" / f"{{case}}_{at_once}.npy"))
        assert table.ok
        for seed, row in enumerate(table):
            expected = batch(
                {row.case: voxels(seed)}, out=str(scans.parent / "out" / "one_{case}.npy")
            )
            assert np.array_equal(np.load(row.out), np.load(expected[0].out))

    def test_several_volumes_by_name(self, batch, scans):
        for name in ("a", "b"):
            put(scans, f"{name}_t1", 1)
            put(scans, f"{name}_flair", 2)
        channels = {
            "flair": str(scans / "{case}_flair.nii.gz"),
            "t1": str(scans / "{case}_t1.nii.gz"),
        }
        table = batch(channels, random_net(channels_in=2))
        assert statuses(table) == {"a": "done", "b": "done"}
        assert set(table[0].volumes) == {"t1", "flair"}

    @pytest.mark.slow
    def test_arrays_by_name(self, batch, scans):
        table = batch({"x": voxels(0), "y": {"image": voxels(1), "label": voxels(2) > 0.5}})
        assert statuses(table) == {"x": "done", "y": "done"}
        assert statuses(batch({"x": voxels(0), "y": voxels(3)})) == {"x": "kept", "y": "done"}

    def test_a_folder_for_each_case_is_made(self, batch, scans):
        table = batch(out=str(scans.parent / "out" / "{case}" / "seg.npy"))
        assert table.ok
        assert (scans.parent / "out" / "a" / "seg.npy").exists()
        assert (scans.parent / "out" / "{case}_seg.npy.volflow" / "summary.html").exists()

    @pytest.mark.slow
    def test_a_mask_for_each_case(self, batch, scans):
        for name in ("a", "b", "c"):
            np.save(scans / f"{name}_mask.npy", np.zeros(SHAPE, "uint8"))
        table = batch(mask=str(scans / "{case}_mask.npy"), fill=5)
        assert table.ok
        assert np.unique(nibabel.load(table[0].out).get_fdata()).tolist() == [5]
        np.save(scans / "b_mask.npy", np.ones(SHAPE, "uint8"))
        again = batch(mask=str(scans / "{case}_mask.npy"), fill=5)
        assert statuses(again) == {"a": "kept", "b": "done", "c": "kept"}

    @pytest.mark.slow
    def test_large_cases_come_alone_with_all_the_memory(self, batch, scans, monkeypatch):
        put(scans, "large", 5, (24, 24, 24))
        monkeypatch.setattr(night_module, "SMALL_VOXELS", 20**3)
        budgets, predict = {}, night_module.Night.predict

        def watched(self, left, client, memory_bytes, *, last):
            budgets[left.case] = (memory_bytes, last)
            return predict(self, left, client, memory_bytes, last=last)

        monkeypatch.setattr(night_module.Night, "predict", watched)
        assert batch(at_once=2, memory="1GiB").ok
        assert budgets == {case: (2**29, False) for case in "abc"} | {"large": (2**30, True)}

    def test_what_does_not_fit_a_share_of_the_memory_comes_alone(self, batch):
        (refused,) = batch({"a": voxels(0)}, memory="1MiB")
        least = re.search(r'use memory="(\w+)" or more', refused.reason)[1]
        assert batch({"a": voxels(0), "b": voxels(1)}, memory=least, at_once=2).ok


class TestAgain:
    @pytest.mark.slow
    def test_a_done_case_is_left_alone(self, batch, monkeypatch):
        batch()
        before = len(nets.calls)
        monkeypatch.setattr(night_module.Night, "run", None)  # nothing is even begun
        table = batch()
        assert statuses(table) == {"a": "kept", "b": "kept", "c": "kept"}
        assert len(nets.calls) == before
        assert table[0].seconds > 0  # of then

    @pytest.mark.slow
    @pytest.mark.parametrize("form", ["slices", "detached", "part"])
    def test_so_are_those_that_are_more_or_less_than_a_file(self, batch, tmp_path, form):
        scan = (100 * voxels(0)).astype("uint16")
        if form == "slices":
            tifffile = pytest.importorskip("tifffile")
            cases, changes = tmp_path / "in" / "x", tmp_path / "in" / "x" / "4.tif"
            cases.mkdir()
            for z, plane in enumerate(scan):
                tifffile.imwrite(cases / f"{z}.tif", plane)
        elif form == "detached":
            cases, changes = tmp_path / "in" / "x.mhd", tmp_path / "in" / "x.raw"
            size = " ".join(map(str, SHAPE[::-1]))
            cases.write_text(
                f"NDims = 3\nDimSize = {size}\nElementType = MET_USHORT\nElementDataFile = x.raw\n"
            )
            changes.write_bytes(scan.tobytes())
        else:
            h5py = pytest.importorskip("h5py")
            changes = tmp_path / "in" / "x.h5"
            cases = f"{changes}::raw"
            with h5py.File(changes, "w") as file:
                file.update({"raw": scan, "other": scan[0]})
        assert statuses(batch({"x": cases}, since="1h")) == {"x": "done"}
        assert statuses(batch({"x": cases}, since="1h")) == {"x": "kept"}
        later = changes.stat().st_mtime_ns + 10**9
        os.utime(changes, ns=(later, later))
        (planned,) = batch({"x": cases}, dry_run=True)
        assert (planned.status, planned.reason) == ("changed", "image changed")

    @pytest.mark.slow
    def test_new_and_changed_cases_are_done(self, batch, scans):
        before = batch()
        put(scans, "b", 10)
        put(scans, "d", 11)
        table = batch()
        assert statuses(table) == {"a": "kept", "b": "done", "c": "kept", "d": "done"}
        assert before[1].out == table[1].out
        expected = batch({"b": voxels(10)}, out=str(scans.parent / "out" / "{case}_new.nii.gz"))
        assert np.array_equal(
            nibabel.load(table[1].out).get_fdata(), nibabel.load(expected[0].out).get_fdata()
        )

    @pytest.mark.slow
    def test_a_result_that_is_gone_is_written_again(self, batch, scans):
        table = batch()
        Path(table[0].out).unlink()
        before = len(nets.calls)
        assert statuses(batch()) == {"a": "done", "b": "kept", "c": "kept"}
        assert len(nets.calls) == before  # from the stored volume

    @pytest.mark.slow
    def test_a_result_that_somebody_changed_is_named(self, batch):
        table = batch()
        Path(table[0].out).write_bytes(b"mine")
        again = batch()
        assert statuses(again) == {"a": "failed", "b": "kept", "c": "kept"}
        assert "is not what was exported" in again[0].reason
        assert Path(table[0].out).read_bytes() == b"mine"
        os.remove(table[0].out)  # noqa: PTH107
        assert batch().ok  # no failure of the case itself: it is tried again

    @pytest.mark.slow
    @pytest.mark.parametrize("known", [True, False])
    def test_what_stands_in_the_way_is_replaced_where_that_is_asked_for(self, batch, known):
        table = batch() if known else batch(dry_run=True)
        Path(table[0].out).write_bytes(b"mine")
        table = batch()
        assert statuses(table) == {"a": "failed"} | dict.fromkeys("bc", "kept" if known else "done")
        assert "overwrite=True (--overwrite)" in table[0].reason
        assert statuses(batch(overwrite=True)) == {"a": "done", "b": "kept", "c": "kept"}
        assert Path(table[0].out).read_bytes() != b"mine"

    @pytest.mark.slow
    def test_results_of_another_model_are_named_and_left(self, batch):
        before = batch()
        files = [Path(row.out).read_bytes() for row in before]
        other = random_net(seed=1)
        table = batch(model=other)
        assert statuses(table) == dict.fromkeys("abc", "refused")
        assert "was started with different inputs or settings: weights" in table[0].reason
        assert [Path(row.out).read_bytes() for row in table] == files
        assert statuses(batch(model=other, dry_run=True)) == dict.fromkeys("abc", "refused")
        assert statuses(batch()) == dict.fromkeys("abc", "done")  # back to the first: all is there
        assert statuses(batch(model=other, overwrite=True)) == dict.fromkeys("abc", "done")
        assert statuses(batch(model=other, overwrite=True)) == dict.fromkeys("abc", "kept")
        assert [Path(row.out).read_bytes() for row in before] != files

    @pytest.mark.slow
    def test_results_of_other_settings_are_named(self, batch):
        batch()
        table = batch(overlap=0.5, dry_run=True)
        assert table[0].reason == "other settings: overlap: absent → 0.5"
        assert "overlap: 0.25 → 0.5" in batch(overlap=0.5)[0].reason

    @pytest.mark.slow
    def test_a_setting_that_is_the_default_is_no_other(self, batch):
        batch()
        before = len(nets.calls)
        assert statuses(batch(overlap=0.25)) == dict.fromkeys("abc", "done")
        assert len(nets.calls) == before
        assert statuses(batch(overlap=0.25)) == dict.fromkeys("abc", "kept")

    @pytest.mark.slow
    def test_without_its_record_only_the_record_is_made_again(self, batch, scans):
        table = batch()
        record = CaseRecord(Path(table.summary).parent)
        record.path.unlink()
        before = len(nets.calls)
        assert statuses(batch()) == dict.fromkeys("abc", "done")
        assert len(nets.calls) == before

    @pytest.mark.slow
    def test_a_torn_record_costs_one_case(self, batch):
        table = batch(at_once=1)
        record = CaseRecord(Path(table.summary).parent)
        record.path.write_bytes(record.path.read_bytes()[:-30])
        assert statuses(batch()) == {"a": "kept", "b": "kept", "c": "done"}
        assert statuses(batch()) == dict.fromkeys("abc", "kept")


class TestFailures:
    @pytest.mark.slow
    def test_one_stops_no_other(self, batch, scans):
        break_them(scans)
        table = batch()
        assert statuses(table) == {
            "a": "done", "b": "done", "c": "done",
            "short": "failed", "text": "failed", "two": "failed",
        }  # fmt: skip
        reasons = {row.case: row.reason for row in table.bad}
        assert "is cut short; copy it again" in reasons["short"]
        assert "is damaged (Not a gzipped file" in reasons["text"]
        assert "channels" in reasons["two"]
        assert not table.ok

    @pytest.mark.slow
    def test_of_what_a_file_holds_are_not_repeated(self, batch, scans):
        break_them(scans)
        first = batch()
        second = batch()
        assert not second.ok
        assert [row.at for row in second.bad] == [row.at for row in first.bad]
        again = batch(retry_failed=True)
        assert [row.at for row in again.bad] >= [row.at for row in first.bad]
        assert [row.seconds for row in again.bad] != [row.seconds for row in first.bad]
        put(scans, "text", 9)
        assert statuses(batch())["text"] == "done"

    @pytest.mark.slow
    def test_of_another_kind_are_tried_again(self, batch):
        class Moody(nets.Tiring):
            pass

        net = Moody(random_net())
        Moody.most[0] = 0
        try:
            table = batch({"a": voxels(0)}, net)
            assert "too tired" in table[0].reason
            Moody.most[0] = float("inf")
            assert batch({"a": voxels(0)}, net).ok
        finally:
            Moody.most[0] = float("inf")

    @pytest.mark.slow
    def test_a_full_disk_stops_the_batch(self, batch, monkeypatch):
        def full(*_, **__):
            raise StoreFull("no space left")

        monkeypatch.setattr("volflow.infer.predict.predict", full)
        with pytest.raises(StoreFull):
            batch(at_once=1)
        monkeypatch.undo()
        assert statuses(batch()) == dict.fromkeys("abc", "done")

    def test_a_missing_model_is_refused(self, batch):
        with pytest.raises(InvalidInput, match="model 'nowhere' does not exist"):
            batch(model="nowhere")

    @pytest.mark.slow
    def test_the_command_gets_the_summary_and_no_names(self, batch, scans, tmp_path):
        """A name of a file is never part of what a shell reads."""
        put(scans, "$(touch evil); x", 3)
        (scans / "$(touch evil); x.nii.gz").write_text("no scan")
        told = tmp_path / "told"
        table = batch(on_failure=f'cp "$VOLFLOW_SUMMARY" {told}', cluster=None)
        assert told.read_text() == Path(table.summary).read_text()
        assert not list(tmp_path.rglob("evil"))
        told.unlink()
        batch(on_failure=f"touch {told}")
        assert not told.exists()  # nothing failed just now

    def test_the_command_runs_where_the_batch_stops(self, batch, monkeypatch, tmp_path):
        def full(*_, **__):
            raise StoreFull("no space left")

        monkeypatch.setattr("volflow.infer.predict.predict", full)
        with pytest.raises(StoreFull):
            batch(on_failure=f"touch {tmp_path}/told", at_once=1)
        assert (tmp_path / "told").exists()


class TestSelected:
    @pytest.mark.slow
    def test_since_leaves_old_cases_out(self, batch, scans):
        os.utime(scans / "a.nii.gz", (1e9, 1e9))
        assert statuses(batch(since="7d")) == {"b": "done", "c": "done"}
        assert statuses(batch(since="2001-01-01")) == {"a": "done", "b": "kept", "c": "kept"}

    @pytest.mark.parametrize("text", ["yesterday", "", "24 hours ago-", "2026-13-01", "9e99d"])
    def test_a_moment_that_is_none_is_refused(self, batch, text):
        if text:
            with pytest.raises(InvalidInput, match="since must be a date, a time or a while ago"):
                batch(since=text)

    def test_a_dry_run_does_nothing(self, batch, scans):
        table = batch(dry_run=True)
        assert statuses(table) == dict.fromkeys("abc", "new")
        assert not list((scans.parent / "out").iterdir())
        batch({"a": scans / "a.nii.gz"})
        put(scans, "a", 12)
        assert statuses(batch(dry_run=True)) == {"a": "changed", "b": "new", "c": "new"}

    @pytest.mark.slow
    def test_results_are_no_cases(self, batch, scans):
        """Beside their scans they match the pattern, too, from the second night on."""
        for _ in range(2):
            table = batch(out=str(scans / "{case}_seg.nii.gz"))
            assert list(statuses(table)) == ["a", "b", "c"]


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"out": "out.zarr"}, r"out.zarr needs \{case\} in it"),
            ({"out": "nowhere/{case}.zarr"}, r"nowhere does not exist; make it first"),
            ({"out": "s3://bucket/{case}.zarr"}, "lie on a local file system"),
            ({"at_once": 0}, "at_once must be 1 or more"),
            ({"cases": {}}, "there are no cases"),
            ({"cases": {"a/b": "x"}}, "'a/b' cannot be"),
            ({"cases": {"a": {"label": "x"}}}, "needs a volume that is not its label"),
        ],
    )
    def test_before_any_work(self, batch, given, message):
        with pytest.raises(InvalidInput, match=message):
            batch(**given)

    @pytest.mark.slow
    def test_a_second_run_meanwhile_says_who_is_at_work(self, batch, scans):
        out = str(scans.parent / "out" / "{case}_seg.nii.gz")
        with Journal(batch_dir(out)).lock(), pytest.raises(Locked) as locked:
            batch()
        assert locked.value.exit_code == 4
        assert f"is being written by process {os.getpid()} on" in str(locked.value)
        assert batch().ok

    @pytest.mark.slow
    def test_a_second_run_of_another_pattern_may(self, batch, scans):
        other = str(scans.parent / "out" / "{case}_other.nii.gz")
        with Journal(batch_dir(other)).lock():
            assert batch().ok


class TestTold:
    @pytest.mark.slow
    def test_in_a_log_with_times(self, batch, scans):
        break_them(scans)
        folder = Path(batch().summary).parent
        (log,) = folder.glob("log-*.txt")
        lines = log.read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  ", x) for x in lines)
        assert sum(" done in " in line for line in lines) == 3
        assert sum(" failed in " in line for line in lines) == 3
        assert lines[-1].endswith("6 cases: 3 failed, 3 done")

    @pytest.mark.slow
    def test_on_a_page_that_loads_nothing(self, batch, scans):
        put(scans, "<b>", 3)
        (scans / "<b>.nii.gz").write_text("no scan")
        page = Path(batch().summary).read_text()
        assert "<td>&lt;b&gt;</td>" in page
        assert page.index("&lt;b&gt;") < page.index("<td>a</td>")  # what failed comes first
        assert not re.search(r"(src|href)=|@import|url\(", page)

    @pytest.mark.slow
    def test_for_machines(self, batch, tmp_path):
        table = batch()
        saved = json.loads((Path(table.summary).parent / "summary.json").read_text())
        assert saved == json.loads(json.dumps(table.to_dict()))
        table.to_csv(tmp_path / "table.csv")
        rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
        assert [row["status"] for row in rows] == ["done"] * 3
        assert json.loads(rows[0]["volumes"]) == dict(table[0].volumes)

    def test_to_people(self):
        rows = [CaseRow(f"p{n}", "done", seconds=1.25) for n in range(99)]
        table = CaseTable((*rows, CaseRow("bad", "failed", "cut short")))
        text = str(table).splitlines()
        assert text[1].split() == ["bad", "failed", "cut", "short"]
        assert text[-2:] == ["… and 40 more", "100 cases: 1 failed, 99 done"]
        assert table.outcome() == "bad  failed: cut short\n100 cases: 1 failed, 99 done"
        assert (len(table), table[0].case, table[-2:][0].case) == (100, "p0", "p98")

    @pytest.mark.slow
    def test_to_the_terminal(self, batch, capsys):
        batch(progress=None)
        shown = capsys.readouterr().err
        assert "predict: 3 of 3 cases to do; record in" in shown
        assert "predict: a done in" in shown


class TestState:
    """`volflow status` of a batch."""

    @pytest.mark.slow
    def test_of_one_that_is_done(self, batch, scans, capsys):
        break_them(scans)
        batch()
        out = str(scans.parent / "out" / "{case}_seg.nii.gz")
        state = batch_state(out)
        assert state.counts == {"done": 3, "failed": 3}
        assert state.exit_code == 1
        assert run(["status", out]) == 1
        shown = capsys.readouterr().out
        assert f"{out}: 6 cases: 3 done, 3 failed\n" in shown
        assert "  failed  short: " in shown
        for name in ("short", "two", "text"):
            put(scans, name, 3)
        batch()
        assert run(["status", out, "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)["jobs"]
        assert told["counts"] == {"done": 6}
        assert not told["running"]

    @pytest.mark.slow
    def test_of_one_at_work(self, batch, scans, monkeypatch):
        out = str(scans.parent / "out" / "{case}_seg.nii.gz")
        seen, ended = [], night_module.Night._ended

        def watched(self, left, row):
            ended(self, left, row)
            seen.append(batch_state(out))

        monkeypatch.setattr(night_module.Night, "_ended", watched)
        batch(at_once=1)
        assert [state.counts for state in seen] == [
            {"done": 1, "left": 2},
            {"done": 2, "left": 1},
            {"done": 3},
        ]
        assert all(state.running and state.exit_code == 4 for state in seen)
        assert f"process {os.getpid()} on" in seen[0].text()
        assert seen[0].left_s >= 0

    def test_of_one_that_was_interrupted(self, batch, scans, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("volflow.infer.predict.predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch(at_once=1)
        state = batch_state(str(scans.parent / "out" / "{case}_seg.nii.gz"))
        assert state.counts == {"interrupted": 1, "left": 2}
        assert "  next  run the same command again" in state.text()

    def test_of_none(self, tmp_path):
        with pytest.raises(InvalidInput, match="names the results of no batch that was begun"):
            batch_state(str(tmp_path / "{case}.zarr"))


@pytest.mark.slow
def test_cases_spread_over_a_cluster_to_which_the_model_is_sent_once(batch, scans, monkeypatch):
    sent, register, used, submit = [], Client.register_plugin, set(), Client.submit

    def counted(client, plugin, *args, **options):
        sent.append(type(plugin).__name__)
        return register(client, plugin, *args, **options)

    def watched(client, *args, workers=(), **options):
        used.update(workers or ())
        return submit(client, *args, workers=workers or None, **options)

    monkeypatch.setattr(Client, "register_plugin", counted)
    monkeypatch.setattr(Client, "submit", watched)
    for n in range(5):
        put(scans, f"n{n}", n)
    with LocalCluster(
        n_workers=2, processes=False, threads_per_worker=1, protocol="tcp://",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:  # fmt: skip
        table = batch(cluster=cluster, model=random_net())
    assert table.ok
    assert sent.count("ModelPlugin") == 1
    assert len(used) == 2
    again = batch(model=random_net(), out=str(scans.parent / "out" / "{case}_here.nii.gz"))
    assert [Path(a.out).read_bytes() for a in table] == [Path(b.out).read_bytes() for b in again]


@pytest.mark.slow
def test_a_cluster_that_is_gone_ends_the_batch(batch, monkeypatch):
    """It is no failure of each case that is left."""
    begun = []

    def gone(volume, model, out, *, cluster, **_):
        begun.append(out)
        cluster.close()
        raise RunFailed("the scheduler is gone")

    monkeypatch.setattr("volflow.infer.predict.predict", gone)
    with pytest.raises(RunFailed, match="the scheduler is gone"):
        batch(at_once=1, cluster="threads")
    assert len(begun) == 1
    monkeypatch.undo()
    assert batch().ok


@pytest.mark.slow
def test_an_interruption_ends_what_is_at_work(batch, scans, monkeypatch):
    """The tasks of other cases stop at their next look, and their threads with them."""
    from volflow.infer.predict import predict

    entered, interrupted = threading.Event(), threading.Event()

    def slowly(volume, model, out, **options):
        if "/b_seg" in out:
            entered.wait(60)
            raise KeyboardInterrupt
        entered.set()
        interrupted.wait(0.2)
        return predict(volume, model, out, **options)

    monkeypatch.setattr("volflow.infer.predict.predict", slowly)
    with pytest.raises(KeyboardInterrupt):
        batch(at_once=2)
    assert not [one for one in threading.enumerate() if one.name.startswith("volflow-case")]
    monkeypatch.undo()
    assert batch().ok
    assert gzip.decompress(Path(scans.parent / "out" / "a_seg.nii.gz").read_bytes())
    assert journal_dir(scans.parent / "out" / "a_seg.nii.gz").is_dir()


@pytest.mark.slow
def test_a_bundle_whose_cases_are_done_loads_no_torch(tmp_path, fresh_python):
    vf.save_model(vf.UNet(1, 2, features=(2, 4)), tmp_path / "bundle", patch=8)
    np.save(tmp_path / "a.npy", voxels(0))
    code = f"""
import sys
from volflow.cli import run
words = ["predict", "{tmp_path}/{{case}}.npy", "{tmp_path}/{{case}}_seg.zarr", "-m",
         "{tmp_path}/bundle", "-q"]
print(run(words), "torch" in sys.modules, "distributed" in sys.modules)
"""
    assert fresh_python(code).splitlines()[-1] == "0 True True"
    assert fresh_python(code).splitlines()[-1] == "0 False False"


def test_a_bundle_is_known_by_its_files(tmp_path):
    assert (bundle_identity_module.CARD, bundle_identity_module.WEIGHTS) == (
        bundle_module.CARD,
        bundle_module.WEIGHTS,
    )
    net = vf.UNet(1, 2, features=(2, 4))
    vf.save_model(net, tmp_path / "a", patch=8)
    vf.save_model(net, tmp_path / "b", patch=8)
    vf.save_model(net, tmp_path / "c", patch=16)
    vf.save_model(vf.UNet(1, 2, features=(2, 4)), tmp_path / "d", patch=8)
    a, b, c, d = (bundle_identity_module.bundle_identity(tmp_path / name) for name in "abcd")
    assert len({a, c, d, ""}) == 4
    assert a == b == bundle_identity_module.bundle_identity(tmp_path / "a" / "bundle.json")
    (tmp_path / "a" / "weights.safetensors").unlink()
    assert bundle_identity_module.bundle_identity(tmp_path / "a") == ""


@pytest.mark.slow
def test_a_function_among_the_options_counts_as_it_is(batch):
    table = batch(activation=torch.sigmoid)
    assert table.ok
    assert statuses(batch(activation=torch.sigmoid)) == dict.fromkeys("abc", "kept")
    assert statuses(batch(activation=torch.tanh)) == dict.fromkeys("abc", "refused")
