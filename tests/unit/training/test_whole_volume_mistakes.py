"""What a newcomer may do wrong with `vf.WholeVolume` is told in a line, or works after all."""

from __future__ import annotations

import _thread
import copy
import gc
import pickle
import time

import numpy as np
import pytest
import torch
from partition_oracle import enlarged, image
from torch import nn
from training_oracle import target_of

import volflow as vf
from volflow.errors import InvalidInput, Locked, NoExactRule, RunFailed
from volflow.store.journal.journal import Journal

SIZE = (5, 6, 7)
LOSS = vf.losses.DiceCE(batch=True)


def network(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2), nn.ReLU(), nn.Dropout(dropout)
    return enlarged(nn.Sequential(*layers, nn.Conv3d(2, 2, 1)), 1.5).train()


def whole_of(net=None, scratch=None, **given):
    return vf.WholeVolume(net or network(), "1GiB", scratch, device="cpu", **given)


def gradients(net):
    return [p.grad for p in net.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def x():
    return image(SIZE, 1)


@pytest.fixture
def target():
    return target_of(SIZE)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (torch.rand(6, 7), r"^volume for a network of 3 axes has 3 dims, or 4 .* shape \(6, 7\)"),
        (torch.rand(1, 1, 1, *SIZE), r"3 axes has 3 dims.* got shape \(1, 1, 1, 5, 6, 7\)"),
        (
            torch.rand(2, *SIZE),
            r"takes no volume of 2 channels \(its first convolution takes 1\)",
        ),
        (torch.rand(1, 1, 0, 6, 7), r"volume has no voxels: its shape is \(1, 1, 0, 6, 7\)"),
        (torch.rand(SIZE, dtype=torch.complex64), "volume holds complex64; give .* real numbers"),
        (np.array(["a"] * 8).reshape(2, 2, 2), "volume holds <U1; give an array of real numbers"),
        ("nothing.zarr", r"nothing\.zarr does not exist; check the path"),
        ([], "volume is an empty list; give at least one volume"),
        ([[torch.rand(SIZE)]], "a volume is a path, a URL, .* given list"),
        ({"image": torch.rand(SIZE)}, "a dict of volumes by name was given .image."),
        (None, "a volume is a path, a URL, .* given NoneType"),
        (
            [torch.rand(1, 5, 6, 7), torch.rand(1, 5, 6, 8)],
            r"the volumes of a batch have one shape, and volume has \(1, 5, 6, 7\) and \(1, 5, 6,",
        ),
        (
            [torch.rand(1, *SIZE).requires_grad_()],
            r"in a list, a volume gets no gradient, .* one tensor \(N, C, \*axes\)",
        ),
    ],
)
def test_volumes(volume, message):
    with pytest.raises(InvalidInput, match=message):
        whole_of()(volume)


@pytest.mark.slow
def test_a_volume_with_other_channels_than_the_network_takes(tmp_path):
    stored = vf.convert(np.ones((2, *SIZE), "f4"), tmp_path / "two.zarr", progress=False)
    net = vf.UNet(1, 2, features=(2, 4))  # its sides are padded, and it is asked with others first
    for volume in (stored, tmp_path / "two.zarr"):
        with pytest.raises(InvalidInput, match=r"of 2 channels \(its first convolution takes 1\)"):
            whole_of(net)(volume)


def test_a_volume_for_a_network_of_planes(tmp_path):
    net = nn.Conv2d(1, 2, 3, padding=1).double()
    vf.convert(np.ones(SIZE, "f4"), tmp_path / "scan.zarr", progress=False)
    with pytest.raises(InvalidInput, match=r"sides \(5, 6, 7\), and the network takes images of 2"):
        whole_of(net)(tmp_path / "scan.zarr")
    with pytest.raises(InvalidInput, match=r"of 5 channels \(its .* takes 1\) and sides \(6, 7\)"):
        whole_of(net)(torch.rand(SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "float16", "bfloat16", "float32"])
def test_a_volume_of_any_real_dtype_is_cast(dtype):
    net, volume = network().eval(), (4 * torch.rand(SIZE)).to(getattr(torch, dtype))
    with torch.no_grad():
        scores = whole_of(net)(volume)
        expected = net(volume.double()[None, None])
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_one_hot_targets_are_targets(x, target):
    one, other = network(), network()
    whole_of(one).step(x, target, LOSS)
    one_hot = nn.functional.one_hot(target).movedim(-1, 1)
    whole_of(other).step(x, one_hot.to(torch.uint8), LOSS)
    for a, b in zip(gradients(one), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[..., :-1], r"the target has 1×5×6×6 voxels .* the volume 1×5×6×7"),
        (lambda t: nn.functional.one_hot(t), r"the target has 1×6×7×2 .* the volume's own grid"),
        (lambda t: None, "a volume is a path, .* given NoneType"),
        (lambda t: "nothing.zarr", r"nothing\.zarr does not exist"),
        (lambda t: t.double().requires_grad_(), "in a step, the target gets no gradient"),
        (lambda t: t + 5, "labels for scores of 2 channels are whole numbers from 0 to 1; .* 5, 6"),
    ],
)
def test_targets(x, target, change, message):
    net = network()
    with pytest.raises(InvalidInput, match=message):
        whole_of(net).step(x, change(target), LOSS)
    assert gradients(net) == [None] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss": nn.CrossEntropyLoss()},
            r"sum over voxels, got CrossEntropyLoss; .*vf\.losses\.mean",
        ),
        ({"loss": "dice_ce"}, r"sum over voxels, got str; use one of vf\.losses"),
        ({"loss": vf.losses.DiceCE}, r"sum over voxels, got the class DiceCE"),
        ({"weight": float("nan")}, "the weight of a step is a finite number, got nan"),
        ({"weight": "half"}, "the weight of a step is a finite number, got 'half'"),
        ({"weight": torch.ones(2)}, "the weight of a step is a finite number, got tensor"),
    ],
)
def test_losses_and_weights(x, target, given, message):
    with pytest.raises(InvalidInput, match=message):
        whole_of().step(x, target, **{"loss": LOSS, **given})


def test_a_step_gives_no_gradient_of_its_volume(x, target):
    with pytest.raises(InvalidInput, match=r"in a step, the volume gets no gradient, .* scores"):
        whole_of().step(x.requires_grad_(), target, LOSS)


class DataParallel(nn.DataParallel):
    """As torch's, of which there may be one without a GPU."""


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda v: v, "trains a torch.nn.Module, got function"),
        (nn.Identity, "trains a torch.nn.Module, got type"),
        ("my_bundle", r"trains a torch.nn.Module, got str; .* vf\.load_model\(path\)\.module"),
        (None, "trains a torch.nn.Module, got None"),
        (DataParallel(nn.Identity()), r"the network itself, got it in a DataParallel; .* \.module"),
        (vf.WholeVolume(nn.Identity()), r"the network itself, got it in a WholeVolume; .* \.net"),
    ],
)
def test_networks(net, message):
    with pytest.raises(InvalidInput, match=message):
        vf.WholeVolume(net)


def test_a_network_without_values():
    with pytest.raises(InvalidInput, match=r"tensor 'weight' has no values yet; load weights"):
        whole_of(nn.Conv3d(1, 2, 3, device="meta"))(torch.rand(SIZE))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "banana"}, "memory must be a positive amount"),
        ({"memory": -5}, "memory must be a positive amount"),
        ({"seed": "a"}, "seed is a whole number, got 'a'"),
        ({"seed": 1.5}, r"seed is a whole number, got 1\.5"),
        ({"partition": 2}, r"boxes along each axis, got 2; give whole numbers such as \(1, 2, 2\)"),
        ({"partition": (0, 1, 2)}, r"boxes along each axis, got \(0, 1, 2\)"),
        ({"partition": "122"}, "boxes along each axis, got '122'"),
        ({"partition": ()}, r"boxes along each axis, got \(\)"),
    ],
)
def test_settings(given, message):
    with pytest.raises(InvalidInput, match=message):
        vf.WholeVolume(network(), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster": "process"}, "unknown cluster 'process'; did you mean 'processes'"),
        ({"device": "tpu"}, "device 'tpu' cannot be used here"),
        ({"partition": (1, 1, 2)}, "needs a running process group; start the script with torchrun"),
    ],
)
def test_settings_that_are_looked_at_when_they_are_used(x, given, message):
    with pytest.raises(InvalidInput, match=message):
        vf.WholeVolume(network(), **{"device": "cpu", **given})(x)


@pytest.mark.slow
def test_scratch_is_made_with_the_folders_above_it(tmp_path, x):
    whole = whole_of(scratch=tmp_path / "a" / "b")
    whole(x).sum().backward()
    assert [*(tmp_path / "a" / "b").iterdir()] == []


def test_scratch_that_is_a_file_or_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/below"):
        with pytest.raises(InvalidInput, match=r"scratch is a folder, and .* cannot be made: .*;"):
            whole_of(scratch=place)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InvalidInput, match="cannot be written; name another"):
        whole_of(scratch=tmp_path)


def test_scratch_that_another_process_uses(tmp_path, x):
    whole = whole_of(scratch=tmp_path)
    (tmp_path / "step-00000000").mkdir()
    with Journal(tmp_path / "step-00000000").lock(), pytest.raises(Locked, match=r"step-00000000"):
        whole(x)
    whole(x).sum().backward()


@pytest.mark.slow
def test_two_networks_in_one_scratch_folder(tmp_path, x, target):
    """Steps may take turns; scores of one are lost by those of the other, which is noticed."""
    one, other = network(), network()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    first, second = whole_of(one, tmp_path), whole_of(other, tmp_path)
    first.step(x, target, LOSS)
    second.step(x, target, LOSS)
    lost, scores = first(x), second(x)
    with pytest.raises(RunFailed, match=r"another network took its scratch folder, .* of its own"):
        lost.sum().backward()
    del lost
    gc.collect()
    scores.sum().backward()


@pytest.mark.slow
def test_scratch_lives_as_long_as_scores(x):
    net = network()
    scores = whole_of(net)(x)  # nobody holds the WholeVolume
    gc.collect()
    scores.sum().backward()
    assert None not in gradients(net)


@pytest.mark.slow
def test_scores_that_never_run_backward_leave_nothing(tmp_path, x):
    whole = whole_of(scratch=tmp_path)
    scores = whole(x)
    assert [*tmp_path.iterdir()]
    del scores
    gc.collect()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_volume_that_is_changed_between_forward_and_backward(x):
    """Its voxels were copied forward: the gradient is that of what was seen."""
    one, other = network(), network()
    whole_of(one)(x.clone()).square().sum().backward()
    scores = whole_of(other)(x)
    x.zero_()
    scores.square().sum().backward()
    assert equal(gradients(one), gradients(other))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_a_step_is_its_loss(tmp_path, x, target, mode):
    net = network(dropout=0.5)
    whole = whole_of(net, tmp_path)
    with mode():
        loss = whole.step(x, target, LOSS)
    assert gradients(net) == [None] * 6
    assert whole.steps == 0
    assert [*tmp_path.iterdir()] == []
    assert torch.equal(whole.step(x, target, LOSS), loss)
    assert whole.steps == 1


@pytest.mark.slow
def test_a_frozen_network(x, target):
    net = network().requires_grad_(False)
    whole = whole_of(net)
    assert not whole(x).requires_grad
    whole.step(x, target, LOSS)
    assert gradients(net) == [None] * 6
    whole(x.requires_grad_()).sum().backward()  # of its image alone
    assert x.grad is not None
    net[0].requires_grad_(True)
    whole.step(x.detach(), target, LOSS)
    assert [g is not None for g in gradients(net)] == [True, True, False, False, False, False]


def test_a_network_without_parameters(x):
    whole = whole_of(nn.AvgPool3d(3, 1, 1))
    x = x.float()  # nothing says that it computes in float64
    torch.testing.assert_close(whole(x), nn.functional.avg_pool3d(x, 3, 1, 1))
    whole(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_a_gradient_of_a_gradient_is_refused(x):
    whole = whole_of()
    scores = whole(x)
    found = torch.autograd.grad(scores.square().sum(), whole.net[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found[0].sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_copy_has_steps_of_its_own(tmp_path, x, copied):
    whole = whole_of(scratch=tmp_path)
    other = copied(whole)
    assert {id(p) for p in whole.parameters()}.isdisjoint(map(id, other.parameters()))
    scores = whole(x), other(x)
    for each in scores:
        each.square().sum().backward()
    assert equal(gradients(whole), gradients(other))
    del other, scores, each
    gc.collect()
    assert [*tmp_path.iterdir()] == []


def test_parameters_are_those_of_the_network():
    net = network()
    whole = whole_of(net)
    for _ in range(2):
        assert [*map(id, whole.parameters())] == [*map(id, net.parameters())]


def test_states_of_the_network_alone_and_with_it(x, target):
    whole, net = whole_of(), network()
    whole.step(x, target, LOSS)
    with torch.no_grad():
        next(whole.parameters()).add_(1)
    net.load_state_dict(whole.net.state_dict())
    assert equal(net.state_dict().values(), whole.net.state_dict().values())
    other = nn.ModuleDict({"segmenter": whole_of()})  # trained on patches before
    other.load_state_dict(nn.ModuleDict({"segmenter": net}).state_dict())
    assert equal(net.state_dict().values(), other["segmenter"].net.state_dict().values())
    assert other["segmenter"].steps == 0
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "net\.0\.weight"'):
        net.load_state_dict({k: v for k, v in whole.state_dict().items() if "extra" not in k})


@pytest.mark.slow
def test_after_it_was_closed_it_goes_on(tmp_path, x):
    for scratch in (tmp_path, None):
        whole = whole_of(scratch=scratch)
        whole(x).sum().backward()
        whole.close()
        whole.close()
        whole(x).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
def test_an_interrupted_step_goes_on_where_it_was(tmp_path, monkeypatch, x, target, streamed):
    def step(whole):
        return whole.step(x, target, LOSS) if streamed else whole(x).square().sum().backward()

    shown = []

    def progress(state):
        shown.append(state)
        if len(shown) == 3:
            _thread.interrupt_main()
            time.sleep(0.3)  # the main thread notices between two of its own steps

    one, other = network(dropout=0.5), network(dropout=0.5)
    step(whole_of(one))
    whole = whole_of(other, tmp_path, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        step(whole)
    assert gradients(other) == [None] * 6
    assert whole.steps == 0
    monkeypatch.setattr("volflow.training.whole_volume.plan_step", None)  # it has its passes
    step(whole_of(other, tmp_path))
    assert equal(gradients(one), gradients(other))
    assert equal(one.buffers(), other.buffers())
    assert [*tmp_path.iterdir()] == []


class Counting(nn.Module):
    """Scales its image by how often it was called since it began to count."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.counts = nn.Conv3d(1, 2, 3, padding=1), 1, True

    def forward(self, image):
        self.calls += self.counts
        return self.layer(image) * self.calls


@pytest.mark.parametrize("steps", [0, 1])
def test_a_network_that_changes_from_call_to_call_is_refused(x, target, steps):
    whole = whole_of(Counting())
    whole.net.counts = False
    for _ in range(steps):
        whole.step(x, target, LOSS)
    whole.net.counts = True
    with pytest.raises(NoExactRule, match="a counter or random numbers of Python"):
        whole.step(x, target, LOSS)


@pytest.mark.slow
def test_a_mode_that_changes_between_forward_and_backward_is_refused():
    net = vf.UNet(1, 2, (2, 4), norm="batch").train()
    scores = vf.WholeVolume(net, "1GiB", device="cpu")(torch.rand(1, 8, 8, 8))
    net.eval()
    with pytest.raises(NoExactRule, match="its mode was changed between forward and backward"):
        scores.sum().backward()


class Switched(nn.Module):
    """Returns its scores once, or under two names."""

    def __init__(self):
        super().__init__()
        self.layer, self.twice = nn.Conv3d(1, 2, 3, padding=1), False

    def forward(self, image):
        scores = self.layer(image)
        return {"one": scores, "two": scores} if self.twice else scores


@pytest.mark.slow
def test_outputs_may_change_between_steps_and_one_may_have_two_names():
    net, x, y = Switched().double(), torch.rand(1, 8, 8, 8).double(), torch.randint(2, (8, 8, 8))
    whole = vf.WholeVolume(net, "1GiB", device="cpu")
    once = whole.step(x, y, vf.losses.dice_ce)
    first = net.layer.weight.grad.clone()
    net.twice = True
    net.zero_grad()
    twice = whole.step(x, y, vf.losses.deep(vf.losses.dice_ce, weights=[1, 1]))
    assert float(abs(twice - once)) < 1e-12
    torch.testing.assert_close(net.layer.weight.grad, first, rtol=1e-12, atol=1e-14)
