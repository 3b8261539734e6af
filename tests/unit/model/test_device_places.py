"""Which GPU "cuda" means: processes spread over those that they see, and count each other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from volflow.model import places

PROCESS = """
import json, sys, types
import torch
uuids = json.loads(sys.argv[1])
torch.cuda.is_available = lambda: True
torch.cuda.is_initialized = lambda: True
torch.cuda.device_count = lambda: len(uuids)
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_properties = lambda n: types.SimpleNamespace(uuid=uuids[n])
from volflow.model import places
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Process:
    """A process that sees some GPUs; it answers what it is asked."""

    def __init__(self, folder, uuids):
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(uuids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**places.os.environ, "XDG_RUNTIME_DIR": str(folder)},
            text=True,
        )

    def ask(self, question):
        self.child.stdin.write(f"{question}\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())


@pytest.fixture
def process(tmp_path):
    """Starts processes on a machine of their own."""
    started = []

    def start(*uuids):
        started.append(Process(tmp_path, uuids))
        return started[-1]

    yield start
    for one in started:
        one.child.kill()
        one.child.communicate()


@pytest.mark.slow
def test_processes_spread_and_a_killed_one_frees_its_place(process):
    crowd = [process("a", "b") for _ in range(4)]
    numbers = [one.ask("places.own_number()") for one in crowd]
    assert sorted(numbers) == [0, 0, 1, 1]
    assert [one.ask("places.own_number()") for one in crowd] == numbers
    assert [one.ask(f"places.sharers({n})") for one, n in zip(crowd, numbers, strict=True)] == [
        2
    ] * 4
    crowd[1].child.kill()
    crowd[1].child.wait()
    left = [one for n, one in enumerate(crowd) if n != 1]
    assert sorted(one.ask("places.sharers(places.own_number())") for one in left) == [1, 2, 2]
    assert process("a", "b").ask("places.own_number()") == numbers[1]


@pytest.mark.slow
def test_gpus_are_known_whatever_their_order(process):
    """As Dask-CUDA starts its workers: each sees its own GPU first."""
    first, second = process("a", "b"), process("b", "a")
    assert [first.ask("places.own_number()"), second.ask("places.own_number()")] == [0, 0]
    third = process("b", "a")
    assert third.ask("places.take_place(1)") == 1
    assert [one.ask("places.sharers(0)") for one in (first, second)] == [2, 1]
    assert process("a", "b").ask("places.own_number()") == 1


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Three GPUs; returns what the process has set and can set."""
    now = {"current": 0}
    cuda = places.torch.cuda
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(places, "_places", {})
    monkeypatch.setattr(cuda, "device_count", lambda: 3)
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "current_device", lambda: now["current"])
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda n: type("Properties", (), {"uuid": f"gpu-{n}"})
    )
    yield now
    for one in places._places.values():
        one.leave()


def test_what_the_user_chose_is_respected(gpus):
    gpus["current"] = 2
    assert places.own_number() == 2
    gpus["current"] = 0
    assert places.own_number() == 0
    gpus["current"] = 1
    places.note_current()
    gpus["current"] = 0  # as in a thread of a worker
    assert places.own_number() == 1


def test_a_process_counts_itself_once(gpus):
    assert [places.own_number() for _ in range(3)] == [0, 0, 0]
    assert [places.take_place(0), places.sharers(0), places.sharers(1)] == [0, 1, 1]


def test_what_is_no_gpu_takes_no_place(gpus):
    assert places.take_place(99) == 99
    assert places._places_here().locks == {}


@pytest.mark.parametrize("kind", ["file", "link", "nothing"])
def test_without_a_folder_a_process_is_alone(gpus, tmp_path, kind):
    folder = tmp_path / f"volflow-devices-{places.os.getuid()}"
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        (tmp_path / "other").mkdir()
        folder.symlink_to(tmp_path / "other")
    else:
        tmp_path.rmdir()
    assert places.own_number() == 0
    assert places.sharers(0) == 1
