"""The forms in which a cluster is named, on real small clusters."""

from __future__ import annotations

import os
import subprocess

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

from volflow.engine.cluster import connect, cores, workers
from volflow.engine.clusters import forms, own
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Step
from volflow.engine.workers import read_workers
from volflow.errors import InvalidInput, RunFailed


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("threads", ("threads", None)),
        ("processes", ("processes", None)),
        ("processes:3", ("processes", 3)),
        ("3", ("processes", 3)),
        (3, ("processes", 3)),
        ("cuda", ("cuda", None)),
        ("slurm", ("slurm", None)),
        ("slurm:8", ("slurm", 8)),
    ],
)
def test_what_each_form_means(given, word):
    assert forms._named(given) == word


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("thread", "did you mean 'threads'? Use threads, processes, a number of processes, cuda"),
        ("process:4", "did you mean 'processes'?"),
        ("SLURM", "did you mean 'slurm'?"),
        ("localhost:8786", "did you mean 'tcp://localhost:8786'?"),
        ("threads:2", "did you mean 'threads'?"),
        ("zzz", "unknown cluster 'zzz'; use threads, processes"),
        (2.5, "unknown cluster 2.5; use threads, processes"),
    ],
)
def test_an_unknown_form_is_refused_with_the_nearest(given, near):
    with pytest.raises(InvalidInput, match="unknown cluster") as refused, connect(given):
        pass
    assert near in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", ["processes:0", "slurm:0", "slurm:-2", 0])
def test_none_at_all_is_refused(given):
    with pytest.raises(InvalidInput, match=r"cluster needs at least one (process|job); got"):
        connect(given).__enter__()


@pytest.mark.slow
def test_processes_are_counted():
    with connect("processes:1") as client:
        assert list(workers(client).values()) == [cores()]


def sees() -> tuple[str | None, int]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


class TestCuda:
    @pytest.mark.slow
    def test_each_gpu_has_a_process_that_sees_it_alone(self, monkeypatch):
        monkeypatch.setattr(forms, "gpus", lambda: ("GPU-aa", "GPU-bb"))
        with connect("cuda", resources="GPU=1") as client:
            found = client.run(sees).values()
            assert sorted(device for device, _ in found) == ["GPU-aa", "GPU-bb"]
            assert len({pid for _, pid in found}) == 2
            assert list(workers(client).values()) == [1, 1]  # a device takes one task
            records = client.scheduler_info(n_workers=-1)["workers"].values()
            assert {one["nthreads"] for one in records} == {max(1, cores() // 2)}

    @pytest.mark.parametrize(
        ("visible", "devices"),
        [("0,2", ("0", "2")), ("GPU-aa", ("GPU-aa",)), (" 1 , -1", ("1",))],
    )
    def test_those_that_are_visible_are_taken(self, monkeypatch, visible, devices):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert own.gpus() == devices

    def test_all_that_the_driver_lists_are_taken(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        listed = subprocess.CompletedProcess([], 0, "GPU-aa\nGPU-bb\n", "")
        monkeypatch.setattr(own.subprocess, "run", lambda *args, **options: listed)
        assert own.gpus() == ("GPU-aa", "GPU-bb")

    def test_without_one_it_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(InvalidInput, match=r"^cluster 'cuda' needs an NVIDIA GPU, and CUDA_V"):
            connect("cuda").__enter__()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InvalidInput, match="nvidia-smi lists none; use threads or processes"):
            connect("cuda").__enter__()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate that vouches for itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
            "/CN=volflow", "-keyout", key, "-out", certificate,
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(reason="openssl cannot make a certificate here")
    return str(key), str(certificate)


class TestTls:
    @pytest.fixture
    def configured(self, certificate):
        key, file = certificate
        files = {"cert": file, "key": key}
        roles = [(role, what) for role in ("client", "worker", "scheduler") for what in files]
        tls = {f"{role}.{what}": files[what] for role, what in roles}
        tls["ca-file"] = file
        return {f"distributed.comm.tls.{name}": path for name, path in tls.items()}

    @pytest.fixture
    def secure(self, configured):
        with dask.config.set(configured):
            security = Security()
        with LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tls://",
            security=security, dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster:  # fmt: skip
            yield cluster

    def test_a_scheduler_is_reached_with_the_configured_certificates(self, secure, configured):
        assert secure.scheduler_address.startswith("tls://")
        with dask.config.set(configured), connect(secure.scheduler_address) as client:
            assert client.submit(sum, [1, 2]).result() == 3

    def test_without_certificates_it_says_which_are_missing(self, secure):
        with pytest.raises(InvalidInput) as refused:
            connect(secure.scheduler_address).__enter__()
        assert str(refused.value) == (
            f"the Dask scheduler at {secure.scheduler_address} cannot be reached without"
            " certificates; name them in Dask's configuration (distributed.comm.tls.ca-file and"
            " .client.cert, .client.key)"
        )


def whereabouts(job, blocks, context):
    from distributed import get_worker

    for block in blocks:
        yield Step(block, 1, result=get_worker().name)


def where(cluster, **chosen) -> set[str]:
    plan = Plan("where", whereabouts, None, tuple((n,) for n in range(12)), 12, "", 1, 100)
    with connect(cluster, **chosen) as client:
        return set(run(plan, cluster=client, progress=False).results.values())


@pytest.fixture(scope="module")
def mixed():
    """A cluster of three workers: two have a GPU, of which one has the larger name."""
    place = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "dashboard": False}
    from distributed import Scheduler, SpecCluster, Worker

    def worker(**options):
        return {"cls": Worker, "options": {**place, "nthreads": 2, **options}}

    with SpecCluster(
        workers={
            "plain": worker(), "one": worker(resources={"GPU": 1}),
            "two": worker(resources={"GPU": 2}),
        },
        scheduler={"cls": Scheduler, "options": place},
    ) as cluster:  # fmt: skip
        yield cluster


class TestChosen:
    def test_all_workers_by_default(self, mixed):
        assert where(mixed) == {"plain", "one", "two"}

    @pytest.mark.slow
    def test_by_name_address_or_host(self, mixed):
        address = mixed.workers["two"].address
        assert where(mixed, workers="plain") == {"plain"}
        assert where(mixed, workers=["one", address]) == {"one", "two"}
        assert where(mixed, workers=" one,plain") == {"one", "plain"}
        assert where(mixed, workers="127.0.0.1") == {"plain", "one", "two"}

    @pytest.mark.slow
    def test_by_resources_of_which_each_task_takes_so_much(self, mixed):
        assert where(mixed, resources={"GPU": 1}) == {"one", "two"}
        assert where(mixed, resources="GPU=2") == {"two"}
        assert where(mixed, workers="one", resources="GPU=1") == {"one"}
        with connect(mixed, resources="GPU=1") as client:
            threads = sorted(worker.threads for worker in read_workers(client).values())
            assert threads == [1, 2]

    def test_what_is_inside_keeps_to_it(self, mixed):
        with connect(mixed, workers="one") as client, connect(client) as inner:
            assert len(workers(inner)) == 1
        with Client(mixed, set_as_default=False) as client:
            assert len(workers(client)) == 3

    def test_where_none_is_chosen_it_says_which_was_waited_for(self, mixed):
        with pytest.raises(RunFailed) as failed:
            connect(mixed, workers="other", resources="GPU=4", wait=0.1).__enter__()
        assert "had no worker named other with resources GPU=4 for 0.1 s" in str(failed.value)

    @pytest.mark.parametrize("names", ["", "a,,b", [], [""]])
    def test_no_names_are_refused(self, names):
        with pytest.raises(InvalidInput, match=r"^workers must be names, addresses or hosts"):
            connect("threads", workers=names).__enter__()

    @pytest.mark.parametrize("amounts", ["", "GPU", "GPU=x", "GPU=0", "=1", {}, {"GPU": -1}, 3])
    def test_no_amounts_are_refused(self, amounts):
        with pytest.raises(InvalidInput, match=r"^resources must be positive amounts by name"):
            connect("threads", resources=amounts).__enter__()
