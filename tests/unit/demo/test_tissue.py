"""The network whose weights are written down: it tells the phantom's materials apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volflow.demo.phantom import AIR, EDGE_MM, paint
from volflow.demo.tissue import CLASSES, PATCH, save_tissue_net, tissue_net
from volflow.demo.torso import FAT, LUNG, MARROW, SHAPE, spacing_of, torso
from volflow.geometry.roi import Roi
from volflow.model.bundle import load_model

# Chest with ribs, spine, heart and lungs; belly with gas; skin.
REGIONS = (
    Roi((600, 90, 30), (624, 420, 330)),
    Roi((310, 160, 300), (350, 260, 420)),
    Roi((720, 330, 200), (744, 430, 310)),
)


def class_of(value):
    """Of a shape, by what it is painted with."""
    if value in (AIR, LUNG, FAT):
        return CLASSES.index({AIR: "air", LUNG: "lung", FAT: "fat"}[value])
    return CLASSES.index("bone" if value >= MARROW else "soft tissue")


def materials(roi, margin_mm):
    """The class of each voxel as painted, and whether it is so far from any edge."""
    spacing = spacing_of(SHAPE)
    places = [(np.arange(a, b) + 0.5) * s for (a, b), s in zip(roi, spacing, strict=True)]
    z, y, x = (place.astype(np.float32) for place in places)
    truth, clear = np.zeros(roi.shape, np.uint8), np.ones(roi.shape, bool)
    box = np.array([[p[0], p[-1]] for p in places])
    for shape in torso():
        low, high = np.array(shape.box())
        if (high + margin_mm < box[:, 0]).any() or (low - margin_mm > box[:, 1]).any():
            continue
        for k, height in enumerate(z):
            distance = shape.distance(float(height), y[:, None], x)
            inside = distance < 0
            near = abs(distance) < margin_mm
            changes = near & (truth[k] != class_of(shape.value))
            clear[k][inside & ~near] = True
            clear[k][changes] = False
            truth[k][inside] = class_of(shape.value)
    return truth, clear


def predicted(voxels):
    with torch.inference_mode():
        return tissue_net()(torch.from_numpy(voxels)[None, None])[0].argmax(0).numpy()


@pytest.fixture(scope="module")
def regions():
    """Truth, distance from edges, and what the network says; without what is beside a cut."""
    inner = (slice(2, -2),) * 3
    found = []
    for roi in REGIONS:
        truth, clear = materials(roi, 2.5 * EDGE_MM)
        said = predicted(paint(torso(), roi, spacing_of(SHAPE)))
        found.append((truth[inner].ravel(), clear[inner].ravel(), said[inner].ravel()))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_materials_are_with_distinct_names(regions, name):
    truth, clear, said = regions
    here = (truth == CLASSES.index(name)) & clear
    assert here.sum() > 20_000
    assert (said[here] == CLASSES.index(name)).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dice"),
    [("air", 0.99), ("soft tissue", 0.97), ("lung", 0.93), ("fat", 0.92), ("bone", 0.9)],
)
def test_edges_cost_little(regions, name, dice):
    truth, _, said = regions
    a, b = truth == CLASSES.index(name), said == CLASSES.index(name)
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > dice


@pytest.mark.parametrize("name", CLASSES)
def test_padding_is_of_no_tissue(name):
    """Air and what fills a patch keep their class up to the patch's faces."""
    hu = {"air": -1000, "soft tissue": 45, "lung": -850, "fat": -100, "bone": 700}[name]
    said = predicted(np.full((12, 12, 12), hu, np.float32))
    assert (said[1:-1, 1:-1, 1:-1] == CLASSES.index(name)).all()
    if name in ("air", "soft tissue", "bone"):
        assert (said[0, 1:-1, 1:-1] == CLASSES.index(name)).all()
        assert (said[1:-1, 1:-1, -1] == CLASSES.index(name)).all()


def test_bundle_opens_without_trust(tmp_path):
    saved = save_tissue_net(tmp_path / "net")
    model = load_model(tmp_path / "net")
    assert model.digest == saved.digest
    assert model.spec.classes == CLASSES
    assert (model.spec.patch, model.spec.overlap) == (PATCH, 0.25)
    assert (model.spec.blend, model.spec.output) == ("gaussian", "classes")
    batch = torch.linspace(-1100, 900, 4096).reshape(1, 1, 16, 16, 16)
    torch.testing.assert_close(model.module(batch), tissue_net()(batch))
