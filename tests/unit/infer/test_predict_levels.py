"""`predict(levels=True)`: the coarser levels are part of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import volflow as vf
import volflow.volumes.pyramid.plan as pyramid_plan
import volflow.volumes.pyramid.pyramid as pyramid_module
from tests.nets import Counted, Named, random_net
from tests.stores import files
from volflow.errors import InvalidInput, MemoryRefused
from volflow.infer.predict import plan_predict
from volflow.store.journal.journal import journal_dir

SHAPE = (20, 70, 66)


@pytest.fixture
def scan():
    return np.random.default_rng(1).random(SHAPE, "float32") + 0.1


@pytest.fixture
def quick(predict):
    """Few forwards, and the levels."""

    def run(scan, net, out="out.zarr", **options):
        options = {"patch": (20, 35, 33), "overlap": 0, "chunk": 8, "shard": 32} | options
        return predict(scan, net, out, **{"levels": True} | options)

    return run


@pytest.mark.slow
def test_scores_get_means_and_classes_their_modes(quick, scan, tmp_path):
    for output in ("scores", "classes"):
        result = quick(scan, random_net(channels_out=3), f"{output}.zarr", output=output)
        assert [level.path for level in result.levels] == ["0", "1"]
        alone = quick(scan, random_net(channels_out=3), "b.zarr", output=output, levels=False,
                      overwrite=True)  # fmt: skip
        assert len(alone.levels) == 1
        vf.pyramid(alone, progress=False)
        assert files(tmp_path / f"{output}.zarr") == files(tmp_path / "b.zarr")
        coarse = vf.open(result.path, level=1)
        assert coarse.spatial_shape == (10, 35, 33)
        if output == "classes":
            assert set(np.unique(coarse[:])) <= {0, 1, 2}


@pytest.mark.slow
def test_several_outputs_each_get_theirs(quick, scan, tmp_path):
    results = quick(scan, Named(random_net(), random_net(channels_out=1)))
    for name, channels in (("seg", 2), ("edge", 1)):
        assert len(results[name].levels) == 2
        assert vf.open(tmp_path / "out.zarr" / name, level=1).shape == (channels, 10, 35, 33)
    coverage = vf.verify(tmp_path / "out.zarr")
    assert coverage.ok
    assert [Path(one.path).relative_to(tmp_path).as_posix() for one in coverage.levels] == [
        "out.zarr/edge/1",
        "out.zarr/seg/1",
    ]
    # The journals lie beside the store, not in it.
    assert not list((tmp_path / "out.zarr").rglob("*.volflow"))
    assert (journal_dir(tmp_path / "out.zarr") / "levels" / "seg" / "1").is_dir()


@pytest.mark.slow
def test_of_a_complete_result_only_the_levels_are_made(quick, scan, calls):
    quick(scan, Counted(random_net()), levels=False)
    calls.clear()
    result = quick(scan, Counted(random_net()))
    assert calls == []
    assert len(result.levels) == 2
    # And without the option they stay.
    assert len(quick(scan, Counted(random_net()), levels=False).levels) == 2


@pytest.mark.slow
def test_the_same_call_resumes_the_levels(quick, scan, monkeypatch, calls, tmp_path):
    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pyramid_module, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            quick(scan, Counted(random_net()))
    assert len(vf.open(tmp_path / "out.zarr").levels) == 1
    calls.clear()
    assert len(quick(scan, Counted(random_net())).levels) == 2
    assert calls == []
    assert vf.verify(tmp_path / "out.zarr").ok


@pytest.mark.slow
def test_an_output_made_anew_gets_new_levels(quick, scan, tmp_path):
    quick(scan, random_net())
    result = quick(scan, random_net(seed=1), overwrite=True, levels=False)
    assert len(result.levels) == 1
    assert not (journal_dir(tmp_path / "out.zarr") / "levels").exists()
    result = quick(scan, random_net(seed=2), overwrite=True)
    fresh = quick(scan, random_net(seed=2), "fresh.zarr")
    assert np.array_equal(vf.open(result.path, level=1)[:], vf.open(fresh.path, level=1)[:])


def test_the_plan_says_what_levels_there_will_be(client, scan, tmp_path):
    options = {"patch": 20, "cluster": client, "levels": True}
    plan = plan_predict(scan, random_net(), tmp_path / "out.zarr", **options)
    assert ("level 1", "10 × 35 × 33, spacing 2 × 2 × 2") in plan.facts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["seg.nii.gz", "seg.npy"])
def test_a_file_cannot_hold_levels(client, scan, tmp_path, name):
    for use in (vf.predict, plan_predict):
        with pytest.raises(InvalidInput, match=f"{name} cannot hold; use an output like"):
            use(scan, random_net(), tmp_path / name, patch=8, levels=True, cluster=client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("levels", [3, None, "yes"])
def test_how_many_is_not_said_here(client, scan, tmp_path, levels):
    with pytest.raises(InvalidInput, match=r"levels must be True or False.*vf\.pyramid takes how"):
        vf.predict(scan, random_net(), tmp_path / "o.zarr", patch=8, levels=levels, cluster=client)


def test_memory_is_refused_before_the_prediction(client, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(pyramid_plan, "SLACK_BYTES", 2**40)
    with pytest.raises(MemoryRefused, match="level 1 needs 1 TiB per worker"):
        vf.predict(scan, random_net(), tmp_path / "o.zarr", patch=20, levels=True, cluster=client)
    assert not (tmp_path / "o.zarr").exists()
