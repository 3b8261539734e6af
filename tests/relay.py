"""A loopback HTTP server before an object store: passes on, counts, and fails as asked."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from volflow.store.remote.access import connect

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    range: str | None

    @property
    def voxels(self) -> bool:
        """Whether a shard or chunk of an array was read."""
        return self.method == "GET" and "/c/" in self.path


@dataclass(frozen=True)
class Fault:
    """How a request fails: answered by a status, cut off, cut short, or left without an answer.

    Parameters
    ----------
    kind
        ``"status"``, ``"reset"`` (the connection is broken before the answer), ``"lost"`` (after
        the store has done what was asked), ``"truncate"`` (half of the body), ``"stall"``.
    """

    kind: str
    status: int = 503
    stall_s: float = 0.0


@dataclass
class Relay:
    """Where the relay is, what it saw, and what is to fail.

    Parameters
    ----------
    url
        The endpoint.
    requests
        All so far, in order.
    fault
        Asked for each request; None lets it pass.
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], Fault | None] = lambda request: None

    def count(self, want: Callable[[Request], bool] = lambda request: True) -> int:
        """Return how many requests there were of a kind."""
        return sum(want(request) for request in list(self.requests))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        self.onward = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            super().handle()
        except (OSError, ValueError):  # the client has gone, or was cut off
            pass
        finally:
            self.onward.close()

    def relayed(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers.get("Range"))
        self.server.seen.requests.append(request)
        fault = self.server.seen.fault(request) or Fault("")
        time.sleep(fault.stall_s)
        if fault.kind == "reset":
            return self.cut()
        if fault.kind == "status":
            return self.answer(fault.status, [], b"<Error><Code>SlowDown</Code></Error>")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP | {"expect"}}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        self.onward.request(self.command, self.path, body or None, headers)
        response = self.onward.getresponse()
        found = response.read()
        if fault.kind == "lost":
            return self.cut()
        size = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(
            response.status, response.getheaders(), found, size, short=fault.kind == "truncate"
        )
        return None

    def answer(
        self, status: int, headers: Any, body: bytes, size: str | None = None, *,
        short: bool = False,
    ) -> None:  # fmt: skip
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", size or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":  # whose answers have none
            self.wfile.write(body[: len(body) // 2] if short else body)
        if short:
            self.cut()

    def cut(self) -> None:
        """Break the connection, so that the other side sees a reset."""
        self.wfile.flush()
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.rfile.close()  # which holds the connection
        self.connection.close()
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relayed


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, seen: Relay) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.seen = urlsplit(upstream).netloc, seen
        seen.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has gone


@contextmanager
def relay(upstream: str) -> Iterator[Relay]:
    """Start a relay before a store, such as ``http://127.0.0.1:10050``."""
    seen = Relay("")
    with _Server(upstream, seen) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def s3_in_memory() -> Iterator[str]:
    """Start a store that speaks S3 in this process, and return its endpoint."""
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    WSGIRequestHandler.log_request = lambda *args, **kwargs: None  # type: ignore[method-assign]
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """Return the variables that name a store on loopback and its keys."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "TESTKEY",
        "AWS_SECRET_ACCESS_KEY": "TESTSECRET",
        "AWS_REGION": "us-east-1",
    }


def upload(folder: str | os.PathLike[str], url: str) -> str:
    """Copy a folder to a store; returns the URL."""
    import obstore

    store = connect(url)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            obstore.put(store, path.relative_to(folder).as_posix(), path.read_bytes())
    return url


def objects(url: str) -> dict[str, bytes]:
    """Return what is stored below a URL, by key."""
    import obstore

    store = connect(url)
    keys = [meta["path"] for page in obstore.list(store) for meta in page]
    return {key: bytes(obstore.get(store, key).bytes()) for key in keys}


def empty(endpoint: str, bucket: str) -> None:
    """Delete all objects of a bucket."""
    import obstore
    from obstore.store import S3Store

    root = S3Store(bucket, endpoint=endpoint, client_options={"allow_http": True})
    if keys := [meta["path"] for page in obstore.list(root) for meta in page]:
        obstore.delete(root, keys)


def make_bucket(endpoint: str, name: str) -> None:
    """Make a bucket, with the keys that the environment holds; one that is there stays."""
    import obstore
    from obstore.store import S3Store

    root = S3Store(name, endpoint=endpoint, client_options={"allow_http": True})
    url = obstore.sign(root, "PUT", "", timedelta(minutes=1))
    with urlopen(urllib.request.Request(url, method="PUT")) as answer:
        answer.read()
