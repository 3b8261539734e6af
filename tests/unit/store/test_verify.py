import itertools
import json
import shutil

import google_crc32c
import numpy as np
import pytest
import zarr

from volflow.engine.observing.run_facts import run_facts
from volflow.errors import Damaged, InvalidInput, Locked
from volflow.store.journal.complete import require_complete
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.layout import ShardEntry
from volflow.store.verify import Coverage, verify
from volflow.store.volume import open_volume

SHAPE, SHARD, CHUNK = (40, 32, 48), (16, 16, 16), (8, 8, 8)
GRID = (3, 2, 3)
TOTAL = 18


def entry_of(data, start, array="0"):
    stop = tuple(min(a + s, n) for a, s, n in zip(start, SHARD, data.shape, strict=True))
    piece = data[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return ShardEntry(array, start, stop, google_crc32c.value(np.ascontiguousarray(piece)))


@pytest.fixture
def out(tmp_path):
    """An output of 18 blocks, one shard each, whose last block is empty and was never stored."""
    path = tmp_path / "out.zarr"
    data = np.random.default_rng(0).integers(0, 1000, SHAPE, dtype="uint16")
    data[32:, 16:, 32:] = 0
    group = zarr.create_group(path)
    group.create_array("0", shape=SHAPE, shards=SHARD, chunks=CHUNK, dtype="uint16")[:] = data
    journal = Journal(journal_dir(path))
    journal.begin(Record("predict", {}, {"grid": GRID}))
    starts = itertools.product(*(range(0, n, s) for n, s in zip(SHAPE, SHARD, strict=True)))
    for block, start in enumerate(starts):
        journal.mark(block, [entry_of(data, start)], {})
    journal.end()
    return path


@pytest.fixture
def journal(out):
    return Journal(journal_dir(out))


def shard_file(out, z, y, x):
    return out / "0" / "c" / str(z) / str(y) / str(x)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_whole_output(out):
    coverage = verify(out)
    assert coverage.ok
    assert (coverage.total, coverage.done, coverage.missing, coverage.bad) == (TOTAL, TOTAL, 0, ())
    assert str(coverage) == f"{out}: 18 of 18 blocks verified"
    assert verify(str(out)) == coverage


def test_a_deleted_empty_shard_holds_what_it_should(out):
    assert not shard_file(out, 2, 1, 2).exists()
    assert verify(out).cells[17] == "#"


def test_progress_counts_the_blocks(out):
    seen = []
    verify(out, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, TOTAL) for n in range(1, TOTAL + 1)]


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_byte_is_found_wherever_it_lies(out, journal, seed):
    path = shard_file(out, 1, 0, 1)
    size = path.stat().st_size
    flip(path, int(np.random.default_rng(seed).integers(0, size)) if seed else size - 3)
    coverage = verify(out)
    assert [block for block, _ in coverage.bad] == [7]
    assert coverage.bad[0][1].startswith("array 0 at (16, 0, 16): ")
    assert not coverage.ok
    assert coverage.done == TOTAL - 1
    assert 7 not in journal.done()
    assert len(journal.done()) == TOTAL - 1


@pytest.mark.chaos
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_shard_is_found(out, keep):
    path = shard_file(out, 0, 1, 2)
    path.write_bytes(path.read_bytes()[:keep])
    assert [block for block, _ in verify(out).bad] == [5]


@pytest.mark.chaos
def test_a_deleted_shard_is_found_and_named(out):
    shard_file(out, 2, 1, 0).unlink()
    coverage = verify(out)
    assert coverage.bad == ((15, "array 0 at (32, 16, 0): checksum differs"),)
    assert str(coverage).endswith(
        "17 of 18 blocks verified, 1 bad, 0 missing; block 15 (2, 1, 0): array 0 at (32, 16, 0):"
        " checksum differs"
    )


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["0", "0/zarr.json"])
def test_a_deleted_array_makes_every_block_bad(out, journal, victim):
    path = out / victim
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    coverage = verify(out)
    assert coverage.cells == "x" * TOTAL
    assert "array 0 cannot be opened" in coverage.bad[0][1]
    assert str(coverage).endswith("; and 13 more")
    assert journal.done() == {}


def test_whatever_a_codec_raises_is_a_bad_block(out, monkeypatch):
    def broken(self, selection):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(zarr.Array, "__getitem__", broken)
    assert verify(out).bad[0][1] == "array 0 at (0, 0, 0): cannot be decoded (first)"


def test_what_may_not_be_read_is_not_called_bad(out, journal, monkeypatch):
    def refused(self, selection):
        raise PermissionError

    monkeypatch.setattr(zarr.Array, "__getitem__", refused)
    with pytest.raises(InvalidInput, match="permission denied"):
        verify(out)
    assert len(journal.done()) == TOTAL


def test_missing_blocks_are_counted_and_drawn(out, journal):
    journal.forget([0, 4, 17])
    shard_file(out, 1, 0, 0).unlink()
    coverage = verify(out)
    assert (coverage.done, coverage.missing, len(coverage.bad)) == (14, 3, 1)
    assert coverage.map().splitlines() == [
        "z 0  .## #.#",
        "z 1  x## ###",
        "z 2  ### ##.",
        "# verified  x bad  . missing; a row is a layer of blocks, y by y",
    ]


def test_verify_again_after_the_repair(out, journal):
    path = shard_file(out, 0, 0, 0)
    entry, content = journal.done()[0], path.read_bytes()
    flip(path, 10)
    assert not verify(out).ok
    assert verify(out).missing == 1
    path.write_bytes(content)
    journal.mark(0, entry, {})
    assert verify(out).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((0, 0, 0), (16, 16, 64)),
        ((-16, 0, 0), (0, 16, 16)),
        ((0, 0), (16, 16)),
        ((8,) * 3, (8,) * 3),
    ],
)
def test_a_box_that_does_not_lie_in_the_array_is_bad(out, journal, start, stop):
    journal.mark(0, [ShardEntry("0", start, stop, 0)], {})
    (bad,) = verify(out).bad
    assert bad[0] == 0
    assert "lies outside the array" in bad[1]


@pytest.mark.parametrize("name", ["../secret", "/etc", "0/../../secret"])
def test_a_journal_cannot_lead_out_of_the_output(out, journal, name):
    journal.mark(0, [ShardEntry(name, (0, 0, 0), (1, 1, 1), 0)], {})
    with pytest.raises(InvalidInput, match="names an array outside the output"):
        verify(out)


def test_records_beyond_the_grid_are_ignored(out, journal):
    journal.mark(TOTAL, journal.done()[0], {})
    assert verify(out).ok


def test_an_output_without_a_journal_is_refused_and_nothing_is_made(tmp_path):
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(InvalidInput, match=r"foreign\.zarr has no journal"):
        verify(tmp_path / "foreign.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.zarr"]


@pytest.mark.parametrize("grid", [None, [], [0, 1, 1], "abc", [1.5], ["a"], [10**13], [10**9] * 9])
def test_a_record_without_a_grid_is_refused(out, journal, grid):
    path = journal.directory / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"grid": grid}}))
    large = isinstance(grid, list) and len(grid) > 0 and grid[0] in (10**13, 10**9)
    rule = "has more than 4194304 blocks" if large else "expected blocks per axis"
    volume = open_volume(out / "0")
    for read in (verify, run_facts, lambda _: require_complete(volume)):
        with pytest.raises(Damaged, match=rule):
            read(out)
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {}}))
    with pytest.raises(Damaged, match="records no grid of blocks"):
        verify(out)


def test_an_output_being_written_is_refused(out, journal):
    with journal.lock(), pytest.raises(Locked):
        verify(out)


def test_several_arrays_of_one_output(out, journal):
    data = np.ones((16, 16), dtype=bool)
    zarr.open_group(out).create_array("mask/0", shape=(16, 16), chunks=(16, 16), dtype=bool)[:] = 1
    entry = ShardEntry("mask/0", (0, 0), (16, 16), google_crc32c.value(data))
    journal.mark(0, [*journal.done()[0], entry], {})
    assert verify(out).ok
    (out / "mask" / "0" / "c" / "0" / "0").unlink()
    assert verify(out).bad == ((0, "array mask/0 at (0, 0): checksum differs"),)


def test_a_large_grid_is_drawn_condensed():
    cells = list("#" * (120 * 30 * 30))
    cells[0] = "x"
    cells[900 * 3 + 899] = "."
    lines = Coverage("a", (120, 30, 30), "".join(cells)).map().splitlines()
    assert lines[0] == "z 0    x" + "#" * 99
    assert lines[1] == "z 2    " + "#" * 99 + "o"
    assert lines[59] == "z 118  " + "#" * 100
    assert lines[60].endswith("o some missing; a letter is up to 18 blocks")


def test_a_grid_of_one_axis_is_drawn():
    assert Coverage("a", (4,), "##..").map().splitlines()[0] == "z 0  ##.."
