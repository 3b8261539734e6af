from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from distributed import Client, LocalCluster

from volflow.engine.cluster import (
    connect,
    cores,
    free_memory_bytes,
    is_embedded,
    memory_per_worker,
    workers,
)
from volflow.engine.clusters import forms
from volflow.engine.clusters import machine as machine_module
from volflow.errors import InvalidInput, RunFailed

GIB = 2**30


@pytest.fixture(scope="module")
def local():
    """A cluster of two threaded workers in this process, with a limit of memory each.

    The limit is well above what earlier tests may leave resident: Dask pauses workers near it.
    """
    with LocalCluster(
        n_workers=2, threads_per_worker=3, processes=False, memory_limit="16GiB",
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:  # fmt: skip
        yield cluster


class TestConnect:
    def test_by_default_dask_runs_in_this_process(self):
        with connect() as client:
            assert is_embedded(client)
            assert list(workers(client).values()) == [cores()]
            assert client.submit(os.getpid).result() == os.getpid()
        assert client.status == "closed"

    def test_a_slow_disk_is_no_error(self, monkeypatch):
        """Dask warns where a folder takes a second to make, as it does on a loaded machine."""

        @contextmanager
        def slow(limit, message):
            yield
            warnings.warn(message.format(duration=2), stacklevel=2)

        monkeypatch.setattr("distributed.core.warn_on_duration", slow)
        with connect("threads") as client:
            assert client.submit(sum, [1, 2]).result() == 3

    def test_a_worker_that_slept_is_not_given_up(self):
        with connect("threads") as client:
            assert client.cluster.scheduler.worker_ttl is None

    def test_the_active_client_is_taken_and_left_open(self, local):
        with Client(local) as active, connect() as client:
            assert client is active
        with Client(local, set_as_default=False) as quiet, connect() as client:
            assert client is not quiet

    def test_threads_are_had_beside_an_active_client(self, local):
        with Client(local) as active, connect("threads") as client:
            assert client is not active
            assert len(workers(client)) == 1

    def test_a_client_is_used_and_left_open(self, local):
        with Client(local, set_as_default=False) as mine:
            with connect(mine) as client:
                assert client is mine
            assert mine.status == "running"

    def test_a_cluster_object_is_used_and_left_open(self, local):
        with connect(local) as client:
            assert sorted(workers(client).values()) == [3, 3]
        assert client.status == "closed"
        assert local.status.name == "running"

    def test_a_scheduler_is_found_at_its_address(self, local):
        with connect(local.scheduler_address) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            assert len(workers(client)) == 2

    @pytest.mark.slow
    def test_inside_a_connection_nothing_is_asked_again(self, local, monkeypatch):
        with connect(local) as client:
            asked = []
            for name in ("sync", "submit", "subscribe_topic"):
                monkeypatch.setattr(client, name, lambda *given, **_: asked.append(given))
            with connect(client) as inner, connect(inner) as innermost:
                assert innermost is client
            assert asked == []

    def test_inside_it_other_workers_are_waited_for(self, local):
        with connect(local) as client, pytest.raises(RunFailed, match="no worker named nobody"):
            connect(client, workers="nobody", wait=0).__enter__()

    @pytest.mark.parametrize("asked", [2, "2"])
    def test_a_number_makes_processes_that_share_the_cores(self, asked):
        with connect(asked) as client:
            assert not is_embedded(client)
            assert list(workers(client).values()) == [max(1, cores() // 2)] * 2
            pids = client.run(os.getpid).values()
            assert len({*pids, os.getpid()}) == 3

    @pytest.mark.slow
    def test_processes_are_as_many_as_cores(self):
        with connect("processes") as client:
            assert len(workers(client)) == cores()

    @pytest.mark.parametrize("none", [0, -1, "0"])
    def test_no_process_is_refused(self, none):
        with pytest.raises(InvalidInput, match="cluster needs at least one process; got"):
            connect(none).__enter__()

    @pytest.mark.parametrize("unknown", ["thread", "localhost:8786", 2.5, object(), ""])
    def test_what_is_no_cluster_is_refused_naming_what_is(self, unknown):
        with pytest.raises(InvalidInput, match=r"unknown cluster .* threads, processes, a n"):
            connect(unknown).__enter__()

    @pytest.mark.parametrize(
        ("wait", "timeout_s"), [(None, 10), ("3 s", 3), (0, 1), ("10 minutes", 10)]
    )
    def test_a_scheduler_that_does_not_answer_is_named_in_time(self, monkeypatch, wait, timeout_s):
        given = []

        class Impatient(Client):
            def __init__(self, *args, timeout, **options):
                given.append(timeout)
                super().__init__(*args, timeout="200ms", **options)

        monkeypatch.setattr(forms, "Client", Impatient)
        with pytest.raises(InvalidInput, match=r"no Dask scheduler answers at tcp:"):
            connect("tcp://127.0.0.1:9", wait=wait).__enter__()
        assert given == [timeout_s]

    def test_an_unknown_protocol_is_refused(self):
        with pytest.raises(InvalidInput, match="no Dask scheduler answers at pigeon://home"):
            connect("pigeon://home").__enter__()


class TestMemory:
    @pytest.fixture
    def machine(self, monkeypatch):
        """What the machine, the cgroup and SLURM say."""

        def say(free, cgroup=None, slurm=None):
            memory = SimpleNamespace(available=free)
            monkeypatch.setattr(machine_module, "virtual_memory", lambda: memory)
            monkeypatch.setattr(machine_module, "_cgroup_free", lambda: cgroup)
            monkeypatch.setattr(machine_module, "_slurm_limit", lambda: slurm)

        return say

    def test_what_is_asked_for_is_had(self, local):
        with connect(local) as client:
            assert memory_per_worker(client, "3GiB") == 3 * GIB
            assert memory_per_worker(client, 12345) == 12345
            with pytest.raises(InvalidInput, match="memory must be a positive amount"):
                memory_per_worker(client, 0)

    def test_a_worker_s_own_limit_counts_less_what_it_holds(self, local):
        with connect(local) as client:
            assert 0 < memory_per_worker(client, None) < 0.6 * 16 * GIB

    def test_by_default_a_share_of_what_is_free(self, machine):
        machine(free=10 * GIB)
        with connect("threads") as client:
            assert memory_per_worker(client, None) == 6 * GIB

    def test_workers_of_one_host_share_it(self, machine):
        machine(free=10 * GIB)
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, processes=False, memory_limit=None,
                dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            ) as two,
            connect(two) as client,
        ):  # fmt: skip
            assert memory_per_worker(client, None) == 3 * GIB

    @pytest.mark.parametrize(
        ("free", "cgroup", "slurm", "expected"),
        [(5, None, None, 5), (5, 3, None, 3), (5, 3, 2, 2), (5, None, 8, 5)],
    )
    def test_the_narrowest_limit_counts(self, machine, free, cgroup, slurm, expected):
        machine(free, cgroup, slurm)
        assert free_memory_bytes() == expected

    def test_this_machine_has_memory(self):
        assert 2**20 < free_memory_bytes() < 2**50


class TestCgroups:
    @pytest.fixture
    def tree(self, monkeypatch, tmp_path):
        """Files as the kernel shows them; returns what is free."""
        monkeypatch.setattr(machine_module, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(machine_module, "OWN_CGROUPS", tmp_path / "own")

        def free(own: str, files: dict[str, str]):
            (tmp_path / "own").write_text(own)
            for name, text in files.items():
                path = tmp_path / "fs" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return machine_module._cgroup_free()

        return free

    def v2(self, folder: str, limit: object, used: int, cache: int = 0) -> dict[str, str]:
        return {
            f"{folder}memory.max": f"{limit}\n",
            f"{folder}memory.current": f"{used}\n",
            f"{folder}memory.stat": f"anon {used}\ninactive_file {cache}\nactive_file 7\n",
        }

    def test_of_a_container(self, tree):
        assert tree("0::/\n", self.v2("", 1000, 300)) == 700

    def test_files_in_the_cache_give_way(self, tree):
        assert tree("0::/\n", self.v2("", 1000, 950, cache=600)) == 650

    def test_of_a_nested_group_the_narrowest_counts(self, tree):
        files = {
            **self.v2("job/", 5000, 4900),
            **self.v2("job/step/", "max", 50),
            **self.v2("job/step/task/", 800, 50),
            **self.v2("", "max", 9),
        }
        assert tree("0::/job/step/task\n", files) == 100

    def test_of_version_1(self, tree):
        files = {
            "memory/a/memory.limit_in_bytes": "1000",
            "memory/a/memory.usage_in_bytes": "900",
            "memory/a/memory.stat": "cache 5\ntotal_inactive_file 20\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "5000",
            "memory/memory.stat": "total_inactive_file 0\n",
            "cpu/a/memory.limit_in_bytes": "1",
        }
        assert tree("5:memory,hugetlb:/a\n3:cpu,cpuacct:/a\n", files) == 120

    def test_an_overfull_one_leaves_something_to_say(self, tree):
        assert tree("0::/\n", self.v2("", 1000, 1200)) == 1

    @pytest.mark.parametrize("own", ["", "0::/\n", "3:cpu:/a\n"])
    def test_without_a_limit_there_is_none(self, tree, own):
        assert tree(own, {}) is None

    def test_elsewhere_than_on_linux_there_is_none(self, monkeypatch, tmp_path):
        monkeypatch.setattr(machine_module, "OWN_CGROUPS", tmp_path / "absent")
        assert machine_module._cgroup_free() is None


class TestCores:
    """A container of two CPUs on a machine of 64 must not start 64 threads."""

    @pytest.fixture
    def count(self, monkeypatch, tmp_path):
        """Files as the kernel shows them, on a machine of 64 cores; returns the cores to use."""
        monkeypatch.setattr(machine_module, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(machine_module, "OWN_CGROUPS", tmp_path / "own")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

        def count(own: str, files: dict[str, str]):
            (tmp_path / "own").write_text(own)
            for name, text in files.items():
                path = tmp_path / "fs" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
            return cores()

        return count

    @pytest.mark.parametrize(
        ("quota", "expected"),
        [
            ("200000 100000", 2),
            ("250000 100000", 3),
            ("1000 100000", 1),
            ("9900000 100000", 64),
            ("max 100000", 64),
            ("nonsense", 64),
        ],
    )
    def test_a_quota_of_version_2_counts_rounded_up(self, count, quota, expected):
        assert count("0::/\n", {"cpu.max": quota}) == expected

    def test_of_nested_groups_the_least_quota_counts(self, count):
        files = {
            "cpu.max": "max 100000",
            "slice/cpu.max": "300000 100000",
            "slice/pod/cpu.max": "800000 100000",
            "slice/pod/box/cpu.max": "max 100000",
        }
        assert count("0::/slice/pod/box\n", files) == 3

    def test_a_quota_of_version_1_counts(self, count):
        files = {
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "cpu/a/cpu.cfs_quota_us": "150000",
            "cpu/a/cpu.cfs_period_us": "50000",
            "memory/a/cpu.cfs_quota_us": "50000",
            "memory/a/cpu.cfs_period_us": "50000",
        }
        assert count("4:cpu,cpuacct:/a\n3:memory:/a\n2:cpuset:/\n", files) == 3

    def test_a_container_of_version_1_sees_its_own_group_as_the_outermost(self, count):
        files = {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}
        assert count("4:cpu,cpuacct:/docker/0123\n", files) == 4

    def test_without_cgroups_every_core_counts(self, count, monkeypatch, tmp_path):
        assert count("", {}) == 64
        monkeypatch.setattr(machine_module, "OWN_CGROUPS", tmp_path / "absent")
        assert cores() == 64

    def test_dask_s_threads_keep_to_it(self, count):
        count("0::/\n", {"cpu.max": "100000 100000"})
        with connect("threads") as client:
            assert list(workers(client).values()) == [1]


class TestSlurm:
    @pytest.fixture(autouse=True)
    def outside(self, monkeypatch):
        for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
            monkeypatch.delenv(name, raising=False)

    def test_is_silent_outside_of_a_job(self):
        assert machine_module._slurm_limit() is None

    @pytest.mark.parametrize(
        ("variables", "mib"),
        [
            ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
            ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "8"}, 4096),
            ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of the node
            ({"SLURM_MEM_PER_CPU": "512"}, None),
            ({"SLURM_MEM_PER_NODE": "lots"}, None),
        ],
    )
    def test_grants_per_node_or_per_cpu(self, monkeypatch, variables, mib):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert machine_module._slurm_limit() == (mib and mib * 2**20)
