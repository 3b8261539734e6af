"""Processes are killed, disks fill, files break: nothing done is lost, and nothing wrong stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zarr

import volflow as vf
from tests.nets import Slow, random_net
from tests.stores import files
from volflow.errors import Damaged, InvalidInput, StoreFull, VolflowError
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.journal.journal import journal_dir
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.unfinished.fence import Fence

pytestmark = pytest.mark.chaos

SHAPE = (64, 15, 14)
BLOCKS = 8
PATIENCE_S = 120
OPTIONS = {"patch": 8, "overlap": 0.5, "batch_size": 2, "chunk": 8, "shard": 8}
API = f"""
import sys
import volflow as vf
from tests.nets import slow
if __name__ == "__main__":
    cluster = sys.argv[3]
    vf.predict(sys.argv[1], slow(), sys.argv[2], cluster=cluster, progress=False, **{OPTIONS})
"""
CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"
NAMED = "tests.nets:slow"  # as an output made by the command line names its model
FLAGS = ["--model", NAMED]
FLAGS += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume of eight blocks, which no test changes."""
    voxels = np.random.default_rng(0).random(SHAPE, "float32") + 0.1
    path = tmp_path_factory.mktemp("input") / "scan.zarr"
    volume = create(path, VolumeSpec.of(SHAPE, "float32", Meta(), chunk=8, shard=8))
    volume.write(Roi.full(SHAPE), voxels)
    return volume


def run(scan, out, model=None, **options):
    """The prediction of all these tests, in this process and at full speed."""
    model = model or Slow(random_net())
    return vf.predict(scan, model, out, **{"progress": False} | OPTIONS | options)


@pytest.fixture(scope="module")
def whole(scan, tmp_path_factory):
    """What an uninterrupted run writes, byte by byte."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run(scan, out)
    return files(out)


@pytest.fixture(scope="module")
def whole_by_name(scan, tmp_path_factory):
    """The same of a model that is named, as the command line does; the output says so."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run(scan, out, NAMED)
    return files(out)


@pytest.fixture
def predict(scan, tmp_path):
    def into(out="out.zarr", **options):
        return run(scan, tmp_path / out, **options)

    return into


@pytest.fixture
def started(scan, tmp_path, root):
    """Starts the prediction in a process of its own, slowly; it ends with the test."""
    groups = []

    @contextmanager
    def start(code, *arguments, sleep=0.01):
        environment = {
            **os.environ, "PYTHONPATH": str(root), "VOLFLOW_TEST_SLEEP": str(sleep),
            "VOLFLOW_TEST_PIDS": str(tmp_path / "pids"),
        }  # fmt: skip
        (tmp_path / "pids").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], env=environment, text=True,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        groups.append(process.pid)
        with process:
            try:
                yield process
            finally:
                process.kill()

    yield start
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def mtimes(folder: Path) -> dict[str, int]:
    """When each file of a folder was written last."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def entries(out: Path) -> dict[int, int]:
    """When each block that is done was recorded."""
    return {int(p.stem): p.stat().st_mtime_ns for p in (journal_dir(out) / "done").glob("*.json")}


def wait_for(condition, process=None):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def shard_of(out: Path, block: int) -> Path:
    """The file in which channel 0 of a block begins."""
    return out / "0" / "c" / "0" / str(block) / "0" / "0"


class TestKilled:
    @pytest.mark.parametrize("cluster", ["threads", "2"])
    def test_at_half_only_blocks_in_flight_are_redone(
        self, started, predict, scan, whole, tmp_path, cluster
    ):
        out = tmp_path / "out.zarr"
        with started(API, scan.path, str(out), cluster) as driver:
            wait_for(lambda: len(entries(out)) >= BLOCKS // 2, driver)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            done, written = entries(out), mtimes(out)
            finished = {f"0/c/{c}/{b}/{y}/{x}" for b in done for c, y, x in np.ndindex(2, 2, 2)}
            assert BLOCKS // 2 <= len(done) < BLOCKS
            with pytest.raises(InvalidInput, match=rf"is not complete: {len(done)} of {BLOCKS} "):
                vf.open(out)
            predict(cluster="threads" if cluster == "threads" else 2)  # its workers may still live
        after = entries(out)
        assert {b: after[b] for b in done} == done
        assert sorted(after) == list(range(BLOCKS))
        now = mtimes(out)
        assert {name: now[name] for name in finished} == {n: written[n] for n in finished}
        assert files(out) == whole
        assert vf.verify(out).ok

    def test_again_and_again(self, started, predict, scan, whole, tmp_path):
        out = tmp_path / "out.zarr"
        for count in (1, 3, 6):
            with started(API, scan.path, str(out), "threads") as driver:
                wait_for(lambda count=count: len(entries(out)) >= count, driver)
                driver.send_signal(signal.SIGKILL)
                driver.wait()
        predict()
        assert files(out) == whole

    def test_at_any_moment(self, started, predict, scan, whole, tmp_path):
        """Early too: before the journal, between the journal and the volume."""
        out = tmp_path / "out.zarr"
        moments = [
            lambda: journal_dir(out).exists(),
            lambda: (journal_dir(out) / "plan.json").exists(),
            lambda: out.exists(),
            lambda: shard_of(out, 0).exists(),
        ]
        for moment in moments:
            with started(API, scan.path, str(out), "threads") as driver:
                wait_for(moment, driver)
                driver.send_signal(signal.SIGKILL)
                driver.wait()
            result = predict()
            assert files(Path(result.path)) == whole
            shutil.rmtree(out)
            shutil.rmtree(journal_dir(out))

    def test_a_worker_only_the_run_goes_on(self, started, scan, whole, tmp_path):
        out = tmp_path / "out.zarr"
        with started(API, scan.path, str(out), "2", sleep=0.02) as driver:
            wait_for(lambda: len(entries(out)) >= 2, driver)
            workers = [int(p.name) for p in (tmp_path / "pids").iterdir()]
            assert driver.pid not in workers
            os.kill(workers[0], signal.SIGKILL)
            assert driver.wait(PATIENCE_S) == 0
        assert files(out) == whole
        assert vf.verify(out).ok


class TestStopped:
    @pytest.mark.parametrize(
        ("send", "stop", "cluster"),
        [
            (os.kill, signal.SIGTERM, "threads"),  # as SLURM and Kubernetes do
            (os.killpg, signal.SIGINT, "threads"),  # Ctrl-C goes to workers too
            (os.killpg, signal.SIGINT, "2"),
        ],
    )
    def test_cleanly_saying_how_to_resume(
        self, started, scan, whole_by_name, tmp_path, send, stop, cluster
    ):  # fmt: skip
        out = tmp_path / "out.zarr"
        words = ["predict", scan.path, str(out), *FLAGS, "--cluster", cluster]
        with started(CLI, *words) as driver:
            wait_for(lambda: len(entries(out)) >= 2, driver)
            send(driver.pid, stop)
            _, told = driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == 1
        assert "volflow: stopped; what is done is kept, run the same command again" in told
        if cluster == "threads":  # a worker process that ends amid Dask's own work may log one
            assert not [line for line in told.splitlines() if "Traceback" in line], told
        assert not list(journal_dir(out).glob("session-*"))
        done = entries(out)
        assert 2 <= len(done) < BLOCKS
        with started(CLI, *words, "--json", sleep=0) as again:
            shown, told = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, told
        assert json.loads(shown)
        after = entries(out)
        assert {b: after[b] for b in done} == done
        assert files(out) == whole_by_name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


class TestDamaged:
    @pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
    def test_blocks_are_named_and_only_these_repaired(self, predict, whole, tmp_path, damage):
        out = tmp_path / "out.zarr"
        predict()
        damage(shard_of(out, 2))
        damage(shard_of(out, 7))
        before = mtimes(out)
        coverage = vf.verify(out)
        assert [block for block, _ in coverage.bad] == [2, 7]
        assert coverage.cells == "##x####x"
        assert not coverage.ok
        assert "6 of 8 blocks verified, 2 bad" in str(coverage)
        predict()
        after = mtimes(out)
        touched = {int(name.split("/")[3]) for name in after if after[name] != before.get(name)}
        assert touched == {2, 7}
        assert files(out) == whole
        assert vf.verify(out).ok

    def test_records_are_repeated(self, predict, whole, tmp_path):
        out = tmp_path / "out.zarr"
        predict()
        (journal_dir(out) / "done" / "00000003.json").write_text('{"block": 3, "entr')
        before = mtimes(out)
        predict()
        after = mtimes(out)
        assert {int(n.split("/")[3]) for n in after if after[n] != before[n]} == {3}
        assert files(out) == whole


class TestFull:
    def test_a_disk_that_fills_loses_nothing_done(self, predict, whole, monkeypatch, tmp_path):
        out, write, room = tmp_path / "out.zarr", zarr.Array.set_basic_selection, [40]

        def full(array, selection, value):
            if "out.zarr" in str(array.store_path):
                room[0] -= 1
                if room[0] < 0:
                    raise OSError(28, "No space left on device")
            return write(array, selection, value)

        with monkeypatch.context() as patch:
            patch.setattr(zarr.Array, "set_basic_selection", full)
            with pytest.raises(StoreFull) as failed:
                predict()
        assert failed.value.exit_code == 1
        assert str(failed.value) == (
            f"{out} cannot be written: No space left on device; what is done is kept, make room"
            " and run the same command again"
        )
        assert room[0] == -1  # nobody tried again
        done = entries(out)
        assert 0 < len(done) < BLOCKS
        predict()
        assert {b: t for b, t in entries(out).items() if b in done} == done
        assert files(out) == whole

    def test_a_real_one(self, predict, whole, tmp_path):
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=180k", "tmpfs", str(small)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting a small disk takes root")
        try:
            with pytest.raises(StoreFull, match=r"(?i)no space left on device"):
                predict("small/out.zarr")
            assert 0 < len(entries(small / "out.zarr")) < BLOCKS
            subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
            predict("small/out.zarr")
            assert files(small / "out.zarr") == whole
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)

    def test_a_full_journal(self, predict, whole, monkeypatch, tmp_path):
        put, room = Fence.put, [3]

        def full(fence, path, data):
            if path.parent.name == "done":
                room[0] -= 1
                if room[0] < 0:
                    raise OSError(28, "No space left on device")
            put(fence, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Fence, "put", full)
            with pytest.raises(StoreFull, match=r"cannot be written: no space left on device; "):
                predict()
        assert len(entries(tmp_path / "out.zarr")) == 3
        predict()
        assert files(tmp_path / "out.zarr") == whole


class TestUnreadable:
    def test_a_hiccup_is_survived(self, predict, whole, monkeypatch, tmp_path):
        read, hiccups = zarr.Array.get_basic_selection, [2]

        def hiccup(array, *args, **options):
            if hiccups[0] and "scan.zarr" in str(array.store_path):
                hiccups[0] -= 1
                raise OSError(5, "Input/output error")
            return read(array, *args, **options)

        monkeypatch.setattr(zarr.Array, "get_basic_selection", hiccup)
        predict()
        assert hiccups == [0]
        assert files(tmp_path / "out.zarr") == whole

    def test_blocks_away_from_a_damaged_input_are_done(self, scan, tmp_path):
        shutil.copytree(scan.path, tmp_path / "scan.zarr")
        truncate(tmp_path / "scan.zarr" / "0" / "c" / "2" / "0" / "0")
        with pytest.raises(Damaged, match=r"blocks failed after 2 retries; .*scan.zarr cannot be"):
            run(tmp_path / "scan.zarr", tmp_path / "out.zarr", overlap=0)
        done = entries(tmp_path / "out.zarr")
        assert {3, 4, 5, 6, 7} <= set(done)
        assert 2 not in done


class TestGone:
    @pytest.mark.parametrize("what", ["out.zarr.volflow", "."])
    def test_a_folder_that_goes_away_ends_the_run_in_one_line(self, predict, tmp_path, what):
        (tmp_path / "there").mkdir()

        def take_away(state):
            if state.blocks >= 2:
                shutil.rmtree(tmp_path / "there" / what, ignore_errors=True)

        with pytest.raises(VolflowError) as failed:
            predict("there/out.zarr", progress=take_away)
        assert "out.zarr" in str(failed.value)
        assert failed.value.exit_code == 1

    def test_and_the_run_can_be_made_again(self, predict, whole, tmp_path):
        predict()
        shutil.rmtree(tmp_path / "out.zarr")
        predict()
        assert files(tmp_path / "out.zarr") == whole
