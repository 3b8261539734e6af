"""The table of rules by the names of torch's functions.

An op that is not in it, or a call without a known rule, raises `NoExactRule`: nothing falls back to
an approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from volflow.partition.rules.channels import LOCAL
from volflow.partition.rules.elementwise import POINTWISE, pointwise
from volflow.partition.rules.layouts import LAYOUTS
from volflow.partition.rules.norming.norms import NORMS
from volflow.partition.rules.resampling import RESAMPLING
from volflow.partition.rules.tracing import OpCall
from volflow.partition.rules.windowed import WINDOWED

__all__ = ["RULES", "SPREADING", "VIEWS"]

Rule = Callable[[OpCall], Any]

RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **WINDOWED,
    **RESAMPLING,
    **NORMS,
    **LOCAL,
    **LAYOUTS,
}

_UNCHANGED = (
    "chunk split tensor_split unbind narrow to float double half bfloat16 type contiguous detach"
    " alias positive dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout"
    " feature_alpha_dropout"
)
# Their results may share memory with their inputs.
VIEWS = frozenset(LAYOUTS) | frozenset(_UNCHANGED.split())

# They add axes: a value per channel is repeated over the volume.
SPREADING = frozenset(("expand", "expand_as", "broadcast_to", "interpolate"))
