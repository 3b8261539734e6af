"""In how many processes tests run; and each doctest in ``volflow/`` in a scratch folder."""

from __future__ import annotations

import os

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All the daily tests run on two cores; for tests that were named, starting costs too much."""
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return min(2, os.cpu_count() or 1) if everything else 0


@pytest.fixture(autouse=True)
def _scratch_for_doctests(request):
    if isinstance(request.node, pytest.DoctestItem):
        folder = request.getfixturevalue("tmp_path")
        request.getfixturevalue("monkeypatch").chdir(folder)
