"""A stand-in for CUDA devices, for machines that have none.

Tensors on it are CPU tensors that claim ``cuda:N``. They refuse what real ones refuse, work is done
at once, and everything is counted: copies and what they cost, kernels, synchronisations. Streams,
events, pinned memory and the allocator are followed, so that what would be a race is one here::

    with stand_in() as gpu:
        before = gpu.counts()
        vf.predict(scan, net, "out.zarr", device="cuda", cluster="threads")
        assert (gpu.counts() - before).pageable == 0

Not followed: cuDNN's numerics and workspaces, what an op allocates while it runs, graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.gpu.stand_in.clocks import Race
from tests.gpu.stand_in.counting import Counts
from tests.gpu.stand_in.machine import Machine
from tests.gpu.stand_in.patches import installed

__all__ = ["Counts", "Machine", "Race", "stand_in"]


@contextmanager
def stand_in(**options: Any) -> Iterator[Machine]:
    """Give this process CUDA devices within a block; raise at its end if anything raced.

    Parameters
    ----------
    **options
        Those of `Machine`.
    """
    machine = Machine(**options)
    with installed(machine):
        try:
            yield machine
        except BaseException as error:
            for race in dict.fromkeys(machine.races):
                error.add_note(f"It may be due to a race: {race}")
            raise
        machine.check()
