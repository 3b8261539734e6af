"""A volume that was left half written is no input: zeros would pass for voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from obstore.store import MemoryStore
from zarr.storage import ObjectStore

import volflow as vf
from volflow.errors import InvalidInput
from volflow.store.journal.complete import open_complete
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.unfinished.root import withhold

MESSAGE = r"is not complete: 7 of 8 blocks are done[,;] .* run the command that started it again"


@pytest.fixture
def damaged(tmp_path):
    """A finished volume of which a block was found bad since, and marked undone."""
    path = tmp_path / "a.zarr"
    vf.convert(np.ones((32, 32, 32), "u1"), path, chunk=8, shard=16, progress=False)
    journal = Journal(journal_dir(path))
    journal.forget([max(journal.done())])
    return str(path)


@pytest.fixture
def unfinished(damaged):
    """A volume whose run has not ended."""
    withhold(Path(damaged))
    return damaged


@pytest.mark.slow
@pytest.mark.parametrize("state", ["damaged", "unfinished"])
@pytest.mark.parametrize(
    "use",
    [
        lambda path, out: vf.statistics(path, progress=False),
        lambda path, out: vf.export(path, out / "a.npy"),
        lambda path, out: vf.convert(path, out / "b.zarr", progress=False),
        lambda path, out: vf.pyramid(path, progress=False),
        lambda path, out: vf.PatchStream(path, vf.UniformSampler(8), 8),
        lambda path, out: vf.PatchStream(vf.open(path).dask(), vf.UniformSampler(8), 8),
        lambda path, out: vf.sample(path, vf.UniformSampler(8), 8),
        lambda path, out: vf.predict(path, torch.nn.Identity(), out / "c.zarr", patch=8),
        lambda path, out: vf.map_model(path, torch.nn.Identity(), patch=8),
    ],
)
def test_is_refused_as_an_input(request, state, tmp_path, use):
    path = request.getfixturevalue(state)
    with pytest.raises(InvalidInput, match=MESSAGE):
        use(path, tmp_path)


def test_one_in_a_store_that_volflow_does_not_know_has_no_journal():
    store = ObjectStore(MemoryStore())
    array = zarr.create_array(store, name="scan", shape=(8, 8, 8), chunks=(8, 8, 8), dtype="u1")
    assert open_complete(array).shape == (8, 8, 8)


def test_a_damaged_one_can_still_be_opened_and_looked_at(damaged):
    assert vf.open(damaged).shape == (32, 32, 32)
    assert vf.preview(damaged) is not None
    assert not vf.verify(damaged).ok


@pytest.mark.parametrize("use", [vf.open, vf.preview, lambda path: vf.open(f"{path}/0")])
def test_an_unfinished_one_cannot(unfinished, use):
    with pytest.raises(InvalidInput, match=MESSAGE):
        use(unfinished)
    assert vf.verify(unfinished).missing == 1


@pytest.mark.parametrize("state", ["damaged", "unfinished"])
def test_is_an_input_once_the_run_has_ended(request, state):
    path = request.getfixturevalue(state)
    vf.convert(np.ones((32, 32, 32), "u1"), path, progress=False)
    assert open_complete(path).shape == (32, 32, 32)


def test_without_a_journal_is_taken_as_it_is(tmp_path):
    import zarr

    zarr.create_array(str(tmp_path / "b.zarr"), shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    assert open_complete(tmp_path / "b.zarr").shape == (8, 8, 8)
