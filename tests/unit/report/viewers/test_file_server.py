"""The server of a viewer: exact ranges, nothing outside its folders, nothing for other sites."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import tracemalloc
from types import SimpleNamespace

import pytest

from volflow.errors import InvalidInput
from volflow.report.viewers.file_server import (
    PUBLIC_CLIENT,
    VolumeServer,
    file_below,
)

BYTES = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A volume and a viewer's pages, and beside them what nobody may read."""
    folder = tmp_path_factory.mktemp("served").resolve()
    (folder / "scan.zarr" / "0" / "c").mkdir(parents=True)
    (folder / "scan.zarr" / "zarr.json").write_text('{"zarr_format": 3}')
    (folder / "scan.zarr" / "0" / "c" / "0").write_bytes(BYTES)
    (folder / "scan.zarr" / "0" / "empty").write_bytes(b"")
    (folder / "scan.zarr" / "a b%.json").write_text("{}")
    (folder / "secret").write_text("patient")
    (folder / "client").mkdir()
    (folder / "client" / "index.html").write_text("<html>")
    (folder / "client" / "main.js").write_text("//")
    (folder / "client" / "x.wasm").write_bytes(b"w")
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return folder / "scan.zarr"


def serve(folder):
    return VolumeServer(
        "127.0.0.1",
        0,
        lambda address: f"/v/0/#!{address}",
        [folder / "scan.zarr"],
        texts={"/names/0/info": "[1]"},
        client=folder / "client",
    )


@pytest.fixture(scope="module")
def server(folder):
    server = serve(folder)
    yield server
    server.close()


@pytest.fixture
def brief(folder):
    """A server that a test may close."""
    server = serve(folder)
    yield server
    server.close()


def ask(server, path, method="GET", **headers):
    """One request, its path sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    return SimpleNamespace(status=answer.status, body=body, headers=answer.headers)


def send(connection, path):
    connection.request("GET", path)
    return connection.getresponse().read()


def test_a_file_comes_whole(server):
    answer = ask(server, "/volumes/0/0/c/0")
    assert (answer.status, answer.body) == (200, BYTES)
    assert answer.headers["Content-Length"] == str(len(BYTES))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1000-", 1000, 1024),
        ("bytes=1000-99999", 1000, 1024),
        ("bytes=-16", 1008, 1024),
        ("bytes= 5-6 ", 5, 7),
    ],
)
def test_a_range_is_what_numpy_would_cut(server, asked, first, stop):
    answer = ask(server, "/volumes/0/0/c/0", Range=asked)
    assert (answer.status, answer.body) == (206, BYTES[first:stop])
    assert answer.headers["Content-Range"] == f"bytes {first}-{stop - 1}/1024"
    assert answer.headers["Content-Length"] == str(stop - first)


@pytest.mark.parametrize(
    ("path", "asked", "size"),
    [
        ("/volumes/0/0/c/0", "bytes=1024-", 1024),
        ("/volumes/0/0/c/0", "bytes=2000-3000", 1024),
        ("/volumes/0/0/c/0", "bytes=-0", 1024),
        ("/volumes/0/0/c/0", "bytes=5-2", 1024),
        ("/volumes/0/0/empty", "bytes=0-0", 0),
        ("/volumes/0/0/empty", "bytes=-5", 0),
    ],
)
def test_a_range_beyond_the_file_is_416(server, path, asked, size):
    answer = ask(server, path, Range=asked)
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=-99999",
        "bytes=-",
        "bytes=a-b",
        "lines=0-1",
        "bytes=0-1,4-5",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_all_or_no_single_range_gives_the_whole_file(server, asked):
    answer = ask(server, "/volumes/0/0/c/0", Range=asked)
    assert (answer.status, answer.body) == (200, BYTES)


def test_head_says_the_same_and_sends_nothing(server):
    for path in ("/volumes/0/0/c/0", "/names/0/info", "/v/0/", "/volumes/0/none", "/"):
        whole, head = ask(server, path), ask(server, path, "HEAD")
        assert (head.status, head.body) == (whole.status, b"")
        for name in ("Content-Length", "Content-Type", "Location", "Accept-Ranges"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/volumes/0/zarr.json", "application/json"),
        ("/volumes/0/a%20b%25.json", "application/json"),
        ("/volumes/0/0/c/0", "application/octet-stream"),
        ("/names/0/info", "application/json"),
        ("/v/0/", "text/html"),
        ("/v/0/main.js", "text/javascript"),
        ("/v/0/x.wasm", "application/wasm"),
    ],
)
def test_types(server, path, kind):
    answer = ask(server, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_page_in_a_volume_is_data(server, store):
    (store / "page.html").write_text("<script>")
    (store / "code.js").write_text("fetch('/')")
    for name in ("page.html", "code.js"):
        kind = ask(server, f"/volumes/0/{name}").headers["Content-Type"]
        assert kind == "application/octet-stream"


@pytest.mark.parametrize(
    "path",
    [
        "/volumes/0/0/c/9",  # a chunk that was never written
        "/volumes/0/../secret",
        "/volumes/0/0/../../../secret",
        "/volumes/0/%2e%2e/secret",
        "/volumes/0/%2E%2E%2Fsecret",
        "/volumes/0/..%2fsecret",
        "/volumes/0/./zarr.json",
        "/volumes/0//zarr.json",
        "/volumes/0//etc/passwd",
        "/volumes/0/%2fetc%2fpasswd",
        "/volumes/0/%252e%252e/secret",
        "/volumes/0/..\\secret",
        "/volumes/0/zarr.json%00",
        "/volumes/0/" + "x" * 5000,
        "/volumes/0/",
        "/volumes/0",
        "/volumes/0/0",
        "/volumes/0/0/",
        "/volumes/0/zarr.json/",
        "/volumes/",
        "/volumes/1/zarr.json",
        "/volumes/../secret",
        "/v/0/../../secret",
        "/v/0/%2e%2e/secret",
        "/v/0",
        "/v/1/",
        "/names/0/",
        "//etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/volumes/0/zarr.json",
        "*",
    ],
)
def test_nothing_else_is_there(server, path):
    answer = ask(server, path)
    assert (answer.status, answer.body) == (404, b"")
    assert ask(server, path, "HEAD").status == 404


def test_links_do_not_leave_the_folder(server, store):
    (store / "out").symlink_to(store.parent / "secret")
    (store / "up").symlink_to(store.parent)
    (store / "round").symlink_to(store / "round")
    (store / "inside").symlink_to(store / "0" / "c" / "0")
    for path in ("out", "up/secret", "round", "up/scan.zarr/../secret"):
        assert ask(server, f"/volumes/0/{path}").status == 404
    assert ask(server, "/volumes/0/inside").body == BYTES
    assert ask(server, "/volumes/0/up/scan.zarr/zarr.json").status == 200  # comes back inside


def test_only_regular_files(store):
    os.mkfifo(store / "pipe")
    for name in ("pipe", "0", "none"):
        assert file_below(store, name) is None
    assert file_below(store, "zarr.json") == store / "zarr.json"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_taken_for_zeros(server, store):
    (store / "closed").write_bytes(b"1")
    (store / "closed").chmod(0)
    assert ask(server, "/volumes/0/closed").status == 403


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (PUBLIC_CLIENT, True),
        ("http://127.0.0.1:9999", True),
        ("http://localhost:3000", True),
        ("http://[::1]:80", True),
        ("https://evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost:80@evil.example", False),
        (f"{PUBLIC_CLIENT}.evil.example", False),
        ("http://[", False),
        ("null", False),
    ],
)
def test_which_sites_may_read(server, origin, allowed):
    for path in ("/volumes/0/0/c/0", "/volumes/0/none", "/names/0/info"):
        headers = ask(server, path, Origin=origin, Range="bytes=0-3").headers
        assert headers["Access-Control-Allow-Origin"] == (origin if allowed else None)
        assert headers["Vary"] == "Origin"
        exposed = headers["Access-Control-Expose-Headers"]
        assert exposed == ("Content-Range, Content-Length" if allowed else None)


def test_preflight(server):
    answer = ask(
        server, "/volumes/0/0/c/0", "OPTIONS", Origin=PUBLIC_CLIENT,
        Access_Control_Request_Method="GET", Access_Control_Request_Headers="range",
        Access_Control_Request_Private_Network="true",
    )  # fmt: skip
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == PUBLIC_CLIENT
    assert "GET" in answer.headers["Access-Control-Allow-Methods"]
    assert "Range" in answer.headers["Access-Control-Allow-Headers"]
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    plain = ask(server, "/volumes/0/0/c/0", "OPTIONS", Origin="https://evil.example")
    assert plain.headers["Access-Control-Allow-Origin"] is None
    assert plain.headers["Access-Control-Allow-Private-Network"] is None


def test_a_foreign_name_for_this_machine_is_refused(server):
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example"):
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = ask(server, "/volumes/0/zarr.json", method, Host=host)
            assert (answer.status, answer.body) == (403, b"")
    for host in ("localhost", "127.0.0.1:1", f"LOCALHOST:{server.port}", "[::1]:5"):
        assert ask(server, "/volumes/0/zarr.json", Host=host).status == 200


def test_the_front_page_leads_on_from_where_it_was_reached(server):
    answer = ask(server, "/", Host="localhost:9000")
    assert (answer.status, answer.headers["Location"]) == (302, "/v/0/#!http://localhost:9000")


def test_writing_is_not_possible(server, store):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(server, "/volumes/0/zarr.json", method).status == 405
    assert (store / "zarr.json").is_file()


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.connect()
    first = connection.sock
    for path, status in (
        ("/volumes/0/0/c/0", 200), ("/volumes/0/none", 404), ("/volumes/0/zarr.json", 200),
    ):  # fmt: skip
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert connection.sock is first  # a missing chunk costs no new connection
    connection.close()


def test_many_viewers_at_once(server):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(server, "/volumes/0/0/c/0").body))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BYTES] * 24


@pytest.mark.slow
def test_a_large_file_is_never_held(server, store):
    size = 1 << 30
    with (store / "large").open("wb") as file:
        file.truncate(size)  # takes no space
    tracemalloc.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET /volumes/0/large HTTP/1.0\r\n\r\n")
            got, piece = 0, bytearray(1 << 20)
            while part := raw.recv_into(piece):
                got += part
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert got > size
    assert peak < 1 << 23


def test_a_viewer_that_goes_away_leaves_no_word(brief, store, capfd):
    with (store / "large").open("wb") as file:
        file.truncate(1 << 26)
    for request in (
        b"GET /volumes/0/large HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"",
        b"\x16\x03\0",
    ):
        with socket.create_connection(("127.0.0.1", brief.port)) as raw:
            raw.sendall(request)
    assert ask(brief, "/volumes/0/zarr.json").status == 200
    brief.close()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_cut_ends_the_connection_without_a_word(brief, store, capfd):
    with (store / "large").open("wb") as file:
        file.truncate(1 << 26)
        connection = http.client.HTTPConnection("127.0.0.1", brief.port, timeout=20)
        connection.request("GET", "/volumes/0/large")
        answer = connection.getresponse()
        answer.read(1)
        file.truncate(0)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    connection.close()
    assert ask(brief, "/volumes/0/zarr.json").status == 200
    brief.close()
    assert capfd.readouterr() == ("", "")


def test_events_last_until_the_end(brief):
    connection = http.client.HTTPConnection("127.0.0.1", brief.port, timeout=20)
    connection.request("GET", "/events/0?c=1")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"
    brief.close()
    assert answer.read() == b""
    connection.close()


def test_closing_ends_open_connections_and_frees_the_port(brief):
    connection = http.client.HTTPConnection("127.0.0.1", brief.port, timeout=20)
    connection.request("GET", "/volumes/0/zarr.json")
    connection.getresponse().read()
    brief.close()
    brief.close()
    connection.auto_open = False
    with pytest.raises((http.client.HTTPException, OSError)):
        send(connection, "/volumes/0/zarr.json")
    connection.close()
    VolumeServer("127.0.0.1", brief.port, str, []).close()


def test_a_busy_port_is_named(server):
    message = rf"port {server.port} is taken by another program; --port 0"
    with pytest.raises(InvalidInput, match=message):
        VolumeServer("127.0.0.1", server.port, str, [])


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_impossible_ports_are_refused(port):
    with pytest.raises(InvalidInput, match=rf"port must be 0 .* to 65535, given {port}"):
        VolumeServer("127.0.0.1", port, str, [])


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "::g", "a" * 300])
def test_a_host_that_is_not_here_is_refused(host):
    with pytest.raises(InvalidInput, match="host must be an address of this machine"):
        VolumeServer(host, 0, str, [])


def test_other_machines_are_known_as_such(store):
    server = VolumeServer("0.0.0.0", 0, str, [store])
    try:
        assert not server.loopback
        assert server.address == f"http://{socket.gethostname()}:{server.port}"
        assert ask(server, "/volumes/0/zarr.json", Host="any.example").status == 200
    finally:
        server.close()
    local = VolumeServer("localhost", 0, str, [])
    assert local.loopback
    local.close()


def test_version_6_addresses():
    if not socket.has_ipv6:
        pytest.skip(reason="this machine has no IPv6")
    try:
        server = VolumeServer("::1", 0, str, [])
    except InvalidInput:
        pytest.skip(reason="this machine has no IPv6 loopback")
    assert server.address == f"http://[::1]:{server.port}"
    assert server.loopback
    server.close()
