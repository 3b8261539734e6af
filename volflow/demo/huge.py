"""The huge demo: a CT larger than all the memory that its segmentation may take.

Each step is a command in a process of its own, which is killed if it exceeds the cap. This process
starts the commands, watches their memory and the journal, and at the end draws what it saw; until
then it loads neither torch nor Dask nor Zarr.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from volflow.demo.steps import INDENT, Guard, Watched, check_system, folder_for, say
from volflow.demo.torso import SHAPE, spacing_of
from volflow.errors import InvalidInput, RunFailed
from volflow.geometry.budget import format_bytes
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["run_huge"]

MIB = 2**20
# Torch built for CUDA takes some 700 MiB before the first voxel, torch for CPUs 367 MiB: the second
# cap, which is still less than the volume, is for the former.
CAPS_BYTES = (768 * MIB, 1024 * MIB)
# What predict may add to the memory of the interpreter with torch, if there is room below the cap;
# the first cap is only taken if there is room for the least. The interpreter varies a little.
MEMORY_BYTES, LEAST_BYTES, STEP_BYTES, VARIES_BYTES = 352 * MIB, 272 * MIB, 16 * MIB, 48 * MIB
SHARD = 128  # voxels per side; a kill costs the blocks in flight
# The CT as float32 and its tissues as uint8, as if nothing were compressed.
VOXEL_BYTES, ROOM_BYTES = 5, 64 * MIB

# Told apart with any colour vision.
COLORS = {"predict": "#E69F00", "resume": "#56B4E9"}


def run_huge(out: str | os.PathLike[str], shape: Sequence[int] = SHAPE, shard: int = SHARD) -> None:
    """Segment a CT of 1.04 GiB in 768 MiB, kill the process at half, resume, verify, draw.

    Parameters
    ----------
    out
        Folder for all files; it is made if missing. A demo that was interrupted is resumed there.
    shape
        Voxels of the CT along z, y, x.
    shard
        Voxels per side of a shard of the result.

    Raises
    ------
    InvalidInput
        If the system has no ``/proc``, matplotlib is missing, or the folder cannot be made or has
        too little room.
    RunFailed
        If a step fails, exceeds the cap or does not verify.
    """
    check_system()
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput(
            'the demo draws, which needs matplotlib, and it is missing; pip install "volflow[demo]"'
        )
    folder = folder_for(out)
    _check_room(folder, shape)
    scan, net, result = folder / "ct.zarr", folder / "ct_net", folder / "ct_tissue.zarr"
    picture, memory = folder / "ct_tissue.png", folder / "memory.png"
    guard, journal = Guard(CAPS_BYTES[0]), Journal(journal_dir(result))
    before, blocks = _progress(journal)
    kept, size = before, format_bytes(4 * math.prod(shape))
    if not 0 < blocks == len(before):
        say(f"1. scan      a synthetic CT, {size} of float32 → {scan}")
        say(f"{INDENT}{_grid(shape)}, painted a few planes at a time")
        say(_cost(guard.run("scan", _module("volflow.demo.scan", scan, *shape))))
        words = _plan(guard, ["predict", scan, result, "--model", net, "--shard", shard], net)
        kept = _predict_and_kill(guard, words, journal)
        _resume(guard, words, journal, kept)
    now, _ = _progress(journal)

    say("5. verify    every stored block against its checksum")
    verified = guard.run("verify", _volflow("verify", result, "--quiet"), check=False)
    line = verified.output.partition("\n")[0]
    say(f"{INDENT}{line}")
    if verified.ended == "failed":
        raise RunFailed(f"{line}; run volflow demo huge again to repair it")
    say(f"6. preview   {picture}")
    guard.run("preview", _volflow("preview", result, "--over", scan, "-o", picture))
    if len(before) == len(now):
        say(f"done before, and still right; delete {folder.resolve()} to see it run again")
        return
    from volflow.demo.curve import draw_memory  # loads matplotlib, and takes memory

    peak = format_bytes(guard.peak_bytes)
    title = f"{size} of CT through a network in {peak} of memory"
    subtitle = f"{_grid(shape)}, float32   ·   resident memory, Python and torch included"
    if before:
        subtitle += f"   ·   {len(before)} blocks done before"
    volume_bytes = 4 * math.prod(shape)
    figure = draw_memory(guard.seen, COLORS, guard.cap_bytes, volume_bytes, title, subtitle)
    figure.savefig(memory, dpi=150)
    say(
        f"done in {guard.seconds:.0f} s: {size} through a network in {peak} of memory, Python and"
        f" torch included, of {format_bytes(guard.cap_bytes)} allowed; {len(kept)} of {len(now)}"
        f" blocks were done before the resume, {len(kept) - _same(kept, now)} of these repeated;"
        " all checksums right"
    )
    say(f"look at {picture.resolve()} and {memory.resolve()}")


def _check_room(folder: Path, shape: Sequence[int]) -> None:
    """Refuse a folder on a disk that is too full."""
    there = sum(path.stat().st_size for path in folder.glob("ct*/**/*") if path.is_file())
    needed = VOXEL_BYTES * math.prod(shape) + ROOM_BYTES - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InvalidInput(
            f"the demo may take {format_bytes(needed)} and {folder} has {format_bytes(free)} free;"
            " make room, or choose another folder with --out"
        )


def _plan(guard: Guard, words: Sequence[object], net: Path) -> list[object]:
    """Choose the cap and the memory of a prediction, print its plan and return its command.

    The plan is made with a trial forward; what that takes is what is taken before the first voxel.
    """
    if not net.exists():
        guard.run("net", _module("volflow.demo.tissue", net))
    memory = MEMORY_BYTES
    while True:
        command = [*words, "--memory", f"{memory // MIB}MiB", "--device", "cpu"]
        planned = guard.run("plan", _volflow(*command, "--plan"))
        guard.cap_bytes, fits = _budget(planned.peak_bytes)
        if fits >= memory:
            break
        memory = fits
    say(f"2. plan      $ {shlex.join(map(str, ('volflow', *command, '--plan')))}")
    say("\n".join(INDENT + line.strip() for line in planned.output.splitlines()[1:]))
    base, cap = format_bytes(planned.peak_bytes), format_bytes(guard.cap_bytes)
    say(f"{INDENT}Python, torch and one trial take {base}: the process is killed above {cap}")
    return command


def _budget(base_bytes: int) -> tuple[int, int]:
    """Return the cap, and what predict may add below it to the memory before the first voxel.

    Examples
    --------
    >>> [size // MIB for size in _budget(367 * MIB)], [size // MIB for size in _budget(690 * MIB)]
    ([768, 352], [1024, 272])
    """
    for cap in CAPS_BYTES:
        room = (cap - base_bytes - VARIES_BYTES) // STEP_BYTES * STEP_BYTES
        if room >= LEAST_BYTES:
            break
    return cap, max(STEP_BYTES, min(MEMORY_BYTES, room))


def _predict_and_kill(guard: Guard, words: Sequence[object], journal: Journal) -> dict[int, int]:
    """Run predict, kill it at half, and return the blocks that are done and when each was."""

    def half() -> bool:
        done, blocks = _progress(journal)
        return 0 < blocks <= 2 * len(done)

    say("3. predict   the same without --plan, to be killed at half")
    if _progress(journal)[0]:
        say(f"{INDENT}started before: {_state(journal)}")
    if not half():
        command = _volflow(*words, "--quiet")
        watched = guard.run("predict", command, until=half, state=lambda: _state(journal))
        if watched.ended == "stopped":
            say(f"{INDENT}killed (SIGKILL) with {_state(journal)}")
        say(_cost(watched))
    return _progress(journal)[0]


def _resume(guard: Guard, words: Sequence[object], journal: Journal, kept: dict[int, int]) -> None:
    say("4. resume    the same command again")
    resumed = guard.run("resume", _volflow(*words, "--quiet"), state=lambda: _state(journal))
    now, _ = _progress(journal)
    same = _same(kept, now)
    computed = f"{len(now) - same} computed, those in flight among them"
    say(f"{INDENT}{same} blocks left as they were, {computed}")
    say(_cost(resumed))


def _progress(journal: Journal) -> tuple[dict[int, int], int]:
    """Return when each block that is done was recorded, and how many blocks there are.

    There are 0 blocks if the run was not started.
    """
    record = journal.recorded()
    files = (journal.folder / "done").glob("[0-9]*.json")
    done = {int(path.stem): path.stat().st_mtime_ns for path in files}
    return done, 0 if record is None else math.prod(record.settings["grid"])


def _state(journal: Journal) -> str:
    done, blocks = _progress(journal)
    return f"{len(done)} of {blocks} blocks done" if blocks else ""


def _same(kept: dict[int, int], now: dict[int, int]) -> int:
    """Return how many blocks were not recorded again."""
    return sum(now.get(block) == written for block, written in kept.items())


def _grid(shape: Sequence[int]) -> str:
    voxels, spacing = (" × ".join(map(str, numbers)) for numbers in (shape, spacing_of(shape)))
    return f"{voxels} voxels of {spacing} mm"


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def _volflow(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from volflow.cli import main; main()", *map(str, arguments)]


def _cost(watched: Watched) -> str:
    return f"{INDENT}{watched.seconds:.0f} s, peak {format_bytes(watched.peak_bytes)}"
