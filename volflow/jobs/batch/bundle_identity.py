"""What the files of a bundle identify, told without loading torch."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

from volflow.store.atomic import read_json

__all__ = ["CARD", "WEIGHTS", "bundle_identity"]

# As in `volflow.model.bundle`, which imports torch.
CARD = "bundle.json"
WEIGHTS = "weights.safetensors"


def bundle_identity(model: str | os.PathLike[str]) -> str:
    """Return a hash of all that a bundle of the built-in U-Net computes with.

    Any other model may load what it likes when it is made, so that only its digest tells; for these
    the hash is empty, as it is for a bundle that cannot be read.

    Examples
    --------
    >>> bundle_identity("torch.nn:Identity")
    ''
    """
    path = Path(model).expanduser()
    path = path.parent if path.name == CARD else path
    try:
        card = read_json(path / CARD)
        if not isinstance(card, dict) or card.get("architecture") != "unet":
            return ""
        digest = hashlib.sha256(metadata.version("torch").encode())
        for name in (CARD, WEIGHTS):
            with (path / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError, metadata.PackageNotFoundError):
        return ""
    return digest.hexdigest()
