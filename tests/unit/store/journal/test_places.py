"""Where levels and their journals lie."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.levels import Place, drop_levels, level_journals, list_levels, place_of
from volflow.store.meta import Level, Meta, VolumeSpec
from volflow.store.ngff import read_group
from volflow.store.volume import open_volume


def volume(path):
    made = create(path, VolumeSpec.of((8, 8, 8), "u1", Meta(), chunk=4, shard=4))
    made.write(Roi.full(made.shape), np.ones(made.shape, "u1"))
    return made


def begin(place, level):
    journal = place.journal(level)
    journal.directory.mkdir(parents=True)
    journal.begin(Record("pyramid", {}, {"grid": [1, 1, 1]}))
    return journal


def test_of_a_volume_of_its_own(tmp_path):
    place = place_of(volume(tmp_path / "a.zarr"))
    assert place == Place(tmp_path / "a.zarr")
    assert place.array(2) == "2"
    assert place.path(2) == tmp_path / "a.zarr" / "2"
    assert place.run.directory == tmp_path / "a.zarr.volflow"
    assert place.journal(2).directory == tmp_path / "a.zarr.volflow" / "levels" / "2"


def test_of_an_output_by_name_the_store_counts(tmp_path):
    zarr.open_group(tmp_path / "out.zarr", mode="a")
    place = place_of(volume(tmp_path / "out.zarr" / "seg"))
    assert place == Place(tmp_path / "out.zarr", "seg")
    assert place.array(1) == "seg/1"
    assert place.journal(1).directory == tmp_path / "out.zarr.volflow" / "levels" / "seg" / "1"


def test_a_volume_written_by_a_run_of_its_own_into_somebody_s_store(tmp_path):
    zarr.open_group(tmp_path / "plate.zarr", mode="a")
    inner = volume(tmp_path / "plate.zarr" / "a")
    Journal(journal_dir(inner.path)).begin(Record("convert", {}, {"grid": [2, 2, 2]}))
    assert place_of(inner) == Place(tmp_path / "plate.zarr" / "a")


def test_journals_are_found_in_order_and_dropped(tmp_path):
    place = place_of(volume(tmp_path / "a.zarr"))
    for level in (2, 10, 1):
        begin(place, level)
    assert list(level_journals(place.run)) == ["1", "2", "10"]
    assert place.surplus(1) == [2, 10]
    drop_levels(place.run)
    assert level_journals(place.run) == {}
    assert place.surplus(0) == []


def test_the_list_is_written_only_where_it_changes(tmp_path):
    made = volume(tmp_path / "a.zarr")
    before = (tmp_path / "a.zarr" / "zarr.json").stat().st_mtime_ns
    list_levels(made, made.levels)
    assert (tmp_path / "a.zarr" / "zarr.json").stat().st_mtime_ns == before
    levels = (*made.levels, Level("1", (2.0, 2.0, 2.0), (0.5, 0.5, 0.5)))
    list_levels(made, levels)
    assert open_volume(made.path).levels == levels
    assert open_volume(made.path).meta == made.meta


def test_the_list_says_all_of_a_scale(tmp_path):
    """A scale of all levels together, as others may write it, is not applied twice."""
    made = volume(tmp_path / "a.zarr")
    group = zarr.open_group(made.path, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [3, 2, 2]}]
    group.update_attributes({"ome": ome})
    made = open_volume(made.path)
    assert made.spacing == (3, 2, 2)
    levels = (made.levels[0], Level("1", (6.0, 4.0, 4.0)))
    list_levels(made, levels)
    assert read_group(zarr.open_group(made.path))[1] == levels


def test_only_what_volflow_wrote_has_a_place(tmp_path):
    made = volume(tmp_path / "a.zarr")
    with pytest.raises(InvalidInput, match=r"0 is an array of the volume .*a\.zarr; give that one"):
        place_of(open_volume(tmp_path / "a.zarr" / "0"))
    group = zarr.open_group(made.path, mode="r+")
    del group.attrs["volflow"]
    with pytest.raises(InvalidInput, match=r"was not written by volflow"):
        place_of(open_volume(tmp_path / "a.zarr"))
