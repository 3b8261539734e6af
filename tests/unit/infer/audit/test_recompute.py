"""Random blocks computed anew: what is the model's is found so, to the bit, and nothing else is."""

from __future__ import annotations

import json
import math
import os
import shutil

import google_crc32c
import nibabel
import numpy as np
import pytest
import torch
import zarr

import volflow as vf
from tests.nets import Named, random_net, slice_net
from tests.stores import files
from volflow.cli import run
from volflow.errors import InvalidInput, Locked, MemoryRefused
from volflow.geometry.roi import Roi
from volflow.infer.audit import recompute as recompute_module
from volflow.infer.audit.blocks_anew import Compared
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.layout import ShardEntry

ALL = 10**6
# Layouts that make four blocks of the small scan.
THIN = {"chunk": 4, "shard": 4}


@pytest.fixture
def audit(client):
    """`vf.verify` with all blocks computed anew, silent, on the module's client."""

    def verify(out, recompute=ALL, **options):
        return vf.verify(out, recompute=recompute, cluster=client, progress=False, **options)

    return verify


def forge(out, block=0, change=lambda voxels: voxels + 1):
    """Alter the first stored object of a block, and its checksum in the journal with it."""
    journal = Journal(journal_dir(out))
    first, *others = journal.done()[block]
    array = zarr.open_array(out / first.array, mode="r+")
    box = Roi(first.start, first.stop).slices()
    voxels = np.ascontiguousarray(change(array[box])).astype(array.dtype)
    array[box] = voxels
    new = ShardEntry(first.array, first.start, first.stop, google_crc32c.value(voxels))
    journal.mark(block, (new, *others), {})
    return first


def one_voxel(voxels):
    voxels = voxels.copy()
    voxels[..., 1, 2, 3] += 1
    return voxels


def otherwise(out, **machine):
    """Say that another kind of machine had computed an output."""
    for path in (journal_dir(out) / "machines").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **machine}))


class TestSameBits:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [
            {"blend": "gaussian"},
            {"blend": "average", "overlap": 3, "batch_size": 3},
            {"blend": "hann", "flips": "zx", "output": "classes"},
            {"blend": "crop", "frame": "RAS", "overlap": (2, 3, 0)},
            {"blend": "crop", "output": "classes", "activation": "softmax"},
            {"normalize": "zscore", "activation": "sigmoid", "dtype": "float16"},
            {"skip_below": 0.6, "fill": -1.0, "patch": 4},
            {"dtype": "uint8", "activation": "sigmoid", "shard": 16, "memory": "400MiB"},
        ],
        ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
    )
    def test_of_patches(self, predict, audit, stored, scan, tmp_path, options):
        scan[:6] -= 0.1
        volume = stored(scan, orientation="SAR" if "frame" in options else None)
        predict(volume, random_net(), **options)
        found = audit(tmp_path / "out.zarr", model=random_net())
        assert found.ok
        assert found.recomputed.compared == "bit for bit"
        assert found.recomputed.drawn == tuple(range(found.total))
        assert found.recomputed.most_wrong == 0

    def test_in_a_mask(self, predict, audit, stored, scan, tmp_path):
        mask = np.zeros(scan.shape, "uint8")
        mask[3:9, 2:6, 4:9] = 1
        predict(stored(scan), random_net(), mask=mask, output="classes", fill=7)
        assert audit(tmp_path / "out.zarr", model=random_net()).ok

    @pytest.mark.slow
    def test_of_named_outputs_and_inputs(self, predict, audit, scan, tmp_path):
        net = Named(random_net(2), random_net(2, 1, seed=1))
        predict({"t1": scan, "flair": scan[::-1].copy()}, net)
        found = audit(tmp_path / "out.zarr", model=net)
        assert found.ok
        assert found.recomputed.compared == "bit for bit"
        forge(tmp_path / "out.zarr", 1, one_voxel)
        found = audit(tmp_path / "out.zarr", model=net)
        assert [block for block, _ in found.bad] == [1]
        assert "array seg/0 at [" in found.bad[0][1]

    @pytest.mark.slow
    def test_of_slices(self, predict, audit, scan, tmp_path):
        predict(scan, slice_net(), patch=(1, 8, 8))
        assert audit(tmp_path / "out.zarr", model=slice_net()).ok

    @pytest.mark.parametrize("options", [{}, {"output": "classes", "flips": "z"}])
    def test_of_an_exact_run(self, exact, audit, scan, tmp_path, options):
        exact(scan, random_net(), **options)
        found = audit(tmp_path / "out.zarr", model=random_net())
        assert found.ok
        assert found.recomputed.compared == "bit for bit"

    def test_of_exact_slices(self, exact, audit, scan, tmp_path):
        exact(scan, slice_net(), patch=(1, 8, 8))
        assert audit(tmp_path / "out.zarr", model=slice_net()).ok

    @pytest.mark.slow
    def test_of_an_exact_run_of_several_passes(self, exact, planned, audit, tmp_path):
        scan = np.random.default_rng(0).random((22, 17, 19))
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4), torch.nn.GELU(),
            torch.nn.Conv3d(4, 4, 3, padding=1), torch.nn.InstanceNorm3d(4), torch.nn.GELU(),
            torch.nn.Conv3d(4, 2, 1),
        ).double()  # fmt: skip
        passes, blocks = planned(scan, net, memory="49MiB")
        assert passes > 1
        assert blocks > 3
        result = exact(scan, net, memory="49MiB")
        before = result[:]
        found = audit(result.path, 2, model=net, memory="49MiB")
        assert found.ok
        assert len(found.recomputed.drawn) == 2
        assert found.recomputed.compared == "bit for bit"
        kept = journal_dir(result.path) / "passes" / "kept"
        assert not any(path.is_file() for path in kept.rglob("*"))
        forge(tmp_path / "out.zarr", 1, one_voxel)
        assert [n for n, _ in audit(result.path, model=net, memory="49MiB").bad] == [1]
        assert np.array_equal(exact(scan, net, memory="49MiB")[:], before)


class TestForged:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"output": "classes"}, {"dtype": "float16"}])
    def test_a_block_that_was_altered_with_its_checksum_is_found(
        self, predict, audit, scan, tmp_path, options
    ):
        out = tmp_path / "out.zarr"
        options = THIN | options
        before = predict(scan, random_net(), **options)[:]
        *_, z, y, x = forge(out, 2, one_voxel).start
        assert vf.verify(out).ok  # the bytes are as the journal says
        found = audit(out, model=random_net())
        assert found.damaged
        ((block, reason),) = found.bad
        assert block == 2
        assert f"{z + 1}:{z + 2}, {y + 2}:{y + 3}, {x + 3}:{x + 4}]: " in reason
        assert "voxels are not what the model computes" in reason
        assert found.cells[2] == "x"
        assert 2 not in Journal(journal_dir(out)).done()
        assert np.array_equal(predict(scan, random_net(), **options)[:], before)
        assert audit(out, model=random_net()).ok

    def test_the_last_bit_counts(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net())
        forge(out, 0, lambda voxels: np.nextafter(voxels, np.float32(np.inf)))
        assert audit(out, model=random_net()).damaged

    @pytest.mark.slow
    def test_the_file_behind_which_it_lies_is_written_again(self, predict, audit, scan, tmp_path):
        image = nibabel.Nifti1Image(scan.transpose(2, 1, 0), np.eye(4))
        nibabel.save(image, tmp_path / "scan.nii.gz")
        out = tmp_path / "seg.nii.gz"
        predict(tmp_path / "scan.nii.gz", random_net(1, 1), "seg.nii.gz")
        before = np.asarray(nibabel.load(out).dataobj)
        assert audit(out, model=random_net(1, 1)).ok
        forge(tmp_path / "seg.nii.gz.volflow" / "output.zarr", 1, one_voxel)
        assert audit(out, model=random_net(1, 1)).damaged
        predict(tmp_path / "scan.nii.gz", random_net(1, 1), "seg.nii.gz")
        assert np.array_equal(np.asarray(nibabel.load(out).dataobj), before)
        assert audit(out, model=random_net(1, 1)).ok

    @pytest.mark.slow
    def test_the_volume_that_was_exported_is_audited(self, predict, audit, scan, tmp_path):
        predict(scan, random_net(1, 1))
        vf.export(tmp_path / "out.zarr", tmp_path / "out.npy")
        assert audit(tmp_path / "out.npy", model=random_net(1, 1)).ok
        forge(tmp_path / "out.zarr", 0, one_voxel)
        found = audit(tmp_path / "out.npy", model=random_net(1, 1))
        assert [block for block, _ in found.recomputed.wrong] == [0]
        assert found.damaged


class TestOtherMachines:
    @pytest.mark.slow
    def test_other_threads_agree_within_the_tolerance(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net())
        plan = journal_dir(out) / "plan.json"
        saved = json.loads(plan.read_text())
        saved["settings"]["threads"] += 1
        plan.write_text(json.dumps(saved))
        found = audit(out, model=random_net())
        assert found.ok
        assert found.recomputed.compared.startswith("within 1e-06 of the range of scores")

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"dtype": "int16"}])
    def test_scores_may_differ_in_their_last_digits_only(
        self, predict, audit, scan, tmp_path, options
    ):
        out = tmp_path / "out.zarr"
        predict(scan, random_net(), **options)
        otherwise(out, processor="another")
        assert audit(out, model=random_net()).ok

        def nearly(voxels):
            near = voxels + 1 if voxels.dtype.kind == "i" else np.nextafter(voxels, voxels.max())
            return near.astype(voxels.dtype)

        forge(out, 0, nearly)
        found = audit(out, model=random_net())
        assert found.ok
        assert found.recomputed.differing_voxels > 0
        assert "voxels differ within that" in str(found)
        forge(out, 1, lambda voxels: voxels + voxels.dtype.type(2))
        assert [block for block, _ in audit(out, model=random_net()).bad] == [1]

    @pytest.mark.slow
    def test_of_classes_only_those_that_are_nearly_the_highest_may_differ(
        self, predict, audit, scan, tmp_path
    ):
        out = tmp_path / "out.zarr"
        predict(scan, random_net(1, 3), output="classes", skip_below=0.5, patch=4, **THIN)
        otherwise(out, torch="1.0")
        assert audit(out, model=random_net(1, 3)).ok
        for block, change in enumerate(
            (one_voxel, lambda voxels: (voxels + 1) % 3, lambda voxels: voxels + 200)
        ):
            forge(out, block, change)
        assert [n for n, _ in audit(out, model=random_net(1, 3)).bad] == [0, 1, 2]

    @pytest.mark.slow
    def test_ties_of_classes_are_no_fault(self, predict, audit, scan, tmp_path):
        class Twins(torch.nn.Module):
            def forward(self, batch):
                return torch.cat([batch, batch], 1)

        out = tmp_path / "out.zarr"
        predict(scan, Twins(), output="classes")
        forge(out, 0, one_voxel)
        assert audit(out, model=Twins()).damaged
        predict(scan, Twins(), output="classes")
        forge(out, 0, one_voxel)
        otherwise(out, torch="1.0")
        assert audit(out, model=Twins()).ok

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", [None, "sigmoid"])
    def test_of_one_channel_what_is_at_the_threshold_may_differ(
        self, predict, audit, scan, tmp_path, activation
    ):
        out = tmp_path / "out.zarr"
        predict(scan, random_net(1, 1), output="classes", activation=activation)
        otherwise(out, torch="1.0")
        assert audit(out, model=random_net(1, 1)).ok
        forge(out, 0, lambda voxels: 1 - voxels)
        assert audit(out, model=random_net(1, 1)).damaged

    def test_an_output_of_before_has_no_machines(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net())
        shutil.rmtree(journal_dir(out) / "machines")
        assert audit(out, model=random_net()).recomputed.compared.startswith("within")

    def test_the_tolerance_is_a_share_of_the_range_of_all_blocks(self):
        def one(worst, low, high, *, exact=False):
            return (Compared("0", 8, exact, 1, Roi((0,), (1,)), worst, low, high),)

        limits = recompute_module.Limits(1e-6, False, np.dtype("float64"))
        wrong, how, differing = limits.judged({0: one(9e-6, 0, 1), 1: one(0, 5, 10)})
        assert (wrong, differing) == ((), 2)
        assert how.startswith("within 1e-06")
        wrong, _, _ = limits.judged({0: one(11e-6, 0, 1), 1: one(0, 5, 10), 3: one(math.inf, 0, 1)})
        assert [block for block, _ in wrong] == [0, 3]
        wrong, how, _ = limits.judged({0: one(1e-9, 0, 1, exact=True)})
        assert how == "bit for bit"
        assert "by up to 1e-09" in wrong[0][1]


class TestDraw:
    @pytest.mark.slow
    def test_a_seed_repeats_it(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net(), **THIN)
        first = audit(out, 3, model=random_net()).recomputed
        assert audit(out, 3, model=random_net(), seed=first.seed).recomputed == first
        assert len(set(first.drawn)) == 3
        others = {audit(out, 3, model=random_net()).recomputed.seed for _ in range(2)}
        assert len(others | {first.seed}) == 3
        assert f"(seed {first.seed})" in str(first)

    @pytest.mark.slow
    def test_only_finished_blocks_are_drawn(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net(), **THIN)
        Journal(journal_dir(out)).forget([0, 2])
        found = audit(out, model=random_net())
        assert found.recomputed.total == found.total - 2
        assert not {0, 2} & set(found.recomputed.drawn)
        assert not found.ok
        assert not found.damaged
        Journal(journal_dir(out)).forget(range(found.total))
        with pytest.raises(InvalidInput, match=r"no block of .* is finished"):
            audit(out, model=random_net())


class TestRefused:
    @pytest.mark.slow
    def test_another_model_by_its_weights(self, predict, audit, scan, tmp_path):
        out = tmp_path / "out.zarr"
        predict(scan, random_net())
        before = files(tmp_path)
        with pytest.raises(InvalidInput, match=r"out.zarr was not made from this: model: \w+… → "):
            audit(out, model=random_net(seed=1))
        assert files(tmp_path) == before

    def test_another_input_by_its_name(self, predict, audit, stored, scan, tmp_path):
        named = {"t1": stored(scan, "t1.zarr"), "flair": stored(scan[::-1], "flair.zarr")}
        predict(named, random_net(2))
        named["flair"] = stored(scan[:, ::-1], "other.zarr")
        with pytest.raises(InvalidInput, match=r"not made from this: input.flair: \w+… → \w+…; gi"):
            audit(tmp_path / "out.zarr", model=random_net(2), input=named)

    def test_an_input_that_was_changed(self, predict, audit, stored, scan, tmp_path):
        volume = stored(scan)
        predict(volume, random_net())
        path = next(p for p in (tmp_path / "scan.zarr" / "0").rglob("*") if p.is_file())
        os.utime(path, (1, 1))
        with pytest.raises(InvalidInput, match=r"not made from this: input: \w+… → \w+…;"):
            audit(tmp_path / "out.zarr", model=random_net())

    def test_a_model_that_only_a_process_had(self, predict, audit, scan, tmp_path):
        predict(scan, random_net())
        with pytest.raises(InvalidInput, match=r"journal cannot name; give it: model= \(--model\)"):
            audit(tmp_path / "out.zarr")

    def test_functions_are_to_be_given(self, predict, audit, scan, tmp_path):
        predict(scan, random_net(), activation=torch.tanh)
        with pytest.raises(InvalidInput, match=r"activation was a function, which a journal can"):
            audit(tmp_path / "out.zarr", model=random_net())
        assert audit(tmp_path / "out.zarr", model=random_net(), activation=torch.tanh).ok
        with pytest.raises(InvalidInput, match=r"not made from this: options.activation: functi"):
            audit(tmp_path / "out.zarr", model=random_net(), activation=torch.sigmoid)

    def test_an_input_that_is_gone(self, predict, audit, stored, scan, tmp_path):
        predict(stored(scan), random_net())
        (tmp_path / "scan.zarr").rename(tmp_path / "elsewhere.zarr")
        with pytest.raises(InvalidInput, match=r"scan.zarr any more; give it: input= \(--input\)"):
            audit(tmp_path / "out.zarr", model=random_net())
        found = audit(tmp_path / "out.zarr", model=random_net(), input=tmp_path / "elsewhere.zarr")
        assert found.ok

    def test_what_no_prediction_wrote(self, audit, scan, tmp_path):
        vf.convert(scan, tmp_path / "a.zarr", progress=False)
        with pytest.raises(InvalidInput, match=r"was written by convert, and only what predict"):
            audit(tmp_path / "a.zarr")
        with pytest.raises(InvalidInput, match=r"gone.zarr has no journal, and only what predict"):
            audit(tmp_path / "gone.zarr")
        with pytest.raises(InvalidInput, match="given a ndarray in memory"):
            audit(scan)

    @pytest.mark.parametrize("count", [-1, 1.5, True, "all"])
    def test_what_is_no_number_of_blocks(self, audit, count):
        with pytest.raises(InvalidInput, match="recompute must be a whole number of blocks"):
            audit("out.zarr", count)

    @pytest.mark.slow
    def test_too_little_memory(self, predict, audit, scan, tmp_path):
        predict(scan, random_net())
        with pytest.raises(MemoryRefused, match=r"recompute needs .* but memory is 1 MiB"):
            audit(tmp_path / "out.zarr", model=random_net(), memory="1MiB")

    def test_another_device_than_recorded(self, predict, audit, scan, tmp_path):
        predict(scan, random_net())
        with pytest.raises(InvalidInput, match=r"device must be 'auto', for 'cpu', .* 'cuda'"):
            audit(tmp_path / "out.zarr", model=random_net(), device="cuda")

    def test_an_output_that_is_being_written(self, predict, audit, scan, tmp_path):
        predict(scan, random_net())
        with Journal(journal_dir(tmp_path / "out.zarr")).lock(), pytest.raises(Locked):
            audit(tmp_path / "out.zarr", model=random_net())


@pytest.mark.slow
def test_what_is_beside_the_output_moves_with_it(predict, audit, scan, tmp_path):
    """An array was converted beside the output, and its copy is what the network saw."""
    (tmp_path / "old").mkdir()
    predict(scan, random_net(), "old/out.zarr")
    (tmp_path / "old").rename(tmp_path / "new")
    assert audit(tmp_path / "new" / "out.zarr", model=random_net()).ok
    shutil.rmtree(tmp_path / "new" / "out.zarr.volflow" / "input.zarr")
    with pytest.raises(InvalidInput, match=r"input.zarr any more; give it: input="):
        audit(tmp_path / "new" / "out.zarr", model=random_net())
    with pytest.raises(InvalidInput, match=r"the copy of the input that the model saw, is not th"):
        audit(tmp_path / "new" / "out.zarr", model=random_net(), input=scan)


@pytest.mark.slow
def test_a_command_names_nothing_that_the_journal_names(scan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vf.save_model(vf.UNet(1, 2, features=(4, 8)), "bundle", patch=8, output="classes")
    vf.save_model(vf.UNet(1, 2, features=(4, 8)), "other", patch=8, output="classes")
    np.save("scan.npy", scan)
    words = ["predict", "scan.npy", "seg.zarr", "-m", "bundle", "--chunk", "8", "--shard", "8"]
    assert run([*words, "-q"]) == 0
    assert run(["verify", "seg.zarr", "--recompute", "4", "--seed", "3", "-q"]) == 0
    told = capsys.readouterr().out
    assert "computed anew (seed 3), bit for bit: all are what the model computes" in told
    forge(tmp_path / "seg.zarr", 0, lambda voxels: 1 - voxels)
    (tmp_path / "scan.npy").unlink()
    assert run(["verify", "seg.zarr", "--recompute", "99", "--json", "-q"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [one["block"] for one in told["recomputed"]["wrong"]] == [0]
    assert told["bad"] == told["recomputed"]["wrong"]
    assert told["recomputed"]["excluded_share"] <= 1
    assert run(["verify", "seg.zarr", "--recompute", "9", "-m", "other"]) == 2
    told = capsys.readouterr().err
    assert "seg.zarr was not made from this: model: " in told
    assert told.count("\n") == 1
