"""Predictions that their cluster drives: the same bytes, the same refusals, the same words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client

import volflow as vf
from tests import relay
from tests.nets import Named, random_net
from tests.stores import files
from volflow.cli import run
from volflow.engine.clusters import sight
from volflow.engine.time_limit import time_limit
from volflow.errors import InvalidInput, Locked, TimeUp

OPTIONS = {"patch": 8, "chunk": 8, "shard": 8, "batch_size": 2}


@pytest.fixture
def away(address, monkeypatch, tmp_path):
    """Detaches a prediction."""
    monkeypatch.chdir(tmp_path)

    def run(volume, model, out="out.zarr", **options):
        return vf.predict(volume, model, out, cluster=address, detach=True, **OPTIONS | options)

    return run


class TestSame:
    @pytest.mark.slow
    def test_as_without_it_also_by_relative_paths(self, away, stored, scan, tmp_path):
        volume, net = stored(scan), random_net()
        result = away("scan.zarr", net).result()
        assert isinstance(result, vf.Volume)
        vf.predict(volume, net, "here.zarr", progress=False, **OPTIONS)
        assert files(tmp_path / "out.zarr") == files(tmp_path / "here.zarr")

    @pytest.mark.slow
    def test_the_same_call_without_it_has_nothing_to_do(self, away, stored, scan, calls):
        volume, net = stored(scan), random_net()
        away(volume, net).result()
        done = {p: p.stat().st_mtime_ns for p in Path("out.zarr").rglob("*") if p.is_file()}
        vf.predict("scan.zarr", net, "out.zarr", progress=False, **OPTIONS)
        assert {p: p.stat().st_mtime_ns for p in done} == done

    @pytest.mark.slow
    def test_arrays_travel_and_files_are_written(self, away, scan, tmp_path):
        mask = (scan > 0.5).astype("uint8")
        away(scan, torch.nn.Identity(), "out.npy", mask=mask, blend="crop").result()
        here = vf.predict(
            scan, torch.nn.Identity(), "here.npy", mask=mask, blend="crop", progress=False,
            **OPTIONS,
        )  # fmt: skip
        assert np.array_equal(np.load("out.npy"), here[:])

    @pytest.mark.slow
    def test_overwriting(self, away, scan):
        first = away(scan, random_net()).result()[:]
        again = away(scan, random_net(seed=1), overwrite=True)
        assert not np.array_equal(again.result()[:], first)

    @pytest.mark.slow
    @pytest.mark.usefixtures("s3")
    def test_on_a_store(self, away, scan, tmp_path, capsys):
        out = "s3://bucket/out.zarr"
        net = torch.nn.Identity()
        found = away(scan[:8], net, out)
        assert found.result().path == out
        assert vf.DetachedRun.of(out) == found
        vf.predict(scan[:8], net, "here.zarr", progress=False, **OPTIONS)
        assert relay.objects(out) == files(tmp_path / "here.zarr")
        assert run(["status", out, "--json"]) == 0
        (facts,) = json.loads(capsys.readouterr().out)["outputs"]
        assert (facts["state"], facts["detached"]["key"]) == ("done", found.key)
        assert run(["cancel", out]) == 0
        assert "had ended already (done)" in capsys.readouterr().out

    @pytest.mark.slow
    def test_several_inputs_and_outputs(self, away, stored, scan):
        stored(scan, "a.zarr"), stored(scan + 1, "b.zarr")
        net = Named(random_net(channels_in=2), random_net(channels_in=2, channels_out=1))
        result = away({"t1": "a.zarr", "t2": "b.zarr"}, net).result()
        assert {name: one.shape[0] for name, one in result.items()} == {"seg": 2, "edge": 1}

    @pytest.mark.slow
    def test_the_time_limit_travels(self, away, scan):
        with time_limit(after=1e-3), pytest.raises(TimeUp):
            away(scan, random_net())
        with time_limit(after="8h"):
            away(scan, random_net()).result()


class TestRefused:
    def test_before_anything_is_handed_over(self, away, stored, scan, tmp_path):
        volume = stored(scan)
        with pytest.raises(InvalidInput, match="memory"):
            away(volume, random_net(), memory="1KiB")
        assert not (tmp_path / "out.zarr.volflow").exists()

    def test_a_cluster_that_ends_with_this_process(self, stored, scan, tmp_path):
        with pytest.raises(InvalidInput, match="detach needs a cluster that outlives this process"):
            vf.predict(stored(scan), random_net(), tmp_path / "out.zarr", patch=8, detach=True)

    @pytest.mark.usefixtures("s3")
    def test_a_store_that_workers_cannot_write_to(self, away, stored, scan, monkeypatch):
        monkeypatch.setattr(sight, "unwritable", lambda out: f"{out}: permission denied")
        with pytest.raises(InvalidInput) as refused:
            away(stored(scan), random_net(), "s3://bucket/out.zarr")
        assert (
            "on 127.0.0.1 cannot write to the store, which this process does:"
            " s3://bucket/out.zarr: permission denied; its environment needs what leads there"
        ) in str(refused.value)
        assert relay.objects("s3://bucket") == {}

    def test_what_watches_this_process(self, away, stored, scan, tmp_path):
        volume = stored(scan)
        with pytest.raises(InvalidInput, match=r"progress cannot be a function .*status\(\)$"):
            away(volume, random_net(), progress=print)
        refused = pytest.raises(InvalidInput, match=r"use volflow status OUT --metrics FILE$")
        with vf.observe(metrics=tmp_path / "a.prom"), refused:
            away(volume, random_net())

    def test_an_output_that_another_run_holds(self, away, stored, scan, tmp_path):
        from volflow.store.journal.journal import Journal, journal_dir

        out = tmp_path / "out.zarr"
        with Journal(journal_dir(out)).lock(), pytest.raises(Locked):
            away(stored(scan), random_net())


class TestCommand:
    WORDS = ("--model", "torch.nn:Identity", "--patch", "8", "--memory", "1GiB", "--detach")

    def test_says_where_to_look(self, away, address, stored, scan, capsys):
        stored(scan)
        assert run(["predict", "scan.zarr", "out.zarr", "--cluster", address, *self.WORDS]) == 0
        line = capsys.readouterr().out
        assert line.startswith("detached as predict-out.zarr-")
        assert line.endswith("; volflow status out.zarr says how far it is\n")
        key = line.split()[2].rstrip(";")
        with Client(address, set_as_default=False) as client:
            vf.DetachedRun("out.zarr", key, client).result()
        assert run(["status", "out.zarr", "--json"]) == 0
        (facts,) = json.loads(capsys.readouterr().out)["outputs"]
        assert (facts["state"], facts["detached"]["key"]) == ("done", key)

    def test_refusals_are_one_line(self, stored, scan, capsys, monkeypatch, tmp_path):
        stored(scan)
        monkeypatch.chdir(tmp_path)
        assert run(["predict", "scan.zarr", "out.zarr", *self.WORDS]) == 2
        assert capsys.readouterr().err.startswith("volflow: detach needs a cluster that outlives")
