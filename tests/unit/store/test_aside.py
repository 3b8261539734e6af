"""What is written beside its place: whole, or not at all; and removed when nobody owns it."""

from __future__ import annotations

import pytest

from volflow.store.aside import file_aside, folder_aside, replace_folder, sweep, sweep_torn


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "a.json"
    with file_aside(target) as (part, file):
        file.write(b"1")
        file.flush()
        assert not target.exists()
        part.replace(target)
    assert target.read_bytes() == b"1"
    with pytest.raises(TypeError), file_aside(target) as (_, file):
        file.write("not bytes")
    assert target.read_bytes() == b"1"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_replaces_another(tmp_path):
    for text in ("old", "new"):
        with folder_aside(tmp_path / "a.zarr") as aside:
            (aside / "text").write_text(text)
            replace_folder(aside, tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "text").read_text() == "new"
    assert names(tmp_path) == ["a.zarr"]


def test_what_cannot_be_replaced_is_there_again(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(OSError, match="No such file"):
        replace_folder(tmp_path / "gone", tmp_path / "a.zarr")
    assert names(tmp_path) == ["a.zarr"]


def test_only_what_nobody_owns_is_swept(tmp_path):
    for name in ("a.zarr", "a", "b.zarr"):
        (tmp_path / f".{name}.new-0123abcd" / "0").mkdir(parents=True)
    (tmp_path / ".a.zarr.0123abcd.tmp").write_text("half")
    (tmp_path / ".a.zarr.old-0123abcd").symlink_to(tmp_path / ".b.zarr.new-0123abcd")
    with folder_aside(tmp_path / "a.zarr") as folder, file_aside(tmp_path / "a.zarr") as _:
        sweep(tmp_path / "a.zarr")
        own = names(tmp_path)
        assert folder.name in own
        assert len(own) == 5
        sweep(tmp_path / "nowhere" / "a.zarr")
    assert names(tmp_path) == [
        ".a.new-0123abcd", ".a.zarr.old-0123abcd", ".b.zarr.new-0123abcd",
    ]  # fmt: skip


def test_what_killed_writers_left_in_a_store_is_swept(tmp_path):
    torn = [f"0/c/0/1/2.{32 * 'a'}.partial", f"0/zarr.{32 * '0'}.partial"]
    kept = ["0/c/0/1/2", "0/zarr.json", "0/c/0/1/3.partial", f"0/c/0/1/{32 * 'a'}"]
    for name in (*torn, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep_torn(tmp_path)
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(kept)
    sweep_torn(tmp_path / "nothing")
