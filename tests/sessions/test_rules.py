"""The rules of sessions, cursors, leases and accepted appends (spec §§3, 5, 6, 10) against a model, over random requests; and the
cases that random requests meet too rarely."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from machines.runs import run_settings
from sessions.driver import Driver
from sessions.memory import Memory
from sessions.model import DUPLICATE, DURABLE, Answer, Model, Write
from tidelog.errors import LeaseLost, SerialReused, SessionFenced
from tidelog.limits import SESSION_RESULTS_MAX
from tidelog_broker.core import sessions

EXAMPLES = 300
STEPS = 40
SEEDS = 12
REQUESTS = 3_000
RESULTS_MAX = 6


@pytest.fixture(autouse=True)
def _few_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some are older than those that are kept."""
    monkeypatch.setattr(sessions, "SESSION_RESULTS_MAX", RESULTS_MAX)


def driver(body_bytes_max: int = 1 << 16) -> Driver:
    """Three sessions and three cursors are allowed; a fourth name is asked for too."""
    memory = Memory(sessions_max=3, cursors_max=3, body_bytes_max=body_bytes_max)
    return Driver(Model(3, 3, RESULTS_MAX), memory, memory)


class RulesMachine(RuleBasedStateMachine):
    """Requests and the ends of groups in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = driver(body_bytes_max=3_000)

    @rule(rnd=st.randoms(use_true_random=False))
    def request(self, rnd: Random) -> None:
        self.driver.step(rnd)

    @rule(rnd=st.randoms(use_true_random=False), count=st.integers(2, 6))
    def requests(self, rnd: Random, count: int) -> None:
        for _ in range(count):
            self.driver.append(rnd)

    @rule()
    def seal(self) -> None:
        self.driver.seal()

    @rule()
    def commit(self) -> None:
        self.driver.commit()

    @rule()
    def rollback(self) -> None:
        self.driver.rollback()

    @invariant()
    def holds(self) -> None:
        self.driver.holds()

    def teardown(self) -> None:
        self.driver.settle()
        self.driver.repeats()


@pytest.mark.timeout(3_600)
def test_every_request_is_answered_as_the_model_says_whatever_becomes_of_its_group() -> None:
    run_state_machine_as_test(RulesMachine, settings=run_settings(EXAMPLES, STEPS))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_long_runs_of_requests_are_answered_as_the_model_says(seed: int) -> None:
    rnd = Random(seed)
    run = driver(body_bytes_max=rnd.choice([2_500, 1 << 16]))
    refusals: set[int] = set()
    rollbacks = 0
    for _ in range(REQUESTS):
        refusals.add(run.step(rnd).code)
        end = rnd.randrange(30)
        if end < 4:
            run.commit()
        elif end < 6:
            run.seal()
        elif end < 7:
            run.rollback()
            rollbacks += 1
        run.holds()
    run.settle()
    run.repeats()
    # OK, wrong version, known id, too many, fenced, gap, reused, cursor moved, lease lost.
    assert refusals >= {0, 4, 5, 9, 14, 15, 16, 18, 19}
    assert rollbacks
    assert run.model.durable.head > 50


# -- what random requests meet too rarely


def test_ids_that_are_collected_while_the_window_turns_stay_known() -> None:
    """The window turns with a group that is under way: what is collected meanwhile belongs to the younger generation."""
    memory = Memory(window=4)
    run = Driver(Model(9, 9, RESULTS_MAX), memory, memory)

    def accept(count: int) -> Write:
        write = run.new("a", count)
        assert run.send(None, None, (write,), accepted=True).code == 0
        return write

    accept(4)
    run.commit()
    accept(2)
    run.seal()
    collected = accept(4)
    run.commit()
    window = memory.known.window
    assert all(event_id in window.young and event_id not in window.old for event_id in collected.ids)
    run.settle()
    for _ in range(2):
        accept(2)
        run.commit()
    rows = tuple((write.stream, write.expected, write.region) for write in (collected,))
    position = 6
    assert window.begins <= position
    assert memory.append(None, None, rows).rest[:2] == (DUPLICATE | DURABLE, position)


def test_a_rollback_behind_a_turn_of_the_window_forgets_what_was_collected() -> None:
    memory = Memory(window=4)
    run = Driver(Model(9, 9, RESULTS_MAX), memory, memory)
    run.send(None, None, (run.new("a", 4),))
    run.commit()
    run.send(None, None, (run.new("a", 2),))
    run.seal()
    lost = run.new("a", 3)
    run.send(None, None, (lost,), accepted=True)
    run.commit()
    run.rollback()
    window = memory.known.window
    assert not any(event_id in window.young or event_id in window.old for event_id in lost.ids)
    assert run.send(None, None, (lost,)).rest == (DURABLE, 6, 8, 6, 8)


def held() -> Memory:
    """A cursor that `me` holds with lease 1."""
    memory = Memory()
    assert memory.lease("c", 0, None).rest == (1, None)
    return memory


@pytest.mark.parametrize("how", [1, 2], ids=["released", "broken"])
def test_a_lease_that_has_ended_moves_its_cursor_no_more(how: int) -> None:
    memory = held()
    assert memory.commit_cursor("c", None, 5, 1, b"1" * 16).rest == (5,)
    assert memory.lease("c", how, 1).rest == (1, 5)
    assert memory.commit_cursor("c", 5, 6, 1, b"2" * 16) == Answer(LeaseLost.code, ("c",), True)
    rows = (("a", None, Driver(Model(9, 9, 9), memory, memory).new("a").region),)
    assert memory.append(None, ("c", 5, 6, 1), rows) == Answer(LeaseLost.code, ("c",), True)
    assert memory.commit_cursor("c", 5, 6, None, b"2" * 16).rest == (6,)


def test_each_holder_has_a_lease_of_its_own_and_the_one_before_is_worth_nothing() -> None:
    memory = held()
    assert memory.lease("c", 0, None, "you") == Answer(LeaseLost.code, ("c",), True)
    assert memory.lease("c", 0, None, "you", gone=True).rest == (2, None)
    assert memory.lease("c", 0, None, "you", gone=True).rest == (2, None)
    assert memory.commit_cursor("c", None, 5, 1, b"") == Answer(LeaseLost.code, ("c",), True)
    assert memory.lease("c", 1, 1).rest == (2, None)  # not its own any more: nothing is released
    assert memory.commit_cursor("c", None, 5, None, b"") == Answer(LeaseLost.code, ("c",), True)
    assert memory.commit_cursor("c", None, 5, 2, b"").rest == (5,)


def test_a_commit_whose_answer_was_lost_is_answered_again_and_moves_nothing() -> None:
    memory = Memory()
    assert memory.commit_cursor("c", None, 5, None, b"1" * 16).rest == (5,)
    memory.commit()
    assert memory.commit_cursor("c", None, 5, None, b"1" * 16) == Answer(0, (5,), False)
    assert not memory.appender.parts
    assert memory.commit_cursor("c", 5, 6, None, b"2" * 16) == Answer(0, (6,), True)
    assert memory.commit_cursor("c", None, 5, None, b"1" * 16).code == 18


def test_an_append_moves_its_cursor_in_the_same_group_or_not_at_all() -> None:
    memory = Memory(body_bytes_max=2_000)
    run = Driver(Model(9, 9, RESULTS_MAX), memory, memory)
    rows = (("a", None, run.new("a").region),)
    assert memory.append(None, ("c", None, 3, None), rows).rest == (DURABLE, 0, 0, 0, 0)
    assert [row[5] for row in memory.appender.staged] == [True, False]
    memory.appender.rollback()
    assert memory.known.cursors.get("c").position is None
    assert memory.append(None, ("c", 3, 4, None), rows).code == 18
    assert memory.append(None, ("c", None, 3, None), (("a", 7, rows[0][2]),)).code == 4
    assert not memory.appender.parts
    memory.append(None, ("c", None, 3, None), rows)
    memory.commit()
    assert memory.known.cursors.by_name["c"].position == 3


def test_results_are_told_up_to_the_newest_4096_and_places_of_older_ones_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    memory = Memory(window=8)
    run = Driver(Model(9, 9, SESSION_RESULTS_MAX), memory, memory, old_max=0)
    run.open_as("p")
    regions = [run.new("a") for _ in range(4_100)]
    for serial, write in enumerate(regions, 1):
        assert memory.append(("p", 1, serial), None, (("a", None, write.region),), 1).code == 0
        if serial % 50 == 0:
            memory.commit()
    for serial, rest in (
        (1, (3, None, None, None, None)), (4, (3, None, None, None, None)), (5, (3, 4, 4, 4, 4)), (4_100, (3, *[4_099] * 4)),
    ):  # fmt: skip
        rows = (("a", None, regions[serial - 1].region),)
        assert memory.append(("p", 1, serial), None, rows) == Answer(0, rest, False)
        other = (("b", None, regions[serial - 1].region),)
        answer = memory.append(("p", 1, serial), None, other)
        assert answer == (Answer(0, rest, False) if serial < 5 else Answer(SerialReused.code, (serial,), False))
    memory.appender.rollback()
    assert len(memory.known.sessions.images()[0].numbers) == 8 * 4_096


def test_an_older_holder_is_fenced_at_once_and_a_rolled_back_opening_fences_nobody() -> None:
    memory = Memory()
    run = Driver(Model(9, 9, RESULTS_MAX), memory, memory)
    run.open_as("p")
    rows = (("a", None, run.new("a").region),)
    assert memory.open("p", None) == Answer(0, (2, 0), True)
    assert memory.append(("p", 1, 1), None, rows) == Answer(SessionFenced.code, (2,), True)
    memory.appender.rollback()
    assert memory.append(("p", 2, 1), None, rows) == Answer(SessionFenced.code, (1,), False)
    assert memory.append(("p", 1, 1), None, rows).rest == (DURABLE, 0, 0, 0, 0)
    memory.appender.rollback()
    assert memory.open("q", None).rest == (1, 0)
    memory.appender.rollback()
    assert memory.open("q", 1) == Answer(SessionFenced.code, (0,), False)
    assert memory.append(("q", 1, 1), None, rows) == Answer(SessionFenced.code, (0,), False)
