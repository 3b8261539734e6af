"""Losses of batches and of volumes too big to hold, `vf.losses`.

Each is an ordinary function of scores and a target, ready to be called: `cross_entropy`, `dice`,
`dice_ce`, `l1` and `l2`. Their options are those of the classes that make them, `CrossEntropy`,
`Dice`, `DiceCE`, `L1` and `L2`. `mean` makes a loss of any function of voxels, `deep` one of
several outputs. All follow from sums over voxels (`Loss`), so that they are the same however a
volume is cut.

>>> import torch
>>> import volflow as vf
>>> scores, labels = torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
>>> round(vf.losses.cross_entropy(scores, labels).item(), 4)  # the logarithm of 3
1.0986
>>> loss = vf.losses.DiceCE(ignore=255, batch=True, include_background=False)
>>> loss.finish(loss.partial(scores, labels)) == loss(scores, labels)
tensor(True)
"""

from __future__ import annotations

from volflow.training.losses.classes import CrossEntropy, Dice, DiceCE
from volflow.training.losses.loss import Loss
from volflow.training.losses.regression import L1, L2, mean
from volflow.training.losses.supervision import deep
from volflow.training.losses.truth import target_at

__all__ = [
    "L1",
    "L2",
    "CrossEntropy",
    "Dice",
    "DiceCE",
    "Loss",
    "cross_entropy",
    "deep",
    "dice",
    "dice_ce",
    "l1",
    "l2",
    "mean",
    "target_at",
]

cross_entropy = CrossEntropy()
dice = Dice()
dice_ce = DiceCE()
l1 = L1()
l2 = L2()
