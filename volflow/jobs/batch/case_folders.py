"""Cases of a folder: plain, ``images/`` and ``labels/``, of the Decathlon, or of nnU-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.store.atomic import read_json
from volflow.store.formats.sources import stem
from volflow.store.opening import is_zarr

__all__ = ["cases_of_folder"]

# Folders of images, each with that of its labels.
PARTS = (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
CARD = "dataset.json"
NUMBERED = re.compile(r"(.+)_(\d{4})")  # of nnU-Net: case and channel


def cases_of_folder(folder: Path) -> dict[str, dict[str, str]]:
    """Return the volumes of the cases of a folder by name, sorted.

    A case is what has an image; its label is there where there is one.

    Raises
    ------
    InvalidInput
        If there is none, two have one name, or one lacks a channel.
    """
    channels = _channels(folder)
    found: dict[str, dict[str, str]] = {}
    for images, labels in PARTS:
        if (folder / images).is_dir():
            cases = _images(folder / images, channels)
            for case, path in _volumes(folder / labels).items():
                if case in cases:
                    cases[case]["label"] = path
            _join(found, cases, folder)
    if not any((folder / images).is_dir() for images, _ in PARTS):
        found = _images(folder, channels)
    if not found:
        parts = ", ".join(f"{images}/" for images, _ in PARTS)
        raise InvalidInput(
            f"no case was found in {folder}: looked for .nii.gz, .nii, .npy and .zarr, in it or in"
            f" its {parts}"
        )
    return dict(sorted(found.items()))


def _join(found: dict[str, dict[str, str]], cases: Mapping[str, dict[str, str]], at: Path) -> None:
    twice = sorted(found.keys() & cases.keys())
    if twice:
        raise InvalidInput(
            f"the names of cases must differ, but {', '.join(twice[:8])} of {at} is there twice,"
            " for training and for testing; name one of its folders"
        )
    found.update(cases)


def _images(folder: Path, channels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the images of a folder by case; those of nnU-Net by channel as well."""
    volumes = _volumes(folder)
    matches = {name: NUMBERED.fullmatch(name) for name in volumes}
    if not channels or not all(matches.values()):
        return {name: {"image": path} for name, path in volumes.items()}
    found: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        if match and int(match[2]) < len(channels):
            found.setdefault(match[1], {})[channels[int(match[2])]] = volumes[name]
    lacking = {
        channel: sorted(case for case in found if channel not in found[case])
        for channel in channels
    }
    named = [f"{one} of {', '.join(cases[:8])}" for one, cases in lacking.items() if cases]
    if named:
        raise InvalidInput(
            f"each case of {folder} needs all its channels; missing: {'; '.join(named)}"
        )
    return {case: {one: by_name[one] for one in channels} for case, by_name in found.items()}


def _channels(folder: Path) -> tuple[str, ...]:
    """Return the channels that nnU-Net's description of a data set names, in order, if any."""
    for path in (folder / CARD, folder.parent / CARD):
        if not path.is_file():
            continue
        try:
            named = read_json(path).get("channel_names")
            names = [str(named[str(n)]) for n in range(len(named))] if named else []
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{path} cannot be read as the description of a data set: {error}; repair it, or"
                " move it elsewhere"
            ) from error
        # Two channels may have one name there; their numbers differ.
        numbers = [f"{n:04}" for n in range(len(names))]
        return tuple(names if len(set(names)) == len(names) else numbers)
    return ()


def _volumes(folder: Path) -> dict[str, str]:
    """Return the volumes of a folder by the names of their files, without the suffix."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = stem(path.name)
        if path.name.startswith(".") or (name == path.name and not is_zarr(path)):
            continue
        if name in found:
            raise InvalidInput(
                f"the names of cases must differ, but {folder} holds {Path(found[name]).name} and"
                f" {path.name}; move one elsewhere"
            )
        found[name] = str(path)
    return found
