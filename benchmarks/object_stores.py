"""obstore beside fsspec with s3fs: requests, speed and promises of an S3 store.

Boxes are read through zarr as each library gives them, and as volflow does on obstore: the index of
a shard, then all chunks of the box in one request. Requests are counted by a relay in loopback;
speed is measured without it. The store is the one that AWS_ENDPOINT_URL names; its keys are taken
from the environment.

    AWS_ENDPOINT_URL=http://127.0.0.1:10050 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… \
        python -m benchmarks.object_stores
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import s3fs
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, ObjectStore

from benchmarks.machine import describe, file_result
from tests.relay import empty, make_bucket, relay
from volflow.store.remote.access import connect, listed
from volflow.store.remote.fetched import fetched
from volflow.store.remote.zarr_store import Remote

BUCKET, CHUNK = "benchmark", 32


def by_obstore(url: str, endpoint: str) -> Any:
    return ObjectStore(obstore.store.from_url(url, endpoint=endpoint, client_options=HTTP))


def by_s3fs(url: str, endpoint: str) -> Any:
    options = {"client_kwargs": {"endpoint_url": endpoint}, "skip_instance_cache": True}
    return FsspecStore.from_url(url, storage_options={**options, "asynchronous": True})


HTTP: Any = {"allow_http": True}
LIBRARIES = {"obstore": by_obstore, "s3fs": by_s3fs}


def make(store: Any, side: int, shard: int) -> zarr.Array[Any]:
    return zarr.create_array(
        store, shape=(side,) * 3, chunks=(CHUNK,) * 3, shards=(shard,) * 3, dtype="u2",
        compressors=ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip


def boxes(side: int, count: int) -> list[tuple[slice, ...]]:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, side - 64, (count, 3))
    return [tuple(slice(int(a), int(a) + 64) for a in start) for start in starts]


def reading(array: zarr.Array[Any], wanted: Any, *, together: bool) -> Callable[[], None]:
    def run() -> None:
        for box in wanted:
            (fetched(array, box) if together else array).get_basic_selection(box)

    return run


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def size_mib(packages: list[str]) -> float:
    total = 0
    for name in packages:
        files = importlib.metadata.files(name) or []
        total += sum(p.stat().st_size for f in files if (p := Path(f.locate())).is_file())
    return total / 2**20


def promises(name: str, endpoint: str) -> str:
    """What a conditional write does: of a new object, and of one that is there."""
    if name == "obstore":
        store = connect(f"s3://{BUCKET}/promise")
        first = obstore.put(store, "a", b"1")
        tag = str(first["e_tag"]).strip('"')

        def refused(call: Callable[[], Any]) -> bool:
            try:
                call()
            except obstore.exceptions.BaseError:
                return True
            return False

        new = refused(lambda: obstore.put(store, "a", b"2", mode="create"))
        changed = refused(lambda: obstore.put(store, "a", b"2", mode={"e_tag": "beef"}))
        same = not refused(lambda: obstore.put(store, "a", b"2", mode={"e_tag": tag}))
        return f"If-None-Match {new}, If-Match {changed and same}"
    files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True)
    files.pipe_file(f"{BUCKET}/promise/b", b"1")
    try:
        files.pipe_file(f"{BUCKET}/promise/b", b"2", mode="create")
    except OSError:  # 412, as errno 22
        return "If-None-Match True, no If-Match"
    return "If-None-Match False, no If-Match"


def listing(name: str, url: str, endpoint: str, count: int) -> float:
    if name == "obstore":
        return seconds(lambda: listed(Remote(url), ""))
    files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True)
    return seconds(lambda: files.find(url, detail=True))


def measure(side: int, shard: int, repeats: int, count: int) -> list[str]:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    make_bucket(endpoint, BUCKET)
    rng = np.random.default_rng(1)
    data = rng.normal(1000, 50, (side,) * 3).astype("u2")
    few = boxes(side, 8)
    whole = [(slice(0, side),) * 3]
    many = connect(f"s3://{BUCKET}/many")
    for n in range(count):
        obstore.put(many, f"{n:06d}", b"1")
    ways = [("obstore", False), ("s3fs", False), ("obstore", True)]
    figures: dict[Any, list[list[float]]] = {way: [[], [], [], []] for way in ways}
    requests = {}
    for way in ways:
        name, together = way
        url = f"s3://{BUCKET}/{name}.zarr"
        with relay(endpoint) as seen:
            array = make(LIBRARIES[name](url, seen.url), side, shard)
            seen.requests.clear()
            array[:] = data
            written = seen.count()
            array = zarr.open_array(LIBRARIES[name](url, seen.url), mode="r")
            seen.requests.clear()
            reading(array, few, together=together)()
            requests[way] = seen.count() / len(few), written / (side // shard) ** 3
    for _ in range(repeats):
        for way in ways:
            name, together = way
            url = f"s3://{BUCKET}/{name}.zarr"
            array = make(LIBRARIES[name](url, endpoint), side, shard)
            found = figures[way]
            found[0].append(data.nbytes / 1e6 / seconds(lambda a=array: a.__setitem__(..., data)))
            found[1].append(data.nbytes / 1e6 / seconds(reading(array, whole, together=together)))
            found[2].append(len(few) / seconds(reading(array, few, together=together)))
            found[3].append(listing(name, f"s3://{BUCKET}/many", endpoint, count))
    empty(endpoint, BUCKET)
    size = {
        "obstore": ["obstore"],
        "s3fs": ["s3fs", "fsspec", "aiobotocore", "botocore", "aiohttp"],
    }
    licence = {"obstore": "MIT", "s3fs": "BSD-3"}
    lines = [
        f"### {side}³ uint16, chunks {CHUNK}³ in shards {shard}³, medians of {repeats}, interleaved",
        "",
        f"| | write MB/s | read MB/s | boxes of 64³ /s | requests per box | requests per shard written | list {count} objects s | conditional writes | installed MiB | licence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        name, together = way
        write, read, box, listed_s = (statistics.median(values) for values in figures[way])
        per_box, per_shard = requests[way]
        lines.append(
            f"| {'volflow on obstore' if together else f'zarr on {name}'} | {write:.0f} | {read:.0f} | {box:.1f} | {per_box:.1f} | {per_shard:.1f} | {listed_s:.2f} | {promises(name, endpoint)} | {size_mib(size[name]):.0f} | {licence[name]} |"
        )
    empty(endpoint, BUCKET)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--shard", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--objects", type=int, default=2000)
    options = parser.parse_args()
    lines = measure(options.side, options.shard, options.repeats, options.objects)
    packages = ["zarr", "obstore", "s3fs", "fsspec", "aiobotocore"]
    text = "\n".join([describe(packages), "", *lines])
    print(text)
    file_result("object_stores", text)


if __name__ == "__main__":
    main()
