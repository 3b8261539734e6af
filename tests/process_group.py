"""Real processes that form a gloo group, started once and given many things to do."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from volflow.partition.exchange.peers import Peers


class ProcessGroup:
    """Processes that wait for functions; the first so many of them run one together."""

    def __init__(self, count: int, folder: Path, timeout_s: float) -> None:
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(
                target=_serve, args=(rank, count, f"file://{folder}/store", timeout_s, theirs)
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def run(self, count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(peers, *args)`` returns on each of the first processes, or its error.

        None for a process that was killed or stopped.
        """
        for pipe in self.pipes[:count]:
            pipe.send(cloudpickle.dumps((count, function, args)))
        answers = [self._answer(rank) for rank in range(count)]
        for error, _ in answers:
            if error:
                raise AssertionError(error)
        return [result for _, result in answers]

    def _answer(self, rank: int) -> tuple[str | None, Any]:
        process = psutil.Process(self.processes[rank].pid)
        while not self.pipes[rank].poll(0.1):
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
                return None, None
        try:
            answer: tuple[str | None, Any] = self.pipes[rank].recv()
        except EOFError:
            return None, None
        return answer

    def close(self) -> None:
        """End them."""
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            if psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                process.join(30)
            process.kill()


@contextmanager
def processes(count: int, folder: Path, timeout_s: float = 60.0) -> Iterator[ProcessGroup]:
    """A group of processes that ends with the block."""
    group = ProcessGroup(count, folder, timeout_s)
    try:
        yield group
    finally:
        group.close()


def _serve(rank: int, count: int, store: str, timeout_s: float, pipe: Connection) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    wait = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=wait)
    peers = {}
    for some in range(1, count + 1):
        groups = [range(some), *([n] for n in range(some, count))]
        peers[some] = Peers.among(groups, timeout_s)
    while (given := pipe.recv()) is not None:
        some, function, args = pickle.loads(given)
        try:
            answer = None, function(peers[some], *args)
        except Exception:
            answer = traceback.format_exc(), None
        pipe.send(answer)
    with suppress(RuntimeError):  # another may have been killed
        dist.barrier()
    # Threads of gloo may still run while an interpreter ends, which then aborts.
    os._exit(0)
