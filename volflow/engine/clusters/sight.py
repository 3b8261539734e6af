"""Whether the workers of a cluster see the files, folders and stores that this process sees."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.engine.clusters.asking import ask
from volflow.engine.workers import is_embedded, worker_records
from volflow.errors import InvalidInput, VolflowError, first_line
from volflow.store.aside import file_aside
from volflow.store.formats.sources import split_part
from volflow.store.journal.journal import journal_of
from volflow.store.opening import is_url
from volflow.store.remote.address import check_answers

__all__ = ["check_sight", "unseen", "unwritable"]


def check_sight(client: Client, out: Any, *inputs: Any) -> None:
    """Refuse an output or inputs that workers of a cluster do not see; nothing is changed.

    One worker of each host is asked. A file beside the output, there for a moment, tells a shared
    folder from another of the same name; to a store each writes an object for a moment.

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
    asked = list(one_per_host.values())
    with _mark(_local(out)) as mark, suppress(TimeoutError):
        for address, (path, how) in ask(client, unseen, reads, mark, workers=asked).items():
            if path:
                raise InvalidInput(
                    f"the worker {address} on {records[address].get('host')} {how} {path}, which"
                    " this process does; put it on a file system that all workers share, under the"
                    " same path"
                )
    if not isinstance(out, str | os.PathLike) or _local(out) is not None:
        return
    with suppress(TimeoutError):
        for address, why in ask(client, unwritable, os.fspath(out), workers=asked).items():
            if why:
                raise InvalidInput(
                    f"the worker {address} on {records[address].get('host')} cannot write to the"
                    f" store, which this process does: {why}; its environment needs what leads"
                    " there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
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


def unwritable(out: str) -> str:
    """Return why this process cannot write an output on a store; ``""`` if it can."""
    folder = journal_of(out).directory
    probe = folder / f"probe-{uuid.uuid4().hex}"
    try:
        check_answers(folder)  # which takes seconds, where writing has patience
        probe.write_bytes(b"")
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    except (VolflowError, OSError) as error:
        why = f"{out}: {error.strerror}" if isinstance(error, OSError) else first_line(error)
        return why.partition(";")[0]
    return ""


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
    if not isinstance(path, str | os.PathLike):
        return None
    text = os.fspath(path)
    return None if is_url(text) else str(split_part(text)[0])
