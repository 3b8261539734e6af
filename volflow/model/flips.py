"""A network averaged over mirrored copies of its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from volflow.partition.output_names import named_outputs

__all__ = ["Flipped", "mirrored_outputs"]


def mirrored_outputs(
    network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, axes: Sequence[int]
) -> dict[str, Tensor]:
    """Return the outputs of a mirrored image, mirrored back.

    Parameters
    ----------
    network
        Gives outputs by name.
    image
        ``NCZYX`` (``NCYX``).
    axes
        Axes of the image, counted from 0; none for the image itself.
    """
    dims = [2 + axis for axis in axes]
    outputs = network(image.flip(dims) if dims else image)
    return {name: value.flip(dims) if dims else value for name, value in outputs.items()}


class Flipped(nn.Module):
    """A network averaged over mirrored copies of its image, as a module that can be traced.

    Parameters
    ----------
    module
        The network.
    axes
        Axes of the image, counted from 0, along which it is mirrored, in all combinations.
    """

    def __init__(self, module: nn.Module, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.axes = module, axes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the mean of the outputs by name."""
        copies: list[list[int]] = [[]]
        for axis in self.axes:
            copies += [[*axes, axis] for axes in copies]
        # Journals number the nodes of this graph: all copies come first, then their sums.
        results = [mirrored_outputs(self._outputs, image, axes) for axes in copies]
        return {
            name: sum((result[name] for result in results[1:]), first) / len(results)
            for name, first in results[0].items()
        }

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        return named_outputs(self.module(image))
