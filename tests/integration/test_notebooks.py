"""Notebooks run from top to bottom in a fresh kernel, and are stored without what they printed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_outputs_are_stripped(notebook):
    assert [cell.source for cell in code(notebook) if cell.outputs] == []
    assert [cell.source for cell in code(notebook) if cell.execution_count is not None] == []
    assert [cell.source for cell in notebook.cells if cell.metadata] == []


@pytest.mark.slow
def test_every_cell_runs(notebook, root, tmp_path, monkeypatch):
    """Their assertions hold; what they write goes to a scratch folder."""
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("PYTHONPATH", str(root))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    )
    client.execute()  # raises where a cell does
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert outputs
    assert [output for output in outputs if output.output_type == "error"] == []
    assert list(here.iterdir()) == []
