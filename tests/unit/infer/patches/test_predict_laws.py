"""Law 2: the result is that of one global sliding window, however the volume is cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf
from tests.oracle import sliding_window
from volflow.geometry.roi import Roi
from volflow.infer.patches import method as patches
from volflow.infer.patches.tiling import Tiling
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

BLENDS = ("crop", "average", "hann", "gaussian")


def random_net(channels_in: int = 1, channels_out: int = 2, seed: int = 0) -> torch.nn.Module:
    """A small net whose zero padding makes patches disagree at their borders."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(channels_in, 4, 3, padding=1),
        torch.nn.GELU(),
        torch.nn.Conv3d(4, channels_out, 3, padding=1),
    ).eval()


def scan_of(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, "float32")


def stored(path: Path, scan: np.ndarray, *, chunk: int = 8, shard: int = 16, orientation="SAR"):
    axes = ("z", "y", "x") if scan.ndim == 3 else ("c", "z", "y", "x")
    volume = create(
        path,
        VolumeSpec.of(
            scan.shape, scan.dtype, Meta(axes, orientation=orientation), chunk=chunk, shard=shard
        ),
    )
    volume.write(Roi.full(scan.shape), scan)
    return volume


sides = st.integers(3, 30)
overlaps = st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 7 / 8])


@pytest.mark.slow
@given(
    shape=st.tuples(sides, sides, sides),
    patch=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12)),
    overlap=overlaps,
    blend=st.sampled_from(BLENDS),
)
def test_equals_the_global_sliding_window(client, tmp_path_factory, shape, patch, overlap, blend):
    if overlap == 7 / 8 and np.prod(shape) > 4000:
        overlap = 0.5  # the oracle would run for minutes
    scan, net = scan_of(shape), random_net()
    folder = tmp_path_factory.mktemp("law")
    result = vf.predict(
        stored(folder / "scan.zarr", scan), net, folder / "out.zarr", patch=patch, overlap=overlap,
        blend=blend, chunk=8, shard=16, cluster=client, progress=False,
    )  # fmt: skip
    expected = sliding_window(scan[None], net, patch, overlap, blend)
    span = expected.max() - expected.min()
    assert result.dtype == np.float32
    assert result.axes == ("c", "z", "y", "x")
    assert np.abs(result[:] - expected).max() <= 1e-5 * span


@pytest.fixture
def cut_into(monkeypatch):
    """Force a block shape, as another memory budget would choose it."""

    def force(block: tuple[int, ...], shard: tuple[int, ...]) -> None:
        tiling = Tiling(block, shard, 1, 1, 0, host_sums=False)
        monkeypatch.setattr(patches, "place_sums", lambda *_: tiling)

    return force


@pytest.mark.slow
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("output", "skip"), [("scores", False), ("classes", True)])
def test_same_bits_for_every_cut(client, tmp_path, cut_into, blend, output, skip):
    scan, net = scan_of((19, 23, 26)), random_net(channels_out=3)
    scan[:12, :, :14] = 0
    volume = stored(tmp_path / "scan.zarr", scan)
    results = []
    cuts = [
        ((8, 32, 32), (8, 32, 32)),
        ((16, 16, 16), (16, 16, 16)),
        ((8, 24, 16), (8, 8, 16)),
        ((32, 8, 32), (32, 8, 16)),
    ]
    for n, (block, shard) in enumerate(cuts):
        cut_into(block, shard)
        result = vf.predict(
            volume, net, tmp_path / f"{n}.zarr", patch=(10, 12, 9), overlap=0.4, blend=blend,
            batch_size=2, output=output, activation="softmax" if output == "scores" else None,
            skip_below=0.1 if skip else None, chunk=8, cluster=client, progress=False,
        )  # fmt: skip
        results.append(result[:])
    for other in results[1:]:
        assert np.array_equal(results[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_activation_bits_do_not_depend_on_the_cut(client, tmp_path, cut_into, activation):
    scan = 20 * scan_of((2, 14, 17, 35)) - 10
    volume = stored(tmp_path / "scan.zarr", scan)
    results = []
    for n, block in enumerate([(8, 40, 40), (8, 8, 8), (8, 40, 8)]):
        cut_into(block, (8, 8, 8))
        result = vf.predict(
            volume, torch.nn.Identity(), tmp_path / f"{n}.zarr", patch=16, activation=activation,
            chunk=8, cluster=client, progress=False,
        )  # fmt: skip
        results.append(result[:])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_same_bits_for_every_number_of_processes(tmp_path, workers):
    scan, net = scan_of((40, 20, 20)), random_net()
    volume = stored(tmp_path / "scan.zarr", scan, shard=8)
    options = {"patch": 8, "overlap": 0.5, "batch_size": 2, "chunk": 8, "shard": 8}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = vf.predict(volume, net, tmp_path / "here.zarr", progress=False, **options)
        there = vf.predict(
            volume, net, tmp_path / "there.zarr", cluster=workers, progress=False, **options
        )
    finally:
        torch.set_num_threads(before)
    assert np.abs(here[:] - there[:]).max() <= 1e-6 * np.ptp(here[:])
    if workers >= 2:  # one thread of torch each, as in this process
        assert np.array_equal(here[:], there[:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("blend", BLENDS)
def test_identity_returns_its_input(client, tmp_path, dtype, blend):
    rng = np.random.default_rng(2)
    if np.dtype(dtype).kind == "f":
        scan = rng.random((19, 23, 21)).astype(dtype)
    else:
        scan = rng.integers(0, 120, (19, 23, 21)).astype(dtype)
    result = vf.predict(
        stored(tmp_path / "scan.zarr", scan), torch.nn.Identity(), tmp_path / "out.zarr", patch=8,
        blend=blend, dtype=dtype, cluster=client, progress=False,
    )  # fmt: skip
    assert result.dtype == dtype
    np.testing.assert_allclose(result[0], scan, rtol=2e-6 if np.dtype(dtype).kind == "f" else 0)


ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


def reoriented(scan_RAS: np.ndarray, orientation: str) -> np.ndarray:
    """A copy of an (R, A, S) array, stored with other axes."""
    axes = [next(n for n, pair in enumerate(("RL", "AP", "SI")) if c in pair) for c in orientation]
    copy = scan_RAS.transpose(axes)
    return copy[tuple(slice(None, None, -1 if c in "LPI" else 1) for c in orientation)].copy()


def back(copy: np.ndarray, orientation: str) -> np.ndarray:
    flipped = copy[(..., *(slice(None, None, -1 if c in "LPI" else 1) for c in orientation))]
    lead = flipped.ndim - 3
    axes = ["RAS".index({"L": "R", "P": "A", "I": "S"}.get(c, c)) for c in orientation]
    return flipped.transpose(*range(lead), *(lead + axes.index(a) for a in range(3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "orientations",
    [ORIENTATIONS[::5], pytest.param(ORIENTATIONS, marks=pytest.mark.slow)],
    ids=["each order of axes", "all 48"],
)
def test_all_orientations_give_the_same_anatomy(client, tmp_path, orientations):
    assert len(set(ORIENTATIONS)) == 48
    scan, net = scan_of((13, 11, 9)), random_net()
    expected = None
    for orientation in orientations:
        volume = stored(
            tmp_path / f"{orientation}.zarr", reoriented(scan, orientation),
            orientation=orientation,
        )  # fmt: skip
        result = vf.predict(
            volume, net, tmp_path / f"{orientation}-out.zarr", patch=(8, 7, 6), overlap=0.3,
            frame="RAS", chunk=8, shard=8, cluster=client, progress=False,
        )  # fmt: skip
        assert result.orientation == orientation
        shown = back(result[:], orientation)
        if expected is None:
            expected = shown
            reference = sliding_window(scan[None], net, (8, 7, 6), 0.3)
            assert np.abs(shown - reference).max() <= 1e-5 * np.ptp(reference)
        assert np.array_equal(shown, expected), orientation


@pytest.mark.slow
@given(
    shape=st.tuples(sides, sides, sides),
    scale=st.sampled_from([(2, 2, 2), (1, 2, 2), (4, 2, 1)]),
    overlap=st.sampled_from([0, 0.25, 0.5]),
    blend=st.sampled_from(BLENDS),
    frame=st.sampled_from([None, "RAS", "LPI"]),
)
def test_scaled_outputs(client, tmp_path_factory, shape, scale, overlap, blend, frame):
    net = torch.nn.AvgPool3d(scale)
    scan = scan_of(shape)
    folder = tmp_path_factory.mktemp("scaled")
    volume = stored(folder / "scan.zarr", scan, orientation="RAS")
    result = vf.predict(
        volume, net, folder / "out.zarr", patch=8, overlap=overlap, blend=blend, frame=frame,
        chunk=8, shard=8, cluster=client, progress=False,
    )  # fmt: skip
    shown = scan[::-1, ::-1, ::-1].copy() if frame == "LPI" else scan
    expected = sliding_window(shown[None], net, (8, 8, 8), overlap, blend, scale)
    got = result[:][:, ::-1, ::-1, ::-1] if frame == "LPI" else result[:]
    assert np.abs(got - expected).max() <= 1e-5
    assert result.spacing == tuple(float(s) for s in scale)
    if frame == "LPI":
        ends = [
            n - 1 - (-(-n // s) - 1) * s - (s - 1) / 2 for n, s in zip(shape, scale, strict=True)
        ]
        assert result.meta.translation == pytest.approx(ends)
    else:
        assert result.meta.translation == pytest.approx([(s - 1) / 2 for s in scale])
