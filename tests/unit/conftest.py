"""What tests of several wings share: one Dask, small volumes, predictions, memory measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from distributed import LocalCluster

import volflow as vf
from tests import nets, relay
from tests.hostile_files import contents, make_files
from volflow.engine.cluster import connect
from volflow.engine.detached import hand_over
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

# What a script of `grown` begins with: growth above the resident size before a call.
GROWTH = """
import ctypes, gc, json, sys
from pathlib import Path
import volflow as vf
from volflow.engine.cluster import connect
from volflow.engine.pages import prepare_allocators

prepare_allocators(own=True)  # as the command line does: it keeps more than a session

def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def report_growth(plan, call):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    print(json.dumps({"growth": resident("VmHWM") - before, **plan.to_dict()}))
"""


@pytest.fixture(autouse=True)
def _no_trial_is_remembered():
    """Trial forwards of one test are not those of another, whose peaks may be made up."""
    if resident := sys.modules.get("volflow.model.resident"):
        for model in resident._residents.values():
            model.trials.clear()


@pytest.fixture
def grown(root):
    """Runs a script in a process of its own: its plan, and by how much the process grew."""

    def run(script, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH + script, *arguments],
            env={**os.environ, "PYTHONPATH": str(root)}, text=True, check=False,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def noise(tmp_path):
    """Stores noise of any size, a few shards at a time; returns its path."""

    def store(name, shape, dtype, shard, draw):
        volume = create(tmp_path / name, VolumeSpec.of(shape, dtype, Meta(), chunk=32, shard=shard))
        for low in range(0, shape[0], shard):
            roi = Roi((low, 0, 0), (min(shape[0], low + shard), *shape[1:]))
            volume.write(roi, draw(roi.shape).astype(dtype))
        return volume.path

    return store


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """What sound files of each kind hold, and damaged ones beside them, by name."""
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    return contents(folder)


@pytest.fixture
def folder(made, tmp_path, tmp_path_factory, monkeypatch):
    """These files in the current folder."""
    for name, data in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return tmp_path


@pytest.fixture(scope="session")
def s3_endpoint():
    """A store that speaks S3, in this process."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with relay.s3_in_memory() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint, monkeypatch, tmp_path):
    """A relay before that store, with the bucket ``bucket``, as the environment names it."""
    for name, value in relay.environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    relay.make_bucket(s3_endpoint, "bucket")
    with relay.relay(s3_endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made
    relay.empty(s3_endpoint, "bucket")


@pytest.fixture(scope="module")
def client():
    """One embedded Dask for all tests of a module."""
    with connect("threads") as client:
        yield client


@pytest.fixture(scope="module")
def local():
    """A scheduler that is spoken to over TCP, with one worker of one thread."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
        memory_limit=None, dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as local:  # fmt: skip
        yield local


@pytest.fixture
def address(local, monkeypatch):
    """Its address, as if it were in another process."""
    monkeypatch.setattr(hand_over, "require_lasting", lambda client: None)
    return local.scheduler_address


@pytest.fixture
def stored(tmp_path):
    """Stores an array as a volume in small chunks and shards."""

    def store(scan, name="scan.zarr", *, chunk=8, shard=16, **meta):
        axes = ("z", "y", "x") if scan.ndim == 3 else ("c", "z", "y", "x")
        volume = create(
            tmp_path / name,
            VolumeSpec.of(scan.shape, scan.dtype, Meta(axes, **meta), chunk=chunk, shard=shard),
        )
        volume.write(Roi.full(scan.shape), scan)
        return volume

    return store


@pytest.fixture
def predict(client, tmp_path):
    """`vf.predict` on the module's client, silent, into the test's folder."""

    def run(volume, model, out="out.zarr", **options):
        options = {"patch": 8, "chunk": 8, "shard": 8, "cluster": client} | options
        return vf.predict(volume, model, tmp_path / out, progress=False, **options)

    return run


@pytest.fixture
def scan():
    """A small scan without zeros."""
    return np.random.default_rng(1).random((14, 11, 17), "float32") + 0.1


@pytest.fixture
def calls():
    """Batch sizes of the forwards on data from here on."""
    nets.calls.clear()
    return nets.calls
