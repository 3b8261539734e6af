"""Laws of a worker's ledger, over random runs that ask, end and give up in any order."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from volflow.engine.admission.ledger import Claim, Ledger

AMOUNTS = st.dictionaries(st.sampled_from(["memory", "device", "tasks"]), st.integers(0, 12))
CLAIMS = st.builds(Claim, AMOUNTS, AMOUNTS)


def total(ledger: Ledger[int], name: str) -> int:
    return sum(claim.takes.get(name, 0) for claim in ledger.running.values())


def limit(ledger: Ledger[int], name: str) -> float:
    return min((c.limits.get(name, math.inf) for c in ledger.running.values()), default=math.inf)


class LedgerLaws(RuleBasedStateMachine):
    """What a line of people before one counter would expect."""

    def __init__(self):
        super().__init__()
        self.ledger: Ledger[int] = Ledger()
        self.asked: list[int] = []  # in this order, those that have not given up
        self.admitted: list[int] = []
        self.count = 0

    def note(self, admitted):
        self.admitted += admitted

    @rule(claim=CLAIMS)
    def ask(self, claim):
        self.count += 1
        self.asked.append(self.count)
        self.note(self.ledger.ask(self.count, claim))

    @precondition(lambda self: self.ledger.running)
    @rule(data=st.data())
    def end(self, data):
        self.note(self.ledger.leave(data.draw(st.sampled_from(sorted(self.ledger.running)))))

    @precondition(lambda self: self.ledger.waiting)
    @rule(data=st.data())
    def give_up(self, data):
        task = data.draw(st.sampled_from(sorted(self.ledger.waiting)))
        self.asked.remove(task)
        self.note(self.ledger.leave(task))
        assert task not in self.ledger.running

    @rule()
    def a_task_that_is_unknown_changes_nothing(self):
        before = dict(self.ledger.running), dict(self.ledger.waiting)
        assert self.ledger.leave(-1) == []
        assert (self.ledger.running, self.ledger.waiting) == before

    @invariant()
    def no_limit_is_exceeded(self):
        if len(self.ledger.running) > 1:
            for name in ("memory", "device", "tasks"):
                assert total(self.ledger, name) <= limit(self.ledger, name)

    @invariant()
    def who_waits_waits_for_one_that_runs(self):
        assert not self.ledger.waiting or self.ledger.running

    @invariant()
    def none_passes_another(self):
        assert self.admitted == self.asked[: len(self.admitted)]
        assert list(self.ledger.waiting) == self.asked[len(self.admitted) :]

    def teardown(self):
        """When all that run end, all that wait have their turn."""
        while self.ledger.running:
            self.note(self.ledger.leave(next(iter(self.ledger.running))))
        assert not self.ledger.waiting
        assert self.admitted == self.asked


TestLedger = LedgerLaws.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.lists(st.sampled_from([0, 1]), max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_two_runs_keep_to_one_budget_and_take_turns(order, first, second):
    """With one budget its sum holds, but for a task that would not fit alone."""
    ledger: Ledger[int] = Ledger()
    peaks, budget = (first, second), 10
    for number, run in enumerate(order):
        ledger.ask(number, Claim({"memory": peaks[run]}, {"memory": budget}))
        assert total(ledger, "memory") <= budget
    turns = []
    while ledger.running:
        task = next(iter(ledger.running))
        turns.append(task)
        ledger.leave(task)
        assert total(ledger, "memory") <= budget
    assert turns == list(range(len(order)))


def test_one_that_wants_to_be_alone_is():
    ledger: Ledger[str] = Ledger()
    alone, other = Claim({"tasks": 1}, {"tasks": 1}), Claim({"tasks": 1})
    assert ledger.ask("a", other) == ["a"]
    assert ledger.ask("b", other) == ["b"]
    assert ledger.ask("alone", alone) == []
    assert ledger.ask("c", other) == []  # would fit, but came later
    assert ledger.leave("a") == []
    assert ledger.leave("b") == ["alone"]
    assert ledger.leave("alone") == ["c"]


def test_the_smaller_budget_counts_while_its_task_runs():
    ledger: Ledger[str] = Ledger()
    ledger.ask("large", Claim({"memory": 6}, {"memory": 10}))
    assert ledger.ask("small", Claim({"memory": 1}, {"memory": 4})) == []
    assert ledger.ask("next", Claim({"memory": 4}, {"memory": 10})) == []
    assert ledger.leave("large") == ["small"]
    assert ledger.leave("small") == ["next"]
