"""The driver of an output on an object store is killed: its lease lapses, the next run resumes."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests import relay
from tests.killed import killed
from tests.stores import files
from volflow.errors import InvalidInput, Locked
from volflow.store.journal import lease
from volflow.store.journal.journal import journal_of
from volflow.store.unfinished.root import WITHHELD

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

OUT, END = "s3://bucket/results/out.zarr", "s3://bucket/results/end.zarr"
CONVERT = """
import sys
import volflow as vf
if __name__ == "__main__":
    vf.convert(sys.argv[1], sys.argv[2], chunk=8, shard=8, cluster="threads", progress=False)
"""


@pytest.fixture
def s3(monkeypatch):
    """A relay before a store in this process."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with relay.s3_in_memory() as endpoint:
        for name, value in relay.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        relay.make_bucket(endpoint, "bucket")
        with relay.relay(endpoint) as made:
            monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
            yield made


def test_only_blocks_in_flight_are_done_again(s3, root, tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).integers(1, 999, (40, 16, 16), "u2")
    np.save(tmp_path / "scan.npy", voxels)
    given = {"chunk": 8, "shard": 8, "cluster": "threads", "progress": False}

    def is_shard(request):
        return request.method == "PUT" and "/c/" in request.path

    def is_record(request):
        return request.method == "PUT" and "/done-" in request.path

    s3.fault = lambda one: relay.Fault("", stall_s=0.05) if is_shard(one) else None
    killed(CONVERT, tmp_path / "scan.npy", OUT, root=root, moment=lambda: s3.count(is_record) > 3)
    with pytest.raises(Locked, match="after 60 s without a sign the next run takes over"):
        vf.convert(tmp_path / "scan.npy", OUT, **given)
    monkeypatch.setattr(lease, "LAPSE_S", -1.0)
    done = len(journal_of(OUT).done())
    assert 3 <= done < 20
    with pytest.raises(InvalidInput, match=f"is not complete: {done} of 20 blocks are done"):
        vf.open(OUT)
    s3.requests.clear()
    vf.convert(tmp_path / "scan.npy", OUT, **given)
    assert s3.count(is_shard) == 20 - done
    vf.convert(tmp_path / "scan.npy", tmp_path / "out.zarr", **given)
    assert relay.objects(OUT) == files(tmp_path / "out.zarr")
    assert vf.verify(OUT).ok


def test_killed_when_its_root_is_there_and_what_was_withheld_is_not_yet_deleted(
    s3, root, tmp_path, monkeypatch
):
    np.save(tmp_path / "scan.npy", np.ones((8, 16, 8), "u2"))

    cut = []

    def published(request):
        return request.method == "PUT" and request.path.endswith("end.zarr/zarr.json")

    def fault(request):
        if request.method == "POST" and "delete" in request.path and s3.count(published):
            cut.append(request)
            return relay.Fault("reset")
        return None

    s3.fault = fault
    killed(CONVERT, tmp_path / "scan.npy", END, root=root, moment=lambda: bool(cut))
    s3.fault = lambda one: None
    left = {key for key in relay.objects(END) if "/" not in key}
    assert left == {"zarr.json", WITHHELD}
    assert vf.open(END)[:].all()
    monkeypatch.setattr(lease, "LAPSE_S", -1.0)
    s3.requests.clear()
    vf.convert(tmp_path / "scan.npy", END, chunk=8, shard=8, cluster="threads", progress=False)
    assert s3.count(lambda one: "/c/" in one.path) == 0
    assert WITHHELD not in relay.objects(END)
    assert vf.verify(END).ok
