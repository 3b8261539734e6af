"""`PatchStream`: patches of volumes that do not fit in memory, as an iterable dataset of torch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from volflow.engine.cluster import Cluster
from volflow.engine.progress import Progress, announce
from volflow.errors import InvalidInput, ResumeRefused
from volflow.option import from_keywords, journey
from volflow.sampling.cases.open_cases import CasesLike, open_cases
from volflow.sampling.cases.shown import Choice, shown_cases
from volflow.sampling.epoch.catalog import GridCatalog, open_catalog
from volflow.sampling.epoch.cutting import cut_patches
from volflow.sampling.epoch.order import Visits
from volflow.sampling.epoch.reading import open_window
from volflow.sampling.epoch.shares import ProcessShare, refuse_fork, this_share
from volflow.sampling.loader import Loader, check_pickles, numbered_device
from volflow.sampling.metrics import Metrics
from volflow.sampling.samplers import Sampler
from volflow.sampling.stream_options import (
    BatchTransform,
    StreamOptions,
    check_fields,
    check_whole,
)
from volflow.sampling.stream_plan import StreamPlan, plan_stream

__all__ = ["PatchStream"]

FORMAT = 1


class PatchStream(IterableDataset[dict[str, Any]]):
    """Patches for training, streamed from volumes of any size in bounded memory.

    Superchunks of volumes are decoded once each, and many patches are cut from them while several
    are mixed; the window of them is refilled all the time. The order of patches is a pure function
    of ``(seed, epoch, index)``: not of memory, threads, workers, ranks, readers or interruptions.

    Iterating yields samples: a tensor ``czyx`` for each array, in the stored dtype; ``"location"``
    (int64: z0, y0, x0, z1, y1, x1, beyond the volume, too), ``"case"``, ``"index"`` (place in the
    epoch) and ``"key"`` (an integer of its own for each sample, for augmentation); and the values
    of its case. Each ``for`` loop is an epoch; the first after `load_state_dict` goes on where the
    state was taken. `loader` yields batches.

    Worker processes of a plain ``torch.utils.data.DataLoader`` (spawned, ``batch_size=None`` for
    this order) go through the epochs by themselves and only while they live: call `set_epoch`
    before each loop, or they begin with the same epoch again; this process's state stands still.

    Parameters
    ----------
    cases
        A volume, mappings like ``{"image": …, "label": …, "age": 45}``, or a folder with
        ``images/`` and ``labels/``; see `volflow.sampling.cases.open_cases.open_cases`.
    sampler
        Which patches, e.g. ``UniformSampler(64)``.
    patches_per_epoch
        Exactly so many, over all ranks; of a `GridSampler` all there are.
    patches_per_case
        Exactly so many from each case instead: a number, or a mapping by case name.
    reuse
        Voxels emitted per voxel decoded. More is faster, and the patches of an epoch are less
        diverse. A short epoch is spread over more superchunks, with less reuse.
    memory
        Memory that the stream may add to this process; by default a share of what is free. The
        window does not shrink to fit: too little is refused, saying what would do.
    seed
        The seed of all randomness.
    lanes
        Superchunks that are mixed at a time; part of the order; 8, and of a grid one per rank.
        Ranks and worker processes share them, so their number must divide it. Fewer than patches
        in a batch cost learning more than reuse does (``benchmarks/reuse_learning.py``).
    augment
        Callable, or several, that take a batch and return one; applied by `loader`. They get the
        arrays ``(B, C, z, y, x)``, slices too, with 1 on an axis. Transforms of MONAI, TorchIO and
        batchgeneratorsv2 are applied sample by sample, and draw by its key: images and classes
        move together, but for array transforms of MONAI, which see the first image alone. Their
        axes 0, 1, 2 are z, y, x; to the first and the last of them slices are ``(C, y, x)``.
        Meanwhile NumPy's global random state is TorchIO's or batchgeneratorsv2's.
    rank, world_size
        Rank of this process among those that train; by default as ``torch.distributed`` says.
    cluster
        None: threads of this process read; else workers of a Dask cluster read and preprocess,
        with few results under way at a time.
    threads
        Number of threads that read in this process; by default one per core, at most 4.
    classes
        Names of the arrays that hold classes; see `volflow.sampling.cases.open_cases.open_cases`.
    skip_bad
        Leave out cases that cannot be used, instead of refusing all.
    allow_mixed_spacing
        Take cases of different spacing together, which are refused otherwise.
    frame
        As in `predict`, for patch, overlap, arrays and locations; cases need an orientation. Cases
        of another stream (``stream.cases``) keep its frame, and what follows where it is not given.
    normalize
        As in `predict`, of all arrays but classes and a sampler's weights, or by the names of
        some; these are then float32. Statistics are those of each array of each case.
    padding, ignore_label
        What arrays hold outside of the volume: images as in `predict`, in normalised values where
        they are; classes this label, the ``ignore`` of losses; weights 0.
    progress
        Progress of the pass that measures images, and counts labels or weights, where they are not
        known yet. False is quiet, also where an epoch has no patch of some cases.

    Raises
    ------
    InvalidInput
        If cases, sampler and numbers do not fit together; nothing is read then.
    MemoryRefused
        If the window does not fit.

    Examples
    --------
    >>> from volflow.sampling.samplers import UniformSampler
    >>> scan = np.arange(40**3, dtype="uint16").reshape(40, 40, 40)
    >>> stream = PatchStream({"image": scan}, UniformSampler(16), patches_per_epoch=100, seed=1)
    >>> sample = next(iter(stream))
    >>> sample["image"].shape, sample["location"].tolist()
    (torch.Size([1, 16, 16, 16]), [24, 16, 8, 40, 32, 24])
    >>> [len(batch["case"]) for batch in stream.loader(batch_size=40)]
    [40, 40, 20]
    """

    @journey
    def __init__(  # noqa: PLR0913 - what people type; kept apart by name
        self,
        cases: CasesLike,
        sampler: Sampler,
        patches_per_epoch: int | None = None,
        *,
        patches_per_case: int | Mapping[str, int] | None = None,
        reuse: float = 4,
        memory: str | int | None = None,
        seed: int = 0,
        lanes: int | None = None,
        augment: BatchTransform | Sequence[BatchTransform] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        cluster: Cluster = None,
        threads: int | None = None,
        classes: Sequence[str] | None = None,
        skip_bad: bool = False,
        allow_mixed_spacing: bool = False,
        frame: str | None = None,
        normalize: Choice | Mapping[str, Choice] = None,
        padding: float | str = 0,
        ignore_label: int = 0,
        progress: Progress = None,
    ) -> None:
        options = from_keywords(StreamOptions, locals())
        self.options, self.cluster = options, cluster
        opened = open_cases(cases, classes=options.classes, skip_bad=options.skip_bad)
        check_fields([*opened[0].sources, *opened[0].values])
        how: dict[str, Any] = {"cluster": cluster, "memory": options.memory, "progress": progress}
        self.cases, self.sampler = shown_cases(
            opened, options.sampler, options.shown, mixed=options.allow_mixed_spacing, **how
        )
        self.share = this_share(options.rank, options.world_size)
        self.lanes = options.lanes or self.share.stride
        self.share.check_lanes(self.lanes)
        self.totals = options.totals(self.cases)
        self.catalog = open_catalog(
            self.cases,
            self.sampler,
            per_case=None if options.patches_per_case is None else self.totals,
            **how,
        )
        if isinstance(self.catalog, GridCatalog):
            self.patches = int(self.catalog.all_visits.quota.sum())
        else:
            self.patches = sum(self.totals)
            self.share.check_patches(self.patches)
        self.plan: StreamPlan = plan_stream(
            self.catalog, self.patches, self.lanes, self.share.stride, options
        )
        self.metrics = Metrics()
        self.epoch, self._index, self._begun = 0, 0, False
        promised = isinstance(self.catalog, GridCatalog) or options.patches_per_case is not None
        self._silent = promised or progress is False

    @property
    def augment(self) -> tuple[BatchTransform, ...]:
        """The callables that change batches, in their order."""
        return cast(tuple[BatchTransform, ...], self.options.augment)

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.share.offset

    @property
    def world_size(self) -> int:
        """Number of processes that train."""
        return self.share.stride

    def __len__(self) -> int:
        """Patches of an epoch for this rank."""
        return self.share.count(self.patches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the samples of an epoch, or of what is left of it."""
        share = self._my_share()
        epoch, begin = self.begin()
        for sample in self.take(epoch, begin, share, stalls=True):
            self.delivered(share, sample["index"])
            yield {
                name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
                for name, value in sample.items()
            }
        self.end(epoch)

    def loader(
        self,
        batch_size: int = 1,
        device: str | torch.device = "cpu",
        *,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> Loader:
        """Return an iterable of the batches of an epoch, made ahead of the trainer.

        Arrays are collated in their stored dtype, sent to the device (through pinned memory to
        a GPU) and cast there: classes to int64, all else to float32. Numbers of cases become
        tensors ``(B,)`` there, texts a list. Then they are augmented. Where the patch has 1 on an
        axis, its first such axis is dropped at last, as `predict` does for networks of slices:
        ``(B, C, y, x)``.

        Parameters
        ----------
        batch_size
            Patches per batch of this rank.
        device
            Device that batches are sent to.
        num_workers
            Processes that read; by default threads of this process do, which is as fast for most.
        drop_last
            Leave out a last batch that is smaller.

        Raises
        ------
        InvalidInput
            If the batch size is not a positive number, or workers cannot share the lanes.
        """
        size = check_whole(batch_size, "batch_size must be a positive number")
        rule = "num_workers must be a number of processes from 0 on"
        workers = check_whole(num_workers, rule, 0)
        if workers and self.cluster is not None:
            raise InvalidInput(
                "the workers of a cluster read for this stream already; leave out num_workers"
            )
        if workers:
            check_pickles(self.options.normalize)
        self.share.part(0, max(1, workers)).check_lanes(self.lanes)
        return Loader(self, size, numbered_device(device), workers, drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch the next time, at its first patch."""
        number = check_whole(epoch, "an epoch must be a whole number from 0 on", 0)
        self.epoch, self._index, self._begun = number, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands, as a few numbers; the same on all ranks in step."""
        return {
            "format": FORMAT,
            "configuration": self.configuration,
            "epoch": self.epoch,
            "index": self._index,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, on any number of ranks that divides the lanes.

        Raises
        ------
        ResumeRefused
            If the state belongs to other cases, another sampler, seed or number, or the patches
            given so far do not divide among these ranks.
        """
        if state.get("format") != FORMAT or state.get("configuration") != self.configuration:
            raise ResumeRefused(
                "the state was taken from a stream of other cases, sampler, seed, patches, reuse "
                "or lanes, whose order differs; make the stream as it was, or start again without "
                "the state"
            )
        index = int(state["index"])
        if index % self.share.stride:
            raise ResumeRefused(
                f"{index} patches were given, which do not divide among {self.share.stride} ranks; "
                f"resume on a number of ranks that divides {index}"
            )
        self.epoch, self._index, self._begun = int(state["epoch"]), index, False
        # Taken behind the last patch of an epoch, but before its loop had ended. A worker of a
        # DataLoader may be at its end while others are not.
        if index >= self.patches and get_worker_info() is None:
            self.end(self.epoch)

    @cached_property
    def configuration(self) -> str:
        """Hash of all that the order of patches follows from."""
        options = self.options
        what = (self.sampler, self.totals, options.reuse, options.seed, self.lanes)
        digest = hashlib.sha256(repr(what).encode())
        for case in self.cases:
            digest.update(f"{case.chunk} {case.identity()}".encode())
        return digest.hexdigest()

    def visits(self, epoch: int) -> Visits:
        """Return which superchunk gives how many patches in an epoch."""
        if isinstance(self.catalog, GridCatalog):
            return self.catalog.all_visits
        return self.catalog.visits(self.totals, self.plan.per_visit, self.options.seed, epoch)

    def case_counts(self, epoch: int | None = None) -> dict[str, int]:
        """Count the patches of each case in an epoch, by default the present one."""
        visits = self.visits(self.epoch if epoch is None else epoch)
        cases = np.searchsorted(self.catalog.first, visits.superchunk, "right") - 1
        counts = np.bincount(cases, visits.quota, len(self.cases))
        return {case.name: int(n) for case, n in zip(self.cases, counts, strict=True)}

    # What follows is for `Loader`, which runs ahead of what it has delivered.

    def begin(self) -> tuple[int, int]:
        """Begin a loop; return its epoch and the first place in it."""
        if self._begun:
            self.epoch, self._index = self.epoch + 1, 0
        self._begun = True
        self.metrics.begin()
        self._tell_left_out()
        return self.epoch, self._index

    def _tell_left_out(self) -> None:
        """Say once that an epoch has no patch of some cases, where none is promised of each."""
        if self._silent or self.rank or get_worker_info() is not None:
            return
        counts = self.case_counts()
        none = sum(not count for count in counts.values())
        if none:
            self._silent = True
            announce(
                f"stream: {none} of {len(counts)} cases have no patch in this epoch of"
                f" {self.patches}; patches_per_case= (--patches-per-case) takes as many of each",
                None,
            )

    def delivered(self, share: ProcessShare, index: int) -> None:
        """Note that the sample at this place is the trainer's now."""
        self._index = index - share.offset + share.stride
        self.metrics.emit(self.plan.patch_voxels)

    def end(self, epoch: int) -> None:
        """Note that an epoch is complete."""
        self.set_epoch(epoch + 1)

    def at(self, epoch: int, index: int) -> PatchStream:
        """Return the same stream for worker processes, set to a place in the order."""
        other = copy.copy(self)
        other.epoch, other._index, other._begun = epoch, index, False
        # Batches are made here; what augments them need not pickle.
        other.options = replace(self.options, augment=None)
        return other

    def take(
        self, epoch: int, begin: int, share: ProcessShare, *, stalls: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Iterate over the samples of a share of an epoch from place ``begin`` on."""
        share.check_lanes(self.lanes)
        visits, plan = self.visits(epoch), self.plan
        with open_window(
            self.catalog,
            self.metrics,
            self.cluster,
            threads=plan.threads,
            ahead=plan.ahead,
            stalls=stalls,
        ) as window:
            place = (self.options.seed, epoch)
            yield from cut_patches(window, visits, self.lanes, share, begin, place)

    def _my_share(self) -> ProcessShare:
        """Return the share of this rank, or of this worker of a `torch.utils.data.DataLoader`."""
        worker = get_worker_info()
        if worker is None:
            return self.share
        refuse_fork()
        return self.share.part(worker.id, worker.num_workers)
