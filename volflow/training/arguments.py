"""What a user may set of whole-volume training, and the errors of what cannot be meant."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from volflow.errors import InvalidInput

__all__ = ["boxes_along", "network_itself", "share_of", "whole_number"]

# What hides a network from whoever follows it, and where it lies in there.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "WholeVolume": "net",
}


def network_itself(net: Any) -> nn.Module:
    """Return a network that can be followed.

    Raises
    ------
    InvalidInput
        If it is no module, or one that hides the network.
    """
    kind = type(net).__name__
    if not isinstance(net, nn.Module):
        raise InvalidInput(
            f"a whole volume trains a torch.nn.Module, got {net if net is None else kind}; give"
            " the network itself, vf.load_model(path).module for a bundle"
        )
    if kind in WRAPPERS and hasattr(net, WRAPPERS[kind]):
        raise InvalidInput(
            f"a whole volume trains the network itself, got it in a {kind}; give its"
            f" .{WRAPPERS[kind]}"
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise InvalidInput(
            f"a whole volume trains a network of Python code, which can be followed, got a {kind};"
            " give the module that it was made from"
        )
    return net


def boxes_along(partition: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of boxes along each axis.

    Examples
    --------
    >>> boxes_along([1, 2, 2])
    (1, 2, 2)
    """
    try:
        counts = tuple(operator.index(n) for n in partition)
    except TypeError:
        counts = ()
    if not counts or min(counts) < 1:
        raise InvalidInput(
            f"partition holds the number of boxes along each axis, got {partition!r}; give"
            " whole numbers such as (1, 2, 2), one process for each box"
        )
    return counts


def whole_number(value: Any, name: str) -> int:
    """Return a whole number.

    Examples
    --------
    >>> whole_number(3, "seed")
    3
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidInput(f"{name} is a whole number, got {value!r}") from error


def share_of(weight: Any) -> float:
    """Return by what gradients are multiplied: a number, or a tensor of one.

    Examples
    --------
    >>> share_of(torch.tensor(0.5))
    0.5
    """
    try:
        value = float(weight)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(f"the weight of a step is a finite number, got {weight!r}")
    return value
