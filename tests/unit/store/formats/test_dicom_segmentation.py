"""DICOM segmentations: read as label maps or channels, and written on the grid of their series."""

import json
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
import torch

import volflow as vf
from tests.dicom_files import enhanced, save, save_series, segmentation
from tests.unit.store.formats.test_sources import SourceContract, random_zyx
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source
from volflow.store.meta import SourceInfo, VolumeSpec


def labels(shape=(11, 6, 7), most=2):
    """Classes with slices between them where there is none, and none in the first class."""
    found = np.random.default_rng(5).integers(0, most + 1, shape).astype("u1")
    found[2:5] = 0
    found[7][found[7] == 1] = 0
    return found


class TestBinary(SourceContract):
    kind = "BINARY"

    def voxels(self):
        return labels()

    def make(self, folder, voxels):
        segmentation(folder / "series", voxels, self.kind).save_as(folder / "seg.dcm")
        return folder / "seg.dcm"


class TestLabelMap(TestBinary):
    kind = "LABELMAP"


def masks(shape=(4, 6, 7)):
    return np.random.default_rng(6).integers(0, 2, (*shape, 2)).astype("u1")


def test_a_label_map_has_the_names_and_the_grid_of_its_segments(tmp_path):
    segmentation(tmp_path / "series", labels()).save_as(tmp_path / "seg.dcm")
    meta = open_source(tmp_path / "seg.dcm").meta
    series = open_source(tmp_path / "series").meta
    assert (meta.kind, meta.channels) == ("classes", ("background", "lung", "heart"))
    assert (meta.affine, meta.spacing, meta.unit) == (series.affine, series.spacing, series.unit)
    assert json.loads(meta.source.header) == {"series": "1.2.3.2"}


def test_it_lies_beside_the_series_that_it_segments(tmp_path):
    segmentation(tmp_path / "series", labels()).save_as(tmp_path / "series" / "seg.dcm")
    with pytest.raises(InvalidInput, match=r"2 'thorax' CT .*; 9 '' SEG 15 × 6 × 7"):
        open_source(tmp_path / "series")
    assert open_source(tmp_path / "series", ImageChoice(series=9)).meta.kind == "classes"


def test_a_grid_of_few_slices_is_that_of_the_step_which_is_stated(tmp_path):
    few = np.zeros((11, 6, 7), "u1")
    few[[2, 6, 8]] = 1
    made = segmentation(tmp_path / "series", few)
    made.save_as(tmp_path / "seg.dcm")
    source = open_source(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(source[:], few[2:9])
    assert source.meta.affine[2] == (0, 0, 2.5, -30.5 + 2 * 2.5)
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    made.save_as(tmp_path / "bare.dcm")  # then it is the smallest distance
    assert open_source(tmp_path / "bare.dcm").meta.spacing[0] == 5


def test_fractions_are_channels_of_floats(tmp_path):
    fractions = np.random.default_rng(0).integers(0, 201, (4, 6, 7, 2)) / 200
    fractions[2, ..., 0] = 0
    segmentation(tmp_path / "series", fractions, "FRACTIONAL").save_as(tmp_path / "seg.dcm")
    source = open_source(tmp_path / "seg.dcm")
    assert (source.dtype, source.meta.kind) == ("float32", "image")
    assert source.meta.channels == ("lung", "heart")
    np.testing.assert_allclose(source[:], np.moveaxis(fractions, -1, 0), atol=1e-7)
    heart = open_source(tmp_path / "seg.dcm", ImageChoice(channel="heart"))
    np.testing.assert_array_equal(heart[1:3, 2:4], source[1:2, 1:3, 2:4][0])


def test_segments_that_overlap_are_channels(tmp_path):
    segmentation(tmp_path / "series", masks()).save_as(tmp_path / "seg.dcm")
    source = open_source(tmp_path / "seg.dcm")
    assert (source.shape, source.dtype) == ((2, 4, 6, 7), "uint8")
    np.testing.assert_array_equal(source[:], np.moveaxis(masks(), -1, 0))


def test_an_overlap_that_is_not_stated_is_refused_where_it_is(tmp_path):
    made = segmentation(tmp_path / "series", masks())
    made.SegmentsOverlap = "UNDEFINED"
    made.save_as(tmp_path / "seg.dcm")
    source = open_source(tmp_path / "seg.dcm")
    assert source.meta.kind == "classes"
    with pytest.raises(InvalidInput, match=r"heart and lung in slice 0.*--channel 'heart'"):
        source.read(Roi.full(source.shape))
    lung = open_source(tmp_path / "seg.dcm", ImageChoice(channel="lung"))
    np.testing.assert_array_equal(lung[:], masks()[..., 0])
    assert lung.identity() != source.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.SegmentSequence.pop(), r"segments \[1\], and slices of \[1, 2\]"),
        (lambda data: setattr(data, "SegmentationType", "ODD"), "of kind ODD with segments"),
        (
            lambda data: setattr(
                data.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0],
                "ImagePositionPatient",
                [-10, 20, -29],
            ),
            "has slices at uneven distances, from 1 to 10 mm",
        ),
    ],
)
def test_segmentations_that_cannot_be_read(tmp_path, change, message):
    made = segmentation(tmp_path / "series", labels())
    change(made)
    made.save_as(tmp_path / "seg.dcm")
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / "seg.dcm")


# Writing


def classes(path, values, series, **changes):
    """A volume of classes that was made from a series."""
    meta = replace(
        open_source(series).meta, kind="classes", channels=("background", "lung", "heart")
    )
    meta = replace(meta, **changes)
    volume = create(path, VolumeSpec.of(values.shape, values.dtype, meta, chunk=4, shard=8))
    volume.write(Roi.full(values.shape), values)
    return volume


@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_segmentation_is_written_on_the_grid_of_its_series(tmp_path, multi_frame):
    if multi_frame:
        order = np.random.default_rng(1).permutation(11)
        series = save(enhanced(random_zyx(), order=order), tmp_path / "series.dcm")
    else:
        series = save_series(tmp_path / "series", random_zyx())
    values = labels()
    values[[0, 10]] = 0  # they are kept all the same
    volume = classes(tmp_path / "seg.zarr", values, series)
    vf.export(volume, tmp_path / "seg.dcm")
    again = open_source(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(again[:], values)
    assert again.meta.affine == volume.meta.affine
    assert (again.meta.spacing, again.meta.unit) == (volume.meta.spacing, volume.meta.unit)
    assert again.meta.channels == volume.meta.channels

    theirs = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert theirs.number_of_segments == 2
    found = theirs.get_volume(combine_segments=True)
    np.testing.assert_array_equal(found.array, values[::-1])  # they go down
    one = pydicom.dcmread(series if multi_frame else next(series.iterdir()))
    assert theirs.StudyInstanceUID == one.StudyInstanceUID
    assert theirs.FrameOfReferenceUID == one.FrameOfReferenceUID
    assert str(theirs.PatientName) == "Doe^Jane"
    frames = theirs.PerFrameFunctionalGroupsSequence
    assert (
        len(frames)
        == theirs.NumberOfFrames
        == 2 + sum(len(set(np.unique(plane)) - {0}) for plane in values)
    )
    places = [tuple(f.FrameContentSequence[0].DimensionIndexValues) for f in frames]
    assert len(set(places)) == len(places)
    assert places[:3] == [(1, 1), (1, 2), (2, 2)]  # segment and slice


@pytest.mark.parametrize("multi_frame", [False, True])
def test_each_mask_refers_to_the_slice_that_it_lies_in(tmp_path, multi_frame):
    if multi_frame:
        order = np.random.default_rng(1).permutation(11)
        series = save(enhanced(random_zyx(), order=order), tmp_path / "series.dcm")
        image = pydicom.dcmread(series)
        images = {
            tuple(one.PlanePositionSequence[0].ImagePositionPatient): (image.SOPInstanceUID, n)
            for n, one in enumerate(image.PerFrameFunctionalGroupsSequence, 1)
        }
    else:
        series = save_series(tmp_path / "series", random_zyx())
        images = {
            tuple(one.ImagePositionPatient): (one.SOPInstanceUID, None)
            for one in map(pydicom.dcmread, series.iterdir())
        }
    vf.export(classes(tmp_path / "seg.zarr", labels(), series), tmp_path / "seg.dcm")
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    for mask in made.PerFrameFunctionalGroupsSequence:
        source = mask.DerivationImageSequence[0].SourceImageSequence[0]
        refers = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
        assert refers == images[tuple(mask.PlanePositionSequence[0].ImagePositionPatient)]
    listed = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {one.ReferencedSOPInstanceUID for one in listed} == {uid for uid, _ in images.values()}


def test_it_says_which_model_made_it(tmp_path):
    series = save_series(tmp_path / "series", random_zyx())
    made = json.dumps({"model": "lungs_v3", "weights": "0123456789abcdef" * 4})
    vf.export(classes(tmp_path / "a.zarr", labels(), series, made=made), tmp_path / "seg.dcm")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    segment = found.SegmentSequence[1]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmName) == ("heart", "lungs_v3")
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert algorithm.AlgorithmVersion == "0123456789abcdef" * 4
    assert found.ContentDescription == "volflow, lungs_v3 0123456789abcdef"
    assert found.SoftwareVersions == vf.__version__


def test_names_are_kept_in_any_script(tmp_path):
    names = ("background", "Läsion β\\γ", "腫瘍")
    for count in (1, 11):
        series = save_series(tmp_path / f"{count}", random_zyx((count, 6, 7)))
        volume = classes(tmp_path / f"{count}.zarr", labels()[:count] > 0, series, channels=names)
        vf.export(volume, tmp_path / f"{count}.dcm")
        again = open_source(tmp_path / f"{count}.dcm")
        assert again.meta.channels == ("background", "Läsion β/γ", "腫瘍")
        assert again.meta.affine == volume.meta.affine
        np.testing.assert_array_equal(again[:], labels()[:count] > 0)


def test_it_is_left_alone_where_it_holds_the_volume(tmp_path):
    series = save_series(tmp_path / "series", random_zyx())
    volume = classes(tmp_path / "seg.zarr", labels(), series)
    before = vf.export(volume, tmp_path / "seg.dcm").read_bytes()
    assert vf.export(volume, tmp_path / "seg.dcm").read_bytes() == before


def test_the_series_may_have_moved(tmp_path):
    series = save_series(tmp_path / "series", random_zyx())
    volume = classes(tmp_path / "seg.zarr", labels(), series)
    series.rename(tmp_path / "moved")
    with pytest.raises(InvalidInput, match=r"series, the DICOM series that .*seg\.zarr was made"):
        vf.export(volume, tmp_path / "seg.dcm")
    vf.export(volume, tmp_path / "seg.dcm", like=tmp_path / "moved")
    np.testing.assert_array_equal(open_source(tmp_path / "seg.dcm")[:], labels())
    with pytest.raises(InvalidInput, match="is the DICOM series that a"):
        vf.export(volume, tmp_path / "seg.npy", like=tmp_path / "moved")


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (labels(), {"kind": "image"}, "has uint8 voxels of kind image along zyx; pred"),
        (labels().astype("f4"), {}, "has float32 voxels of kind classes"),
        (labels((10, 6, 7)), {}, r"\(10, 6, 7\) voxels of \(2.5, 0.75, 0.5\) does not lie on the"),
        (labels(), {"affine": np.diag([-0.5, -0.75, 2.5, 1])}, "does not lie on the grid of"),
        (labels(), {"affine": None}, "does not lie on the grid of"),
        (labels(), {"source": SourceInfo("nifti1", "i2")}, "was made from a file of format nifti1"),
        (labels(), {"source": None}, "was made from no file; name the series"),
        (labels().astype("i2") - 1, {}, "holds classes -1 to 1 in slice 0"),
        (labels().astype("u2") + 5000, {}, "holds classes 5000 to 5002 in slice 0"),
    ],
)
def test_what_no_segmentation_can_hold_is_refused(tmp_path, values, changes, message):
    series = save_series(tmp_path / "series", random_zyx())
    volume = classes(tmp_path / "seg.zarr", values, series, **changes)
    with pytest.raises(InvalidInput, match=message) as caught:
        vf.export(volume, tmp_path / "seg.dcm")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "seg.dcm").exists()


def test_an_array_that_was_never_a_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="and the volume has uint8 voxels of kind image"):
        vf.export(labels(), tmp_path / "seg.dcm")


@pytest.mark.slow
def test_a_prediction_that_no_segmentation_can_hold_is_refused_before_it_runs(tmp_path):
    series = save_series(tmp_path / "series", random_zyx())
    net = torch.nn.Conv3d(1, 3, 1)
    out = tmp_path / "seg.dcm"
    with pytest.raises(InvalidInput, match=r"seg\.dcm has float32 voxels of kind image along czyx"):
        vf.plan_predict(series, net, out, patch=4)
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
    vf.predict(f"{series}::2", net, out, patch=4, output="classes", progress=False)
    made = pydicom.dcmread(out)
    assert made.SegmentSequence[1].SegmentLabel == "class 2"
    assert made.SegmentSequence[1].SegmentAlgorithmType == "AUTOMATIC"
    assert open_source(out).shape == (11, 6, 7)
