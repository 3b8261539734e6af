from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.engine.plan import Plan, split_runs
from volflow.engine.task import Step
from volflow.errors import InvalidInput, MemoryRefused


def no_work(job, blocks, context):
    return iter(Step(b, 1) for b in blocks)


def plan(**changes) -> Plan:
    base = {
        "operation": "double", "task": no_work, "job": None, "runs": ((0, 1), (4,)), "units": 3000,
        "unit": "voxels", "peak_bytes": 3 * 2**20, "memory_bytes": 2**30,
    }  # fmt: skip
    return Plan(**{**base, **changes})


def test_counts_its_blocks():
    assert plan().blocks == 3
    assert plan(runs=()).blocks == 0


@pytest.mark.parametrize(("memory", "kept"), [(130, 120), (216, 120), (217, 217), (100, 100)])
def test_a_tight_budget_is_kept_by_the_plan(memory, kept):
    """Else what threads allocate between two looks would go beyond what the plan projects."""
    tight = plan(peak_bytes=120 * 2**20 + 1, memory_bytes=memory * 2**20)
    assert tight.kept_bytes == kept * 2**20 + (kept == 120)


def test_describes_itself_with_its_facts_first():
    described = plan(facts=(("input", "a.zarr"), ("a longer name", "b")))
    assert str(described) == described.describe()
    assert str(described).splitlines() == [
        "double",
        "  input          a.zarr",
        "  a longer name  b",
        "  work           3 blocks in 2 tasks, 3,000 voxels",
        "  peak memory    3 MiB per task of 1 GiB per worker",
    ]


def test_is_plain_data_for_machines():
    found = plan(facts=(("peak rate", "9"),)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["blocks"] == 3
    assert found["tasks"] == 2
    assert found["peak_bytes"] == 3 * 2**20
    assert found["peak_rate"] == "9"


def test_travels():
    assert pickle.loads(pickle.dumps(plan())) == plan()


def test_is_refused_beyond_its_budget_naming_the_remedy():
    plan(peak_bytes=100, memory_bytes=100).require_memory("never said")
    with pytest.raises(MemoryRefused) as refused:
        plan(peak_bytes=2**21, memory_bytes=2**20).require_memory('use memory="2MiB"')
    assert str(refused.value) == (
        'double needs 2 MiB per worker but memory is 1 MiB; use memory="2MiB"'
    )
    assert isinstance(refused.value, InvalidInput)
    assert refused.value.exit_code == 2


@given(st.lists(st.integers(), max_size=40), st.integers(-2, 12))
def test_runs_are_the_blocks_in_order_in_nearly_equal_pieces(blocks, pieces):
    runs = split_runs(blocks, pieces)
    assert [b for run in runs for b in run] == blocks
    assert len(runs) == max(min(pieces, len(blocks)), min(1, len(blocks)))
    sizes = {len(run) for run in runs}
    assert not sizes or max(sizes) - min(sizes) <= 1
