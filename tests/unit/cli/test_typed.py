"""Commands made from options objects: how options are spelled, listed, read and left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer

from volflow.cli.typed import changed, typed
from volflow.errors import InvalidInput
from volflow.option import numbers, option


@dataclass(frozen=True)
class Cut:
    side_length: Any = option(64, "Voxels.", read=numbers)
    overlaps: Any = option((0,), "May be repeated.", names=("--overlap",), read=numbers, many=True)
    count: int = option(7, "How many.")
    shift: float | None = option(None, "In voxels.")
    keep: bool = option(False, "Keep them.", "Result")
    labels: bool | None = option(None, "What they are.", names=("--labels/--image",))
    like: object = None


@dataclass(frozen=True)
class Draw:
    count: int = option(9, "How many are drawn.")
    seed: int = option(0, "Of the draw.")


@pytest.fixture
def cut():
    """The command, and what it was called with."""
    calls = []

    def command(
        volume: Annotated[str, typer.Argument()],
        options: Cut,
        draw: Annotated[Draw, "By chance"],
    ) -> None:
        """Cut a volume."""
        calls.append((volume, options, draw))

    app = typer.Typer(add_completion=False)
    app.command()(typed(command))
    return lambda *words: app(args=[*words], standalone_mode=False), calls


def test_what_is_not_typed_keeps_its_own_default(cut):
    run, calls = cut
    run("a.zarr")
    assert calls == [("a.zarr", Cut(), Draw())]


def test_what_is_typed_is_read(cut):
    run, calls = cut
    words = "a.zarr --side-length 8,16,16 --overlap 0.5 --overlap 2 --shift -1 --keep --image"
    run(*words.split(), "--seed", "3")
    assert calls[0][1] == Cut((8, 16, 16), [0.5, 2], shift=-1.0, keep=True, labels=False)
    assert calls[0][2] == Draw(seed=3)
    assert changed(calls[0][1]) == [
        "--side-length",
        "--overlap",
        "--shift",
        "--keep",
        "--labels/--image",
    ]


def test_an_option_of_two_objects_is_typed_once(cut):
    run, calls = cut
    run("a.zarr", "--count", "5")
    assert (calls[0][1].count, calls[0][2].count) == (5, 5)


def test_a_mistake_names_the_option_as_it_is_typed(cut):
    with pytest.raises(InvalidInput, match="side-length must be one number or three"):
        cut[0]("a.zarr", "--side-length", "8,8")
    with pytest.raises(InvalidInput, match="overlap must be one number or three"):
        cut[0]("a.zarr", "--overlap", "x")


def test_help_lists_options_under_their_headings(cut, capsys):
    cut[0]("--help")
    text = capsys.readouterr().out
    places = [text.index(word) for word in ("Cut a volume", "--side-length", "Result", "--keep")]
    assert places == sorted(places)
    assert text.index("By chance") < text.index("--seed")
    assert text.count("--count") == 1
    for line in ("Voxels. Default: 64.", "How many. Default: 7.", "Of the draw. Default: 0."):
        assert line in text
    assert "None" not in text
    assert "False" not in text
    assert "like" not in text
