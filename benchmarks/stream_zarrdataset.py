"""zarrdataset's share of ``stream.py``, which runs this file in an environment that has it.

    python3 -m venv zds && zds/bin/pip install zarrdataset torch==2.13.0
    python benchmarks/stream.py --zarrdataset zds/bin/python

zarrdataset needs zarr before 3, so it reads a Zarr v2 copy: the same voxels, chunks and codec, but
no shards. Its patches lie on a grid, one after another by patch size, so that no patch reaches into
a second chunk where patch and chunk are equal. ``shuffled`` draws a chunk for each patch;
``drained`` gives all patches of a chunk before the next.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import zarrdataset as zds

sys.path.insert(0, str(Path(__file__).parent))

from stream_peers import Setup, Tally, measure


def patches(setup: Setup, tally: Tally, drained: bool) -> Iterator[float]:
    count_decoding(tally)
    random.seed(setup.seed)
    while True:
        dataset = zds.ZarrDataset(
            [zds.ImagesDatasetSpecs(filenames=setup.images, source_axes="ZYX")],
            patch_sampler=zds.PatchSampler(setup.patch),
            shuffle=True,
            draw_same_chunk=drained,
        )
        for patch in dataset:
            patch.copy()  # a view of what it caches
            yield 1


def count_decoding(tally: Tally) -> None:
    """It decodes what is not in its cache, a box of whole chunks."""
    from zarrdataset._imageloaders import ImageLoader

    cached = ImageLoader._cache_chunk

    def counted(self, index):
        before = self._cached_coords
        found = cached(self, index)
        if self._cached_coords is not before and self.mode == "images":
            tally.decoded += self._cache.size
        return found

    ImageLoader._cache_chunk = counted


if __name__ == "__main__":
    how, setup = sys.argv[1], Setup(**json.loads(sys.argv[2]))
    print(json.dumps(measure(lambda s, t: patches(s, t, how == "drained"), setup)))
