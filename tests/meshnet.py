"""Published networks for brain MRI: brainchop's MeshNets, which are stacks of dilated convolutions.

A folder of weights is a layers model of TensorFlow.js: ``model.json`` and one file of float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def _weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Tensors by name, which lie in the file one after the other."""
    (group,) = manifest
    (path,) = group["paths"]
    values = np.fromfile(folder / path, "<f4")
    sizes = [int(np.prod(entry["shape"])) for entry in group["weights"]]
    assert sum(sizes) == values.size, f"{folder / path} holds {values.size}, not {sum(sizes)}"
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {
        entry["name"]: torch.from_numpy(part.reshape(entry["shape"]).copy())
        for entry, part in zip(group["weights"], parts, strict=True)
    }


def _convolution(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> nn.Conv3d:
    plain = ("same", [1, 1, 1], "channels_last", "linear")
    found = tuple(config[name] for name in ("padding", "strides", "data_format", "activation"))
    assert found == plain, f"layer {config['name']}: {found}, expected {plain}"
    kernel = weights[f"{config['name']}/kernel"].permute(4, 3, 0, 1, 2).contiguous()
    layer = nn.Conv3d(
        kernel.shape[1],
        kernel.shape[0],
        tuple(config["kernel_size"]),
        padding="same",
        dilation=tuple(config["dilation_rate"]),
        bias=config["use_bias"],
    )
    state = {"weight": kernel}
    if config["use_bias"]:
        state["bias"] = weights[f"{config['name']}/bias"]
    layer.load_state_dict(state)
    return layer


def load_meshnet(folder: Path, *, normalize: bool = False) -> nn.Sequential:
    """The network of a folder; ``normalize`` puts an instance norm before every activation.

    The file of mindgrab does not tell of its norms: each channel over the whole volume, without
    weights, and then GELU in its tanh form.
    """
    model = json.loads((folder / "model.json").read_text())
    weights = _weights(folder, model["weightsManifest"])
    layers: list[nn.Module] = []
    channels = 0
    for layer in model["modelTopology"]["model_config"]["config"]["layers"]:
        kind, config = layer["class_name"], layer["config"]
        if kind == "Conv3D":
            layers.append(_convolution(config, weights))
            channels = config["filters"]
        elif kind == "Activation":
            norm = [nn.InstanceNorm3d(channels)] if normalize else []
            layers += [*norm, {"relu": nn.ReLU(), "gelu": nn.GELU("tanh")}[config["activation"]]]
        else:
            assert kind == "InputLayer", f"unknown layer {kind}"
    return nn.Sequential(*layers).eval().requires_grad_(False)


@dataclass(frozen=True)
class Published:
    """A network with what it expects of its input, as `predict` takes it."""

    module: nn.Sequential
    frame: str
    normalize: str


def published(folder: Path, name: str) -> Published:
    """One of the networks in ``folder / "meshnet"``: ``model5_gw_ae`` or ``mindgrab``.

    Both were trained on arrays in the order of a conformed NIfTI file: left, inferior, anterior.
    """
    norms, scaling = {"model5_gw_ae": (False, "minmax"), "mindgrab": (True, "percentile")}[name]
    return Published(load_meshnet(folder / "meshnet" / name, normalize=norms), "LIA", scaling)


def whole(network: Published, scan: np.ndarray) -> np.ndarray:
    """Scores ``CZYX`` of a scan in the frame of the network, in one forward of the whole.

    Their dtype is that of the weights. 256³ voxels take 3 GB (model5_gw_ae) or 4 GB (mindgrab).
    """
    dtype = next(network.module.parameters()).dtype
    ends = {"minmax": (0, 100), "percentile": (2, 98)}[network.normalize]
    low, high = np.percentile(scan, ends).tolist()
    image = ((torch.from_numpy(scan).to(dtype) - low) / (high - low)).clip_(0, 1)
    with torch.inference_mode():
        return network.module(image[None, None])[0].numpy()
