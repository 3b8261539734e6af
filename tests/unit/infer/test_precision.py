"""Numbers that a volume cannot hold, weights of half precision, and bfloat16 on CPUs without it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests.nets import Named, random_net
from volflow.errors import InvalidInput
from volflow.model import forward
from volflow.model.forward import has_bfloat16, has_float16, resolve_precision

SHAPE = (12, 10, 9)
CPU = torch.device("cpu")


@pytest.fixture
def scan():
    return np.random.default_rng(0).random(SHAPE, "float32")


@pytest.fixture(params=["patches", "exact", "lazy", "lazy over an array", "lazy exact"])
def run(request, client, stored, scan, tmp_path):
    """The voxels of a prediction, in every way that there is to ask for one."""

    def run(net, **options):
        if "exact" in request.param:
            options |= {"blend": "exact"}
        else:
            options |= {"patch": 8}
        if "lazy" in request.param:
            x = da.from_array(scan, chunks=8) + 0 if "array" in request.param else stored(scan)
            return vf.map_model(x, net, **options).compute(scheduler="synchronous")
        out = tmp_path / "out.zarr"
        return vf.predict(scan, net, out, cluster=client, progress=False, **options)[:]

    return run


class Turned(nn.Module):
    """Complex numbers by an op that has a rule."""

    def forward(self, image):
        return image * 1j


class Casting(nn.Module):
    """A network of half precision that casts its images itself."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image):
        return self.net(image.to(self.net[0].weight.dtype))


class TestComplex:
    MESSAGE = (
        "the model's output is complex, and a volume holds real numbers; return its .abs(), or"
        " both its parts as channels (torch.view_as_real)"
    )

    def test_outputs_are_refused(self, run, tmp_path):
        with pytest.raises(InvalidInput) as refused:
            run(Turned())
        assert str(refused.value) == self.MESSAGE
        assert not (tmp_path / "out.zarr").exists()

    def test_the_absolute_value_is_taken(self, run, scan):
        np.testing.assert_allclose(run(lambda image: (image * 3j).abs())[0], 3 * scan, rtol=1e-6)

    def test_an_output_is_named(self, scan, tmp_path):
        net = Named(nn.Identity(), Turned())
        with pytest.raises(InvalidInput, match=r"^the model's output edge is complex,"):
            vf.predict(scan, net, tmp_path / "out.zarr", patch=8, progress=False)

    @pytest.mark.parametrize("option", ["normalize", "activation"])
    def test_functions_may_return_none(self, run, option):
        functions = {"normalize": lambda block: block * 1j, "activation": lambda score: score * 1j}
        with pytest.raises(Exception, match=f"what {option} returns is complex, and a volume"):
            run(nn.Identity(), **{option: functions[option]})


class TestHalf:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_weights_are_refused_naming_the_remedy(self, run, dtype):
        with pytest.raises(InvalidInput) as refused:
            run(random_net().to(dtype))
        name = str(dtype).removeprefix("torch.")
        assert str(refused.value).startswith(
            f"the model's 0.weight is {name}, and images are float32: give model.float(), or a"
            " model that casts its images; PyTorch says: "
        )
        assert "\n" not in str(refused.value)

    def test_a_model_that_casts_its_images_is_taken_as_it_is(self, run, scan):
        pointwise = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GELU()).half()
        found = run(Casting(pointwise))
        with torch.inference_mode():
            whole = pointwise.float()(torch.from_numpy(scan)[None, None])[0].numpy()
        np.testing.assert_allclose(found, whole, atol=2e-3)

    def test_a_norm_is_refused_where_pytorch_refuses_it(self, scan, tmp_path):
        net = nn.InstanceNorm3d(1, affine=True).half()
        with pytest.raises(InvalidInput, match=r"weight is float16, .*: give model.float\(\)"):
            vf.map_model(scan, net, patch=8)

    def test_other_errors_are_not_blamed_on_it(self, scan):
        def fails(image):
            raise RuntimeError("out of coffee")

        with pytest.raises(InvalidInput, match=r"does not take a batch of .*: out of coffee$"):
            vf.map_model(scan, fails, patch=8)


class TestBfloat16:
    def test_is_refused_on_a_cpu_that_emulates_it(self, run, monkeypatch, tmp_path):
        monkeypatch.setattr(forward, "has_bfloat16", lambda: False)
        message = (
            "precision 'bfloat16' takes 12 times as long as float32 or longer on this CPU, which"
            " has neither AMX nor AVX512-BF16; leave precision out"
        )
        with pytest.raises(InvalidInput) as refused:
            run(random_net(), precision="bfloat16")
        assert str(refused.value) == message
        assert not (tmp_path / "out.zarr").exists()

    def test_is_taken_where_the_cpu_has_it(self, run, monkeypatch, scan):
        monkeypatch.setattr(forward, "has_bfloat16", lambda: True)
        net = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.ones_(net.weight)
        found = run(net, precision="bfloat16")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[0], scan, rtol=2**-7)

    def test_float16_is_refused_on_a_cpu_that_emulates_it_and_exactly(self, run, monkeypatch):
        monkeypatch.setattr(forward, "has_float16", lambda: False)
        line = "takes 20 times as long as float32 on this CPU|is for patches, which are"
        with pytest.raises(InvalidInput, match=f"^precision 'float16' ({line})"):
            run(random_net(), precision="float16")

    def test_what_overflows_in_float16_is_that_of_float32(self, client, monkeypatch, scan):
        monkeypatch.setattr(forward, "has_float16", lambda: True)
        net = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.constant_(net.weight, 70000.0)
        image = np.where(scan > 0.5, scan, 0.4 * scan)
        image[8:] *= 0.5  # there no patch overflows
        options = {"patch": 4, "precision": "float16", "batch_size": 2}
        found = vf.map_model(image, net, **options).compute()
        np.testing.assert_allclose(found[0], 70000 * image, rtol=2e-3)
        assert found.max() > 65504

    def test_tf32_is_refused_on_any_cpu(self, run, tmp_path):
        with pytest.raises(InvalidInput) as refused:
            run(random_net(), precision="tf32", device="cpu")
        assert str(refused.value) == (
            "precision 'tf32' is how GPUs round float32, and the device is cpu; leave precision"
            ' out, or give device="cuda" (--device cuda)'
        )
        assert not (tmp_path / "out.zarr").exists()

    def test_auto_and_gpus_are_not_asked(self, monkeypatch):
        monkeypatch.setattr(forward, "has_bfloat16", lambda: False)
        assert resolve_precision("auto", CPU, "float32") == "float32"
        assert resolve_precision("float32", CPU, "float32") == "float32"
        assert resolve_precision("bfloat16", torch.device("cuda"), "float32") == "bfloat16"

    @pytest.mark.parametrize(
        ("capabilities", "expected"),
        [
            ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
            ({"avx512_bf16": True, "amx_bf16": False}, True),
            ({"avx512_bf16": False, "amx_bf16": True}, True),
            ({"neon": True, "bf16": True, "architecture": "aarch64"}, True),
            ({"neon": True, "bf16": False}, False),
            ({}, False),
        ],
    )
    def test_is_what_pytorch_knows_of_the_cpu(self, monkeypatch, capabilities, expected):
        for has, ending in ((has_bfloat16, "bf16"), (has_float16, "fp16")):
            known = {name.replace("bf16", ending): one for name, one in capabilities.items()}
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)  # noqa: B023
            assert has() is expected

    @pytest.mark.parametrize("has", [True, False])
    def test_an_older_pytorch_is_asked_otherwise_or_believed(self, monkeypatch, has):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        for name in names:
            monkeypatch.setattr(torch.cpu, name, lambda: has, raising=False)
        assert has_bfloat16() is has
        for name in names:
            monkeypatch.delattr(torch.cpu, name)
        assert has_bfloat16()
