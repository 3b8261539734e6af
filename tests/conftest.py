"""Fixtures that tests of several floors share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Machines differ in speed; a property is about truth, not about time. CI asks for the thorough one.
settings.register_profile("quick", deadline=None, print_blob=True, max_examples=25)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=50)
settings.load_profile("quick")


# A shell that runs the tests in the background makes all their children deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """Finds a folder of real volumes; the test is skipped where they are not at hand.

    They are no part of the repository: they lie in ``../shared/data`` or where
    ``VOLFLOW_TEST_DATA`` says.
    """
    base = Path(os.environ.get("VOLFLOW_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = base / name
        if not folder.is_dir():
            pytest.skip(f"shared data {name!r} is not at {base}; set VOLFLOW_TEST_DATA")
        return folder

    return find


@pytest.fixture
def fresh_python(tmp_path):
    """Runs code in a new interpreter, without site customisations, and returns what it prints."""

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
