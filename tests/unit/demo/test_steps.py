"""A process under watch: greedy ones are killed and it is said how, others are left alone."""

from __future__ import annotations

import os
import re
import sys
import time

import pytest

import volflow.demo.steps as steps
from volflow.demo.steps import Guard, watch
from volflow.errors import InvalidInput, RunFailed

MIB = 2**20
CAP = 96 * MIB
# Grows by 8 MiB at a time, touching each page.
HOG = f"""
import time
held = []
while True:
    held.append(bytearray(8 * {MIB}))
    held[-1][::4096] = b"x" * len(held[-1][::4096])
    time.sleep(0.005)
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {HOG!r}])
"""
# Memory taken and given back at once, between two looks.
SHORT = f"""
import time
short = bytearray(160 * {MIB})
short[::4096] = b"x" * len(short[::4096])
del short
time.sleep(60)
"""
SLEEP = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def python(code):
    return [sys.executable, "-S", "-c", code]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestWatch:
    @pytest.mark.parametrize("code", [HOG, PARENT, SHORT], ids=["itself", "its child", "short"])
    def test_a_hog_is_killed_at_the_cap(self, code):
        watched = watch(python(code), CAP)
        assert watched.ended == "over"
        assert CAP < watched.peak_bytes < 4 * CAP
        assert watched.seconds < 60

    @pytest.mark.slow
    def test_children_die_with_it(self, tmp_path):
        pids = tmp_path / "pids"
        code = f"import os; print(os.getpid(), file=open({str(pids)!r}, 'w'))\n{HOG}"
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
        assert watch(python(parent), CAP).ended == "over"
        deadline = time.monotonic() + 30
        while not gone(int(pids.read_text())):  # its new parent has to notice
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_the_modest_live(self):
        seen = []
        code = "import time; print('hello'); time.sleep(0.3)"
        watched = watch(python(code), CAP, look=lambda *point: seen.append(point))
        assert (watched.ended, watched.output) == ("done", "hello")
        assert len(watched.curve) > 2
        assert seen == list(watched.curve)
        seconds, resident = zip(*watched.curve, strict=True)
        assert list(seconds) == sorted(seconds)
        assert seconds[-1] <= watched.seconds
        assert 0 < max(resident) <= watched.peak_bytes < CAP

    def test_what_fails_by_itself_is_told(self):
        watched = watch(python("import sys; print('a' * 9000); sys.exit('no way')"), CAP)
        assert watched.ended == "failed"
        assert watched.output.endswith("a\nno way")
        assert len(watched.output) <= steps.OUTPUT_BYTES

    def test_it_is_stopped_when_asked(self):
        looks = iter([False, False, True])
        watched = watch(python(SLEEP), CAP, until=lambda: next(looks))
        assert watched.ended == "stopped"
        assert gone(int(watched.output))
        assert len(watched.curve) == 2

    def test_ctrl_c_takes_it_along(self, tmp_path):
        pid = tmp_path / "pid"

        def interrupt():
            if pid.exists() and pid.read_text():
                raise KeyboardInterrupt
            return False

        code = f"import os; print(os.getpid(), file=open({str(pid)!r}, 'w'))\n" + SLEEP
        with pytest.raises(KeyboardInterrupt):
            watch(python(code), CAP, until=interrupt)
        assert gone(int(pid.read_text()))

    def test_ctrl_c_of_the_terminal_is_not_its_own(self):
        """It lives in a session of its own, so that the watcher decides."""
        watched = watch(python("import os; print(os.getpid() == os.getsid(0))"), CAP)
        assert watched.output == "True"

    def test_systems_without_proc_are_refused(self, monkeypatch, tmp_path):
        monkeypatch.setattr(steps, "PROC", tmp_path)
        with pytest.raises(InvalidInput, match=r"needs Linux's /proc, and this is \w+; run it on"):
            watch(python("pass"), CAP)


class TestGuard:
    def test_a_hog_is_one_line(self):
        guard = Guard(CAP)
        line = r"^predict was killed at [\d.]+ MiB, above the cap of 96 MiB; what is done is kept"
        with pytest.raises(RunFailed, match=line):
            guard.run("predict", python(HOG))
        assert [name for name, _, _ in guard.seen] == ["predict"]
        assert guard.peak_bytes > CAP

    def test_the_reason_of_a_failure_is_its_last_line(self):
        guard = Guard(CAP)
        with pytest.raises(RunFailed, match=r"^scan failed: the disk is full; make room$"):
            guard.run(
                "scan", python("import sys; sys.exit('…\\nvolflow: the disk is full; make room')")
            )
        with pytest.raises(RunFailed, match=r"^scan failed: it printed nothing$"):
            guard.run("scan", python("import os; os._exit(3)"))

    def test_commands_follow_each_other(self):
        guard = Guard(CAP)
        for name in ("one", "two"):
            guard.run(name, python("pass"))
        (one, first, watched), (two, second, _) = guard.seen
        assert (one, two) == ("one", "two")
        assert second >= first + watched.seconds
        assert guard.seconds >= second

    def test_a_terminal_sees_a_meter(self, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        guard = Guard(CAP)
        guard.run("one", python("import time; time.sleep(0.2)"), state=lambda: "3 of 8 blocks")
        told = capsys.readouterr().err
        assert re.search(r"█+·+  \d+ of 96 MiB  0 s  3 of 8 blocks", told)
        assert told.endswith("\r\x1b[K")

    def test_logs_do_not(self, capsys):
        Guard(CAP).run("one", python("import time; time.sleep(0.2)"), state=lambda: "3 of 8 blocks")
        assert capsys.readouterr().err == ""
