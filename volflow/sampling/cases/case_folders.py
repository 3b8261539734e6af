"""Cases of a folder: of images and labels, of the Decathlon, of nnU-Net, plain, or by folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.sampling.cases.data_set import channels_named
from volflow.sampling.cases.names import check_channels, listed
from volflow.store.atomic import read_json
from volflow.store.formats.known import format_of
from volflow.store.formats.sources import stem
from volflow.store.journal.journal import journal_dir
from volflow.store.opening import is_url, is_zarr
from volflow.volumes.origin import NOTE

__all__ = ["cases_of_folder", "is_case_folder", "unpaired"]

IMAGE = "image"
# Folders of images: of one data set, and its parts for training and for testing.
PARTS = ("images", "imagesTr", "imagesTs")
NUMBERED = re.compile(r"(.+)_(\d{4})")  # of nnU-Net: case and channel


def is_case_folder(path: str | Path) -> bool:
    """Return True for a local folder that is no volume itself, such as a DICOM series."""
    folder = Path(path).expanduser()
    if is_url(str(path)) or not folder.is_dir() or is_zarr(folder):
        return False
    return any((folder / part).is_dir() for part in PARTS) or format_of(folder) is None


def cases_of_folder(folder: Path, *, images_only: bool = False) -> dict[str, dict[str, str]]:
    """Return the volumes of the cases of a folder by name, sorted.

    A case is what has an image; its label is there where there is one.

    Raises
    ------
    InvalidInput
        If there is none, two have one name, or one lacks a channel.
    """
    channels = channels_named(folder)
    found: dict[str, dict[str, str]] = {}
    parts = _parts(folder)
    for images, others in parts:
        cases = _images(images, channels)
        for name, other in () if images_only else others.items():
            for case, path in _volumes(other).items():
                if case in cases:
                    cases[case][name] = path
        _join(found, cases, folder)
    if not parts:
        found = _images(folder, channels) or _folders(folder)
    if not found:
        raise InvalidInput(
            f"no case was found in {folder}: looked for .nii.gz, .nii, .npy and .zarr, in it or in"
            f" its {', '.join(f'{part}/' for part in PARTS)}"
        )
    return dict(sorted(found.items()))


def unpaired(folder: Path) -> dict[str, str]:
    """Return what lies in only some of the folders of a data set, by case, in words.

    Images for testing need no label, and where no image has one, none is missing.
    """
    found: dict[str, str] = {}
    channels = channels_named(folder)
    for images, others in _parts(folder):
        cases = _images(images, channels)
        for other in others.values():
            there = _volumes(other)
            found |= {case: f"no file in {images.name}/" for case in there.keys() - cases.keys()}
            lacking = cases.keys() - there.keys() if there else set()
            found |= {case: f"no file in {other.name}/" for case in lacking}
    return dict(sorted(found.items()))


def _parts(folder: Path) -> list[tuple[Path, dict[str, Path]]]:
    """Return the folders of images, each with those beside it by the names of their arrays."""
    if folder.name in PARTS and not any((folder / part).is_dir() for part in PARTS):
        return [(folder, _beside(folder))]
    return [(folder / one, _beside(folder / one)) for one in PARTS if (folder / one).is_dir()]


def _beside(images: Path) -> dict[str, Path]:
    """Return the folders beside one of images that hold volumes of the same cases, labels first."""
    part = images.name.removeprefix("images")
    if part:
        labels = images.with_name(f"labels{part}")
        return {"label": labels} if labels.is_dir() else {}
    found = [
        one
        for one in sorted(images.parent.iterdir())
        if one.is_dir() and one.name not in PARTS and not one.name.startswith((".", "labelsT"))
        and not is_zarr(one) and one.suffix != ".volflow" and _volumes(one)
    ]  # fmt: skip
    found.sort(key=lambda one: one.name != "labels")
    return {one.name.removesuffix("s"): one for one in found}


def _folders(folder: Path) -> dict[str, dict[str, str]]:
    """Return cases that are folders, whose files name the arrays: the image first, then the label.

    This is how `convert_cases` lays them out.
    """
    found = {}
    for one in sorted(folder.iterdir()):
        if one.name.startswith(".") or not is_case_folder(one):
            continue
        volumes = _volumes(one)
        order = sorted(volumes, key=lambda name: (name != IMAGE, name.startswith("label"), name))
        if volumes:
            found[one.name] = {name: volumes[name] for name in order}
    return found


def _join(found: dict[str, dict[str, str]], cases: Mapping[str, dict[str, str]], at: Path) -> None:
    twice = found.keys() & cases.keys()
    if twice:
        raise InvalidInput(
            f"the names of cases must differ, but {listed(twice)} of {at} is there twice,"
            " for training and for testing; name one of its folders"
        )
    found.update(cases)


def _images(folder: Path, channels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the images of a folder by case; those of nnU-Net by channel as well."""
    volumes = _volumes(folder)
    matches = {name: NUMBERED.fullmatch(name) for name in volumes}
    if not channels or not all(one and int(one[2]) < len(channels) for one in matches.values()):
        return {name: {IMAGE: path} for name, path in volumes.items()}
    found: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        if match:
            found.setdefault(match[1], {})[channels[int(match[2])]] = volumes[name]
    check_channels(found, channels, f" of {folder}")
    return {case: {one: by_name[one] for one in channels} for case, by_name in found.items()}


def _volumes(folder: Path) -> dict[str, str]:
    """Return the volumes of a folder by the names of their files, without the suffix."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = stem(path.name)
        if path.name.startswith(".") or (name == path.name and not is_zarr(path)):
            continue
        other = Path(found.get(name, path))
        if other != path and _converted(path, other):  # a file gives way to its conversion
            continue
        if other != path and not _converted(other, path):
            raise InvalidInput(
                f"the names of cases must differ, but {folder} holds {other.name} and"
                f" {path.name}; move one elsewhere"
            )
        found[name] = str(path)
    return found


def _converted(file: Path, copy: Path) -> bool:
    """Return True if a volume was converted from a file, as its journal says."""
    with suppress(OSError, ValueError, AttributeError):
        noted = read_json(journal_dir(copy) / NOTE).get("path")
        return is_zarr(copy) and noted == str(file.absolute())
    return False
