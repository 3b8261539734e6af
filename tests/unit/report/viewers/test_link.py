"""Volumes served to a viewer: the link, what stands behind it, and the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

import numpy as np
import pytest
import zarr

import volflow as vf
from volflow.cli import run
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.report.viewers import link as module
from volflow.report.viewers.file_server import PUBLIC_CLIENT
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec


def store(path, array, **meta):
    meta = {"spacing": (2.0, 1, 1), "unit": "millimeter", **meta}
    volume = create(path, VolumeSpec.of(array.shape, array.dtype, Meta(**meta), chunk=16, shard=32))
    volume.write(Roi.full(volume.shape), array)
    return str(path)


@pytest.fixture
def scan(tmp_path):
    return store(tmp_path / "scan.zarr", np.random.default_rng(0).random((20, 40, 50), dtype="f4"))


@pytest.fixture
def result(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (20, 40, 50)).astype("u1")
    return store(tmp_path / "seg.zarr", labels, kind="classes", channels=("nothing", "cell"))


class Stay(HTTPRedirectHandler):
    """Shows where a redirection leads."""

    def redirect_request(self, *_):
        return None


def home(url, **headers):
    with pytest.raises(HTTPError) as caught:
        build_opener(Stay).open(Request(url, headers=headers))
    with caught.value as answer:
        assert answer.status == 302
        return answer.headers["Location"]


def test_the_link_leads_to_the_state(scan, result):
    with vf.view(scan, result, port=0) as shown:
        assert urlsplit(shown.url).hostname == "127.0.0.1"
        path, _, text = home(shown.url).partition("#!")
        assert json.loads(unquote(text)) == shown.state
        assert path == ("/v/0/" if shown.client == "installed" else f"{PUBLIC_CLIENT}/")
        assert shown.url in repr(shown)
        assert f'href="{shown.url}"' in shown._repr_html_()


def test_what_the_state_names_is_there(scan, result):
    with vf.view(scan, result, port=0) as shown:
        image, classes = shown.state["layers"]
        root = image["source"]["url"].removeprefix("zarr3://")
        group = json.load(urlopen(f"{root}zarr.json"))
        assert group["attributes"]["ome"]["version"] == "0.5"
        array = json.load(urlopen(f"{root}0/zarr.json"))
        assert array["shape"] == [20, 40, 50]
        names = classes["source"][1].removeprefix("precomputed://")
        assert json.load(urlopen(f"{names}/info"))["inline"]["ids"] == ["1"]


def test_the_served_bytes_are_the_volume(scan):
    """Read back over HTTP by ranges as a viewer does, and decoded by another reader."""
    pytest.importorskip("aiohttp", reason="what fsspec reads HTTP with")
    with vf.view(scan, port=0) as shown:
        url = shown.state["layers"][0]["source"]["url"].removeprefix("zarr3://")
        array = zarr.open_array(f"{url}0", mode="r")
        np.testing.assert_array_equal(array[3:9, 10:20, ::7], vf.open(scan)[3:9, 10:20, ::7])


def test_reached_through_a_tunnel_the_state_names_its_end(scan):
    with vf.view(scan, port=0) as shown:
        text = unquote(home(shown.url, Host="localhost:9999"))
        assert "zarr3://http://localhost:9999/volumes/0/" in text


def test_nothing_but_the_named_volumes_is_served(scan, result, tmp_path):
    (tmp_path / "secret.txt").write_text("patient")
    with vf.view(scan, port=0) as shown:
        for path in ("volumes/1/zarr.json", "volumes/0/../secret.txt", "seg.zarr/zarr.json"):
            with pytest.raises(HTTPError) as caught:
                urlopen(shown.url + path)
            with caught.value as answer:
                assert answer.status == 404


def test_the_installed_client_is_served(scan):
    pytest.importorskip("neuroglancer", reason="extra view")
    with vf.view(scan, port=0) as shown:
        assert shown.client == "installed"
        with urlopen(shown.url) as page:
            text = page.read().decode()
        assert "<script" in text
        for script in text.split('src="')[1:]:
            with urlopen(f"{shown.url}v/0/{script.partition(chr(34))[0]}") as code:
                assert code.headers["Content-Type"] == "text/javascript"


def test_without_the_package_the_public_client_is_linked(scan, monkeypatch, capsys):
    monkeypatch.setattr(module, "_installed_client", lambda: None)
    monkeypatch.setattr(module.ViewerLink, "wait", lambda self: None)
    with vf.view(scan, port=0) as shown:
        assert shown.client == PUBLIC_CLIENT
        assert home(shown.url).startswith(f"{PUBLIC_CLIENT}/#!%7B")
    assert run(["view", scan, "--port", "0"]) == 0
    assert 'offline: pip install "volflow[view]"' in capsys.readouterr().err


def test_the_default_port_lasts_and_gives_way(scan, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "PORT", free.getsockname()[1])
    with vf.view(scan) as first, vf.view(scan) as second:
        assert urlsplit(first.url).port == module.PORT
        assert urlsplit(second.url).port not in (module.PORT, 0)
    with vf.view(scan) as again:
        assert again.url == first.url


def test_a_port_asked_for_is_not_replaced(scan):
    with vf.view(scan, port=0) as shown:
        port = urlsplit(shown.url).port
        with pytest.raises(InvalidInput, match=f"port {port} is taken .*--port 0"):
            vf.view(scan, port=port)


def test_refused_before_anything_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ViewerLink", None)
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 4, 4), chunks=(4, 4, 4), dtype="f8")
    for volumes, message in (
        ([], "there is no volume to view"),
        ([tmp_path / "gone.zarr"], "does not exist"),
        ([tmp_path / "a.zarr"], "holds float64, which Neuroglancer cannot show"),
    ):
        with pytest.raises(InvalidInput, match=message):
            vf.view(*volumes)


def test_a_browser_is_opened_only_when_asked(scan, monkeypatch):
    opened = []
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    with vf.view(scan, port=0):
        assert opened == []
    with vf.view(scan, port=0, open_browser=True) as shown:
        assert opened == [shown.url]


def test_closing_gives_the_port_back(scan):
    shown = vf.view(scan, port=0)
    port = urlsplit(shown.url).port
    shown.close()
    shown.wait()  # returns at once
    vf.view(scan, port=port).close()


def start(*arguments):
    env = {**os.environ, "PYTHONPATH": str(Path(vf.__file__).parents[1])}
    code = "from volflow.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "view", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(scan, result, ending):
    process = start(scan, result, "--port", "0")
    url = process.stdout.readline().strip()
    with urlopen(f"{url}volumes/1/zarr.json") as answer:
        assert answer.status == 200
    told = process.stderr.readline()
    if "offline" in told:  # without the extra view
        told = process.stderr.readline()
    assert told == "volflow: Ctrl-C ends it\n"
    process.send_signal(ending)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_the_command_says_it_in_one_line_for_machines(scan):
    process = start(scan, "--port", "0", "--json")
    facts = json.loads(process.stdout.readline())
    assert facts["url"].startswith("http://127.0.0.1:")
    assert facts["state"]["layers"][0]["name"] == "scan"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")


def test_others_being_able_to_read_is_said(scan, monkeypatch, capsys):
    monkeypatch.setattr(module.ViewerLink, "wait", lambda self: None)
    assert run(["view", scan, "--host", "0.0.0.0", "--port", "0"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("volflow: anyone who reaches http://")
    assert run(["view", scan, "--port", "0"]) == 0
    assert "anyone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no volume to view; give one or more: scan.zarr out.zarr"),
        (["--napari"], "there is no volume to view"),
        (["gone.zarr"], "gone.zarr does not exist; check the path"),
        (["scan.nii.gz"], "scan.nii.gz is a file, not a Zarr store; convert it first"),
        (["scan.zarr", "--port", "99999"], "port must be 0 (any that is free) to 65535"),
        (["scan.zarr", "--host", "192.0.2.1"], "host must be an address of this machine"),
    ],
)
def test_mistakes_are_one_line(scan, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    assert run(["view", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_the_script_for_napari_is_printed(scan, result, capsys):
    assert run(["view", scan, result, "--napari"]) == 0
    printed = capsys.readouterr().out
    assert printed == vf.napari_snippet(scan, result)
    compile(printed, "script.py", "exec")
    assert run(["view", scan, "--napari", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["napari"] == vf.napari_snippet(scan)
