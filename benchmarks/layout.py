"""Which chunk and shard: random 64-cubed reads, block reads, writes and object count.

    python benchmarks/layout.py            # 512³ uint16, 5 interleaved repeats, result filed

Isotropic and anisotropic candidates over one CT-like volume; medians of the repeats. Reads are from
the page cache, so they measure decoding, which is what bounds a local disk or a near gateway.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inference import make_scan  # noqa: E402
from machine import describe, file_result  # noqa: E402

CANDIDATES = [
    ((32, 32, 32), None),
    ((32, 32, 32), (128, 128, 128)),
    ((32, 32, 32), (256, 256, 256)),
    ((64, 64, 64), None),
    ((64, 64, 64), (128, 128, 128)),
    ((64, 64, 64), (256, 256, 256)),
    ((64, 64, 64), (512, 512, 512)),
    ((128, 128, 128), None),
    ((128, 128, 128), (256, 256, 256)),
    ((16, 128, 128), (64, 512, 512)),
    ((1, 512, 512), None),
]


def store(folder: Path, number: int, data: np.ndarray) -> tuple[zarr.Array, float]:
    chunk, shard = CANDIDATES[number]
    began = time.perf_counter()
    array = zarr.create_array(
        folder / f"{number}.zarr", shape=data.shape, dtype=data.dtype, chunks=chunk, shards=shard,
        compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    step = max(shard[0] if shard else chunk[0], 64)
    for z in range(0, data.shape[0], step):
        array[z : z + step] = data[z : z + step]
    return array, time.perf_counter() - began


def patches(array: zarr.Array, count: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(count):
        z, y, x = (int(rng.integers(0, n - 64)) for n in array.shape)
        array[z : z + 64, y : y + 64, x : x + 64]
    return count / (time.perf_counter() - began)


def slabs(array: zarr.Array) -> float:
    """Rows as a prediction reads them: 64 at a time, the whole plane; MB/s."""
    began = time.perf_counter()
    for z in range(0, array.shape[0], 64):
        array[z : z + 64]
    return array.nbytes / 1e6 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    figures: dict[int, list[tuple[float, float, float]]] = {n: [] for n in range(len(CANDIDATES))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scan(folder / "scan.zarr", (options.side,) * 3)
        data = zarr.open_array(folder / "scan.zarr" / "0")[:]
        sizes = {}
        for repeat in range(options.repeats):
            for number in figures:
                array, written = store(folder, number, data)
                figures[number].append((patches(array, 24, repeat), slabs(array), written))
                files = [f for f in (folder / f"{number}.zarr").rglob("*") if f.is_file()]
                sizes[number] = len(files), sum(f.stat().st_size for f in files)
                shutil.rmtree(folder / f"{number}.zarr")
    lines = [
        describe(["zarr"]),
        "",
        f"### {options.side}³ uint16, zstd level 1, median of {options.repeats}",
        "",
        "| chunk | shard | random 64³ patches/s | slab reads MB/s | write MB/s | objects"
        " | objects per TB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (chunk, shard) in enumerate(CANDIDATES):
        patch, slab, written = (statistics.median(v) for v in zip(*figures[number], strict=True))
        count, size = sizes[number]
        lines.append(
            f"| {chunk} | {shard or '-'} | {patch:.0f} | {slab:.0f} |"
            f" {data.nbytes / 1e6 / written:.0f} | {count} | {count / data.nbytes * 1e12:,.0f} | {data.nbytes / size:.2f} |"
        )
    text = "\n".join(lines)
    print(text)
    file_result("layout", text)


if __name__ == "__main__":
    main()
