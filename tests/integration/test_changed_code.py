"""Code of a model or of a Dask graph is edited between two runs, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import volflow as vf

CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"
NET = "import torch\nimport helper\ndef net(image):\n    return helper.scaled(image)\n"
HELPER = "def scaled(image):\n    return image * {factor}\n"


@pytest.fixture
def predict(tmp_path, root):
    """The command that a user types, in the folder of the model."""

    def run(*flags):
        return subprocess.run(
            [
                sys.executable, "-c", CLI, "predict", "scan.npy", "out.zarr",
                "--model=net:net", "--patch=8", "--cluster=threads", *flags,
            ],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run


def test_an_edited_helper_never_gives_the_old_result(tmp_path, predict):
    np.save(tmp_path / "scan.npy", np.ones((8, 8, 8), "f4"))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text(HELPER.format(factor=2))
    first = predict()
    assert first.returncode == 0, first.stderr
    assert (vf.open(tmp_path / "out.zarr")[:] == 2).all()

    (tmp_path / "helper.py").write_text(HELPER.format(factor=3))
    second = predict()
    assert second.returncode == 2, second.stderr
    said = " ".join(second.stderr.split())
    assert "out.zarr was started with different inputs or settings: code.helper: " in said
    assert "overwrite" in said
    assert "net:" not in said
    assert "Traceback" not in said

    third = predict("--overwrite")
    assert third.returncode == 0, third.stderr
    assert (vf.open(tmp_path / "out.zarr")[:] == 3).all()


GRAPH = """
import dask.array as da
import filters
import volflow as vf
{how}
try:
    vf.write(array, "out.zarr", progress=False)
except vf.errors.ResumeRefused as refused:
    print(refused)
"""


@pytest.mark.parametrize(
    "how",
    [
        "array = da.ones((8, 8, 8)).map_blocks(filters.scaled)",
        "array = da.ones((8, 8, 8)).map_blocks(lambda block: filters.scaled(block))",
        "array = da.ones((8, 8, 8)).map_blocks(filters.Scaled())",
    ],
)
def test_an_edited_function_of_a_dask_graph_never_gives_the_old_result(tmp_path, how, fresh_python):
    (tmp_path / "filters.py").write_text(
        "import helper\ndef scaled(block):\n    return helper.scaled(block)\n"
        "class Scaled:\n    def __call__(self, block):\n        return helper.scaled(block)\n"
    )
    script = GRAPH.format(how=how)
    for factor, answer in ((2, ""), (2, ""), (3, "out.zarr was started with different")):
        (tmp_path / "helper.py").write_text(HELPER.format(factor=factor))
        said = fresh_python(script)
        assert answer in said
        assert bool(said) == bool(answer)
        assert (vf.open(tmp_path / "out.zarr")[:] == 2).all()
