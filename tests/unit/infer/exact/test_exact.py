"""blend="exact" is the network's run on the whole volume, whatever the blocks and the memory."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from tests.exact_oracle import EXACT, error, lively, whole
from volflow.errors import InvalidInput, MemoryRefused, NoExactRule
from volflow.model.unet import UNet
from volflow.passes import network

SHAPE = (18, 13, 21)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def unet(levels=3, norm="none", *, channels=1, out=2, up="transposed", dims=3, seed=0):
    torch.manual_seed(seed)
    features = tuple(3 * 2**level for level in range(levels))
    return lively(UNet(channels, out, features, norm=norm, up=up, dims=dims))


def meshnet(norm=False, channels=1, dilations=(1, 2, 4, 2)):
    torch.manual_seed(0)
    layers, before = [], channels
    for dilation in dilations:
        layers += [nn.Conv3d(before, 4, 3, padding=dilation, dilation=dilation)]
        layers += [nn.InstanceNorm3d(4)] if norm else []
        layers += [nn.GELU()]
        before = 4
    return lively(nn.Sequential(*layers, nn.Conv3d(4, 3, 1)), 2)


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape) + 0.1


class TestUNet:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("levels", "norm", "up"),
        [
            (2, "instance", "linear"), (3, "group", "transposed"),
            pytest.param(4, "batch", "linear", marks=pytest.mark.slow),
            pytest.param(5, "none", "transposed", marks=pytest.mark.slow),
        ],
    )  # fmt: skip
    def test_in_one_block_and_in_many(self, exact, planned, levels, norm, up):
        net, scan = unet(levels, norm, up=up), noise()
        expected = whole(scan, net, 2 ** (levels - 1))
        assert planned(scan, net, memory="2GiB") == (1, 1)
        assert error(exact(scan, net, "a.zarr", memory="2GiB")[:], expected) < EXACT
        passes, blocks = planned(scan, net, memory="52MiB" if levels == 5 else "49MiB")
        assert passes > 1
        assert blocks > 1
        result = exact(scan, net, "b.zarr", memory="52MiB" if levels == 5 else "49MiB")
        assert error(result[:], expected) < EXACT
        assert vf.verify(result.path).ok

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(1, 2, 3), (2, 30, 1), (16, 16, 16), (17, 7, 9)])
    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_of_tiny_volumes(self, exact, shape, norm):
        net, scan = unet(3, norm), noise(shape)
        if norm == "instance" and max(shape) <= 4:
            with pytest.raises(InvalidInput, match="Expected more than 1 spatial element"):
                exact(scan, net)
            return
        assert error(exact(scan, net, memory="49MiB")[:], whole(scan, net, 4)) < EXACT

    @pytest.mark.slow
    def test_a_volume_of_zeros(self, exact):
        net, scan = unet(3, "instance"), np.zeros((20, 17, 12))
        assert error(exact(scan, net, memory="49MiB")[:], whole(scan, net, 4)) < EXACT

    @pytest.mark.slow
    def test_a_large_mean_cancels_nothing(self, exact):
        net, scan = unet(2, "instance"), 1e4 + noise()
        expected = whole(scan, net, 2)
        assert error(exact(scan, net, "a.zarr", memory="49MiB")[:], expected) < 1e-9


class TestOtherNetworks:
    @pytest.mark.slow
    @pytest.mark.parametrize("norm", [False, True])
    def test_dilated(self, exact, planned, norm):
        net, scan = meshnet(norm), noise()
        expected = whole(scan, net)
        for n, memory in enumerate(("2GiB", "49MiB")):
            assert error(exact(scan, net, f"{n}.zarr", memory=memory)[:], expected) < EXACT
        assert planned(scan, net, memory="49MiB")[1] > 1

    @pytest.mark.slow
    def test_squeeze_and_excitation(self, exact, planned):
        net, scan = lively(Excited()), noise()
        assert planned(scan, net, memory="49MiB")[0] > 1
        for n, memory in enumerate(("2GiB", "49MiB")):
            assert error(exact(scan, net, f"{n}.zarr", memory=memory)[:], whole(scan, net)) < EXACT

    @pytest.mark.parametrize("memory", ["2GiB", "49MiB"])
    def test_stride_two(self, exact, memory):
        net = lively(nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 2, 3, 1, 1)))
        scan = noise((33, 20, 31))
        result = exact(scan, net, memory=memory)
        assert result.shape == (2, 17, 10, 16)
        assert result.spacing == (2, 2, 2)
        assert error(result[:], whole(scan, net, 2)) < EXACT

    def test_none_at_all(self, exact):
        scan = noise((20, 17, 12)).astype("f4")
        assert np.array_equal(exact(scan, nn.Identity())[0], scan)


class Excited(nn.Module):
    """Channels are weighed by what the whole volume says of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 2, 1), nn.ReLU(), nn.Conv3d(2, 4, 1), nn.Sigmoid()
        )

    def forward(self, image):
        found = self.first(image)
        return self.last(found * self.gate(found))


class TestTheResultDependsNotOn:
    @pytest.mark.slow
    def test_memory_blocks_and_layout(self, exact, planned):
        net, scan = unet(3, "instance"), noise((22, 13, 27))
        expected = whole(scan, net, 4)
        seen = set()
        choices = [
            {"memory": memory, "chunk": chunk, "shard": shard}
            for memory, chunk, shard in [
                ("49MiB", 4, 8), ("50MiB", (8, 4, 16), (16, 4, 16)), ("52MiB", None, None),
                ("1GiB", 5, 10),
            ]
        ]  # fmt: skip
        for n, options in enumerate(choices):
            seen.add(planned(scan, net, **options))
            assert error(exact(scan, net, f"{n}.zarr", **options)[:], expected) < EXACT
        assert len(seen) == 4

    @pytest.mark.slow
    def test_workers(self, exact):
        net, scan = unet(3, "instance"), noise()
        assert error(exact(scan, net, memory="49MiB", cluster=2)[:], whole(scan, net, 4)) < EXACT


class TestOptions:
    @pytest.mark.slow
    def test_shards_that_were_asked_for_are_kept(self, exact):
        result = exact(noise(), unet(2), shard=(16, 8, 24), memory="49MiB")
        assert result.shards[-3:] == (16, 8, 24)

    @pytest.mark.slow
    @pytest.mark.parametrize("memory", ["2GiB", "49MiB"])
    def test_classes(self, exact, memory):
        net, scan = unet(3, "instance", out=4), noise()
        result = exact(scan, net, output="classes", memory=memory)
        assert (result.dtype, result.axes) == (np.uint8, ("z", "y", "x"))
        assert np.array_equal(result[:], whole(scan, net, 4).argmax(0))

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid", lambda s_CZYX: s_CZYX.flip(0)])
    def test_activation(self, exact, activation):
        net, scan = unet(2, "batch", out=3), noise()
        scores = torch.from_numpy(whole(scan, net, 2))
        expected = {"softmax": scores.softmax(0), "sigmoid": scores.sigmoid()}.get(
            activation, scores.flip(0)
        )
        result = exact(scan, net, activation=activation, memory="49MiB")
        assert error(result[:], expected.numpy()) < EXACT

    @pytest.mark.slow
    def test_dtype(self, exact):
        net, scan = unet(2), noise()
        full = exact(scan, net, "full.zarr", memory="49MiB")
        half = exact(scan, net, "half.zarr", memory="49MiB", dtype="float16")
        counts = exact(scan, net, "counts.zarr", memory="49MiB", dtype="uint8")
        assert (full.dtype, half.dtype, counts.dtype) == (np.float64, np.float16, np.uint8)
        assert np.array_equal(half[:], full[:].astype("f2"))
        assert np.array_equal(counts[:], np.clip(np.rint(full[:]), 0, 255))

    @pytest.mark.slow
    def test_float32(self, exact):
        net, scan = unet(3, "instance").float(), noise().astype("f4")
        result = exact(scan, net, memory="114MiB")
        assert result.dtype == np.float32
        assert error(result[:], whole(scan, net, 4)) < 1e-5

    @pytest.mark.slow
    def test_channels(self, exact):
        net, scan = unet(3, "instance", channels=3), noise((3, *SHAPE))
        assert error(exact(scan, net, memory="49MiB")[:], whole(scan, net, 4)) < EXACT

    @pytest.mark.slow
    def test_several_inputs_by_name(self, exact, tmp_path):
        net, (one, two) = unet(2, channels=2), noise((2, *SHAPE))
        vf.save_model(net, tmp_path / "bundle", channels=["t1", "t2"])
        result = exact({"t2": two, "t1": one}, tmp_path / "bundle", memory="49MiB")
        expected = whole(np.stack([one, two]), net, 2)
        assert error(result[:], expected) < (EXACT if result.dtype == np.float64 else 1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(("flips", "norm"), [("x", "instance"), ("zyx", "none")])
    def test_flips_are_of_the_padded_volume(self, exact, flips, norm):
        net, scan = unet(2, norm), noise((13, 18, 11))
        axes = ["zyx".index(letter) for letter in flips]
        some = [
            [a for a, chosen in zip(axes, bits, strict=True) if chosen]
            for bits in itertools.product((0, 1), repeat=len(axes))
        ]

        def mean(batch):
            return sum(nets.mirrored(net, batch, dims) for dims in some) / len(some)

        result = exact(scan, net, flips=flips, memory="54MiB")
        assert error(result[:], whole(scan, mean, 2)) < EXACT
        assert error(result[:], whole(scan, net, 2)) > 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize("choice", ["minmax", "zscore", "percentile"])
    def test_constants_of_the_whole_volume(self, exact, choice):
        net, counts = unet(2), (900 * noise()).astype("uint16")
        low, high = np.percentile(counts, (2, 98))
        scaled = {
            "minmax": (counts - counts.min()) / np.ptp(counts),
            "zscore": (counts - counts.mean()) / counts.std(),
            "percentile": np.clip((counts - low) / (high - low), 0, 1),
        }[choice]
        result = exact(counts, net, normalize=choice, memory="49MiB")
        assert error(result[:], whole(scaled, net, 2)) < 1e-6

    @pytest.mark.slow
    def test_a_function_normalises(self, exact):
        net, scan = unet(2), noise()
        result = exact(scan, net, normalize=lambda czyx: np.sqrt(czyx) + 1, memory="49MiB")
        # Voxels beyond the volume are zero all the same.
        assert error(result[:], whole(np.sqrt(scan) + 1, net, 2)) < EXACT

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("stored_as", "norm"),
        [("SAR", "none"), ("SPL", "instance"), ("LIA", "none"), ("AIR", "none")],
    )
    def test_frames(self, exact, stored, stored_as, norm):
        net, scan = unet(2, norm), noise((13, 18, 23))
        frame = vf_frame(stored_as, "RAS")
        shown = np.ascontiguousarray(frame.show(scan[None]))
        expected = frame.store(whole(shown, net, 2))
        volume = stored(scan, orientation=stored_as)
        result = exact(volume, net, frame="RAS", memory="49MiB")
        assert result.orientation == stored_as
        assert error(result[:], expected) < EXACT

    @pytest.mark.slow
    def test_the_bundle_says_so(self, tmp_path, client):
        net, scan = UNet(1, 2, (2, 4)).eval(), noise().astype("f4")
        vf.save_model(net, tmp_path / "bundle", blend="exact", activation="softmax")
        result = vf.predict(
            scan, tmp_path / "bundle", tmp_path / "o.zarr", cluster=client, progress=False
        )
        expected = torch.from_numpy(whole(scan, net, 2)).softmax(0).numpy()
        assert error(result[:], expected) < 1e-6


def vf_frame(stored, wanted):
    from volflow.geometry.frame import Frame

    return Frame.between(stored, wanted)


class Twice(nn.Module):
    """Two outputs that share their memory."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image):
        scores = self.net(image)
        return {"all": scores, "again": scores, "first": scores[:, :1]}


class TestOutputs:
    @pytest.mark.slow
    @pytest.mark.parametrize("memory", ["2GiB", "49MiB"])
    def test_by_name(self, exact, tmp_path, memory):
        first, second = unet(3, "instance", out=3), unet(2, "none", out=1, seed=3)
        scan = noise()
        found = exact(scan, nets.Named(first, second), memory=memory)
        assert list(found) == ["seg", "edge"]
        assert error(found["seg"][:], whole(scan, first, 4)) < EXACT
        # The other has an alignment of its own: the volume is padded to both.
        assert error(found["edge"][:], whole(scan, second, 4)) < EXACT
        assert vf.verify(tmp_path / "out.zarr").ok

    @pytest.mark.slow
    def test_that_are_one_tensor_are_finished_apart(self, exact):
        net, scan = unet(2, out=1), noise((16, 9, 12))
        found = exact(scan, Twice(net), activation="sigmoid")
        expected = torch.from_numpy(whole(scan, net, 2)).sigmoid().numpy()
        for name in ("all", "again", "first"):
            assert error(found[name][:], expected) < EXACT

    @pytest.mark.slow
    def test_levels(self, exact):
        net, scan = unet(2), noise((6, 9, 66))
        result = exact(scan, net, levels=True, memory="49MiB", shard=32)
        assert len(result.levels) == 2
        assert error(result[:], whole(scan, net, 2)) < EXACT

    @pytest.mark.slow
    def test_nifti_in_and_out(self, exact, tmp_path):
        scan = noise((12, 17, 9)).astype("f4")
        affine = np.diag([-0.5, 0.5, 2.0, 1])
        nibabel.save(nibabel.Nifti1Image(scan.T, affine), tmp_path / "scan.nii.gz")
        net = unet(2, "instance", out=3)
        result = exact(
            tmp_path / "scan.nii.gz", net, "seg.nii.gz", output="classes", memory="49MiB"
        )
        written = nibabel.load(tmp_path / "seg.nii.gz")
        np.testing.assert_allclose(written.affine, affine)
        expected = whole(scan.astype("f8"), net, 2).argmax(0)
        assert np.array_equal(np.asarray(written.dataobj).T, expected)
        assert vf.verify(result.path).ok

    @pytest.mark.slow
    def test_numpy_in_and_out(self, exact, tmp_path):
        scan, net = noise((12, 17, 9)), unet(2)
        np.save(tmp_path / "scan.npy", scan)
        exact(tmp_path / "scan.npy", net, "scores.npy", memory="49MiB")
        assert error(np.load(tmp_path / "scores.npy"), whole(scan, net, 2)) < EXACT


class Sliced(nn.Module):
    """A 2-D net on each slice of a volume along an axis."""

    def __init__(self, net, axis):
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, volume):
        slices = [self.net(one) for one in volume.unbind(2 + self.axis)]
        return torch.stack(slices, 2 + self.axis)


class TestSlices:
    @pytest.mark.slow
    @pytest.mark.parametrize("patch", [(1, 64, 64), (9, 1, 9), (8, 8, 1)])
    def test_whole_slices(self, exact, patch):
        net, scan, axis = unet(3, "instance", dims=2), noise((11, 18, 21)), patch.index(1)
        alignment = tuple(1 if a == axis else 4 for a in range(3))
        expected = whole(scan, Sliced(net, axis), alignment)
        for n, memory in enumerate(("2GiB", "49MiB")):
            result = exact(scan, net, f"{n}.zarr", patch=patch, memory=memory, shard=None)
            assert error(result[:], expected) < EXACT

    @pytest.mark.slow
    def test_parts_of_slices(self, exact, planned):
        net, scan = unet(3, dims=2), noise((3, 90, 70))
        options = {"patch": (1, 8, 8), "memory": "49MiB", "shard": None}
        assert planned(scan, net, **options)[1] > 9
        result = exact(scan, net, **options)
        assert error(result[:], whole(scan, Sliced(net, 0), (1, 4, 4))) < EXACT

    @pytest.mark.slow
    def test_in_a_frame_and_mirrored(self, exact, stored):
        net, scan = unet(2, "instance", dims=2), noise((13, 18, 23))
        shown = np.ascontiguousarray(scan.transpose(2, 1, 0)[::-1])

        def mean(batch):
            return (net(batch) + net(batch.flip(2)).flip(2)) / 2

        expected = whole(shown, Sliced(mean_module(mean), 2), (2, 2, 1))
        result = exact(
            stored(scan, orientation="SAL"), net, patch=(8, 8, 1), frame="RAS", flips="xz"
        )
        # x is no axis that the net sees, so that only z is mirrored.
        assert error(result[:], expected[:, ::-1].transpose(0, 3, 2, 1)) < EXACT

    def test_memory_does_not_follow_their_number(self, planned):
        net = unet(3, "instance", dims=2)
        for depth in (20, 2000):
            scan = np.broadcast_to(np.float64(1), (depth, 32, 40))
            planned(scan, net, f"{depth}.zarr", patch=(1, 8, 8), memory="54MiB", shard=None)


def mean_module(function):
    module = nn.Module()
    module.forward = function
    return module


class Positioned(nn.Module):
    """Adds an embedding of fixed size: no rule can say what a block of it is."""

    def __init__(self, shape):
        super().__init__()
        self.place = nn.Parameter(torch.rand(1, 1, *shape))

    def forward(self, image):
        return image + self.place


class Sorted(nn.Module):
    def forward(self, image):
        return image.flatten(2).sort(2).values.reshape(image.shape)


class TestRefused:
    def test_a_network_without_a_rule(self, exact, tmp_path):
        net = nn.Sequential(nn.Conv3d(1, 1, 1), Sorted())
        with pytest.raises(NoExactRule, match=r"(flatten|sort) in 1 has no exact rule: .*gaussian"):
            exact(noise(), net)
        assert list(tmp_path.iterdir()) == []

    def test_no_patch_is_needed_but_a_mask_makes_no_sense(self, exact, tmp_path):
        for options in ({"mask": np.ones(SHAPE, "u1")}, {"skip_below": 1.0}):
            with pytest.raises(InvalidInput, match="mask and skip_below leave patches out"):
                exact(noise(), unet(2), **options)
        assert list(tmp_path.iterdir()) == []

    @pytest.fixture
    def steady(self, monkeypatch):
        """Ops take as much whenever they are measured, whatever else runs in this process."""
        monkeypatch.setattr("volflow.passes.profile.mark_peak", lambda device: 0)
        monkeypatch.setattr("volflow.passes.profile.read_peak", lambda device: 2**20)

    @pytest.mark.slow
    @pytest.mark.parametrize("norm", ["none", "instance"])
    @pytest.mark.usefixtures("steady")
    def test_too_little_memory_with_a_remedy_that_works(self, exact, tmp_path, norm):
        net, scan = unet(3, norm), noise((24, 17, 30))
        with pytest.raises(MemoryRefused, match=r'use memory="(\d+)MiB" or more') as refused:
            exact(scan, net, memory="48MiB")
        assert list(tmp_path.iterdir()) == []
        memory = str(refused.value).split('memory="')[1].split('"')[0]
        assert error(exact(scan, net, memory=memory)[:], whole(scan, net, 4)) < EXACT

    @pytest.mark.slow
    @pytest.mark.usefixtures("steady")
    def test_slices_that_do_not_fit(self, exact):
        net, scan = unet(4, "instance", dims=2), noise((4, 100, 90))
        options = {"patch": (1, 8, 8), "shard": None}
        with pytest.raises(MemoryRefused, match=r'use memory="(\d+)MiB" or more') as refused:
            exact(scan, net, memory="48MiB", **options)
        memory = str(refused.value).split('memory="')[1].split('"')[0]
        expected = whole(scan, Sliced(net, 0), (1, 8, 8))
        assert error(exact(scan, net, memory=memory, **options)[:], expected) < EXACT

    def test_wrong_channels(self, exact, tmp_path):
        with pytest.raises(InvalidInput, match=r"does not take an image of shape \(1, 2, "):
            exact(noise((2, *SHAPE)), nets.random_net())
        assert list(tmp_path.iterdir()) == []

    def test_outputs_of_several_resolutions(self, exact):
        net = nets.Named(nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 2, stride=2))
        with pytest.raises(InvalidInput, match="outputs differ in resolution"):
            exact(noise(), net)

    def test_a_model_that_crops_its_borders(self, exact):
        with pytest.raises(InvalidInput, match="For a model that crops its borders pad its conv"):
            exact(noise(), nn.Conv3d(1, 1, 3))

    def test_not_a_number(self, exact):
        scan = noise((16, 16, 16))
        scan[3, 4, 5] = np.nan
        with pytest.raises(vf.errors.VolflowError, match="produced NaN or infinity"):
            exact(scan, unet(2))


@pytest.mark.slow
def test_a_network_is_traced_once(client, tmp_path, monkeypatch):
    traced, trace = [], network.trace_any
    monkeypatch.setattr(
        network, "trace_any", lambda *of, **named: traced.append(of) or trace(*of, **named)
    )
    options = {"cluster": client, "memory": "50MiB", "chunk": 8, "shard": 8, "progress": False}
    net, scan = unet(2, "instance"), noise()
    result = vf.predict(scan, net, tmp_path / "out.zarr", blend="exact", **options)
    assert error(result[:], whole(scan, net, 2)) < EXACT
    assert len(traced) == 1
