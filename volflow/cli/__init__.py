"""The command line: one command per step of a journey, in the words of the library.

Exit codes: 0 done; 1 failed, the same command goes on; 2 refused, the user must change something;
3 data are damaged, or hold NaN where that is refused; 4 another run holds the output. Errors of
volflow bring theirs (`volflow.errors`); `_explain` knows all others. A user's mistake is one line
on standard error, and with ``--json`` an object on standard output, too; ``--debug``, anywhere,
shows where an error came from, and how memory is taken.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from volflow import __version__
from volflow.cli.typed import typed
from volflow.engine.pages import prepare_allocators
from volflow.errors import InvalidPipeline, VolflowError

__all__ = ["main", "run"]

DEBUG = "--debug"

# Each command: the module that holds its function, and the example that its help shows.
COMMANDS = {
    "demo": ("runs", "volflow demo --out demo-output"),
    "convert": ("volumes", "volflow convert scan.nii.gz scan.zarr"),
    "info": ("volumes", "volflow info scan.nii.gz"),
    "statistics": ("volumes", "volflow statistics scan.zarr --foreground nonzero"),
    "sample": ("sample", "volflow sample cases/ --sampler label --patch 64 -o sheet.png"),
    "predict": (
        "predict",
        "volflow predict scan.nii.gz seg.nii.gz --model bundle/ --memory 4GiB",
    ),
    "halo": ("halo", "volflow halo bundle/ --on scan.zarr --overlap 0 --overlap 0.5"),
    "resample": ("volumes", "volflow resample scan.nii.gz scan-1mm.zarr --spacing 1mm"),
    "pyramid": ("volumes", "volflow pyramid out.zarr"),
    "evaluate": (
        "evaluate",
        "volflow evaluate 'seg/{case}.nii.gz' 'labels/{case}.nii.gz' --csv scores.csv",
    ),
    "verify": ("runs", "volflow verify seg.nii.gz --recompute 20 --memory 4GiB"),
    "status": ("runs", "volflow status out.zarr"),
    "cancel": ("runs", "volflow cancel seg.zarr"),
    "export": ("volumes", "volflow export seg.zarr seg.nii.gz"),
    "preview": ("preview", "volflow preview seg.zarr --over scan.zarr -o seg.png"),
    "view": ("view", "volflow view scan.zarr seg.zarr"),
    "run": (
        "pipelines",
        "volflow run pipelines/segment.yaml --set input=scan.nii.gz --set output=p01",
    ),
}


class Interrupted(Exception):
    """Ctrl-C, or the signal by which schedulers end a job."""


class Commands(TyperGroup):
    """The group of commands, each made when it is asked for, of a module imported then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = COMMANDS  # by which typer names the nearest

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands without importing one."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, example = COMMANDS[cmd_name]
        function = getattr(importlib.import_module(f"volflow.cli.{module}"), cmd_name)
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(cmd_name, epilog=f"Example: {example}")(typed(function))
        return typer.main.get_command(alone)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interruption is never taken for an answer to a question."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"volflow {__version__}")
        raise typer.Exit


@app.callback()
def volflow(
    debug: Annotated[
        bool,
        typer.Option(DEBUG, help="Show where an error came from, and more; works after a command."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Run networks over 3-D volumes of any size: convert, sample, predict, verify, look."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are printed on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names in files may hold what no terminal can show
            stream.reconfigure(errors="backslashreplace")
    debug = DEBUG in arguments
    words = [word for word in arguments if word != DEBUG] or ["--help"]
    try:
        code = app(args=words, prog_name="volflow", standalone_mode=False)
    except Exception as error:
        explained = _explain(error)
        if explained is None:
            raise
        line, code = explained
        if debug:
            sys.stderr.write(traceback.format_exc())
        if line:
            sys.stderr.write(f"volflow: {line}\n")
        if line and "--json" in words:
            told = {"error": type(error).__name__, "message": line, "exit_code": code}
            sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        return code
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[str, int] | None:
    """One line and an exit code for what a user or a machine may do wrong; None for a fault."""
    if isinstance(error, InvalidPipeline):  # each of its lines is a mistake
        return str(error), error.exit_code
    if isinstance(error, VolflowError):
        lines = str(error).splitlines() or [type(error).__name__]
        return lines[0] + (f" ({DEBUG} shows more)" if lines[1:] else ""), error.exit_code
    if isinstance(error, Interrupted):
        return "stopped; what is done is kept, run the same command again to do the rest", 1
    if hasattr(error, "format_message"):  # what typer raises for a wrong command line
        message = " ".join(error.format_message().split()).rstrip(".")
        return f"{message}; see volflow --help, or --help of the command", 2
    if isinstance(error, BrokenPipeError):  # such as a pager that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", 1
    if isinstance(error, MemoryError):
        return "out of memory; run again with a smaller --memory", 1
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        return reason + (f": {error.filename}" if error.filename else ""), 1
    return None


def main() -> NoReturn:
    """Entry point of the command ``volflow``."""
    # SLURM and Kubernetes end a job so: it shall stop as cleanly as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if DEBUG in sys.argv:
        logging.basicConfig(format="volflow: %(message)s")
        logging.getLogger("volflow").setLevel(logging.DEBUG)
    prepare_allocators(own=True)
    sys.exit(run(sys.argv[1:]))
