from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from volflow.engine import progress
from volflow.engine.observing.bottleneck import WorkerTime, explain_bottleneck, worker_lines
from volflow.engine.progress import RunState, shown, watched


def state(**changes) -> RunState:
    begun = RunState("predict", "voxels", total_units=1000, total_blocks=4)
    for name, value in changes.items():
        setattr(begun, name, value)
    return begun


def on(monkeypatch, **features) -> io.StringIO:
    """Where progress is shown: a console with these features; returns what is written to it."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=out, **features))
    return out


class TestState:
    def test_adds_up(self):
        one = state()
        one.add(units=250, blocks=1, stages={"read": 1.0, "model": 2.0})
        one.add(units=250, blocks=0, stages={"model": 1.0})
        assert (one.units, one.blocks, one.fraction) == (500, 1, 0.5)
        assert one.stages == {"read": 1.0, "model": 3.0}
        assert one.bottleneck() == "model 75%"

    def test_work_done_twice_never_exceeds_the_whole(self):
        one = state()
        for _ in range(9):
            one.add(units=300, blocks=0, stages={})
        assert one.units == 1000
        assert one.fraction == 1.0

    def test_knows_nothing_before_the_first_step(self):
        assert state().eta_s is None
        assert state().bottleneck() == ""
        assert "left" not in state().line()
        assert "limited by" not in state().line()

    def test_no_work_is_done(self):
        assert RunState("predict", "voxels", 0, 0).fraction == 1.0

    def test_the_time_left_follows_the_mean_rate(self):
        one = state(began_s=time.monotonic() - 30, units=250)
        assert one.eta_s == pytest.approx(90, rel=0.05)

    def test_says_it_all_in_one_line(self):
        one = state(began_s=time.monotonic() - 100, units=250, blocks=1, retries=2)
        one.stages.update({"read": 3.0, "model": 1.0})
        assert one.line() == (
            "1/4 blocks · 2.5 voxels/s · 1:40 elapsed · 5:00 left · limited by read 75% · 2 retried"
        )

    @pytest.mark.parametrize(
        ("rate", "text"),
        [(0.5, "0.5 v"), (999, "999 v"), (1500, "1.5 kv"), (2.5e6, "2.5 Mv"), (3e9, "3 Gv"),
         (4e12, "4 Tv")],
    )  # fmt: skip
    def test_rates_have_prefixes(self, rate, text):
        one = RunState("p", "v", int(1000 * rate), 1, units=int(1000 * rate))
        one.began_s = time.monotonic() - 1000
        assert f" {text}/s " in one.line()

    def test_hours_are_shown(self):
        one = state(began_s=time.monotonic() - 2 * 3600 - 65)
        assert "2:01:05 elapsed" in one.line()


class TestLines:
    @pytest.fixture(autouse=True)
    def in_a_log(self, monkeypatch):
        on(monkeypatch, force_terminal=False)

    @pytest.mark.parametrize("wanted", [None, True])
    def test_prints_where_the_last_line_is_old(self, capsys, monkeypatch, wanted):
        one = state(units=10)
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        with shown(one, wanted) as show:
            show()
            assert capsys.readouterr().err == ""
            now_s += 60
            one.units, one.blocks = 500, 2
            show()
            one.units = 501
            show()
            (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("predict:  50% · 2/4 blocks")

    def test_always_prints_the_last_one(self, capsys):
        with shown(state(units=1000, blocks=4), None):
            pass
        assert capsys.readouterr().err.startswith("predict: 100% · 4/4 blocks")


class TestBar:
    @pytest.mark.parametrize("wanted", [None, True])
    def test_shows_operation_share_and_line(self, monkeypatch, wanted):
        out = on(monkeypatch, width=160, force_terminal=True)
        one = state(units=250, blocks=1)
        with shown(one, wanted) as show:
            show()
            one.units, one.blocks = 1000, 4
        assert "predict" in out.getvalue()
        assert "100%" in out.getvalue()
        assert "4/4 blocks" in out.getvalue()

    @pytest.mark.filterwarnings("ignore:install .ipywidgets. for Jupyter")
    def test_a_notebook_has_one(self, monkeypatch, capsys):
        on(monkeypatch, force_jupyter=True)
        with shown(state(units=250, blocks=1), None) as show:
            show()
        shown_in_cell, lines = capsys.readouterr()
        assert "JupyterRenderable" in shown_in_cell
        assert lines == ""

    def test_is_there_even_for_a_run_without_steps(self, monkeypatch):
        out = on(monkeypatch, width=160, force_terminal=True)
        with shown(state(), None):
            assert out.getvalue() == ""
        assert "0/4 blocks" in out.getvalue()

    def test_an_error_ends_it(self, monkeypatch):
        out = on(monkeypatch, width=160, force_terminal=True)
        with pytest.raises(KeyboardInterrupt), shown(state(units=250, blocks=1), None):
            raise KeyboardInterrupt
        assert "1/4 blocks" in out.getvalue()


def test_silence_on_request(capsys, monkeypatch):
    out = on(monkeypatch, force_terminal=True)
    with shown(state(), False) as show:
        show()
    assert (*capsys.readouterr(), out.getvalue()) == ("", "", "")


def test_a_function_gets_each_state():
    seen = []
    one = state(units=1)
    with shown(one, lambda s: seen.append((s.units, s.blocks))) as show:
        show()
        one.units, one.blocks = 1000, 4
    assert seen == [(1, 0), (1000, 4)]


class TestSummary:
    """After more than seconds, what limited the run; with several workers, each one's share."""

    def after(self, capsys, *, seconds: float, progress=True) -> str:
        one = state(began_s=time.monotonic() - seconds)
        one.add(units=500, blocks=5, stages={"read": 71.0, "model": 29.0}, worker="a:1")
        one.add(units=500, blocks=5, stages={"read": 20.0, "model": 5.0}, worker="b:2")
        with shown(one, progress):
            pass
        return capsys.readouterr().err

    def test_of_a_long_run(self, capsys, monkeypatch):
        on(monkeypatch, force_terminal=False)
        _, said, *workers = self.after(capsys, seconds=60).splitlines()
        assert said.startswith(
            "predict: reading and decoding took 73% of the workers' time; larger"
        )
        assert said.endswith("a:1 takes 4.0 times as long per block as the others")
        assert [line.split()[0] for line in workers] == ["a:1", "b:2"]

    def test_none_of_a_short_one_or_where_silence_was_asked_for(self, capsys, monkeypatch):
        on(monkeypatch, force_terminal=False)
        assert len(self.after(capsys, seconds=1).splitlines()) == 1
        assert self.after(capsys, seconds=60, progress=False) == ""

    def test_a_stage_without_remedy_and_workers_without_time(self):
        assert explain_bottleneck({}) == ""
        assert explain_bottleneck({"a": WorkerTime(3)}) == ""
        odd = explain_bottleneck({"a": WorkerTime(3, {"spin": 1.0})})
        assert odd == "spin took 100% of the workers' time"

    def test_many_workers_are_not_all_listed(self):
        many = {f"w{n:02}": WorkerTime(1, {"model": 1.0 + n}) for n in range(20)}
        lines = worker_lines(many)
        assert lines[0].startswith("w19 ")
        assert lines[-1] == "and 12 faster workers"
        assert len(lines) == 9


class TestWatched:
    def test_sees_each_step_and_the_end_even_in_silence(self):
        seen = []
        with watched(lambda state: seen.append((state.blocks, state.ended))):
            one = state()
            with shown(one, False) as show:
                one.blocks = 2
                show()
            with pytest.raises(KeyboardInterrupt), shown(state(), False):
                raise KeyboardInterrupt
        with shown(state(), False):
            pass
        assert seen == [(2, ""), (2, "done"), (0, "failed")]
