"""Slips with a cluster: other versions, folders and modules that workers do not see."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf
from tests.processes import dask_processes, joining, whose
from tests.relay import Fault, objects
from volflow.cli import run as command
from volflow.engine.cluster import connect
from volflow.engine.clusters import sight, skew
from volflow.engine.clusters.skew import PARTS, compare_versions, versions_here
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.errors import InvalidInput

NUMBERS = st.tuples(*[st.integers(0, 30)] * 3)


def claims(folder: Path, **versions: str) -> dict[str, str]:
    """An environment whose packages say that they have other versions than they have."""
    for name, version in versions.items():
        place = folder / f"{name}-{version}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(vf.__file__).parents[1])])}


def without_volflow(folder: Path) -> dict[str, str]:
    """An environment in which volflow cannot be imported."""
    hidden = folder / "without" / "volflow" / "__init__.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text('raise ModuleNotFoundError("No module named volflow", name="volflow")')
    return {"PYTHONPATH": str(hidden.parents[1])}


class TestVersions:
    @pytest.mark.slow
    def test_ours_are_known_without_imports(self, fresh_python):
        told = fresh_python(
            "from volflow.engine.clusters.skew import versions_here\n"
            "import sys\n"
            "print(sorted(versions_here()), 'torch' in sys.modules)"
        )
        assert told.strip() == f"{sorted(PARTS)} False"
        assert versions_here()["python"] == "{}.{}.{}".format(*sys.version_info)

    @given(st.sampled_from(sorted(PARTS)), NUMBERS, NUMBERS)
    def test_leading_parts_break_and_others_are_told(self, name, ours, theirs):
        text = [".".join(map(str, numbers)) for numbers in (ours, theirs)]
        breaking, harmless = compare_versions({name: text[0]}, {name: text[1]})
        same = ours[: PARTS[name]] == theirs[: PARTS[name]]
        assert breaking == ({} if same else {name: text[1]})
        assert harmless == ({name: text[1]} if same and ours != theirs else {})

    def test_what_only_one_of_them_has_is_no_difference(self):
        assert compare_versions({"dask": "1.0"}, {"torch": "2.0"}) == ({}, {})

    @pytest.mark.slow
    def test_workers_of_another_torch_are_refused_naming_both(self, tmp_path, root, monkeypatch):
        other = claims(tmp_path / "fake", torch="1.99.0")
        with dask_processes(tmp_path, root, environment=other) as address:
            with pytest.raises(InvalidInput) as refused:
                connect(address).__enter__()
            line = str(refused.value)
            assert line.startswith("the worker tcp://127.0.0.1:")
            assert line.endswith(
                f" of the Dask cluster at {address} has torch 1.99.0 and this process"
                f" {versions_here()['torch']}, between which objects do not travel; install the"
                " same version for both"
            )

    @pytest.mark.slow
    def test_one_of_another_torch_that_joins_later_gets_no_block_and_a_line(
        self, tmp_path, root, caplog
    ):
        other = claims(tmp_path / "fake", torch="1.99.0")
        runs = tuple((n,) for n in range(40))
        plan = Plan("whose", whose, None, runs, len(runs), "blocks", 1, 2**30)
        with dask_processes(tmp_path, root) as address, connect(address) as client:
            (first,) = client.scheduler_info(n_workers=-1)["workers"]
            with (
                joining(client, tmp_path, {"other": other}),
                caplog.at_level(logging.WARNING, logger="volflow"),
            ):
                results = run(plan, cluster=client, progress=False).results
        assert {*results.values()} == {first}
        assert len(results) == len(runs)
        (line,) = (text for text in caplog.messages if "gets no block" in text)
        assert line.endswith(
            " gets no block: it has torch 1.99.0 and this process"
            f" {versions_here()['torch']}; install the same version for both"
        )

    @pytest.mark.slow
    def test_so_does_one_without_volflow_and_one_like_ours_gets_some(self, tmp_path, root, caplog):
        paths = {"bare": without_volflow(tmp_path), "alike": {"PYTHONPATH": str(root)}}
        runs = tuple((n,) for n in range(300))
        plan = Plan("whose", whose, None, runs, len(runs), "blocks", 1, 2**30)
        with (
            dask_processes(tmp_path, root) as address,
            connect(address) as client,
            joining(client, tmp_path, paths),
        ):
            with caplog.at_level(logging.WARNING, logger="volflow"):
                results = run(plan, cluster=client, progress=False).results
            names = {
                address: one["name"]
                for address, one in client.scheduler_info(n_workers=-1)["workers"].items()
            }
        did = {names[address] for address in results.values()}
        assert "alike" in did
        assert "bare" not in did
        assert len(did) == 2
        (line,) = (text for text in caplog.messages if "gets no block" in text)
        assert "it cannot run volflow as this process has it" in line

    @pytest.mark.slow
    def test_other_differences_are_told_once_a_connection(self, tmp_path, root, caplog):
        ours = versions_here()["numpy"]
        other = claims(tmp_path / "fake", numpy=f"{ours.split('.')[0]}.99.0")
        with (
            caplog.at_level(logging.WARNING, logger="volflow"),
            dask_processes(tmp_path, root, environment=other) as address,
            connect(address) as client,
            connect(client) as inner,
        ):
            assert inner.submit(sum, [1, 2]).result() == 3
        told = [text for text in caplog.messages if "results may differ" in text]
        assert told == [
            f"the cluster has numpy {ours.split('.')[0]}.99.0, this process {ours}: results may"
            " differ by rounding"
        ]

    @pytest.mark.slow
    def test_workers_without_volflow_are_refused(self, tmp_path, root):
        with (
            dask_processes(tmp_path, root, environment=without_volflow(tmp_path)) as address,
            pytest.raises(InvalidInput, match=r"cannot run volflow .* install the same"),
        ):
            connect(address).__enter__()

    def test_the_scheduler_is_compared_too(self, monkeypatch):
        answers = {"": {"distributed": "2020.1.0"}, "tcp://a": {}}
        monkeypatch.setattr(skew, "_versions", lambda client: answers)
        monkeypatch.setattr(skew, "is_embedded", lambda client: False)
        with pytest.raises(InvalidInput, match=r"^the scheduler of the Dask cluster at .* has dis"):
            connect("threads").__enter__()


@pytest.fixture
def own_folder(tmp_path):
    """A folder under a path that leads elsewhere in any other process."""
    handle = os.open(tmp_path, os.O_RDONLY)
    yield Path(f"/proc/self/fd/{handle}")
    os.close(handle)


@pytest.fixture(scope="module")
def processes():
    with connect(1) as client:
        yield client


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
class TestSight:
    def test_an_output_that_workers_do_not_see_is_refused_before_any_work(
        self, processes, own_folder, tmp_path
    ):
        scan = vf.convert(np.ones((8, 8, 8), "float32"), tmp_path / "scan.zarr", progress=False)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InvalidInput) as refused:
            vf.predict(
                scan, "tests.nets:slow", own_folder / "out.zarr", patch=8, cluster=processes,
                memory="1GiB", progress=False,
            )  # fmt: skip
        assert f"on 127.0.0.1 does not see {own_folder}, which this process does" in str(
            refused.value
        )
        assert "put it on a file system that all workers share" in str(refused.value)
        assert sorted(tmp_path.rglob("*")) == before

    def test_an_input_that_they_do_not_see_is_named(self, processes, own_folder, tmp_path):
        np.save(tmp_path / "scan.npy", np.ones((8, 8, 8), "float32"))
        with pytest.raises(InvalidInput, match=r"cannot read /proc/self/fd/\d+/scan.npy"):
            vf.convert(
                own_folder / "scan.npy", tmp_path / "scan.zarr", cluster=processes, progress=False
            )
        assert [path.name for path in tmp_path.iterdir()] == ["scan.npy"]

    def test_what_all_see_passes_and_nothing_is_left(self, processes, tmp_path):
        np.save(tmp_path / "scan.npy", np.ones((8, 8, 8), "float32"))
        vf.convert(tmp_path / "scan.npy", tmp_path / "scan.zarr", cluster=processes, progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "scan.npy", "scan.zarr", "scan.zarr.volflow",
        ]  # fmt: skip


class TestUnseen:
    def test_what_is_missing_is_named(self, tmp_path):
        mark = tmp_path / "mark"
        assert sight.unseen([], str(mark)) == (str(tmp_path), "does not see")
        mark.touch()
        assert sight.unseen([], str(mark)) == sight.unseen([str(tmp_path)], "") == ("", "")
        assert sight.unseen([str(tmp_path / "a")], str(mark)) == (
            str(tmp_path / "a"), "cannot read",
        )  # fmt: skip

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "mark").touch()
        monkeypatch.setattr(os, "access", lambda path, how: how == os.R_OK)
        found = sight.unseen([str(tmp_path)], str(tmp_path / "mark"))
        assert found == (str(tmp_path), "cannot write to")

    def test_a_store_is_written_to_for_a_moment(self, s3, monkeypatch):
        assert sight.unwritable("s3://bucket/out.zarr") == ""
        assert objects("s3://bucket") == {}
        assert sight.unwritable("s3://none/out.zarr") == (
            "s3://none/out.zarr.volflow cannot be used: the bucket does not exist"
        )
        s3.fault = lambda request: Fault("status", 403) if request.method == "PUT" else None
        assert "s3://bucket/out.zarr: permission denied" in sight.unwritable("s3://bucket/out.zarr")

    def test_nothing_but_paths_is_looked_for(self):
        assert sight._local(np.ones(3)) is sight._local("s3://bucket/a.zarr") is None
        assert sight._local("a.zarr") == str(Path.cwd() / "a.zarr")
        assert sight._local("file:///scans/a.zarr") == "/scans/a.zarr"
        assert sight._local("/scans/a.h5::raw") == "/scans/a.h5"


@pytest.mark.slow
def test_a_model_that_only_the_driver_can_import_is_one_line(tmp_path, root, monkeypatch, capfd):
    """The command is run beside the module; the workers run elsewhere."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "own_net.py").write_text("import torch\n\n\ndef make():\n    return Own()\n\n\n"
                                     "class Own(torch.nn.Identity):\n    pass\n")  # fmt: skip
    vf.convert(np.ones((8, 8, 8), "float32"), here / "scan.zarr", progress=False)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    with dask_processes(there, root) as address:
        code = command(
            [
                "predict", "scan.zarr", "out.zarr", "--model", "own_net:make", "--patch", "8",
                "--memory", "1GiB", "--cluster", address, "--quiet",
            ]
        )  # fmt: skip
    line = capfd.readouterr().err
    assert (code, line.count("\n")) == (2, 1)
    assert "own_net" in line
    assert not (here / "out.zarr").exists()
