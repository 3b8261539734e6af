"""Who reads for a stream: remote stores, Dask clusters with their credit, ranks of torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import zarr

import volflow as vf
from tests.stores import store
from volflow.engine.cluster import connect
from volflow.errors import Damaged, RunFailed
from volflow.sampling.cases.named_arrays import Case

SAMPLER = vf.UniformSampler(8)


@pytest.fixture
def volume(tmp_path, small_superchunks):
    """64 superchunks of chunks of 16."""
    small_superchunks(24**3)
    return store(tmp_path / "scan.zarr", np.arange(64**3, dtype="u4").reshape(64, 64, 64))


@pytest.fixture
def client():
    with connect("threads") as made:
        yield made


def voxels(stream):
    return [sample["image"].numpy().tobytes() for sample in stream]


def settled(count, seconds=5.0):
    """A count that others raise, once it stands still."""
    end, before = time.monotonic() + seconds, -1
    while before != (before := count()) and time.monotonic() < end:
        time.sleep(0.2)
    return before


def reading(client) -> int:
    """Superchunks that the client has asked its workers for and not let go of."""
    return sum(key.startswith("load-") for key in client.futures)


class TestCluster:
    @pytest.fixture
    def reads(self, monkeypatch):
        """Superchunks that workers have read."""
        done = []
        read = Case.read

        def counted(*args):
            done.append(1)
            return read(*args)

        monkeypatch.setattr(Case, "read", counted)
        return done

    @pytest.mark.slow
    def test_never_runs_ahead_of_its_credit(self, volume, client, reads):
        stream = vf.PatchStream(volume, SAMPLER, 600, reuse=0.5, lanes=4, cluster=client)
        credit = stream.plan.held_lanes + stream.plan.ahead
        samples = iter(stream)
        for _ in range(100):
            next(samples)
        # Read but not taken: those ahead, and one for each that was taken and is done with.
        held = settled(lambda: len(reads)) - stream.metrics.superchunks
        assert stream.plan.ahead <= held <= credit - 1
        assert settled(lambda: reading(client)) <= held  # none of those taken
        assert stream.metrics.live_bytes <= credit * stream.plan.superchunk_bytes
        samples.close()
        assert settled(lambda: reading(client)) == 0
        assert client.status == "running"

    def test_that_is_closed_is_named(self, volume, client):
        samples = iter(vf.PatchStream(volume, SAMPLER, 600, reuse=0.5, cluster=client))
        next(samples)
        client.close()
        with pytest.raises(RunFailed, match=r"was closed; go on from its state_dict\(\)"):
            list(samples)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_graph_that_fails_says_why(self, client, volume):
        def broken(block):
            raise ZeroDivisionError("in preprocessing")

        array = vf.open(volume).dask().map_blocks(broken, dtype="u4", meta=np.empty((0,) * 3, "u4"))
        for cluster in (None, client):
            stream = vf.PatchStream(array, SAMPLER, 100, cluster=cluster)
            with pytest.raises(ZeroDivisionError, match="in preprocessing"):
                list(stream)
            with pytest.raises(ZeroDivisionError, match="in preprocessing"):
                list(stream.loader(4))
            assert stream.metrics.live_bytes == 0


class TestRemoteStore:
    @pytest.fixture
    def plain(self, volume, tmp_path):
        """Without shards: the server knows no ranges."""
        path = str(tmp_path / "plain.zarr")
        array = zarr.create_array(path, shape=(64,) * 3, chunks=(16,) * 3, dtype="u4")
        array[...] = vf.open(volume)[:]
        return path

    @pytest.fixture
    def url(self, plain, tmp_path):
        pytest.importorskip("obstore")

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/plain.zarr"
            server.shutdown()
            thread.join()

    @pytest.mark.slow
    def test_gives_the_same_patches(self, url, plain):
        local = vf.PatchStream(plain, SAMPLER, 200, seed=3)
        remote = vf.PatchStream(url, SAMPLER, 200, seed=3)
        expected = voxels(local)
        assert voxels(remote) == expected
        remote.set_epoch(0)
        whole = np.concatenate([batch["image"].numpy() for batch in remote.loader(16)])
        assert [patch.astype("u4").tobytes() for patch in whole] == expected
        assert remote.state_dict()["epoch"] == 1


class TestWaysOut:
    """However a loop is left, nothing goes on reading and the stream is good for another."""

    def leave_by_break(self, samples):
        for _ in samples:
            break

    def leave_by_error(self, samples, error=KeyError):
        try:
            for _ in samples:
                raise error
        except error:
            pass

    def leave_by_interrupt(self, samples):
        self.leave_by_error(samples, KeyboardInterrupt)

    def leave_by_forgetting(self, samples):
        iterator = iter(samples)
        next(iterator)
        del iterator

    @pytest.mark.parametrize("way", ["break", "error", "interrupt", "forgetting"])
    def test_end_all_threads(self, volume, way):
        stream = vf.PatchStream(volume, SAMPLER, 600)
        for samples in (stream, stream.loader(8)):
            getattr(self, f"leave_by_{way}")(samples)
            names = [thread.name for thread in threading.enumerate()]
            assert not [name for name in names if name.startswith("volflow")]
            assert stream.metrics.live_bytes == 0
        stream.set_epoch(0)
        assert len(list(stream)) == 600

    def test_damaged_chunk_is_named_and_later_epochs_go_on(self, volume, tmp_path):
        path = tmp_path / "scan.zarr" / "0" / "c" / "0" / "0" / "0"
        whole = path.read_bytes()
        stream = vf.PatchStream(volume, SAMPLER, 600)
        path.write_bytes(b"damaged")
        for samples in (stream, stream.loader(8)):
            with pytest.raises(Damaged, match=r"scan.zarr.* cannot be read at .* restore"):
                list(samples)
            assert stream.metrics.live_bytes == 0
        path.write_bytes(whole)
        stream.set_epoch(0)
        assert [int(n) for batch in stream.loader(8) for n in batch["index"]] == list(range(600))

    def test_two_loops_at_once_each_go_through_an_epoch(self, volume):
        stream = vf.PatchStream(volume, SAMPLER, 40)
        first, second = zip(*zip(stream, stream.loader(1), strict=True), strict=True)
        other = vf.PatchStream(volume, SAMPLER, 40)
        for epoch in (first, second):
            assert [int(s["key"]) for s in epoch] == [s["key"] for s in other]


RANK = """
import json, sys
import torch.distributed as dist
import volflow as vf

path, meeting, rank, out = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
stream = vf.PatchStream(path, vf.UniformSampler(8), 100, seed=3)
assert (stream.rank, stream.world_size) == (int(rank), 2)
with open(out, "w") as file:
    json.dump([(s["index"], s["key"], s["location"].tolist()) for s in stream], file)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_are_those_of_torch_distributed(tmp_path):
    path = store(tmp_path / "scan.zarr", np.zeros((64, 64, 64), "u1"))
    outs = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, path, tmp_path / "meeting", str(rank), out])
        for rank, out in enumerate(outs)
    ]
    for rank in ranks:
        rank.wait(120)
    parts = [json.loads(out.read_text()) for out in outs]
    whole = vf.PatchStream(path, SAMPLER, 100, seed=3)
    expected = [[s["index"], s["key"], s["location"].tolist()] for s in whole]
    assert [sample for pair in zip(*parts, strict=True) for sample in pair] == expected
