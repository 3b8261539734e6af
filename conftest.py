"""Where tests run: in how many processes, on what device; each doctest in a scratch folder."""

from __future__ import annotations

import os
import re

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """No test picks a GPU by itself, nor does a process that it starts; none takes all cores."""
    if not _asks_for_gpu(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTEST_XDIST_WORKER" in os.environ:  # which share the cores with each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on a real device run where they are asked for, not wherever they are not refused."""
    if not _asks_for_gpu(config):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("gpu")])
        items[:] = [i for i in items if not i.get_closest_marker("gpu")]


def _asks_for_gpu(config: pytest.Config) -> bool:
    return re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr")) is not None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All the daily tests run on two cores; for tests that were named, starting costs too much."""
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return min(2, os.cpu_count() or 1) if everything else 0


@pytest.fixture(autouse=True)
def _scratch_for_doctests(request):
    if isinstance(request.node, pytest.DoctestItem):
        folder = request.getfixturevalue("tmp_path")
        request.getfixturevalue("monkeypatch").chdir(folder)
