"""Networks of MONAI and nnU-Net, as they are trained, with few channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

MONAI, NNUNET = "monai.networks.nets", "dynamic_network_architectures.architectures.unet"


def peer(kind: str, levels: Sequence[int], **options: Any) -> nn.Module:
    """A network of theirs for one channel and two classes; the test is skipped without them.

    Parameters
    ----------
    kind
        Name of its class.
    levels
        Channels of its levels, where it takes them: three, but of MONAI's U-Nets any number.
    options
        Beside those that each of its kind is given here.
    """
    strides = (2,) * (len(levels) - 1)
    stages = {
        "input_channels": 1, "num_classes": 2, "n_stages": 3, "features_per_stage": levels,
        "conv_op": nn.Conv3d, "kernel_sizes": 3, "strides": (1, 2, 2), "conv_bias": True,
        "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "n_conv_per_stage_decoder": 1,
    }  # fmt: skip
    given: dict[str, dict[str, Any]] = {
        "UNet": {"channels": levels, "strides": strides},
        "AttentionUnet": {"channels": levels, "strides": strides},
        "BasicUNet": {"features": (*levels, levels[-1], levels[-1], levels[0])},
        "SegResNet": {"init_filters": 8, "blocks_down": (1, 2), "blocks_up": (1,)},
        "DynUNet": {
            "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
            "filters": list(levels)},
        "VNet": {"dropout_prob_down": 0.3},
        "PlainConvUNet": {"n_conv_per_stage": 1, **stages},
        "ResidualEncoderUNet": {"n_blocks_per_stage": (1, 2, 2), **stages},
    }  # fmt: skip
    options = {**given[kind], **options}
    home = NNUNET if "n_stages" in options else MONAI
    if home == MONAI:
        options |= {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    nets = pytest.importorskip(home, reason="it comes with the extra peers")
    torch.manual_seed(0)
    net: nn.Module = getattr(nets, kind)(**options)
    return net
