"""A process that is killed, stuck or in error in mid-step: all others say so, and none hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from partition_ranks import run_step
from process_group import processes
from torch import nn
from training_oracle import DiceEntropy, segmented, target_of

from volflow.errors import PeerLost
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.mesh import Mesh
from volflow.partition.exchange.ranks import Rank

TIMEOUT_S = 6.0
SIZES = (16, 8, 8)

pytestmark = pytest.mark.chaos


class Doomed(DiceEntropy):
    """Befalls one process when it computes the loss."""

    def sums(self, outputs, boxes):
        self.what()
        return super().sums(outputs, boxes)

    @staticmethod
    def what():
        """Nothing yet."""


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def stuck():
    os.kill(os.getpid(), signal.SIGSTOP)


def failed():
    raise ValueError("this process has no target")


def step(peers, what, doomed):
    """Take steps until something happens; the error and how long it was waited for."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2), nn.Conv3d(2, 2, 3, padding=1)]
    x = torch.randn(1, 1, *SIZES)
    net = segmented(nn.Sequential(*layers), x, SIZES)
    boxes = Division.even(SIZES, (len(peers), 1, 1), (1, 1, 1)).boxes
    mesh, loss = Mesh(peers, peers), Doomed(target_of(SIZES))

    def read(box):
        return x[(..., *box.slices())]

    run_step(Rank(net, mesh, boxes, read), loss)
    if peers.rank == doomed:
        object.__setattr__(loss, "what", what)
    began = time.monotonic()
    try:
        run_step(Rank(net, mesh, boxes, read), loss)
    except (PeerLost, ValueError) as error:
        said = type(error).__name__, str(error), time.monotonic() - began
    with pytest.raises(PeerLost, match="has left its group"):
        Rank(net, mesh, boxes, read).forward()
    return said


@pytest.mark.parametrize(
    ("what", "doomed", "most_s"),
    [(killed, 0, 3), (killed, 2, 3), (stuck, 2, TIMEOUT_S + 3), (failed, 0, 3)],
)
def test_all_others_say_that_a_process_was_lost(tmp_path, what, most_s, doomed):
    with processes(4, tmp_path, TIMEOUT_S) as group:
        found = group.run(4, step, what, doomed)
    for rank, said in enumerate(found):
        if rank == doomed:
            assert said is None or said[:2] == ("ValueError", "this process has no target")
            continue
        kind, text, seconds = said
        assert kind == "PeerLost"
        assert "another process of the group ended, or did not answer within 6 s, while" in text
        assert "Start all processes again from the last checkpoint" in text
        assert seconds < most_s
