"""The instruments measure what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bits_lines import line_of
from counts import Way, code_lines, source_counts
from same_bits import differences

import volflow as vf

CODE = '''"""A module."""

# A comment.
def f(x):
    """Return a sum.

    Of two.
    """
    text = """two
lines"""

    return x + len(text)  # here
'''


def test_lines_without_docstrings_comments_and_blanks():
    assert code_lines(CODE) == 4


def test_wings_folders_and_classes(tmp_path):
    (tmp_path / "wing").mkdir()
    (tmp_path / "__init__.py").write_text("x = 1\n")
    record = "@dataclasses.dataclass(frozen=True)\nclass A:\n    x: int\n\n\nclass B(A): ...\n"
    (tmp_path / "wing" / "a.py").write_text(record)
    found = source_counts(tmp_path)
    assert found["lines by wing"] == {"(root)": 1, "wing": 4}
    assert (found["classes"], found["dataclasses"], found["most files in a folder"]) == (2, 1, 1)


def test_objects_and_files_between_two_moments():
    vf.Roi((0,), (1,))  # imported
    way = Way(Path(vf.__file__).parent)
    with way.watched():
        vf.Roi((0, 0, 0), (8, 8, 8)).shape  # noqa: B018
        vf.Roi((0, 0, 0), (8, 8, 8))
    found = way.counts()
    assert found["objects by type"] == {f"{vf.Roi.__module__}.Roi": 2}
    assert found["files"] == found["types"] == found["records"] == 1
    assert found["returns"] == 1  # made, then asked for its shape
    assert found["types in tasks"] == found["files in tasks"] == 0


def test_a_line_tells_voxels_apart_and_not_places(tmp_path, monkeypatch):
    values = np.zeros((4, 5, 6), "int16")
    lines = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        values[3, 2, 1] = number == 2
        lines.append(line_of(vf.convert(values, "a.zarr", progress=False)))
    assert lines[0] == lines[1] != lines[2]


def test_what_differs_is_named():
    before, after = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "x", "d": "4"}
    assert [text.split("\n")[0] for text in differences(before, after)] == ["b", "c", "d"]
