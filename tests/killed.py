"""A script in a process of its own, which is killed at a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120


def killed(script: str, *given: str | Path, root: Path, moment: Callable[[], bool]) -> None:
    """Start a script with arguments, from the root of the repository, and kill it at a moment."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, given)],
        env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not moment():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
