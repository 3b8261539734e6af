from __future__ import annotations

import pytest
import torch
from torch import nn

from volflow.errors import InvalidInput
from volflow.model.unet import UNet


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("up", ["transposed", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_scores_have_the_sides_of_the_image(norm, up, dims):
    net = UNet(2, 3, features=(4, 6, 8), norm=norm, up=up, dims=dims).eval()
    image = torch.rand(2, 2, *(16, 8, 12)[:dims])
    assert net(image).shape == (2, 3, *image.shape[2:])


def test_one_level_is_two_convolutions_and_takes_any_side():
    net = UNet(1, 1, features=(4,), norm="none").eval()
    assert net.alignment == 1
    assert net(torch.rand(1, 1, 5, 3, 7)).shape == (1, 1, 5, 3, 7)


def test_arguments_rebuild_it():
    net = UNet(2, 3, features=(4, 8), norm="group", up="linear", dims=2)
    twin = UNet(**net.arguments)
    twin.load_state_dict(net.state_dict())
    image = torch.rand(1, 2, 8, 8)
    assert torch.equal(net.eval()(image), twin.eval()(image))


def test_batch_norm_in_eval_mode_is_local():
    # A voxel far from a change keeps its score: nothing depends on the patch as a whole.
    net = UNet(1, 1, features=(4, 4), norm="batch").double().eval()
    image = torch.rand(1, 1, 8, 8, 48, dtype=torch.float64)
    changed = image.clone()
    changed[..., -2:] += 5
    difference = (net(image) - net(changed)).abs()
    assert difference[..., :16].max() == 0
    assert difference[..., -2:].max() > 0


def test_every_parameter_gets_a_gradient():
    net = UNet(1, 2, features=(4, 8), norm="instance", up="linear")
    net(torch.rand(1, 1, 8, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_norm_decides_the_layers():
    kinds = {
        "batch": nn.BatchNorm3d,
        "instance": nn.InstanceNorm3d,
        "group": nn.GroupNorm,
    }
    for norm, kind in kinds.items():
        layers = list(UNet(1, 1, features=(4, 8), norm=norm).modules())
        assert sum(isinstance(layer, kind) for layer in layers) == 6
    assert not any(
        isinstance(layer, tuple(kinds.values())) for layer in UNet(1, 1, norm="none").modules()
    )


def test_misaligned_patch_is_refused_naming_the_multiple():
    with pytest.raises(InvalidInput, match=r"multiples of 4, got \(8, 10, 8\)"):
        UNet(1, 1, features=(2, 2, 2))(torch.rand(1, 1, 8, 10, 8))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"features": ()}, "needs 1 to 16 levels"),
        ({"features": (4, 0)}, "needs 1 to 16 levels"),
        ({"features": ("4",)}, "whole channel counts"),
        ({"in_channels": 1.5}, "whole channel counts"),
        ({"norm": "layer"}, "unknown norm 'layer' for a U-Net; use one of batch, instance"),
        ({"up": "nearest"}, "unknown up 'nearest'"),
        ({"dims": 1}, "unknown dims 1 for a U-Net; use one of 2, 3"),
    ],
)
def test_wrong_arguments_are_refused(wrong, says):
    with pytest.raises(InvalidInput, match=says):
        UNet(**{"in_channels": 1, "out_channels": 1, **wrong})
