"""Whether the workers of a cluster see the files and folders that this process sees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.engine.clusters.asking import ask
from volflow.engine.workers import is_embedded, worker_records
from volflow.errors import InvalidInput
from volflow.store.aside import file_aside

__all__ = ["check_sight", "unseen"]


def check_sight(client: Client, out: Any, *inputs: Any) -> None:
    """Refuse an output or inputs that workers of a cluster do not see; nothing is changed.

    One worker of each host is asked. A file beside the output, there for a moment, tells a shared
    folder from another of the same name.

    Parameters
    ----------
    client
        The connected client.
    out
        What will be written; None for nothing.
    inputs
        What will be read; only files and folders that exist here are looked for.

    Raises
    ------
    InvalidInput
        Naming the path, the worker and its host.
    """
    if is_embedded(client):
        return
    reads = [path for path in map(_local, inputs) if path is not None and Path(path).exists()]
    records = worker_records(client)
    one_per_host = {record.get("host"): address for address, record in records.items()}
    with _mark(_local(out)) as mark, suppress(TimeoutError):
        answers = ask(client, unseen, reads, mark, workers=list(one_per_host.values()))
        for address, (path, how) in answers.items():
            if path:
                host = records[address].get("host")
                raise InvalidInput(
                    f"the worker {address} on {host} {how} {path}, which this process does; put it"
                    " on a file system that all workers share, under the same path"
                )


def unseen(reads: Sequence[str], mark: str) -> tuple[str, str]:
    """Return the first path that this process cannot use, and how; runs on a worker."""
    for path in reads:
        if not os.access(path, os.R_OK):
            return path, "cannot read"
    folder = str(Path(mark).parent)
    if mark and not Path(mark).exists():
        return folder, "does not see"
    if mark and not os.access(folder, os.W_OK):
        return folder, "cannot write to"
    return "", ""


@contextmanager
def _mark(out: str | None) -> Iterator[str]:
    """Keep a file in the folder of an output; yield its path, or nothing if there can be none."""
    if out is None:
        yield ""
        return
    target = Path(out)
    while not target.parent.is_dir():  # made later
        target = target.parent
    with ExitStack() as stack:
        mark = ""
        with suppress(OSError):  # it will be refused in its own words
            path, _ = stack.enter_context(file_aside(target))
            mark = str(path)
        yield mark


def _local(path: Any) -> str | None:
    """Return a path of this machine's file systems, absolute; None for anything else."""
    if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path):
        return None
    return str(Path(path).expanduser().absolute())
