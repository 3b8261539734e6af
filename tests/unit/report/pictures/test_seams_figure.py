"""The picture of a seam certificate: panels, one scale, ticks at the borders of patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.infer.seams.certificate import Certificate, Plane, Region, Seams
from volflow.report.pictures.seams_figure import seams_figure

pytest.importorskip("matplotlib", reason="extra report")

START, STOP = (4, 0, 0), (24, 50, 60)


@pytest.fixture
def certificate():
    """An axial slice of 2 × 1 × 1 mm voxels, whose patches meet at y = 20 and x = 15."""
    y, x = np.ogrid[:50, :60]
    classes = np.zeros((50, 60), "uint16")
    classes[10:30, 20:40] = 1
    seam = np.exp(-((x - 15.0) ** 2)) + 0.5 * np.exp(-((y - 20.0) ** 2))
    exact = Seams("exact", None, 8, 2.5e-7, 1e-8, 0.0, 2.0)
    blends = (
        Seams("gaussian", 0, 27, 1.5, 0.02, 0.0012, 1.0),
        Seams("hann", (0, 4, 0.25), 64, 0.5, 0.01, 0.0, 2.0),
    )
    plane = Plane(
        1, 0, 9, (y + x).astype("float32"), classes, (seam, seam / 3),
        (((16,), (20,), (15, 40)), ((), (10, 30), ())),
    )  # fmt: skip
    region = Region(START, STOP, (20, 52, 60), (-1.0, 2.0), 0.5, exact, blends)
    return Certificate(
        volume="/data/scan.zarr", model="/nets/liver", shape=(30, 50, 60), spacing=(2.0, 1.0, 1.0),
        unit="millimeter", orientation="SAR", frame="RAS", patch=(16, 16, 16),
        activation="softmax", device="cpu", dtype="float32", classes=("background", "liver"),
        margin=((2, 2),) * 3, statistics=0, no_rule="", regions=(region,), plane=plane,
    )  # fmt: skip


def test_panels_and_words(certificate, words):
    figure = seams_figure(certificate)
    said = "\n".join(words(figure))
    assert "scan.zarr through liver" in said
    assert "axial z = 9 of z 4–24, y 0–50, x 0–60" in said
    assert "exact: largest 2.5e−07" in said
    for heading in ("image", "whole", "gaussian, overlap 0", "hann, overlap 0,4,0.25"):
        assert heading in said
    assert "mean 0.02, largest 1.5, 0.12 % other class" in said
    assert "liver" in said
    assert [axes.get_label() for axes in figure.axes][:4] == ["axial"] * 4
    assert figure.facts["plane"] == {"axis": "z", "index": 9}
    assert figure.facts["regions"][0]["exact"]["largest"] == 2.5e-7


def test_ticks_lie_where_patches_meet(certificate):
    """Seen from the feet with R on the left and A above: x and y run as views say."""
    image, _, first, second, _ = seams_figure(certificate).axes
    assert list(image.get_xticks()) == list(image.get_yticks()) == []
    # Stored along S, A, R: in the picture R is on the left and A above, so both are turned.
    assert sorted(first.get_xticks()) == [20, 45]
    assert sorted(first.get_yticks()) == [30]
    assert sorted(second.get_yticks()) == [20, 40]
    assert not any(tick.get_visible() for tick in first.get_xticklabels() if tick.get_text())
    # The seam is where its tick is.
    pixels = first.images[0].get_array()[..., :3].sum(axis=(0, 2))
    assert abs(int(np.argmax(pixels)) + 0.5 - 45) <= 1


def test_one_scale_of_colours(certificate):
    _, _, first, second, _ = seams_figure(certificate).axes
    brightest = [axes.images[0].get_array()[..., :3].sum(axis=-1).max() for axes in (first, second)]
    assert brightest[1] < brightest[0]


def test_scores_of_one_channel_without_an_exact_rule(certificate, words):
    heat = certificate.plane.whole.astype("float32")
    region = replace(certificate.regions[0], exact=None)
    plane = replace(certificate.plane, whole=heat, differences=(heat * 0, heat * 0))
    found = replace(
        certificate, regions=(region,), plane=plane, margin=None, no_rule="sort has none"
    )
    figure = seams_figure(found)
    said = "\n".join(words(figure))
    assert "scores in one forward" in said
    assert "exact in" not in said
    assert "0 … 1   difference of scores" in said  # nothing differs: any scale will do


def test_a_picture_needs_matplotlib(certificate, monkeypatch):
    def missing():
        raise InvalidInput("a picture needs matplotlib")

    monkeypatch.setattr("volflow.report.pictures.seams_figure.drawing", missing)
    with pytest.raises(InvalidInput, match="a picture needs matplotlib"):
        seams_figure(certificate)
