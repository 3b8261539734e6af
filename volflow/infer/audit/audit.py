"""Verify an output: its bytes by their checksums, and random blocks by computing them anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volflow.errors import InvalidInput
from volflow.infer.predict_options import VerifyOptions
from volflow.option import from_keywords, journey
from volflow.store.coverage import Coverage
from volflow.store.verify import verify as read_back
from volflow.store.volume import Volume

if TYPE_CHECKING:
    import numpy.typing as npt

    from volflow.engine.cluster import Cluster
    from volflow.model.bundle import ModelLike
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["verify"]


@journey
def verify(  # noqa: PLR0913 - a public journey takes flat options
    path: str | os.PathLike[str] | Volume,
    *,
    recompute: int = 0,
    seed: int | None = None,
    input: VolumeLike | Mapping[str, VolumeLike] | None = None,
    model: ModelLike | None = None,
    mask: VolumeLike | None = None,
    device: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    blend: str | npt.ArrayLike | None = None,
    normalize: Callable[[Any], Any] | None = None,
    activation: Callable[[Any], Any] | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    progress: bool | Callable[[int, int], object] | None = None,
) -> Coverage:
    """Read every stored object of an output back and compare it with its checksum.

    Blocks found bad are marked undone, so that running the same command again repairs just these.
    Coarser levels are read too; `pyramid` repairs those. An exported file is compared with the
    checksum recorded when it was written, and the volume that it was exported from is read.

    Checksums say that the bytes are as they were written. With ``recompute``, random blocks of a
    prediction are also computed anew from its input and its model, which says that this model made
    them: bit for bit where the same kind of machine (processor or GPU, threads, versions of torch
    and NumPy) computed the run, else within 1e-6 of the range of scores (1e-5 on another kind of
    device, 2e-3 of tf32 and float16, 2e-2 of bfloat16). A class is wrong where the score of
    another one is higher by more than twice that. Statistics of the whole volume that an exact run
    measured are taken as it measured them.

    Parameters
    ----------
    path
        An output that volflow wrote, or its `Volume`; or a file that `predict` or `export` wrote.
    recompute
        Number of finished blocks that are drawn at random, and computed anew. Of a volume that the
        network saw at another spacing all scores are computed for that.
    seed
        Of the draw, to repeat one; by default another one each time, which the result names.
    input, model, mask, weights
        As in `predict`, where they are no longer where they were, or were never on disk. Others
        than those that made the output are refused by name.
    device
        ``"cpu"`` to compute there what was made on a GPU.
    trust
        Allow model files that can run code.
    blend
        The weight map that was given to `predict`, of which a journal holds the hash.
    normalize, activation
        Functions that were given to `predict`, which a journal cannot hold.
    cluster, workers, resources, wait, memory
        As in `predict`, where blocks are computed anew; as much memory is needed as there.
    progress
        Called with the number of blocks read so far and the number to read. Computing anew shows
        its progress as `predict` does; False shows nothing.

    Returns
    -------
    Coverage
        Which blocks are intact; `Coverage.recomputed` holds what was computed anew, and which share
        of wrong blocks is excluded at 95 %.

    Raises
    ------
    InvalidInput
        If the output has no journal, as outputs of other programs; if it cannot be computed anew,
        or not from this input and model, before anything is read.
    Damaged
        If the journal is damaged.
    Locked
        If a driver is writing the output.

    Examples
    --------
    >>> import tempfile, numpy as np, torch, volflow as vf
    >>> scan = np.random.default_rng(0).random((20, 30, 40), "float32")
    >>> net = torch.nn.Conv3d(1, 2, 3, padding=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = f"{folder}/out.zarr"
    ...     result = vf.predict(scan, net, out, patch=16, chunk=8, shard=16, progress=False)
    ...     found = verify(out, recompute=2, model=net, progress=False)
    ...     found.ok, found.recomputed.compared, found.recomputed.most_wrong
    (True, 'bit for bit', 0)
    """
    options = from_keywords(VerifyOptions, locals())
    counted = progress if callable(progress) else None
    if type(recompute) is not int or recompute < 0:
        raise InvalidInput(f"recompute must be a whole number of blocks from 0; got {recompute!r}")
    if not recompute:
        return read_back(path, progress=counted)

    from volflow.infer.audit.recompute import recompute as compute_anew
    from volflow.infer.audit.recorded import open_recorded

    recorded = open_recorded(path, options)
    coverage = read_back(path, progress=counted)
    shown = False if progress is False else None
    found = compute_anew(recorded, recompute, seed, device, shown)
    return coverage.with_recomputed(found)
