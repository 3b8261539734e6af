"""Dask's performance report, drawn by bokeh, of threads without a dashboard and of a cluster."""

from __future__ import annotations

import re

import numpy as np
import pytest

import volflow as vf
from volflow.cli import run
from volflow.engine.workers import dashboard_of

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def drawing():
    pytest.importorskip("bokeh", reason="draws the report")


def test_each_cluster_of_a_block_has_its_report(tmp_path):
    report = tmp_path / "report.html"
    with vf.observe(performance_report=report):
        for name in ("a.zarr", "b.zarr"):
            vf.convert(np.ones((8, 8, 8), "u1"), tmp_path / name, progress=False)
    for one in (report, tmp_path / "report-2.html"):
        text = one.read_text()
        assert "Dask Performance Report" in text
        assert re.search(r"number of tasks: [1-9]", text)


def test_a_command_writes_it_of_processes(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((8, 8, 8), "u1"))
    report = tmp_path / "report.html"
    command = ["convert", str(tmp_path / "a.npy"), str(tmp_path / "a.zarr"), "-q"]
    assert run([*command, "--performance-report", str(report), "--cluster", "1"]) == 0
    assert "Dask Performance Report" in report.read_text()


def test_a_cluster_of_ours_has_no_dashboard():
    with vf.connect() as client:
        assert dashboard_of(client) == ""
