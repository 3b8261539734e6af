"""What viewers really draw: each pixel of a plane has the colour of the voxel that lies there.

Chromium is driven through chromedriver by the W3C WebDriver protocol, napari on a virtual screen.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import numpy as np
import pytest

import volflow as vf
from volflow.demo import CLASSES, load_mni, true_classes
from volflow.geometry.roi import Roi
from volflow.report.colors import class_color
from volflow.report.viewers.appearance import CLASS_OPACITY, SCORE_OPACITY
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--no-proxy-server",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--enable-webgl",
    "--ignore-gpu-blocklist", "--window-size=1401,901",
]  # fmt: skip
READY = "return Boolean(window.viewer && viewer.isReady())"
PANELS = """return Array.from(document.querySelectorAll(".neuroglancer-rendered-data-panel"))
    .map(e => e.getBoundingClientRect()).map(r => [r.x, r.y, r.width, r.height])"""
COLOR_STEP = 6 / 255  # by which a browser's rounding may differ
ALIKE = 0.93  # of the voxels; a panel that begins at half a pixel costs some at their edges


class Browser:
    """Chromium, told what to do over WebDriver."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            [shutil.which("chromedriver"), f"--port={port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.base = f"http://127.0.0.1:{port}"
        try:
            self.begin(folder)
        except BaseException:
            self.driver.kill()
            self.driver.wait()
            raise

    def begin(self, folder):
        for _ in range(100):
            try:
                self.call("GET", "/status")
                break
            except OSError:
                time.sleep(0.1)
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={folder}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += f"/session/{self.call('POST', '/session', wanted)['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self.base + path, data, headers, method=method), timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def shown(self, url):
        """The picture of a page once every chunk is there, and its panels."""
        self.call("POST", "/url", {"url": url})
        until = time.monotonic() + 60
        while not self.run(READY):
            assert time.monotonic() < until, "Neuroglancer did not get ready"
            time.sleep(0.2)
        time.sleep(0.5)  # the last frame
        image = pytest.importorskip("PIL.Image")
        png = base64.b64decode(self.call("GET", "/screenshot"))
        picture = np.asarray(image.open(io.BytesIO(png)).convert("RGB")) / 255
        return picture, self.run(PANELS)

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("neuroglancer", reason="extra view")
    if CHROMIUM is None or shutil.which("chromedriver") is None:
        pytest.skip(reason="chromium and chromedriver are not installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def store(path, array, meta):
    volume = create(path, VolumeSpec.of(array.shape, array.dtype, meta, chunk=32, shard=64))
    volume.write(Roi.full(volume.shape), array)
    return str(path)


def rgb(color):
    return np.array([*bytes.fromhex(color.lstrip("#"))]) / 255


def over(below, color, opacity):
    """A colour laid over others; the opacity may differ by pixel."""
    opacity = np.asarray(opacity, float)[..., None]
    return (1 - opacity) * below + opacity * rgb(color)


def greys(voxels, window):
    low, high = window
    grey = np.clip((voxels.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(grey[..., None], 3, axis=-1)


def turned(quaternion, vector):
    axis, w = np.array(quaternion[:3]), quaternion[3]
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * np.array(vector))


def compare(picture, panel, state, plane, expected):
    """The share of a panel's voxels whose pixel has the colour expected, and how many there were.

    Parameters
    ----------
    picture, panel, state
        As shown: the rectangle of the panel, the state of the viewer.
    plane
        "xy" or "xz".
    expected
        Colours of the first volume's voxels in that plane: y or z, x, RGB.
    """
    scales = np.array([state["dimensions"][axis][0] for axis in "xyz"])
    rotation = state.get("crossSectionOrientation", [0, 0, 0, 1])
    right = turned(rotation, [1.0, 0, 0])
    down = turned(rotation, [0, 1.0, 0] if plane == "xy" else [0, 0, 1.0])
    rows, columns = np.indices(expected.shape[:2])
    place = np.zeros((*expected.shape[:2], 3))
    place[..., 0] = columns - state["position"][0]
    other = "xyz".index(plane[1])
    place[..., other] = rows - state["position"][other]
    place *= scales / scales.min() / state["crossSectionScale"]
    x = panel[0] + panel[2] / 2 + place @ right
    y = panel[1] + panel[3] / 2 + place @ down
    away_from_lines = (abs(place @ right) > 4) & (abs(place @ down) > 4)
    inside = (x > panel[0] + 130) & (x < panel[0] + panel[2] - 60)  # beside the panel's texts
    inside &= (y > panel[1] + 4) & (y < panel[1] + panel[3] - 4) & away_from_lines
    found = picture[y[inside].astype(int), x[inside].astype(int)]
    alike = (abs(found - expected[inside]) <= COLOR_STEP).all(axis=-1)
    return alike.mean(), len(alike)


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A real MRI and the classes of its tissues."""
    pytest.importorskip("nilearn", reason="extra demo")
    folder = tmp_path_factory.mktemp("brain")
    mni = load_mni()
    scan = vf.convert(mni.t1, folder / "t1.zarr", progress=False)
    meta = Meta(
        spacing=scan.spacing, unit=scan.unit, orientation=scan.orientation, affine=scan.affine,
        translation=scan.meta.translation, kind="classes", channels=CLASSES,
    )  # fmt: skip
    return scan.path, store(folder / "tissue.zarr", true_classes(mni), meta)


def test_classes_lie_over_a_real_scan(browser, brain):
    scan, tissue = vf.open(brain[0])[:], vf.open(brain[1])[:]
    with vf.view(*brain, port=0) as shown:
        picture, panels = browser.shown(shown.url)
        state = shown.state
    assert len(panels) == 4
    window = state["layers"][0]["shaderControls"]["normalized"]["range"]
    _, y, z = map(int, state["position"])
    for panel, plane, cut in ((panels[0], "xy", np.s_[z]), (panels[1], "xz", np.s_[:, y])):
        expected = greys(scan[cut], window)
        for value in (1, 2):
            here = tissue[cut] == value
            assert here.sum() > 1000
            expected = over(expected, class_color(value), CLASS_OPACITY * here)
        share, count = compare(picture, panel, state, plane, expected)
        assert count > 5000
        assert share > ALIKE
        # Upside down or two voxels aside it does not fit; left and right this brain is alike.
        for wrong in (expected[::-1], np.roll(expected, 2, axis=1)):
            assert compare(picture, panel, state, plane, wrong)[0] < share - 0.1


def pattern(shape):
    """Boxes of two classes, unlike each other along every axis."""
    z, y, x = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1)
    classes = np.zeros(shape, "u1")
    classes[(x > 0.25) & (x < 0.5) & (y > 0.25) & (y < 0.75) & (z > 0.25)] = 1
    classes[(x > 0.5) & (x < 0.85) & (y > 0.5) & (z < 0.75)] = 2
    return classes


def test_scores_on_another_grid_in_another_unit(browser, tmp_path):
    z, y, x = np.indices((24, 64, 80))
    image = (z * 4 + y + x).astype("u2")
    meta = Meta(spacing=(3.0, 1, 1), unit="millimeter", orientation="SAL")
    scan = store(tmp_path / "scan.zarr", image, meta)
    classes = pattern((12, 32, 40))
    scores = np.stack([classes == value for value in range(3)]).astype("f4") * 0.75
    meta = Meta(
        ("c", "z", "y", "x"), (6000.0, 2000, 2000), unit="micrometer",
        translation=(1500, 500, 500), channels=("background", "liver", "tumour"),
    )  # fmt: skip
    result = store(tmp_path / "scores.zarr", scores, meta)
    with vf.view(scan, result, port=0) as shown:
        picture, panels = browser.shown(shown.url)
        state = shown.state
    window = state["layers"][0]["shaderControls"]["normalized"]["range"]
    _, y, z = map(int, state["position"])
    fine = scores.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    for panel, plane, cut in ((panels[0], "xy", np.s_[z]), (panels[1], "xz", np.s_[:, y])):
        expected = greys(image[cut], window)
        for value in (1, 2):
            expected = over(expected, class_color(value), SCORE_OPACITY * fine[value][cut])
        share, count = compare(picture, panel, state, plane, expected)
        assert count > 1000
        assert share > ALIKE
        assert compare(picture, panel, state, plane, expected[:, ::-1])[0] < share - 0.2


def test_arrays_without_metadata_are_drawn_in_place(browser, tmp_path):
    zarr = pytest.importorskip("zarr")
    image, classes = np.full((16, 40, 40), 90, "u1"), pattern((16, 40, 40))
    image[:, 10:30, 5:15] = 200
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(16, 16, 16), zarr_format=2)
    zarr.create_array(tmp_path / "b.zarr", data=classes.astype("i4"), chunks=(16, 16, 16))
    with vf.view(tmp_path / "a.zarr", tmp_path / "b.zarr", port=0) as shown:
        picture, panels = browser.shown(shown.url)
        state = shown.state
    z = int(state["position"][2])
    expected = greys(image[z], state["layers"][0]["shaderControls"]["normalized"]["range"])
    for value in (1, 2):
        expected = over(expected, class_color(value), CLASS_OPACITY * (classes[z] == value))
    share, count = compare(picture, panels[0], state, "xy", expected)
    assert count > 800
    assert share > ALIKE


DRIVER = """
import json, sys, time
import numpy as np
from qtpy.QtWidgets import QApplication

def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        QApplication.processEvents()
        time.sleep(0.02)

spin(1)
viewer.dims.set_current_step(0, {z})
spin(3)
np.save(sys.argv[1], viewer.screenshot(canvas_only=True, flash=False))
json.dump({{
    "center": list(viewer.camera.center), "zoom": viewer.camera.zoom,
    "orientation": [str(way) for way in viewer.camera.orientation],
    "world": [layer.extent.world.tolist() for layer in viewer.layers],
    "levels": [bool(layer.multiscale) for layer in viewer.layers],
}}, open(sys.argv[2], "w"))
viewer.close()
"""


@pytest.fixture(scope="module")
def napari():
    """The command that runs a script with napari on a screen."""
    python = os.environ.get("VOLFLOW_NAPARI_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import napari, qtpy.QtWidgets, volflow"],
                      capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip(reason="napari is not installed; VOLFLOW_NAPARI_PYTHON may name a Python")
    if os.environ.get("DISPLAY"):
        return [python]
    if shutil.which("xvfb-run") is None:
        pytest.skip(reason="there is no display, and xvfb-run is not installed")
    return ["xvfb-run", "-a", "-s", "-screen 0 1400x1000x24", python]


def test_napari_draws_classes_over_a_real_scan(napari, brain, tmp_path):
    scan, tissue = vf.open(brain[0]), vf.open(brain[1])
    z = scan.shape[0] // 2
    script = vf.napari_snippet(*brain) + DRIVER.format(z=z)
    (tmp_path / "script.py").write_text(script.replace("napari.run()", "pass"))
    done = subprocess.run(
        [*napari, "script.py", "shot.npy", "facts.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "QT_QPA_PLATFORM": "xcb"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    picture = np.load(tmp_path / "shot.npy")[..., :3] / 255
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["world"][0] == facts["world"][1]

    window = [float(n) for n in script.split("contrast_limits=(")[1].split(")")[0].split(",")]
    expected = greys(scan[z], window)
    classes = tissue[z]
    for value in (1, 2):
        expected = over(expected, class_color(value), CLASS_OPACITY * (classes == value))
    y, x = np.indices(classes.shape)
    _, vertical, horizontal = (way.lower() for way in facts["orientation"])
    down = -1 if vertical.endswith("up") else 1
    right = 1 if horizontal.endswith("right") else -1
    rows = picture.shape[0] / 2 + down * (y - facts["center"][1]) * facts["zoom"]
    columns = picture.shape[1] / 2 + right * (x - facts["center"][2]) * facts["zoom"]

    def fits(colors):
        found = picture[rows.astype(int), columns.astype(int)]
        return (abs(found - colors) <= 2 * COLOR_STEP).all(axis=-1)[scan[z] > 0].mean()

    assert (rows >= 0).all()
    assert (columns >= 0).all()
    assert fits(expected) > 0.95
    for wrong in (expected[::-1], np.roll(expected, 2, axis=1)):
        assert fits(wrong) < fits(expected) - 0.1
