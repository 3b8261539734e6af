"""A small HTTP server that lets a viewer on this machine read a few folders, and nothing else.

Volumes may hold patients, so everything is closed that a viewer does not need. The server listens
on loopback unless told otherwise, lets no web site read but the public viewer, answers to no name
that a foreign site could point at this machine, lists nothing, and serves regular files inside the
named folders alone. Files are handed to the socket by the kernel: a shard of any size costs no
memory.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, BinaryIO
from urllib.parse import unquote

from volflow.errors import InvalidInput

__all__ = ["PUBLIC_CLIENT", "Site", "VolumeServer", "byte_range", "file_below"]

PUBLIC_CLIENT = "https://neuroglancer-demo.appspot.com"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".wasm": "application/wasm",
}
METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
IDLE_S = 60.0  # after which a silent connection is closed
ALIVE_S = 15.0  # between signs of life on a connection that is held open


@dataclass(frozen=True)
class Site:
    """What a server answers, by path.

    Parameters
    ----------
    home
        Where ``/`` leads, given the address by which the viewer reached the server: through a
        tunnel that is another one than the server's own.
    volumes, clients
        Folders by the first parts of their path, such as ``"/volumes/0"``. A volume's files are
        data whatever their names; those of a client are pages and scripts.
    pages
        JSON by its whole path.
    streams
        Paths at which a client waits for events; there are none, but the connection tells it that
        the server is there.
    """

    home: Callable[[str], str] | None = None
    volumes: Mapping[str, Path] = field(default_factory=dict)
    clients: Mapping[str, Path] = field(default_factory=dict)
    pages: Mapping[str, bytes] = field(default_factory=dict)
    streams: frozenset[str] = frozenset()


class VolumeServer(ThreadingHTTPServer):
    """Listens from the moment it is made; serves `site` from `start` to `close`.

    Parameters
    ----------
    host
        An address of this machine; others can reach it where that is not loopback.
    port
        Where to listen; 0 takes any that is free.

    Raises
    ------
    InvalidInput
        Where the port is taken or not allowed, or the host is not of this machine.

    Examples
    --------
    >>> from urllib.request import urlopen
    >>> server = VolumeServer("127.0.0.1", 0)
    >>> server.start(Site(pages={"/hello": b"{}"}))
    >>> urlopen(server.address + "/hello").read()
    b'{}'
    >>> server.close()
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        if not 0 <= port <= 65535:
            raise InvalidInput(f"port must be 0 (any that is free) to 65535, given {port}")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host, self.site, self.closing = host, Site(), threading.Event()
        self._open: set[Any] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise InvalidInput(_refusal(host, port, error)) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK or self.host.startswith("127.")

    @property
    def address(self) -> str:
        """What to put before a path, such as ``http://127.0.0.1:8642``."""
        name = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    def start(self, site: Site) -> None:
        """Serve, in a thread that ends with the process."""
        self.site = site
        self._thread.start()

    def close(self) -> None:
        """Stop serving and give the port back; what is being sent is cut off."""
        self.closing.set()
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was faster

    def server_bind(self) -> None:
        """Take the port; what the standard library does beside asks a name server and may wait."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of viewers that went away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program; --port 0 (port=0) takes any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for the system; choose one above 1023"
    return (
        f"host must be an address of this machine, given {host!r}"
        f" ({error.strerror or error}); leave it out to serve this machine only"
    )


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; a viewer asks for hundreds of pieces over each."""

    server: VolumeServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "volflow", ""
    disable_nagle_algorithm = True  # head and body are two writes
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Send what is at the path, or a range of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Say what `do_GET` would send."""
        self._answer(body=False)

    def do_OPTIONS(self) -> None:
        """Tell a browser what a page of another origin may ask."""
        if self._refused():
            return
        self.send_response(HTTPStatus.NO_CONTENT)
        self.send_header("Allow", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self.send_header("Access-Control-Max-Age", "7200")
        if self.headers.get("Access-Control-Request-Private-Network") == "true":
            self.send_header("Access-Control-Allow-Private-Network", "true")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a viewer asks hundreds of times a second."""

    def end_headers(self) -> None:
        """Add what every answer needs, errors too: a missing chunk is read as zeros."""
        origin = self.headers.get("Origin", "") if hasattr(self, "headers") else ""
        if origin == PUBLIC_CLIENT or LOCAL_ORIGIN.fullmatch(origin):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
        self.send_header("Vary", "Origin")
        self.send_header("Cache-Control", "no-store")  # a volume may still be written
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def _refused(self) -> bool:
        """Whether a page reached this machine by a name that only pretends to be its own."""
        name = re.sub(r":[0-9]*$", "", self.headers.get("Host", "")).strip("[]").lower()
        if not self.server.loopback or name in ("", *LOOPBACK, self.server.host):
            return False
        self._head(HTTPStatus.FORBIDDEN, "text/plain", 0)
        return True

    def _answer(self, *, body: bool) -> None:
        if self._refused():
            return
        site, path = self.server.site, self.path.split("?")[0]
        if path == "/" and site.home:
            host = self.headers.get("Host")
            address = f"http://{host}" if host else self.server.address
            self._head(HTTPStatus.FOUND, "text/plain", 0, Location=site.home(address))
        elif path in site.pages:
            page = site.pages[path]
            self._head(HTTPStatus.OK, "application/json", len(page))
            if body:
                self.wfile.write(page)
        elif path in site.streams:
            self._stream(body)
        else:
            self._send_file(path, body)

    def _head(self, status: HTTPStatus, kind: str, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _stream(self, body: bool) -> None:
        """Hold a connection open, so that the other side sees when this one ends."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        while body and not self.server.closing.wait(ALIVE_S):
            self.wfile.write(b": alive\n\n")

    def _send_file(self, path: str, body: bool) -> None:
        """Send a file of one of the folders, or a range of it; 404 for all else."""
        file, kind = self._find(path)
        if file is None:
            self._head(HTTPStatus.NOT_FOUND, "text/plain", 0)
            return
        try:
            opened = file.open("rb")
        except OSError:  # not 404, which a viewer takes for a chunk of zeros
            self._head(HTTPStatus.FORBIDDEN, "text/plain", 0)
            return
        with opened:
            size = os.fstat(opened.fileno()).st_size
            wanted = byte_range(self.headers.get("Range") if body else None, size)
            if wanted is None:
                self._head(HTTPStatus.OK, kind, size, Accept_Ranges="bytes")
                wanted = range(size)
            elif wanted:
                shown = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
                self._head(HTTPStatus.PARTIAL_CONTENT, kind, len(wanted), Content_Range=shown)
            else:
                status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                self._head(status, "text/plain", 0, Content_Range=f"bytes */{size}")
            if body and wanted:
                self._pour(opened, wanted)

    def _find(self, path: str) -> tuple[Path | None, str]:
        """The file at a path, and what kind of content it is."""
        site = self.server.site
        parts = path.split("/", 3)
        if len(parts) < 4:
            return None, ""
        prefix, rest = "/".join(parts[:3]), parts[3]
        if prefix in site.clients:
            file = file_below(site.clients[prefix], rest or "index.html")
            return file, TYPES.get(file.suffix if file else "", "application/octet-stream")
        file = file_below(site.volumes[prefix], rest) if prefix in site.volumes else None
        is_json = file is not None and (file.name in METADATA or file.suffix == ".json")
        return file, TYPES[".json"] if is_json else "application/octet-stream"

    def _pour(self, opened: BinaryIO, wanted: range) -> None:
        self.wfile.flush()
        sent = self.connection.sendfile(opened, wanted.start, len(wanted))
        if sent < len(wanted):  # the file was cut while it was sent
            self.close_connection = True


def file_below(folder: Path, path: str) -> Path | None:
    """The regular file at a path of a URL below a folder; None where there is none.

    Parameters
    ----------
    folder
        Resolved: without links.
    path
        With ``/`` between its parts and whatever a URL escapes. None leaves the folder, neither
        by ``..`` nor by a link.
    """
    parts = [unquote(part) for part in path.split("/")]
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        return None
    try:
        file = folder.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):  # missing, too long a name, or links in a circle
        return None
    return file if file.is_relative_to(folder) and file.is_file() else None


def byte_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks of a file.

    Parameters
    ----------
    header
        As sent, None where it was not.
    size
        Of the file, in bytes.

    Returns
    -------
    range or None
        Empty where the file has no such bytes; None for the whole file, which is also what
        RFC 9110 §14.2 allows for what is no range of bytes, or several.

    Examples
    --------
    >>> byte_range("bytes=2-4", 10), byte_range("bytes=-3", 10), byte_range("bytes=8-99", 10)
    (range(2, 5), range(7, 10), range(8, 10))
    >>> byte_range("bytes=10-", 10), byte_range("lines=1-2", 10)
    (range(0, 0), None)
    """
    match = RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    return range(start, stop) if start < stop else range(0)
