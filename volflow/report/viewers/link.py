"""Look at volumes in Neuroglancer: a link, and the server behind it."""

from __future__ import annotations

import importlib.util
import json
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from volflow.errors import InvalidInput
from volflow.report.grey_range import Window
from volflow.report.viewers.appearance import Appearance, appearances
from volflow.report.viewers.computed_chunks import ComputedStore
from volflow.report.viewers.file_server import CLIENT_PATH, PUBLIC_CLIENT, VolumeServer
from volflow.report.viewers.neuroglancer import as_bytes, class_names, fragment, viewer_state
from volflow.store.volume import Volume

if TYPE_CHECKING:
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["ViewerLink", "view"]

PORT = 8642  # tried first, so that links and tunnels last


class ViewerLink(VolumeServer, AbstractContextManager["ViewerLink"]):
    """Volumes that are being served to a viewer, until `close` or the end of the process.

    Made by `view`; a context manager.

    Parameters
    ----------
    shown
        The layers of the volumes, that of the ground first.
    host, port
        Where to listen.
    """

    def __init__(self, shown: Sequence[Appearance], host: str, port: int) -> None:
        installed = _installed_client()
        start = PUBLIC_CLIENT if installed is None else CLIENT_PATH
        super().__init__(
            host,
            port,
            lambda address: f"{start}/#{fragment(viewer_state(shown, address))}",
            [_served(one.volume) for one in shown if one.channel == 0],
            texts={
                f"/names/{one.number}/info": json.dumps(class_names(one))
                for one in shown
                if one.labels
            }
            | {path: text for one in shown for path, text in as_bytes(one).items()},
            client=installed,
        )
        self.state = viewer_state(shown, self.address)
        self.client = PUBLIC_CLIENT if installed is None else "installed"

    @property
    def url(self) -> str:
        """The link to open; it leads to the viewer, with the state in its address."""
        return f"{self.address}/"

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ViewerLink({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">{self.url}</a>'


def view(
    *volumes: VolumeLike,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    window: Window = None,
) -> ViewerLink:
    """Serve volumes to Neuroglancer, the first as the ground, later ones over it.

    A scan is shown in grey, scores as colours that add up, classes in their colours with their
    names; all levels of a pyramid are used, and only what is looked at is read. The viewer comes
    from the package ``neuroglancer`` where it is installed (extra ``view``) and then needs no
    network; otherwise the link leads to the public one, which reads from this machine as well.

    Parameters
    ----------
    volumes
        Paths of OME-Zarr volumes on this machine, `Volume`, ``zarr.Array`` in a store on this
        machine; or an array in memory or of Dask, as `preview` takes it: of this only the chunks
        that are looked at are computed, one after the other. They lie where their metadata say,
        whatever their grids and units.
    host
        Where to listen. Anything but loopback lets others read the volumes.
    port
        None: 8642, or any that is free where that is taken. 0: any that is free.
    open_browser
        Open the link.
    window
        The values shown black and white of what is grey, or the name of a window for CT, as in
        `preview`.

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
    shown = appearances(volumes, window)
    viewer_state(shown, "")  # refuses before anything listens
    try:
        started = ViewerLink(shown, host, PORT if port is None else port)
    except InvalidInput:
        if port is not None:
            raise
        started = ViewerLink(shown, host, 0)
    if open_browser:
        webbrowser.open(started.url)
    return started


def _served(volume: Volume) -> Path | Callable[[str], bytes | None]:
    """Return where the files of a volume lie, or what makes them."""
    store = volume.array.store
    if isinstance(store, ComputedStore):
        return store.content
    return Path(str(volume.path)).resolve()


def _installed_client() -> Path | None:
    """Return the folder of Neuroglancer's pages in its package, found without importing it."""
    found = importlib.util.find_spec("neuroglancer")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = (Path(place) / "static" / "client").resolve()
        if (folder / "index.html").is_file():
            return folder
    return None
