"""How viewers show volumes: grey, colours or classes, and between which values."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from tests.stores import store
from volflow.errors import InvalidInput
from volflow.geometry.histogram import measure
from volflow.report.colors import class_color
from volflow.report.viewers.appearance import CLASS_OPACITY, appearances, direction
from volflow.store.volume import Volume, open_volume
from volflow.volumes.distribution import Statistics, save_statistics

MM = {"spacing": (2.0, 1.0, 1.0), "unit": "millimeter", "orientation": "SAR"}


@pytest.fixture
def ramp():
    z, y, x = np.ogrid[:20, :40, :50]
    return (z * 5.0 + y + x).astype("f4")


@pytest.fixture
def scan(tmp_path, ramp):
    return store(tmp_path / "scan.zarr", ramp, **MM)


def test_a_scan_is_grey_between_percentiles(scan, ramp):
    (shown,) = appearances([scan])
    assert (shown.name, shown.layer, shown.color) == ("scan", "scan", "")
    np.testing.assert_allclose(shown.window, np.percentile(ramp, (1, 99.5)), rtol=1e-3)
    assert (shown.labels, shown.colors, shown.unit) == ((), (), "millimeter")


def test_an_array_of_a_store_is_shown_as_its_path_is(scan):
    array = zarr.open_array(f"{open_volume(scan).path}/0", mode="r")
    (shown,), (named,) = appearances([array]), appearances([scan])
    assert shown.volume.shape == named.volume.shape
    assert shown.window == named.window


def test_stored_statistics_decide_and_nothing_is_read(scan, monkeypatch):
    volume = open_volume(scan)
    known = Statistics((measure(np.linspace(-5, 5, 1000, dtype="f4")),))
    save_statistics(volume, volume.identity(), known)

    def read(self, roi):
        raise AssertionError("a voxel was read")

    monkeypatch.setattr(Volume, "read", read)
    (shown,) = appearances([scan])
    np.testing.assert_allclose(shown.window, (-4.9, 4.95), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "window"),
    [
        ([5.5, 5.5], (5.5, 6.5)),
        ([0] * 9999 + [7], (0.0, 7.0)),  # both percentiles are 0
        ([np.nan, np.inf, 2.0, 3.0], (2.01, 2.995)),
        ([np.nan, np.nan], (0.0, 1.0)),
    ],
)
def test_windows_of_odd_volumes(tmp_path, values, window):
    array = np.array(values, "f4").reshape(1, 1, -1)
    path = store(tmp_path / "a.zarr", array)
    np.testing.assert_allclose(appearances([path])[0].window, window, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "values", "window"),
    [
        ("u1", [255, 255], (254, 255)),  # no viewer takes 256
        ("u1", [0, 0], (0, 1)),
        ("i1", [-128, 127], (-126, 126)),
        ("u2", list(range(101)), (1, 100)),
        ("u8", [3, 5], (3, 5)),
        ("i4", [-7, -7], (-7, -6)),
    ],
)
def test_windows_of_whole_numbers_are_whole(tmp_path, dtype, values, window):
    path = store(tmp_path / "a.zarr", np.array(values, dtype).reshape(1, 1, -1))
    found = appearances([path])[0].window
    assert found == window
    assert all(isinstance(value, int) for value in found)


def test_classes_have_the_colours_of_every_picture(tmp_path, scan):
    labels = np.zeros((20, 40, 50), "u1")
    labels[:, :9] = 2
    names = ("background", "liver", "tumour")
    own = store(tmp_path / "a.zarr", labels, kind="classes", channels=names, **MM)
    _, shown = appearances([scan, own])
    assert (shown.window, shown.labels) == (None, names)
    assert shown.colors[1:] == (class_color(1), class_color(2))
    colors = ("000000", "FF0000", "00ff00")
    own = store(tmp_path / "b.zarr", labels, kind="classes", channels=names, colors=colors)
    assert appearances([own])[0].colors == ("#000000", "#FF0000", "#00ff00")
    assert 0 < CLASS_OPACITY < 1


def test_an_overlay_with_few_whole_numbers_is_classes(tmp_path, scan, ramp):
    few = store(tmp_path / "few.zarr", (np.indices(ramp.shape)[0] // 5).astype("i4"), **MM)
    many = store(tmp_path / "many.zarr", ramp.astype("i4"), **MM)
    mask = zarr.create_array(tmp_path / "mask.zarr", data=ramp > 50)
    assert len(appearances([scan, few])[1].colors) == 4
    assert appearances([few])[0].window  # a ground is an image unless it says otherwise
    assert appearances([scan, many])[1].window
    assert len(appearances([scan, str(tmp_path / "mask.zarr")])[1].colors) == 2
    assert mask.shape == ramp.shape


def test_a_label_map_has_its_colours_however_many_classes_it_has(tmp_path, scan):
    labels = (np.arange(20 * 40 * 50, dtype="u2") % 105).reshape(20, 40, 50)
    organs = store(tmp_path / "organs.zarr", labels, kind="classes", **MM)
    shown = appearances([scan, organs])[1]
    assert shown.colors[1:] == tuple(class_color(value) for value in range(1, 105))


def test_instances_get_the_colours_of_the_viewer(tmp_path, scan):
    labels = np.arange(20 * 40 * 50, dtype="u4").reshape(20, 40, 50)
    path = store(tmp_path / "cells.zarr", labels, kind="classes", **MM)
    shown = appearances([scan, path])[1]
    assert (shown.window, shown.colors, shown.labels) == (None, (), ())


def test_scores_have_the_colours_of_their_classes(tmp_path, scan):
    scores = np.random.default_rng(0).random((3, 20, 40, 50), dtype="f4")
    names = ("Background", "liver", "tumour")
    path = store(tmp_path / "scores.zarr", scores, channels=names, **MM)
    shown = appearances([scan, path])[1:]
    assert [one.layer for one in shown] == [f"scores: {name}" for name in names]
    assert [(one.number, one.channel) for one in shown] == [(1, 0), (1, 1), (1, 2)]
    assert [one.window for one in shown] == [(0.0, 1.0)] * 3
    assert [one.visible for one in shown] == [False, True, True]
    assert [one.color for one in shown[1:]] == [class_color(1), class_color(2)]
    unnamed = store(tmp_path / "b.zarr", scores, **MM)
    shown = appearances([scan, unnamed])[1:]
    assert [one.layer for one in shown] == ["b: 0", "b: 1", "b: 2"]
    assert [one.color for one in shown] == [class_color(n) for n in (1, 2, 3)]
    assert all(one.visible for one in shown)


def test_one_channel_of_scores_is_coloured_over_a_scan(tmp_path, scan):
    path = store(tmp_path / "p.zarr", np.full((1, 20, 40, 50), 0.001, "f4"), **MM)
    _, shown = appearances([scan, path])
    assert (shown.layer, shown.color, shown.window) == ("p", class_color(1), (0.0, 1.0))


def test_channels_of_a_ground_have_their_own_colours(tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (2, 8, 8, 8)).astype("u2")
    path = store(tmp_path / "a.zarr", array, channels=("DAPI", "GFP"), colors=("0000FF", "00FF00"))
    shown = appearances([path])
    assert [one.color for one in shown] == ["#0000FF", "#00FF00"]
    assert [one.layer for one in shown] == ["a: DAPI", "a: GFP"]


def test_only_the_first_channels_are_shown_at_once(tmp_path):
    path = store(tmp_path / "a.zarr", np.ones((40, 2, 2, 2), "f4"))
    shown = appearances([path])
    assert [one.visible for one in shown] == [True] * 12 + [False] * 28


def test_names_tell_volumes_apart(tmp_path, ramp):
    (tmp_path / "other").mkdir()
    one = store(tmp_path / "scan.ome.zarr", ramp)
    two = store(tmp_path / "other" / "scan.zarr", ramp)
    nested = f"{one}/0"
    names = [shown.name for shown in appearances([one, two, nested])]
    assert names == ["scan 1", "scan 2", "scan.ome.zarr/0"]
    assert [shown.name for shown in appearances([two])] == ["scan"]


def test_a_volume_without_unit_has_that_of_the_others(tmp_path, scan, ramp):
    plain = store(tmp_path / "plain.zarr", ramp)
    assert [shown.unit for shown in appearances([plain, scan])] == ["millimeter"] * 2
    micro = store(tmp_path / "micro.zarr", ramp, unit="micrometer")
    assert [shown.unit for shown in appearances([scan, micro])] == ["millimeter", "micrometer"]


def test_what_cannot_be_laid_over_each_other_is_refused(tmp_path, scan, ramp):
    pixel = store(tmp_path / "pixel.zarr", ramp, unit="pixel")
    with pytest.raises(InvalidInput, match=r"one unit; .*scan.zarr has millimeter, .*has pixel"):
        appearances([scan, pixel])
    assert appearances([pixel, pixel])[0].unit == "pixel"
    turned = store(tmp_path / "turned.zarr", ramp, orientation="SPR")
    with pytest.raises(InvalidInput, match=r"one orientation; .* has SAR, .*turned.zarr has SPR"):
        appearances([scan, turned])


def test_a_window_is_that_of_what_is_grey(tmp_path):
    for name, dtype in (("a", "i2"), ("b", "f4"), ("c", "u1")):
        data = np.random.default_rng(0).integers(0, 99, (4, 4, 4)).astype(dtype)
        zarr.create_array(tmp_path / f"{name}.zarr", data=data, chunks=(4, 4, 4))
    ground, over = appearances([tmp_path / "a.zarr", tmp_path / "b.zarr"], "lung")
    assert ground.window == (-1350, 150)
    assert over.window != ground.window
    (held,) = appearances([tmp_path / "c.zarr"], (-160, 240))
    assert held.window == (0, 240)  # as far as the dtype holds it
    with pytest.raises(InvalidInput, match=r"window -160 to -90 lies outside of what c holds, uin"):
        appearances([tmp_path / "c.zarr"], (-160, -90))


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ([], "there is no volume to view; give one or more"),
        (["gone.zarr"], r"gone\.zarr does not exist"),
        (["scan.nii.gz"], r"scan\.nii\.gz is a file, not a Zarr store; convert it first"),
        (["https://example.org/a.zarr"], r"remote.*copy it with vf\.convert"),
        ([3], "a volume is a path, a URL, .* given int"),
    ],
)
def test_what_is_no_volume_on_disk_is_refused(volumes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(InvalidInput, match=message) as caught:
        appearances(volumes)
    assert "\n" not in str(caught.value)


def test_directions_of_the_patient():
    assert direction("SAR", "R").tolist() == [1, 0, 0]
    assert direction("SAR", "I").tolist() == [0, 0, -1]
    assert direction("LPI", "R").tolist() == [0, 0, -1]
    assert direction("LPI", "S").tolist() == [-1, 0, 0]
