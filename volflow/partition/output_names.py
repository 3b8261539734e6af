"""Names of the outputs of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["named_outputs"]


def named_outputs(raw: Any) -> dict[str, Any]:
    """Return the outputs of a network by name; none where it returns something else.

    Examples
    --------
    >>> import torch
    >>> list(named_outputs(torch.ones(1))), list(named_outputs((torch.ones(1), torch.ones(2))))
    ([''], ['output0', 'output1'])
    """
    if isinstance(raw, Tensor):
        return {"": raw}
    if isinstance(raw, Mapping):
        return {str(name): value for name, value in raw.items()}
    if isinstance(raw, Sequence):
        return {f"output{n}": value for n, value in enumerate(raw)}
    return {}
