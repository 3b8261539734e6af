"""Pipelines run: skipped where unchanged, recorded, resumed after a failure, one at a time."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import volflow as vf
from volflow.cli import run as command
from volflow.errors import Damaged, InvalidInput, Locked, ResumeRefused, RunFailed
from volflow.jobs.pipeline.run_record import RunRecord
from volflow.store.journal.journal import Journal

PIPELINE = """\
variables: {input: scan.npy, chunk: 8}
record: run.jsonl
steps:
  - name: scan
    convert:
      source: ${input}
      out: scan.zarr
      chunk: ${chunk}
      shard: 16
  - name: coarse
    pyramid: {volume: scan.zarr, levels: 1}
  - name: check
    verify: {path: scan.zarr}
  - name: file
    export: {volume: scan.zarr, out: back.npy}
"""
NAMES = ["scan", "coarse", "check", "file"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current one, with a scan and a pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    np.save("scan.npy", np.arange(16 * 20 * 24, dtype="uint16").reshape(16, 20, 24))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return tmp_path


@pytest.fixture
def module(folder, request, monkeypatch):
    """Writes a module of the user's, which is forgotten again.

    Python takes one of the same second and the same size for what it has compiled before.
    """
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"steps_of_{request.node.name.split('[')[0]}"

    def write(code):
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop(name, None)


def ran(*args, **options):
    """The names of the steps that ran."""
    done = vf.run(*args, progress=False, **options)
    assert {one.outcome for one in done.steps} <= {"done", "skipped"}
    return [one.name for one in done.steps if one.outcome == "done"]


def events(path="run.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def later(path):
    """Another time of change, whatever the clock's grain."""
    stat = Path(path).stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


class TestSkip:
    @pytest.mark.slow
    def test_nothing_changed_and_nothing_runs(self):
        assert ran("p.yaml") == NAMES
        assert np.array_equal(np.load("back.npy"), np.load("scan.npy"))
        assert ran("p.yaml") == []

    @pytest.mark.slow
    def test_a_changed_input_is_named_and_redone_where_that_is_allowed(self, capsys):
        ran("p.yaml")
        np.save("scan.npy", np.load("scan.npy")[::-1])
        later("scan.npy")
        with pytest.raises(
            ResumeRefused, match=r"p.yaml:5: step scan: .*scan.zarr was started with different"
        ):
            vf.run("p.yaml")
        assert (
            "step 1 of 4, scan: convert runs; changed: inputs.scan.npy: " in capsys.readouterr().err
        )
        assert ran("p.yaml", overwrite=True) == NAMES
        assert np.array_equal(np.load("back.npy"), np.load("scan.npy"))

    @pytest.mark.slow
    def test_one_image_of_a_folder(self, folder):
        pytest.importorskip("tensorstore")
        from tests.unit.store.formats.test_chunked import write_n5

        write_n5(folder / "a.n5/raw", np.load("scan.npy"))
        write_n5(folder / "a.n5/other", np.load("scan.npy"))
        assert ran("p.yaml", input="a.n5::raw") == NAMES
        later("a.n5/other/0/0/0")
        assert ran("p.yaml", input="a.n5::raw") == []
        later("a.n5/raw/0/0/0")
        assert ran("p.yaml", input="a.n5::raw", overwrite=True) == NAMES
        made = vf.predict("a.n5::raw", "torch.nn:Identity", "p.zarr", patch=16, progress=False)
        assert np.allclose(made[0], np.load("scan.npy"))

    @pytest.mark.slow
    def test_voxels_in_a_file_of_their_own(self):
        scan = np.load("scan.npy")
        Path("a.mhd").write_text(
            f"NDims = 3\nDimSize = {' '.join(map(str, scan.shape[::-1]))}\n"
            "ElementType = MET_FLOAT\nElementDataFile = a.raw\n"
        )
        Path("a.raw").write_bytes(scan.astype("f4").tobytes())
        assert ran("p.yaml", input="a.mhd") == NAMES
        assert ran("p.yaml", input="a.mhd") == []
        later("a.raw")
        assert ran("p.yaml", input="a.mhd", overwrite=True) == NAMES

    @pytest.mark.slow
    def test_a_changed_setting(self):
        ran("p.yaml")
        with pytest.raises(ResumeRefused, match=r"step scan: "):
            vf.run("p.yaml", chunk=16, progress=False)
        assert ran("p.yaml", chunk=16, overwrite=True) == NAMES
        assert vf.open("scan.zarr").chunks == (16, 16, 16)

    def test_settings_that_change_no_voxel_change_nothing(self):
        ran("p.yaml")
        assert ran("p.yaml", memory="1GiB", cluster="threads", overwrite=True) == []

    def test_a_missing_output(self, folder):
        ran("p.yaml")
        (folder / "back.npy").unlink()
        assert ran("p.yaml") == ["file"]
        assert (folder / "back.npy").exists()

    @pytest.mark.slow
    def test_levels_that_another_made(self):
        ran("p.yaml")
        vf.pyramid("scan.zarr", levels=2, progress=False)
        assert ran("p.yaml") == ["coarse"]
        assert len(vf.open("scan.zarr").levels) == 2

    @pytest.mark.slow
    def test_a_volume_that_was_edited_is_computed_anew_where_it_differs(self, folder):
        ran("p.yaml")
        before = vf.open("scan.zarr")[:]
        shard = folder / "scan.zarr" / "0" / "c" / "0" / "0" / "0"
        shard.write_bytes(shard.read_bytes()[::-1])
        done = vf.run("p.yaml", progress=False)
        assert done.steps[0].why == "scan.zarr is not as it was written"
        assert np.array_equal(vf.open("scan.zarr")[:], before)
        assert vf.verify("scan.zarr").ok

    @pytest.mark.slow
    def test_a_file_that_was_edited_is_not_destroyed(self, folder):
        ran("p.yaml")
        (folder / "back.npy").write_bytes(b"mine")
        with pytest.raises(InvalidInput, match=r"p.yaml:15: step file: .*is not what was exported"):
            vf.run("p.yaml", progress=False)
        assert (folder / "back.npy").read_bytes() == b"mine"
        assert ran("p.yaml", overwrite=True) == ["file"]

    def test_what_cannot_be_identified_is_never_skipped(self, module, folder, capsys):
        name = module("def note(): pass\n")
        (folder / "p.yaml").write_text(f"record: r.jsonl\nsteps: [{{name: a, {name}:note: {{}}}}]")
        assert [ran("p.yaml"), ran("p.yaml")] == [["a"], ["a"]]
        vf.run("p.yaml")
        assert "what it writes is not known, as it has no setting out" in capsys.readouterr().err


class TestFunctions:
    CODE = """
        import volflow as vf

        def bright(scan: vf.Volume, least: int, factor: float = {factor}):
            assert isinstance(scan, vf.Volume)
            return (scan.dask() > least * factor).astype("uint8")
    """

    def write(self, folder, module, factor=1, **more):
        name = module(self.CODE.format(factor=factor))
        settings = {"scan": "scan.zarr", "least": 100, "out": "mask.zarr", "like": "scan.zarr"}
        (folder / "p.yaml").write_text(
            json.dumps(
                {
                    "steps": [
                        {"name": "scan", "convert": {"source": "scan.npy", "out": "scan.zarr"}},
                        {"name": "mask", f"{name}:bright": {**settings, **more}},
                    ]
                }
            )
        )

    def test_a_lazy_array_that_it_returns_is_stored(self, folder, module):
        self.write(folder, module)
        assert ran("p.yaml") == ["scan", "mask"]
        assert np.array_equal(vf.open("mask.zarr")[:], np.load("scan.npy") > 100)
        assert vf.open("mask.zarr").shards == vf.open("scan.zarr").shards
        assert ran("p.yaml") == []

    def test_its_changed_code_runs_again(self, folder, module):
        self.write(folder, module)
        ran("p.yaml")
        self.write(folder, module, factor=2)
        assert ran("p.yaml", overwrite=True) == ["mask"]
        assert np.array_equal(vf.open("mask.zarr")[:], np.load("scan.npy") > 200)

    def test_its_settings_are_checked_by_its_annotations(self, folder, module):
        self.write(folder, module, least="lots", fctor=2)
        with pytest.raises(InvalidInput) as refused:
            vf.run("p.yaml")
        assert "least must be a whole number, given 'lots'" in str(refused.value)
        assert "bright has no setting 'fctor'; did you mean 'factor'?" in str(refused.value)

    def test_its_error_is_one_line_with_the_step(self, folder, module):
        name = module("def fails(out): raise KeyError('gone')\n")
        text = f"steps:\n  - name: a\n    {name}:fails: {{out: a.txt}}\n"
        (folder / "p.yaml").write_text(text)
        with pytest.raises(
            RunFailed, match=r"^p.yaml:3: step a: \S+:fails raised KeyError: 'gone'$"
        ):
            vf.run("p.yaml", progress=False)

    def test_what_it_was_to_write_must_be_there(self, folder, module):
        name = module("def idles(out): pass\n")
        (folder / "p.yaml").write_text(f"steps: [{{name: a, {name}:idles: {{out: a.txt}}}}]")
        with pytest.raises(RunFailed, match=r"step a: it ended, and wrote no a.txt"):
            vf.run("p.yaml", progress=False)
        assert events("a.txt.run.jsonl")[-1]["outcome"] == "failed"

    def test_all_steps_share_one_client(self, folder, module):
        code = """
            import pathlib
            def tell(out, cluster=None, memory=None):
                pathlib.Path(out).write_text(f"{id(cluster)} {type(cluster).__name__} {memory}")
        """
        name = module(code)
        steps = [{"name": n, f"{name}:tell": {"out": n}} for n in ("one", "two")]
        (folder / "p.yaml").write_text(json.dumps({"memory": "1GiB", "steps": steps}))
        assert ran("p.yaml") == ["one", "two"]
        told = (folder / "one").read_text()
        assert told == (folder / "two").read_text()
        assert told.split()[1:] == ["Client", "1GiB"]
        steps[0][f"{name}:tell"]["memory"] = "2GiB"
        (folder / "p.yaml").write_text(json.dumps({"memory": "1GiB", "steps": steps}))
        assert ran("p.yaml") == []  # it changes no voxel
        (folder / "one").unlink()
        ran("p.yaml")
        assert (folder / "one").read_text().endswith(" 2GiB")


class TestRecord:
    def test_it_says_what_ran_with_what_and_how_it_ended(self):
        vf.run("p.yaml", progress=False)
        first, *rest = events()
        assert first["event"] == "run"
        assert first["versions"]["volflow"] == vf.__version__
        assert [(one["event"], one["step"]) for one in rest] == [
            pair for name in NAMES for pair in (("begin", name), ("end", name))
        ]
        begin, end = rest[:2]
        assert begin["settings"] == {
            "source": "scan.npy", "out": "scan.zarr", "chunk": 8, "shard": 16
        }  # fmt: skip
        assert begin["fingerprint"] == end["fingerprint"]
        assert end["outcome"] == "done"
        assert end["seconds"] > 0
        assert end["outputs"].keys() == {"scan.zarr"}
        assert all(one["time"] for one in rest)
        vf.run("p.yaml", progress=False)
        assert [one.get("outcome") for one in events()[-5:]] == [None, *["skipped"] * 4]

    @pytest.mark.slow
    def test_a_torn_line_spoils_no_other(self, folder):
        vf.run("p.yaml", progress=False)
        kept = (folder / "run.jsonl").read_bytes()
        (folder / "run.jsonl").write_bytes(kept[:-40])
        assert ran("p.yaml") == ["file"]
        assert ran("p.yaml") == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "line", [b"[" * 10_000, b'{"event": "end", "step": "scan"', b"\xff", b"3"]
    )
    def test_lines_of_others_are_passed_over(self, folder, line):
        vf.run("p.yaml", progress=False)
        with (folder / "run.jsonl").open("ab") as file:
            file.write(line + b"\n")
        assert ran("p.yaml") == []


class TestFailures:
    def test_the_same_call_goes_on_after_the_step_that_failed(self, folder):
        (folder / "back.npy").write_bytes(b"mine")
        with pytest.raises(InvalidInput, match=r"p.yaml:15: step file: "):
            vf.run("p.yaml", progress=False)
        failed = events()[-1]
        assert (failed["step"], failed["outcome"], failed["exit_code"]) == ("file", "failed", 2)
        (folder / "back.npy").unlink()
        assert ran("p.yaml") == ["file"]

    @pytest.mark.slow
    def test_a_damaged_output_ends_the_run_with_its_exit_code(self, folder):
        text = "record: r.jsonl\nsteps: [{name: check, verify: {path: scan.zarr}}]"
        ran("p.yaml")
        shard = folder / "scan.zarr" / "0" / "c" / "0" / "0" / "0"
        shard.write_bytes(shard.read_bytes()[::-1])
        (folder / "v.yaml").write_text(text)
        with pytest.raises(Damaged, match=r"v.yaml:2: step check: "):
            vf.run("v.yaml", progress=False)
        assert command(["run", "v.yaml", "-q"]) == 1  # the block is marked undone by now

    def test_an_interrupted_step_is_recorded_and_goes_on(self, folder, module):
        code = """
            import pathlib
            def once(out):
                if not pathlib.Path("tried").exists():
                    pathlib.Path("tried").touch()
                    raise KeyboardInterrupt
                pathlib.Path(out).touch()
        """
        name = module(code)
        (folder / "p.yaml").write_text(f"steps: [{{name: a, {name}:once: {{out: a.txt}}}}]")
        with pytest.raises(KeyboardInterrupt):
            vf.run("p.yaml", progress=False)
        assert events("a.txt.run.jsonl")[-1]["outcome"] == "stopped"
        assert ran("p.yaml") == ["a"]

    @pytest.mark.slow
    def test_a_step_that_may_overwrite_goes_on_where_it_was(self, folder):
        """Else a job that is requeued each night would begin again each night."""
        text = PIPELINE.replace("shard: 16", "shard: 16\n      overwrite: true")
        (folder / "p.yaml").write_text(text)
        ran("p.yaml")
        done = folder / "scan.zarr.volflow" / "done"
        first, *_ = sorted(done.iterdir())
        others = {one: one.stat().st_mtime_ns for one in done.iterdir() if one != first}
        first.unlink()
        with (folder / "run.jsonl").open("a") as file:
            file.write('{"event": "begin", "step": "scan"}\n')
        ran("p.yaml")
        assert others == {one: one.stat().st_mtime_ns for one in others}
        assert first.exists()

    def test_two_at_once_are_one_too_many(self, folder, capsys):
        with RunRecord(folder / "run.jsonl").lock():
            with pytest.raises(Locked, match=r"run.jsonl is being written by process"):
                vf.run("p.yaml")
            assert command(["run", "p.yaml"]) == 4
        assert not (folder / "scan.zarr").exists()
        assert "Traceback" not in capsys.readouterr().err
        assert command(["run", "p.yaml", "-q"]) == 0


class TestPlan:
    def test_it_says_what_would_run_and_writes_nothing(self, folder):
        before = sorted(folder.rglob("*"))
        plan = vf.plan_run("p.yaml")
        assert sorted(folder.rglob("*")) == before
        assert [one.outcome for one in plan.steps] == ["runs"] * 4
        assert "4 blocks in 4 tasks" in plan.describe()
        assert [one.plan is not None for one in plan.steps] == [True, False, False, False]

    @pytest.mark.slow
    def test_it_knows_what_is_done_and_what_follows_from_what(self, folder):
        vf.run("p.yaml", progress=False)
        assert {one.outcome for one in vf.plan_run("p.yaml").steps} == {"skipped"}
        plan = vf.plan_run("p.yaml", chunk=16, overwrite=True)
        assert [one.outcome for one in plan.steps] == ["runs"] * 4
        assert plan.steps[0].why == "changed: settings.chunk: 8 → 16"
        assert plan.steps[2].why == "step scan writes scan.zarr"
        plan = vf.plan_run("p.yaml", chunk=16)
        assert plan.steps[0].why.endswith(
            "8 → 16; what is there is replaced only with overwrite=True (--overwrite)"
        )


class TestCommand:
    def test_it_runs_and_tells(self, capsys):
        assert command(["run", "p.yaml", "--set", "chunk=16", "-q", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [one["outcome"] for one in told["steps"]] == ["done"] * 4
        assert vf.open("scan.zarr").chunks == (16, 16, 16)
        assert command(["run", "p.yaml", "--set", "chunk=16", "--plan"]) == 0
        assert capsys.readouterr().out.count("skipped: unchanged") == 4

    def test_every_mistake_is_a_line(self, folder, capsys):
        (folder / "p.yaml").write_text(PIPELINE.replace("chunk:", "chnk:"))
        assert command(["run", "p.yaml", "--set", "inptu=a"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 3
        assert "p.yaml:8: convert has no setting 'chnk'; did you mean 'chunk'?" in told

    def test_it_prints_the_schema(self, capsys):
        assert command(["run", "--schema"]) == 0
        assert json.loads(capsys.readouterr().out)["required"] == ["steps"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "no pipeline is given"),
            (["p.yaml", "--set", "chunk"], "--set takes NAME=VALUE"),
            (["p.yaml", "--set", "chunk=8", "--set", "chunk=9"], "--set chunk is given twice"),
            (["p.yaml", "--cluster", "moon"], "unknown cluster 'moon'"),
        ],
    )
    def test_slips(self, words, said, capsys):
        assert command(["run", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_prediction_is_what_the_call_gives(folder):
    text = """
    steps:
      - name: scores
        predict:
          volume: scan.npy
          model: torch.nn:Identity
          out: scores.zarr
          patch: 16
          levels: true
    """
    (folder / "p.yaml").write_text(textwrap.dedent(text))
    assert ran("p.yaml") == ["scores"]
    want = vf.predict("scan.npy", "torch.nn:Identity", "other.zarr", patch=16, progress=False)
    assert np.array_equal(vf.open("scores.zarr")[:], want[:])
    assert ran("p.yaml") == []
    assert da.allclose(vf.open("scores.zarr").dask()[0], np.load("scan.npy")).compute()


class TestCases:
    """Here a case is a scan of its own, and the pipeline the one of this file."""

    @pytest.fixture(autouse=True)
    def cases(self, folder):
        for name in ("in", "out"):
            (folder / name).mkdir()
        for case in ("p1", "p2", "p3"):
            np.save(f"in/{case}.npy", np.full((8, 9, 10), int(case[1]), "uint8"))
        text = PIPELINE.replace("run.jsonl", "${out}.jsonl").replace("scan.zarr", "${out}.zarr")
        text = text.replace("back.npy", "${out}.npy").replace(
            "{volume: ${out}.zarr", '{volume: "${out}.zarr"'
        )
        text = text.replace("{path: ${out}.zarr}", '{path: "${out}.zarr"}').replace(
            "out: ${out}.npy}", 'out: "${out}.npy"}'
        )
        (folder / "p.yaml").write_text(text.replace("variables: {", "variables: {out: out/x, "))

    VALUES = {"input": "in/{case}.npy", "out": "out/{case}"}  # noqa: RUF012

    def run(self, **more):
        return vf.run("p.yaml", progress=False, **self.VALUES, **more)

    @pytest.mark.slow
    def test_each_has_its_own_steps_and_record(self, folder):
        table = self.run()
        assert [(row.case, row.status) for row in table] == [(f"p{n}", "done") for n in (1, 2, 3)]
        assert (np.load("out/p2.npy") == 2).all()
        assert len(list(folder.glob("out/*.jsonl"))) == 3
        assert self.run().counts == {"kept": 3}
        np.save("in/p4.npy", np.zeros((8, 8, 8), "uint8"))
        assert self.run().counts == {"done": 1, "kept": 3}

    @pytest.mark.slow
    def test_one_that_fails_stops_no_other(self, folder, capsys):
        (folder / "in" / "p2.npy").write_bytes(b"text")
        words = [word for key, value in self.VALUES.items() for word in ("--set", f"{key}={value}")]
        assert command(["run", "p.yaml", "-q", *words]) == 1
        told = capsys.readouterr().out
        assert "p2  failed: p.yaml:5: step scan: " in told
        assert "3 cases: 1 failed, 2 done" in told
        assert command(["run", "p.yaml", "-q", "--plan", *words]) == 0
        assert "3 cases: 2 kept, 1 new" in capsys.readouterr().out

    @pytest.mark.slow
    def test_other_settings_are_named_and_left(self):
        self.run()
        table = self.run(chunk=4)
        assert table.counts == {"refused": 3}
        assert "was started with different inputs or settings" in table[0].reason
        assert self.run(chunk=4, overwrite=True).counts == {"done": 3}

    def test_what_all_would_write_is_refused(self):
        with pytest.raises(InvalidInput, match=r"out/x.jsonl has no \{case\} in it"):
            vf.run("p.yaml", input="in/{case}.npy", progress=False)

    def test_two_runs_at_once(self, folder):
        with Journal(folder / "out" / "{case}.jsonl.volflow").lock(), pytest.raises(Locked):
            self.run()

    def test_where_there_is_none(self):
        with pytest.raises(InvalidInput, match="no case was found: nothing matches gone/"):
            vf.run("p.yaml", input="gone/{case}.npy", out="out/{case}", progress=False)
