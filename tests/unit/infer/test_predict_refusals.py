"""What cannot work is refused in one line that says what would, before anything is written."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest
import torch
import zarr

import volflow as vf
from tests.nets import Named, NotANumber, Shaped, random_net
from volflow.errors import Damaged, InvalidInput, MemoryRefused, RunFailed
from volflow.geometry.budget import parse_bytes
from volflow.model.unet import UNet

SCAN = np.random.default_rng(0).random((20, 18, 16), "float32") + 0.1
NET = random_net()


@pytest.fixture
def refused(client, tmp_path):
    """The one line by which a call of predict is refused; nothing may have been written."""

    def call(volume=SCAN, model=NET, out="out.zarr", error=InvalidInput, **options):
        before = sorted(p for p in tmp_path.rglob("*"))
        folder = "" if "://" in out else f"{tmp_path}/"
        options = {"patch": 8, "cluster": client, "progress": False} | options
        with pytest.raises(error) as caught:
            vf.predict(volume, model, f"{folder}{out}", **options)
        assert sorted(p for p in tmp_path.rglob("*")) == before
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.exit_code == (3 if isinstance(caught.value, Damaged) else 2)
        return message

    return call


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


class TestModel:
    def test_wrong_channel_count_of_a_raw_net(self, refused):
        message = refused(model=random_net(channels_in=3))
        assert message.startswith("the model does not take a batch of shape (64, 1, 8, 8, 8): ")
        assert "3 channels" in message

    def test_wrong_channel_count_before_a_conversion(self, refused, tmp_path):
        np.save(tmp_path / "scan.npy", SCAN)
        message = refused(tmp_path / "scan.npy", random_net(channels_in=3))
        assert "3 channels" in message

    def test_wrong_channel_count_of_a_bundle(self, refused, tmp_path):
        net = UNet(2, 2, features=(4, 8))
        vf.save_model(net, tmp_path / "b", channels=["t1", "flair"], patch=8)
        message = refused(model=tmp_path / "b", patch=None)
        assert message == "the model wants 2 channels (t1, flair); the input has 1"

    def test_wrong_names_of_volumes(self, refused, tmp_path):
        net = UNet(2, 2, features=(4, 8))
        vf.save_model(net, tmp_path / "b", channels=["t1", "flair"], patch=8)
        message = refused({"t1": SCAN, "t2": SCAN}, tmp_path / "b", patch=None)
        assert message == "the model wants the volumes t1, flair; got t1, t2"

    def test_a_path_that_is_not_there(self, refused, tmp_path):
        assert "nowhere/bundle" in refused(model=tmp_path / "nowhere" / "bundle")
        assert "no_such_module" in refused(model="no_such_module:net")
        assert "no_such_net" in refused(model="tests.nets:no_such_net")

    def test_weights_that_are_not_there(self, refused, tmp_path):
        message = refused(model="tests.nets:random_net", weights=tmp_path / "w.safetensors")
        assert matches(r"weights .*w.safetensors do not exist", message)

    def test_what_is_no_model(self, refused):
        assert "torch.nn.Module" in refused(model=3)

    @pytest.mark.parametrize("shape", [(2, 7, 8, 8), (2, 16, 8, 8), (2, 3, 3, 3), (2, 0, 8, 8)])
    def test_an_output_whose_shape_does_not_match(self, refused, shape):
        message = refused(model=Shaped(*shape))
        assert message.startswith(
            f"model output has shape (64, {', '.join(map(str, shape))}) for a"
        )
        assert "each axis must equal the patch's, or divide it" in message

    def test_an_output_without_channels(self, refused):
        assert "it must be NC and the patch's axes" in refused(model=Shaped(8, 8, 8))
        assert "it must be NC and the patch's axes" in refused(model=torch.nn.Flatten())

    def test_outputs_of_two_resolutions(self, refused):
        net = Named(torch.nn.Identity(), torch.nn.AvgPool3d(2))
        assert "outputs differ in resolution" in refused(model=net)

    def test_an_output_that_is_no_tensor(self, refused):
        class Told(torch.nn.Module):
            def forward(self, batch):
                return "a liver"

        message = refused(model=Told())
        assert message == "the model must return a tensor, or a dict or tuple of tensors; got str"

    def test_outputs_by_name_do_not_go_into_one_file(self, refused):
        message = refused(model=Named(NET, NET), out="seg.nii.gz")
        assert message.startswith("the model returns outputs by name (seg, edge), which seg.nii.gz")

    def test_a_slice_model_without_a_slice_patch(self, refused):
        net = torch.nn.Conv2d(1, 2, 3, padding=1)
        assert "does not take a batch of shape" in refused(model=net)

    def test_weights_that_are_no_numbers(self, refused):
        net = random_net()
        with torch.no_grad():
            net[0].weight[0, 0, 0, 0, 0] = float("nan")
        message = refused(model=net)
        assert message.startswith("the model's 0.weight holds NaN; ")

    def test_scores_that_are_no_numbers(self, client, tmp_path):
        with pytest.raises(InvalidInput, match=r"^the model produced NaN or infinity; check"):
            vf.predict(SCAN, NotANumber(), tmp_path / "out.zarr", patch=8, cluster=client,
                       progress=False)  # fmt: skip


class TestInput:
    def test_a_path_that_is_not_there(self, refused, tmp_path):
        assert refused(tmp_path / "scan.zarr") == f"{tmp_path}/scan.zarr does not exist"

    def test_a_group_that_is_no_image(self, refused, tmp_path):
        zarr.create_group(tmp_path / "group.zarr").create_group("inner")
        assert "group.zarr" in refused(tmp_path / "group.zarr")

    def test_a_folder_that_is_no_zarr(self, refused, tmp_path):
        (tmp_path / "folder").mkdir()
        assert "folder" in refused(tmp_path / "folder")

    def test_a_file_of_another_format(self, refused, tmp_path):
        (tmp_path / "scan.jpg").write_bytes(b"JFIF")
        assert "scan.jpg" in refused(tmp_path / "scan.jpg")

    def test_a_broken_file(self, refused, tmp_path):
        (tmp_path / "scan.nii.gz").write_bytes(b"this is no gzip")
        assert "scan.nii.gz" in refused(tmp_path / "scan.nii.gz")

    @pytest.mark.parametrize("scan", [np.zeros(5), np.zeros((2, 2, 2, 2, 2)), np.zeros((0, 3, 3))])
    def test_arrays_that_are_no_volume(self, refused, scan):
        assert "array" in refused(scan)

    def test_arrays_of_no_numbers(self, refused):
        assert "complex" in refused(np.zeros((4, 4, 4), "complex64"))

    @pytest.mark.parametrize("shape", [(5,), (2, 2, 2, 2, 2)])
    def test_dask_arrays_that_are_no_volume(self, refused, shape):
        assert "zyx or czyx" in refused(da.zeros(shape))

    def test_dask_arrays_of_unknown_size(self, refused):
        array = da.from_array(SCAN, chunks=8)
        assert "unknown sizes" in refused(array[array.sum(axis=(1, 2)) > 0])

    def test_what_is_no_volume_at_all(self, refused):
        message = refused([1, 2, 3])
        assert message == (
            "input volume: a volume is a path, a URL, a Volume, a zarr.Array, a NumPy or Dask"
            " array, an xarray.DataArray or a torch tensor, given list"
        )

    def test_volumes_of_two_shapes(self, refused):
        message = refused({"a": SCAN, "b": SCAN[1:]}, random_net(channels_in=2))
        assert message == (
            "inputs must lie on one grid: b has shape (19, 18, 16), a (20, 18, 16); resample one"
            " onto the other's grid, or correct its metadata"
        )

    def test_volumes_of_two_spacings(self, refused, stored):
        named = {
            "a": stored(SCAN, "a.zarr", unit="millimeter"),
            "b": stored(SCAN, "b.zarr", spacing=(2.0, 1.0, 1.0)),
        }
        message = refused(named, random_net(channels_in=2))
        assert "one grid: b has spacing 2×1×1, a 1×1×1 mm; resample" in message

    def test_volumes_of_two_orientations(self, refused, stored):
        named = {
            "a": stored(SCAN, "a.zarr", orientation="SAR"),
            "b": stored(SCAN, "b.zarr", orientation="SAL"),
        }
        assert "one grid: b has orientation SAL, a SAR" in refused(named, random_net(channels_in=2))

    def test_a_mask_of_another_shape(self, refused):
        message = refused(mask=np.ones((3, 3, 3), "u1"))
        assert message.startswith("inputs must lie on one grid: mask has shape (3, 3, 3)")

    def test_a_mask_with_channels(self, refused):
        message = refused(mask=np.ones((2, *SCAN.shape), "u1"))
        assert message == "mask must have axes zyx; got c, z, y, x"

    def test_a_mask_that_is_not_there(self, refused, tmp_path):
        assert "mask.zarr" in refused(mask=tmp_path / "mask.zarr")
        assert "mask.nii" in refused(mask=str(tmp_path / "mask.nii"))

    def test_a_frame_for_a_volume_without_orientation(self, refused):
        assert refused(frame="RAS").startswith("frame 'RAS' needs a volume with orientation, and")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"blend": "linear"}, "unknown blend 'linear'; use one of crop, average, gaussian, h"),
            ({"overlap": 8}, "overlap must be a fraction in [0, 1) or a number of voxels below th"),
            ({"overlap": 1.0}, "overlap must be a fraction in [0, 1)"),
            ({"patch": None}, "patch is needed: this model does not say its own; e.g. patch=96"),
            ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here: "),
            ({"device": "toaster"}, "device 'toaster' cannot be used here: "),
            ({"chunk": 0}, "chunk must be a positive integer or one for each of z, y, x, given 0"),
            ({"chunk": 8, "shard": 12}, "shard (12, 12, 12) is not a multiple of chunk (8, 8, 8)"),
            ({"memory": "lots"}, 'memory must be a positive amount like "2GiB"'),
            ({"cluster": "cloud"}, "unknown cluster 'cloud'"),
            ({"normalize": "max"}, "unknown normalize 'max'; use minmax, zscore, zscore:fore"),
            ({"output": "classes", "dtype": "float32"}, "dtype of classes must be an integer type"),
        ],
    )
    def test_nonsense(self, refused, options, message):
        assert refused(**options).startswith(message)

    def test_a_scale_that_does_not_divide_the_patch(self, refused):
        message = refused(model=torch.nn.AvgPool3d(2), patch=9)
        assert "each axis must equal the patch's, or divide it" in message


class TestPlace:
    def test_no_folder(self, refused):
        assert matches(r"^the folder .*absent does not exist; make it first$",
                       refused(out="absent/out.zarr"))  # fmt: skip

    def test_something_is_there(self, refused, tmp_path):
        zarr.create_array(tmp_path / "out.zarr", data=SCAN)
        assert matches("out.zarr exists; choose another name or overwrite=True", refused())

    def test_what_is_no_volume_is_never_overwritten(self, refused, tmp_path):
        (tmp_path / "out.zarr").mkdir()
        (tmp_path / "out.zarr" / "thesis.tex").write_text("years of work")
        assert "is not a Zarr image" in refused(overwrite=True)

    def test_a_file_that_is_there(self, refused, tmp_path):
        (tmp_path / "seg.nii.gz").write_text("precious")
        message = refused(out="seg.nii.gz")
        assert matches(r"seg.nii.gz exists; use overwrite=True \(--overwrite\) or another", message)

    def test_a_url(self, refused):
        assert "can be read but not written" in refused(out="https://example.org/out.zarr")

    def test_its_own_input(self, refused, stored, tmp_path):
        volume = stored(SCAN, "out.zarr")
        np.save(tmp_path / "scan.npy", SCAN)
        for given in (volume, volume.path, zarr.open_array(f"{volume.path}/0"), {"a": volume}):
            assert "would replace its own input" in refused(given, overwrite=True)
        assert "would replace its own input" in refused(mask=volume, overwrite=True)
        message = refused(tmp_path / "scan.npy", out="scan.npy", overwrite=True)
        assert message.endswith("scan.npy; choose another output")
        inside = refused(f"{tmp_path}/scan.npy::raw", out="scan.npy", overwrite=True)
        assert "would replace its own input" in inside
        assert np.array_equal(volume[:], SCAN)

    def test_its_own_input_by_another_name(self, refused, stored, tmp_path):
        volume = stored(SCAN)
        (tmp_path / "out.zarr").symlink_to(volume.path)
        assert "would replace its own input" in refused(volume, overwrite=True)


class TestMemory:
    """The trial's peak is set, as that of a process hangs on whatever else runs in it."""

    @pytest.fixture
    def trial(self, monkeypatch):
        """What a trial forward seems to take, in bytes."""
        taken = [2**20]
        monkeypatch.setattr("volflow.model.trial.mark_peak", lambda device: 0)
        monkeypatch.setattr("volflow.model.trial.read_peak", lambda device: taken[-1])
        return taken

    @pytest.mark.parametrize("model", [torch.nn.Identity(), random_net()])
    def test_too_little_is_refused_with_what_would_do(
        self, refused, client, tmp_path, trial, model
    ):
        message = refused(model=model, memory="1MiB", error=MemoryRefused)
        assert message.startswith("predict with patch (8, 8, 8) needs at least ")
        assert "but memory is 1 MiB" in message
        enough = re.search(r'use memory="(\w+)" or more', message)[1]
        result = vf.predict(
            SCAN, model, tmp_path / "out.zarr", patch=8, memory=enough, cluster=client,
            progress=False,
        )  # fmt: skip
        assert vf.verify(result.path).ok
        assert parse_bytes(enough) < 2**28

    def test_the_batch_gives_way_before_it_is_refused(self, client, tmp_path, trial):
        """What would do for single patches does, although the trial would like larger batches."""

        class Hungry(torch.nn.Module):
            def forward(self, batch):
                trial.append(len(batch) * 8 * 2**20)
                return batch

        plan = {"patch": 8, "cluster": client, "progress": False}
        with pytest.raises(MemoryRefused) as refused:
            vf.predict(SCAN, Hungry(), tmp_path / "out.zarr", memory="40MiB", **plan)
        enough = re.search(r'use memory="(\w+)" or more', str(refused.value))[1]
        assert parse_bytes(enough) < 100 * 2**20
        result = vf.predict(SCAN, Hungry(), tmp_path / "out.zarr", memory=enough, **plan)
        np.testing.assert_allclose(result[0], SCAN, rtol=2e-6)

    def test_a_conversion_that_cannot_fit_is_refused_too(self, refused):
        wide = da.zeros((8, 2000, 2000), chunks=(8, 2000, 2000), dtype="float32")
        message = refused(wide, torch.nn.Identity(), memory="200MiB", error=MemoryRefused)
        assert matches(r'use memory="\d+MiB" or more', message)


def test_a_scan_that_breaks_off_is_one_error(client, tmp_path):
    image = tmp_path / "scan.npy"
    np.save(image, SCAN)
    with image.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises((InvalidInput, RunFailed), match=r"scan\.npy"):
        vf.predict(image, NET, tmp_path / "out.zarr", patch=8, cluster=client, progress=False)
