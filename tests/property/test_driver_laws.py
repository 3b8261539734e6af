"""Laws of the driver, over random schedules of what goes wrong on a cluster, in virtual time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests.virtual_cluster import REFUSALS, Scenario, Simulation, bytes_of, scenario
from volflow.errors import RunFailed, TimeUp, Unreadable

ENDINGS = {"done", "given up", "refused", "no worker", "time up"}


def check_laws(chosen: Scenario) -> str:
    """Run a scenario, whose simulation asserts what holds on the way; returns how it ended."""
    simulation = Simulation(chosen)
    error = simulation.run().error
    driver = simulation.driver
    # What the driver took for a block's result is what the journal holds of it.
    assert driver.results.keys() == simulation.answered <= simulation.journal.keys()
    assert driver.results == {block: bytes_of(block) for block in driver.results}
    # A block is written again only where a worker that was given up worked on.
    most = simulation.begun if not chosen.gentle else dict.fromkeys(chosen.blocks, 1)
    assert all(times <= most[block] for block, times in simulation.writes.items())
    if error is None:
        assert driver.results == simulation.journal
        assert driver.results.keys() == chosen.blocks
        return "done"
    if error in REFUSALS:
        return "refused"
    if "had no worker" in str(error):
        return "no worker"
    if type(error) is TimeUp:
        failed = f", {len(driver.given_up)} failed" if driver.given_up else ""
        assert f"{len(driver.results)} of {len(chosen.blocks)} blocks are done{failed};" in str(
            error
        )
        assert not driver.in_flight
        return "time up"
    check_what_is_given_up(chosen, simulation, error)
    return "given up"


def check_what_is_given_up(chosen: Scenario, simulation: Simulation, error: Exception) -> None:
    """It is given up after its retries, alone, with the error that says so."""
    given_up, failing = simulation.driver.given_up, chosen.failing()
    assert given_up.keys() <= simulation.quarantined
    assert given_up.keys() <= failing.keys() or not chosen.blames
    assert given_up.keys() | simulation.driver.results.keys() == chosen.blocks
    assert not given_up.keys() & simulation.driver.results.keys()
    assert all(simulation.tried[block] > chosen.retries for block in given_up)
    assert str(error).startswith(
        f"{len(given_up)} of {len(chosen.blocks)} blocks failed after {chosen.retries} retries;"
        f" what is done is kept, and the same command tries them again: block {min(given_up)}: "
    )
    assert all(f"block {block}: " in str(error) for block in sorted(given_up)[:3])
    if chosen.gentle:
        assert given_up.keys() == failing.keys()
        assert type(error) is (Unreadable if "is damaged" in failing.values() else RunFailed)


@given(st.randoms(use_true_random=False))
def test_laws_on_schedules_that_shrink(random):
    chosen = scenario(random)
    note(repr(chosen))
    check_laws(chosen)


def run_seeds(seeds: range) -> set[str]:
    endings = set()
    for seed in seeds:
        try:
            endings.add(check_laws(scenario(Random(seed))))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {scenario(Random(seed))}") from error
    return endings


@pytest.mark.slow
def test_laws_on_a_thousand_schedules():
    assert run_seeds(range(1_000)) == ENDINGS


@pytest.mark.nightly
def test_laws_on_ten_thousand_schedules():
    assert run_seeds(range(10_000)) == ENDINGS
