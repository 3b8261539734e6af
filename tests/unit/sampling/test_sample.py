"""vf.sample: the law of the stream, as a Dask array."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("small_superchunks")


@pytest.fixture
def image(tmp_path):
    """Each voxel holds its own number, so that a patch tells where it lies."""
    return store(tmp_path / "a.zarr", np.arange(50 * 40 * 30, dtype="i4").reshape(50, 40, 30))


def starts(patches):
    return np.array(np.unravel_index(patches[:, 0, 0, 0, 0], (50, 40, 30))).T


def test_patches_are_boxes_of_the_volume(image):
    patches = vf.sample(image, vf.UniformSampler((7, 8, 9)), n=200, seed=3)
    assert patches.shape == (200, 1, 7, 8, 9)
    assert patches.dtype == np.int32
    voxels, volume = patches.compute(), vf.open(image)[:]
    for patch, start in zip(voxels, starts(voxels), strict=True):
        box = tuple(slice(a, a + p) for a, p in zip(start, (7, 8, 9), strict=True))
        np.testing.assert_array_equal(patch[0], volume[box])


def test_one_task_for_those_that_share_storage(image):
    superchunks = len(vf.PatchStream(image, vf.UniformSampler(8), 8).catalog.probability)
    many = vf.sample(image, vf.UniformSampler(8), n=5000)
    assert many.numblocks[0] == superchunks
    assert len(many.__dask_graph__()) <= 3 * superchunks
    few = vf.sample(image, vf.UniformSampler(8), n=10)
    assert len(few.chunks[0]) >= 8  # few patches of many superchunks have places of their own


def test_numbers_are_exact_per_superchunk(image):
    stream = vf.PatchStream(image, vf.UniformSampler(8), 4000, reuse=0.01, seed=2)
    patches = vf.sample(image, vf.UniformSampler(8), n=4000, seed=2)
    counts = np.array(sorted(patches.chunks[0]))
    shares = np.sort(stream.catalog.probability * 4000)
    assert np.abs(counts - shares).max() < 1


def test_is_a_pure_function_of_the_seed(image):
    def make(seed):
        return vf.sample(image, vf.UniformSampler(8), n=50, seed=seed)

    np.testing.assert_array_equal(make(1).compute(), make(1).compute(scheduler="sync"))
    assert make(1).name == make(1).name
    assert (make(1).compute() != make(2).compute()).any()


@pytest.mark.slow
def test_of_cases_and_classes(cases):
    sampler = vf.LabelSampler(5, probabilities={2: 1})
    labels = vf.sample(cases, sampler, n=64, seed=1, array="label").compute()
    images = vf.sample(cases, sampler, n=64, seed=1).compute()
    assert labels.shape == images.shape == (64, 1, 5, 5, 5)
    assert (labels[:, 0, 2, 2, 2] == 2).all()
    both = [vf.open(cases[name]["image"])[:] for name in "ab"]
    for patch in images:
        assert any((volume == patch[0, 2, 2, 2]).any() for volume in both)


def test_all_of_a_grid(image):
    sampler = vf.GridSampler(16, overlap=4)
    patches = vf.sample(image, sampler).compute()
    expected = [roi.start for roi in sampler.grid(vf.open(image))]
    assert sorted(map(tuple, starts(patches).tolist())) == sorted(expected)


def test_works_on_a_cluster(image):
    from volflow.engine.cluster import connect

    patches = vf.sample(image, vf.UniformSampler(8), n=20)
    with connect("threads") as client:
        found = client.compute(patches).result()
    np.testing.assert_array_equal(found, patches.compute())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a positive number of patches; got 0"),
        ({}, "n must be a positive number of patches; got None"),
        ({"n": 4, "array": "label"}, 'there is no array "label"; the cases have'),
        ({"n": 4, "sampler": vf.GridSampler(4)}, "a GridSampler gives all its patches"),
        ({"n": 4, "normalize": "max"}, "unknown normalize 'max'"),
        ({"n": 4, "padding": "mirror"}, "padding must be a finite number"),
    ],
)
def test_refusals(image, options, message):
    with pytest.raises(InvalidInput, match=message):
        vf.sample(image, **{"sampler": vf.UniformSampler(4), **options})


def test_patches_are_seen_as_those_of_a_stream(image):
    sampler, shown = vf.GridSampler((8, 8, 64)), {"normalize": "minmax", "padding": "edge"}
    plain, found = vf.sample(image, sampler), vf.sample(image, sampler, **shown)
    assert found.name != plain.name
    assert found.dtype == np.float32
    stream = vf.PatchStream(image, sampler, **shown)
    np.testing.assert_array_equal(found.compute(), [sample["image"] for sample in stream])
