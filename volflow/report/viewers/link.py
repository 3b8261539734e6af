"""Look at volumes in Neuroglancer: a link, and the server behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import webbrowser
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.report.viewers.appearance import appearances
from volflow.report.viewers.file_server import CLIENT_PATH, PUBLIC_CLIENT, VolumeServer
from volflow.report.viewers.neuroglancer import class_names, fragment, viewer_state
from volflow.store.volume import Volume

__all__ = ["ViewerLink", "view"]

PORT = 8642  # tried first, so that links and tunnels last


class ViewerLink:
    """Volumes that are being served to a viewer, until `close` or the end of the process.

    Made by `view`; a context manager.

    Parameters
    ----------
    server
        Already serving.
    state
        What the viewer shows at first.
    client
        Where the viewer itself comes from: ``"installed"``, or the address of the public one.
    """

    def __init__(self, server: VolumeServer, state: dict[str, Any], client: str) -> None:
        self._server = server
        self.state = state
        self.client = client

    @property
    def url(self) -> str:
        """The link to open; it leads to the viewer, with the state in its address."""
        return f"{self._server.address}/"

    @property
    def loopback(self) -> bool:
        """Return True if only this machine can read the volumes."""
        return self._server.loopback

    def wait(self) -> None:
        """Return when it is closed; Ctrl-C ends the wait."""
        self._server.closing.wait()

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    def __enter__(self) -> ViewerLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ViewerLink({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">{self.url}</a>'


def view(
    *volumes: str | os.PathLike[str] | Volume,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
) -> ViewerLink:
    """Serve volumes to Neuroglancer, the first as the ground, later ones over it.

    A scan is shown in grey, scores as colours that add up, classes in their colours with their
    names; all levels of a pyramid are used, and only what is looked at is read. The viewer comes
    from the package ``neuroglancer`` where it is installed (extra ``view``) and then needs no
    network; otherwise the link leads to the public one, which reads from this machine as well.

    Parameters
    ----------
    volumes
        Paths of OME-Zarr volumes on this machine, or `Volume`. They lie where their metadata say,
        whatever their grids and units.
    host
        Where to listen. Anything but loopback lets others read the volumes.
    port
        None: 8642, or any that is free where that is taken. 0: any that is free.
    open_browser
        Open the link.

    Returns
    -------
    ViewerLink
        Has the link as ``url``; serves until its ``close()``, or the end of a ``with`` block.

    Raises
    ------
    InvalidInput
        If there is no volume, one is not a local volume or holds what Neuroglancer cannot show,
        their orientations differ, or the port is taken.

    Examples
    --------
    >>> import tempfile
    >>> import zarr
    >>> import volflow as vf
    >>> path = tempfile.mkdtemp() + "/scan.zarr"
    >>> array = zarr.create_array(path, shape=(8, 8, 8), chunks=(8, 8, 8), dtype="uint8")
    >>> with vf.view(path, port=0) as shown:
    ...     [layer["name"] for layer in shown.state["layers"]], shown.url.startswith("http://127.")
    (['scan'], True)
    """
    shown = appearances(volumes)
    viewer_state(shown, "")  # refuses before anything listens
    client = _installed_client()
    start = PUBLIC_CLIENT if client is None else CLIENT_PATH
    named = {n: json.dumps(class_names(one)) for n, one in enumerate(shown) if one.labels}
    server = _listen(host, port)
    server.start(
        lambda address: f"{start}/#{fragment(viewer_state(shown, address))}",
        [Path(str(one.volume.path)).resolve() for one in shown],
        names=named,
        client=client,
    )
    state = viewer_state(shown, server.address)
    started = ViewerLink(server, state, PUBLIC_CLIENT if client is None else "installed")
    if open_browser:
        webbrowser.open(started.url)
    return started


def _listen(host: str, port: int | None) -> VolumeServer:
    try:
        return VolumeServer(host, PORT if port is None else port)
    except InvalidInput:
        if port is not None:
            raise
        return VolumeServer(host, 0)


def _installed_client() -> Path | None:
    """Return the folder of Neuroglancer's pages in its package, found without importing it."""
    found = importlib.util.find_spec("neuroglancer")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = (Path(place) / "static" / "client").resolve()
        if (folder / "index.html").is_file():
            return folder
    return None
