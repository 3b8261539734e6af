"""A real S3 gateway, named by VOLFLOW_TEST_S3: outages, refusals, changed objects.

The gateway's keys are those that the environment holds. Such as
``VOLFLOW_TEST_S3=http://127.0.0.1:10050 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import numpy as np
import pytest

import volflow as vf
from tests.relay import Fault, empty, make_bucket, objects, relay, upload
from tests.stores import files, store
from volflow.errors import InvalidInput
from volflow.store.journal.journal import journal_of

pytestmark = pytest.mark.nightly
ENDPOINT = os.environ.get("VOLFLOW_TEST_S3", "")
OUTAGE_S = 20


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """A relay before the gateway."""
    if not ENDPOINT:
        pytest.skip("VOLFLOW_TEST_S3 names no gateway")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_bucket(ENDPOINT, "volflow-test")
    with relay(ENDPOINT) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made
    empty(ENDPOINT, "volflow-test")


@pytest.fixture
def scan(tmp_path):
    values = np.random.default_rng(0).integers(0, 999, (160, 128, 96), "u2")
    return store(tmp_path / "scan.zarr", values, spacing=(2, 1, 1), unit="millimeter")


@pytest.mark.parametrize("how", ["503", "silence"])
def test_an_outage_of_20_s_is_survived(s3, scan, tmp_path, how, capsys):
    from tests.nets import random_net

    url, begun = upload(scan, "s3://volflow-test/scan.zarr"), []

    def out_of_order(request):
        """The tenth read of voxels, and everything for 20 s from then on, fails."""
        if not begun and s3.count(lambda one: one.voxels) > 10:
            begun.append(time.monotonic())
        down = begun and time.monotonic() < begun[0] + OUTAGE_S
        return (Fault("status", 503) if how == "503" else Fault("reset")) if down else None

    options = {"patch": 32, "blend": "crop", "progress": False, "cluster": "threads"}
    net = random_net()
    vf.predict(scan, net, tmp_path / "quiet.zarr", **options)
    s3.fault = out_of_order
    vf.predict(url, net, tmp_path / "out.zarr", **options)
    assert begun
    assert time.monotonic() > begun[0] + OUTAGE_S
    assert files(tmp_path / "out.zarr") == files(tmp_path / "quiet.zarr")
    with capsys.disabled():
        blocks = len(list((tmp_path / "out.zarr.volflow" / "done").glob("*.json")))
        reads = s3.count(lambda one: one.voxels)
        print(f" {reads} reads of voxels for {blocks} blocks, those that failed included")  # noqa: T201


@pytest.mark.parametrize("how", ["503", "silence"])
def test_all_of_a_journey_on_the_store_survives_an_outage(s3, tmp_path, how, capsys):
    """Convert, predict, levels, verify and export, on the store, as in a folder."""
    from tests.nets import random_net

    values = np.random.default_rng(0).integers(0, 999, (160, 128, 96), "u2")
    net, begun = random_net(), []
    layout = {"chunk": 16, "shard": 32, "progress": False, "cluster": "threads"}
    options = {**layout, "patch": 32, "blend": "crop", "output": "classes", "levels": True}

    def journey(place):
        vf.convert(values, f"{place}/scan.zarr", **layout)
        vf.predict(f"{place}/scan.zarr", net, f"{place}/seg.zarr", **options)
        assert vf.verify(f"{place}/seg.zarr").ok
        vf.export(f"{place}/seg.zarr", f"{place}/seg.nii.gz")

    def out_of_order(request):
        """From the tenth shard of the prediction on, everything fails for 20 s."""
        shards = s3.count(lambda one: one.method == "PUT" and "seg.zarr/0/c/" in one.path)
        if not begun and shards == 10:
            begun.append(time.monotonic())
        down = begun and time.monotonic() < begun[0] + OUTAGE_S
        return (Fault("status", 503) if how == "503" else Fault("reset")) if down else None

    journey(tmp_path)
    s3.fault = out_of_order
    journey("s3://volflow-test/case")
    assert begun
    assert time.monotonic() > begun[0] + OUTAGE_S
    there = objects("s3://volflow-test/case")
    for name in ("scan.zarr", "seg.zarr"):
        kept = {key: data for key, data in there.items() if key.startswith(f"{name}/")}
        assert kept == {f"{name}/{key}": data for key, data in files(tmp_path / name).items()}
    assert there["seg.nii.gz"] == (tmp_path / "seg.nii.gz").read_bytes()
    s3.fault = lambda request: None
    s3.requests.clear()
    vf.convert(values, "s3://volflow-test/counted.zarr", **layout)
    blocks = len(journal_of("s3://volflow-test/counted.zarr").done())
    with capsys.disabled():
        kinds = Counter(one.method for one in s3.requests)
        print(f" {dict(kinds)} requests for a conversion in {blocks} blocks")  # noqa: T201


def test_a_changed_object_is_noticed(s3, scan, tmp_path):
    url = upload(scan, "s3://volflow-test/scan.zarr")
    vf.convert(url, tmp_path / "copy.zarr", progress=False)
    other = store(tmp_path / "other.zarr", vf.open(scan)[:] + np.uint16(1))
    upload(other, url)
    with pytest.raises(InvalidInput, match="different inputs or settings: input: "):
        vf.convert(url, tmp_path / "copy.zarr", progress=False)


def test_slips(s3, scan, monkeypatch):
    url = upload(scan, "s3://volflow-test/scan.zarr")
    with pytest.raises(InvalidInput, match="the bucket does not exist"):
        vf.open("s3://volflow-tset/scan.zarr")
    with pytest.raises(InvalidInput, match="is not a Zarr array or group"):
        vf.open("s3://volflow-test/nacs.zarr")
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(InvalidInput, match=r"cannot be opened: permission denied \(403"):
            vf.open(url)


def test_reads_while_others_fail(s3, scan):
    """A tenth of all requests fails in one way or another."""
    url = upload(scan, "s3://volflow-test/scan.zarr")
    kinds = [Fault("status", 500), Fault("status", 503), Fault("reset"), Fault("truncate")]
    lock, count = threading.Lock(), [0]

    def now_and_then(request):
        with lock:
            count[0] += 1
            return kinds[count[0] // 10 % 4] if count[0] % 10 == 0 else None

    s3.fault = now_and_then
    np.testing.assert_array_equal(vf.open(url).dask().compute(), vf.open(scan)[:])
