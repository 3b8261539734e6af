"""Predictions in patches on a GPU: the voxels of the CPU, and nobody waits for the device."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests.nets import Named, NotANumber, random_net, slice_net
from volflow.errors import Damaged, InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.infer.patches import device_rolling, device_rows, sliding, sums
from volflow.infer.patches.device_rows import DeviceRows
from volflow.infer.patches.rows import RowReader
from volflow.model.copies import Copies
from volflow.model.device import on_device
from volflow.volumes.framed import FramedImage

BLENDS = ("crop", "average", "hann", "gaussian")
FRAMES = (None, "LPI", "ASR", "RIA")
SHAPE = (20, 14, 18)  # of `scan`
ROW_BYTES = 8 * SHAPE[1] * SHAPE[2]


class Half(nn.Module):
    """Halves the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = random_net(1, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool3d(self.net(batch), 2)


@pytest.fixture
def in_pieces(monkeypatch):
    """Sends, weighs and closes a little at a time, as large volumes are."""
    monkeypatch.setattr(device_rows, "PIECE_BYTES", 3 * ROW_BYTES)
    monkeypatch.setattr(device_rolling, "PRODUCT_BYTES", 2 * 4 * 8**3)
    monkeypatch.setattr(sums, "CLOSED_BYTES", 3 * ROW_BYTES)


@pytest.fixture
def during_tasks(gpu, monkeypatch):
    """What was counted while tiles were computed, one entry for each."""
    counted, slide = [], sliding._slide

    def watched(*arguments):
        before = gpu.counts()
        yield from slide(*arguments)
        counted.append(gpu.counts() - before)

    monkeypatch.setattr(sliding, "_slide", watched)
    return counted


@pytest.mark.slow
class TestVoxels:
    @pytest.mark.parametrize("frame", FRAMES)
    @pytest.mark.parametrize("blend", BLENDS)
    def test_of_every_blend_and_frame(self, scan, agree, device, blend, frame):
        agree(scan(), random_net(), device, blend=blend, frame=frame, normalize="zscore")

    @pytest.mark.parametrize(("blend", "frame"), list(zip(BLENDS, FRAMES, strict=True)))
    def test_of_several_tiles_in_pieces(
        self, scan, agree, device, in_tiles, in_pieces, blend, frame
    ):
        in_tiles()
        agree(scan(), random_net(1, 3), device, blend=blend, frame=frame, overlap=0.5)

    @pytest.mark.parametrize("padding", [-2.5, "edge", "reflect"])
    def test_of_what_lies_outside(self, scan, agree, device, padding):
        volume = scan(shape=(3, 17, 1))
        agree(volume, random_net(), device, blend="crop", frame="LPI", padding=padding)
        agree(volume, Half().eval(), device, blend="crop", overlap=0, padding=padding)

    @pytest.mark.parametrize("net", [Half(), Named(random_net(1, 3), random_net(1, 1, 1))])
    def test_of_scaled_and_of_several_outputs(self, scan, agree, device, in_pieces, net):
        image = scan()
        agree(image, net.eval(), device, blend="gaussian", frame="LPI", output="classes")
        agree(image, net.eval(), device, blend="hann", overlap=0.5)

    @pytest.mark.parametrize(
        ("activation", "within"), [(None, 0), ("softmax", 2e-7), ("sigmoid", 2e-7), (torch.abs, 0)]
    )
    @pytest.mark.parametrize("output", ["scores", "classes"])
    def test_of_every_activation(self, scan, agree, device, output, activation, within):
        options = {"activation": activation, "output": output, "blend": "gaussian"}
        agree(scan(high=9), random_net(1, 3), device, within=within, **options)
        if output == "classes" and activation == "sigmoid":
            agree(scan("b.zarr", high=9), random_net(1, 1), device, **options)

    def test_of_float16_also_where_it_overflows(self, scan, predicted, device):
        net = nn.Conv3d(1, 2, 3, padding=1)
        nn.init.constant_(net.weight, 2.0)  # 27 voxels of up to 2000
        volume = scan()
        exact = predicted(volume, net, device)[""]
        found = predicted(volume, net, device, precision="float16")[""]
        assert exact.max() > 65504 > exact.min()
        assert not np.array_equal(found, exact)
        np.testing.assert_allclose(found, exact, rtol=4e-3)

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float16"])
    def test_of_every_stored_dtype(self, scan, agree, device, dtype):
        agree(scan(high=200), random_net(), device, dtype=dtype, blend="hann")

    @pytest.mark.parametrize("blend", ["crop", "exact"])
    def test_of_another_spacing(self, scan, agree, device, blend):
        """Scores of the device, which come back on the host."""
        image = scan(high=200)
        image = replace(image, meta=replace(image.meta, unit="millimeter"))
        options = {"blend": blend, "spacing": (1.5, 1, 0.8), "frame": "LPI"}
        if blend == "exact":
            options |= {"patch": None}
        agree(image, random_net(1, 3), device, within=1e-5 * (blend == "exact"), **options)
        agree(image, random_net(1, 3), device, output="classes", **options)

    @pytest.mark.parametrize("blend", ["crop", "gaussian"])
    def test_where_patches_are_left_out(self, scan, agree, device, in_tiles, blend):
        image, mask = scan(), scan("mask.zarr", "uint8", high=1.004)
        values = np.asarray(image)
        image.write(Roi.full(SHAPE), np.where(values > 1900, values, 0))
        options = {"mask": mask, "skip_below": 1900, "blend": blend}
        agree(image, random_net(), device, **options)
        in_tiles()
        options |= {"output": "classes", "dtype": "uint16", "fill": 7, "frame": "LPI"}
        found = agree(image, random_net(1, 3), device, **options)
        assert (found[""] == 7).any()

    def test_of_networks_of_slices_and_of_float64(self, scan, agree, device):
        image = scan()
        agree(image, slice_net(), device, patch=(1, 8, 8), batch_size=3, blend="average")
        agree(image, random_net().double(), device, blend="gaussian", flips="x")

    def test_of_several_volumes(self, scan, agree, device, in_pieces):
        volumes = {"a": scan(), "b": scan("b.zarr", "uint8", (2, *SHAPE), high=200)}
        agree(volumes, random_net(3, 2), device, blend="hann", normalize="minmax")

    def test_of_map_model(self, scan, device):
        image, options = scan(), {"patch": 8, "blend": "gaussian", "block": 8}
        options["precision"] = "float32"
        expected = vf.map_model(image, random_net(), device="cpu", **options).compute()
        found = vf.map_model(image, random_net(), device=device, **options).compute()
        np.testing.assert_allclose(found, expected, rtol=0 if device != "cuda" else 1e-4, atol=1e-5)


NORMALIZE = {
    "none": None,
    "zscore": Normalization((60.3, 1.7), (0.31, 1e-3), (None, None), (None, None)),
    "clipped": Normalization((-2.5, 70.0), (0.01, 0.02), (0.1, None), (1.0, 0.3)),
    "foreground": Normalization((7.5, 3.0), (0.31, 0.2), (None, -1.0), (None, None), True),
    "function": np.sqrt,
}


TILE = Roi((0, 0, 2), (18, 16, 14))


def rows_of(reader):
    """Patches out of the rows of a tile: at its border, beyond it, and in the middle."""
    rois = [Roi(start, [a + 9 for a in start]) for start in ((0, 0, 2), (-2, 9, 0), (11, 3, 7))]
    device = torch.device("cpu") if type(reader) is RowReader else reader.device
    with on_device(device), torch.inference_mode(), closing(reader):
        reader.load(18)
        reader.wait()
        return reader.batch(rois).cpu().numpy().copy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", "i2", "u4", "u8", "i8", "f2", "f4", "f8", ">u2"]
)
def test_rows_are_scaled_as_on_the_cpu(scan, device, in_pieces, dtype):
    volumes = scan(dtype=dtype, high=120), scan("two.zarr", dtype, (2, *SHAPE), high=120)
    specs = tuple(volume.spec for volume in volumes)
    copies = Copies(torch.device(device))
    for scaled, computed in itertools.product(NORMALIZE.values(), ("float32", "float64")):
        first = scaled
        if isinstance(scaled, Normalization):
            constants = (scaled.zero, scaled.scale, scaled.low, scaled.high)
            first = Normalization(*((one[0],) for one in constants), scaled.keep_zero)
        frame = Frame((2, 0, 1), (True, False, True))
        image = FramedImage(specs, volumes, (first, scaled), frame)
        here, there = (
            rows_of(reader)
            for reader in (
                RowReader(image, TILE, computed),
                DeviceRows(image, TILE, computed, copies),
            )
        )
        assert np.array_equal(here, there), (scaled, computed)


class TestErrors:
    def test_what_is_no_number_is_refused_as_on_the_cpu(self, scan, predicted, device):
        with pytest.raises(Damaged, match="the model produced NaN or infinity; check its weights"):
            predicted(scan(), NotANumber(), device)

    def test_what_a_dtype_cannot_hold_is_too(self, scan, predicted, device):
        with pytest.raises(InvalidInput, match=r"scores reach \d+, which float16 .* dtype='float3"):
            predicted(scan(high=7e4), nn.Identity(), device, dtype="float16")


# 4 × 3 × 4 patches in 4 layers.
HALVES = {"blend": "gaussian", "overlap": 0.5, "normalize": "zscore"}
PATCHES, LAYERS, WINDOW_BYTES = 4 * 3 * 4, 4, 4 * 8**3


class TestCounts:
    """Of one small prediction on the stand-in."""

    @pytest.mark.slow
    def test_the_input_goes_up_once_as_stored_and_the_output_down_once(
        self, scan, predicted, during_tasks
    ):
        for name, options in (("scores", {}), ("classes", {"output": "classes"})):
            during_tasks.clear()
            found = predicted(scan(f"{name}.zarr"), random_net(1, 3), "cuda", **HALVES, **options)
            (counts,) = during_tasks
            assert counts.h2d_bytes == 2 * np.prod(SHAPE) + WINDOW_BYTES
            assert counts.d2h_bytes == found[""].nbytes + LAYERS * 2 * 4
            assert counts.pageable == 0

    @pytest.mark.slow
    def test_the_host_waits_once_for_each_layer_of_patches(self, scan, predicted, during_tasks):
        predicted(scan(), random_net(), "cuda", **HALVES)
        (counts,) = during_tasks
        assert counts.by_kind("sync") == {"event": LAYERS}

    @pytest.mark.slow
    @pytest.mark.parametrize("channels", [2, 9])
    def test_a_patch_takes_few_kernels(self, scan, predicted, during_tasks, channels):
        """A slice of each segment, and two for the sums, however many channels there are."""
        predicted(scan(), random_net(1, channels), "cuda", batch_size=1, **HALVES)
        (counts,) = during_tasks
        network = counts.by_kind("kernel")["conv3d"] + counts.by_kind("kernel")["gelu"]
        left = counts.kernels - network - 3 * PATCHES
        assert left < 24 * LAYERS  # closing one, with the sums of weights of its rows

    @pytest.mark.slow
    def test_a_tile_sends_what_it_reads(self, scan, predicted, during_tasks, in_tiles):
        in_tiles((8, 8, 24))
        found = predicted(scan(), random_net(), "cuda", **HALVES)
        sent = sorted(counts.h2d_bytes - WINDOW_BYTES for counts in during_tasks)
        # Patches that reach into the first tile begin at 0, 4 and 6; into the second, at 4 and 6.
        assert sent == [2 * 20 * rows * 18 for rows in (10, 14)]
        assert sum(c.d2h_bytes for c in during_tasks) == found[""].nbytes + 2 * LAYERS * 2 * 4
