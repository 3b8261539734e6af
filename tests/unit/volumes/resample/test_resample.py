"""`vf.resample`: equal to scipy on the whole volume, whatever the cut; lazily, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path

import dask.array as da
import nibabel
import numpy as np
import pytest
from scipy import ndimage

import volflow as vf
import volflow.volumes.resample.resample_pieces as pieces_module
from tests.resample_oracle import coordinates, corners, likeliest_whole, resampled_whole, world
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused
from volflow.store.journal.journal import journal_of
from volflow.store.meta import Meta

SHAPE = (13, 22, 19)
THICK = {"spacing": (3.5, 1, 1.2), "unit": "millimeter", "orientation": "SAR"}
# Of a target: another orientation, voxels and place, reaching out of the source on some sides.
OTHER = {"spacing": (1.1, 2, 1.3), "unit": "millimeter", "orientation": "ILP"}
OTHER |= {"translation": (-44.1, -23.3, -24.2)}


def image(dtype="f4", shape=SHAPE):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    return rng.integers(0, 250, shape).astype(dtype)


def labels(shape=SHAPE):
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, shape), 1.5)
    return np.digitize(smooth, [-0.1, 0, 0.1]).astype("u1")


@pytest.fixture
def resample(client, tmp_path):
    """`vf.resample` on the module's client, silent, in small chunks, into the test's folder."""

    def run(volume, out="out.zarr", **options):
        options = {"chunk": 16, "shard": 32, "cluster": client, "progress": False} | options
        return vf.resample(volume, tmp_path / out, **options)

    return run


@pytest.fixture
def scan(stored):
    return stored(image(), **THICK)


@pytest.fixture
def other(stored):
    return stored(np.zeros((20, 17, 15), "u1"), "other.zarr", **OTHER)


def whole(volume, result, order, **more):
    """The oracle for a result."""
    points = coordinates(world(volume.meta), world(result.meta), result.spatial_shape)
    return resampled_whole(volume[:], points, order, **more)


class TestEqualsScipy:
    @pytest.mark.parametrize("order", [0, 1, 3, (0, 3, 3)])
    def test_in_float64(self, stored, resample, order):
        volume = stored(image("f8"), **THICK)
        found = resample(volume, spacing=(1.7, 0.8, 2.9), order=order)
        assert found.shape == (27, 28, 8)
        if isinstance(order, tuple):  # slice by slice
            points = coordinates(world(volume.meta), world(found.meta), found.shape)
            points[0] = np.floor(np.clip(points[0], 0, 12) + 0.5)
            planes = [ndimage.spline_filter(p, mode="mirror") for p in volume[:]]
            want = np.empty(found.shape)
            for z in range(found.shape[0]):
                at = np.clip(points[1:, z], 0, np.array([21, 18]).reshape(2, 1, 1))
                plane = planes[int(points[0, z, 0, 0])]
                want[z] = ndimage.map_coordinates(
                    plane, at, order=3, mode="mirror", prefilter=False
                )
        else:
            want = whole(volume, found, order)
        np.testing.assert_allclose(found[:], want, rtol=1e-12, atol=1e-10)

    @pytest.mark.parametrize("order", [0, 1, 3])
    def test_in_float32_on_another_grid(self, scan, other, resample, order):
        found = resample(scan, like=other, order=order, fill=-5)
        want = whole(scan, found, order, fill=-5)
        assert 0.2 < (want == -5).mean() < 0.8
        np.testing.assert_allclose(found[:], want, rtol=1e-5, atol=1e-3)

    def test_integers_are_rounded_and_clipped(self, stored, resample):
        volume = stored((image("u1") > 100).astype("u1") * 255, **THICK)
        found = resample(volume, spacing=0.9, order=3)
        want = np.clip(np.rint(whole(volume, found, 3)), 0, 255)
        assert found.dtype == np.uint8
        assert (abs(found[:].astype(int) - want) <= 1).all()
        assert (found[:] != want).mean() < 1e-3
        values = resample(volume, "f.zarr", spacing=0.9, order=3, dtype="float32")
        assert values[:].min() < 0 < 255 < values[:].max()

    def test_classes_are_the_likeliest(self, stored, other, resample):
        volume = stored(labels(), kind="classes", **THICK)
        found = resample(volume, like=other, fill=9)
        points = coordinates(world(volume.meta), world(found.meta), found.shape)
        assert np.array_equal(found[:], likeliest_whole(volume[:], points, 9))
        assert found.meta.kind == "classes"
        near = resample(volume, "near.zarr", spacing=1.1, order=0)
        assert np.array_equal(near[:], whole(volume, near, 0))

    def test_what_is_taken_for_labels_is(self, stored, resample):
        volume = stored(labels() * 100, **THICK)
        assert set(np.unique(resample(volume, spacing=1, labels=True)[:])) == {0, 100, 200, 44}
        assert len(np.unique(resample(volume, "image.zarr", spacing=1)[:])) > 50

    def test_channels_are_each_by_itself(self, stored, other, resample):
        both = np.stack([image(), image()[::-1]])
        volume = stored(both, channels=("a", "b"), **THICK)
        found = resample(volume, like=other)
        assert (found.axes, found.meta.channels) == (("c", "z", "y", "x"), ("a", "b"))
        for n, channel in enumerate(both):
            alone = resample(stored(channel, f"{n}.zarr", **THICK), f"out{n}.zarr", like=other)
            assert np.array_equal(found[n], alone[:])


class TestAnyCut:
    """The same bits, whatever blocks, pieces and layers; lazily, too."""

    @pytest.mark.parametrize(
        ("to", "order"),
        [
            ("spacing", 3),
            ("like", 1),
            *(
                pytest.param(*one, marks=pytest.mark.slow)
                for one in [("spacing", 0), ("spacing", 1), ("like", 0), ("like", 3)]
            ),
        ],
    )
    def test_gives_the_same_bits(self, scan, other, resample, monkeypatch, order, to):
        grid = {"spacing": (1.9, 0.7, 1.4)} if to == "spacing" else {"like": other}
        want = resample(scan, order=order, shard=64, chunk=64, **grid)[:]
        monkeypatch.setattr(pieces_module, "PIECE_BYTES", 0)
        monkeypatch.setattr(pieces_module, "READ_BYTES", 0)
        found = resample(scan, "cut.zarr", order=order, shard=10, chunk=5, **grid)
        assert np.array_equal(found[:], want)
        lazy = vf.resample(scan, order=order, chunk=4, shard=12, **grid)
        assert np.array_equal(lazy.compute(scheduler="sync"), want)
        derived = vf.resample(array(scan) + 0, order=order, shard=12, chunk=4, **grid)
        assert isinstance(derived, da.Array)
        assert np.array_equal(derived.compute(scheduler="sync"), want)

    def test_lazily_a_block_is_a_task_and_a_slice_reads_itself(self, scan):
        lazy = vf.resample(scan, spacing=1, chunk=8, shard=16)
        assert lazy.chunks == ((16, 16, 14), (16, 6), (16, 7))
        assert sum("resample" in str(key) for key in dict(lazy.dask)) <= lazy.npartitions + 1
        assert np.array_equal(lazy[20:22, 3].compute(), lazy.compute()[20:22, 3])

    @pytest.mark.slow
    def test_processes_too(self, scan, resample):
        want = vf.resample(scan, spacing=1.3).compute()
        found = resample(scan, spacing=1.3, cluster=1, wait=60)
        assert np.array_equal(found[:], want)


def array(volume):
    """A volume as a DataArray that computes something."""
    return volume.xarray()


class TestGrid:
    def test_the_field_of_view_stays(self, stored, resample):
        affine = np.array([[0, 0, 3, 5], [-2, 0, 0, 7], [0, 1.5, 0, -3], [0, 0, 0, 1.0]])
        place = Meta(spacing=(3, 1.5, 2), unit="millimeter", orientation="RSP", affine=affine)
        given = {n: getattr(place, n) for n in ("spacing", "unit", "orientation", "affine")}
        volume = stored(image(shape=(12, 20, 24)), **given)
        found = resample(volume, spacing=(2, 3, "1mm"))
        assert found.shape == (18, 10, 48)
        assert found.spacing == (2, 3, 1)
        np.testing.assert_allclose(
            corners(found.meta, found.shape), corners(volume.meta, volume.shape), atol=1e-12
        )
        assert found.meta.translation == (-0.5, 0.75, -0.5)
        uneven = resample(volume, "uneven.zarr", spacing=1.7)
        assert uneven.shape == (21, 18, 28)  # round(n * s / t)
        np.testing.assert_allclose(
            corners(uneven.meta, uneven.shape)[0], corners(volume.meta, volume.shape)[0]
        )

    def test_like_is_the_grid_of_the_target(self, scan, other, resample):
        found = resample(scan, like=other)
        assert found.shape == other.shape
        for name in ("spacing", "unit", "orientation", "translation", "affine"):
            assert getattr(found.meta, name) == getattr(other.meta, name)
        assert found.dtype == scan.dtype

    def test_own_grid_is_a_copy(self, scan, resample):
        assert np.array_equal(resample(scan, like=scan, order=3)[:], scan[:])
        assert np.array_equal(resample(scan, "b.zarr", spacing=(3.5, 1, 1.2))[:], scan[:])

    def test_swapped_and_reversed_axes_move_voxels_only(self, stored, scan, resample):
        turned = scan[:].transpose(2, 0, 1)[::-1, :, ::-1]
        place = [-1.2 * 18, 0, -1.0 * 21]
        like = stored(
            np.zeros(turned.shape, "u1"), "like.zarr", spacing=(1.2, 3.5, 1), unit="millimeter",
            orientation="LSP", translation=place,
        )  # fmt: skip
        assert np.array_equal(resample(scan, like=like, order=3)[:], turned)

    def test_units_are_converted(self, stored, scan, resample):
        near = {"spacing": (2000, 900, 1500), "unit": "micrometer", "orientation": "SAR"}
        like = stored(np.zeros((20, 20, 10), "u1"), "um.zarr", **near)
        same = {"spacing": (2, 0.9, 1.5), "unit": "millimeter", "orientation": "SAR"}
        want = resample(
            scan, "a.zarr", like=stored(np.zeros((20, 20, 10), "u1"), "mm.zarr", **same)
        )
        found = resample(scan, "b.zarr", like=like)
        assert found.unit == "micrometer"
        np.testing.assert_allclose(found[:], want[:], rtol=1e-6, atol=1e-4)
        assert resample(scan, "c.zarr", spacing="900 um").spacing == (0.9, 0.9, 0.9)

    def test_half_a_voxel_there_and_back(self, stored, resample):
        """A blob keeps its centre of mass: no half voxel is lost on the way."""
        z, y, x = np.ogrid[:32, :30, :28]
        blob = np.exp(-((z - 14.3) ** 2 + (y - 13.1) ** 2 + (x - 12.7) ** 2) / 18)
        grid = {"spacing": (1, 1, 1), "unit": "millimeter", "orientation": "SAR"}
        volume = stored(blob, **grid)
        shifted = stored(
            np.zeros((32, 30, 28), "u1"), "s.zarr", translation=(0.5, 0.5, 0.5), **grid
        )
        there = resample(volume, "there.zarr", like=shifted, order=3)
        back = resample(there, "back.zarr", like=volume, order=3)
        centre = ndimage.center_of_mass(blob)
        np.testing.assert_allclose(ndimage.center_of_mass(back[:]), centre, atol=1e-3)
        np.testing.assert_allclose(np.add(ndimage.center_of_mass(there[:]), 0.5), centre, atol=1e-3)

    def test_finer_and_back_returns_a_smooth_image(self, stored, resample):
        z, y, x = np.ogrid[:24, :30, :28]
        wave = np.sin(z / 4) + np.cos(y / 5) * np.sin(x / 6)
        volume = stored(wave, spacing=(1, 1, 1), unit="millimeter")
        fine = resample(volume, "fine.zarr", spacing=0.5, order=3, chunk=32, shard=64)
        back = resample(fine, "back.zarr", like=volume, order=3)
        inner = (slice(4, -4),) * 3
        np.testing.assert_allclose(back[:][inner], wave[inner], atol=2e-3)

    @pytest.mark.parametrize("order", [0, 1, 3])
    def test_axes_of_one_voxel_and_voxels_larger_than_the_volume(self, stored, resample, order):
        volume = stored(image(shape=(1, 9, 11)), spacing=(5, 1, 1), unit="millimeter")
        thin = resample(volume, spacing=(1, 1, 1), order=order)
        assert thin.shape == (5, 9, 11)
        assert all(np.array_equal(plane, volume[0]) for plane in thin[:])
        huge = resample(
            volume, "huge.zarr", spacing=(50, 40, 300), order=order, antialias=order > 0
        )
        assert huge.shape == (1, 1, 1)
        assert np.isfinite(huge[:]).all()


class TestAntialias:
    def test_as_gaussian_then_linear(self, stored, resample):
        volume = stored(image("f8", (24, 25, 26)), spacing=(1, 1, 2), unit="millimeter")
        found = resample(volume, spacing=(3.1, 2, 1), antialias=True)
        smooth = ndimage.gaussian_filter(volume[:], (1.05, 0.5, 0), mode="mirror", truncate=4)
        points = coordinates(world(volume.meta), world(found.meta), found.shape)
        np.testing.assert_allclose(found[:], resampled_whole(smooth, points, 1), atol=1e-10)


class TestNnUnet:
    @pytest.mark.parametrize(
        ("spacing", "to", "order"),
        [
            ((3, 1, 1), (1, 1, 1), (3, 3, 3)),
            ((3.1, 1, 1), (1, 1, 1), (0, 3, 3)),
            ((1, 1, 1), (1, 5, 1), (3, 0, 3)),
            ((0.2, 1, 1), (1, 1, 4), (3, 3, 3)),  # two thick axes are none
        ],
    )
    def test_slices_are_found(self, stored, tmp_path, spacing, to, order):
        volume = stored(image(shape=(9, 9, 9)), spacing=spacing, unit="millimeter")
        plan = vf.plan_resample(volume, tmp_path / "o.zarr", spacing=to, order="nnunet")
        assert dict(plan.facts)["values"] == f"image, order {order}"

    def test_through_turned_axes_and_of_classes(self, stored, other, tmp_path):
        volume = stored(labels(), kind="classes", **(THICK | {"spacing": (3.9, 1, 1.2)}))
        like = stored(
            np.zeros((9, 9, 9), "u1"), "t.zarr", spacing=(1, 1, 1), unit="mm", orientation="ALS"
        )
        plan = vf.plan_resample(volume, tmp_path / "o.zarr", like=like, order="nnunet")
        assert dict(plan.facts)["values"] == "classes, order (1, 1, 0)"


class TestFiles:
    @pytest.fixture
    def nifti(self, tmp_path):
        affine = np.diag([-1.5, 2, 3, 1.0])
        affine[:3, 3] = 10, -20, 30
        file = nibabel.Nifti1Image(image("i2").T, affine)
        file.header["descrip"] = b"mine"
        file.header.set_sform(affine, 4)
        nibabel.save(file, tmp_path / "scan.nii.gz")
        return tmp_path / "scan.nii.gz"

    def test_in_and_out(self, nifti, resample, tmp_path):
        behind = resample(nifti, "out.nii.gz", spacing=1.5)
        found = nibabel.load(tmp_path / "out.nii.gz")
        assert found.shape == (19, 29, 26)
        assert np.array_equal(np.asarray(found.dataobj).T, behind[:])
        assert np.allclose(found.header.get_zooms(), 1.5)
        np.testing.assert_allclose(found.affine, behind.affine)
        assert found.header["descrip"] == b"mine"
        assert not (tmp_path / "out.nii.gz.volflow" / "input.zarr").exists()
        before = (tmp_path / "out.nii.gz").stat().st_mtime_ns
        resample(nifti, "out.nii.gz", spacing=1.5)
        assert (tmp_path / "out.nii.gz").stat().st_mtime_ns == before

    def test_back_onto_the_grid_of_the_file(self, nifti, resample, tmp_path):
        fine = resample(nifti, "fine.zarr", spacing=1)
        resample(fine, "back.nii.gz", like=nifti, order=3)
        one, other = nibabel.load(nifti), nibabel.load(tmp_path / "back.nii.gz")
        assert np.array_equal(one.affine, other.affine)
        assert other.header["sform_code"] == 4
        vf.export(fine, tmp_path / "fine.nii.gz")
        np.testing.assert_allclose(nibabel.load(tmp_path / "fine.nii.gz").affine, fine.affine)

    def test_a_file_that_changed_does_not_resume(self, nifti, resample, tmp_path):
        resample(nifti, spacing=1.5)
        nibabel.save(nibabel.Nifti1Image(image("i2").T + 1, np.diag([-1.5, 2, 3, 1])), nifti)
        with pytest.raises(ResumeRefused, match="input"):
            resample(nifti, spacing=1.5)
        assert resample(nifti, spacing=1.5, overwrite=True)[:].min() >= 1

    def test_a_file_cut_short_is_refused(self, nifti, resample, tmp_path):
        content = nifti.read_bytes()
        nifti.write_bytes(content[: len(content) // 2])
        with pytest.raises(InvalidInput, match=r"scan\.nii\.gz"):
            resample(nifti, spacing=1.5)
        assert not (tmp_path / "out.zarr").exists()

    def test_arrays_of_any_kind(self, scan, resample):
        want = resample(scan, "want.zarr", spacing=2)
        known = array(scan)
        assert np.array_equal(resample(known, "a.zarr", spacing=2)[:], want[:])
        assert np.array_equal(resample(known.compute(), "b.zarr", spacing=2)[:], want[:])
        assert np.array_equal(resample(known * 1, "c.zarr", spacing=2)[:], want[:])


class TestRuns:
    def test_the_same_call_again_computes_nothing(self, scan, resample, tmp_path):
        resample(scan, spacing=2)
        times = {p: p.stat().st_mtime_ns for p in Path(tmp_path, "out.zarr").rglob("c/*")}
        found = resample(scan, spacing=2)
        assert {p: p.stat().st_mtime_ns for p in times} == times
        assert journal_of(found.path).recorded().operation == "resample"

    def test_another_call_is_refused(self, scan, other, resample):
        resample(scan, spacing=2)
        for options in ({"spacing": 2.1}, {"spacing": 2, "order": 3}, {"like": other}):
            with pytest.raises(ResumeRefused, match="was started with different inputs"):
                resample(scan, **options)
        assert resample(scan, spacing=2.1, overwrite=True).spacing == (2.1, 2.1, 2.1)

    def test_what_is_left_is_done(self, scan, resample):
        cut = {"chunk": 8, "shard": 16}
        found = resample(scan, spacing=1, **cut)
        want = found[:]
        journal = journal_of(found.path)
        journal.forget([0, 3])
        assert len(journal.done()) == 10
        assert np.array_equal(resample(scan, spacing=1, **cut)[:], want)
        assert len(journal.done()) == 12

    def test_what_cannot_be_identified_is_computed_again_saying_so(
        self, scan, resample, monkeypatch, capsys
    ):
        asked = {"spacing": 2, "progress": None}
        resample(scan, **asked)
        monkeypatch.setattr(vf.Volume, "unidentified", "the objects cannot be listed")
        monkeypatch.setattr(vf.Volume, "identity", lambda self: "of another process")
        capsys.readouterr()
        resample(scan, **asked)
        said = capsys.readouterr().err
        assert "resample: the objects cannot be listed, so that it may hold" in said
        with pytest.raises(ResumeRefused, match="order"):  # nothing else is begun anew
            resample(scan, **asked, order=0)

    @pytest.mark.slow
    def test_levels(self, scan, resample):
        assert len(resample(scan, spacing=0.3, levels=True, shard=128, chunk=32).levels) > 1

    def test_plan(self, scan, tmp_path):
        plan = vf.plan_resample(scan, tmp_path / "o.zarr", spacing=1, chunk=8, shard=16)
        assert plan.to_dict()["grid"] == "46 × 22 × 23 voxels of 1×1×1 mm, SAR"
        assert plan.blocks == 12
        assert not (tmp_path / "o.zarr").exists()
        json.dumps(plan.to_dict())

    def test_too_little_memory_is_refused_with_what_would_do(self, scan, resample):
        with pytest.raises(MemoryRefused, match=r'resample needs .* use memory="\d+MiB"'):
            resample(scan, spacing=1, memory="40MiB")


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "needs either spacing= .* or like="),
            ({"spacing": 1, "like": "x.zarr"}, "give one of them"),
            ({"spacing": 0}, "spacing must be positive and finite"),
            ({"spacing": -1}, "spacing must be positive and finite"),
            ({"spacing": float("nan")}, "spacing must be positive and finite"),
            ({"spacing": (1, 2)}, r"one voxel size or three \(z, y, x\)"),
            ({"spacing": "1 bogus"}, "spacing must be one voxel size"),
            ({"spacing": "-1mm"}, "spacing must be positive"),
            ({"spacing": True}, "spacing must be one voxel size"),
            ({"spacing": 1e-9}, "check the unit of spacing="),
            ({"spacing": 1, "order": 2}, "order must be 0"),
            ({"spacing": 1, "order": "cubic"}, "order must be 0"),
            ({"spacing": 1, "order": (1, 1)}, "order must be 0"),
            ({"spacing": 1, "fill": 3}, "keeps its field of view"),
            ({"spacing": 1, "antialias": "yes"}, "antialias must be True or False"),
            ({"spacing": 1, "dtype": "complex64"}, "complex64"),
            ({"spacing": 1, "dtype": "bogus"}, "dtype must be a NumPy dtype"),
            ({"like": "gone.zarr"}, r"like= \(--like\): .*gone.zarr does not exist"),
        ],
    )
    def test_options(self, scan, resample, tmp_path, options, message):
        with pytest.raises(InvalidInput, match=message):
            resample(scan, **options)
        assert not (tmp_path / "out.zarr").exists()
        assert not (tmp_path / "out.zarr.volflow").exists()

    def test_unknown_places(self, stored, scan, resample):
        bare = stored(image(), "bare.zarr")
        with pytest.raises(InvalidInput, match="needs to know how large the volume's voxels are"):
            resample(bare, spacing=1)
        with pytest.raises(InvalidInput, match="voxel size of like= is not known"):
            resample(scan, like=bare)
        loose = stored(image(), "loose.zarr", spacing=(1, 1, 1), unit="millimeter")
        with pytest.raises(InvalidInput, match="the volume has an orientation and like= has none"):
            resample(scan, like=loose)
        with pytest.raises(InvalidInput, match="like= has an orientation and the volume has none"):
            resample(loose, like=scan)

    def test_an_oblique_target(self, stored, scan, resample):
        c, s = np.cos(0.2), np.sin(0.2)
        affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        like = stored(
            np.zeros((9, 9, 9), "u1"), "o.zarr", unit="millimeter", orientation="SAR", affine=affine
        )
        with pytest.raises(InvalidInput, match=r"turned by 11\.5 degrees against the other"):
            resample(scan, like=like)

    def test_grids_that_do_not_meet(self, stored, scan, resample):
        far = stored(image(), "far.zarr", **THICK, translation=(0, 500, 0))
        with pytest.raises(InvalidInput, match=r"do not meet: along y of like=, .* 500 to 521"):
            resample(scan, like=far)

    def test_classes_are_not_smoothed(self, stored, scan, resample):
        volume = stored(labels(), "l.zarr", kind="classes", **THICK)
        for options in ({"order": 3}, {"antialias": True}):
            with pytest.raises(InvalidInput, match="classes are resampled with order 0"):
                resample(volume, spacing=1, **options)
        with pytest.raises(InvalidInput, match="classes keep their dtype"):
            resample(volume, spacing=1, dtype="float32")
        with pytest.raises(InvalidInput, match="fill must be a value that uint8 holds"):
            resample(volume, like=scan, fill=300)

    def test_its_own_input(self, scan):
        with pytest.raises(InvalidInput, match="would replace its own input"):
            vf.resample(scan, scan.path, spacing=1)
        with pytest.raises(InvalidInput, match="would replace its own input"):
            vf.resample(image(), scan.path, like=scan)

    def test_how_nothing_is_stored(self, scan):
        with pytest.raises(InvalidInput, match="overwrite= says how a result is stored"):
            vf.resample(scan, spacing=1, overwrite=True)
        with pytest.raises(InvalidInput, match="give out"):
            vf.plan_resample(scan, spacing=1)
        with pytest.raises(InvalidInput, match="levels are arrays of an OME-Zarr volume"):
            vf.resample(scan, "a.nii.gz", spacing=1, levels=True)


@pytest.mark.slow
class TestOnAStore:
    def test_there_and_from_there(self, scan, s3, client, tmp_path):
        options = {"chunk": 8, "shard": 16, "cluster": client, "progress": False}
        there = vf.resample(scan, "s3://bucket/a.zarr", spacing=2, **options)
        want = vf.resample(scan, spacing=2).compute()
        assert np.array_equal(there[:], want)
        assert np.array_equal(vf.resample("s3://bucket/a.zarr", spacing=1).compute()[:2], (
            vf.resample(there, tmp_path / "b.zarr", spacing=1, **options)[:2]
        ))  # fmt: skip
        vf.resample(scan, "s3://bucket/a.zarr", spacing=2, **options)
        with pytest.raises(InvalidInput, match="resample does not write to a store"):
            vf.resample(scan, "s3://bucket/a.nii.gz", spacing=2)

    def test_a_packed_file(self, s3, client, tmp_path):
        file = nibabel.Nifti1Image(image("i2").T, np.diag([1.5, 2, 3, 1]))
        nibabel.save(file, tmp_path / "a.nii.gz")
        options = {"cluster": client, "progress": False}
        there = vf.resample(tmp_path / "a.nii.gz", "s3://bucket/n.zarr", spacing=2, **options)
        here = vf.resample(tmp_path / "a.nii.gz", tmp_path / "n.zarr", spacing=2, **options)
        assert np.array_equal(there[:], here[:])
        assert not list((tmp_path / "n.zarr.volflow").glob("input*"))
        with pytest.raises(InvalidInput, match="check the unit"):
            vf.resample(tmp_path / "a.nii.gz", "s3://bucket/m.zarr", spacing=1e-9, **options)
