"""Whatever stands in a file, it is read or refused in one line, soon, in little memory.

Hypothesis changes the bytes, and the JSON values, of a file of every kind that volflow reads. What
is found here by chance, at night, belongs into ``tests/unit/test_hostile.py`` by name.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.hostile_files import (
    VALUES,
    Sample,
    contents,
    make_files,
    make_runs,
    places,
    replaced,
    without,
)
from volflow.errors import VolflowError

FILES = (
    "nii", "nii2", "nii.gz", "npy", "dicom", "dicom frames", "dicom segments", "nrrd", "mha", "n5",
    "n5 group", "n5 chunk", "info", "tif", "ome.tif", "packed tif", "hdf5", "group", "withheld",
    "array", "shard", "v2 array", "v2 attributes", "v2 chunk", "plan", "block", "receipt", "lock",
    "detached", "ended", "statistics", "counts", "bundle", "weights", "checkpoint",
)  # fmt: skip
RUNS = ("convert run", "predict run", "exact run")
NAMES = FILES + RUNS
EXAMPLES = {**dict.fromkeys(FILES, 150), **dict.fromkeys(RUNS, 40)}  # where a property has 100
MOST_REPR = 2000
LONGEST = 50_000  # of a list that is put in, as text
MOST_BYTES = 2**29  # more than a read of these files needs, less than what any of them may claim
PATIENCE_S = 60  # a hang, not a slow machine

NUMBERS = (0, 1, 255, 2**15 - 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
# float32 and float64 of NaN, inf, -inf, -1, 1e300 and the like
FLOATS = ("7fc00000", "7f800000", "ff800000", "bf800000", "7ff8000000000000", "7ff0000000000000")


class Data(bytes):
    """What stands in a file; Hypothesis shows it, and it may be long."""

    def __repr__(self) -> str:
        return bytes(self[:MOST_REPR]).__repr__() + (" …" if len(self) > MOST_REPR else "")


class Hang(BaseException):
    """No exception that readers could take for one of a library."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    home = folder.with_name("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        samples = make_files(folder) | make_runs(folder)
        assert tuple(samples) == NAMES
        yield folder, samples, contents(folder)


@contextmanager
def bounded() -> Iterator[None]:
    """Fail where the memory of the process grows, or time goes by."""

    def hang(*_):
        raise Hang(f"nothing was said for {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    start = _resident("VmRSS", fresh=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = _resident("VmHWM") - start
    assert grown < MOST_BYTES, f"{grown} bytes were taken"


def _resident(name: str, *, fresh: bool = False) -> int:
    """A figure of this process; with ``fresh`` its peak is forgotten first."""
    try:
        if fresh:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0  # another system: there, time alone is watched


@st.composite
def changed_bytes(draw, whole: bytes) -> bytes:
    """Bytes flipped, cut, put in, doubled, or made the extremes of a field."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Headers are where most is decided.
        at = draw(st.integers(0, min(len(data), 400)) | st.integers(0, len(data)))
        kind = draw(st.sampled_from(("flip", "field", "float", "cut", "insert", "double", "gap")))
        if kind == "flip":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "field":
            size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("<", ">")))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
            at -= at % min(size, 4)
            data[at : at + size] = number.to_bytes(size, "little" if order == "<" else "big")
        elif kind == "float":
            number = bytes.fromhex(draw(st.sampled_from(FLOATS)))[::-1]
            at -= at % 4
            data[at : at + len(number)] = number
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            del data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


@st.composite
def changed_json(draw, whole: bytes) -> bytes:
    """Values replaced, taken away, or nested deeply."""
    value = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(value))))
        kind = draw(st.sampled_from(("value", "value", "value", "number", "gone", "many", "deep")))
        if kind == "value":
            value = replaced(value, at, draw(st.sampled_from(VALUES)))
        elif kind == "number":
            value = replaced(value, at, draw(st.integers() | st.floats()))
        elif kind == "gone":
            value = without(value, at)
        elif kind == "many":
            part = value
            for key in at:
                part = part[key]
            most = LONGEST // len(json.dumps(part))
            value = replaced(value, at, [part] * min(most, draw(st.sampled_from((0, 2, 3, 3000)))))
        else:
            depth = draw(st.sampled_from((50, 70, 500, 990, 10_000)))
            text = json.dumps(replaced(value, at, "here it is"))
            return text.replace('"here it is"', "[" * depth + "]" * depth).encode()
    return json.dumps(value).encode()


def changed(name: str, whole: bytes) -> st.SearchStrategy[bytes]:
    """What may become of a file."""
    if name == "nii.gz":
        packed = changed_bytes(gzip.decompress(whole)).map(lambda d: gzip.compress(d, 1, mtime=0))
        return packed | changed_bytes(whole)
    try:
        json.loads(whole)
    except ValueError:
        return changed_bytes(whole).map(Data)
    return (changed_json(whole) | changed_json(whole) | changed_bytes(whole)).map(Data)


def attempt(folder: Path, sample: Sample, kept: dict[str, bytes], data: bytes) -> None:
    """Read a file that holds these bytes; the folder is as before afterwards."""
    (folder / sample.file).write_bytes(data)
    given_, refusal = contents(folder), None
    try:
        with warnings.catch_warnings(record=True) as told, bounded():
            warnings.simplefilter("always")
            try:
                sample.use(folder)
            except VolflowError as error:
                refusal = error
        if refusal is not None:
            note(str(refusal))
            assert not sample.cache, f"a cache was refused: {refusal}"
            assert "\n" not in str(refusal)
            assert refusal.exit_code in (2, 3), refusal
            assert contents(folder) == given_, "a refusal wrote something"
        assert [w for w in told if issubclass(w.category, RuntimeWarning)] == []
    finally:
        now = contents(folder)
        for path in now.keys() - kept.keys():
            (folder / path).unlink()
        for path, before in kept.items():
            if now.get(path) != before:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(before)


def attempts(files, name: str, **options) -> None:
    """Damage one kind of file in as many ways as Hypothesis is told to."""
    folder, samples, kept = files
    sample = samples[name]
    whole = kept.get(sample.file, b'{"pid": 1, "host": "here"}')  # the lock is empty when free

    @settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, **options)
    @given(changed(name, whole))
    def read(data: bytes) -> None:
        attempt(folder, sample, kept, data)

    read()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whatever_stands_in_a_file_is_read_or_refused(files, name):
    examples = EXAMPLES[name] * settings.default.max_examples // 100
    attempts(files, name, max_examples=examples, derandomize=True)


@pytest.mark.nightly
def test_whatever_stands_in_a_file_for_an_hour(files):
    """At random; ``VOLFLOW_FUZZ_S`` says for how long."""
    end = time.monotonic() + float(os.environ.get("VOLFLOW_FUZZ_S", 3600))
    while time.monotonic() < end:
        for name in NAMES:
            attempts(files, name, max_examples=100)
