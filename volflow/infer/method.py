"""What a method of inference is: patches and the exact run are two, and nobody asks which.

A method decides the settings of a run, plans it, and computes boxes of the result for `map_model`.
A new method is a folder beside ``patches`` and ``exact``, and a line in `volflow.infer.methods`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client

from volflow.engine.cluster import cores, is_embedded
from volflow.engine.plan import Plan
from volflow.engine.task import Task
from volflow.engine.workers import worker_records
from volflow.errors import ResumeRefused
from volflow.geometry.grid import BlockGrid, per_axis
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.predict_options import PredictOptions
from volflow.infer.request import Request
from volflow.model.forward import Output
from volflow.store.journal.journal import Record
from volflow.store.journal.records import typed
from volflow.store.volume import Volume
from volflow.volumes.framed import FramedImage

__all__ = [
    "SLACK_BYTES",
    "TRIALS_DIFFER",
    "BoxFunction",
    "Hull",
    "Method",
    "OutputJob",
    "Rows",
    "Settings",
    "Targets",
    "adopt",
    "array_of",
    "out_blocks",
    "output_plan",
    "threads_per_worker",
]

MOST_SIDE = 2**31  # of what a journal may say
# What a worker takes beside tensors: allocator slack, compressed chunks in flight, Python objects.
SLACK_BYTES = 48 * 2**20
# The next trial on a worker may seem to take a little more.
TRIALS_DIFFER = 1.05

# Finished rows by output, CZYX or ZYX in the frame, and where they begin along its first axis.
Rows = tuple[int, dict[str, npt.NDArray[Any]]]
# The input voxels along a frame axis from which [low, high) of the output is computed.
Hull = Callable[[int, int, int], tuple[int, int]]
# The volumes that are written, by output.
Targets = Mapping[str, Volume]


@dataclass(frozen=True)
class Settings:
    """Settings that a run decides once and a resumed run adopts; each method adds its own.

    Parameters
    ----------
    outputs
        What the model returns.
    dtype, precision, device, threads
        In which it computes, where, and with how many torch threads per worker.
    block, chunk, shard
        Of the result, in output voxels along the stored axes.
    peak_bytes
        What a worker is thought to take.
    batch_size
        Of consecutive patches of one row of the grid; 1 where the network sees whole blocks.
    """

    outputs: tuple[Output, ...]
    dtype: str
    precision: str
    device: str
    threads: int
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    peak_bytes: int
    batch_size: int

    def own(self) -> dict[str, Any]:
        """Return what the method adds, as plain values for the journal: passes, if it has any."""
        return {"exact": None}

    def to_dict(self, grid: tuple[int, ...]) -> dict[str, Any]:
        """Return plain values for the journal."""
        common = {field.name: getattr(self, field.name) for field in fields(Settings)}
        outputs = [[o.name, o.channels, list(o.scale)] for o in self.outputs]
        return {"grid": list(grid), **common, "outputs": outputs, **self.own()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], **own: Any) -> Self:
        """Return the settings that a journal holds.

        Parameters
        ----------
        saved
            What `to_dict` made.
        **own
            Of it the fields that the method adds.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where a journal says what cannot be.
        """
        values = {field.name: saved[field.name] for field in fields(Settings)}
        values["outputs"] = [
            {"name": n, "channels": c, "scale": s} for n, c, s in values["outputs"]
        ]
        settings = typed(cls, {**values, **own})
        scales = (output.scale for output in settings.outputs)
        sides = [settings.block, settings.chunk, settings.shard, *scales]
        if {len(three) for three in sides} != {3} or not settings.outputs:
            raise ValueError("there are not three numbers for three axes")
        channels = (output.channels for output in settings.outputs)
        counts = (settings.threads, settings.batch_size, *channels)
        if not all(1 <= n <= MOST_SIDE for n in (*counts, *itertools.chain(*sides))):
            raise ValueError("numbers are out of any range")
        np.dtype(settings.dtype)
        return settings


class BoxFunction(Protocol):
    """Computes boxes of a prediction; small, picklable, and holds all that decides their voxels."""

    @property
    def inputs(self) -> FramedImage:
        """The image that is read."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs of the network."""

    @property
    def finish(self) -> Finish:
        """Activation, classes and dtype of what is stored."""

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Values that decide the voxels beside the request's fingerprint."""

    def resolve_device(self) -> BoxFunction:
        """Return the same on the device that "auto" means on this machine."""

    def with_inputs(self, inputs: FramedImage) -> BoxFunction:
        """Return the same with other inputs."""

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield a box of the output, some rows at a time; the model must be resident."""


S = TypeVar("S", bound=Settings)
W = TypeVar("W", bound=BoxFunction)


class Method(Protocol[S]):
    """A way to run a network over a volume."""

    @property
    def BLENDS(self) -> tuple[str, ...]:
        """The blends that this method computes."""

    def check(self, given: PredictOptions, options: PredictOptions) -> PredictOptions:
        """Check options that mean something to this method alone.

        Parameters
        ----------
        given, options
            As the user gave them, and merged with the model's own.

        Raises
        ------
        InvalidInput
            Naming the option.
        """

    def read(self, saved: Mapping[str, Any]) -> S | None:
        """Return the settings of a journal; None where another method wrote it.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where no method did.
        """

    def decide(self, request: Request, client: Client, memory_bytes: int) -> S:
        """Return settings for a first run, from a trial on a worker and the budget.

        Raises
        ------
        MemoryRefused
            Where none fit, saying what would.
        """

    def plan(
        self,
        request: Request,
        settings: S,
        client: Client,
        memory_bytes: int,
        targets: Targets,
        done: frozenset[int],
    ) -> Plan:
        """Return the plan that writes the result, for the blocks that are not done.

        Parameters
        ----------
        request, settings, client, memory_bytes
            What is predicted, how, where, and within which budget per worker.
        targets
            Where outputs are written; none where the plan is only shown.
        done
            Blocks that are left out.
        """

    def prepared(
        self,
        request: Request,
        settings: S,
        client: Client,
        memory_bytes: int,
        done: frozenset[int],
    ) -> AbstractContextManager[None]:
        """Compute what the plan needs first; what that left on disk goes when the plan was run.

        Parameters
        ----------
        request, settings, client, memory_bytes, done
            As in `plan`, which is called and run within.
        """

    def boxes(self, request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
        """Return the function that computes boxes of the result, and its hull.

        Parameters
        ----------
        request
            Its batch size is not searched for.
        computed
            Whether the input is an array that is yet to be computed, of which nothing can be
            measured.
        """


def adopt(method: Method[S], request: Request, record: Record) -> S:
    """Return the settings of the run that is resumed; the options may not contradict them.

    Raises
    ------
    ResumeRefused
        Where they do.
    """
    try:
        settings = method.read(record.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeRefused(
            f"the journal of {request.out} is not one of predict ({error}); use overwrite=True"
            " (--overwrite)"
        ) from error
    options = request.options
    if settings is None:
        raise ResumeRefused(
            f"{request.out} was started with another blend than {options.blend!r}; use that"
            " again, or begin again (overwrite=True, --overwrite), or choose another output"
        )
    wanted = {
        "batch_size": options.batch_size,
        "device": options.device,
        "precision": options.precision,
        "chunk": "auto" if options.chunk is None else per_axis(options.chunk, "chunk"),
        "shard": "auto" if options.shard is None else per_axis(options.shard, "shard"),
    }
    for name, value in wanted.items():
        if value not in ("auto", getattr(settings, name, value)):
            raise ResumeRefused(
                f"{request.out} was started with {name} {getattr(settings, name)!r}, now {value!r};"
                f" leave {name} out to resume, or use overwrite=True (--overwrite)"
            )
    return settings


def array_of(output: str) -> str:
    """Return the path of an output's array in the result, as journals name it.

    Examples
    --------
    >>> array_of(""), array_of("boundary")
    ('0', 'boundary/0')
    """
    return f"{output}/0" if output else "0"


def out_blocks(request: Request, settings: Settings) -> BlockGrid:
    """Return the tiling of the outputs, in output voxels along the stored axes."""
    return BlockGrid(request.out_shape(settings.outputs[0].scale), settings.block)


def threads_per_worker(client: Client) -> int:
    """Return the torch threads of a worker, so that the workers of a machine share its cores."""
    if is_embedded(client):
        return min(torch.get_num_threads(), cores())  # torch knows nothing of a cgroup's quota
    hosts = [w.get("host") for w in worker_records(client).values()]
    return max(1, cores() // max((hosts.count(h) for h in hosts), default=1))


@dataclass(frozen=True)
class OutputJob(Generic[W]):
    """What a task that writes the result needs to know; small and picklable.

    Parameters
    ----------
    window
        What decides the voxels.
    grid
        The tiling of the outputs, in output voxels and stored axis order.
    targets
        Where they are written.
    threads, peak_bytes
        Torch threads, and the projected memory of a block.
    """

    window: W
    grid: BlockGrid
    targets: Targets
    threads: int
    peak_bytes: int


def output_plan(
    request: Request,
    settings: Settings,
    task: Task,
    job: OutputJob[Any],
    runs: tuple[tuple[int, ...], ...],
    memory_bytes: int,
    blend: str,
    own: tuple[tuple[str, str], ...],
) -> Plan:
    """Return the plan that writes the result.

    Parameters
    ----------
    request, settings, memory_bytes
        What is predicted, how, and within which budget per worker.
    task, job, runs
        What computes runs of blocks.
    blend, own
        How the plan names the blend, and further lines of the method: name and value.
    """
    options = request.options
    blocks = f"{settings.block} voxels, shards {settings.shard}, chunks {settings.chunk}"
    facts = (
        ("input", f"{request.named()} {request.inputs.shape}"),
        ("model", request.model.name),
        ("output", f"{request.out} {options.output} {options.stored_dtype(settings.dtype)}"),
        ("blend", blend + (f", frame {options.frame}" if options.frame else "")),
        *own,
        ("blocks", blocks),
    )
    return Plan(
        "predict",
        task,
        job,
        runs,
        units=sum(job.grid.voxels(run) for run in runs),
        unit="voxels",
        peak_bytes=settings.peak_bytes,
        memory_bytes=memory_bytes,
        exclusive=True,
        facts=facts,
        plugin=request.plugin,
    )
