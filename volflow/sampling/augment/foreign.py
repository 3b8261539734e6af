"""Transforms of MONAI, TorchIO and batchgeneratorsv2 as augmentations of batches, keyed by sample.

None of these libraries is imported here unless a transform of it was given.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from volflow.errors import InvalidInput
from volflow.geometry.grid import slice_axis
from volflow.sampling.augment.augment import keys_of, shared_patch

__all__ = ["Foreign", "adapted"]

Sample = dict[str, torch.Tensor]

# Of libraries whose transforms take neither a batch nor a sample of several arrays.
OTHERS = ("albumentations", "batchgenerators", "torchaudio", "torchvision")
# Transforms keep what they drew in themselves, and NumPy's state is the process's.
ALONE = threading.RLock()
DRAWING = frozenset(
    {
        torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli,
        torch.multinomial, torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.random_,
        torch.Tensor.bernoulli_, torch.Tensor.exponential_, torch.Tensor.log_normal_,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """A transform of one sample, applied to each of a batch; what it draws follows from the key.

    Parameters
    ----------
    transform
        As the user made it.
    apply
        Calls it with the arrays of a sample ``czyx`` and a seed.
    place
        Its place among the augmentations: the same transform twice draws differently.
    flat
        Whether it takes slices without their axis of one voxel.
    """

    transform: Any
    apply: Callable[[Any, Sample, int], Mapping[str, Any]]
    place: int
    flat: bool

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Transform a batch; entries that are not 5-D tensors are handed on."""
        arrays = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim == 5}
        patch = shared_patch(arrays)
        axis = slice_axis(patch) if self.flat else None
        done: dict[str, list[torch.Tensor]] = {name: [] for name in arrays}
        for n, key in enumerate(keys_of(batch, len(next(iter(arrays.values()))))):
            words = np.random.SeedSequence([key % 2**64, self.place]).generate_state(1)
            sample = {
                name: array[n].clone() if axis is None else array[n].squeeze(1 + axis).clone()
                for name, array in arrays.items()
            }
            with ALONE:
                found = self.apply(self.transform, sample, int(words[0]))
            for name, array in arrays.items():
                one = self._checked(found, name, array)
                done[name].append(one if axis is None else one.unsqueeze(1 + axis))
        sizes = {name: {tuple(one.shape) for one in ones} for name, ones in done.items()}
        for name, shapes in sizes.items():
            if len(shapes) > 1:
                raise InvalidInput(
                    f"{self._name} gave {name} the shapes {sorted(shapes)}, which do not share a"
                    " batch; use transforms that give all samples one size"
                )
        return {**batch, **{name: torch.stack(ones) for name, ones in done.items()}}

    @property
    def _name(self) -> str:
        return f"augment's {type(self.transform).__name__}"

    def _checked(self, found: Any, name: str, array: torch.Tensor) -> torch.Tensor:
        """Return an array of a transformed sample in the dtype and on the device of the batch."""
        value = found.get(name) if isinstance(found, Mapping) else None
        if value is None or isinstance(value, list | tuple):
            raise InvalidInput(
                f"{self._name} must give one sample that holds {name}, but gave"
                f" {type(found if value is None else value).__name__}; leave out transforms that"
                " cut several patches or drop arrays"
            )
        plain = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
        return plain.to(array.device, array.dtype)


def adapted(augment: Any, place: int) -> Any:
    """Return a transform of these libraries as a callable of batches; any other as it is.

    Raises
    ------
    InvalidInput
        For transforms of other libraries known to take no batch.

    Examples
    --------
    >>> adapted(dict, 0)
    <class 'dict'>
    """
    homes = [".".join(kind.__module__.split(".")[:2]) for kind in type(augment).__mro__]
    if "monai.transforms" in homes:
        apply = _monai_named if _is_named(augment) else _monai_image
        return Foreign(augment, apply, place, flat=True)
    if "torchio.transforms" in homes:
        return Foreign(augment, _torchio, place, flat=False)
    if "batchgeneratorsv2.transforms" in homes:
        return Foreign(augment, _batchgenerators, place, flat=True)
    library = homes[0].split(".")[0]
    if library in OTHERS:
        raise InvalidInput(
            "augment takes callables of a batch, and transforms of MONAI, TorchIO and"
            f" batchgeneratorsv2; got {type(augment).__name__} of {library}: call it in a function"
            " that takes the batch and returns it"
        )
    return augment


def _is_named(transform: Any) -> bool:
    """Return True if a transform of MONAI, or one within it, takes a dictionary."""
    if any(kind.__name__ == "MapTransform" for kind in type(transform).__mro__):
        return True
    return any(_is_named(one) for one in getattr(transform, "transforms", ()))


def _monai_named(transform: Any, sample: Sample, seed: int) -> Any:
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed)
    return transform(sample)


def _monai_image(transform: Any, sample: Sample, seed: int) -> Any:
    """Transform the first array that is no classes; the others stay as they are."""
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed)
    image = next((name for name, array in sample.items() if array.is_floating_point()), None)
    return sample if image is None else {**sample, image: transform(sample[image])}


def _torchio(transform: Any, sample: Sample, seed: int) -> Any:
    tio = importlib.import_module("torchio")
    subject = tio.Subject(
        {
            name: (tio.ScalarImage if array.is_floating_point() else tio.LabelMap)(
                tensor=array.cpu()
            )
            for name, array in sample.items()
        }
    )
    with _seeded(seed):
        found = transform(subject)
    return {name: found[name].data for name in sample if name in found}


def _batchgenerators(transform: Any, sample: Sample, seed: int) -> Any:
    """Transform all images as channels of one, and all arrays of classes as another's."""
    groups: dict[str, list[str]] = {}
    for name, array in sample.items():
        role = "image" if array.is_floating_point() else "segmentation"
        groups.setdefault(role, []).append(name)
    given = {role: torch.cat([sample[n].cpu() for n in names]) for role, names in groups.items()}
    with _seeded(seed):
        found = transform(**given)
    parts: dict[str, Any] = {}
    for role, names in groups.items():
        whole, channels = found.get(role), [len(sample[name]) for name in names]
        if not isinstance(whole, torch.Tensor) or len(whole) != sum(channels):
            return {role: whole}  # which lacks the arrays
        parts |= dict(zip(names, whole.split(channels), strict=True))
    return parts


class _OwnGenerator(TorchFunctionMode):
    """Draws on a CPU come from one generator, in this thread only."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in DRAWING and given.get("generator") is None:
            given["generator"] = self.generator
        return func(*args, **given)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what a transform draws; torch's and NumPy's global states are as before at the end."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        with _OwnGenerator(seed):
            yield
    finally:
        np.random.set_state(before)
