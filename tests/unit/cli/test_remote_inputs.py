"""Commands on volumes behind URLs: the same answers, and slips in one line with exit code 2."""

from __future__ import annotations

import json

import numpy as np
import obstore
import pytest

import volflow as vf
import volflow.cli
from tests.relay import Fault, upload
from tests.stores import store
from volflow.store.remote.access import connect


@pytest.fixture
def url(tmp_path, s3):
    scan = np.random.default_rng(0).integers(1, 99, (20, 30, 40), "u1")
    store(tmp_path / "a.zarr", scan, spacing=(2, 1, 1), unit="millimeter")
    return upload(tmp_path / "a.zarr", "s3://bucket/a.zarr")


def run(capsys, *words):
    code = volflow.cli.run(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.slow
def test_facts_and_statistics(url, tmp_path, capsys):
    _, there, _ = run(capsys, "info", url, "--json")
    _, here, _ = run(capsys, "info", tmp_path / "a.zarr", "--json")
    there, here = json.loads(there), json.loads(here)
    assert there["shape"] == here["shape"] == [20, 30, 40]
    assert there["spacing"] == here["spacing"]
    assert run(capsys, "statistics", url)[1] == run(capsys, "statistics", tmp_path / "a.zarr")[1]


def test_export(url, tmp_path, capsys):
    assert run(capsys, "export", url, tmp_path / "there.npy")[0] == 0
    run(capsys, "export", tmp_path / "a.zarr", tmp_path / "here.npy")
    assert (tmp_path / "there.npy").read_bytes() == (tmp_path / "here.npy").read_bytes()


@pytest.mark.parametrize("command", [("info",), ("statistics",), ("convert",), ("export",)])
def test_slips(url, s3, tmp_path, capsys, command):
    out = [tmp_path / "out.npy"] if command == ("export",) else []
    out = [tmp_path / "out.zarr"] if command == ("convert",) else out
    code, _, told = run(capsys, *command, "s3://buckte/a.zarr", *out)
    assert (code, told.count("\n")) == (2, 1)
    assert "s3://buckte/a.zarr cannot be opened: the bucket does not exist; check" in told
    s3.fault = lambda request: Fault("status", 403)
    code, _, told = run(capsys, *command, url, *out)
    assert (code, told.count("\n")) == (2, 1)
    assert f"{url} cannot be opened: permission denied (403 Forbidden" in told


@pytest.mark.slow
def test_pictures_and_patches(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, told = run(capsys, "preview", url)
    assert code == 0, told
    assert (tmp_path / "a.png").stat().st_size > 1000
    there = list(vf.PatchStream(url, vf.UniformSampler(8), 20, seed=1))
    here = list(vf.PatchStream(str(tmp_path / "a.zarr"), vf.UniformSampler(8), 20, seed=1))
    for a, b in zip(there, here, strict=True):
        assert (a["image"] == b["image"]).all()


def test_a_step_of_a_pipeline_knows_its_input(url, tmp_path):
    """It is skipped while the objects are the same."""
    from volflow.jobs.pipeline.step_state import _identity

    before = _identity(url)
    assert before == _identity(url) != ""
    obstore.put(connect(url), "0/c/0/0/0", b"other")
    assert _identity(url) not in ("", before)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("convert", "https://bucket.org/b.zarr"), "can be read but not written; write to s3://"),
        (("export", "https://bucket.org/b.npy"), "can be read but not written; write to s3://"),
        (("verify",), "has no journal (s3://bucket/a.zarr.volflow), which holds the checksums"),
    ],
)
def test_what_cannot_be_written_is_refused(url, s3, capsys, command, why):
    s3.requests.clear()
    code, _, told = run(capsys, command[0], url, *command[1:])
    assert (code, told.count("\n")) == (2, 1)
    assert why in told
    assert s3.count(lambda request: request.method in ("PUT", "POST", "DELETE")) == 0
