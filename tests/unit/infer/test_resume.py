"""An interrupted run goes on where it stopped; anything else than the same run is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
import torch

import volflow as vf
import volflow.infer.under_journal as under_journal
import volflow.model.imports as imports_module
from tests.nets import Named, Tiring, random_net
from tests.stores import files
from volflow.errors import InvalidInput, Locked, ResumeRefused, RunFailed
from volflow.infer.predict import plan_predict
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.unfinished.root import WITHHELD

SCAN = np.random.default_rng(0).random((40, 18, 20), "float32") + 0.1


@pytest.fixture
def volume(stored):
    return stored(SCAN)


@pytest.fixture
def tired(monkeypatch, calls):
    """Lets the models of these tests fail after so many forwards on data."""

    def after(forwards):
        calls.clear()
        monkeypatch.setattr(Tiring, "most", [forwards])

    yield after
    monkeypatch.setattr(Tiring, "most", [float("inf")])


def mtimes(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != WITHHELD)
    return {p: p.stat().st_mtime_ns for p in found}


def settings(folder):
    return json.loads((folder.with_name(folder.name + ".volflow") / "plan.json").read_text())[
        "settings"
    ]


class TestInterrupted:
    @pytest.mark.slow
    def test_goes_on_where_it_stopped(self, predict, volume, tired, calls, tmp_path):
        options = {"overlap": 0.5, "batch_size": 4}
        predict(volume, Tiring(random_net()), "whole.zarr", **options)
        whole = len(calls)
        tired(whole // 2)
        with pytest.raises(RunFailed, match="too tired"):
            predict(volume, Tiring(random_net()), **options)
        out = tmp_path / "out.zarr"
        done = Journal(journal_dir(out)).done()
        assert 0 < len(done) < 5
        before = mtimes(out)
        tired(float("inf"))
        predict(volume, Tiring(random_net()), **options)
        assert len(calls) < whole  # less than the whole work
        after = mtimes(out)
        assert {p: after[p] for p in before} == before
        assert files(out) == files(tmp_path / "whole.zarr")
        assert vf.verify(out).ok

    @pytest.mark.slow
    def test_with_several_outputs(self, predict, volume, tired, tmp_path):
        net = Named(Tiring(random_net()), random_net(channels_out=1, seed=3))
        predict(volume, net, "whole.zarr")
        tired(5)
        with pytest.raises(RunFailed):
            predict(volume, net)
        tired(float("inf"))
        predict(volume, net)
        assert files(tmp_path / "out.zarr") == files(tmp_path / "whole.zarr")

    @pytest.mark.slow
    def test_into_a_foreign_file(self, predict, volume, tired, tmp_path):
        tired(5)
        with pytest.raises(RunFailed):
            predict(volume, Tiring(random_net()), "seg.npy")
        assert not (tmp_path / "seg.npy").exists()
        tired(float("inf"))
        result = predict(volume, Tiring(random_net()), "seg.npy")
        assert np.array_equal(np.load(tmp_path / "seg.npy"), result[:])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "place",
        [
            "under_journal.create",
            "under_journal.run",
            "under_journal.targets_of",
            "prediction.begin_anew",
        ],
    )
    def test_even_if_killed_before_the_first_block(
        self, predict, volume, monkeypatch, tmp_path, place
    ):
        def killed(*args, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"volflow.infer.{place}", killed)
            with pytest.raises(KeyboardInterrupt):
                predict(volume, random_net())
        result = predict(volume, random_net())
        assert vf.verify(result.path).ok

    @pytest.mark.slow
    def test_some_volumes_of_several_may_be_missing(self, predict, volume, monkeypatch, tmp_path):
        create, made = under_journal.create, []

        def once(path, *args, **options):
            if made:
                raise KeyboardInterrupt
            made.append(path)
            return create(path, *args, **options)

        net = Named(random_net(), random_net(channels_out=1))
        with monkeypatch.context() as patch:
            patch.setattr(under_journal, "create", once)
            with pytest.raises(KeyboardInterrupt):
                predict(volume, net)
        results = predict(volume, net)
        assert set(results) == {"seg", "edge"}
        assert vf.verify(tmp_path / "out.zarr").ok


class TestDone:
    @pytest.mark.slow
    def test_is_returned_at_once(self, predict, volume, calls, tmp_path):
        predict(volume, Tiring(random_net()), normalize="zscore")
        before = mtimes(tmp_path / "out.zarr")
        calls.clear()
        result = predict(volume, Tiring(random_net()), normalize="zscore")
        assert calls == []
        assert mtimes(tmp_path / "out.zarr") == before
        assert result.shape == (2, *SCAN.shape)

    @pytest.mark.slow
    def test_does_not_even_try_the_model(self, predict, volume):
        predict(volume, Tiring(random_net()))

        def never(*args):
            raise AssertionError("a trial forward")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("volflow.infer.patches.method.decide", never)
            predict(volume, Tiring(random_net()))

    @pytest.mark.slow
    def test_of_a_file_that_was_converted(self, predict, calls, tmp_path):
        np.save(tmp_path / "scan.npy", SCAN)
        predict(tmp_path / "scan.npy", Tiring(random_net()))
        calls.clear()
        before = mtimes(tmp_path)
        predict(tmp_path / "scan.npy", Tiring(random_net()))
        changed = {p.name for p, t in mtimes(tmp_path).items() if before.get(p) != t}
        assert changed <= {"lock"}
        assert calls == []


class TestAdopted:
    @pytest.mark.slow
    def test_blocks_batch_and_threads_are_those_of_the_first_run(
        self, predict, volume, tired, tmp_path
    ):
        options = {"overlap": 0.5, "chunk": None, "shard": None}
        predict(volume, Tiring(random_net()), "whole.zarr", batch_size=3, memory="1GiB", **options)
        tired(20)
        with pytest.raises(RunFailed):
            predict(volume, Tiring(random_net()), batch_size=3, memory="1GiB", **options)
        first = settings(tmp_path / "out.zarr")
        tired(float("inf"))
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            predict(volume, Tiring(random_net()), memory="80MiB", **options)
        finally:
            torch.set_num_threads(threads)
        assert settings(tmp_path / "out.zarr") == first
        assert first["batch_size"] == 3
        assert first["threads"] == threads
        assert files(tmp_path / "out.zarr") == files(tmp_path / "whole.zarr")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 5}, "started with batch_size 2, now 5; leave batch_size out to resume"),
            ({"precision": "bfloat16"}, "started with precision 'float32', now 'bfloat16'"),
            ({"device": "cuda"}, "started with device 'cpu', now 'cuda'"),
            ({"chunk": 4}, r"started with chunk \(8, 8, 8\), now \(4, 4, 4\)"),
            ({"shard": 16}, r"started with shard \(8, 8, 8\), now \(16, 16, 16\)"),
        ],
    )
    def test_what_contradicts_them_is_refused(self, predict, volume, change, message):
        predict(volume, random_net(), batch_size=2)
        with pytest.raises(ResumeRefused, match=message):
            predict(volume, random_net(), **{"batch_size": 2} | change)

    @pytest.mark.slow
    def test_the_same_said_again_is_fine(self, predict, volume):
        options = {"batch_size": 2, "precision": "float32", "device": "cpu", "chunk": (8, 8, 8)}
        predict(volume, random_net(), **options)
        predict(volume, random_net(), **options)


class TestRefused:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"overlap": 0.5}, r"options.overlap: 0.25 → 0.5"),
            ({"patch": (8, 8, 9)}, r"options.patch: \[8, 8, 8\] → \[8, 8, 9\]"),
            ({"blend": "hann"}, "options.blend: gaussian → hann"),
            ({"activation": "softmax"}, "options.activation: null → softmax"),
            ({"normalize": "zscore"}, "options.normalize: null → zscore"),
            ({"flips": "x"}, "options.flips:"),
            ({"padding": "edge"}, "options.padding"),
            ({"skip_below": 0.5}, "options.skip_below: null → 0.5"),
            ({"fill": 1}, "options.fill: 0 → 1"),
            ({"dtype": "float16"}, "options.dtype: null → float16"),
            ({"mask": np.ones(SCAN.shape, "u1")}, "mask: null → "),
        ],
    )
    def test_changed_settings_are_named(self, predict, volume, calls, tmp_path, change, message):
        predict(volume, Tiring(random_net()))
        before = mtimes(tmp_path / "out.zarr")
        calls.clear()
        with pytest.raises(ResumeRefused, match=message) as refused:
            predict(volume, Tiring(random_net()), **change)
        assert "overwrite=True, --overwrite" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert calls == []
        assert mtimes(tmp_path / "out.zarr") == before

    @pytest.mark.slow
    def test_changed_weights(self, predict, volume):
        predict(volume, random_net(seed=0))
        with pytest.raises(
            ResumeRefused, match=r"different inputs or settings: weights: \w{8}… → "
        ):
            predict(volume, random_net(seed=1))

    @pytest.mark.slow
    def test_a_result_of_the_version_before_opens_and_verifies_and_is_not_resumed(
        self, predict, volume, tmp_path
    ):
        predict(volume, random_net())
        plan = journal_dir(tmp_path / "out.zarr") / "plan.json"
        saved = json.loads(plan.read_text())
        for name in ("code", "packages"):  # which it did not know yet
            del saved["fingerprint"][name]
        plan.write_text(json.dumps({**saved, "fingerprint": saved["fingerprint"] | {"version": 1}}))
        assert vf.verify(tmp_path / "out.zarr").ok
        assert vf.open(tmp_path / "out.zarr")[:].any()
        message = (
            r"out.zarr was started by a volflow whose predict gives other values \(version 1, now "
        )
        with pytest.raises(ResumeRefused, match=message):
            predict(volume, random_net())
        assert predict(volume, random_net(), overwrite=True)[:].any()

    @pytest.mark.slow
    def test_another_version_of_a_package(self, predict, volume, monkeypatch):
        predict(volume, random_net())
        monkeypatch.setattr(imports_module, "_versions", lambda name: {name: "9.9"})
        with pytest.raises(
            ResumeRefused, match=rf"packages.torch: {re.escape(version('torch'))} → 9.9"
        ):
            predict(volume, random_net())

    def test_changed_code(self, predict, volume):
        def one(batch):
            return batch * 2

        def other(batch):
            return batch * 3

        predict(volume, one)
        with pytest.raises(ResumeRefused, match="weights: "):
            predict(volume, other)

    @pytest.mark.slow
    def test_changed_voxels(self, predict, volume, stored, tmp_path):
        predict(volume, random_net())
        volume.write(vf.Roi((0, 0, 0), (16, 16, 16)), SCAN[:16, :16, :16] + 1)
        with pytest.raises(ResumeRefused, match="different inputs or settings: input: "):
            predict(volume, random_net())

    def test_the_output_of_another_operation(self, predict, tmp_path):
        vf.convert(SCAN, tmp_path / "out.zarr", progress=False)
        with pytest.raises(InvalidInput, match=r"is not one of predict .*; use overwrite=True"):
            predict(SCAN[1:], random_net())

    @pytest.mark.slow
    def test_a_damaged_journal(self, predict, volume, tmp_path):
        predict(volume, random_net())
        (tmp_path / "out.zarr.volflow" / "plan.json").write_text('{"format": 1, "sett')
        with pytest.raises(InvalidInput, match=r"plan.json cannot be used: it is damaged; restore"):
            predict(volume, random_net())
        assert vf.verify(predict(volume, random_net(), overwrite=True).path).ok

    @pytest.mark.slow
    def test_overwriting_begins_anew(self, predict, volume, calls, tmp_path):
        predict(volume, random_net(), blend="hann", shard=16)
        calls.clear()
        predict(volume, Tiring(random_net()), "out.zarr", overwrite=True)
        predict(volume, Tiring(random_net()), "new.zarr")
        assert calls
        assert files(tmp_path / "out.zarr") == files(tmp_path / "new.zarr")
        assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == [
            "out.zarr", "out.zarr.volflow",
        ]  # fmt: skip

    @pytest.mark.slow
    def test_what_is_refused_leaves_the_old_output(self, predict, volume, tmp_path):
        predict(volume, random_net())
        before = mtimes(tmp_path / "out.zarr")
        with pytest.raises(InvalidInput):
            predict(volume, random_net(channels_in=3), overwrite=True)
        with pytest.raises(InvalidInput):
            predict(volume, random_net(), overwrite=True, memory="1MiB")
        assert mtimes(tmp_path / "out.zarr") == before
        predict(volume, random_net())
        assert mtimes(tmp_path / "out.zarr") == before


DRIVER = """
import sys, volflow as vf
from tests.nets import Slow, random_net
if __name__ == "__main__":
    options = {"patch": 8, "chunk": 8, "shard": 8, "progress": False}
    vf.predict(sys.argv[1], Slow(random_net()), sys.argv[2], **options)
"""


@pytest.mark.slow
def test_a_second_driver_is_refused(predict, volume, tmp_path, root):
    out = tmp_path / "out.zarr"
    first = subprocess.Popen(
        [sys.executable, "-c", DRIVER, volume.path, str(out)],
        env={**os.environ, "PYTHONPATH": str(root), "VOLFLOW_TEST_SLEEP": "0.5"},
    )  # fmt: skip
    try:
        lock = journal_dir(out) / "lock"
        deadline = time.monotonic() + 120
        while not (out.exists() and lock.exists() and lock.read_text()):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.05)
        with pytest.raises(Locked, match=rf"is being written by process {first.pid} on ") as locked:
            predict(volume, random_net())
        assert locked.value.exit_code == 4
        with pytest.raises(Locked):
            predict(volume, random_net(), overwrite=True)
        with pytest.raises(Locked):
            vf.verify(out)
        assert first.poll() is None
        vf.plan_predict(volume, random_net(), tmp_path / "other.zarr", patch=8)
    finally:
        first.kill()
        first.wait()
    # The lock went with its process.
    assert vf.verify(predict(volume, random_net(), overwrite=True).path).ok


def test_the_plan_of_what_was_begun_otherwise_is_refused_as_the_run_is(
    predict, volume, client, tmp_path
):
    predict(volume, random_net())
    options = {"patch": 8, "chunk": 8, "shard": 8, "cluster": client}
    assert plan_predict(volume, random_net(), tmp_path / "out.zarr", **options).blocks == 0
    for other in ({"overlap": 0.5}, {"output": "classes"}, {"normalize": "zscore"}):
        with pytest.raises(ResumeRefused, match=next(iter(other))):
            plan_predict(volume, random_net(), tmp_path / "out.zarr", **options, **other)
    with pytest.raises(ResumeRefused, match="weights"):
        plan_predict(volume, random_net(seed=7), tmp_path / "out.zarr", **options)
