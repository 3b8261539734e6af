"""Fresh memory is cheap where volflow's work runs, and a user's own settings win."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

import volflow as vf
from volflow.engine import pages
from volflow.engine.cluster import connect
from volflow.engine.pages import HUGE_PAGES, prepare_allocators
from volflow.model.resident import asks_for_huge_pages

MIB = 2**20
OURS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", HUGE_PAGES)
KEPT = "512 MiB at the end of the heap is kept; 32 MiB at a time comes from the heap"
COMMAND = "from volflow.cli import main; main()"
TOLD = f"memory: huge pages by {HUGE_PAGES}=1; {KEPT}"

glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's"
)
huge = pytest.mark.skipif(
    not pages.SYSTEM.is_file() or "[never]" in pages.SYSTEM.read_text(),
    reason="the system has no huge pages",
)


@pytest.fixture(autouse=True)
def _nobody_chose(monkeypatch):
    """What tests before left in the environment, Dask's nannies among them, is not a choice."""
    for name in OURS:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def faults_per_pass() -> float:
    """Pages that the system hands out for a buffer of 8 MiB, taken and given back again.

    The median of several passes: what the process gives back between two of them, when the run
    before ends, is paid for once.
    """
    faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
    for _ in range(9):
        torch.ones(8 * MIB, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return float(np.median(np.diff(faults)))


def told_by(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from volflow.engine.pages import prepare_allocators\n{code}"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@glibc
@huge
@pytest.mark.slow
class TestWorkers:
    def test_ours_keep_what_is_freed_and_ask_for_huge_pages(self):
        with connect(1) as client:
            assert client.submit(faults_per_pass, pure=False).result() < 100  # of 2048 pages
            assert client.submit(asks_for_huge_pages).result()

    def test_ours_leave_what_the_user_chose(self, monkeypatch):
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
        monkeypatch.setenv(HUGE_PAGES, "0")
        with connect(1) as client:
            assert not client.submit(asks_for_huge_pages).result()
            told = client.submit(prepare_allocators, own=True).result()
        assert told == (
            f"memory: huge pages by {HUGE_PAGES}=0; MALLOC_TRIM_THRESHOLD_ is the user's;"
            " 32 MiB at a time comes from the heap"
        )

    def test_the_model_brings_it_to_those_of_others(self, tmp_path):
        """Dask's nanny makes each of its workers give back what is above 64 KiB."""
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=1, dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):  # fmt: skip
            vf.predict(
                np.zeros((8, 8, 8), "float32"), torch.nn.Conv3d(1, 1, 3, padding=1),
                tmp_path / "out.zarr", patch=8, memory="64MiB", cluster=client, progress=False,
            )  # fmt: skip
            assert client.submit(faults_per_pass, pure=False).result() < 100
            assert client.submit(asks_for_huge_pages).result()


@glibc
@huge
class TestProcess:
    def test_one_of_our_own_has_all(self):
        assert told_by("print(prepare_allocators(own=True))") == TOLD

    def test_a_session_of_somebody_else_keeps_its_thresholds(self):
        assert told_by("print(prepare_allocators(own=False))") == TOLD.replace(f"; {KEPT}", "")

    @pytest.mark.slow
    def test_what_dasks_nanny_set_is_not_the_users(self):
        told = told_by("print(prepare_allocators(own=False))", MALLOC_TRIM_THRESHOLD_="65536")
        assert told == TOLD

    def test_a_tunable_of_the_user_wins(self):
        told = told_by(
            "print(prepare_allocators(own=True))",
            GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000",
        )
        assert told.endswith("heap is kept; MALLOC_MMAP_THRESHOLD_ is the user's")

    @pytest.mark.slow
    def test_torch_that_allocated_before_is_told_of(self):
        code = """
import logging, sys, torch
from volflow.model.resident import ModelPlugin
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("volflow").setLevel("DEBUG")
ModelPlugin(torch.nn.Conv3d(1, 1, 3), "late").setup()
"""
        assert told_by(code).splitlines() == [
            f"memory: huge pages by {HUGE_PAGES}=1",
            f"torch asks for no huge pages: it reads {HUGE_PAGES} at its first allocation,"
            " which came before; set it to 1 before Python starts",
        ]

    @pytest.mark.slow
    def test_a_model_that_is_named_is_early_enough(self):
        code = """
from volflow.model.bundle import load_model
from volflow.model.resident import asks_for_huge_pages
load_model("torch.nn:Identity")
print(asks_for_huge_pages())
"""
        assert told_by(code) == "True"

    @pytest.mark.slow
    def test_the_command_line_tells_of_it(self, tmp_path):
        np.save(tmp_path / "scan.npy", np.zeros((4, 4, 4), "uint8"))
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "info", str(tmp_path / "scan.npy"), "--debug"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == f"volflow: {TOLD}\n"


class TestElsewhere:
    def test_without_huge_pages_torch_is_not_asked(self, monkeypatch, tmp_path):
        for text in (None, "always madvise [never]\n"):
            if text is not None:
                (tmp_path / "enabled").write_text(text)
            monkeypatch.setattr(pages, "SYSTEM", tmp_path / "enabled")
            assert prepare_allocators(own=False) == "memory: this system has no huge pages"
            assert HUGE_PAGES not in os.environ

    def test_another_allocator_is_left_alone(self, monkeypatch, tmp_path):
        """musl and macOS have no mallopt."""
        monkeypatch.setattr(pages, "SYSTEM", tmp_path / "absent")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
        assert prepare_allocators(own=True) == (
            "memory: this system has no huge pages; this system's allocator has no thresholds"
        )
