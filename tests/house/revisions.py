"""The package as it was at another revision, in a folder of its own."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def package_of(revision: str) -> Iterator[Path]:
    """A scratch folder that holds ``volflow/`` of a git revision, for ``PYTHONPATH``."""
    command = ["git", "archive", revision, "volflow"]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"{revision} is no revision: {packed.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory(prefix="volflow-before-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)
