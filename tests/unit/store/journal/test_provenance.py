"""What is noted of inputs and models: where they were, and no password."""

from __future__ import annotations

import pytest

from volflow.store.journal.journal import journal_of
from volflow.store.journal.provenance import Provenance, keep_provenance, read_provenance


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ("/data/scan.nii.gz", "/data/scan.nii.gz"),
        ("https://ann:secret@example.org/scan.zarr", "https://example.org/scan.zarr"),
        ("https://token@example.org/scan.zarr", "https://example.org/scan.zarr"),
        ("https://example.org/scan.zarr?X-Amz-Signature=1a#b", "https://example.org/scan.zarr"),
        ("https://example.org?sig=1a/b", "https://example.org"),
        ("s3://key:secret@bucket/scan.zarr", "s3://bucket/scan.zarr"),
        ("s3://key:sec/ret@bucket/scan.zarr", "s3://bucket/scan.zarr"),
        ("s3://bucket/by/ann@home/scan.zarr", "s3://bucket/by/ann@home/scan.zarr"),
        ("abfs://container@account/scan.zarr", "abfs://container@account/scan.zarr"),
    ],
)
def test_passwords_and_signatures_are_left_out(tmp_path, given, noted):
    journal = journal_of(tmp_path / "out.zarr")
    journal.make_place()
    keep_provenance(journal, Provenance({"": given}, {"": given}, given), journal.directory)
    assert read_provenance(journal) == Provenance({"": noted}, {"": noted}, noted)
    assert "secret" not in (journal.directory / "provenance.json").read_text()


def test_copies_beside_the_output_move_with_it(tmp_path):
    journal = journal_of(tmp_path / "out.zarr")
    journal.make_place()
    copy = journal.directory / "input" / "scan.zarr"
    keep_provenance(journal, Provenance(inputs={"": str(copy)}), journal.directory)
    assert str(tmp_path) not in (journal.directory / "provenance.json").read_text()
    journal.directory.rename(tmp_path / "moved.zarr.volflow")
    moved = journal_of(tmp_path / "moved.zarr")
    expected = moved.directory / "input" / "scan.zarr"
    assert read_provenance(moved).inputs == {"": str(expected)}
