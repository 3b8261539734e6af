from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from volflow.errors import InvalidInput
from volflow.model.digest import digest_of
from volflow.model.unet import UNet

TABLE = np.arange(3.0)


class Mode(enum.Enum):
    MEAN = 1
    SUM = 2


@dataclasses.dataclass
class Setting:
    scale: float
    unset: float = dataclasses.field(init=False)


class Scaled(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, image):
        return image * self.scale


def net(seed=0, **kwargs):
    torch.manual_seed(seed)
    return UNet(1, 2, features=(2, 4), **kwargs)


def test_equal_models_have_equal_digests():
    assert digest_of(net()) == digest_of(net())
    assert digest_of(net()) == digest_of(copy.deepcopy(net()))
    assert digest_of(net().train()) == digest_of(net().eval())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_counts(dtype):
    assert digest_of(net()) != digest_of(net().to(dtype))


def test_every_single_weight_and_buffer_counts():
    model = net()
    seen = {digest_of(model)}
    for tensor in model.state_dict().values():
        tensor.view(-1)[0] += 1
        seen.add(digest_of(model))
    assert len(seen) == 1 + len(model.state_dict())


def test_swapped_equal_shapes_count():
    a, b = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), None
    b = nn.Sequential(a[1], a[0])
    assert digest_of(a) != digest_of(b)


def test_layers_without_weights_count():
    assert digest_of(nn.Sequential(nn.ReLU())) != digest_of(nn.Sequential(nn.Tanh()))
    assert digest_of(nn.LeakyReLU(0.1)) != digest_of(nn.LeakyReLU(0.2))
    assert digest_of(nn.MaxPool3d(2)) != digest_of(nn.AvgPool3d(2))
    assert digest_of(net(norm="none", up="linear")) != digest_of(net(norm="none"))


def test_plain_attributes_count():
    assert digest_of(Scaled(1.0)) == digest_of(Scaled(1.0))
    assert digest_of(Scaled(1.0)) != digest_of(Scaled(2.0))
    assert digest_of(Scaled([1, {"a": 2}])) != digest_of(Scaled([1, {"a": 3}]))
    assert digest_of(Scaled(np.ones(2))) != digest_of(Scaled(np.zeros(2)))
    assert digest_of(Scaled({"x", "y"})) == digest_of(Scaled({"y", "x"}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Setting(1), Setting(2)),
        (SimpleNamespace(scale=1), SimpleNamespace(scale=2)),
        (Mode.MEAN, Mode.SUM),
        (np.float32(1), np.float32(2)),
        (slice(0, 1), slice(0, 2)),
        (range(1), range(2)),
        (Scaled, nn.Identity),
    ],
)
def test_what_holds_data_counts(one, other):
    assert digest_of(Scaled(one)) == digest_of(Scaled(copy.deepcopy(one)))
    assert digest_of(Scaled(one)) != digest_of(Scaled(other))


def test_a_users_private_settings_count_and_private_caches_do_not():
    def make(**private):
        module = Scaled()
        vars(module).update({f"_{name}": value for name, value in private.items()})
        return module

    assert digest_of(make(scale=1)) != digest_of(make(scale=2))
    assert digest_of(make(cache={})) == digest_of(make(cache={"grid": torch.ones(2)}))


def test_hooks_count_by_their_code_and_not_by_what_they_saw():
    def make(factor, seen):
        def hook(module, args, out):
            seen.append(out)
            return out * factor

        module = nn.ReLU()
        module.register_forward_hook(hook)
        return module

    assert digest_of(make(2, [])) == digest_of(make(2, [1, 2]))
    assert digest_of(make(2, [])) != digest_of(make(3, []))
    assert digest_of(make(2, [])) != digest_of(nn.ReLU())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripts_count_by_their_code():
    def make(factor):
        return torch.jit.trace(nn.Sequential(Scaled(factor)), torch.ones(1))

    assert digest_of(make(2.0)) == digest_of(make(2.0))
    assert digest_of(make(2.0)) != digest_of(make(3.0))


def test_non_persistent_buffers_count():
    def make(value):
        module = nn.Module()
        module.register_buffer("table", torch.tensor(value), persistent=False)
        return module

    assert digest_of(make(1.0)) != digest_of(make(2.0))


def changed_forward(source):
    space = {"nn": nn, "__name__": "theirs"}
    exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {source}\n", space)
    return space["Net"]()


def test_code_of_a_users_class_counts():
    assert digest_of(changed_forward("x + 1")) == digest_of(changed_forward("x + 1"))
    assert digest_of(changed_forward("x + 1")) != digest_of(changed_forward("x + 2"))
    assert digest_of(changed_forward("x + 1")) != digest_of(changed_forward("x - 1"))


def test_functions_count_with_what_they_reach():
    def close_over(value):
        return lambda image: image * value

    assert digest_of(close_over(2)) == digest_of(close_over(2))
    assert digest_of(close_over(2)) != digest_of(close_over(3))
    assert digest_of(close_over(torch.ones(2))) != digest_of(close_over(torch.zeros(2)))
    assert digest_of(close_over(net(0))) != digest_of(close_over(net(1)))
    partial = functools.partial
    assert digest_of(partial(torch.mul, other=2)) != digest_of(partial(torch.mul, other=3))
    assert digest_of(torch.relu) != digest_of(torch.tanh)


def test_globals_and_neighbours_of_a_function_count():
    def make(table, step):
        space = {"__name__": "theirs", "TABLE": table}
        exec(f"def inner(x):\n    return x + {step}\n", space)
        exec("def outer(x):\n    return [inner(v) for v in TABLE]\n", space)
        return space["outer"]

    assert digest_of(make(TABLE, 1)) == digest_of(make(TABLE.copy(), 1))
    assert digest_of(make(TABLE, 1)) != digest_of(make(TABLE + 1, 1))
    assert digest_of(make(TABLE, 1)) != digest_of(make(TABLE, 2))


def test_bound_methods_and_objects_count_with_their_state():
    class Box:
        def __init__(self, value):
            self.value = value

        def __call__(self, image):
            return image * self.value

        def run(self, image):
            return image * self.value

    assert digest_of(Box(1)) == digest_of(Box(1))
    assert digest_of(Box(1)) != digest_of(Box(2))
    assert digest_of(Box(1).run) != digest_of(Box(2).run)


def test_cycles_end():
    module = Scaled()
    module.myself = [module]
    assert digest_of(module) == digest_of(copy.deepcopy(module))


def test_recursive_functions_end():
    def fall(image, depth=3):
        return image if depth == 0 else fall(image, depth - 1)

    assert len(digest_of(fall)) == 64


@pytest.mark.slow
def test_another_process_finds_the_same():
    code = (
        "import torch; from volflow.model.unet import UNet; from volflow.model.digest import *;"
        "torch.manual_seed(0); m = UNet(1, 2, features=(2, 4));"
        "print(digest_of(m), digest_of(lambda x: {'a', 'b', 'c'} and x))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, **_environ()},
        ).stdout.split()
        for seed in "12"
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0][0] == digest_of(net())


def _environ():
    import os

    kept = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def test_models_without_values_are_refused():
    with pytest.raises(InvalidInput, match="'weight' has no values yet"):
        digest_of(nn.LazyLinear(2))
    with pytest.raises(InvalidInput, match="has no values yet"), torch.device("meta"):
        digest_of(nn.Linear(2, 2))


def test_scalars_and_empty_tensors_are_taken():
    module = nn.Module()
    module.register_buffer("count", torch.tensor(3))
    module.register_buffer("none", torch.empty(0))
    assert digest_of(module) == digest_of(copy.deepcopy(module))
