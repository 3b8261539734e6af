"""The huge demo: a CT larger than all the memory that its segmentation may take.

Each step is a command in a process of its own, which is killed where it exceeds the cap. This
process starts them, looks at their memory and at the journal, and at the end draws what it saw;
until then it loads neither torch nor Dask nor Zarr.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volflow.demo.steps import INDENT, Guard, Watched, check_system, folder_for, say
from volflow.demo.torso import SHAPE, spacing_of
from volflow.errors import InvalidInput, RunFailed
from volflow.geometry.budget import format_bytes
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["HugeResult", "run_huge"]

MIB = 2**20
# A torch built for CUDA takes some 700 MiB before the first voxel, one for CPUs 367 MiB: the second
# cap, still less than the volume, is for the former.
CAPS_BYTES = (768 * MIB, 1024 * MIB)
# What predict may add to the interpreter with torch: as much of it as there is room for, and with
# the first cap only where there is room for the least; the interpreter itself varies a little.
MEMORY_BYTES, LEAST_BYTES, STEP_BYTES, VARIES_BYTES = 352 * MIB, 272 * MIB, 16 * MIB, 48 * MIB
# The side of a shard: blocks are what a kill can cost.
SHARD = 128
# The CT as float32 and its tissues as uint8, as if nothing were compressed.
VOXEL_BYTES, ROOM_BYTES = 5, 64 * MIB

# Told apart with any colour vision.
COLORS = {"predict": "#E69F00", "resume": "#56B4E9"}
ENDS = {"stopped": "killed at half"}


@dataclass(frozen=True)
class HugeResult:
    """Where the demo left its files, and what it saw.

    Parameters
    ----------
    scan, result, picture, memory
        The CT, its tissues, a preview of both, and the curve of memory.
    peak_bytes, cap_bytes
        The most that a process had resident, and what they were held to.
    blocks, kept, repeated
        All; those done when the process was killed; how many of these were written again.
    """

    scan: Path
    result: Path
    picture: Path
    memory: Path
    peak_bytes: int
    cap_bytes: int
    blocks: int
    kept: int
    repeated: int


def run_huge(
    out: str | os.PathLike[str] = "demo-output", shape: Sequence[int] = SHAPE, shard: int = SHARD
) -> HugeResult:
    """Segment a CT of 1.04 GiB in 768 MiB, kill the process at half, resume, verify, draw.

    Parameters
    ----------
    out
        Folder for all files; made if missing. A demo that was interrupted is resumed there.
    shape
        Voxels of the CT along z, y, x.
    shard
        Voxels per side of what is stored at once.

    Raises
    ------
    InvalidInput
        On a system without ``/proc``, without matplotlib, or where the folder cannot be made or
        has too little room.
    RunFailed
        Where a step fails, exceeds the cap or does not verify.
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
    kept = _written(journal)
    if not 0 < blocks == before:
        _make_scan(guard, scan, shape)
        words = _plan(guard, ["predict", scan, result, "--model", net, "--shard", shard], net)
        kept = _predict_and_kill(guard, words, journal)
        _resume(guard, words, journal, kept)
    now = _written(journal)
    repeated = sum(now.get(block) != written for block, written in kept.items())

    say("5. verify    every stored block against its checksum")
    verified = guard.run("verify", _volflow("verify", result, "--quiet"), check=False)
    line = verified.told.partition("\n")[0]
    say(f"{INDENT}{line}")
    if verified.ended == "failed":
        raise RunFailed(f"{line}; run volflow demo huge again to repair it")
    say(f"6. preview   {picture}")
    guard.run("preview", _volflow("preview", result, "--over", scan, "-o", picture))
    shown = HugeResult(
        scan=scan,
        result=result,
        picture=picture,
        memory=memory,
        peak_bytes=guard.peak_bytes,
        cap_bytes=guard.cap_bytes,
        blocks=len(now),
        kept=len(kept),
        repeated=repeated,
    )
    if before == len(now):
        say(f"done before, and still right; delete {folder.resolve()} to see it run again")
        return shown
    _draw(guard, shape, memory, f"   ·   {before} blocks done before" if before else "")
    say(
        f"done in {guard.seconds:.0f} s: {format_bytes(4 * math.prod(shape))} through a network in"
        f" {format_bytes(guard.peak_bytes)} of memory, Python and torch included, of"
        f" {format_bytes(guard.cap_bytes)} allowed; {len(kept)} of {len(now)} blocks were done"
        f" before the resume, {repeated} of these repeated; all checksums right"
    )
    say(f"look at {picture.resolve()} and {memory.resolve()}")
    return shown


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


def _make_scan(guard: Guard, scan: Path, shape: Sequence[int]) -> None:
    say(f"1. scan      a synthetic CT, {format_bytes(4 * math.prod(shape))} of float32 → {scan}")
    say(f"{INDENT}{_grid(shape)}, painted a few planes at a time")
    say(_cost(guard.run("scan", _module("volflow.demo.scan", scan, *shape))))


def _plan(guard: Guard, words: Sequence[object], net: Path) -> list[object]:
    """Settle the cap and the memory of a prediction, and print its plan; the words of its command.

    The plan is made with a trial forward: what that takes is what there is before the first voxel.
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
    say("\n".join(INDENT + line.strip() for line in planned.told.splitlines()[1:]))
    base, cap = format_bytes(planned.peak_bytes), format_bytes(guard.cap_bytes)
    say(f"{INDENT}Python, torch and one trial take {base}: the process is killed above {cap}")
    return command


def _budget(base_bytes: int) -> tuple[int, int]:
    """The cap, and what predict may add below it to what there is before the first voxel.

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
    """Run predict and kill it at half; returns the blocks that are done, and when each was."""
    say("3. predict   the same without --plan, to be killed at half")
    before = len(_written(journal))
    if before:
        say(f"{INDENT}begun before: {_state(journal)}")
    if not _half(journal):
        watched = guard.run(
            "predict",
            _volflow(*words, "--quiet"),
            until=lambda: _half(journal),
            state=lambda: _state(journal),
        )
        if watched.ended == "stopped":
            say(f"{INDENT}killed (SIGKILL) with {_state(journal)}")
        say(_cost(watched))
    return _written(journal)


def _resume(guard: Guard, words: Sequence[object], journal: Journal, kept: dict[int, int]) -> None:
    say("4. resume    the same command again")
    resumed = guard.run("resume", _volflow(*words, "--quiet"), state=lambda: _state(journal))
    now = _written(journal)
    same = sum(now.get(block) == written for block, written in kept.items())
    computed = f"{len(now) - same} computed, those in flight among them"
    say(f"{INDENT}{same} blocks left as they were, {computed}")
    say(_cost(resumed))


def _half(journal: Journal) -> bool:
    done, blocks = _progress(journal)
    return 0 < blocks <= 2 * done


def _state(journal: Journal) -> str:
    done, blocks = _progress(journal)
    return f"{done} of {blocks} blocks done" if blocks else ""


def _progress(journal: Journal) -> tuple[int, int]:
    """How many blocks are done, of how many; of 0 where nothing was begun."""
    record = journal.recorded()
    blocks = math.prod(record.settings["grid"]) if record is not None else 0
    return len(_written(journal)), blocks


def _written(journal: Journal) -> dict[int, int]:
    """When each block that is done was recorded."""
    return {
        int(path.stem): path.stat().st_mtime_ns
        for path in (journal.directory / "done").glob("[0-9]*.json")
    }


def _grid(shape: Sequence[int]) -> str:
    voxels, spacing = (" × ".join(map(str, numbers)) for numbers in (shape, spacing_of(shape)))
    return f"{voxels} voxels of {spacing} mm"


def _draw(guard: Guard, shape: Sequence[int], path: Path, note: str) -> None:
    """Memory against time, of all that ran."""
    from volflow.demo.curve import Stretch, draw_memory  # loads matplotlib, and takes memory

    stretches = [
        Stretch(
            name,
            start_s,
            watched.curve,
            watched.peak_bytes,
            color=COLORS.get(name),
            end=ENDS.get(watched.ended, ""),
        )
        for name, start_s, watched in guard.seen
    ]
    volume_bytes, peak = 4 * math.prod(shape), format_bytes(guard.peak_bytes)
    figure = draw_memory(
        stretches,
        guard.cap_bytes,
        volume_bytes,
        f"{format_bytes(volume_bytes)} of CT through a network in {peak} of memory",
        f"{_grid(shape)}, float32   ·   resident memory, Python and torch included{note}",
    )
    figure.savefig(path, dpi=150)


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def _volflow(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from volflow.cli import main; main()", *map(str, arguments)]


def _cost(watched: Watched) -> str:
    return f"{INDENT}{watched.seconds:.0f} s, peak {format_bytes(watched.peak_bytes)}"
