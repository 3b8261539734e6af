"""The demo: the whole journey of a scan, on real data, in a few minutes."""

from __future__ import annotations

import os
import time

from volflow.demo import BUNDLE, HELD_OUT_Y, held_out_dice, load_mni, true_classes
from volflow.demo.steps import INDENT, folder_for, say
from volflow.errors import RunFailed
from volflow.infer.predict import predict
from volflow.report.pictures.preview import preview, save
from volflow.store.verify import verify
from volflow.store.volume import open_volume
from volflow.volumes.convert import convert

__all__ = ["run_demo"]


def run_demo(out: str | os.PathLike[str]) -> None:
    """Convert a real MRI, segment it, verify the result and draw it; each step is printed.

    Parameters
    ----------
    out
        Folder for the scan, the result and the picture; it is made if missing. A demo that was
        interrupted is resumed there.

    Raises
    ------
    InvalidInput
        If the package that carries the scan is not installed, or the folder cannot be made.
    RunFailed
        If the result does not verify.
    """
    mni = load_mni()
    folder = folder_for(out)
    began = time.monotonic()
    scan, result, picture = folder / "t1.zarr", folder / "tissue.zarr", folder / "tissue.png"

    say(f"1. convert   the MNI152 T1 template → {scan}")
    volume = convert(mni.t1, scan)
    say(f"{INDENT}{volume}")
    say(f"2. predict   grey and white matter → {result}")
    predict(volume, BUNDLE, result)
    say("3. verify    every stored block against its checksum")
    coverage = verify(result)
    say(f"{INDENT}{coverage}")
    if not coverage.ok:
        raise RunFailed(f"{coverage}; run volflow demo again to repair it")
    dice = held_out_dice(open_volume(result)[:], true_classes(mni))
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dice.items())
    say(f"{INDENT}Dice on the part never trained on (y ≥ {HELD_OUT_Y}): {scores}")
    say(f"4. preview   {picture}")
    save(preview(result, over=volume), picture)
    say(f"done in {time.monotonic() - began:.0f} s; look at {picture.resolve()}")
