"""The cases of a stream have one spacing, unless their mixture is wanted."""

from __future__ import annotations

import re

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.cli import run
from volflow.errors import InvalidInput

SIDES = (12, 10, 9)
SAMPLERS = [
    vf.UniformSampler(4),
    vf.WeightedSampler(4, weight="label"),
    vf.LabelSampler(4),
    vf.GridSampler(4),
]


@pytest.fixture
def make(tmp_path):
    """Stores a case of ones with some spacing."""

    def make(name, *spacing, unit="millimeter"):
        meta = {"spacing": spacing, "unit": unit} if spacing else {}
        ones = np.ones(SIDES, "uint8")
        kinds = ("image", "label")
        return {kind: store(tmp_path / f"{name}_{kind}.zarr", ones, **meta) for kind in kinds}

    return make


def stream_of(cases, sampler, **options):
    patches = () if isinstance(sampler, vf.GridSampler) else (2,)
    return vf.PatchStream(cases, sampler, *patches, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_spacings_are_named_with_their_cases(make, sampler):
    cases = {"a": make("a", 1, 1, 1), "b": make("b", 2, 1, 1), "c": make("c", 1, 1, 1.0005)}
    line = (
        "the cases of a stream share one spacing, but these have different ones: a, c: 1×1×1 mm;"
        " b: 2×1×1 mm; resample them to one (vf.resample), or take them as they are with"
        " allow_mixed_spacing=True (--allow-mixed-spacing)"
    )
    for refused in (stream_of, vf.sample):
        with pytest.raises(InvalidInput, match=f"^{re.escape(line)}$"):
            refused(cases, sampler)
    allowed = {"allow_mixed_spacing": True}
    assert {one["case"] for one in stream_of(cases, vf.GridSampler(4), **allowed)} == {*"abc"}
    assert vf.sample(cases, vf.UniformSampler(4), 3, **allowed).compute().all()


@pytest.mark.parametrize(
    "others",
    [
        [()],  # a bare array
        [(1000.0, 1000.0, 1000.0, "micrometer")],
        [(1.0, 1.0, 1.0, None)],
        [(), (1.0, 1.0, 1.0, "millimeter")],
    ],
)
def test_what_may_be_the_same_is_taken(make, others):
    made = {"a": make("a", 1, 1, 1)}
    for name, other in zip("bc", others, strict=False):
        made[name] = make(name, *other[:3], **({"unit": other[3]} if other else {}))
    assert len(stream_of(made, vf.GridSampler(9)).cases) == len(made)


def test_in_a_frame_spacings_are_those_of_its_axes(tmp_path):
    """And so are lengths: 2×1×3 mm along S, A, R, stored in either order."""
    meta = {"unit": "millimeter", "spacing": (2, 1, 3), "orientation": "SAR"}
    turned = {"unit": "millimeter", "spacing": (1, 2, 3), "orientation": "ASR"}
    cases = [
        {"image": store(tmp_path / f"{name}.zarr", np.ones((12, 12, 12), "uint8"), **one)}
        for name, one in (("a", meta), ("b", turned))
    ]
    sampler = vf.UniformSampler("6 mm")
    with pytest.raises(InvalidInput, match="a: 2×1×3 mm; b: 1×2×3 mm"):
        vf.PatchStream(cases, sampler, 4)
    for stream in (
        vf.PatchStream(cases, sampler, 4, frame="RAS"),
        vf.PatchStream(cases[::-1], sampler, 4, frame="RAS"),
    ):
        assert stream.sampler.patch == (2, 6, 3)
        assert {tuple(one["image"].shape) for one in stream} == {(1, 2, 6, 3)}


def test_many_spacings_are_a_short_line(make):
    cases = {f"p{n:02}": make(f"p{n}", 1 + n / 10, 1, 1) for n in range(9)}
    with pytest.raises(InvalidInput, match=r"p04: 1\.4×1×1 mm; and 4 more; resample"):
        stream_of(cases, vf.UniformSampler(4))


def test_the_command_takes_them_when_told(make, tmp_path, capsys):
    words = ["sample", make("a", 1, 1, 1)["image"], make("b", 2, 1, 1)["image"]]
    words = [*map(str, words), "--patch", "4", "--plan", "-o", str(tmp_path / "x.png")]
    assert run(words) == 2
    assert "a_image: 1×1×1 mm; b_image: 2×1×1 mm" in capsys.readouterr().err
    assert run([*words, "--allow-mixed-spacing"]) == 0
