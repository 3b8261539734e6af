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
        ("import volflow; volflow.losses", {"torch", "numpy"}),
        ("import volflow; volflow.open", {"numpy", "zarr"}),
        ("import volflow.store.journal.journal, volflow.store.formats.sources", {"numpy", "zarr"}),
        ("import volflow.report.facts.info", {"numpy", "zarr"}),
        ("import volflow.sampling.cases.find_cases", {"numpy", "zarr"}),
        ("import volflow.report.pictures.preview", {"numpy", "zarr"}),
        ("import volflow.report.pictures.compare", {"numpy", "zarr"}),
        ("import volflow; volflow.view, volflow.napari_snippet", {"numpy", "zarr"}),
        ("import volflow.cli", {"rich", "typer"}),
        ("from volflow.cli import run; run(['predict', '--help'])", {"rich", "typer"}),
        ("from volflow.cli import run; run(['--help'])", {"rich", "typer"}),
        ("import volflow.option, volflow.infer.predict_options", set()),
        ("import volflow; volflow.convert", {"numpy", "zarr", "dask", "distributed", "rich"}),
        ("import volflow; volflow.statistics", {"numpy", "zarr", "dask", "distributed", "rich"}),
    ],
)
def test_import_loads_only(statement, allowed, fresh_python):
    printed = fresh_python(CODE.format(statement=statement, heavy=HEAVY))
    loaded = set(printed.splitlines()[-1].split())
    # Dask itself loads xarray where it is installed.
    assert loaded <= allowed | ({"xarray"} if "dask" in allowed else set())


UNUSED = (
    "torch._dynamo", "torch._inductor", "matplotlib", "bokeh", "pandas", "scipy.sparse", "xarray",
    "dask.array", "dask.dataframe", "distributed.dashboard.core",
)  # fmt: skip

NET = "torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.InstanceNorm3d(2)).eval()"
SCAN = "numpy.arange(4096, dtype='f4').reshape(16, 16, 16)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "from volflow.cli import run; run(['--version']); run(['--help'])",
        f"vf.predict({SCAN}, {NET}, 'out.zarr', patch=8, progress=False)",
        f"vf.predict({SCAN}, {NET}, 'out.zarr', blend='exact', progress=False)",
        f"vf.halo({NET})",
    ],
    ids=["command", "patches", "exact", "halo"],
)
def test_nothing_is_imported_that_takes_seconds_and_is_not_used(statement, fresh_python):
    """A process that has little to do must not wait for the imports of what it does not do."""
    code = f"import numpy, volflow as vf\n{'import torch' if 'torch' in statement else ''}"
    printed = fresh_python(CODE.format(statement=f"{code}\n{statement}", heavy=UNUSED))
    assert printed.splitlines()[-1] == ""


# What breaks each contract, and how import-linter names it.
BREACHES = [
    ("A floor imports", "geometry/extra.py", "volflow.store.volume"),
    ("A floor imports", "errors.py", "volflow.geometry.roi"),
    ("A floor imports", "store/extra.py", "volflow.engine.run"),
    ("No folder and no room", "errors.py", "volflow.geometry.roi"),
    ("torch belongs", "engine/extra.py", "torch"),
    ("dask belongs", "store/extra.py", "dask"),
    ("the driver decides without Dask", "engine/driver.py", "volflow.engine.plan"),
    ("geometry is pure", "geometry/extra.py", "zarr"),
]


def lint(tree):
    """What import-linter says of a tree: its exit code and the contracts' verdicts and reasons."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command"
    return subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; lint_imports_command(['--no-cache'])"],
        capture_output=True, text=True, check=False, cwd=tree,
    )  # fmt: skip


@pytest.mark.slow
def test_every_contract_holds(root):
    done = lint(root)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_every_contract_fails_where_it_is_broken(root, tmp_path):
    shutil.copytree(
        root / "volflow", tmp_path / "volflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / "volflow" / "room.py").touch()  # a module that no floor holds
    for _, file, module in BREACHES:
        with (tmp_path / "volflow" / file).open("a") as text:
            text.write(f"def breach():\n    import {module}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    for contract, file, module in BREACHES:
        verdicts = [line for line in done.stdout.splitlines() if line.startswith(contract)]
        assert any(" BROKEN" in line for line in verdicts), contract
        if not contract.startswith("No folder"):  # which names folders only
            importer = f"volflow.{file.removesuffix('.py').replace('/', '.')}"
            assert f"{importer} -> {module}" in done.stdout
    assert "- volflow.room" in done.stdout
