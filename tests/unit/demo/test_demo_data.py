from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from volflow.demo import (
    BUNDLE,
    CLASSES,
    HELD_OUT_Y,
    TRAINED_Y,
    held_out_dice,
    load_mni,
    tissue_classes,
    true_classes,
)
from volflow.errors import InvalidInput
from volflow.model.bundle import load_model


def test_template_is_found_without_importing_nilearn():
    pytest.importorskip("nilearn")
    code = (
        "import sys; from volflow.demo import load_mni; m = load_mni();"
        "assert m.t1.is_file() and m.gm.is_file() and m.wm.is_file();"
        "assert not {'nilearn', 'nibabel', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r'not installed; pip install "volflow\[demo\]"'):
        load_mni()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"mni_icbm152_t1_tal\S+ is missing"):
        load_mni(tmp_path)


def test_truth_is_stored_zyx():
    pytest.importorskip("nilearn")
    truth = true_classes(load_mni())
    assert truth.shape == (189, 233, 197)
    assert np.bincount(truth.ravel()).tolist() == [6963686, 1079599, 632004]
    assert 0.2 < (truth[:, HELD_OUT_Y:] > 0).sum() / (truth > 0).sum() < 0.3
    assert HELD_OUT_Y > TRAINED_Y


def test_tissues_split_at_one_half():
    gm, wm = np.uint8([[127, 128, 0, 0, 120]]), np.uint8([[0, 0, 128, 127, 120]])
    assert tissue_classes(gm, wm).tolist() == [[0, 1, 2, 0, 0]]


def test_dice_counts_only_the_held_out_part():
    truth = np.zeros((4, 200, 3), np.uint8)
    truth[:, 150:160], truth[:, 160:180] = 1, 2
    wrong = truth.copy()
    wrong[:, :HELD_OUT_Y] = 1
    assert held_out_dice(wrong, truth) == {"grey matter": 1.0, "white matter": 1.0}
    wrong[:, 160:170] = 1
    scores = held_out_dice(wrong, truth)
    assert scores["grey matter"] == pytest.approx(2 * 10 / 30)
    assert scores["white matter"] == pytest.approx(2 * 10 / 30)
    with pytest.raises(InvalidInput, match="have shape"):
        held_out_dice(wrong[1:], truth)


def test_shipped_network_opens_without_trust_and_is_small():
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) <= 1_000_000
    model = load_model(BUNDLE)
    spec = model.spec
    assert spec.classes == CLASSES
    assert (spec.patch, spec.frame, spec.normalize, spec.output) == (
        64, "RAS", "minmax", "classes",
    )  # fmt: skip
    assert f"y >= {HELD_OUT_Y}" in spec.description
    with torch.inference_mode():
        assert model.module(torch.zeros(1, 1, 64, 64, 64)).argmax(1).max() == 0


@pytest.mark.slow
def test_shipped_network_reaches_its_score_on_a_part_never_seen():
    nibabel = pytest.importorskip("nibabel")
    pytest.importorskip("nilearn")
    mni = load_mni()
    truth = true_classes(mni)
    image = np.asarray(nibabel.load(mni.t1).dataobj, np.float32) / 255
    # The front of the brain with some context, padded in z to the network's alignment.
    begin = 120
    front = np.pad(image[:196, begin:232], ((0, 0), (0, 0), (0, 3)))
    with torch.inference_mode():
        classes = load_model(BUNDLE).module(torch.from_numpy(front)[None, None]).argmax(1)[0]
    found = np.zeros_like(truth)
    found[:, begin:232, :196] = classes.numpy()[..., :189].transpose(2, 1, 0)
    scores = held_out_dice(found, truth)
    assert min(scores.values()) >= 0.95
