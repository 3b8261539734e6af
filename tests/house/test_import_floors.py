"""Lower floors stay light: what a fresh interpreter loads, and what import-linter refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "dask", "distributed", "zarr", "numpy", "matplotlib", "nibabel", "rich", "typer",
    "xarray",
)  # fmt: skip

CODE = """
import sys
{statement}
print(" ".join(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import volflow", set()),
        ("import volflow; dir(volflow)", set()),
        ("import volflow.errors", set()),
        ("import volflow.geometry.grid, volflow.geometry.windows", {"numpy"}),
        ("import volflow; volflow.Roi", {"numpy"}),
        ("import volflow; volflow.open", {"numpy", "zarr"}),
        ("import volflow.store.journal.journal, volflow.store.formats.sources", {"numpy", "zarr"}),
        ("import volflow.report.facts.info", {"numpy", "zarr"}),
        ("import volflow.report.pictures.preview", {"numpy", "zarr"}),
        ("import volflow.report.pictures.sheet", {"numpy", "zarr"}),
        ("import volflow.report.pictures.compare", {"numpy", "zarr"}),
        ("import volflow; volflow.view, volflow.napari_snippet", {"numpy", "zarr"}),
        ("import volflow.cli", {"rich", "typer"}),
        ("from volflow.cli import run; run(['predict', '--help'])", {"rich", "typer"}),
        ("import volflow; volflow.convert", {"numpy", "zarr", "dask", "distributed", "rich"}),
        ("import volflow; volflow.statistics", {"numpy", "zarr", "dask", "distributed", "rich"}),
    ],
)
def test_import_loads_only(statement, allowed, fresh_python):
    printed = fresh_python(CODE.format(statement=statement, heavy=HEAVY))
    loaded = set(printed.splitlines()[-1].split())
    # Dask itself loads xarray where it is installed.
    assert loaded <= allowed | ({"xarray"} if "dask" in allowed else set())


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (None, "", None),
        ("geometry/extra.py", "from volflow.store.volume import Volume\n", "A floor imports"),
        ("errors.py", "import volflow.geometry.roi\n", "A floor imports"),
        ("store/extra.py", "def f():\n    import volflow.engine.run\n", "A floor imports"),
        ("room.py", "", "A floor imports"),  # a module that no floor holds
        ("engine/extra.py", "import torch\n", "torch belongs"),
        ("store/extra.py", "def f():\n    import dask.array\n", "dask belongs"),
        ("engine/driver.py", "import volflow.engine.plan\n", "the driver decides without Dask"),
        ("geometry/extra.py", "import zarr\n", "geometry is pure"),
    ],
)
def test_floors_are_checked(file, line, contract, root, tmp_path):
    """Each contract holds, and really fails where it is broken."""
    shutil.copytree(
        root / "volflow", tmp_path / "volflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(root / "pyproject.toml", tmp_path)
    if file is not None:
        target = tmp_path / "volflow" / file
        target.write_text((target.read_text() if target.exists() else "") + line)
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; lint_imports_command(['--no-cache'])"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    if contract is None:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode == 1
        verdicts = [text for text in done.stdout.splitlines() if text.startswith(contract)]
        assert any(" BROKEN" in text for text in verdicts) or "volflow.room" in done.stdout
