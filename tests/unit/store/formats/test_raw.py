"""Raw voxels in a file, packed in each way and with channels side by side."""

import bz2
import gzip
import zlib

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import SourceContract, random_zyx
from volflow.errors import Damaged
from volflow.store.formats.raw import RawSource, check_room
from volflow.store.meta import Meta, SourceInfo

PACK = {"": bytes, "gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress}


def made(folder, voxels, packing="", *, interleaved=False):
    """Store voxels behind a header of seven bytes, three more in front of them in their stream."""
    stored = np.moveaxis(voxels, 0, -1) if interleaved else voxels
    path = folder / "a.raw"
    path.write_bytes(b"a head " + PACK[packing](b"and" + np.ascontiguousarray(stored).tobytes()))
    axes = ("c", "z", "y", "x")[-voxels.ndim :]
    return RawSource(
        path=str(path),
        shape=voxels.shape,
        meta=Meta(axes, source=SourceInfo("raw", str(voxels.dtype))),
        stored_dtype=voxels.dtype,
        begin=7,
        skip=3,
        packing=packing,
        interleaved=interleaved,
    )


class TestPlain(SourceContract):
    packing, interleaved = "", False

    def make(self, folder, voxels):
        return made(folder, voxels, self.packing, interleaved=self.interleaved)


class TestChannelsSideBySide(TestPlain):
    interleaved = True

    def voxels(self):
        return random_zyx((3, 11, 6, 7), ">u2")


class TestGzip(TestPlain):
    packing, sequential = "gzip", True


class TestZlib(TestPlain):
    packing, sequential = "zlib", True


class TestBzip2(TestPlain):
    packing, sequential = "bzip2", True


class TestPackedChannelsSideBySide(TestChannelsSideBySide):
    packing, sequential = "gzip", True


@pytest.mark.parametrize("packing", ["gzip", "zlib", "bzip2"])
def test_a_stream_that_is_cut_or_changed_is_noticed(tmp_path, packing):
    source = made(tmp_path, random_zyx((20, 30, 40)), packing)
    content = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").write_bytes(content[:-9])
    with pytest.raises(Damaged, match=r"a\.raw is cut short; copy it again"):
        list(source.slabs(4))
    (tmp_path / "a.raw").write_bytes(content[:5000] + b"\0" * 99 + content[5099:])
    with pytest.raises(Damaged, match=r"a\.raw is damaged .*; copy it again"):
        list(source.slabs(4))


def test_a_header_may_not_claim_more_than_its_file_holds(tmp_path):
    source = made(tmp_path, random_zyx())
    check_room(source.path, 10, source.shape, source.dtype)
    with pytest.raises(Damaged, match="is cut short"):
        check_room(source.path, 11, source.shape, source.dtype)
    with pytest.raises(Damaged, match="is cut short"):
        check_room(source.path, 0, (2**40, 2**40), "uint8", "gzip")
