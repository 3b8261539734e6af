"""Patches in lengths: the nearest number of voxels, by the spacing that all cases share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf
from tests.stores import store
from volflow.cli import run
from volflow.errors import InvalidInput, MemoryRefused
from volflow.sampling.patch_size import in_voxels
from volflow.store.meta import Meta

MM = {"spacing": (3.0, 0.5, 0.5), "unit": "millimeter"}


def scan(path, **meta):
    return store(path, np.ones((20, 60, 50), "uint8"), **meta)


@pytest.fixture
def path(tmp_path):
    return scan(tmp_path / "scan.zarr", **MM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "voxels"),
    [
        ("12mm", (4, 24, 24)),
        (("1.2cm", "12000 µm", 8), (4, 24, 8)),
        ((1, "0.012 m", "1e1mm"), (1, 24, 20)),
        ("0.01 mm", (1, 1, 1)),
        ("5mm", (2, 10, 10)),  # five thirds
    ],
)
def test_lengths_are_the_nearest_voxels_for_every_sampler(path, patch, voxels):
    case = {"image": path, "label": path}
    samplers = [
        vf.UniformSampler(patch),
        vf.WeightedSampler(patch, weight="label", border="pad"),
        vf.LabelSampler(patch),
        vf.GridSampler(patch, overlap=0.25),
    ]
    for sampler in samplers:
        counts = () if isinstance(sampler, vf.GridSampler) else (2,)
        stream = vf.PatchStream(case, sampler, *counts)
        assert stream.sampler.patch == voxels
        assert next(iter(stream))["image"].shape == (1, *voxels)
        assert vf.sample(case, sampler, *counts).shape[1:] == (1, *voxels)
    assert samplers[-1].grid(vf.open(path)).patch == voxels


@given(
    length=st.floats(1e-3, 1e5), step=st.floats(1e-2, 1e3), unit=st.sampled_from(["mm", "µm", "cm"])
)
def test_no_other_number_of_voxels_is_nearer(length, step, unit):
    (voxels, *_) = in_voxels((f"{length} {unit}", 1, 1), Meta(spacing=(step,) * 3, unit="mm"))
    exact = length * {"mm": 1, "µm": 1e-3, "cm": 10}[unit] / step
    assert voxels >= 1
    assert abs(voxels - exact) <= 0.5 + 1e-9 * exact or voxels == 1 > exact


def test_the_order_is_that_of_the_same_patch_in_voxels(path):
    lengths, voxels = (
        vf.PatchStream(path, vf.UniformSampler(patch), 3) for patch in ("12 mm", (4, 24, 24))
    )
    lengths.load_state_dict(voxels.state_dict())


@pytest.mark.parametrize(
    "patch", ["64", "64 pixels", "-3mm", "0mm", "mm", "1e999mm", ("4mm", "8mm")]
)
def test_what_is_no_length_is_refused(patch):
    with pytest.raises(InvalidInput, match='or a length with its unit, such as 64 or "32 mm"; got'):
        vf.GridSampler(patch)


@pytest.mark.parametrize("side", [0, 1.5, -2])
def test_a_side_in_voxels_beside_lengths_is_whole(side):
    with pytest.raises(InvalidInput, match="must be a positive integer"):
        vf.UniformSampler((side, "4mm", "4mm"))


def test_lengths_need_one_known_spacing(tmp_path, path):
    sampler = vf.UniformSampler("12mm")
    unknown = scan(tmp_path / "bare.zarr", spacing=(3, 0.5, 0.5))
    line = "patch of 12 mm becomes voxels by the spacing of the cases, which has no unit of length"
    with pytest.raises(InvalidInput, match=f"{line} in bare; store them with spacing="):
        vf.PatchStream([path, unknown], sampler, 3)
    other = scan(tmp_path / "other.zarr", spacing=(1, 1, 1), unit="millimeter")
    with pytest.raises(InvalidInput, match=r"differ in voxels .* scan: 3×0\.5×0\.5 mm; other"):
        vf.PatchStream([path, other], sampler, 3, allow_mixed_spacing=True)
    with pytest.raises(InvalidInput, match="the spacing here has no unit of length; store it"):
        vf.GridSampler("12mm").grid((20, 60, 50))
    with pytest.raises(InvalidInput, match="overlap"):
        vf.PatchStream(path, vf.GridSampler("3mm", overlap=2))


def test_the_command_takes_lengths(path, capsys):
    words = ["sample", path, "--patch", "1,12mm,12mm", "--plan"]
    assert run(words) == 0
    assert "UniformSampler(patch=(1, 24, 24)" in capsys.readouterr().out
    assert run([*words[:3], "12furlong", "--plan"]) == 2
    assert "got '12furlong'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "counts"), [(vf.UniformSampler, [4]), (vf.LabelSampler, [4]), (vf.GridSampler, [])]
)
def test_lengths_of_absurdly_many_voxels_are_refused_in_both(path, sampler, counts):
    with pytest.raises(
        InvalidInput,
        match=r"^a patch of 640000 mm is 213333×1280000×1280000 voxels here, where one is 3×0.5×0.5"
        r" millimeter, .*2³¹; give shorter lengths, or mend the spacing",
    ):
        vf.PatchStream({"image": path, "label": path}, sampler("640000mm"), *counts)


def test_a_patch_that_memory_does_not_hold_is_named(path):
    with pytest.raises(MemoryRefused, match=r"^patches of 9000×900×900 voxels: a window of 1"):
        vf.PatchStream(path, vf.UniformSampler((9000, 900, 900)), 4, memory="1GiB")
