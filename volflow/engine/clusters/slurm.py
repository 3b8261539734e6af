"""SLURM jobs as workers, through dask-jobqueue: what a job asks for, and how many there may be.

A run that needs workers asks for jobs, and gives them back when it has none to give. A job that
reaches its walltime is replaced by another, as blocks that are not done are given to any worker.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import dask

from volflow.engine.memory import resident_bytes
from volflow.errors import InvalidInput, first_line
from volflow.geometry.budget import parse_bytes

__all__ = ["job_memory", "slurm_cluster"]

# Jobs at once, where neither the user nor Dask's configuration says how many.
JOBS = 4
# Dask starts nothing new on a worker above this share of its limit, and kills it above 95 %.
USED_SHARE = 0.8
# The process that watches a worker lies in the same job.
NANNY_BYTES = 256 * 2**20
MIB = 2**20


def job_memory(memory_bytes: int, baseline_bytes: int, processes: int = 1) -> tuple[int, int]:
    """Return a worker's memory limit, and the memory to ask SLURM for, in MiB.

    A worker needs its resident baseline and the ``memory`` of the run; the slack is a quarter of
    both, above which Dask would pause it, and 256 MiB for its nanny.

    Parameters
    ----------
    memory_bytes, baseline_bytes
        What a worker may add, and its resident size before it adds anything.
    processes
        Workers of a job.

    Examples
    --------
    >>> job_memory(2**30, 2**29)  # 1024 MiB above 512
    (1920, 2176)
    """
    limit = math.ceil((baseline_bytes + memory_bytes) / USED_SHARE / MIB)
    return limit, processes * (limit + NANNY_BYTES // MIB)


def slurm_cluster(jobs: int | None, memory: str | int | None) -> Any:
    """Start a scheduler in this process whose workers are SLURM jobs, from none to ``jobs``.

    Parameters
    ----------
    jobs
        Most jobs at once; None for Dask's ``distributed.adaptive.maximum``, or 4.
    memory
        What one worker may add to its resident size. The baseline is that of this process, which
        has imported, and loaded, what a worker will. None for ``jobqueue.slurm.memory``.

    Raises
    ------
    InvalidInput
        If dask-jobqueue or SLURM is absent, or SLURM would not accept such a job.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InvalidInput(
            "cluster 'slurm' needs dask-jobqueue; pip install 'volflow[slurm]'"
        ) from None
    if shutil.which("sbatch") is None:
        raise InvalidInput(
            "cluster 'slurm' needs SLURM's commands, and sbatch is not on the PATH; run this on a"
            " machine that submits jobs"
        )
    asked: dict[str, Any] = {"processes": dask.config.get("jobqueue.slurm.processes", None) or 1}
    if memory is not None:
        limit, job = job_memory(parse_bytes(memory), resident_bytes(), asked["processes"])
        asked |= {"memory": f"{asked['processes'] * limit} MiB", "job_mem": f"{job}M"}
    own = {"dashboard_address": ":0", **dask.config.get("jobqueue.slurm.scheduler-options", {})}
    try:
        cluster = SLURMCluster(scheduler_options=own, **asked)
    except (ValueError, OSError) as error:
        said = first_line(error).partition(", for example")[0]
        raise InvalidInput(
            f"cluster 'slurm' cannot be started: {said}; give memory= (--memory), and"
            " set jobqueue.slurm.cores and what else your site asks for in Dask's configuration"
        ) from error
    try:
        _check_script(cluster.job_script())
    except InvalidInput:
        cluster.close()
        raise
    cluster.adapt(minimum_jobs=0, maximum_jobs=jobs or _most_jobs())
    return cluster


def _most_jobs() -> int:
    most = dask.config.get("distributed.adaptive.maximum", math.inf)
    return JOBS if math.isinf(most) else int(most)


def _check_script(script: str) -> None:
    """Have SLURM check a job without submitting it: one that it refuses would never start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sh")
        path.write_text(script)
        tested = subprocess.run(
            ["sbatch", "--test-only", str(path)], capture_output=True, text=True, check=False
        )
    if tested.returncode:
        said = " ".join(tested.stderr.split()).removeprefix("allocation failure: ")
        directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        raise InvalidInput(
            f"SLURM does not accept the job of a worker ({'; '.join(directives)}): {said}; change"
            " jobqueue.slurm of Dask's configuration, or ask for less memory (--memory)"
        )
