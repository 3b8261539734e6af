"""Choosing one image of several: channels, and what a format does not have several of."""

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import SourceContract, random_zyx, save_nifti
from volflow.errors import InvalidInput
from volflow.store.create import create
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source
from volflow.store.formats.taken.one_channel import one_channel
from volflow.store.meta import Meta, VolumeSpec

CHANNELS = random_zyx((3, 11, 6, 7))


class Chosen(SourceContract):
    """The second of three channels."""

    def opened(self, folder):
        voxels = self.voxels()
        three = np.stack([voxels + 1, voxels, voxels - 1])
        return open_source(self.make(folder, three), ImageChoice(channel=1)), voxels

    def test_identity_follows_the_voxels(self, tmp_path):
        source, _ = self.opened(tmp_path)
        others = [one_channel(source.source, n).identity() for n in range(3)]
        assert len({source.source.identity(), *others}) == 4


class TestOfNumPy(Chosen):
    def make(self, folder, voxels):
        np.save(folder / "a.npy", voxels)
        return folder / "a.npy"


class TestOfPackedNifti(Chosen):
    sequential = True

    def make(self, folder, voxels):
        return save_nifti(folder / "a.nii.gz", voxels)


def named(folder):
    meta = Meta(("c", "z", "y", "x"), channels=("t1", "t2", "flair"))
    volume = create(folder / "a.zarr", VolumeSpec.of(CHANNELS.shape, CHANNELS.dtype, meta))
    return volume


def test_a_channel_has_its_name(tmp_path):
    named(tmp_path)
    source = open_source(tmp_path / "a.zarr", ImageChoice(channel="t2"))
    assert (source.channel, source.meta.channels, source.meta.axes) == (1, ("t2",), tuple("zyx"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (ImageChoice(channel="pd"), "has no channel 'pd'; its channels are t1, t2, flair"),
        (ImageChoice(channel=3), "has 3 channels, given channel 3; choose 0 to 2"),
        (
            ImageChoice(series=1),
            "is a Zarr volume, of which no series can be chosen, given series 1",
        ),
        (ImageChoice(level=1), "level must be 0 to 0, given 1"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, choice, message):
    named(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / "a.zarr", choice)


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("a.npy", ImageChoice(timepoint=0), "is NumPy, of which no timepoint can be chosen"),
        ("a.npy::raw", ImageChoice(), "is NumPy and holds one image; leave ::raw out"),
        ("a.npy", ImageChoice(channel="x"), "its channels have no names; give a number"),
    ],
)
def test_a_file_of_one_image_has_no_choice(tmp_path, name, choice, message):
    np.save(tmp_path / "a.npy", CHANNELS)
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / name, choice)


def test_path_and_option_may_not_differ():
    assert ImageChoice(series=2).within("2", "series") == ImageChoice(series=2)
    with pytest.raises(InvalidInput, match="names series 3 and the option 2; give only one"):
        ImageChoice(series=2).within("3", "series")


def test_a_file_without_suffix_is_known_by_its_bytes(tmp_path):
    np.save(tmp_path / "a.npy", CHANNELS)
    (tmp_path / "a.npy").rename(tmp_path / "a")
    save_nifti(tmp_path / "b.nii", CHANNELS[0]).rename(tmp_path / "b")
    assert open_source(tmp_path / "a").shape == CHANNELS.shape
    assert open_source(tmp_path / "b").shape == CHANNELS.shape[1:]
