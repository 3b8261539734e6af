"""Commands that look at runs, and the demo."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from volflow.cli.values import Json, Quiet, say
from volflow.errors import Damaged, InvalidInput, RunFailed

__all__ = ["demo", "status", "verify"]

Out = Annotated[str, typer.Argument(help="An output of volflow.", metavar="OUT")]


def verify(out: Out, as_json: Json = False, quiet: Quiet = False) -> None:
    """Read an output back and compare it with its checksums: every block, and an exported file.

    Blocks that are bad are marked undone: running the same command again repairs just these.
    Exit code 3 where a block is bad, or a file is damaged, changed or missing; 1 where blocks are
    only missing.
    """
    from volflow.report.facts.run_state import coverage_facts
    from volflow.store.verify import verify as read_back

    coverage = read_back(out, progress=None if quiet else _count)
    say(coverage_facts(coverage), as_json, f"{coverage}\n{coverage.map()}".rstrip())
    if not coverage.ok:
        raise typer.Exit(Damaged.exit_code if coverage.damaged else RunFailed.exit_code)


def status(out: Out, as_json: Json = False) -> None:
    """Say how far an output has come, from its journal; no voxel is read."""
    from volflow.report.facts.run_state import run_facts, run_text

    facts = run_facts(out)
    say(facts, as_json, run_text(facts))


def demo(
    which: Annotated[
        str | None,
        typer.Argument(metavar="huge", help="A CT of 1.04 GiB in 768 MiB of memory, instead."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder for what the demo writes.")
    ] = "demo-output",
) -> None:
    """Segment a real MRI with a small network: convert, predict, verify, preview.

    With the word huge, a CT larger than the memory it is given; killed at half, resumed, verified.
    """
    if which is None:
        from volflow.demo.journey import run_demo

        run_demo(out=out)
    elif which == "huge":
        from volflow.demo.huge import run_huge

        run_huge(out=out)
    else:
        raise InvalidInput(
            f"there is no demo {which!r}; run volflow demo, or volflow demo huge for the large one"
        )


def _count(done: int, total: int) -> None:
    """Show how many blocks have been read, on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\rverify: {done}/{total} blocks{end}")
        sys.stderr.flush()
