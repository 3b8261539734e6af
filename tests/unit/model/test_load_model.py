from __future__ import annotations

import functools
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from volflow.errors import InvalidInput
from volflow.model.bundle import load_model
from volflow.model.load import Exported, Wrapped

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layer = nn.Conv3d(1, width, 1)
        self.drop = nn.Dropout()

    def forward(self, image):
        return self.drop(self.layer(image))

class Needy(nn.Module):
    def __init__(self, width):
        super().__init__()

class Space:
    ready = Net()

def build():
    return Net()

def build_function():
    return smooth

def smooth(image, sigma=2):
    return image / sigma

def broken():
    raise RuntimeError("no luck\\nreally")

def number():
    return 3

constant = 3
"""


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(SOURCE)
    (tmp_path / "faulty.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("mynet", "faulty"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["mynet:Net", "mynet:build", "mynet:Space.ready"])
def test_import_path_finds_networks_in_the_current_directory(mynet, name):
    model = load_model(name)
    assert not any(layer.training for layer in model.module.modules())
    assert model.module(torch.rand(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)
    assert model.name == name


@pytest.mark.parametrize("name", ["mynet:smooth", "mynet:build_function"])
def test_import_path_finds_functions_of_a_tensor(mynet, name):
    assert load_model(name).module(torch.ones(1)).tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_at_all:Net", "importing 'nowhere_at_all' failed: ModuleNotFoundError"),
        ("faulty:Net", "importing 'faulty' failed: .*nothing_of_that_name"),
        ("mynet:Nett", "'mynet' has no 'Nett'"),
        ("mynet:Space.red", "'mynet' has no 'Space.red'"),
        ("mynet:Needy", r"cannot be called with no arguments: its signature is \(width\)"),
        ("mynet:broken", "calling it failed: RuntimeError: no luck$"),
        ("mynet:number", "returned a int, not a torch.nn.Module"),
        ("mynet:constant", "is a int; give a torch.nn.Module"),
        ("net.zarr", "'net.zarr' does not exist; give a bundle directory"),
        ("my net:Net", "does not exist"),
        ("mynet:", "does not exist"),
        ("", "does not exist|is not a model bundle"),
        ("mynet.py", "neither a bundle directory nor a .pt2"),
    ],
)
def test_wrong_names_are_one_line(mynet, name, says):
    with pytest.raises(InvalidInput, match=says) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def state(**changes):
    return {"layer.weight": torch.ones(2, 1, 1, 1, 1), "layer.bias": torch.ones(2), **changes}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"network_weights": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_checkpoints_of_tensors_are_taken_however_wrapped(mynet, wrap):
    torch.save(wrap(state()), "w.pt")
    loaded = load_model("mynet:Net", "w.pt").module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state().items())


def test_safetensors_are_taken_and_change_the_digest(mynet):
    save_file(state(), "w.safetensors")
    first = load_model("mynet:Net", "w.safetensors")
    assert torch.equal(first.module.layer.bias, torch.ones(2))
    save_file(state(**{"layer.bias": torch.zeros(2)}), "w.safetensors")
    assert load_model("mynet:Net", mynet / "w.safetensors").digest != first.digest


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"layer.weight": torch.ones(2, 1, 1, 1, 1)}, "w do not fit Net: missing layer.bias$"),
        (state(a=torch.ones(1)), "do not fit Net: unexpected a$"),
        ({}, "missing layer.bias, layer.weight$"),
        (state(**{"layer.bias": torch.ones(3)}), r"layer.bias has shape \(3,\), .* has \(2,\)"),
        (state(**{f"x{n}": torch.ones(1) for n in range(5)}), "unexpected x0, x1, x2 and 2 more"),
    ],
)
def test_weights_that_do_not_fit_say_what(mynet, tensors, says):
    save_file(tensors, "w.safetensors")
    with pytest.raises(InvalidInput, match=says.replace("w do", r"w\.safetensors do")):
        load_model("mynet:Net", "w.safetensors")


def test_unreadable_weights_are_one_line(mynet):
    with pytest.raises(InvalidInput, match=r"weights none\.pt do not exist"):
        load_model("mynet:Net", "none.pt")
    for name in ("w.safetensors", "w.pt"):
        (mynet / name).write_bytes(b"junk")
        with pytest.raises(InvalidInput, match=f"weights {name} "):
            load_model("mynet:Net", name)
    torch.save([1, 2], "list.pt")
    with pytest.raises(InvalidInput, match="hold no state_dict"):
        load_model("mynet:Net", "list.pt")


class Bomb:
    def __reduce__(self):
        return print, ("code was run",)


def test_pickles_run_only_on_trust(mynet, capsys):
    torch.save({"state_dict": state(), "extra": Bomb()}, "w.pt")
    with pytest.raises(InvalidInput, match=r"can run code; .*trust=True \(--trust\)"):
        load_model("mynet:Net", "w.pt")
    assert capsys.readouterr().out == ""
    load_model("mynet:Net", "w.pt", trust=True)
    assert "code was run" in capsys.readouterr().out


def test_a_pickled_module_gives_its_weights_on_trust(mynet):
    torch.save(load_model("mynet:Net").module, "whole.pt")
    with pytest.raises(InvalidInput, match="trust"):
        load_model("mynet:Net", "whole.pt")
    load_model("mynet:Net", "whole.pt", trust=True)


def test_weights_go_only_with_an_import_path(mynet):
    with pytest.raises(InvalidInput, match="load them into this one"):
        load_model(nn.ReLU(), "w.pt")
    (mynet / "w.pt").write_bytes(b"")
    with pytest.raises(InvalidInput, match="includes its weights"):
        load_model("w.pt", "w.pt")
    with pytest.raises(InvalidInput, match='weights alone need their network: model="package'):
        load_model("w.pt")


def test_callables_are_wrapped_and_factories_called():
    assert load_model(torch.relu).module(torch.tensor([-1.0])).tolist() == [0]
    assert load_model(nn.functional.relu).module(torch.tensor([-1.0])).tolist() == [0]
    assert load_model(lambda image: image + 1).module(torch.ones(1)).tolist() == [2]
    half = functools.partial(torch.mul, other=0.5)
    assert isinstance(load_model(half).module, Wrapped)
    assert isinstance(load_model(nn.ReLU).module, nn.ReLU)
    assert isinstance(load_model(lambda: nn.ReLU()).module, nn.ReLU)


def test_what_is_no_model_is_refused():
    for wrong in (3, None, {"a": 1}):
        with pytest.raises(InvalidInput, match=r"give a torch\.nn\.Module"):
            load_model(wrong)
    with pytest.raises(InvalidInput, match="cannot be called"):
        load_model(lambda image, mask: image)


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2, stride=2)
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, image):
        scores = self.conv(image) + self.shift
        return {"scores": scores, "both": (scores, -scores)}


def half():
    torch.manual_seed(0)
    return Half().eval()


def export(path, batch=1, dynamic=False):
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=64)}} if dynamic else None
    example = (torch.rand(batch, 1, 4, 4, 4),)
    program = torch.export.export(half(), example, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


# PyTorch's own exporter warns about parts of itself.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs_take_any_batch(tmp_path, dynamic):
    path = export(tmp_path / "net.pt2", 2 if dynamic else 1, dynamic)
    model = load_model(path, trust=True)
    reference = half()
    image = torch.rand(3, 1, 4, 4, 4)
    with torch.inference_mode():
        found, wanted = model.module(image), reference(image)
    assert torch.allclose(found["scores"], wanted["scores"])
    assert torch.allclose(found["both"][1], wanted["both"][1])
    assert model.spec.patch == (4, 4, 4)
    assert not model.module.training

    copy = pickle.loads(pickle.dumps(model))
    assert isinstance(copy.module, Exported)
    assert torch.allclose(copy.module(image)["scores"], wanted["scores"])
    assert load_model(copy.module).digest == model.digest
    assert load_model(path, trust=True).digest == model.digest


@pytest.mark.filterwarnings("ignore")
def test_exported_programs_are_refused_without_trust_and_when_unfit(tmp_path):
    path = export(tmp_path / "net.pt2", batch=2)
    with pytest.raises(InvalidInput, match=r"can run code hidden in it; pass trust=True"):
        load_model(path)
    with pytest.raises(InvalidInput, match="takes batches of exactly 2"):
        load_model(path, trust=True)
    program = torch.export.export(Adder(), (torch.rand(1, 1, 4), torch.rand(1, 1, 4)))
    torch.export.save(program, path)
    with pytest.raises(InvalidInput, match=r"must take one tensor .* it takes 2 inputs"):
        load_model(path, trust=True)
    path.write_bytes(b"junk")
    with pytest.raises(InvalidInput, match=r"is not a torch\.export archive"):
        load_model(path, trust=True)


class Adder(nn.Module):
    def forward(self, a, b):
        return a + b
