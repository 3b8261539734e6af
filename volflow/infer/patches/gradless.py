"""Steps of a generator without gradients; between them its consumer's grad mode is as it was."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

import torch

__all__ = ["without_gradients"]

T = TypeVar("T")


def without_gradients(steps: Generator[T, None, None]) -> Iterator[T]:
    """Run each step of a generator in inference mode.

    A mode that is entered inside of a generator lasts while its consumer runs, too.

    Examples
    --------
    >>> def modes():
    ...     yield torch.is_inference_mode_enabled()
    >>> [(mode, torch.is_inference_mode_enabled()) for mode in without_gradients(modes())]
    [(True, False)]
    """
    with closing(steps):
        while True:
            with torch.inference_mode():
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
