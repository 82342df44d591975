"""The checker of sessions and cursors (support/checker_sessions.py) says no to each kind of broken promise, by the rule that it
breaks, and yes to a history that keeps them all.

The small world: `ingest` appends a, b in epoch 1, is overtaken by a second life in epoch 2, which appends c, d and is refused e.
`move.0` takes the lease of cursor "k", moves it with x and y and loses the lease; `move.1` takes it, moves it with z, gives it
back and commits. Each break changes this in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.checker_sessions import SESSION_RULES, SessionHistory, SessionRule, judge_sessions
from support.session_facts import Fact, Leased, Moved, Opened, Part, Stored

Row = dict[str, Any]
IN, OUT = "lines/1", "words/1"


def stored(stream: str, position: int, version: int, name: str, **more: Any) -> Stored:
    return Stored([Part(stream, position, version, [(name, f"digest {name}")])], **more)


def send(number: int, stream: str, name: str, session: list[Any] | None = None, cursor: list[Any] | None = None) -> Row:
    writes = [[stream, [[name, f"digest {name}"]]]] if name else []
    return {"what": "send", "at": number, "number": number, "session": session, "cursor": cursor, "writes": writes}


def ack(number: int, at: int, place: list[int] | None = None, session: list[Any] | None = None) -> Row:
    places = [] if place is None else [place]
    return {"what": "ack", "at": at, "number": number, "session": session, "places": places, "duplicate": False}


def opened(epoch: int, last: int, resumed: bool = False) -> Row:
    return {"what": "opened", "at": 0, "session": "ingest", "epoch": epoch, "last": last, "resumed": resumed}


def acquired(began: int, position: int | None, lease: int) -> Row:
    return {"what": "acquired", "at": began + 1, "began": began, "cursor": "k", "position": position, "lease": lease}


def stands(began: int, position: int | None, holder: str | None, lease: int) -> Row:
    row = acquired(began, position, lease)
    return {**row, "what": "stands", "holder": holder}


class World:
    """Records by their place, notes by the life that wrote them; times are small numbers."""

    def __init__(self) -> None:
        self.facts: list[Fact] = [
            Opened("ingest", 1),
            stored(IN, 0, 0, "a", session=("ingest", 1, 1)),
            Leased("k", "first", 1),
            stored(IN, 1, 1, "b", session=("ingest", 1, 2)),
            stored(OUT, 2, 0, "x", moved=Moved("k", 1, "first", 1)),
            stored(OUT, 3, 1, "y", moved=Moved("k", 2, "first", 1)),
            Opened("ingest", 2),
            stored(IN, 4, 2, "c", session=("ingest", 2, 3)),
            Leased("k", None, 1),
            Leased("k", "second", 2),
            stored(IN, 5, 3, "d", session=("ingest", 2, 4)),
            stored(OUT, 6, 2, "z", moved=Moved("k", 5, "second", 2)),
            Leased("k", None, 2),
            Moved("k", 6, None, 2),
        ]
        self.notes: dict[str, list[Row]] = {
            "ingest.0": [
                opened(1, 0),
                send(1, IN, "a", ["ingest", 1]),
                send(2, IN, "b", ["ingest", 1]),
                ack(1, 10, [0, 0, 0, 0], ["ingest", 1, 1]),
                ack(2, 20, [1, 1, 1, 1], ["ingest", 1, 2]),
            ],
            "ingest.1": [
                opened(2, 2),
                send(1, IN, "c", ["ingest", 2]),
                send(2, IN, "d", ["ingest", 2]),
                send(3, IN, "e", ["ingest", 2]),
                ack(1, 40, [4, 4, 2, 2], ["ingest", 2, 3]),
                ack(2, 50, [5, 5, 3, 3], ["ingest", 2, 4]),
                {"what": "failed", "at": 51, "number": 3, "error": "StorageFull: no room", "unknown": False},
                opened(2, 4, resumed=True),
            ],
            "move.0": [
                acquired(9, None, 1),
                send(1, OUT, "x", cursor=["k", None, 1, 1]),
                send(2, OUT, "y", cursor=["k", 1, 2, 1]),
                ack(1, 30, [2, 2, 0, 0]),
                {"what": "failed", "at": 31, "number": 2, "error": "DeadlineExceeded: lost", "unknown": True},
            ],
            "move.1": [
                stands(31, 1, "first", 1),
                acquired(45, 2, 2),
                send(1, OUT, "z", cursor=["k", 2, 5, 2]),
                ack(1, 60, [6, 6, 2, 2]),
                stands(61, 5, None, 2),
                send(2, "", "", cursor=["k", 5, 6, None]),
                ack(2, 70),
            ],
        }

    def stored(self, place: int) -> Stored:
        fact = self.facts[place]
        assert isinstance(fact, Stored)
        return fact

    def history(self) -> SessionHistory:
        history = SessionHistory(self.facts)
        for name, rows in self.notes.items():
            history.add(name, rows)
        return history


# ---- breaks: each is one lie


def a_serial_is_left_out(world: World) -> None:
    world.facts[10] = world.stored(10)._replace(session=("ingest", 2, 5))
    world.notes["ingest.1"][5]["session"] = ["ingest", 2, 5]
    world.notes["ingest.1"][-1]["last"] = 5


def a_serial_stands_twice(world: World) -> None:
    # A repeat that was taken for something new.
    world.facts[10] = world.stored(10)._replace(session=("ingest", 2, 3))
    world.notes["ingest.1"][5]["session"] = ["ingest", 2, 3]
    world.notes["ingest.1"][-1]["last"] = 3


def an_epoch_is_given_twice(world: World) -> None:
    world.facts.append(Opened("ingest", 2))


def an_epoch_that_was_told_is_not_in_the_log(world: World) -> None:
    world.notes["ingest.2"] = [opened(3, 4)]


def a_stale_epoch_appends_behind_a_newer_opening(world: World) -> None:
    # The one who was overtaken appended it, and knows nothing of its end.
    world.facts[7] = world.stored(7)._replace(session=("ingest", 1, 3))
    world.notes["ingest.0"].append(send(3, IN, "c", ["ingest", 1]))
    del world.notes["ingest.1"][4], world.notes["ingest.1"][1]


def an_append_is_in_a_session_that_was_never_opened(world: World) -> None:
    world.facts.append(stored(IN, 7, 4, "f", session=("other", 1, 1)))


def an_opening_is_told_too_few(world: World) -> None:
    world.notes["ingest.1"][0]["last"] = 1


def an_opening_is_told_too_many(world: World) -> None:
    world.notes["ingest.1"][0]["last"] = 3


def a_resumed_session_is_told_what_is_not_in_the_log(world: World) -> None:
    world.notes["ingest.1"][-1]["last"] = 5


def an_append_stands_twice(world: World) -> None:
    world.facts.append(stored(IN, 7, 4, "a", session=("ingest", 2, 5)))


def an_acknowledged_append_is_lost(world: World) -> None:
    # The last of the session, so that no serial is missed.
    del world.facts[10]
    del world.notes["ingest.1"][-1]


def an_acknowledged_append_stands_elsewhere(world: World) -> None:
    world.notes["ingest.1"][5]["places"] = [[5, 5, 4, 4]]


def an_acknowledged_append_has_another_serial(world: World) -> None:
    world.notes["ingest.1"][5]["session"] = ["ingest", 2, 3]


def an_acknowledged_append_has_other_bytes(world: World) -> None:
    fact = world.stored(10)
    world.facts[10] = fact._replace(parts=[fact.parts[0]._replace(events=[("d", "digest of something else")])])


def half_of_an_acknowledged_append_is_lost(world: World) -> None:
    world.notes["ingest.1"][2]["writes"][0][1].append(["d2", "digest d2"])


def a_refused_append_is_stored(world: World) -> None:
    world.facts.append(stored(IN, 7, 4, "e", session=("ingest", 2, 5)))


def what_followed_a_refusal_is_applied(world: World) -> None:
    world.notes["ingest.1"].insert(-1, send(4, IN, "f", ["ingest", 2]))
    row = {"what": "failed", "at": 52, "number": 4, "error": "NotApplied: serial 6", "unknown": False}
    world.notes["ingest.1"].insert(-1, row)
    world.facts.append(stored(IN, 7, 4, "f", session=("ingest", 2, 5)))


def an_append_loses_its_session(world: World) -> None:
    # Its outcome was never told; the last one, so that no serial is missed.
    world.facts[10] = world.stored(10)._replace(session=None)
    del world.notes["ingest.1"][5]
    world.notes["ingest.1"][-1]["last"] = 3


def two_appends_of_a_session_are_swapped(world: World) -> None:
    world.notes["ingest.0"][1]["number"], world.notes["ingest.0"][2]["number"] = 2, 1
    for row in world.notes["ingest.0"][3:]:
        row["number"] = 3 - row["number"]


def an_append_is_stored_without_its_cursor(world: World) -> None:
    world.facts[11] = world.stored(11)._replace(moved=None)
    # Nobody asks for the cursor behind that, or goes on from there.
    del world.facts[13]
    del world.notes["move.1"][4:]


def an_append_carries_another_position(world: World) -> None:
    world.facts[11] = world.stored(11)._replace(moved=Moved("k", 4, "second", 2))
    del world.facts[13]
    del world.notes["move.1"][4:]


def a_cursor_moves_and_its_append_is_not_stored(world: World) -> None:
    # Its outcome was never told.
    world.facts[11] = Moved("k", 5, "second", 2)
    del world.notes["move.1"][3]


def an_acknowledged_commit_is_lost(world: World) -> None:
    del world.facts[13]


def a_cursor_moves_with_nobody_asking(world: World) -> None:
    world.facts.append(Moved("k", 7, None, 2))


def a_cursor_moves_from_where_nobody_believed_it(world: World) -> None:
    # x and y both begin with the cursor never set: one of them is done twice.
    world.notes["move.0"][2]["cursor"] = ["k", None, 2, 1]


def a_commit_moves_from_where_nobody_believed_it(world: World) -> None:
    world.notes["move.1"][5]["cursor"] = ["k", 4, 6, None]


def a_lost_lease_moves_a_cursor(world: World) -> None:
    # z is the first holder's, who knows nothing of the second.
    world.notes["move.0"].append(send(3, OUT, "z", cursor=["k", 2, 5, 1]))
    del world.notes["move.1"][2:4]


def a_holder_is_passed_over(world: World) -> None:
    world.notes["move.1"][2]["cursor"] = ["k", 2, 5, None]


def a_record_names_a_lease_that_is_not_in_force(world: World) -> None:
    world.facts[13] = Moved("k", 6, "second", 2)


def a_lease_is_taken_twice_with_one_number(world: World) -> None:
    world.facts[9] = Leased("k", "second", 1)
    world.facts[11] = world.stored(11)._replace(moved=Moved("k", 5, "second", 1))
    world.facts[12], world.facts[13] = Leased("k", None, 1), Moved("k", 6, None, 1)
    world.notes["move.1"][1]["lease"] = 1
    world.notes["move.1"][2]["cursor"][3] = 1
    world.notes["move.1"][4]["lease"] = 1


def the_number_of_a_lease_goes_on_when_it_is_given_back(world: World) -> None:
    world.facts[12], world.facts[13] = Leased("k", None, 3), Moved("k", 6, None, 3)
    world.notes["move.1"][4]["lease"] = 3


def a_cursor_is_told_where_it_never_stood(world: World) -> None:
    world.notes["move.1"][0]["position"] = 7


def a_cursor_is_told_without_what_was_acknowledged(world: World) -> None:
    world.notes["move.1"][4]["position"] = 2


def a_cursor_is_told_without_a_commit_that_was_acknowledged(world: World) -> None:
    world.notes["move.1"].append(stands(71, 5, None, 2))


def a_lease_is_told_that_is_not_in_the_log(world: World) -> None:
    world.notes["move.1"][1]["lease"] = 3


BREAKS: dict[Callable[[World], None], SessionRule] = {
    a_serial_is_left_out: SessionRule.SERIALS,
    a_serial_stands_twice: SessionRule.SERIALS,
    an_epoch_is_given_twice: SessionRule.EPOCHS,
    an_epoch_that_was_told_is_not_in_the_log: SessionRule.EPOCHS,
    a_stale_epoch_appends_behind_a_newer_opening: SessionRule.FENCED,
    an_append_is_in_a_session_that_was_never_opened: SessionRule.FENCED,
    an_opening_is_told_too_few: SessionRule.OPENED,
    an_opening_is_told_too_many: SessionRule.OPENED,
    a_resumed_session_is_told_what_is_not_in_the_log: SessionRule.OPENED,
    an_append_stands_twice: SessionRule.ONCE,
    an_acknowledged_append_is_lost: SessionRule.ACKED,
    an_acknowledged_append_stands_elsewhere: SessionRule.ACKED,
    an_acknowledged_append_has_another_serial: SessionRule.ACKED,
    an_acknowledged_append_has_other_bytes: SessionRule.ACKED,
    half_of_an_acknowledged_append_is_lost: SessionRule.ACKED,
    a_refused_append_is_stored: SessionRule.REFUSED,
    what_followed_a_refusal_is_applied: SessionRule.REFUSED,
    an_append_loses_its_session: SessionRule.IN_SESSION,
    two_appends_of_a_session_are_swapped: SessionRule.ORDER,
    an_append_is_stored_without_its_cursor: SessionRule.ATOMIC,
    an_append_carries_another_position: SessionRule.ATOMIC,
    a_cursor_moves_and_its_append_is_not_stored: SessionRule.ASKED,
    an_acknowledged_commit_is_lost: SessionRule.COMMITTED,
    a_cursor_moves_with_nobody_asking: SessionRule.ASKED,
    a_cursor_moves_from_where_nobody_believed_it: SessionRule.COMPARED,
    a_commit_moves_from_where_nobody_believed_it: SessionRule.COMPARED,
    a_lost_lease_moves_a_cursor: SessionRule.UNDER_LEASE,
    a_holder_is_passed_over: SessionRule.UNDER_LEASE,
    a_record_names_a_lease_that_is_not_in_force: SessionRule.UNDER_LEASE,
    a_lease_is_taken_twice_with_one_number: SessionRule.LEASES,
    the_number_of_a_lease_goes_on_when_it_is_given_back: SessionRule.LEASES,
    a_cursor_is_told_where_it_never_stood: SessionRule.STANDS,
    a_cursor_is_told_without_what_was_acknowledged: SessionRule.STANDS,
    a_cursor_is_told_without_a_commit_that_was_acknowledged: SessionRule.STANDS,
    a_lease_is_told_that_is_not_in_the_log: SessionRule.STANDS,
}


def test_a_history_that_keeps_every_promise_has_no_fault() -> None:
    assert judge_sessions(World().history()) == []


@pytest.mark.parametrize("lie", BREAKS, ids=lambda lie: lie.__name__)
def test_a_broken_promise_is_found_by_its_rule_and_by_no_other(lie: Callable[[World], None]) -> None:
    world = World()
    lie(world)
    faults = judge_sessions(world.history())
    assert {fault.rule for fault in faults} == {BREAKS[lie]}, [str(fault) for fault in faults]


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert set(BREAKS.values()) == set(SESSION_RULES) == set(SessionRule)
