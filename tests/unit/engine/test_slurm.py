"""What a SLURM job is asked for, and what is refused before any is submitted."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import dask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.engine.cluster import connect
from volflow.engine.clusters import slurm
from volflow.engine.clusters.slurm import NANNY_BYTES, job_memory, slurm_cluster
from volflow.errors import InvalidInput

MIB = 2**20


@given(st.integers(MIB, 2**42), st.integers(MIB, 2**34), st.integers(1, 8))
def test_a_worker_is_not_paused_within_its_memory(memory, baseline, processes):
    limit, job = job_memory(memory, baseline, processes)
    assert 0.8 * limit * MIB >= baseline + memory
    assert 0.8 * (limit - 1) * MIB < baseline + memory
    assert job * MIB == processes * (limit * MIB + NANNY_BYTES)


class TestWithoutSlurm:
    """What stands in for dask-jobqueue notes what it is asked for."""

    @pytest.fixture
    def asked(self, monkeypatch):
        asked = {}

        class Jobs:
            def __init__(self, **options):
                asked.update(options)
                if "memory" not in options:
                    raise ValueError(
                        "You must specify how much cores and memory per job, for example:\n8"
                    )

            def job_script(self):
                return f"#!/bin/sh\n#SBATCH --mem={asked['job_mem']}\ntrue\n"

            def adapt(self, **limits):
                asked.update(limits)

            def close(self):
                asked["closed"] = True

        monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Jobs))
        return asked

    @pytest.fixture
    def sbatch(self, monkeypatch, tmp_path):
        def answers(code: int, text: str = ""):
            path = tmp_path / "sbatch"
            path.write_text(f"#!/bin/sh\ntest -f $2 || exit 9\necho '{text}' >&2\nexit {code}\n")
            path.chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

        return answers

    def test_memory_is_the_baseline_that_of_the_run_and_slack(self, asked, sbatch, monkeypatch):
        sbatch(0)
        monkeypatch.setattr(slurm, "resident_bytes", lambda: 400 * MIB)
        slurm_cluster(3, "1200MiB")
        assert asked["memory"] == "2000 MiB"  # (400 + 1200) / 0.8
        assert asked["job_mem"] == "2256M"
        assert (asked["minimum_jobs"], asked["maximum_jobs"]) == (0, 3)
        assert asked["scheduler_options"] == {"dashboard_address": ":0"}

    def test_dask_s_configuration_counts(self, asked, sbatch, monkeypatch):
        sbatch(0)
        monkeypatch.setattr(slurm, "resident_bytes", lambda: 400 * MIB)
        options = {"dashboard_address": ":1", "host": "login"}
        with dask.config.set(
            {"jobqueue.slurm.processes": 2, "jobqueue.slurm.scheduler-options": options}
        ):
            slurm_cluster(None, "1200MiB")
        assert (asked["memory"], asked["job_mem"]) == ("4000 MiB", "4512M")
        assert asked["maximum_jobs"] == 4
        assert asked["scheduler_options"] == options
        with dask.config.set({"distributed.adaptive.maximum": 7}):
            slurm_cluster(None, "1200MiB")
        assert asked["maximum_jobs"] == 7

    def test_a_job_that_slurm_refuses_is_one_line(self, asked, sbatch):
        sbatch(1, "allocation failure: Requested node configuration is not available")
        with pytest.raises(InvalidInput) as refused:
            connect("slurm:2", memory="1GiB").__enter__()
        assert str(refused.value) == (
            f"SLURM does not accept the job of a worker (#SBATCH --mem={asked['job_mem']}):"
            " Requested node configuration is not available; change jobqueue.slurm of Dask's"
            " configuration, or ask for less memory (--memory)"
        )
        assert asked["closed"]
        assert "maximum_jobs" not in asked

    def test_without_memory_it_says_what_is_missing(self, asked, sbatch):
        sbatch(0)
        with pytest.raises(InvalidInput) as refused:
            connect("slurm").__enter__()
        assert str(refused.value) == (
            "cluster 'slurm' cannot be started: You must specify how much cores and memory per job;"
            " give memory= (--memory), and set jobqueue.slurm.cores and what else your site asks"
            " for in Dask's configuration"
        )

    def test_without_sbatch_it_says_so(self, asked, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InvalidInput, match=r"needs SLURM's commands, and sbatch is not on"):
            connect("slurm", memory="1GiB").__enter__()

    def test_without_dask_jobqueue_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
        with pytest.raises(InvalidInput, match=r"^cluster 'slurm' needs dask-jobqueue; pip inst"):
            connect("slurm").__enter__()


@pytest.mark.slow
def test_nothing_of_it_is_imported_unless_asked(fresh_python):
    code = "import sys, volflow.engine.cluster; print('dask_jobqueue' in sys.modules)"
    assert fresh_python(code).strip() == "False"
