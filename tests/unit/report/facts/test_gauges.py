"""Metrics: a strict reader takes them, of runs at work and of journals; nothing else is in them."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.cli import run
from volflow.engine.plan import Plan, split_runs
from volflow.engine.run import run as run_plan
from volflow.engine.task import Step
from volflow.errors import InvalidInput, RunFailed
from volflow.report.facts.gauges import metrics_text
from volflow.report.observe import observe
from volflow.store.journal.journal import Journal, Record, journal_dir

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
SAMPLE = re.compile(rf"({NAME})\{{((?:{LABEL},?)*)\}} (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """OpenMetrics text of gauges, read strictly: families whole and once, EOF at the end."""
    assert text.endswith("# EOF\n")
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    families: list[str] = []
    described = ""
    for line in text.removesuffix("# EOF\n").split("\n")[:-1]:
        if line.startswith("# HELP "):
            described = re.fullmatch(rf"# HELP ({NAME}) \S.*", line)[1]
            assert described not in families
        elif line.startswith("# TYPE "):
            assert re.fullmatch(rf"# TYPE ({NAME}) gauge", line)[1] == described
            families.append(described)
        else:
            name, labels, *_, value = SAMPLE.fullmatch(line).groups()
            assert name == families[-1] == described
            unescaped = tuple(
                (key, re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text))
                for key, text in re.findall(LABEL, labels)
            )
            assert len(dict(unescaped)) == len(unescaped)
            assert (name, unescaped) not in found
            found[name, unescaped] = float(value)
    return found


def by_name(text: str) -> dict[str, float]:
    """Values by name without the prefix, with the stage where there is one; of one output."""
    return {
        " ".join([name.removeprefix("volflow_"), *dict(labels[2:]).values()]): value
        for (name, labels), value in parsed(text).items()
    }


@given(path=st.text(), done=st.integers(0, 9), stages=st.dictionaries(st.text(), st.floats(0, 1e9)))
def test_a_strict_reader_takes_them_whatever_the_names(path, done, stages):
    facts = {"path": path, "operation": "predict", "done": done, "stages_s": stages}
    found = parsed(metrics_text([facts]))
    shown = path.encode("utf-8", "replace").decode()
    labels = (("operation", "predict"), ("output", shown))
    assert found["volflow_blocks_done", labels] == done
    assert len(found) == 1 + len({s.encode("utf-8", "replace") for s in stages})


def test_no_runs_are_no_families():
    assert metrics_text([]) == "# EOF\n"


def task(job, blocks, context):
    for number in blocks:
        if number == job:
            raise OSError("the disk is gone")
        with context.stage("read"):
            pass
        with context.block(number):
            pass
        yield Step(number, 1)


def plan_of(tmp_path, bad=None) -> Plan:
    journal = Journal(journal_dir(tmp_path / "out.zarr"))
    record = Record("predict", {"input": "a"}, {"grid": [1, 1, 6]})
    runs = split_runs(range(2, 6), 2)  # two were done before
    return Plan("predict", task, bad, runs, 4, "voxels", 1, 100, journal=journal, record=record)


def test_of_a_run_and_of_its_journal(tmp_path):
    file = tmp_path / "night.prom"
    with observe(metrics=file):
        assert file.read_text() == "# EOF\n"  # before any work
        run_plan(plan_of(tmp_path), progress=False)
    found = by_name(file.read_text())
    assert found["blocks"] == found["blocks_done"] == 6
    assert (found["finished"], found["running"], found["blocks_failed"]) == (1, 0, 0)
    assert found["last_success_timestamp_seconds"] == pytest.approx(time.time(), abs=300)
    assert found["stage_seconds read"] >= 0
    assert run(["status", str(tmp_path / "out.zarr"), "--metrics", str(file)]) == 1
    found = by_name(file.read_text())
    assert (found["blocks"], found["blocks_done"], found["finished"]) == (6, 4, 0)
    assert found["last_block_timestamp_seconds"] == pytest.approx(time.time(), abs=300)


def test_of_a_run_that_fails(tmp_path):
    file = tmp_path / "night.prom"
    with observe(metrics=file), pytest.raises(RunFailed):
        run_plan(plan_of(tmp_path, bad=3), progress=False, retries=0)
    found = by_name(file.read_text())
    assert (found["blocks_done"], found["blocks_failed"], found["finished"]) == (5, 1, 0)
    assert "last_success_timestamp_seconds" not in found


def test_commands_write_them_and_a_rerun_with_nothing_to_do_succeeds(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((8, 8, 8), "u1"))
    file = tmp_path / "night.prom"
    command = ["convert", str(tmp_path / "a.npy"), str(tmp_path / "a.zarr"), "-q"]
    for _ in range(2):
        assert run([*command, "--metrics", str(file)]) == 0
        found = by_name(file.read_text())
        assert (found["blocks_done"], found["finished"]) == (1, 1)
        file.unlink()


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((8, 8, 8), "u1"))
    command = ["convert", str(tmp_path / "a.npy"), str(tmp_path / "a.zarr"), "-q"]
    assert run([*command, "--metrics", str(tmp_path / "no" / "night.prom")]) == 2
    assert "choose a file in a folder that exists" in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("report.txt", r"is an \.html file"), ("no/report.html", "make it first")]
)
def test_a_report_that_cannot_be_made_is_refused(tmp_path, name, said):
    with pytest.raises(InvalidInput, match=said), observe(performance_report=tmp_path / name):
        pass


def test_a_report_without_bokeh_is_refused_with_its_remedy(tmp_path, monkeypatch):
    from volflow.engine.observing import performance

    monkeypatch.setattr(performance, "_has_bokeh", lambda: False)
    report = tmp_path / "report.html"
    asked = observe(performance_report=report)
    with pytest.raises(InvalidInput, match=r"volflow\[dashboard\]"), asked:
        pass
