"""The huge demo: what it refuses, how light it is, its cap; the journey is in tests/chaos."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import volflow.demo.huge as huge
import volflow.demo.steps as steps
from volflow.cli import run
from volflow.demo.curve import draw_memory
from volflow.demo.steps import Watched
from volflow.demo.torso import SHAPE
from volflow.errors import InvalidInput
from volflow.store.journal.journal import Journal, Record

MIB = 2**20


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a command was started")

    monkeypatch.setattr(huge.Guard, "run", refuse)


def test_another_word_is_one_line(capsys):
    assert run(["demo", "tiny"]) == 2
    assert capsys.readouterr().err == (
        "volflow: there is no demo 'tiny'; run volflow demo, or volflow demo huge for the large"
        " one\n"
    )


def test_a_full_disk_is_refused_before_work(nothing_runs, monkeypatch, tmp_path, capsys):
    disk = SimpleNamespace(free=300 * MIB)
    monkeypatch.setattr(huge.shutil, "disk_usage", lambda folder: disk)
    assert run(["demo", "huge", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"volflow: the demo may take 1.37 GiB and {tmp_path / 'out'} has 300 MiB free; make room,"
        " or choose another folder with --out\n"
    )


def test_what_is_there_already_needs_no_more_room(monkeypatch, tmp_path):
    needed = huge.VOXEL_BYTES * math.prod(SHAPE) + huge.ROOM_BYTES
    (tmp_path / "ct.zarr").mkdir()
    (tmp_path / "ct.zarr" / "shard").write_bytes(bytes(1000))
    (tmp_path / "other").write_bytes(bytes(1000))
    disk = SimpleNamespace(free=needed - 1000)
    monkeypatch.setattr(huge.shutil, "disk_usage", lambda folder: disk)
    huge._check_room(tmp_path, SHAPE)
    disk.free -= 1
    with pytest.raises(InvalidInput, match="make room"):
        huge._check_room(tmp_path, SHAPE)


def test_a_folder_that_cannot_be_made_is_refused(nothing_runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["demo", "huge", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"volflow: the folder {tmp_path / 'file'} cannot be")


def test_what_draws_is_asked_for_first(nothing_runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(huge.importlib.util, "find_spec", lambda name: None)
    assert run(["demo", "huge", "--out", str(tmp_path / "out")]) == 2
    assert 'matplotlib, and it is missing; pip install "volflow[demo]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_foreign_file_in_the_way_is_one_line(tmp_path, capsys):
    (tmp_path / "ct.zarr").mkdir()
    (tmp_path / "ct.zarr" / "mine").touch()
    assert run(["demo", "huge", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"volflow: scan failed: {tmp_path / 'ct.zarr'} exists; choose another name or"
        " overwrite=True\n"
    )


def test_other_systems_are_refused(nothing_runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(steps, "PROC", tmp_path)
    assert run(["demo", "huge", "--out", str(tmp_path / "out")]) == 2
    assert "needs Linux's /proc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "cap", "memory"),
    [
        (367, 768, 352),
        (369, 768, 336),
        (448, 768, 272),
        (449, 1024, 352),
        (649, 1024, 320),
        (712, 1024, 256),
        (2000, 1024, 16),
    ],
)
def test_cap_and_memory_leave_room_for_torch_itself(base, cap, memory):
    assert huge._budget(base * MIB) == (cap * MIB, memory * MIB)


class TestPlan:
    def plan(self, bases, capsys):
        """The words and what was said, where successive plans take so many MiB."""
        peaks = iter(bases)
        asked = []

        def run(name, command):
            asked.append(command[-2 if name == "plan" else -1])
            return SimpleNamespace(peak_bytes=next(peaks) * MIB, output="predict\n  peak memory 1")

        guard = SimpleNamespace(run=run, cap_bytes=768 * MIB)
        words = huge._plan(guard, ["predict"], SimpleNamespace(exists=lambda: True))
        return words, guard.cap_bytes // MIB, capsys.readouterr().out

    def test_it_is_made_once_where_all_fits(self, capsys):
        words, cap, told = self.plan([367], capsys)
        assert (words, cap) == (["predict", "--memory", "352MiB", "--device", "cpu"], 768)
        assert "$ volflow predict --memory 352MiB --device cpu --plan\n" in told
        assert "             peak memory 1\n" in told

    def test_and_again_with_less_where_torch_is_large(self, capsys):
        words, cap, told = self.plan([712, 700], capsys)
        assert (words[2], cap) == ("256MiB", 1024)
        assert told.count("--memory") == 1


class TestKill:
    """Predict is killed once half of its blocks are done; a demo begun before goes on."""

    @pytest.fixture
    def journal(self, tmp_path):
        (tmp_path / "out.zarr.volflow").mkdir()
        journal = Journal(tmp_path / "out.zarr.volflow")
        journal.begin(Record("predict", settings={"grid": [5, 1, 1]}))
        return journal

    def guard(self, journal, adds):
        """Instead of predict: does some blocks, unless it is killed before."""

        def run(name, command, until, state):
            assert name == "predict"
            assert command[-1] == "--quiet"
            for block in adds:
                journal.mark(block, [], {})
                if until():
                    return SimpleNamespace(ended="stopped", seconds=1, peak_bytes=MIB)
            return SimpleNamespace(ended="done", seconds=1, peak_bytes=MIB)

        return SimpleNamespace(run=run)

    def test_at_half(self, journal, capsys):
        kept = huge._predict_and_kill(self.guard(journal, range(5)), ["predict"], journal)
        assert sorted(kept) == [0, 1, 2]
        assert "killed (SIGKILL) with 3 of 5 blocks done" in capsys.readouterr().out

    def test_begun_before_half(self, journal, capsys):
        journal.mark(4, [], {})
        kept = huge._predict_and_kill(self.guard(journal, range(4)), ["predict"], journal)
        assert sorted(kept) == [0, 1, 4]
        assert "started before: 1 of 5 blocks done" in capsys.readouterr().out

    def test_begun_before_and_beyond_half(self, journal, capsys, nothing_runs):
        for block in (0, 1, 3):
            journal.mark(block, [], {})
        kept = huge._predict_and_kill(huge.Guard(MIB), ["predict"], journal)
        assert sorted(kept) == [0, 1, 3]
        assert "started before: 3 of 5 blocks done" in capsys.readouterr().out


def test_the_watching_process_stays_light(fresh_python):
    code = "import sys, volflow.demo.huge; print(*sys.modules)"
    loaded = set(fresh_python(code).split())
    assert not loaded & {"torch", "dask", "distributed", "zarr", "matplotlib"}


class TestCurve:
    def draw(self):
        curve = tuple((second / 10, 400 * MIB) for second in range(100))
        scan = ((0.0, 50 * MIB), (2.0, 300 * MIB))
        seen = [
            ("scan", 0.0, Watched("done", 2.0, 310 * MIB, scan, "")),
            ("predict", 2.0, Watched("stopped", 10.0, 640 * MIB, curve, "")),
            ("empty", 12.0, Watched("done", 0.0, 0, (), "")),
        ]
        colors = {"predict": "#E69F00"}
        return draw_memory(seen, colors, 768 * MIB, 1069 * MIB, "a title", "more")

    def test_says_all_that_matters(self):
        figure = self.draw()
        (axes,) = figure.axes
        texts = {text.get_text() for text in axes.texts}
        assert texts == {
            "the volume alone: 1.04 GiB", "cap: 768 MiB, killed above", "scan", "predict",
            "killed at half", "peak 640 MiB",
        }  # fmt: skip
        assert [text.get_text() for text in figure.texts] == ["a title", "more"]

    def test_is_to_scale(self):
        (axes,) = self.draw().axes
        levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
        assert {768, 1069} <= set(levels)
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > 1069
        assert axes.get_xlim()[1] == pytest.approx(11.9, rel=0.05)

    def test_nothing_is_written_over_another_text(self):
        figure = self.draw()
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in (*figure.axes[0].texts, *figure.texts)]
        page = figure.bbox
        for n, one in enumerate(boxes):
            assert page.x0 <= one.x0 <= one.x1 <= page.x1
            assert page.y0 <= one.y0 <= one.y1 <= page.y1
            assert not any(one.overlaps(other) for other in boxes[n + 1 :])
