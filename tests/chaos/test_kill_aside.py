"""A process is killed before what it made is in its place: the next run removes what it left."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.errors import Locked

pytestmark = pytest.mark.chaos

SCAN = np.random.default_rng(0).random((20, 18, 19), "float32")

# A child does this and says so in the middle of its work, where it waits to be killed.
CHILD = """
import sys
import numpy as np
import volflow as vf

def pause(*args, **options):
    print("there", flush=True)
    sys.stdin.read()

scan, out = sys.argv[1:]
if __name__ == "__main__":
"""
CONVERT = """
    import volflow.store.create
    volflow.store.create.write_group = pause
    vf.convert(scan, out, progress=False)
"""
EXPORT = """
    from volflow.store.volume import Volume
    Volume.read = pause
    vf.export(scan, out)
"""
AGGREGATE = """
    stream = vf.PatchStream(scan, vf.GridSampler(16, overlap=0.25))
    with vf.GridAggregator(out, stream) as aggregator:
        for batch in stream.loader(batch_size=1):
            aggregator.add_batch(batch["image"], batch)
            pause()
"""


def convert(scan: str, out: Path) -> None:
    vf.convert(scan, out, progress=False, overwrite=True)


def export(scan: str, out: Path) -> None:
    vf.export(scan, out, overwrite=True)


def aggregate(scan: str, out: Path) -> None:
    stream = vf.PatchStream(scan, vf.GridSampler(16, overlap=0.25))
    with vf.GridAggregator(out, stream, overwrite=True) as aggregator:
        for batch in stream.loader(batch_size=1):
            aggregator.add_batch(batch["image"], batch)


def left(out: Path) -> list[Path]:
    """What lies hidden beside an output."""
    return sorted(out.parent.glob(f".{out.name}.*"))


@pytest.fixture
def scan(tmp_path):
    return store(tmp_path / "scan.zarr", SCAN)


@pytest.fixture
def paused(root, scan):
    """Starts a process that waits in the middle of its work, and kills it at the end."""

    @contextmanager
    def start(code, out):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD + code, scan, str(out)], cwd=root, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with process:
            try:
                assert process.stdout.readline() == "there\n"
                yield
            finally:
                process.send_signal(signal.SIGKILL)

    return start


@pytest.mark.parametrize(
    ("code", "again", "name"),
    [
        pytest.param(CONVERT, convert, "out.zarr", id="convert"),
        pytest.param(EXPORT, export, "out.nii.gz", id="export"),
        pytest.param(AGGREGATE, aggregate, "out.zarr", id="aggregate"),
    ],
)
def test_what_a_process_left_is_removed_when_it_is_gone(paused, scan, tmp_path, code, again, name):
    out = tmp_path / name
    with paused(code, out):
        made = left(out)
        assert len(made) == 1
        assert not out.exists()
        with suppress(Locked):  # or this process is done before the other
            again(scan, out)
        assert left(out) == made  # it has an owner
    assert left(out) == made
    again(scan, out)
    assert left(out) == []
    assert out.exists()


@pytest.mark.parametrize("name", ["old-0123abcd", "new-0123abcd", "part-0123abcd"])
def test_what_the_version_before_left_is_removed(scan, tmp_path, name):
    out = tmp_path / "out.zarr"
    vf.convert(scan, out, progress=False)
    (tmp_path / f".out.zarr.{name}" / "0").mkdir(parents=True)
    for foreign in (".out.zarr.notes", ".out.zarr.new-zzz", ".another.zarr.new-0123abcd"):
        (tmp_path / foreign).mkdir()
    before = out.stat().st_mtime_ns
    vf.convert(scan, out, progress=False)
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert names == {".out.zarr.notes", ".out.zarr.new-zzz", ".another.zarr.new-0123abcd"}
    assert out.stat().st_mtime_ns == before
