"""The command that shows volumes in a viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from volflow.cli.values import Json, say
from volflow.report.grey_range import WINDOW, typed_window

if TYPE_CHECKING:
    from volflow.report.viewers.link import ViewerLink

__all__ = ["view"]


def view(
    volumes: Annotated[
        list[str] | None,
        typer.Argument(metavar="VOLUME...", help="A scan, and what shall lie over it."),
    ] = None,
    napari: Annotated[
        bool, typer.Option("--napari", help="Print a Python script that opens them in napari.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            help="The port; 0 takes any that is free. Default: 8642 if it is free, else any."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="The address to serve at. Beyond loopback others can read the volumes."),
    ] = "127.0.0.1",
    window: Annotated[str | None, typer.Option(help=WINDOW)] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the link.")] = False,
    as_json: Json = False,
) -> None:
    """Serve volumes to Neuroglancer and print the link; Ctrl-C ends it.

    The first is the ground, the others lie over it. Only this machine can read them. With the
    extra "view" no network is needed.
    """
    ends = None if window is None else typed_window("window", window)
    if napari:
        from volflow.report.viewers.napari import napari_snippet

        script = napari_snippet(*volumes or (), window=ends)
        say({"napari": script}, as_json, script.rstrip("\n"))
        return
    from volflow.report.viewers.link import view as serve

    try:
        with serve(
            *volumes or (), host=host, port=port, open_browser=open_browser, window=ends
        ) as shown:
            facts = {"url": shown.url, "client": shown.client, "state": shown.state}
            # In one line: what reads it must not wait for the end.
            typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else shown.url)
            for line in _notes(shown):
                typer.echo(f"volflow: {line}", err=True)
            shown.wait()
    except KeyboardInterrupt:
        return  # the way to end it


def _notes(shown: ViewerLink) -> Iterator[str]:
    if not shown.loopback:
        yield f"anyone who reaches {shown.url} can read the volumes"
    if shown.client != "installed":
        yield f'the viewer comes from {shown.client}; offline: pip install "volflow[view]"'
    yield "Ctrl-C ends it"
