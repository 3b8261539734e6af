"""Comparisons: the figures they give, what they read, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import volflow.report.pictures.class_agreement as agreement_module
import volflow.report.pictures.compare as compare_module
from volflow.errors import InvalidInput
from volflow.report.pictures.class_agreement import volume_agreement
from volflow.report.pictures.compare import ONLY_A, ONLY_B, UNLIKE, UNLIKE_COLORS, compare
from volflow.report.pictures.subject import open_subject
from volflow.store.meta import Meta
from volflow.store.volume import open_volume

pytest.importorskip("matplotlib", reason="extra report")


def color(kind):
    return tuple(bytes.fromhex(UNLIKE_COLORS[kind][1:]))


@pytest.mark.parametrize("whole", [True, False])
def test_classes_with_their_dice_and_where_they_differ(result, other, scan, words, whole):
    figure = compare(result, other, scan, whole=whole)
    said = words(figure)
    assert {"seg.zarr against other.zarr", "A   seg.zarr", "B   other.zarr", "A ≠ B"} <= set(said)
    assert any(text.startswith("over scan.zarr   ·   20 × 50 × 60") for text in said)
    assert ("In the whole volumes:" if whole else "In these planes, not in the volumes:") in said
    assert len(figure.axes) == 9

    a, b = open_volume(result)[:], open_volume(other)[:]
    z, y, x = (plane["index"] for plane in figure.facts["planes"])
    planes = [(a[z], b[z]), (a[:, y], b[:, y]), (a[:, :, x], b[:, :, x])]
    if not whole:
        a, b = (np.concatenate([pair[n].ravel() for pair in planes]) for n in (0, 1))
    facts = figure.facts["difference"]
    assert facts["of"] == ("volumes" if whole else "planes shown")
    assert (facts["equal"], facts["total"]) == ((a == b).sum(), a.size)
    assert [one["name"] for one in facts["classes"]] == ["liver", "tumour"]
    for one in facts["classes"]:
        mine, theirs = a == one["class"], b == one["class"]
        assert (one["a"], one["b"]) == (mine.sum(), theirs.sum())
        assert one["dice"] == 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum())
        assert f"{one['dice']:.4f}" in said
    assert facts["equal"] < facts["total"]  # it looks where they differ


def test_disagreement_lies_on_its_voxels(result, other, scan):
    figure = compare(result, other, scan, at=(13, 17, 27))
    mine, theirs, where = (figure.axes[n].images[1].get_array() for n in range(3))
    a, b = (np.flip(open_volume(path)[13], axis=(0, 1)) for path in (result, other))
    np.testing.assert_array_equal(mine[..., 3] > 0, a > 0)
    np.testing.assert_array_equal(theirs[..., 3] > 0, b > 0)
    np.testing.assert_array_equal(where[..., 3] > 0, a != b)
    for kind, mask in (
        (ONLY_A, (a > 0) & (b == 0)),
        (ONLY_B, (a == 0) & (b > 0)),
        (UNLIKE, (a != b) & (a > 0) & (b > 0)),
    ):
        assert mask.any()
        assert {tuple(pixel) for pixel in where[mask][:, :3]} == {color(kind)}
    assert [axes.images[-1].get_interpolation() for axes in figure.axes[:3]] == ["nearest"] * 3


@pytest.mark.slow
def test_the_same_is_said_to_be_the_same(result, scan, words):
    figure = compare(result, result, scan)
    assert figure.facts["difference"]["equal"] == figure.facts["difference"]["total"]
    assert "the same everywhere" in words(figure)
    assert "the same in these planes" in words(compare(result, result, scan, whole=False))
    # Nothing differs: the planes are where there is most to see.
    assert 12 <= figure.facts["planes"][0]["index"] < 16
    assert "the same in these planes" in words(compare(np.ones((4, 5, 6)), np.ones((4, 5, 6))))


def test_whole_volumes_are_counted_alike_however_they_are_read(tmp_path, stored, monkeypatch):
    """Scores by their highest channel, files from front to back, stored volumes piece by piece."""
    monkeypatch.setattr(agreement_module, "PIECE_VOXELS", 500)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 10, 17, 12), "u1")
    scores = np.stack([a == n for n in range(3)]).astype("f4")
    nibabel = pytest.importorskip("nibabel", reason="extra io")
    nibabel.save(nibabel.Nifti1Image(b.T.astype("i4"), np.eye(4)), tmp_path / "b.nii.gz")
    as_scores = stored(scores, Meta(("c", "z", "y", "x")), "s.zarr", chunk=4)
    found = [
        volume_agreement(*map(open_merged, pair), {})
        for pair in [(a, b), (as_scores, b), (as_scores, tmp_path / "b.nii.gz")]
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["total"] == a.size
    assert found[0]["equal"] == (a == b).sum()
    assert [one["a"] for one in found[0]["classes"]] == [(a == 1).sum(), (a == 2).sum()]
    assert volume_agreement(open_merged(a), open_merged(b[:5]), {}) is None


def open_merged(x):
    return open_subject(x, merge=True)


def test_the_planes_are_where_the_results_differ():
    a = np.zeros((40, 50, 60), "u1")
    a[2:20, 5:45, 5:55] = 1
    b = a.copy()
    b[31:35, 40:44, 8:12] = 1
    planes = [plane["index"] for plane in compare(a, b).facts["planes"]]
    assert all(low <= n < low + 4 for n, low in zip(planes, (31, 40, 8), strict=True))
    assert [plane["index"] for plane in compare(a, b, at="center").facts["planes"]] == [20, 25, 30]


def test_scores_on_one_scale_with_their_signed_difference(scan, stored, words):
    rng = np.random.default_rng(0)
    meta = Meta(("c", "z", "y", "x"), (2, 1, 1), "millimeter", channels=("lesion",))
    a = rng.random((1, 20, 50, 60), "f4")
    b = np.clip(a - 0.25, 0, 1)
    figure = compare(stored(a, meta, "a.zarr"), stored(b, meta, "b.zarr"), scan, at="center")
    facts = figure.facts["difference"]
    planes = [(a - b)[0, 10], (a - b)[0, :, 25], (a - b)[0, :, :, 30]]
    away = np.concatenate([np.abs(plane).ravel() for plane in planes])
    assert facts["mean_abs"] == pytest.approx(away.mean(), rel=1e-6)
    assert facts["max_abs"] == pytest.approx(away.max(), rel=1e-6)
    assert facts["compared"] == away.size
    said = words(figure)
    assert any(text.startswith("−0.25 … 0.25   A − B") for text in said)
    assert any(text.endswith("1   lesion") for text in said)
    # Common scale: an equal score has an equal colour in both.
    mine, theirs = (figure.axes[n].images[1].get_array() for n in (0, 1))
    first, second = (array[0, 10] for array in (a, b))
    assert mine[np.unravel_index(first.argmax(), first.shape)][3] == mine[..., 3].max()
    assert theirs[..., :3].astype(int).sum(-1).max() < mine[..., :3].astype(int).sum(-1).max()
    assert second.max() < first.max()
    # All differences are of one sign, orange.
    difference = figure.axes[2].images[1].get_array().astype(int)
    assert (difference[..., 0] >= difference[..., 2]).all()


def test_images_share_a_grey_window():
    a = np.linspace(0, 1, 4 * 5 * 6).reshape(4, 5, 6)
    figure = compare(a, a / 2, percentiles=(0, 100), at=(0, 0, 0))
    mine, theirs = (figure.axes[n].images[0].get_array()[..., 0].astype(int) for n in (0, 1))
    assert np.abs(mine - 2 * theirs).max() <= 1


@pytest.mark.slow
def test_grids_and_levels_may_differ(pyramid, stored, monkeypatch, reads, tmp_path, words):
    """Of b the level is read that is most like a's."""
    monkeypatch.setattr(compare_module, "PIXELS", 20)
    labels = np.zeros((32, 32, 32), "u1")
    labels[8:24, 8:24, 8:24] = 1
    a = pyramid(labels, Meta(kind="classes"), "a.zarr")
    half = Meta(spacing=(2, 2, 2), translation=(0.5,) * 3, kind="classes")
    b = pyramid(labels[::2, ::2, ::2], half, "b.zarr", count=2)
    figure = compare(a, b, at="center")
    assert [level for level, _ in reads] == [1] * 3 + [0] * 3
    told = "shown: A level 1, 2 × 2 × 2; B level 0"
    assert any(text.endswith(told) for text in words(figure))
    assert figure.facts["difference"]["classes"][0]["dice"] == 1
    # Of one without levels every voxel is read, and compared on the finer grid.
    reads.clear()
    figure = compare(b, stored(labels, Meta(kind="classes"), "c.zarr"), at="center", level=0)
    assert figure.facts["difference"]["total"] == 3 * 16 * 16
    assert figure.facts["difference"]["classes"][0]["dice"] == 1
    monkeypatch.setattr(compare_module, "PIXELS", 99)
    figure = compare(b, tmp_path / "c.zarr", at="center")
    assert figure.facts["difference"]["total"] == 3 * 32 * 32
    assert figure.facts["difference"]["classes"][0]["dice"] == 1


def test_same_names_are_with_distinct_names_by_their_folders(stored, tmp_path, words):
    labels = np.ones((4, 5, 6), "u1")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        stored(labels, Meta(kind="classes"), f"{folder}/seg.zarr")
    figure = compare(tmp_path / "one" / "seg.zarr", tmp_path / "two" / "seg.zarr")
    assert "one/seg.zarr against two/seg.zarr" in words(figure)


@pytest.mark.slow
def test_many_classes_are_cut_short(words):
    a = np.random.default_rng(0).integers(0, 20, (6, 20, 20))
    said = words(compare(a, a, classes=["background"]))
    assert "… and 7 more classes" in said
    assert sum(text == "1.0000" for text in said) == 12


@pytest.mark.slow
def test_files_and_label_images_without_a_kind_can_be_compared(tmp_path):
    """As evaluation knows them: one a result, one a NIfTI of whole numbers, or of floats."""
    nibabel = pytest.importorskip("nibabel", reason="extra io")
    a = np.zeros((6, 7, 8), "u1")
    a[1:4, 2:5, 3:7] = 1
    for name, dtype in (("a", "u1"), ("b", "f4")):
        image = nibabel.Nifti1Image(a.T.astype(dtype), np.eye(4))
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    paths = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    assert compare(paths[0], paths[0]).facts["difference"]["classes"][0]["dice"] == 1
    assert "mean_abs" in compare(*paths).facts["difference"]  # floats are numbers
    named = compare(*paths, classes=["background", "liver"])
    assert named.facts["difference"]["classes"][0] == {
        "class": 1, "name": "liver", "dice": 1, "a": 36, "b": 36
    }  # fmt: skip


@pytest.mark.slow
def test_numbers_that_are_none_do_not_count(words):
    a = np.full((4, 5, 6), np.nan)
    assert "no voxel is a number in both" in words(compare(a, a))
    a[2, 2, 3] = np.inf
    figure = compare(a, np.ones((4, 5, 6)), at=(2, 2, 3))
    assert figure.facts["difference"] == {
        "of": "planes shown", "mean_abs": 0, "max_abs": 0, "compared": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("b", "options", "text"),
    [
        (np.zeros((4, 5, 6)), {}, "a.zarr shows classes and array does not, so .* cannot be comp"),
        (np.zeros((4, 5, 9), "u1"), {}, "a.zarr and array must cover the same box"),
        (np.zeros((4, 5, 6), "u1"), {"at": "x"}, "at must be"),
        (np.zeros((4, 5, 6), "u1"), {"over": np.zeros((9, 9, 9))}, "a.zarr and array must cover"),
        (np.zeros((4, 5, 6), "u1"), {"level": 3}, "level must be 0 to 0, given 3"),
    ],
)
def test_what_cannot_be_compared_is_refused(b, options, text, stored):
    a = stored(np.zeros((4, 5, 6), "u1"), Meta(kind="classes"), "a.zarr")
    with pytest.raises(InvalidInput, match=text):
        compare(a, b, **options)


@pytest.mark.slow
def test_of_many_classes_the_table_names_those_of_which_most_is_shown(words):
    a = np.zeros((20, 20, 40), "u1")
    a[:, :, :30] = np.arange(30)
    a[:, :, 30:] = 29
    said = words(compare(a, a, classes=["background"], at="center"))
    assert "class 29" in said
    assert "class 1" in said
    assert "class 12" not in said
