"""Addresses on a store: what paths do, in few requests, with the errors of a disk."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from tests.relay import Fault, objects
from volflow.store.remote import access
from volflow.store.remote.access import connect
from volflow.store.remote.address import Address, is_stored

OUT = Address("s3://bucket/scans/out.zarr")


def test_has_the_parts_of_a_path():
    assert (OUT.name, OUT.stem, OUT.key) == ("out.zarr", "out", "scans/out.zarr")
    assert str(OUT / "done" / "1.json") == f"{OUT}/done/1.json"
    assert OUT.parent.parent.parent == Address("s3://bucket")
    assert (OUT / "0" / "c").relative_to(OUT) == "0/c"
    assert not Address("s3://bucket/scans/out.zarr2").is_relative_to(OUT)
    assert not Path("/scans").is_relative_to(OUT)
    assert Address("s3://bucket/a%20b").key == "a b"
    assert pickle.loads(pickle.dumps(OUT)) == OUT
    with pytest.raises(ValueError, match="does not lie below"):
        OUT.relative_to(OUT / "0")


def test_reads_writes_and_deletes(s3):
    at = OUT / "a b" / "ü.json"
    with pytest.raises(FileNotFoundError):
        at.read_bytes()
    at.write_bytes(b"1")
    at.write_bytes(b"22")
    assert (at.read_bytes(), at.stat().st_size, at.exists()) == (b"22", 2, True)
    assert objects(str(OUT)) == {"a b/ü.json": b"22"}
    with pytest.raises(ValueError, match="it has 2 bytes, more than 1"):
        at.read_bytes(1)
    at.unlink()
    at.unlink(missing_ok=True)
    assert not at.exists()


def test_lists(s3):
    for name in ("done/2.json", "done/1.json", "levels/1/plan.json", "plan.json"):
        (OUT / name).write_bytes(b"")
    Address("s3://bucket/scans/out.zarr.volflow/plan.json").write_bytes(b"")
    assert [at.name for at in (OUT / "done").glob("*")] == ["1.json", "2.json"]
    assert [at.name for at in OUT.glob("[dl]*")] == ["done", "levels"]
    assert [at.relative_to(OUT) for at in OUT.rglob("plan.json")] == [
        "levels/1/plan.json",
        "plan.json",
    ]
    assert list((OUT / "nothing").glob("*")) == []


def is_deletion(request):
    return request.method in ("POST", "DELETE")


def test_deletes_first_what_makes_a_volume(s3):
    for name in ("0/c/0", "0/zarr.json", "zarr.json"):
        (OUT / name).write_bytes(b"1")
    assert is_stored(OUT)
    s3.requests.clear()
    s3.fault = lambda one: Fault("status", 403) if s3.count(is_deletion) > 1 else None
    with pytest.raises(PermissionError):
        OUT.delete_below()
    s3.fault = lambda one: None
    assert set(objects(str(OUT))) == {"0/c/0", "0/zarr.json"}
    OUT.delete_below()
    assert objects(str(OUT)) == {}
    OUT.delete_below()


def test_deletes_volumes_in_it_before_their_voxels(s3):
    """A run's journal no longer tells of them when the root around them is gone."""
    names = ("a/0/c/0", "a/0/zarr.json", "a/zarr.json", "zarr.json")
    for name in names:
        (OUT / name).write_bytes(b"1")
    s3.fault = lambda one: Fault("status", 403) if s3.count(is_deletion) > 2 else None
    s3.requests.clear()
    with pytest.raises(PermissionError):
        OUT.delete_below()
    s3.fault = lambda one: None
    assert set(objects(str(OUT))) == {"a/0/c/0"}


def test_names_are_taken_as_they_are(s3):
    for name in ("a%20b", "a b", "a%2Fb"):
        obstore.put(connect(str(OUT)), name, b"1")
    assert [at.name for at in OUT.glob("*")] == ["a b", "a%20b", "a%2Fb"]
    OUT.delete_below()
    assert objects(str(OUT)) == {}


def test_of_many_one_creates(s3):
    at = OUT / "lease"
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: at.create(b"%d" % n), range(8))) == 1
    kept = at.read_bytes()
    assert at.create(kept)  # it may be what was written when the answer was lost
    assert not at.create(b"other")
    assert at.read_bytes() == kept


def test_uploads(s3, tmp_path):
    (tmp_path / "large").write_bytes(bytes(6 * 2**20) + b"end")
    OUT.upload(tmp_path / "large")
    assert OUT.read_bytes() == (tmp_path / "large").read_bytes()


def test_errors_are_those_of_a_disk(s3, monkeypatch):
    monkeypatch.setattr(access, "PATIENCE_S", 0.2)
    monkeypatch.setenv("AWS_SESSION_NAME", "another")  # so that it is connected anew
    s3.fault = lambda request: Fault("status", 503)
    with pytest.raises(OSError, match="503"):
        OUT.write_bytes(b"")
    s3.fault = lambda request: Fault("status", 403)
    for use in (OUT.read_bytes, OUT.exists, lambda: OUT.create(b"")):
        with pytest.raises(PermissionError, match="permission denied"):
            use()
