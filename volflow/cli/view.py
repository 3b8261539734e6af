"""The command that shows volumes in a viewer."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from volflow.cli.values import Json, say

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
        typer.Option(help="Where to serve; 0 takes any that is free. Default: 8642, or any."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at. Others can read the volumes then.")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the link.")] = False,
    as_json: Json = False,
) -> None:
    """Serve volumes to Neuroglancer and print the link; Ctrl-C ends it.

    Only this machine can read them. The viewer comes with the extra "view" and works offline;
    without it, the link leads to the public one.
    """
    if napari:
        from volflow.report.napari import napari_snippet

        script = napari_snippet(*volumes or ())
        say({"napari": script}, as_json, script.rstrip("\n"))
        return
    from volflow.report.view import view as serve

    with serve(*volumes or (), host=host, port=port, open_browser=open_browser) as shown:
        if not shown.loopback:
            typer.echo(f"volflow: anyone who reaches {shown.url} can read the volumes", err=True)
        if shown.client != "installed":
            told = (
                f'the viewer itself comes from {shown.client}; offline: pip install "volflow[view]"'
            )
            typer.echo(f"volflow: {told}", err=True)
        if as_json:  # in one line: what reads it must not wait for the end
            facts = {"url": shown.url, "client": shown.client, "state": shown.state}
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            typer.echo(f"{shown.url}\nCtrl-C ends it")
        try:
            shown.wait()
        except KeyboardInterrupt:
            return  # the way to end it
