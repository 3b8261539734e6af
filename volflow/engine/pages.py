"""Cheaper memory allocation: huge pages for torch, and freed memory kept for the next layer.

Each layer of a network frees about as much memory as the next one allocates. The system provides
memory in pages of 4 KiB, one by one as they are touched, and zeroes them, which takes up to half of
a small network's time. Pages of 2 MiB need far fewer faults, and memory kept by the process none.
`engine/memory.py` returns kept memory when a task nears its budget.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from volflow.geometry.budget import format_bytes

__all__ = ["HUGE_PAGES", "prepare_allocators"]

# Read by torch at its first allocation; NumPy requests huge pages by itself.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
AT_START = Path("/proc/self/environ")

logger = logging.getLogger(__name__)


# Thresholds of glibc: name, number for mallopt, bytes, and their meaning in the log.
THRESHOLDS = (
    ("trim", -1, 512 * 2**20, "at the end of the heap is kept"),
    # The maximum of glibc, which it reaches by itself if no threshold is set.
    ("mmap", -3, 32 * 2**20, "at a time comes from the heap"),
)


def prepare_allocators(*, own: bool) -> str:
    """Make fresh memory cheap in this process, for as long as it lives; may be called again.

    The user's environment variables take precedence. If the system has no huge pages, or the
    allocator no thresholds, nothing is done.

    Parameters
    ----------
    own
        True if this process exists for the work: a command or a worker. In a user's own Python
        only torch's huge pages are enabled, as NumPy's are; glibc's thresholds, which adapt
        themselves, are unchanged unless Dask's nanny has set one.

    Returns
    -------
    str
        The settings in force, also logged at level DEBUG.

    Examples
    --------
    >>> prepare_allocators(own=False).startswith("memory: ")
    True
    """
    settings = f"memory: {'; '.join([_ask_for_huge_pages(), *_keep_what_is_freed(own)])}"
    logger.debug(settings)
    return settings


def _ask_for_huge_pages() -> str:
    try:
        never = "[never]" in SYSTEM.read_text()
    except OSError:  # not Linux, or without them
        never = True
    if never:
        return "this system has no huge pages"
    asked = os.environ.setdefault(HUGE_PAGES, "1")
    return f"huge pages by {HUGE_PAGES}={asked}"


def _keep_what_is_freed(own: bool) -> list[str]:
    try:
        mallopt = ctypes.CDLL(None).mallopt
        pairs = os.fsdecode(AT_START.read_bytes()).split("\0")
    except (OSError, AttributeError, TypeError):
        return ["this system's allocator has no thresholds"]
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    tunables = found.get("GLIBC_TUNABLES", "")
    # Environment variables by which users and Dask's nanny set them.
    variables = {name: f"MALLOC_{name.upper()}_THRESHOLD_" for name, *_ in THRESHOLDS}
    dasks = {name for name, variable in variables.items() if _is_dasks(variable, found)}
    settings = []
    for name, number, value_bytes, meaning in THRESHOLDS:
        chosen = variables[name] in found or f"glibc.malloc.{name}_threshold" in tunables
        if chosen and name not in dasks:
            settings.append(f"{variables[name]} is the user's")
        # If one is set, the other no longer adapts itself.
        elif (own or dasks) and mallopt(number, value_bytes):
            settings.append(f"{format_bytes(value_bytes)} {meaning}")
    return settings


def _is_dasks(variable: str, found: Mapping[str, str]) -> bool:
    """Return True if a variable has the default value that Dask's nanny gives it."""
    if variable not in found:
        return False
    import distributed  # noqa: F401 (its defaults are among Dask's from here on)
    from dask.config import defaults, get, merge

    nanny = get("distributed.nanny.pre-spawn-environ", {}, config=merge(*defaults))
    return found[variable] == str(nanny.get(variable))
