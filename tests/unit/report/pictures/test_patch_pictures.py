"""Pictures of patches: the right slices in the right colours; counts equal to NumPy's."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.report.colors import class_color
from volflow.report.pictures.patch_counts import BINS, PatchCounts, each_patch, facts_text
from volflow.report.pictures.patch_pictures import patch_sheet, patch_stats
from volflow.sampling.cases.open_cases import open_cases
from volflow.sampling.samplers import GridSampler, LabelSampler, UniformSampler
from volflow.sampling.stream import PatchStream

pytest.importorskip("matplotlib", reason="extra report")

SHAPE = (20, 50, 60)


@pytest.fixture
def cases(scan, result):
    return open_cases({"name": "brain", "image": str(scan), "label": str(result)})


def sample(case, start, patch=(8, 12, 16)):
    roi = Roi(tuple(start), tuple(s + p for s, p in zip(start, patch, strict=True)))
    arrays = {name: case.read(name, roi) for name in case.sources}
    return {**arrays, "case": case.name, "location": np.array([*roi.start, *roi.stop])}


def scattered(cases, count, patch=(8, 12, 16), *, border=0, seed=0):
    """Samples at random starts, up to ``border`` voxels outside."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        case = cases[rng.integers(len(cases))]
        ends = [max(1, n - p + 2 * border) for n, p in zip(case.shape, patch, strict=True)]
        yield sample(case, rng.integers(0, ends) - border, patch)


def pictures(figure, layer):
    """The pixels of a layer, tile by tile, without those of the legend."""
    tiles = [axes for axes in figure.axes if not axes.get_label().startswith("scale")]
    return [axes.images[layer].get_array() for axes in tiles]


def two_cases():
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(0, 100, SHAPE).astype("int16") + n for n in (0, 5000))
    return open_cases({"a": {"image": dark}, "b": {"image": bright}})


def test_a_sheet_shows_middle_slices_and_says_where_they_lie(cases, words):
    (case,) = cases
    starts = [(0, 0, 0), (10, 8, 18), (12, 38, 44)]
    figure = patch_sheet([sample(case, start) for start in starts], cases=cases)
    assert figure.facts["locations"] == [list(start) for start in starts]
    said = words(figure)
    assert {"0, 0, 0", "10, 8, 18", "12, 38, 44", "liver", "tumour"} <= set(said)
    assert "3 patches of 8 × 12 × 16 voxels from brain" in said
    assert "middle slices across z" in said
    truth = case.read("label", Roi((14, 8, 18), (15, 20, 34)))[0, 0][
        ::-1, ::-1
    ]  # SAR: A up, R left
    shown = pictures(figure, 1)[1]
    np.testing.assert_array_equal(shown[..., 3] > 0, truth > 0)
    color = bytes.fromhex(class_color(1)[1:])
    assert (shown[truth == 1][:, :3] == list(color)).all()


@pytest.mark.parametrize(
    ("axis", "name"), [("coronal", "coronal"), ("y", "coronal"), ("x", "sagittal")]
)
def test_slices_across_any_axis(cases, axis, name):
    figure = patch_sheet(scattered(cases, 3), cases=cases, axis=axis)
    assert {axes.get_label() for axes in figure.axes} == {name}


def test_no_more_samples_are_taken_than_shown_and_none_is_held(cases):
    alive, most = [], 0

    def samples():
        nonlocal most
        for one in scattered(cases, 50):
            most = max(most, sum(ref() is not None for ref in alive))
            alive.append(weakref.ref(one["image"]))
            yield one
            del one

    figure = patch_sheet(samples(), cases=cases, tiles=20)
    assert len(alive) == 20
    assert most <= 2
    assert figure.facts["patches"] == 20


def test_each_case_has_its_own_grey_window(words):
    cases = two_cases()
    figure = patch_sheet(scattered(cases, 12), cases=cases)
    assert all(
        pixels[..., 0].max() > 200 > 60 > pixels[..., 0].min() for pixels in pictures(figure, 0)
    )
    said = words(figure)
    counts = figure.facts["cases"]
    assert sum(counts.values()) == 12
    assert min(counts.values()) > 0
    assert {"a", "b", "12 patches of 8 × 12 × 16 voxels from 2 cases"} <= set(said)
    assert any(f"a {counts['a']}" in text and f"b {counts['b']}" in text for text in said)


@pytest.mark.slow
def test_long_names_leave_room_for_the_place(words):
    name = "a-very-long-name-of-a-patient-that-fills-three-tiles"
    scan = np.zeros(SHAPE, "u1")
    cases = open_cases([{"name": name, "image": scan}, scan])
    said = words(patch_sheet(scattered(cases, 40), cases=cases, tiles=40))
    assert any(text.startswith("a-") and "…" in text for text in said)
    assert not any(text == name for text in said)


def test_cases_on_different_grids_are_shown_in_voxels(stored, scan, words):
    from volflow.store.meta import Meta

    coarse = stored(np.zeros(SHAPE, "f4"), Meta(spacing=(5, 5, 5), unit="millimeter"), "b.zarr")
    cases = open_cases([str(scan), str(coarse)])
    figure = patch_sheet(scattered(cases, 4), cases=cases)
    assert {axes.get_label() for axes in figure.axes} == {"xy"}
    assert not any("mm" in text for text in words(figure))


def test_classes_alone_and_images_alone(cases, words):
    labels = open_cases({"label": str(cases[0].sources["label"].path)})
    figure = patch_sheet([sample(labels[0], (10, 10, 20))], cases=labels)
    assert len(figure.axes[0].images) == 1
    assert "liver" in words(figure)
    figure = patch_sheet(
        [sample(cases[0], (10, 10, 20))], cases=cases, label="label", image="image"
    )
    assert len(figure.axes[0].images) == 2
    two = open_cases(np.stack([np.zeros(SHAPE), np.ones(SHAPE)]).astype("u1"))
    figure = patch_sheet(scattered(two, 2), cases=two, channel=1)
    assert figure.facts["classes"] == []


@pytest.mark.slow
def test_streams_and_loaders_know_their_cases(cases, words):
    stream = PatchStream(cases, LabelSampler(8, probabilities={1: 1, 2: 3}), 24, seed=1)
    figure = patch_sheet(stream, tiles=24)
    assert any(text.startswith("LabelSampler, probabilities 1: 1, 2: 3") for text in words(figure))
    of_batches = patch_sheet(stream.loader(5), tiles=24)
    assert of_batches.facts["patches"] == 24
    stream.set_epoch(0)
    assert patch_sheet(stream.loader(5), tiles=24).facts == figure.facts
    turned = PatchStream(cases, UniformSampler(8), 4, augment=lambda batch: batch)
    assert "R" in words(patch_sheet(turned))
    assert "R" not in words(patch_sheet(turned.loader(2)))  # who knows which way it lies
    grid = PatchStream(cases, GridSampler((20, 25, 30), overlap=0.2))
    assert any(text == "GridSampler, overlap 0.2" for text in words(patch_stats(grid)))


@pytest.mark.slow
def test_counts_equal_those_of_numpy(cases):
    (case,) = cases
    samples = list(scattered(cases, 200, border=6))
    figure = patch_stats(samples, cases=cases)
    truth = case.read("label", Roi.full(SHAPE))[0]
    parts, centres = [], []
    for one in samples:
        start, stop = one["location"][:3], one["location"][3:]
        parts.append(truth[tuple(slice(max(0, a), b) for a, b in zip(start, stop, strict=True))])
        centres.append(start + np.array([4, 6, 8]))
    inside = np.concatenate([part.ravel() for part in parts])
    at = [one["label"][0, 4, 6, 8] for one in samples]
    for one in figure.facts["classes"]:
        value = one["class"]
        assert one["voxels"] == pytest.approx((inside == value).mean())
        assert one["centres"] == pytest.approx(np.mean([c == value for c in at]))
        assert one["patches"] == sum((part == value).any() for part in parts)
    place = np.clip((np.array(centres) + 0.5) / SHAPE, 0, 1 - 1e-9)
    for axis, name in enumerate("zyx"):
        found = np.array(figure.facts["along"][name])
        bins = len(found)
        fine = np.minimum((np.clip(centres, 0, None)[:, axis] * BINS) // SHAPE[axis], BINS - 1)
        np.testing.assert_array_equal(found, np.bincount(fine * bins // BINS, minlength=bins))
        rough = np.histogram(place[:, axis], bins, (0, 1))[0]
        assert np.abs(np.cumsum(found) - np.cumsum(rough)).max() <= 200 * BINS / bins / SHAPE[axis]
    counts = PatchCounts({case.name: case}, "label")
    for patch in each_patch(samples):
        counts.add(patch)
    for axis in range(3):
        plane = counts.projection(axis)
        assert plane.sum() == 200
        for other, sums in zip([n for n in range(3) if n != axis], (1, 0), strict=True):
            fine = np.minimum(np.clip(centres, 0, None)[:, other] * BINS // SHAPE[other], BINS - 1)
            expected = np.bincount(fine * len(plane) // BINS, minlength=len(plane))
            np.testing.assert_array_equal(plane.sum(axis=sums), expected)


def test_bins_are_fine_where_there_is_much_to_show():
    cases = open_cases(np.zeros((300, 300, 300), "u1"))
    counts = PatchCounts({"case0": cases[0]})
    counts.patches["case0"] = 10**6
    assert (len(counts.histogram(0)), counts.projection(0).shape) == (64, (64, 64))
    counts.patches["case0"] = 30
    assert (len(counts.histogram(0)), counts.projection(0).shape) == (8, (8, 8))


@pytest.mark.slow
def test_a_chart_says_where_patches_fall_and_what_they_hold(cases, words):
    figure = patch_stats(scattered(cases, 60), cases=cases)
    labels = [axes.get_label() for axes in figure.axes]
    assert labels[:3] == ["axial", "coronal", "sagittal"]
    assert {"along z", "along y", "along x"} <= set(labels)
    assert {"background", "liver", "tumour", "share of voxels", "share of centres"} <= set(
        words(figure)
    )
    assert patch_stats(scattered(cases, 60), cases=cases, patches=7).facts["patches"] == 7


def test_of_many_classes_the_most_frequent_are_shown(words):
    labels = np.arange(8**3, dtype="int32").reshape(8, 8, 8) * 1000
    cases = open_cases({"label": labels})
    figure = patch_stats([sample(cases[0], (0, 0, 0), (8, 8, 8))] * 2, cases=cases)
    assert len(figure.facts["classes"]) == 512
    said = words(figure)
    assert "label: 16 of 512 classes" in said
    assert "class 292000" in said  # at the centre
    lines = facts_text(figure.facts).splitlines()
    assert len(lines) == 2 + 16 + 1
    assert any(line.startswith("292000 ") for line in lines)
    assert lines[-1] == "and 496 classes more"


def test_of_many_cases_the_counts_are_summed_up(words):
    cases = open_cases([np.zeros(SHAPE, "u1")] * 20)
    samples = [sample(cases[n], (0, 0, 0)) for n in (3, 3, 7, 8)]
    for draw in (patch_sheet, patch_stats):
        figure = draw(samples, cases=cases)
        said = words(figure)
        assert "4 patches of 8 × 12 × 16 voxels from 3 of 20 cases" in said
        assert any("1 to 2 from each of 3 cases, none from 17" in text for text in said)
        line = facts_text(figure.facts)
        assert line == "4 patches: 1 to 2 from each of 3 cases, none from 17"


def test_facts_in_words(cases):
    facts = patch_stats(scattered(cases, 5), cases=cases).facts
    lines = facts_text(facts).splitlines()
    assert lines[0] == "5 patches: brain 5"
    assert lines[1].split() == ["label", "of", "voxels", "at", "centres", "in", "patches"]
    assert len(lines) == 2 + len(facts["classes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": 0}, "tiles must be 1 to 200, given 0"),
        ({"tiles": 1.5}, "tiles must be 1 to 200, given 1.5"),
        ({"axis": "q"}, "axis must be z, y or x, or one of axial, coronal, sagittal; given 'q'"),
        ({"label": "truth"}, "cases hold image, label, given 'truth'"),
        ({"channel": 1}, "channel must be 0 … 0, given 1"),
        ({"percentiles": (9, 1)}, "percentiles must be two numbers"),
        ({"classes": "liver"}, "classes must be names"),
        ({"cases": None}, "samples do not say which volumes they come from"),
    ],
)
def test_what_cannot_be_shown_is_refused(cases, options, message):
    with pytest.raises(InvalidInput, match=message):
        patch_sheet(scattered(cases, 3), **{"cases": cases, **options})


def test_nothing_to_show(cases):
    for draw in (patch_sheet, patch_stats):
        with pytest.raises(InvalidInput, match="there are no patches to show"):
            draw([], cases=cases)
    with pytest.raises(InvalidInput, match="patches of 1 × 9 × 9 voxels are a line across y"):
        patch_sheet(scattered(cases, 2, (1, 9, 9)), cases=cases, axis="y")
    flat = PatchStream(cases, UniformSampler((1, 9, 9)), 4)
    for samples in (flat, flat.loader(2)):  # whose batches lack the axis
        assert patch_sheet(samples, cases=cases).facts["patch"] == [1, 9, 9]


def test_a_window_is_that_of_all_cases(cases):
    ends = float(np.median(sample(cases[0], (10, 10, 20))["image"]))
    figures = [
        patch_sheet([sample(cases[0], (10, 10, 20))], cases=cases, label=None, window=window)
        for window in ((ends, ends + 1e-3), (ends + 1e9, ends + 2e9))
    ]
    greys = [np.asarray(one.axes[0].images[0].get_array())[..., 0] for one in figures]
    assert greys[0].max() > greys[1].max() == 0
    with pytest.raises(InvalidInput, match="window 'lungs' is neither two numbers nor a name"):
        patch_sheet(scattered(cases, 1), cases=cases, window="lungs")
