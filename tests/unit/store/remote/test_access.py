"""Volumes on an object store: the same voxels in few requests, known by ETags, whatever fails."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import obstore
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import volflow as vf
from tests.relay import Fault, upload
from tests.stores import store
from volflow.errors import InvalidInput, RunFailed, Unreadable
from volflow.geometry.roi import Roi
from volflow.store import opening
from volflow.store.remote import access
from volflow.store.remote.access import connect

SCAN = np.random.default_rng(0).integers(1, 999, (80, 70, 45), "u2")
URL = "s3://bucket/scans/a.zarr"


@pytest.fixture
def local(tmp_path):
    """In chunks of 16 and shards of 32, of which one is empty."""
    scan = SCAN.copy()
    scan[32:64, 32:64, :32] = 0
    return store(tmp_path / "a.zarr", scan, spacing=(2, 1, 1), unit="millimeter")


@pytest.fixture
def url(local, s3):
    upload(local, URL)
    s3.requests.clear()
    return URL


@pytest.fixture
def impatient(monkeypatch):
    """What fails here fails for good."""
    monkeypatch.setattr(access, "PATIENCE_S", 0.3)
    monkeypatch.setattr(access, "BRIEF_S", 0.3)


class TestReading:
    @pytest.mark.slow
    def test_gives_what_the_folder_does(self, url, local):
        there, here = vf.open(url), vf.open(local)
        assert there.path == url
        assert (there.meta, there.chunks, there.shards) == (here.meta, here.chunks, here.shards)
        assert repr(there) == repr(here)
        np.testing.assert_array_equal(there[:], here[:])
        np.testing.assert_array_equal(there.dask().compute(), here[:])

    @pytest.mark.parametrize("address", ["s3://bucket/scans/a.zarr/", "s3://bucket/scans/a.zarr/0"])
    def test_by_other_addresses(self, url, local, address):
        np.testing.assert_array_equal(vf.open(address)[3:5], vf.open(local)[3:5])

    @pytest.mark.slow
    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(corners=st.tuples(*(st.tuples(*(st.integers(0, n),) * 2) for n in SCAN.shape)))
    def test_any_box(self, url, local, corners):
        low, high = zip(*map(sorted, corners), strict=True)
        box = Roi(low, tuple(max(a + 1, b) for a, b in zip(low, high, strict=True)))
        box = Roi(tuple(min(a, n - 1) for a, n in zip(box.start, SCAN.shape, strict=True)),
                  tuple(min(b, n) for b, n in zip(box.stop, SCAN.shape, strict=True)))  # fmt: skip
        np.testing.assert_array_equal(vf.open(url).read(box), vf.open(local).read(box))

    def test_a_shard_costs_two_requests_and_a_whole_one_one(self, url, s3):
        volume = vf.open(url)
        s3.requests.clear()
        volume.read(Roi((0, 0, 0), (16, 32, 32)))
        assert s3.count() == (2 if zarr.__version__ < "3.3" else s3.count(lambda r: r.voxels))
        s3.requests.clear()
        volume.read(Roi((0, 0, 0), (31, 32, 20)))  # parts of all chunks
        assert s3.count() == 1
        s3.requests.clear()
        volume.read(Roi((0, 0, 0), (40, 40, 40)))
        assert s3.count() <= 1 + 7 * 2

    def test_opening_costs_few_requests(self, url, s3):
        vf.open(url)
        assert s3.count() <= 4

    def test_travels_as_its_address(self, url, local, monkeypatch):
        data = pickle.dumps(vf.open(url))
        assert b"TESTSECRET" not in data
        assert len(data) < 4000
        np.testing.assert_array_equal(pickle.loads(data)[5], vf.open(local)[5])

    def test_damage_is_named(self, url):
        there = connect(url)
        shard = bytearray(obstore.get(there, "0/c/0/0/0").bytes())
        shard[-20] ^= 1
        obstore.put(there, "0/c/0/0/0", bytes(shard))
        with pytest.raises(Unreadable, match=r"a.zarr cannot be read at \(0, 0, 0\)"):
            vf.open(url)[:8]

    @pytest.mark.parametrize("sharded", [False, True])
    def test_a_truncated_blosc_chunk_is_refused_and_not_decoded(self, s3, tmp_path, sharded):
        from zarr.codecs import BloscCodec

        path = tmp_path / "blosc.zarr"
        array = zarr.create_array(
            path, shape=(32, 32, 32), chunks=(16,) * 3, shards=(32,) * 3 if sharded else None,
            dtype="u2", compressors=BloscCodec(),
        )  # fmt: skip
        array[:] = SCAN[:32, :32, :32]
        url = upload(path, "s3://bucket/blosc.zarr")
        np.testing.assert_array_equal(vf.open(url)[:16], SCAN[:16, :32, :32])
        there = connect(url)
        chunk = bytearray(obstore.get(there, "c/0/0/0").bytes())
        if sharded:  # a chunk that claims more than the index says
            chunk[12:16] = (10**6).to_bytes(4, "little")
        obstore.put(there, "c/0/0/0", bytes(chunk if sharded else chunk[:100]))
        with pytest.raises(Unreadable, match=r"has a chunk of \d+ bytes whose header claims"):
            vf.open(url)[:16]


class TestIdentity:
    @pytest.mark.slow
    def test_follows_the_objects(self, url, local):
        before = vf.open(url).identity()
        assert vf.open(url).identity() == before
        assert vf.open(url).unidentified == ""
        there = connect(url)
        shard = obstore.get(there, "0/c/0/0/0").bytes()
        obstore.put(there, "0/c/0/0/0", bytes(shard))
        assert vf.open(url).identity() == before  # the same bytes again
        obstore.put(there, "0/c/0/0/0", bytes(shard)[:-1] + b"\0")
        assert vf.open(url).identity() != before

    def test_reads_no_voxel(self, url, s3):
        volume = vf.open(url)
        s3.requests.clear()
        volume.identity()
        assert s3.count(lambda r: r.voxels) == 0

    @pytest.mark.slow
    def test_a_changed_input_does_not_give_the_old_result(self, url, tmp_path):
        out = tmp_path / "copy.zarr"
        vf.convert(url, out, progress=False)
        vf.convert(url, out, progress=False)
        obstore.put(connect(url), "0/c/0/0/0", obstore.get(connect(url), "0/c/0/0/1").bytes())
        with pytest.raises(InvalidInput, match="different inputs or settings: input: "):
            vf.convert(url, out, progress=False)

    @pytest.mark.slow
    def test_statistics_are_kept_in_the_cache_and_follow_the_objects(self, url, tmp_path):
        first = vf.statistics(url, progress=False)
        assert list((tmp_path / "cache").rglob("statistics*"))
        obstore.put(connect(url), "0/c/0/0/0", obstore.get(connect(url), "0/c/1/0/0").bytes())
        assert vf.statistics(url, progress=False) != first


class TestUnlisted:
    @pytest.fixture
    def web(self, tmp_path):
        """A web server before the folder, which lists nothing, and its URL."""
        path = str(tmp_path / "plain.zarr")
        array = zarr.create_array(path, shape=(24, 24, 24), chunks=(8, 8, 8), dtype="u2")
        array[...] = SCAN[:24, :24, :24]

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/plain.zarr"
            server.shutdown()
            thread.join()

    @pytest.mark.slow
    def test_is_known_in_this_process_only(self, web):
        volume = vf.open(web)
        assert volume.unidentified == f"the objects of {web} cannot be listed"
        assert volume.identity() == vf.open(web).identity()
        code = f"import volflow as vf; print(vf.open({web!r}).identity())"
        other = subprocess.run(
            [sys.executable, "-c", code], text=True, capture_output=True, check=True,
            env=dict(os.environ),
        )  # fmt: skip
        assert other.stdout.strip() not in ("", volume.identity())

    @pytest.mark.slow
    def test_is_converted_again_saying_so(self, web, tmp_path, monkeypatch, capsys):
        out = tmp_path / "copy.zarr"
        vf.convert(web, out, progress=False)
        monkeypatch.setattr(opening, "THIS_PROCESS", "another")
        (tmp_path / "plain.zarr" / "c" / "0" / "0" / "0").unlink()
        again = vf.convert(web, out)
        assert "cannot be listed, so that it may hold something else" in capsys.readouterr().err
        assert again[0, 0, 0] == 0
        monkeypatch.setattr(opening, "THIS_PROCESS", "a third")
        vf.convert(web, out, resume=True)
        assert "cannot be listed" not in capsys.readouterr().err

    @pytest.mark.slow
    def test_is_predicted_again_saying_so(self, web, tmp_path, monkeypatch, capsys, calls):
        import torch

        def run(**options):
            calls.clear()
            done = vf.predict(
                web, torch.nn.Identity(), tmp_path / "out.zarr", patch=8, blend="crop", **options
            )
            return done[0]

        np.testing.assert_array_equal(run(progress=False), SCAN[:24, :24, :24])
        monkeypatch.setattr(opening, "THIS_PROCESS", "another")
        (tmp_path / "plain.zarr" / "c" / "0" / "0" / "0").unlink()
        assert run(resume=True)[0, 0, 0] == SCAN[0, 0, 0]
        assert "cannot be listed" not in capsys.readouterr().err
        assert run()[0, 0, 0] == 0
        said = capsys.readouterr().err
        assert "so that it may hold something else by now; all is computed again" in said


class TestFaults:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "fault",
        [Fault("status", 500), Fault("status", 503), Fault("reset"), Fault("truncate")],
        ids=lambda fault: f"{fault.kind}-{fault.status}",
    )
    def test_that_pass_are_not_noticed(self, url, local, s3, fault):
        failed = Counter()

        def first_time(request):
            failed[request.path] += 1
            return fault if failed[request.path] == 1 else None

        s3.fault = first_time
        volume = vf.open(url)
        np.testing.assert_array_equal(volume[:40], vf.open(local)[:40])
        volume.identity()
        assert len(failed) >= 8

    @pytest.mark.slow
    def test_a_stalled_request_is_sent_again(self, url, local, s3, monkeypatch):
        monkeypatch.setattr(access, "TIMEOUT", "500ms")
        stalled = []

        def once(request):
            if request.voxels and not stalled:
                stalled.append(request)
                return Fault("", stall_s=2)
            return None

        s3.fault = once
        np.testing.assert_array_equal(vf.open(url)[:8], vf.open(local)[:8])
        assert stalled

    @pytest.mark.slow
    def test_that_stay_fail_the_run_and_not_the_data(self, url, s3, impatient):
        volume = vf.open(url)
        s3.fault = lambda request: Fault("status", 503)
        with pytest.raises(RunFailed, match=r"a.zarr cannot be read at .* 503 Service"):
            volume[:8]
        with pytest.raises(RunFailed, match=r"cannot be listed: 503 Service .*same command again"):
            volume.identity()
        with pytest.raises(RunFailed, match=r"cannot be opened: 503 Service .*same command again"):
            vf.open(url)

    @pytest.mark.slow
    def test_a_store_that_is_not_there(self, url, impatient, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(RunFailed, match=r"a.zarr cannot be opened: .*error sending request"):
            vf.open(url)


class TestSlips:
    def test_a_bucket_that_does_not_exist(self, s3):
        with pytest.raises(InvalidInput, match=r"^s3://buckte/a.zarr cannot be opened: the bucket"):
            vf.open("s3://buckte/a.zarr")

    def test_nothing_at_the_address(self, s3):
        with pytest.raises(InvalidInput, match=r"b.zarr is not a Zarr array or group; check the"):
            vf.open("s3://bucket/b.zarr")

    def test_a_bucket_without_permission(self, url, s3):
        s3.fault = lambda request: Fault("status", 403)
        with pytest.raises(InvalidInput, match=r"a.zarr cannot be opened: permission denied \(403"):
            vf.open(url)

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(InvalidInput, match=r'not installed .*pip install "volflow\[cloud\]"'):
            vf.open("s3://bucket/a.zarr")

    def test_a_file_behind_a_url(self):
        with pytest.raises(InvalidInput, match=r"ct.nii.gz is NIfTI behind a URL, where only Zar"):
            vf.convert("s3://bucket/ct.nii.gz", "ct.zarr")

    def test_profile_without_boto3(self, monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_PROFILE", "clinic")
        monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
        with pytest.raises(InvalidInput, match=r"needs boto3 for the profile AWS_PROFILE=clinic"):
            vf.open("s3://bucket/a.zarr")
