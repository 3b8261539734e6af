"""What modules do beside their computation: a step is that of plain autograd, or it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from partition_oracle import Apply, enlarged, image
from torch import nn
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from training_oracle import (
    DiceEntropy,
    Step,
    assert_same_step,
    blocked_step,
    check_step,
    plain_step,
    target_of,
)

from volflow.errors import NoExactRule
from volflow.partition.draws import Draws
from volflow.partition.trace import trace

SIZE = (5, 6, 7)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def conv(channels: int = 2, kernel: int = 3) -> nn.Conv3d:
    return nn.Conv3d(channels, 2, kernel, padding=kernel // 2)


class Net(nn.Module):
    """A convolution, a function of the module and its result, and another convolution."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.first, self.inner, self.last = conv(1), conv(), conv()
        self.scale = nn.Parameter(torch.tensor([0.7, -0.4]))
        self.register_buffer("memory", torch.zeros(2))

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


def wide(values):
    """A value per channel over the volume."""
    return values.reshape(1, -1, 1, 1, 1)


class Straight(torch.autograd.Function):
    """Rounds, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class Same(Straight):
    """Reverses the gradient and nothing else."""

    @staticmethod
    def forward(ctx, x):
        return x


def weight_without_gradient(m, x):
    with torch.no_grad():
        weight = m.inner.weight / m.inner.weight.norm()
    return F.conv3d(x, weight, m.inner.bias, padding=1)


def replaced(m, x):
    made = {"weight": m.inner.weight * 2, "bias": m.inner.bias - 1}
    return torch.func.functional_call(m.inner, made, (x,))


def kept_beside(m, x):
    m.auxiliary = x.square().mean()
    return x


EQUAL = {
    "detached": lambda m, x: x.detach() * x + m.inner(x.detach()),
    "detached in place": lambda m, x: x + m.inner(x).detach_(),
    "detached statistic": lambda m, x: x * x.mean((2, 3, 4), True).detach() + x.amax(),
    "straight through": lambda m, x: x + (x.round() - x).detach(),
    "data of a weight": lambda m, x: F.conv3d(x, m.inner.weight.data, m.inner.bias, padding=1),
    "a weight without a gradient": weight_without_gradient,
    "a function of a weight": lambda m, x: F.conv3d(x, Straight.apply(m.inner.weight), padding=1),
    "a function that returns a weight": lambda m, x: F.conv3d(x, Same.apply(m.inner.weight)),
    "a number of a weight": lambda m, x: x * m.inner.weight.sum().item(),
    "a value of a weight": lambda m, x: x * m.inner.weight.square().mean(),
    "a weight per channel": lambda m, x: x * wide(m.scale.softmax(0)) + wide(m.scale.sigmoid()),
    "other weights for a call": replaced,
    "checkpointed": lambda m, x: checkpoint(lambda y: m.inner(y).relu(), x, use_reentrant=False),
    "checkpointed in parts": lambda m, x: checkpoint_sequential(
        nn.Sequential(m.inner, nn.Tanh()), 2, x, use_reentrant=False),
    "a weight used twice": lambda m, x: m.inner(m.inner(x).relu()),
    "what is kept beside": kept_beside,
    "activations in place": lambda m, x: F.leaky_relu(m.inner(x.relu_()), 0.1, inplace=True),
    "a name of the operator": lambda m, x: torch.ops.aten.relu(x),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_a_step_is_that_of_plain_autograd(name):
    check_step(Net(EQUAL[name]), SIZE)


def under_no_grad(m, x):
    with torch.no_grad():
        return x + m.inner(x)


def under_inference_mode(m, x):
    with torch.inference_mode():
        return x + m.inner(x)


def constant_changed(m, x):
    constant = torch.zeros(2, dtype=x.dtype)
    y = x + wide(constant)
    constant += 1
    return y * wide(constant)


def copy_changed(m, x):
    scale = m.scale * 1
    y = x + wide(scale)
    scale += 1
    return y + wide(scale)


def weight_by_its_data(m, x):
    m.inner.weight.data = m.inner.weight.data.clamp(-0.1, 0.1)
    return m.inner(x)


def weight_in_place(m, x):
    m.inner.weight.data.clamp_(-0.1, 0.1)
    return m.inner(x)


def new_weight(m, x):
    m.inner.weight = nn.Parameter(m.inner.weight.detach() * 2)
    return m.inner(x)


def buffer_of_the_image(m, x):
    m.memory = x.mean((0, 2, 3, 4)).detach()
    return x


def buffer_by_another(m, x):
    m.memory = m.memory + 1
    return x


def buffer_in_place(m, x):
    m.memory.lerp_(x.mean((0, 2, 3, 4)).detach(), 0.1)
    return x


def buffer_of_several(m, x):
    torch._foreach_add_([m.memory], 1.0)
    return x


def buffer_by_its_data(m, x):
    m.memory.data = m.memory.data + 1
    return x


def buffer_through_a_view(m, x):
    m.memory.view(1, 2)[0, 0] = 4
    return x


def buffer_as_a_result(m, x):
    torch.add(m.memory, 1, out=m.memory)
    return x


def hooked(m, x):
    if x.requires_grad:
        x.register_hook(lambda gradient: 2 * gradient)
    return x


REFUSED = {
    "no_grad": ("conv3d in inner", under_no_grad, "under no_grad"),
    "inference mode": ("conv3d in inner", under_inference_mode, "under no_grad"),
    "a function of the image": ("mul in the model", lambda m, x: Straight.apply(x), "function of"),
    "a function that returns the image": ("view_as in the model", lambda m, x: Same.apply(x),
                                          "function of"),
    "data of the image": ("data in the model", lambda m, x: x.data, "table"),
    "asks for a gradient": ("requires_grad in the model", hooked, "how gradients are taken"),
    "asks for its history": ("grad_fn in the model", lambda m, x: x if x.grad_fn is None else -x,
                             "how gradients are taken"),
    "a constant that changes": ("add_ in the model", constant_changed, "was given"),
    "a computed weight that changes": ("add_ in the model", copy_changed, "was given"),
    "a weight in place": ("clamp_ in the model", weight_in_place, "own state"),
    "a weight by its data": ("__set__ in the model", weight_by_its_data, "own state"),
    "a new weight": ("conv3d in inner", new_weight, "neither a parameter"),
    "a buffer of the image": ("the buffer memory in the model", buffer_of_the_image, "another"),
    "a buffer by another": ("the buffer memory in the model", buffer_by_another, "another"),
    "a buffer in place": ("lerp_ in the model", buffer_in_place, "own state"),
    "buffers together": ("_foreach_add_ in the model", buffer_of_several, "own state"),
    "a buffer by its data": ("__set__ in the model", buffer_by_its_data, "own state"),
    "a buffer through a view": ("__setitem__ in the model", buffer_through_a_view, "own state"),
    "a buffer as a result": ("add in the model", buffer_as_a_result, "own state"),
    "random scale": ("rand in the model", lambda m, x: x * torch.rand(1, dtype=x.dtype), "random"),
    "stochastic depth": ("bernoulli_ in the model", lambda m, x: x + m.inner(x) * torch.empty(
        1, 1, 1, 1, 1, dtype=x.dtype).bernoulli_(0.5), "random"),
    "stochastic depth like the image": ("new_empty in the model", lambda m, x: x * x.new_empty(
        1, 1, 1, 1, 1).bernoulli_(0.5), "table"),
    "dropped weights": ("dropout in the model", lambda m, x: F.conv3d(
        x, F.dropout(m.inner.weight)), "random"),
    "a drawn number": ("rand in the model", lambda m, x: x if torch.rand(()).item() < 0.5 else -x,
                       "random"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name):
    begins, function, why = REFUSED[name]
    net = Net(function).double().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(NoExactRule) as caught:
        trace(net, 1, SIZE, training=Draws(0, 0))
    assert str(caught.value).startswith(f"{begins} has no exact rule in training: ")
    assert why in str(caught.value)
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


LAYERS = {
    "spectral": (lambda: parametrizations.spectral_norm(conv()), "normalize in 1"),
    "running instance norm": (lambda: nn.InstanceNorm3d(2, track_running_stats=True),
                              "instance_norm in 1"),
    "rrelu": (nn.RReLU, "rrelu in 1"),
    "alpha dropout": (nn.AlphaDropout, "alpha_dropout in 1"),
    "feature dropout": (nn.FeatureAlphaDropout, "feature_alpha_dropout in 1"),
    "fractional pool": (lambda: nn.FractionalMaxPool3d(2, output_ratio=0.5),
                        "fractional_max_pool3d in 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_without_a_rule_in_training(name):
    make, begins = LAYERS[name]
    net = nn.Sequential(conv(1), make(), conv()).double().train()
    with pytest.raises(NoExactRule, match=f"^{begins}"):
        trace(net, 1, SIZE, training=Draws(0, 0))


def pooled(self, x):
    x = self.first(x)
    return self.last(x * self.norm(self.gate(x.mean((2, 3, 4), keepdim=True))).sigmoid())


def test_a_norm_of_what_was_pooled_may_not_update_its_buffers():
    layers = {"first": conv(1), "gate": conv(kernel=1), "last": conv()}
    net = Apply(pooled, norm=nn.BatchNorm3d(2), **layers).train()
    with pytest.raises(NoExactRule, match=r"^batch_norm in norm .* no axis of the volume"):
        trace(net, 1, SIZE, training=Draws(0, 0), batch=2)
    norm = nn.BatchNorm3d(2, 0.1, track_running_stats=False)
    check_step(Apply(pooled, norm=norm, **layers), SIZE, batch=2)


def hooked_step(hook) -> tuple[Step, Step]:
    """A step of a network whose parameter has a hook, plain and in blocks."""
    found = []
    for step in (plain_step, blocked_step):
        net = enlarged(nn.Sequential(conv(1), nn.ReLU(), conv()))

        class Hooked(nn.Module):
            def __init__(self, net=net):
                super().__init__()
                self.net = net

            def __deepcopy__(self, memory, net=net):
                made = Hooked(copy.deepcopy(net, memory))
                made.net[0].weight.register_hook(hook)
                return made

            def forward(self, x):
                return self.net(x)

        torch.manual_seed(0)
        for p in net.parameters():
            nn.init.normal_(p)
        loss = DiceEntropy(target_of(SIZE))
        found.append(step(Hooked(), image(SIZE, 1), SIZE, loss))
    return found[0], found[1]


@pytest.mark.parametrize("hook", [lambda g: 2 * g, lambda g: g.clamp(-1e-3, 1e-3)])
def test_a_hook_of_a_parameter_sees_its_gradient_once(hook):
    assert_same_step(*hooked_step(hook))


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_hooks_that_see_gradients_are_refused(kind):
    net = nn.Sequential(conv(1), nn.ReLU()).train()
    remove = getattr(net[1], f"register_{kind}")(lambda *_: None)
    with pytest.raises(NoExactRule, match=r"^a backward hook in 1 has no exact rule in training"):
        trace(net, 1, SIZE, training=Draws(0, 0))
    remove.remove()
    remove = getattr(all_modules, f"register_module_{kind}")(lambda *_: None)
    try:
        with pytest.raises(NoExactRule, match=r"^a backward hook in the model"):
            trace(net, 1, SIZE, training=Draws(0, 0))
    finally:
        remove.remove()


def test_a_forward_hook_is_followed():
    net = nn.Sequential(conv(1), nn.ReLU(), conv())
    net[0].register_forward_hook(lambda module, given, made: made * 2)
    check_step(net, SIZE)


def test_weights_computed_once_for_two_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = conv(1), parametrizations.weight_norm(conv())

        def forward(self, x):
            with parametrize.cached():
                return self.layer(self.layer(self.first(x)).relu())

    check_step(Twice(), SIZE)
