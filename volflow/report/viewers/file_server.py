"""A small HTTP server that lets a viewer on this machine read a few folders, and nothing else.

Volumes may hold patients, so everything is closed that a viewer does not need. The server listens
on loopback by default, lets no web site read but the public viewer, answers to no name that a
foreign site could point at this machine, lists nothing, and serves only regular files inside the
given folders. Ranges, HEAD and keep-alive are those of tornado's `StaticFileHandler`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from volflow.errors import InvalidInput

__all__ = ["CLIENT_PATH", "PUBLIC_CLIENT", "VolumeServer", "file_below"]

logger = logging.getLogger(__name__)

PUBLIC_CLIENT = "https://neuroglancer-demo.appspot.com"
# The client of the package knows itself by such a path, and waits for events at the other.
CLIENT_PATH, EVENTS_PATH = "/v/0", "/events/0"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".wasm": "application/wasm",
}
DATA = "application/octet-stream"
MOST_BODY = 2**16  # bytes that a request may bring; none is of use
PIECE_BYTES = 2**19  # sent at once
IDLE_S = 60.0  # after which a silent connection is closed
ALIVE_S = 15.0  # between signs of life on a connection that is held open


class VolumeServer:
    """Serves in a thread from the moment it is made, until `close` or the end of the process.

    Parameters
    ----------
    host
        An address of this machine; others can reach it if it is not loopback.
    port
        Where to listen; 0 takes any that is free.
    home
        Where ``/`` leads, given the address by which the viewer reached the server; through a
        tunnel that differs from the server's own.
    volumes
        Resolved folders, served at ``/volumes/0/``, ``/volumes/1/``, …; all their files are data,
        whatever their names. Or what returns the bytes of a file by its path below there, and None
        where there is none; it is called for one file at a time.
    texts
        JSON by the path at which it is served, in place of a file of a volume, too.
    client
        Folder of a viewer's pages and scripts.

    Raises
    ------
    InvalidInput
        If the port is taken or not allowed, or the host is not an address of this machine.

    Examples
    --------
    >>> from urllib.request import urlopen
    >>> server = VolumeServer("127.0.0.1", 0, lambda address: "", [], texts={"/info": "{}"})
    >>> urlopen(server.address + "/info").read()
    b'{}'
    >>> server.close()
    """

    def __init__(
        self,
        host: str,
        port: int,
        home: Callable[[str], str],
        volumes: Sequence[Path | Callable[[str], bytes | None]],
        *,
        texts: Mapping[str, str] | None = None,
        client: Path | None = None,
    ) -> None:
        if not 0 <= port <= 65535:
            raise InvalidInput(f"port must be 0 (any that is free) to 65535, given {port}")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=64)
        except (OSError, UnicodeError) as error:
            raise InvalidInput(_refusal(host, port, error)) from error
        listening.setblocking(False)
        self.host, self.port = host, int(listening.getsockname()[1])
        texts = texts or {}
        routes: list[Any] = [(EVENTS_PATH, _Events), *((re.escape(at), _Page) for at in texts)]
        self._maker = ThreadPoolExecutor(1, "volflow-chunks")
        for n, served in enumerate(volumes):
            if isinstance(served, Path):
                routes.append((rf"/volumes/{n}/(.*)", _Files, {"path": str(served)}))
            else:
                made = {"content": served, "maker": self._maker}
                routes.append((rf"/volumes/{n}/(.*)", _Made, made))
        if client is not None:
            options = {"path": str(client), "default_filename": "index.html"}
            routes.append((rf"{CLIENT_PATH}/(.*)", _Files, options))
        self._loop = asyncio.new_event_loop()
        self._end, self._streams = self._loop.create_future(), WeakSet[asyncio.Task[Any]]()
        application = Application(
            routes, default_handler_class=_Page, log_function=lambda handler: None,
            server=self, home=home, texts=texts, end=self._end, streams=self._streams,
        )  # fmt: skip
        self._closed = threading.Event()
        arguments = (application, listening)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()

    @property
    def loopback(self) -> bool:
        """Return True if only this machine can read the volumes."""
        return self.host in LOOPBACK or self.host.startswith("127.")

    @property
    def address(self) -> str:
        """The beginning of every address, such as ``http://127.0.0.1:8642``."""
        name = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    def wait(self) -> None:
        """Return when it is closed; Ctrl-C ends the wait."""
        self._closed.wait()

    def close(self) -> None:
        """Stop serving and give the port back; what is being sent is cut off."""
        if not self._closed.is_set():
            self._loop.call_soon_threadsafe(self._end.set_result, None)
            self._thread.join()
            self._maker.shutdown(wait=False, cancel_futures=True)
            self._closed.set()

    def _run(self, application: Application, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(application, listening))

    async def _serve(self, application: Application, listening: socket.socket) -> None:
        server = HTTPServer(application, idle_connection_timeout=IDLE_S, max_body_size=MOST_BODY)
        server.add_socket(listening)
        await self._end
        server.stop()
        if self._streams:
            await asyncio.wait(self._streams)
        await server.close_all_connections()


def _refusal(host: str, port: int, error: OSError | UnicodeError) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"port {port} is taken by another program; --port 0 (port=0) takes any that is free"
    if code == errno.EACCES:
        return f"port {port} is reserved for the system; choose one above 1023"
    return (
        f"host must be an address of this machine, given {host!r}"
        f" ({getattr(error, 'strerror', None) or error}); leave it out to serve this machine only"
    )


class _Answer(RequestHandler):
    """What all answers have in common; writing is not possible (405)."""

    def set_default_headers(self) -> None:
        """Set what every answer needs, errors too: a missing chunk is read as zeros."""
        origin = self.request.headers.get("Origin", "")
        if origin == PUBLIC_CLIENT or LOCAL_ORIGIN.fullmatch(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
        self.set_header("Vary", "Origin")
        self.set_header("Cache-Control", "no-store")  # a volume may still be written
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Type", "text/plain")
        self.set_header("Server", "volflow")

    def prepare(self) -> None:
        """Refuse a page that reached this machine by a name that only pretends to be its own."""
        server = self.settings["server"]
        name = re.sub(r":[0-9]*$", "", self.request.headers.get("Host", "")).strip("[]").lower()
        if server.loopback and name not in ("", *LOOPBACK, server.host):
            raise HTTPError(403)

    def options(self, *_: str) -> None:
        """Tell a browser what a page of another origin may ask."""
        self.set_status(204)
        self.clear_header("Content-Type")
        self.set_header("Allow", "GET, HEAD, OPTIONS")
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.set_header("Access-Control-Allow-Headers", "Range")
        self.set_header("Access-Control-Max-Age", "7200")
        if self.request.headers.get("Access-Control-Request-Private-Network") == "true":
            self.set_header("Access-Control-Allow-Private-Network", "true")

    def write_error(self, status_code: int, **_: Any) -> None:
        """Send no page about an error."""
        self.finish()

    def compute_etag(self) -> None:
        """Give no tag: it would read the whole file."""


class _Page(_Answer):
    def get(self) -> None:
        """Lead from ``/`` to the viewer, from where the page was reached, or send a text."""
        path, host = self.request.path, self.request.headers.get("Host")
        if path == "/":
            address = f"http://{host}" if host else self.settings["server"].address
            self.redirect(self.settings["home"](address))
        elif path in self.settings["texts"]:
            self.set_header("Content-Type", TYPES[".json"])
            self.write(self.settings["texts"][path])
        else:
            raise HTTPError(404)

    head = get


class _Events(_Answer):
    async def get(self) -> None:
        """Hold a connection open, so that the other side sees when this one ends."""
        self.head()
        self.settings["streams"].add(asyncio.current_task())
        end = self.settings["end"]
        with suppress(StreamClosedError):  # the viewer went away
            while not end.done():
                await self.flush()
                await asyncio.wait([end], timeout=ALIVE_S)
                if not end.done():
                    self.write(b": alive\n\n")

    def head(self) -> None:
        """Say what `get` would send."""
        self.set_header("Content-Type", "text/event-stream")


class _Made(_Answer):
    def initialize(self, content: Callable[[str], bytes | None], maker: Executor) -> None:
        """Take over what makes the files, and the thread in which it does."""
        self.content, self.maker, self.gone = content, maker, False

    def on_connection_close(self) -> None:
        """Note that the viewer shows another place by now."""
        self.gone = True

    async def get(self, path: str) -> None:
        """Send a file that is made now, unless nobody waits for it when its turn comes."""
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self.maker, self._make, path)
        if made is None:
            raise HTTPError(404)
        self.set_header("Content-Type", DATA)
        self.write(made)

    def _make(self, path: str) -> bytes | None:
        return None if self.gone else self.content(path)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Say in one line what could not be made: the viewer shows nothing there."""
        if not isinstance(error, HTTPError):
            logger.warning("%s: %s: %s", self.request.path, kind.__name__, error)


class _Files(_Answer, StaticFileHandler):
    CACHE_MAX_AGE = 0  # nothing is cached, even if a version is asked for

    @classmethod
    def get_absolute_path(cls, root: str, path: str) -> str:
        """Leave the path as it is; `file_below` checks it."""
        return path

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """Return the file to send; 404 for all that is not a regular file in the folder."""
        file = file_below(Path(root), self.path or self.default_filename or "")
        if file is None:
            raise HTTPError(404)
        if not os.access(file, os.R_OK):  # not 404, which a viewer takes for a chunk of zeros
            raise HTTPError(403)
        return str(file)

    @classmethod
    def get_content(
        cls, abspath: str, start: int | None = None, end: int | None = None
    ) -> Generator[bytes, None, None]:
        """Yield a file in pieces of 512 KiB: tornado keeps something of each until the end."""
        with Path(abspath).open("rb") as file:
            low = file.seek(start or 0)
            high = os.fstat(file.fileno()).st_size if end is None else end
            while low < high and (piece := file.read(min(PIECE_BYTES, high - low))):
                low += len(piece)
                yield piece

    def get_content_type(self) -> str:
        """Return the type of a page or script of a client; what a volume holds is data."""
        suffix = Path(str(self.absolute_path)).suffix
        known = suffix == ".json" or self.default_filename is not None
        return TYPES.get(suffix, DATA) if known else DATA

    def log_exception(self, *_: Any) -> None:
        """Say nothing of a file that was cut while it was sent; its connection ends."""


def file_below(folder: Path, path: str) -> Path | None:
    """Return the regular file at a path below a folder, or None.

    Parameters
    ----------
    folder
        Resolved, that is without links.
    path
        With ``/`` between its parts. None leaves the folder, neither by ``..`` nor by a link.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return None
    try:
        file = folder.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):  # missing, too long a name, or links in a circle
        return None
    return file if file.is_relative_to(folder) and file.is_file() else None
