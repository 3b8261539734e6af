"""Batches made ahead of the trainer: collated as stored, cast and augmented on the device."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from volflow.errors import InvalidInput, first_line
from volflow.geometry.grid import slice_axis

if TYPE_CHECKING:
    from volflow.sampling.stream import PatchStream

__all__ = ["Loader", "check_pickles", "numbered_device"]

Batch = dict[str, Any]

# Batches that are finished or being made: enough for a trainer whose steps vary.
AHEAD = 3


@dataclass(frozen=True, eq=False)
class Loader:
    """Iterates over the batches of an epoch; made by `PatchStream.loader`.

    What has been made ahead is not counted as delivered: `PatchStream.state_dict` stands behind the
    last batch that the trainer took.
    """

    stream: PatchStream
    batch_size: int
    device: torch.device
    num_workers: int
    drop_last: bool

    def __len__(self) -> int:
        """Batches of an epoch for this rank."""
        whole, rest = divmod(len(self.stream), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, or of what is left of it."""
        stream = self.stream
        epoch, begin = stream.begin()
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        # Of the maker; its batches are closed in it too, as a cluster is left where it was entered.
        batches, context = self._batches(epoch, begin), copy_context()
        with ThreadPoolExecutor(1, "volflow-batches") as maker:
            make = partial(context.run, self._make, batches, side)
            ready = deque(maker.submit(make) for _ in range(AHEAD))
            try:
                while True:
                    asked_s = time.perf_counter()
                    made = ready.popleft().result()
                    stream.metrics.stall_s += time.perf_counter() - asked_s
                    if made is None:
                        break
                    ready.append(maker.submit(make))
                    batch, indices, event = made
                    self._receive(batch, event)
                    for index in indices:
                        stream.delivered(stream.share, index)
                    yield batch
            finally:
                maker.shutdown(cancel_futures=True)
                context.run(batches.close)
        stream.end(epoch)

    def _make(self, batches: Iterator[Batch], side: Any) -> tuple[Batch, list[int], Any] | None:
        """Return the next batch as the trainer gets it, its places, and when the device has it."""
        with torch.cuda.stream(side) if side else nullcontext():
            samples = next(batches, None)
            if samples is None:
                return None
            indices = samples["index"].tolist()  # which an augmentation may drop
            return self._finish(samples), indices, side and side.record_event()

    def _receive(self, batch: Batch, event: Any) -> None:
        """Let the trainer's stream wait for what the side stream does to the batch."""
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for value in batch.values():
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    value.record_stream(current)

    def _batches(self, epoch: int, begin: int) -> Generator[Batch]:
        """Yield collated samples in their stored dtype; on a CPU, cast."""
        samples: Iterable[Mapping[str, Any]] = self.stream.take(epoch, begin, self.stream.share)
        if self.num_workers:
            samples = DataLoader(
                self.stream.at(epoch, begin),
                batch_size=None,
                num_workers=self.num_workers,
                multiprocessing_context="spawn",
            )
        on_cpu = self.device.type == "cpu"
        cast = self._dtypes() if on_cpu else {}  # no device to send less to: cast on the way
        batch = _Collator(self.batch_size, cast, pinned=self.device.type == "cuda")
        for sample in samples:
            self._check_classes(sample)
            batch.add(sample)
            if batch.count == self.batch_size:
                yield batch.take()
        if batch.count and not self.drop_last:
            yield batch.take()

    def _dtypes(self) -> dict[str, torch.dtype]:
        case = self.stream.cases[0]
        return {
            name: torch.int64 if name in case.classes else torch.float32 for name in case.sources
        }

    def _check_classes(self, sample: Mapping[str, Any]) -> None:
        """Refuse floats that are not whole: the cast to classes would cut them, and hide NaN."""
        for name in self.stream.cases[0].classes:
            voxels = np.asarray(sample[name])
            if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.trunc(voxels)):
                raise InvalidInput(
                    f'array "{name}" holds classes, but values that are not whole numbers in a'
                    f" patch of case {sample['case']} at {sample['location'][:3].tolist()}; round"
                    " them, or name the arrays of classes: PatchStream(…, classes=[…])"
                )

    def _finish(self, batch: Batch) -> Batch:
        """Send a batch to the device, cast it there and augment it; slices lose their axis."""
        for name, dtype in self._dtypes().items():
            batch[name] = batch[name].to(self.device, non_blocking=True).to(dtype)
        for name, value in self.stream.cases[0].values.items():
            if not isinstance(value, str):
                batch[name] = batch[name].to(self.device)
        for augment in self.stream.augment:
            batch = augment(batch)
            if not isinstance(batch, dict):
                raise InvalidInput(
                    f"augment must return the batch as a dict, given {type(batch).__name__} by "
                    f"{augment!r}"
                )
        return _without_axis(batch, slice_axis(self.stream.catalog.patch))


class _Collator:
    """Copies samples into a batch, each voxel once."""

    def __init__(self, size: int, cast: Mapping[str, torch.dtype], *, pinned: bool) -> None:
        self.size, self.cast, self.pinned = size, cast, pinned
        self.count = 0
        self.tensors: dict[str, torch.Tensor] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.others: dict[str, list[Any]] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Copy the next sample into the batch."""
        for name, value in sample.items():
            if not isinstance(value, np.ndarray | torch.Tensor):
                self.others.setdefault(name, []).append(value)
                continue
            voxels = np.asarray(value)
            if name not in self.tensors:
                dtype = self.cast.get(name, torch.from_numpy(np.empty(0, voxels.dtype)).dtype)
                shape = (self.size, *voxels.shape)
                self.tensors[name] = torch.empty(shape, dtype=dtype, pin_memory=self.pinned)
                self.arrays[name] = self.tensors[name].numpy()
            self.arrays[name][self.count] = voxels
        self.count += 1

    def take(self) -> Batch:
        """Return the batch so far; the next begins empty."""
        batch: Batch = {name: tensor[: self.count] for name, tensor in self.tensors.items()}
        for name, values in self.others.items():
            texts = any(isinstance(value, str) for value in values)
            batch[name] = values if texts else torch.tensor(values)
        self.count, self.tensors, self.arrays, self.others = 0, {}, {}, {}
        return batch


def _without_axis(batch: Batch, axis: int | None) -> Batch:
    """Return a batch whose arrays lack a spatial axis, as networks of slices take them."""
    if axis is None:
        return batch
    arrays = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim == 5}
    return {**batch, **{name: array.squeeze(2 + axis) for name, array in arrays.items()}}


def check_pickles(normalize: Any) -> None:
    """Refuse functions that processes which read cannot be sent.

    Raises
    ------
    InvalidInput
        Saying why, and what does without.
    """
    try:
        pickle.dumps(normalize)
    except Exception as error:  # objects raise errors of any class
        raise InvalidInput(
            f"num_workers reads in other processes, to which normalize cannot be sent"
            f" ({first_line(error)}); define its function in a module, or leave out num_workers"
        ) from error


def numbered_device(name: str | torch.device) -> torch.device:
    """Return a device with its number: in another thread "cuda" would be the first one.

    Raises
    ------
    InvalidInput
        If it is not there.
    """
    device = torch.device(name)
    if device != torch.device("cuda"):
        return device
    if not torch.cuda.is_available():
        raise InvalidInput('there is no device "cuda" here; use device="cpu"')
    return torch.device("cuda", torch.cuda.current_device())
