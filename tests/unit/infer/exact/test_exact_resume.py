"""An exact run that was interrupted goes on in the pass where it stopped."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import volflow as vf
from tests.exact_oracle import EXACT, error, lively, whole
from tests.stores import files
from volflow.errors import ResumeRefused, RunFailed, StoreFull
from volflow.infer.exact.window import ExactWindow
from volflow.infer.predict import plan_predict
from volflow.model.unet import UNet
from volflow.passes import keeping
from volflow.passes.activations import ActivationStore
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.unfinished.fence import Fence

SCAN = np.random.default_rng(0).random((22, 13, 27)) + 0.1
MEMORY = "49MiB"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return lively(UNet(1, 2, (3, 6), norm="instance"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """The scan, stored: it need not be converted by each run."""
    return vf.convert(SCAN, tmp_path_factory.mktemp("scan") / "scan.zarr", progress=False)


@pytest.fixture
def run(exact, scan, net):
    def into(out="out.zarr", **options):
        return exact(scan, net, out, **{"memory": MEMORY} | options)

    return into


@pytest.fixture
def counted(monkeypatch):
    """Counts blocks of all passes as they are computed; ``most[0]`` is when they fail."""
    blocks, most = [], [float("inf")]

    def count(name, owner, inner):
        def counting(*given):
            if len(blocks) >= most[0]:
                raise ConnectionError("too tired")
            blocks.append(name)
            return inner(*given)

        monkeypatch.setattr(owner, inner.__name__, counting)

    count("pass", keeping, keeping.pass_block)
    count("last", ExactWindow, ExactWindow.begun)
    return blocks, most


@pytest.fixture
def stopped(run, counted):
    """A run that failed after so many blocks; what a rerun computes is counted from 0."""
    blocks, most = counted

    def after(count):
        most[0] = count
        with pytest.raises(RunFailed, match="too tired"):
            run()
        most[0] = float("inf")
        blocks.clear()

    return after


@pytest.fixture(scope="module")
def uninterrupted():
    """What `expected` gives, once a test has made it: it is the same for all."""
    return []


@pytest.fixture
def expected(run, counted, tmp_path, uninterrupted):
    """The files of an uninterrupted run, and how many blocks it computed, all and of the last."""
    if not uninterrupted:
        run("whole.zarr")
        blocks, _ = counted
        total, last = len(blocks), blocks.count("last")
        blocks.clear()
        uninterrupted.append((files(tmp_path / "whole.zarr"), total, last))
    return uninterrupted[0]


def passes(tmp_path):
    return journal_dir(tmp_path / "out.zarr") / "passes"


def mtimes(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


class TestInterrupted:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "where", [pytest.param("first", marks=pytest.mark.slow), "middle", "last"]
    )
    def test_goes_on_where_it_stopped(self, run, expected, stopped, counted, tmp_path, where):
        wanted, total, last = expected
        count = {"first": 2, "middle": (total - last) // 2, "last": total - last // 2}[where]
        stopped(count)
        done = {p: p.stat().st_mtime_ns for p in passes(tmp_path).glob("*/done/*.json")}
        run()
        assert len(counted[0]) == total - count
        assert {p: p.stat().st_mtime_ns for p in done} == done
        assert files(tmp_path / "out.zarr") == wanted
        assert vf.verify(tmp_path / "out.zarr").ok

    @pytest.mark.slow
    def test_after_every_block(self, run, expected, stopped, tmp_path, net):
        wanted, total, _ = expected
        for count in (1, total // 3, total // 4, 1):
            stopped(count)
        assert error(run()[:], whole(SCAN, net, 2)) < EXACT
        assert files(tmp_path / "out.zarr") == wanted

    @pytest.mark.slow
    def test_memory_and_layout_are_those_of_the_first_run(
        self, run, expected, stopped, counted, tmp_path
    ):
        wanted, total, _ = expected
        stopped(5)
        run(memory="1GiB")
        assert len(counted[0]) == total - 5
        assert files(tmp_path / "out.zarr") == wanted

    @pytest.mark.slow
    def test_another_network_is_refused(self, exact, stopped, scan, tmp_path):
        stopped(5)
        before = mtimes(tmp_path)
        torch.manual_seed(1)
        other = lively(UNet(1, 2, (3, 6), norm="instance"))
        with pytest.raises(ResumeRefused, match="weights: "):
            exact(scan, other, memory=MEMORY)
        changed = {p.name for p, t in mtimes(tmp_path).items() if before.get(p) != t}
        assert changed <= {"lock"}

    @pytest.mark.slow
    def test_a_plan_touches_nothing(self, stopped, scan, net, tmp_path, client):
        stopped(40)
        before = mtimes(tmp_path)
        other = lively(UNet(1, 2, (5, 6), norm="group"))
        for model, overwrite in ((net, False), (other, True)):
            plan_predict(scan, model, tmp_path / "out.zarr", blend="exact", overwrite=overwrite,
                         cluster=client, memory="100MiB", chunk=8, shard=8)  # fmt: skip
        assert mtimes(tmp_path) == before


class TestWhatPassesLeave:
    @pytest.mark.slow
    def test_nothing_is_kept_at_the_end(self, run, tmp_path, monkeypatch):
        kept = []
        write = ActivationStore.write
        monkeypatch.setattr(
            ActivationStore, "write", lambda *given: kept.append(given) or write(*given)
        )
        run()
        assert kept
        assert not list(passes(tmp_path).rglob("*.raw"))
        assert not list(passes(tmp_path).rglob("*.part"))
        assert not list(passes(tmp_path).rglob("partials"))
        assert len(list(passes(tmp_path).rglob("statistics.f64"))) > 1

    @pytest.mark.slow
    def test_done_is_returned_at_once(self, exact, net, counted, tmp_path):
        """Also where the input is an array in memory, which is stored first."""
        exact(SCAN, net, memory=MEMORY)
        counted[0].clear()
        before = mtimes(tmp_path / "out.zarr")
        exact(SCAN, net, memory=MEMORY)
        assert counted[0] == []
        assert mtimes(tmp_path / "out.zarr") == before

    @pytest.mark.slow
    def test_overwriting_removes_them(self, run, net, tmp_path):
        run()
        assert passes(tmp_path).exists()
        run(memory="2GiB", overwrite=True)
        assert not passes(tmp_path).exists() or not list(passes(tmp_path).iterdir())

    @pytest.mark.slow
    def test_a_journal_per_pass(self, run, scan, tmp_path, planned, net):
        count = planned(scan, net, memory=MEMORY)[0]
        run()
        folders = sorted(p.name for p in passes(tmp_path).iterdir() if p.name != "kept")
        assert folders == [f"{n:03d}" for n in range(count - 1)]
        for name in folders:
            record = json.loads((passes(tmp_path) / name / "plan.json").read_text())
            done = Journal(passes(tmp_path) / name).done()
            assert len(done) == record["settings"]["grid"][0]


class TestDamage:
    """Between an interruption and the next run."""

    @pytest.fixture
    def damaged(self, run, expected, stopped, tmp_path):
        """A run that stops, is damaged, and goes on to the same result."""

        def check(share, pattern, hurt):
            wanted, total, last = expected
            stopped(int(share * (total - last)))
            found = sorted(passes(tmp_path).rglob(pattern))
            assert found
            hurt(found)
            run()
            assert files(tmp_path / "out.zarr") == wanted

        return check

    @pytest.mark.slow
    def test_of_a_kept_file(self, damaged):
        def cut(found):
            found[0].unlink()
            found[-1].write_bytes(found[-1].read_bytes()[:-8])

        damaged(0.4, "*.raw", cut)

    @pytest.mark.slow
    def test_of_all_kept_files(self, damaged):
        damaged(0.7, "*.raw", lambda found: [path.unlink() for path in found])

    @pytest.mark.slow
    def test_of_what_a_block_measured(self, damaged):
        def cut(found):
            found[0].write_bytes(b"")
            if len(found) > 1:
                found[1].unlink()

        damaged(0.1, "partials/*.f64", cut)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "content", [b"", pytest.param(b"123", marks=pytest.mark.slow), b"0" * 8]
    )
    def test_of_statistics(self, damaged, content):
        damaged(0.6, "statistics.f64", lambda found: found[0].write_bytes(content))

    @pytest.mark.slow
    def test_of_a_journal_entry(self, damaged):
        damaged(0.1, "done/*.json", lambda found: found[0].write_text("{"))

    @pytest.mark.slow
    def test_while_it_runs_is_one_line(self, run, tmp_path, monkeypatch):
        write = ActivationStore.write

        def cut(self, index, values):
            write(self, index, values)
            self.path(index).write_bytes(b"short")

        with monkeypatch.context() as patch:
            patch.setattr(ActivationStore, "write", cut)
            with pytest.raises(RunFailed, match=r"cannot be read .*; delete .*kept and run") as f:
                run()
        assert "\n" not in str(f.value)
        run()
        assert vf.verify(tmp_path / "out.zarr").ok

    @pytest.mark.slow
    def test_of_the_result_repairs_its_block_alone(self, run, expected, counted, tmp_path):
        wanted = expected[0]
        run()
        out = tmp_path / "out.zarr"
        victim = out / "0" / "c" / "0" / "1" / "0" / "1"
        victim.write_bytes(victim.read_bytes()[:-3] + b"xyz")
        coverage = vf.verify(out)
        assert len(coverage.bad) == 1
        before = mtimes(out)
        counted[0].clear()
        run()
        assert files(out) == wanted
        assert vf.verify(out).ok
        assert counted[0].count("last") == 1
        changed = [p for p, t in mtimes(out).items() if before.get(p) != t]
        assert victim in changed
        assert len(changed) < len(before) / 2
        assert not list(passes(tmp_path).rglob("*.raw"))


def no_room(*given):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFullDisk:
    @pytest.mark.slow
    def test_of_kept_nodes(self, run, monkeypatch, tmp_path):
        write, replaced = ActivationStore.write, Path.replace

        def full(self, index, values):
            with pytest.MonkeyPatch.context() as disk:
                disk.setattr(Path, "replace", no_room if index[-1] else replaced)
                write(self, index, values)

        with monkeypatch.context() as patch:
            patch.setattr(ActivationStore, "write", full)
            with pytest.raises(StoreFull, match=r"no space is left for .* run the same") as failed:
                run()
        assert "\n" not in str(failed.value)
        assert not list(passes(tmp_path).rglob("*.part"))
        run()
        assert vf.verify(tmp_path / "out.zarr").ok

    @pytest.mark.slow
    def test_of_what_is_measured(self, run, monkeypatch, tmp_path):
        put = Fence.put

        def full(fence, path, data):
            (no_room if path.suffix == ".f64" else put)(fence, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Fence, "put", full)
            with pytest.raises(StoreFull, match=r"no space is left for .* run the same") as f:
                run()
        assert "\n" not in str(f.value)
        run()
        assert vf.verify(tmp_path / "out.zarr").ok
