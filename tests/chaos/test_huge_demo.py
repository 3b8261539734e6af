"""The huge demo from end to end: on a small volume, and by night on the large one."""

from __future__ import annotations

import re

import numpy as np
import pytest

import volflow as vf
from volflow.cli import run
from volflow.demo.huge import run_huge
from volflow.demo.tissue import CLASSES, PATCH, tissue_net
from volflow.errors import RunFailed
from volflow.geometry.budget import parse_bytes

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SMALL, SHARD, BLOCKS = (384, 128, 128), 32, 12


def test_killed_at_half_and_resumed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run_huge(tmp_path / "out", SMALL, SHARD)
    told = capsys.readouterr().out
    scan, result = (tmp_path / "out" / name for name in ("ct.zarr", "ct_tissue.zarr"))
    kept = int(re.search(rf"killed \(SIGKILL\) with (\d+) of {BLOCKS} blocks done", told)[1])
    assert BLOCKS // 2 <= kept < BLOCKS
    assert f"{kept} blocks left as they were, {BLOCKS - kept} computed, " in told
    assert f"{BLOCKS} of {BLOCKS} blocks verified" in told
    assert f"{kept} of {BLOCKS} blocks were done before the resume, 0 of these repeated" in told
    peak, cap = re.search(r"network in (.+) of memory, .*, of (.+) allowed", told).groups()
    assert parse_bytes(peak) <= parse_bytes(cap)
    for picture in ("ct_tissue.png", "memory.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 10_000

    whole = vf.predict(
        scan, tissue_net(), tmp_path / "whole.zarr", patch=PATCH, overlap=0.25,
        output="classes", progress=False,
    )  # fmt: skip
    volume = vf.open(result)
    np.testing.assert_array_equal(volume[:], whole[:])
    assert volume.meta.channels == CLASSES
    assert (np.bincount(volume[:].ravel(), minlength=5) > 1000).all()

    (result / "0" / "c" / "5" / "1" / "1").write_bytes(b"broken")
    with pytest.raises(
        RunFailed, match=r"11 of 12 blocks verified, 1 bad.*; run volflow demo huge"
    ):
        run_huge(tmp_path / "out", SMALL, SHARD)


@pytest.mark.nightly
def test_the_large_one(tmp_path, capsys):
    assert run(["demo", "huge", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    # How many there are follows from what Python takes: more where Dask finds xarray and pandas.
    blocks = re.search(r"(\d+) of (\d+) blocks verified", told)
    assert blocks
    assert blocks[1] == blocks[2]
    assert "0 of these repeated; all checksums right" in told
