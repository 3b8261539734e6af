"""Scores equal MONAI's and SimpleITK's: counts exactly, distances to 1e-6."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import volflow as vf

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:::monai"),
    pytest.mark.filterwarnings("ignore:.*all 0, this may result in nan"),
]
SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9)]


@pytest.fixture(scope="module")
def metrics():
    """The metrics of MONAI; warnings of its import are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.metrics", reason="MONAI comes with the extra peers")


@pytest.fixture(scope="module")
def sitk():
    return pytest.importorskip("SimpleITK", reason="SimpleITK comes with the extra peers")


def cases():
    """Pairs by what they try: empty classes, single voxels, borders, block corners, noise."""
    rng = np.random.default_rng(0)
    shape = (70, 66, 68)

    def empty():
        return np.zeros((2, *shape), "uint8")

    found = {}
    found["no voxel in either"] = empty()
    found["no voxel in pred"] = empty()
    found["no voxel in pred"][1, 5:9, 5:9, 5:9] = 1
    found["no voxel in truth"] = empty()
    found["no voxel in truth"][0, 5:9, 5:9, 5:9] = 1
    for name, (a, b) in {
        "the same voxel": ((1, 2, 3), (1, 2, 3)),
        "voxels in opposite corners": ((0, 0, 0), (69, 65, 67)),
        "voxels on both sides of a corner": ((63, 63, 63), (64, 64, 64)),
    }.items():
        found[name] = empty()
        found[name][(0, *a)] = found[name][(1, *b)] = 1
    for corner in itertools.product((0, 60), (0, 60), (0, 61)):
        pair = empty()
        pair[(0, *(slice(c, c + 7) for c in corner))] = 1
        pair[(1, *(slice(c, c + 5) for c in corner))] = 1
        found[f"an object at {corner}"] = pair
    whole = empty()
    whole[:] = 1
    whole[1, 30] = 0
    found["all of the volume"] = whole
    noise = (rng.random((2, 20, 22, 24)) < 0.3).astype("uint8")
    noise[rng.random(noise.shape) < 0.1] = 2
    found["noise"] = noise
    return found


CASES = cases()


def one_hot(labels):
    return torch.from_numpy(np.stack([labels == c for c in range(3)])[None])


def close(found, expected):
    for label in (1, 2):
        np.testing.assert_allclose(
            found.get(label, math.nan), float(expected[0, label - 1]), rtol=1e-6, atol=1e-6
        )


def scored(pair, spacing, tmp_path, **options):
    volumes = []
    for name, labels in zip(("pred", "truth"), pair, strict=True):
        import dask.array as da

        path = tmp_path / f"{name}.zarr"
        volumes.append(
            vf.write(da.from_array(labels, chunks=-1), path, spacing=spacing, unit="mm",
                     chunk=16, shard=32, progress=False)
        )  # fmt: skip
    return vf.evaluate(*volumes, classes=[1, 2], progress=False, **options)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", CASES)
def test_distances_equal_monais(metrics, tmp_path, name, spacing):
    pair = CASES[name]
    scores = scored(pair, spacing, tmp_path, tolerance=2.1)
    both = tuple(map(one_hot, pair))
    # Of infinite distances it interpolates NaN.
    missing = name in ("no voxel in pred", "no voxel in truth")
    percent = None if missing else 95
    close(
        scores.hd95, metrics.compute_hausdorff_distance(*both, percentile=percent, spacing=spacing)
    )
    close(
        scores.mean_surface_distance,
        metrics.compute_average_surface_distance(*both, symmetric=True, spacing=spacing),
    )
    close(scores.surface_dice, metrics.compute_surface_dice(*both, [2.1, 2.1], spacing=spacing))


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_monais(metrics, name):
    """MONAI leaves out or calls right what the truth lacks, as it is told; here one rule holds."""
    pred, truth = CASES[name]
    both = one_hot(pred), one_hot(truth)
    scores = vf.evaluate(pred, truth, classes=[1, 2], distances=False)
    dice = {
        ignore: metrics.compute_dice(*both, include_background=False, ignore_empty=ignore)
        for ignore in (True, False)
    }
    iou = {
        ignore: metrics.compute_iou(*both, include_background=False, ignore_empty=ignore)
        for ignore in (True, False)
    }
    whole = (x.float() for x in both)
    confusion = metrics.get_confusion_matrix(*whole, include_background=False)
    for label in (1, 2):
        # Empty in both: NaN, as by ignore_empty=True; in the truth alone: 0, as by False.
        ignore = not (pred == label).any()
        at = (0, label - 1)
        np.testing.assert_allclose(scores.dice[label], float(dice[ignore][at]), rtol=1e-7)
        np.testing.assert_allclose(scores.iou[label], float(iou[ignore][at]), rtol=1e-7)
        for name_ in ("precision", "recall"):
            expected = metrics.compute_confusion_matrix_metric(name_, confusion)
            np.testing.assert_allclose(
                getattr(scores, name_)[label], float(expected[at]), rtol=1e-7
            )


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_simpleitks(sitk, name):
    pred, truth = CASES[name]
    scores = vf.evaluate(pred, truth, classes=[1, 2], distances=False)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*map(sitk.GetImageFromArray, (pred, truth)))
    for label in (1, 2):
        if not ((pred == label).any() and (truth == label).any()):
            continue  # it knows no such label, or divides by zero
        theirs = {
            "dice": measures.GetDiceCoefficient(label),
            "iou": measures.GetJaccardCoefficient(label),
            "volume_similarity": measures.GetVolumeSimilarity(label),
            "precision": 1 - measures.GetFalseDiscoveryRate(label),
            "recall": 1 - measures.GetFalseNegativeError(label),
        }
        for score, value in theirs.items():  # they divide in another order
            np.testing.assert_allclose(getattr(scores, score)[label], value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in CASES if "no voxel" not in name])
def test_distances_equal_simpleitks(sitk, tmp_path, name, spacing):
    """Of contours by faces, between which an exact distance map is read."""
    pair = CASES[name]
    scores = scored(pair, spacing, tmp_path)
    for label in (1, 2):
        masks = [np.pad((labels == label).astype("uint8"), 1) for labels in pair]
        if not all(mask.any() for mask in masks):
            continue
        contours = [_contour(sitk, mask, spacing) for mask in masks]
        ways = [
            _map(sitk, contours[1 - n])[sitk.GetArrayViewFromImage(contours[n]) > 0] for n in (0, 1)
        ]
        worst = max(np.percentile(way, 95) for way in ways)
        np.testing.assert_allclose(scores.hd95[label], worst, rtol=1e-6, atol=1e-6)
        mean = np.concatenate(ways).mean()
        np.testing.assert_allclose(scores.mean_surface_distance[label], mean, rtol=1e-6, atol=1e-6)


def _contour(sitk, mask, spacing):
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(spacing[::-1])
    return sitk.LabelContour(image, False)


def _map(sitk, contour):
    """Distances to the voxels of a contour, of which those inside are at none."""
    away = sitk.SignedMaurerDistanceMap(
        contour, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return np.maximum(sitk.GetArrayFromImage(away), 0).astype("float64")


def test_real_labels(metrics, shared_data, tmp_path):
    """A hippocampus against another's, on its own grid, from packed NIfTI."""
    import nibabel as nib

    folder = shared_data("hippocampus_msd")
    path = sorted((folder / "labels").glob("*.nii.gz"))[0]
    image = nib.load(path)
    truth = np.asarray(image.dataobj).astype("uint8")
    pred = np.roll(truth, (2, -1, 1), (0, 1, 2))
    nib.save(nib.Nifti1Image(pred, image.affine, image.header), tmp_path / "pred.nii.gz")
    scores = vf.evaluate(tmp_path / "pred.nii.gz", path, progress=False)
    spacing = [float(s) for s in image.header.get_zooms()[:3]]
    both = one_hot(pred), one_hot(truth)
    close(scores.hd95, metrics.compute_hausdorff_distance(*both, percentile=95, spacing=spacing))
    close(
        scores.mean_surface_distance,
        metrics.compute_average_surface_distance(*both, symmetric=True, spacing=spacing),
    )
    close(scores.surface_dice, metrics.compute_surface_dice(*both, [1, 1], spacing=spacing))
    close(scores.dice, metrics.compute_dice(*both, include_background=False))
