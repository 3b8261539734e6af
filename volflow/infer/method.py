"""What a method of inference is: patches and the exact run are two, and nobody asks which.

A method decides the settings of a run, plans it, and computes boxes of the result for `map_model`.
A new method is a folder beside ``patches`` and ``exact``, and a line in `volflow.infer.methods`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt
import torch
from distributed import Client
from distributed.utils import get_ip

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
from volflow.infer.settings import Settings
from volflow.model.forward import Output
from volflow.store.journal.journal import Record
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
    "Targets",
    "adopt",
    "array_of",
    "box_of",
    "out_blocks",
    "output_plan",
    "threads_per_worker",
]

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
            f"{request.out} was started with another blend than {options.blend!r}, or on another"
            " grid (spacing); use that again, or begin again (overwrite=True, --overwrite), or"
            " choose another output"
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


def box_of(volume: Volume, block: Roi) -> Roi:
    """Return the box of a block in an output, with all its channels."""
    if volume.ndim == 3:
        return block
    return Roi((0, *block.start), (volume.shape[0], *block.stop))


def out_blocks(request: Request, settings: Settings) -> BlockGrid:
    """Return the tiling of the outputs, in output voxels along the stored axes."""
    return BlockGrid(request.out_shape(settings.outputs[0].scale), settings.block)


def threads_per_worker(client: Client) -> int:
    """Return the torch threads of a task, so that none compete for cores.

    Workers of this machine share its cores; on others they have the threads that they declare.
    """
    if is_embedded(client):
        return min(torch.get_num_threads(), cores())  # torch knows nothing of a cgroup's quota
    records = worker_records(client).values()
    hosts = Counter(one.get("host") for one in records)
    if hosts.keys() <= {"127.0.0.1", get_ip()}:
        return max(1, cores() // max(hosts.values(), default=1))
    return min(int(one["nthreads"]) for one in records)


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
    layout = f"chunks {settings.chunk}, shards {settings.shard}, blocks {settings.block}"
    facts = (
        ("input", f"{request.named()} {request.inputs.shape}"),
        ("model", request.model.name),
        ("output", f"{request.out} {options.output} {options.stored_dtype(settings.dtype)}"),
        ("blend", blend + (f", frame {options.frame}" if options.frame else "")),
        *own,
        ("layout", layout),
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
        device_peak_bytes=settings.device_peak_bytes,
        device_memory_bytes=settings.device_memory_bytes,
        exclusive=True,
        facts=facts,
        plugin=request.plugin,
        grid=job.grid,
    )
