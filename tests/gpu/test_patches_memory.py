"""What patches take of a GPU's memory, and what becomes of them where it ends."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.nets import random_net
from volflow.errors import MemoryRefused
from volflow.geometry.budget import parse_bytes
from volflow.infer.patches import demand, sliding, sums
from volflow.infer.patches import method as patches
from volflow.infer.patches.device_rows import DeviceRows
from volflow.infer.patches.sums import DeviceSums, HostSums
from volflow.infer.patches.tiling import choose_tiling
from volflow.infer.predict import plan_predict

MIB = 2**20
# 40 channels: sums are larger than all else, and larger than 300 kB.
CLASSES = {"blend": "gaussian", "overlap": 0.5, "batch_size": 1, "output": "classes"}


@pytest.fixture
def on_host(monkeypatch):
    """The sums in the host's memory that were made."""
    made, plain = [], HostSums.__init__

    def noted(one, blending, copies, context):
        if copies.device.type == "cuda":
            made.append(one)
        plain(one, blending, copies, context)

    monkeypatch.setattr(HostSums, "__init__", noted)
    return made


@pytest.fixture
def failing(gpu, monkeypatch):
    """Lets allocations fail once a method is called for the nth time."""

    def arm(owner, name, times, above, at=1):
        calls, plain = [], getattr(owner, name)

        def armed(*arguments):
            calls.append(name)
            if len(calls) == at:
                gpu.fail_allocations(times, above)
            return plain(*arguments)

        monkeypatch.setattr(owner, name, armed)

    return arm


@pytest.mark.slow
class TestProjection:
    @pytest.fixture
    def grown(self, monkeypatch):
        """By how much tasks grew on the device; plans add nothing for what torch takes."""
        monkeypatch.setattr(demand, "SLACK_BYTES", 0)
        monkeypatch.setattr(sums, "CLOSED_BYTES", 3 * 20 * 14 * 18 * 4)
        monkeypatch.setattr(demand, "CLOSED_BYTES", 3 * 20 * 14 * 18 * 4)
        found, slide = [], sliding._slide

        def watched(*arguments):
            before = torch.cuda.memory_allocated(0)
            torch.cuda.reset_peak_memory_stats(0)
            yield from slide(*arguments)
            found.append(torch.cuda.max_memory_allocated(0) - before)

        monkeypatch.setattr(sliding, "_slide", watched)
        return found

    @pytest.fixture
    def tilings(self, monkeypatch):
        """Lets plans put the sums somewhere; returns the tilings that they choose."""

        def force(host_sums):
            made = []

            def placed(given, *rest):
                made.append(choose_tiling(replace(given, host_sums=host_sums), *rest))
                return made[-1]

            monkeypatch.setattr(patches, "place_sums", placed)
            return made

        return force

    @pytest.mark.parametrize("host_sums", [False, True])
    @pytest.mark.parametrize(
        "options",
        [{"blend": "gaussian", "activation": "softmax"}, {"blend": "crop", "dtype": "int32"},
         {"output": "classes", "blend": "hann", "skip_below": 500}],
    )  # fmt: skip
    def test_a_task_keeps_to_it(self, gpu, scan, predicted, tilings, grown, options, host_sums):
        placed = tilings(host_sums)
        more = {"overlap": 0.5, "normalize": "minmax", "batch_size": 2}
        predicted(scan(), random_net(1, 20), "cuda:0", **options, **more)
        projected = placed[0].device_peak_bytes
        assert projected / 4 < grown[0] <= projected
        assert gpu.pins.peak <= placed[0].peak_bytes


@pytest.mark.slow
class TestSumsOfTheHost:
    @pytest.mark.parametrize("blend", ["crop", "gaussian"])
    def test_are_the_same_bits(self, scan, agree, device, in_tiles, on_host, blend):
        in_tiles((8, 8, 24), host_sums=True)
        agree(scan(), random_net(1, 3), device, blend=blend, overlap=0.5, activation="softmax")
        assert len(on_host) == 2

    def test_a_refusal_names_the_memory_that_does(
        self, gpu, scan, predicted, on_host, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(demand, "SLACK_BYTES", MIB)
        image, net = scan(), random_net(1, 40)
        with pytest.raises(MemoryRefused, match="on the device but device_memory is 1 ") as refused:
            predicted(image, net, "cuda", device_memory="1MiB", **CLASSES)
        enough = re.search(r'device_memory="(\d+MiB)" or more \(--dev', str(refused.value))[1]
        found = predicted(image, net, "cuda", device_memory=enough, **CLASSES)
        assert on_host
        plan = plan_predict(
            image, net, tmp_path / "planned.zarr", patch=8, chunk=8, shard=8, device="cuda",
            precision="float32", cluster="threads", device_memory=enough, **CLASSES,
        )  # fmt: skip
        assert "batches of 1, sums on the host" in plan.describe()
        assert plan.device_peak_bytes <= plan.device_memory_bytes == parse_bytes(enough)
        assert np.array_equal(found[""], predicted(image, net, "cpu", **CLASSES)[""])

    def test_a_batch_is_halved_where_nobody_asked_for_it(self, gpu, scan, tmp_path, monkeypatch):
        def placed(given, *rest):
            if given.batch_size > 1:
                raise MemoryRefused("give more")
            return choose_tiling(given, *rest)

        monkeypatch.setattr(patches, "place_sums", placed)
        options = {"patch": 8, "overlap": 0.5, "device": "cuda", "cluster": "threads"}
        image, net, out = scan(), random_net(), tmp_path / "out.zarr"
        assert "batches of 1" in plan_predict(image, net, out, **options).describe()
        with pytest.raises(MemoryRefused):
            plan_predict(image, net, out, batch_size=4, **options)


@pytest.mark.slow
class TestExhausted:
    """Memory ends while a task runs, whatever its plan said: the voxels are the same."""

    @pytest.fixture
    def same(self, scan, predicted):
        def compare(channels=40):
            image, net = scan(), random_net(1, channels)
            expected = predicted(image, net, "cpu", **CLASSES)[""]
            found = predicted(image, net, "cuda", **CLASSES)[""]
            assert np.array_equal(found, expected)

        return compare

    @pytest.mark.parametrize(("times", "moved"), [(1, 0), (2, 1)])
    def test_when_sums_are_allocated(self, same, failing, on_host, times, moved):
        failing(DeviceSums, "__init__", times, 300_000)
        same()
        assert len(on_host) == moved

    @pytest.mark.parametrize("layer", [1, 3, 4])
    @pytest.mark.parametrize(("times", "moved"), [(1, 0), (2, 1)])
    def test_when_rows_are_closed(self, same, failing, on_host, times, moved, layer):
        failing(DeviceSums, "_finish", times, 100_000, layer)
        same()
        assert len(on_host) == moved

    @pytest.mark.parametrize(("times", "moved"), [(1, 0), (3, 0), (4, 1), (5, 1)])
    def test_when_rows_are_sent(self, same, failing, on_host, times, moved):
        failing(DeviceRows, "_upload", times, 10_000)
        same()
        assert len(on_host) == moved

    def test_in_a_forward(self, gpu, same, on_host, monkeypatch):
        armed = []

        def forward(conv, image):
            # Trials see zeros.
            if not armed and conv.in_channels == 1 and image.is_cuda and bool(image.any()):
                armed.append(1)
                gpu.fail_allocations(1)
            return plain(conv, image)

        plain = nn.Conv3d.forward
        monkeypatch.setattr(nn.Conv3d, "forward", forward)
        same()
        assert len(on_host) == 1

    def test_for_good(self, scan, predicted, failing):
        failing(DeviceRows, "_upload", 10**6, 10_000)
        with pytest.raises(MemoryRefused, match="the rows of a tile do not fit in the memory of c"):
            predicted(scan(), random_net(), "cuda", **CLASSES)
