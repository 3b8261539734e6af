"""Outputs on an object store: the same objects as files, written once, resumed, verified."""

from __future__ import annotations

from collections import Counter

import numpy as np
import obstore
import pytest
import torch

import volflow as vf
from tests.nets import random_net
from tests.relay import Fault, objects
from tests.stores import files, store
from volflow.engine.observing.run_facts import run_facts
from volflow.errors import InvalidInput, Locked, RunFailed
from volflow.store.journal.complete import open_complete
from volflow.store.journal.journal import Record, journal_of
from volflow.store.remote.access import connect
from volflow.store.remote.address import Address

OUT = "s3://bucket/results/out.zarr"
SCAN = np.random.default_rng(0).integers(1, 999, (24, 20, 18), "u2")


@pytest.fixture
def convert(client, s3):
    def run(source=SCAN, out=OUT, **options):
        options = {"chunk": 8, "shard": 16, "progress": False, "cluster": client} | options
        return vf.convert(source, out, **options)

    return run


@pytest.fixture
def predicted(client, s3, tmp_path):
    """`vf.predict` of the scan, silent."""
    scan = store(tmp_path / "scan.zarr", SCAN)

    def run(out=OUT, net=None, **options):
        options = {
            "patch": 8,
            "chunk": 8,
            "shard": 16,
            "blend": "crop",
            "cluster": client,
        } | options
        return vf.predict(scan, net or random_net(), out, progress=False, **options)

    return run


def lost(url, *keys):
    for key in keys:
        obstore.delete(connect(url), key)


class TestConvert:
    @pytest.mark.slow
    def test_writes_what_a_folder_holds(self, convert, tmp_path):
        there, here = convert(), convert(out=tmp_path / "out.zarr")
        assert there.path == OUT
        assert objects(OUT) == files(tmp_path / "out.zarr")
        assert journal_of(OUT).done() == journal_of(tmp_path / "out.zarr").done()
        np.testing.assert_array_equal(there[:], here[:])

    @pytest.mark.slow
    def test_writes_each_shard_once_and_leaves_no_session_and_a_released_lease(self, convert, s3):
        convert()
        puts = Counter(one.path for one in s3.requests if one.method == "PUT")
        assert {n for path, n in puts.items() if "/c/" in path} == {1}
        assert sum("/c/" in path for path in puts) == 8
        kept = {key.split("/")[0].partition("-")[0] for key in objects(f"{OUT}.volflow")}
        assert kept == {"plan.json", "done", "lease"}

    @pytest.mark.slow
    def test_a_block_costs_eight_requests(self, convert, s3):
        """Five looks at its record and the session, two writes; at the border a shard is read."""
        convert(SCAN[:16])
        few = s3.count()
        Address("s3://bucket/results").delete_below()
        s3.requests.clear()
        convert()
        assert s3.count() - few <= 4 * 8

    @pytest.mark.slow
    def test_goes_on_where_it_stopped(self, convert, s3):
        convert()
        whole = objects(OUT)
        journal_of(OUT).forget([3, 5])
        lost(OUT, "0/c/0/1/1")
        s3.requests.clear()
        convert()
        assert objects(OUT) == whole
        assert s3.count(lambda one: one.method == "PUT" and "/c/" in one.path) == 2
        s3.requests.clear()
        convert()
        assert s3.count(lambda one: "/c/" in one.path) == 0

    @pytest.mark.slow
    def test_another_input_is_refused_unless_asked_for(self, convert):
        convert()
        with pytest.raises(InvalidInput, match="different inputs or settings: input: "):
            convert(SCAN + np.uint16(1))
        again = convert(SCAN[:10] + np.uint16(1), overwrite=True)
        np.testing.assert_array_equal(again[:], SCAN[:10] + np.uint16(1))
        assert len(objects(OUT)) == 2 + 4

    @pytest.mark.slow
    def test_a_deletion_that_was_cut_off_is_finished(self, convert):
        convert()
        lost(OUT, "zarr.json")  # as a process does that is killed while it begins anew
        with pytest.raises(InvalidInput, match="is not a Zarr array or group"):
            vf.open(OUT)
        np.testing.assert_array_equal(convert()[:], SCAN)

    def test_what_is_no_volume_is_never_deleted(self, convert, s3):
        Address(f"{OUT}/thesis.tex").write_bytes(b"all of it")
        for overwrite in (False, True):
            with pytest.raises(InvalidInput, match="holds objects and is not a Zarr image"):
                convert(overwrite=overwrite)
        assert objects(OUT) == {"thesis.tex": b"all of it"}

    def test_nor_where_a_journal_was_left_beside_it(self, convert):
        """As after an output was deleted by hand, and its name used for something else."""
        with journal_of(OUT).lock():
            journal_of(OUT).begin(Record("convert", {"input": "x"}, {"grid": [1, 1, 1]}))
        Address(f"{OUT}/thesis.tex").write_bytes(b"all of it")
        Address(f"{OUT}/0/zarr.json").write_bytes(b"{}")
        for overwrite in (False, True):
            with pytest.raises(InvalidInput, match="holds objects and is not a Zarr image"):
                convert(overwrite=overwrite)
        assert objects(OUT)["thesis.tex"] == b"all of it"

    @pytest.mark.parametrize(
        "same",
        [
            f"{OUT}/",
            OUT.replace("s3:", "s3a:"),
            OUT.replace("out", "o%75t"),
            OUT.replace("results", "results/old/.."),
            f"{OUT}?versionId=3",
        ],
    )
    def test_onto_itself_is_refused(self, convert, same):
        with pytest.raises(InvalidInput, match="would replace its own input"):
            convert(same, overwrite=True)

    @pytest.mark.slow
    def test_of_a_dask_array(self, client, s3):
        import dask.array as da

        array = da.from_array(SCAN, chunks=(16, 20, 18))
        made = vf.write(array, OUT, chunk=8, shard=16, cluster=client, progress=False)
        np.testing.assert_array_equal(made[:], SCAN)

    @pytest.mark.slow
    def test_as_labels_and_back(self, convert):
        assert convert(labels=True).meta.kind == "classes"
        assert convert(labels=False).meta.kind == "image"

    @pytest.mark.slow
    def test_a_failing_write_is_repeated_by_the_same_command(self, convert, s3, monkeypatch):
        s3.fault = lambda one: (
            Fault("status", 403) if one.method == "PUT" and one.path.endswith("/c/1/1/1") else None
        )
        with pytest.raises(RunFailed, match=r"block 7 \[16:24"):
            convert()
        with pytest.raises(InvalidInput, match="is not complete: 7 of 8 blocks are done"):
            open_complete(OUT)
        s3.fault = lambda one: None
        np.testing.assert_array_equal(convert()[:], SCAN)


class TestPredict:
    @pytest.mark.slow
    def test_writes_what_a_folder_holds(self, predicted, tmp_path):
        predicted(), predicted(tmp_path / "out.zarr")
        assert objects(OUT) == files(tmp_path / "out.zarr")

    @pytest.mark.slow
    def test_goes_on_where_it_stopped(self, predicted, calls):
        class Counting(torch.nn.Module):
            def forward(self, x):
                calls.append(len(x))
                return x

        predicted(net=Counting())
        whole = objects(OUT)
        calls.clear()
        predicted(net=Counting())
        assert calls == []
        journal_of(OUT).forget([0])
        predicted(net=Counting())
        assert calls
        assert objects(OUT) == whole

    @pytest.mark.slow
    def test_outputs_by_name_and_levels(self, predicted, tmp_path):
        class Two(torch.nn.Module):
            def forward(self, x):
                return {"a": x, "b": -x}

        predicted(net=Two(), levels=True), predicted(tmp_path / "out.zarr", net=Two(), levels=True)
        assert objects(OUT) == files(tmp_path / "out.zarr")
        assert vf.verify(OUT).ok

    @pytest.mark.slow
    def test_inputs_are_converted_beside_it(self, client, s3, tmp_path):
        np.save(tmp_path / "scan.npy", SCAN)
        made = vf.predict(
            tmp_path / "scan.npy", torch.nn.Identity(), OUT, patch=8, blend="crop",
            chunk=8, shard=16, cluster=client, progress=False,
        )  # fmt: skip
        np.testing.assert_array_equal(made[0], SCAN)
        assert "input.zarr/zarr.json" in objects(f"{OUT}.volflow")

    @pytest.mark.parametrize(
        ("out", "options", "why"),
        [
            (OUT, {"blend": "exact", "patch": None}, 'blend="exact" keeps activations beside'),
            ("s3://bucket/seg.nii.gz", {}, r"is a file, .*predict s3://bucket/seg\.zarr and"),
            ("https://example.org/out.zarr", {}, "can be read but not written"),
            ("s3://buckte/out.zarr", {}, "cannot be used: the bucket does not exist"),
        ],
    )
    def test_refusals(self, predicted, s3, out, options, why):
        with pytest.raises(InvalidInput, match=why):
            predicted(out, **options)
        assert s3.count(lambda one: one.method == "PUT") == 0


class TestAfterwards:
    @pytest.mark.slow
    def test_verify_finds_a_damaged_shard_and_the_same_command_repairs_it(self, convert):
        convert()
        assert vf.verify(OUT).ok
        whole = objects(OUT)
        shard = bytearray(whole["0/c/1/1/1"])
        shard[-20] ^= 1
        obstore.put(connect(OUT), "0/c/1/1/1", bytes(shard))
        obstore.put(connect(OUT), "0/c/0/0/0", whole["0/c/0/0/1"])
        lost(OUT, "0/c/0/1/0")
        found = vf.verify(OUT)
        assert [block for block, _ in found.bad] == [0, 2, 7]
        convert()
        assert objects(OUT) == whole
        assert vf.verify(OUT).ok

    @pytest.mark.slow
    def test_it_is_refused_while_it_is_repaired(self, convert, s3):
        convert()
        journal_of(OUT).forget([3])
        seen = []

        def look(request):
            if request.method == "PUT" and "/c/" in request.path:
                try:
                    vf.open(OUT)
                except InvalidInput as error:
                    seen.append(str(error))

        s3.fault = look
        convert()
        assert len(seen) == 1
        assert seen[0].startswith(f"{OUT} is not complete: 7 of 8 blocks are done")
        np.testing.assert_array_equal(vf.open(OUT)[:], SCAN)

    @pytest.mark.slow
    def test_verify_takes_no_outage_for_damage(self, convert, s3):
        convert()
        for part, kind in (("/c/", InvalidInput), ("/0/zarr.json", RunFailed)):
            s3.fault = lambda one, part=part: Fault("status", 403) if part in one.path else None
            with pytest.raises(kind, match="cannot be read: permission denied"):
                vf.verify(OUT)
        s3.fault = lambda one: None
        assert vf.verify(OUT).ok

    @pytest.mark.slow
    def test_levels(self, convert, client, tmp_path):
        vf.pyramid(convert(), levels=2, cluster=client, progress=False)
        here = convert(out=tmp_path / "out.zarr")
        made = vf.pyramid(here, levels=2, cluster=client, progress=False)
        assert len(made.levels) == 3
        assert objects(OUT) == files(tmp_path / "out.zarr")
        assert vf.verify(OUT).ok
        vf.pyramid(OUT, levels=1, cluster=client, progress=False)
        assert not any(key.startswith("2/") for key in objects(OUT))
        assert len(vf.open(OUT).levels) == 2

    @pytest.mark.slow
    def test_export_sends_the_file(self, convert, tmp_path):
        made, file = convert(), "s3://bucket/out.nii.gz"
        assert vf.export(made, file) == Address(file)
        vf.export(made, tmp_path / "out.nii.gz")
        assert Address(file).read_bytes() == (tmp_path / "out.nii.gz").read_bytes()
        assert vf.export(made, file) == Address(file)  # left alone
        with pytest.raises(InvalidInput, match="exists; choose another name"):
            vf.export(SCAN, file)
        with pytest.raises(InvalidInput, match="names no format"):
            vf.export(made, "s3://bucket/out.xyz")

    @pytest.mark.slow
    def test_state(self, convert, s3):
        convert()
        assert (run_facts(OUT)["state"], run_facts(OUT)["done"]) == ("done", 8)
        journal = journal_of(OUT)
        journal.forget([4])
        assert run_facts(OUT)["state"] == "stopped"
        with journal.lock():
            facts = run_facts(OUT)
            assert (facts["state"], facts["holder"]["alive"]) == ("running", True)
        with pytest.raises(InvalidInput, match="has no journal"):
            run_facts("s3://bucket/other.zarr")

    @pytest.mark.slow
    def test_an_unfinished_one_is_no_input(self, convert, tmp_path):
        convert()
        journal_of(OUT).forget([4])
        with pytest.raises(InvalidInput, match="is not complete: 7 of 8 blocks are done"):
            vf.convert(OUT, tmp_path / "copy.zarr", progress=False)

    @pytest.mark.slow
    def test_two_drivers(self, convert):
        convert()
        with (
            journal_of(OUT).lock(),
            pytest.raises(Locked),
        ):
            convert()


@pytest.mark.slow
def test_a_volume_appears_whole(s3, client):
    """A run that was killed before its volume was made begins it again."""
    journal = journal_of(OUT)
    with journal.lock():
        journal.begin(Record("convert", {"input": "x"}, {"grid": [1, 1, 1]}))
    made = vf.convert(SCAN, OUT, chunk=8, shard=16, cluster=client, progress=False)
    np.testing.assert_array_equal(made[:], SCAN)
