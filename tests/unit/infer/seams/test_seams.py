"""The seam certificate: its figures beside plain torch, its regions, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from tests.stores import store
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.infer.seams.certify import certify_seams
from volflow.infer.seams.regions import busy_regions, fitting_sides
from volflow.model.unet import UNet
from volflow.store.volume import open_volume
from volflow.volumes.framed import FramedImage

SHAPE = (18, 20, 23)  # no multiples of the network's alignment
OVERLAPS = (0, 0.5)


def voxels():
    return np.random.default_rng(3).random(SHAPE, "float32")


def network():
    torch.manual_seed(0)
    return UNet(1, 3, features=(4, 8), norm="none").eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return store(tmp_path_factory.mktemp("seams") / "scan.zarr", voxels(), orientation="SAR")


@pytest.fixture(scope="module")
def certified(path):
    """With a frame, a normalisation and an activation."""
    return certify_seams(
        path, network(), patch=8, overlaps=OVERLAPS, blends=["gaussian", "crop"], frame="RAS",
        normalize="minmax", activation="softmax",
    )  # fmt: skip


def whole_run():
    """The network on the volume as it sees it, in one call: probabilities in frame order."""
    scan = voxels()
    image = Frame.between("SAR", "RAS").show((scan - scan.min()) / (scan.max() - scan.min()))
    sides = [-(-n // 2) * 2 for n in image.shape]
    padded = torch.zeros(1, 1, *sides)
    padded[0, 0, *(slice(n) for n in image.shape)] = torch.from_numpy(image.copy())
    with torch.inference_mode():
        scores = network()(padded)[0].softmax(0).numpy()
    return scores[:, *(slice(n) for n in image.shape)], image


@pytest.mark.slow
def test_the_exact_blend_is_the_whole_run(certified):
    (region,) = certified.regions
    assert (region.start, region.stop) == ((0, 0, 0), SHAPE)
    assert region.padded == (24, 20, 18)  # x, y, z: R, A, S
    exact = region.exact
    assert (exact.blend, exact.overlap, exact.changed) == ("exact", None, 0)
    assert exact.largest < 1e-6
    assert exact.forwards >= 1


@pytest.mark.slow
def test_blends_differ_by_what_plain_torch_says(certified, tmp_path):
    whole, image = whole_run()
    blends = certified.regions[0].blends
    assert [one.name for one in blends] == [
        "gaussian 0", "gaussian 0.5", "crop 0", "crop 0.5",
    ]  # fmt: skip
    assert certified.regions[0].scores == pytest.approx((whole.min(), whole.max()), abs=1e-6)
    for one in (blends[1], blends[2]):
        made = vf.predict(
            np.ascontiguousarray(image), network(), tmp_path / f"{one.blend}.zarr", patch=8,
            blend=one.blend, overlap=one.overlap, activation="softmax", progress=False,
        )[:]  # fmt: skip
        away = np.abs(made - whole)
        assert one.largest == pytest.approx(away.max(), rel=1e-3)
        assert one.mean == pytest.approx(away.mean(), rel=1e-3)
        other = made.argmax(0) != whole.argmax(0)
        assert one.changed == pytest.approx(other.mean(), abs=2 / other.size)
        assert one.cpu_seconds > 0
    assert [one.forwards for one in blends] == [3 * 3 * 3, 5 * 4 * 4] * 2


def test_the_plane_lies_in_stored_axes(certified):
    plane = certified.plane
    assert plane.axis == 0  # S: axial
    whole, image = whole_run()
    frame = Frame.between("SAR", "RAS")
    np.testing.assert_allclose(plane.image, frame.store(image)[plane.index], atol=1e-6)
    stored = frame.store(whole).argmax(0)[plane.index]
    assert (plane.whole == stored).mean() > 0.999
    assert len(plane.differences) == 4
    assert all(one.shape == SHAPE[1:] for one in plane.differences)
    # Runs from R to L while stored R: patches 0–8, 8–16, 15–23 of 23 from the other end.
    assert plane.borders[0][2] == (7, 8, 15) or plane.borders[0][2] == (8, 15, 16)
    assert min(abs(plane.index + 0.5 - edge) for edge in plane.borders[1][0]) >= 0.5


def test_in_words_and_for_machines(certified, path):
    text = certified.describe()
    assert f"volume      {path}, 18 × 20 × 23 voxels" in text
    assert "patch 8 × 8 × 8, frame RAS" in text
    assert "scores      softmax, float32 on " in text
    assert "a volume of its own" in text
    assert "region 1    z 0–18, y 0–20, x 0–23" in text
    for name in ("exact", "gaussian", "crop", "whole"):
        assert f"\n{name} " in text
    facts = json.loads(json.dumps(certified.to_dict()))
    assert "plane" not in facts
    assert facts["regions"][0]["blends"][0]["overlap"] == 0
    assert (facts["statistics"], facts["margin"]) == (0, [[6, 6]] * 3)
    assert "reads up to 6 voxels beyond a block" in text


@pytest.mark.slow
def test_an_exact_run_that_is_refused_gets_more_memory(path, monkeypatch):
    from volflow.infer.seams import certify as seams

    run, given = seams.predict, []

    def predict(*args, **options):
        if options["blend"] == "exact":
            given.append(options["memory"])
            if len(given) < 3:
                raise MemoryRefused("too little")
        return run(*args, **options)

    monkeypatch.setattr(seams, "predict", predict)
    found = certify_seams(path, network(), patch=16, overlaps=[0])
    assert given == sorted(given)
    assert len(given) >= 3
    assert found.regions[0].exact.largest < 1e-5


@pytest.mark.slow
def test_statistics_are_told(path):
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2))
    found = certify_seams(path, net, patch=12, overlaps=[0.25], memory="600MB")
    assert found.statistics == 1
    assert found.regions[0].exact.largest < 1e-5 < found.regions[0].blends[0].largest
    assert "statistics of the whole volume are needed by 1 of its layers" in found.describe()
    assert "trained on patches saw other statistics" in found.describe()


class Sorted(nn.Module):
    """Has no exact rule, and needs even sides."""

    def forward(self, image):
        half = nn.functional.avg_pool3d(image, 2)
        return image + nn.functional.interpolate(half.sort(-1).values, scale_factor=2)


def test_without_an_exact_rule_blends_are_measured(path):
    said = []
    found = certify_seams(path, Sorted(), patch=8, overlaps=[0], progress=said.append)
    (region,) = found.regions
    assert region.exact is None
    assert region.padded == (24, 24, 24)
    assert region.blends[0].largest > 0.1
    assert "sort" in found.no_rule
    assert f"no exact blend: {found.no_rule}" in found.describe()
    assert "region 1: gaussian, overlap 0" in said
    assert not any("exact" in line for line in said)


@pytest.mark.slow
def test_slices(path):
    found = certify_seams(path, nets.slice_net(), patch=(1, 8, 8), overlaps=[0])
    assert found.regions[0].padded == (20, 23)
    assert found.regions[0].exact.largest < 1e-5 < found.regions[0].blends[0].largest
    assert found.plane.axis == 0
    assert found.plane.borders[0][0] == ()
    covered = certify_seams(path, nets.slice_net(), patch=(1, 64, 64), overlaps=[0])
    assert "one patch covers a region" in covered.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlaps": 0.5}, "overlaps must be one or more of them in a list, given 0.5"),
        ({"overlaps": []}, "overlaps must be one or more"),
        ({"blends": "hann"}, "blends must be one or more of them in a list, given 'hann'"),
        ({"blends": ["exact"]}, "measured beside all others; leave it out of blends"),
        ({"blends": ["mean"]}, "mean"),
        ({"overlaps": [0, 8]}, "overlap"),
        ({"regions": 0}, "regions must be a whole number from 1, given 0"),
        ({"seed": -1}, "seed must be a whole number from 0, given -1"),
        ({"patch": None}, "patch is needed"),
        ({"frame": "RAX"}, "RAX"),
    ],
)
def test_what_is_refused_before_any_run(path, options, message):
    said = []
    with pytest.raises(InvalidInput, match=message):
        certify_seams(path, network(), **{"patch": 8, "progress": said.append, **options})
    assert said == []


def test_too_little_memory_for_any_region(path):
    with pytest.raises(MemoryRefused, match=r"a region of 16×16×16 voxels run whole takes"):
        certify_seams(path, network(), patch=8, memory="100kB")


@pytest.mark.slow
def test_a_module_that_takes_no_region_whole(path):
    class OnlyPatches(nn.Module):
        def forward(self, image):
            assert image.shape[2:] == (8, 8, 8), "patches of 8 only"
            return image.sort(-1).values

    with pytest.raises(InvalidInput, match=r"cannot be run on a region of .* whole: patches of 8"):
        certify_seams(path, OnlyPatches(), patch=8)


def test_sides_shrink_to_memory():
    assert fitting_sides((40, 300, 20), (160,) * 3, lambda sides: 0, 1) == (40, 160, 20)
    assert fitting_sides((40, 300, 20), (160,) * 3, np.prod, 64 * 40 * 20) == (40, 64, 20)


@pytest.mark.slow
def test_regions_with_most_structure(tmp_path):
    scan = np.zeros((16, 16, 64), "float32")
    scan[..., 40:56] = np.random.default_rng(0).random((16, 16, 16))
    scan[..., 8:16] = 0.3 * np.random.default_rng(1).random((16, 16, 8))
    volume = open_volume(store(tmp_path / "scan.zarr", scan))
    inputs = FramedImage((volume.spec,), (volume,), (None,), Frame())
    boxes = busy_regions(inputs, "float32", (16, 16, 16), 3, seed=0)
    assert boxes[0] in (Roi((0, 0, 32), (16, 16, 48)), Roi((0, 0, 48), (16, 16, 64)))
    assert len(boxes) == 3
    assert boxes == busy_regions(inputs, "float32", (16, 16, 16), 3, seed=0)
    assert busy_regions(inputs, "float32", (16, 16, 64), 3, seed=0) == [Roi.full(scan.shape)]
    many = busy_regions(inputs, "float32", (2, 2, 2), 5, seed=0)
    assert many == busy_regions(inputs, "float32", (2, 2, 2), 5, seed=0)
    assert many != busy_regions(inputs, "float32", (2, 2, 2), 5, seed=1)
