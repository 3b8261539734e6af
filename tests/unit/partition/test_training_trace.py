"""What a graph for training holds: weights as leaves, updates of buffers, masks by place."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from tests.partition_oracle import Apply, image
from tests.pulled import DRAWS, check_gradients
from volflow.errors import NoExactRule
from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.graph import compute
from volflow.partition.reach import trace_any
from volflow.partition.trace import trace

SIZES = (5, 6, 7)


class Standardised(nn.Conv3d):
    """A convolution whose weights are standardised in its forward."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3, 4), keepdim=True)
        var = self.weight.var((1, 2, 3, 4), keepdim=True)
        weight = (self.weight - mean) / (var + 1e-5).sqrt()
        return F.conv3d(x, weight, self.bias, self.stride, self.padding)


class Scaled(nn.Module):
    """Views of a parameter, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(2))
        self.pair = nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        x = x * self.scale[None, :, None, None, None] + self.scale.view(1, 2, 1, 1, 1)
        return x.movedim(1, -1) @ self.pair.T + self.pair[:, 0]


class Orthogonal(nn.Module):
    def forward(self, weight):
        return weight * weight.abs().sqrt()


def parametrized():
    layer = nn.Conv3d(2, 2, 3, padding=1)
    parametrize.register_parametrization(layer, "weight", Orthogonal())
    return layer


COMPUTED = {
    "weight norm": lambda: weight_norm(nn.Conv3d(2, 3, 3, padding=1)),
    "weight norm, parametrized": lambda: parametrizations.weight_norm(nn.Conv3d(2, 3, 3)),
    "standardised": lambda: Standardised(2, 3, 3, padding=1),
    "parametrized": parametrized,
    "views": Scaled,
    "spectral norm in eval mode": lambda: parametrizations.spectral_norm(nn.Conv3d(2, 2, 1)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_a_module_computes(kind):
    torch.manual_seed(0)
    layer = COMPUTED[kind]()
    check_gradients(nn.Sequential(layer, nn.ReLU()), SIZES, training="eval" not in kind)


def test_weights_in_the_order_of_their_first_use():
    net = nn.Sequential(Standardised(1, 2, 3), nn.PReLU(2), nn.GroupNorm(1, 2), nn.Conv3d(2, 1, 1))
    net[3].weight.requires_grad_(False)
    graph = trace(net, 1, SIZES, training=DRAWS)
    assert [w.name for w in graph.weights] == [
        "conv3d@0", "0.bias", "1.weight", "2.weight", "2.bias", "3.bias",
    ]  # fmt: skip
    assert all(w.leaf.is_leaf and w.leaf.requires_grad for w in graph.weights)
    computed, bias, *_ = graph.weights
    assert computed.source is not computed.leaf
    assert computed.source.grad_fn is not None
    assert bias.source is bias.leaf is net[0].bias
    used = {node.name: node.weights for node in graph.nodes if not node.statistic}
    assert used == {
        "input": (), "prelu": (2,), "group_norm": (3, 4), "conv3d": (5,),
    }  # fmt: skip
    assert [node.weights for node in graph.nodes if node.statistic] == [()]


def test_a_shared_layer_is_one_weight():
    conv = nn.Conv3d(1, 1, 3, padding=1)
    graph = trace(nn.Sequential(conv, conv), 1, SIZES, training=DRAWS)
    assert [w.name for w in graph.weights] == ["0.weight", "0.bias"]
    assert [node.weights for node in graph.nodes[1:]] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("own", [True, False])
def test_a_weight_that_is_no_parameter(own):
    weight = torch.ones(1, requires_grad=True)
    if not own:
        weight = weight * 2
    net = nn.Sequential(nn.Conv3d(1, 1, 1), Apply(lambda x: x * weight))
    with pytest.raises(NoExactRule, match=r"mul in 1 has no .*: a tensor of shape \(1,\) requires"):
        trace(net, 1, SIZES, training=DRAWS)


def test_a_graph_for_inference_holds_no_weights():
    graph = trace(nn.Conv3d(1, 1, 1).eval(), 1, SIZES)
    assert (graph.training, graph.weights, graph.updates) == (False, (), ())
    assert graph.nodes[1].weights == ()


def test_a_graph_for_inference_refuses_gradients():
    net = nn.Sequential(nn.Conv3d(1, 1, 3), nn.ReLU()).eval()
    graph, x = trace(net, 1, SIZES), image(SIZES, 1).float()
    target = {2: Roi.full(graph.sizes(2))}
    with pytest.raises(NoExactRule, match=r"conv3d in 0 has no exact gradient .*; trace it for"):
        list(compute(graph, target, {0}, lambda n, box: x[(..., *box.slices())]))
    with torch.no_grad():
        (values,) = compute(graph, target, {0}, lambda n, box: x[(..., *box.slices())])
        torch.testing.assert_close(values[1], net(x))


def test_a_statistic_inside_a_block_refuses_gradients():
    graph = trace(nn.InstanceNorm3d(1), 1, SIZES, training=DRAWS)
    x = image(SIZES, 1).float()
    with pytest.raises(NoExactRule, match=r"statistic of instance_norm in the model .*measure it"):
        list(compute(graph, {2: Roi.full(SIZES)}, {0}, lambda n, box: x))
    with torch.no_grad():
        (values,) = compute(graph, {2: Roi.full(SIZES)}, {0}, lambda n, box: x)
    torch.testing.assert_close(values[1], F.instance_norm(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_mode_does_not_matter(mode):
    net = weighted()
    with mode():
        graph = trace_any(net, 1, SIZES, training=DRAWS, batch=2)
    assert not graph.weights[0].leaf.is_inference()
    assert graph.weights[0].leaf.requires_grad
    assert graph.nodes[0].shape == (2, 1, *SIZES)


def weighted():
    torch.manual_seed(0)
    return nn.Sequential(Standardised(1, 2, 3), nn.BatchNorm3d(2), nn.Dropout(0.2))


def test_a_trace_changes_nothing_of_the_module():
    net = weighted()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.random.get_rng_state()
    graph = trace(net, 1, SIZES, training=DRAWS)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(random, torch.random.get_rng_state())
    assert len(graph.updates) == 2


def test_a_module_is_traced_by_several_threads_at_once():
    net, found = weighted(), []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                [len(trace(net, 1, SIZES, training=DRAWS).nodes) for _ in range(5)]
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[5] * 5] * 4
    assert int(net[1].num_batches_tracked) == 0


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_running_statistics_over_several_steps(momentum):
    plain, ours = (nn.BatchNorm3d(2, momentum=momentum).double() for _ in range(2))
    for step in range(3):
        x = torch.cat([image(SIZES, 2, seed=10 * step + n) for n in range(2)]) + 2
        plain(x)
        graph = trace(ours, 2, SIZES, training=Draws(0, step), batch=2)
        (number,) = graph.statistics
        rule = graph.nodes[number].compute
        merged = {number: rule.merged([rule.partial(x, Roi.full(SIZES)).numpy()])}
        for update in graph.updates:
            update.apply(merged)
        for (name, one), other in zip(plain.named_buffers(), ours.buffers(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12, msg=name)


def test_a_norm_of_one_value_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        trace(nn.BatchNorm3d(2), 2, (1, 1, 1), training=DRAWS)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.3), nn.Dropout3d(0.5), nn.Dropout(0.3, inplace=True), nn.Dropout(0.0),
     nn.Dropout(1.0), nn.Dropout2d(0.4)],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_dropout(layer, batch):
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 4, 3, padding=1)
    check_gradients(nn.Sequential(conv, layer, nn.Conv3d(4, 2, 1), layer), SIZES, batch=batch)


def test_dropout_of_lines_planes_and_channels():
    line = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Dropout1d(0.5), nn.Dropout(0.5))
    check_gradients(line, (23,), batch=2)
    check_gradients(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.5)), (9, 11), batch=2)
    gate = Apply(
        lambda m, x: x * m.drop(x.mean((2, 3, 4)))[..., None, None, None], drop=nn.Dropout(0.5)
    )
    check_gradients(nn.Sequential(nn.Conv3d(2, 8, 1), gate), SIZES)
    last = Apply(lambda m, x: m.drop(x.movedim(1, -1)).movedim(-1, 1), drop=nn.Dropout(0.5))
    check_gradients(last, SIZES)


def masks(draws: Draws) -> list[torch.Tensor]:
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5), nn.Dropout3d(0.5))
    graph = trace(net, 40, SIZES, training=draws)
    return [node.compute.mask(Roi.full(SIZES)) for node in graph.nodes[1:]]


def test_dropouts_of_a_graph_and_steps_differ():
    one, other, channels = masks(Draws(1, 2))
    assert one.shape == other.shape == (1, 40, *SIZES)
    assert channels.shape == (1, 40, 1, 1, 1)
    assert not torch.equal(one, other)
    assert all(
        torch.equal(a, b) for a, b in zip(masks(Draws(1, 2)), masks(Draws(1, 2)), strict=True)
    )
    for draws in (Draws(2, 2), Draws(1, 3)):
        for before, after in zip((one, other, channels), masks(draws), strict=True):
            assert not torch.equal(before, after)


def test_a_dropped_tensor_is_another_one():
    """What is changed in place behind a dropout leaves its input alone."""

    def function(m, x):
        y = m.drop(x)
        y += 1
        return y * x

    check_gradients(Apply(function, drop=nn.Dropout(0.5)), SIZES)


class Mixed(nn.Module):
    """Ops that autocast runs in low precision, in full, and in that of its inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv3d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4)
        self.act = nn.PReLU(4)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        gate = self.linear(y.mean((2, 3, 4))).sigmoid()[..., None, None, None]
        y = y * gate.to(y.dtype)
        return y.softmax(1), F.avg_pool3d(torch.cat([y, x[:, :, 1:-1, 1:-1, 1:-1]], 1), 2)


def test_dtypes_under_autocast_are_torchs():
    net, x = Mixed(), torch.randn(1, 2, *SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        graph = trace(net, 2, SIZES, training=DRAWS)
        raw = net(x)
    nodes = [graph.nodes[n] for n in graph.outputs.values()]
    assert [node.dtype for node in nodes] == [y.dtype for y in raw]
    assert next(n.dtype for n in graph.nodes if n.name == "conv3d") == torch.bfloat16
    assert trace(net, 2, SIZES, training=DRAWS).nodes[1].dtype == torch.float32
