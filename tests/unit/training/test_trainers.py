"""What a trainer does around a step, a whole volume does not notice: modes, scales, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from partition_oracle import enlarged, image
from torch import nn
from training_oracle import target_of

import volflow as vf
from volflow.model import forward
from volflow.training import planned

SIZE = (6, 8, 12)
LOSS = vf.losses.DiceCE(batch=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (8,))


def network(norm="batch", dropout=0.0):
    torch.manual_seed(0)
    unet = vf.UNet(1, 2, features=(2, 4), norm=norm)
    return enlarged(nn.Sequential(unet, nn.Dropout(dropout)), 1.5).train()


def whole_of(net, **given):
    return vf.WholeVolume(net, "1GiB", device="cpu", **given)


def case(seed):
    return image(SIZE, 1, seed), target_of(SIZE, seed=seed)


def assert_close(one, other, exact=1e-12):
    for name, value in one.state_dict().items():
        scale = float(value.double().abs().max())
        assert float((other.state_dict()[name] - value).abs().max()) <= exact * scale, name


@pytest.mark.slow
def test_accumulated_gradients_and_weight_decay():
    """Two volumes of a half each, the one by its scores, the other streamed."""
    plain, net = network(), network()
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.01) for n in (plain, net)]
    whole = whole_of(net)
    for step in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (x, t), (y, u) = case(2 * step), case(2 * step + 1)
        for a, b in ((x, t), (y, u)):
            (0.5 * LOSS(plain(a), b)).backward()
        (0.5 * LOSS(whole(x), t)).backward()
        whole.step(y, u, LOSS, weight=0.5)
        for optimizer in optimizers:
            optimizer.step()
    assert_close(plain, net)


@pytest.mark.slow
def test_the_scale_of_a_gradient_scaler():
    """Scaled, unscaled and clipped, gradients are those of a step without a scale."""
    plain, net, (x, t) = network(), network(), case(0)
    LOSS(plain(x), t).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (plain, net)]
    whole = whole_of(net)
    scaler.scale(torch.zeros(()))  # makes the scale
    whole.step(x, t, LOSS, weight=scaler.get_scale())
    scaler.unscale_(optimizers[1])
    norms = [nn.utils.clip_grad_norm_(n.parameters(), 0.01) for n in (plain, net)]
    torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
    optimizers[0].step()
    scaler.step(optimizers[1])
    assert_close(plain, net)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_autocast_is_no_worse_than_plain_autocast(norm, streamed, monkeypatch):
    monkeypatch.setattr(forward, "has_bfloat16", lambda: True)  # slow where it is emulated
    exact, (x, t) = network(norm), case(0)
    plain, net = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    LOSS(exact(x), t).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSS(plain(x.float()), t)
    loss.backward()
    whole = whole_of(net)
    with torch.autocast("cpu", torch.bfloat16):
        if streamed:
            whole.step(x.float(), t, LOSS)
        else:
            loss = LOSS(whole(x.float()), t)
    if not streamed:
        loss.backward()  # torch advises to leave autocast before it
    wrong = [error(n, exact) for n in (plain, net)]
    assert wrong[0] > 1e-4
    assert wrong[1] <= 2 * wrong[0]


def error(net, exact):
    """Of all gradients, as a share of theirs."""
    pairs = zip(net.parameters(), exact.parameters(), strict=True)
    wrong, size = zip(*(((p.grad - q.grad).norm(), q.grad.norm()) for p, q in pairs), strict=True)
    return float(torch.stack(wrong).norm() / torch.stack(size).norm())


@pytest.mark.slow
def test_train_and_eval_reach_the_network():
    plain, net, (x, t) = network(dropout=0.5), network(dropout=0.5), case(0)
    whole = whole_of(net)
    assert whole.eval() is whole
    assert not any(part.training for part in net.modules())
    plain.eval()
    LOSS(plain(x), t).backward()
    whole.step(x, t, LOSS)  # running statistics, no dropout, and no buffer changes
    assert_close(plain, net)
    for one, other in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-11, atol=1e-14)
    whole.train()
    assert all(part.training for part in net.modules())
    before = copy.deepcopy(net.state_dict())
    whole.step(x, t, LOSS)
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_a_loop_goes_on_from_a_checkpoint_with_the_same_masks(tmp_path):
    def train(whole, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            whole.step(*case(step), LOSS)
            optimizer.step()

    def begun():
        whole = whole_of(network(dropout=0.5), seed=7)
        return whole, torch.optim.AdamW(whole.parameters(), lr=0.01)

    through = begun()
    train(*through, range(3))
    first = begun()
    train(*first, range(1))
    torch.save([one.state_dict() for one in first], tmp_path / "checkpoint.pt")
    second = begun()
    for one, state in zip(second, torch.load(tmp_path / "checkpoint.pt"), strict=True):
        one.load_state_dict(state)
    train(*second, range(1, 3))
    assert second[0].steps == 3
    for name, value in through[0].net.state_dict().items():
        assert torch.equal(second[0].net.state_dict()[name], value), name
