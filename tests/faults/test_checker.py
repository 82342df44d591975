"""The checker (support/checker.py) says no to each kind of broken promise, by the rule that it breaks, and yes to none.

`World` (support/world.py) is a small history that keeps every promise; each break changes it in one way. Truncations and backups:
test_checker_of_cuts.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.test_checker_of_cuts import BREAKS as OF_CUTS
from support.checker import ANSWER_NS, RULES, Rule, judge
from support.histories import Stored, stored
from support.world import CALM, S, World, ack, digest, event_id, row, send, store_behind_the_end
from tidelog import Recorded

# ---- breaks: each is one lie


def no_append_is_acknowledged(world: World) -> None:
    for rows in (world.w0, world.w1_again):
        rows[:] = [{**r, "what": "unknown"} if r["what"] == "ack" else r for r in rows]
    world.calm_at = None  # otherwise it is a fault of its own that the probes are not acknowledged


def a_subscriber_saw_nothing(world: World) -> None:
    # It was killed before anything came, and never born again.
    world.s1 = world.s1[:1]
    world.killed.add("s1.0")


def a_position_is_left_out(world: World) -> None:
    # Behind everything that anybody was told.
    store_behind_the_end(world, Stored(12, "s/1", 7, event_id(10), digest(10), 20))
    store_behind_the_end(world, Stored(13, "s/1", 8, event_id(11), digest(11), 20))


def a_version_is_left_out(world: World) -> None:
    store_behind_the_end(world, Stored(11, "s/1", 8, event_id(10), digest(10), 20))
    store_behind_the_end(world, Stored(12, "s/1", 9, event_id(11), digest(11), 20))


def time_goes_back(world: World) -> None:
    world.both([*world.log[:4], world.log[4]._replace(recorded_at=1), *world.log[5:]])


def one_append_has_two_times(world: World) -> None:
    world.both([world.log[0]._replace(recorded_at=0), *world.log[1:]])


def the_independent_reader_finds_another_event(world: World) -> None:
    world.proof[4] = world.proof[4]._replace(digest=digest(77))


def the_independent_reader_finds_less(world: World) -> None:
    del world.proof[10]


def the_independent_reader_finds_damage(world: World) -> None:
    world.proof_verdict = "torn tail at segment 1 offset 4096, 10 bytes"


def a_stream_read_alone_lacks_an_event(world: World) -> None:
    del world.streams["t/1"][2]


def an_event_is_stored_twice(world: World) -> None:
    store_behind_the_end(world, Stored(11, "t/1", 4, event_id(14), digest(14), 20))


def an_event_comes_from_nobody(world: World) -> None:
    store_behind_the_end(world, Stored(11, "s/1", 7, event_id(200), digest(200), 20))


def a_content_is_changed(world: World) -> None:
    # Of an event that nobody saw: the unknown append's second, when its subscribers saw the changed one.
    changed = world.log[7]._replace(digest=digest(99))
    world.both([*world.log[:7], changed, *world.log[8:]])
    for rows in (world.s0_again, world.s1):
        for r in rows:
            if r["what"] == "seen" and r["event"][0] == 7:
                r["event"] = list(changed[:5])


def an_event_is_in_another_stream(world: World) -> None:
    world.w1[0] = send(1, 99, ("s/1", "any", [10]))
    store_behind_the_end(world, Stored(11, "t/1", 4, event_id(10), digest(10), 20))


def an_acknowledged_append_is_lost(world: World) -> None:
    # The last one, before anyone saw it.
    world.both(world.log[:10])
    del world.s0_again[-2]


def half_of_an_acknowledged_append_is_lost(world: World) -> None:
    world.w1_again[4] = send(2, 220, ("t/1", "any", [14, 15]))
    world.w1_again[6] = ack(2, 221, [10, 11, 3, 4])


def an_acknowledged_append_stands_elsewhere(world: World) -> None:
    world.w1_again[6] = ack(2, 221, [10, 10, 4, 4])


def a_refused_append_is_stored(world: World) -> None:
    world.w0[10] = send(5, 70, ("t/1", "any", [9]))
    store_behind_the_end(world, Stored(11, "t/1", 4, event_id(9), digest(9), 20))
    # Sent last of all, so that its place is nobody's business but the refusal's.
    world.w0[-1:-1] = [
        {**world.w0.pop(10), "number": 8, "at": 221 * S},
        {**world.w0.pop(10), "number": 8, "at": 221 * S},
    ]


def half_of_an_unknown_append_is_stored(world: World) -> None:
    store_behind_the_end(world, Stored(11, "s/1", 7, event_id(10), digest(10), 20))


def an_append_is_torn_apart(world: World) -> None:
    # The unknown append 7, 8: another's event stands between its two.
    order = [*world.log[:7], world.log[8], world.log[7], *world.log[9:]]
    world.renumbered(order)
    world.log[6:9] = [event._replace(recorded_at=8) for event in world.log[6:9]]
    world.both(world.log)
    world.w1_again[1] = ack(1, 125, [7, 7, 2, 2])
    world.w1_again[3] = ack(1, 131, [7, 7, 2, 2], duplicate=True)
    world.s0_again[1:-1] = world.seen(world.log[3:], 222)
    world.s1[1:-1] = world.seen([event for event in world.log if event.stream == "s/1"], 222)


def an_update_is_lost(world: World) -> None:
    world.w0[2] = send(2, 30, ("t/1", "any", [3]), ("s/1", 0, [4]))


def a_stream_that_should_be_new_is_not(world: World) -> None:
    world.w0[4] = send(3, 50, ("t/1", "none", [5]))


def a_repeat_is_told_other_places(world: World) -> None:
    world.w1_again[3] = ack(1, 131, [7, 7, 1, 1], duplicate=True)


def a_repeat_is_called_new(world: World) -> None:
    world.w1_again[3] = ack(1, 131, [8, 8, 2, 2])


def a_repeat_of_what_is_stored_is_refused(world: World) -> None:
    world.w1_again[3] = row("definite", 131, number=1, error="WrongExpectedVersion: t/1")


def a_clients_appends_are_swapped(world: World) -> None:
    # Both were in flight, so only their order says which has to stand first.
    world.w0[4], world.w0[5] = send(3, 50, ("s/1", "any", [6])), send(4, 50, ("t/1", "any", [5]))
    world.w0[6], world.w0[7] = ack(3, 60, [5, 5, 3, 3]), ack(4, 60, [4, 4, 1, 1])


def an_answer_came_before_a_request_that_stands_first(world: World) -> None:
    # The other writer's append was sent when position 9 had been told.
    world.w1_again[0] = send(1, 212, ("t/1", "any", [12]))
    for place in (1, 2, 3):
        world.w1_again[place]["at"] = 213 * S


def a_request_stands_before_what_was_seen(world: World) -> None:
    # The subscriber saw position 8 before it was sent.
    for r in world.s0_again:
        if r["what"] == "seen" and r["event"][0] <= 8:
            r["at"] = 119 * S


def what_was_seen_is_gone(world: World) -> None:
    world.s1.insert(-1, row("seen", 223, event=[11, "s/1", 7, event_id(10), digest(10)]))


def what_was_seen_is_another(world: World) -> None:
    world.s0[2]["event"] = [1, "s/1", 1, event_id(10), digest(10)]


def what_was_seen_has_other_bytes(world: World) -> None:
    world.s0[2]["event"][4] = digest(77)


def what_was_read_is_gone(world: World) -> None:
    events = [list(world.log[10][:5]), [11, "s/1", 7, event_id(10), digest(10)]]
    world.w0.insert(-1, row("read", 301, began=300 * S, scope="", events=events))


def a_head_was_told_that_is_no_more(world: World) -> None:
    world.w0.insert(-1, row("head", 301, began=300 * S, head=12))


def an_event_is_seen_twice(world: World) -> None:
    world.s1.insert(3, world.s1[2])


def events_are_seen_in_another_order(world: World) -> None:
    world.s1[2], world.s1[3] = world.s1[3], world.s1[2]


def an_event_is_not_seen(world: World) -> None:
    del world.s1[3]


def a_life_begins_too_late(world: World) -> None:
    world.s0_again[0]["start"] = 4
    del world.s0_again[1]


def a_read_leaves_out_an_event(world: World) -> None:
    del world.w0[9]["events"][1]


def the_end_is_not_seen(world: World) -> None:
    del world.s1[-2]


def a_head_is_older_than_an_answer(world: World) -> None:
    world.w0[8]["head"] = 5


def a_call_is_never_answered(world: World) -> None:
    world.w0[13:14] = []


def a_call_is_answered_too_late(world: World) -> None:
    world.w0[13]["at"] = CALM + ANSWER_NS + 1


def a_probe_is_not_acknowledged(world: World) -> None:
    world.w0[16] = row("unknown", 211, number=7, error="DeadlineExceeded: no answer")


def there_is_no_probe(world: World) -> None:
    del world.w0[15]


def a_subscriber_is_told_too_late(world: World) -> None:
    world.s1[-2]["at"] = 221 * S + ANSWER_NS + 1


def a_client_does_not_end(world: World) -> None:
    del world.w1_again[-1]


BREAKS: dict[Callable[[World], None], Rule] = {
    no_append_is_acknowledged: Rule.SOME_ACK,
    a_subscriber_saw_nothing: Rule.SAW_SOMETHING,
    a_position_is_left_out: Rule.POSITIONS,
    a_version_is_left_out: Rule.VERSIONS,
    time_goes_back: Rule.CLOCK,
    one_append_has_two_times: Rule.CLOCK,
    the_independent_reader_finds_another_event: Rule.READERS_AGREE,
    the_independent_reader_finds_less: Rule.READERS_AGREE,
    the_independent_reader_finds_damage: Rule.READERS_AGREE,
    a_stream_read_alone_lacks_an_event: Rule.STREAMS_AGREE,
    an_event_is_stored_twice: Rule.ONCE,
    an_event_comes_from_nobody: Rule.NOT_INVENTED,
    a_content_is_changed: Rule.CONTENT,
    an_event_is_in_another_stream: Rule.CONTENT,
    an_acknowledged_append_is_lost: Rule.ACK_THERE,
    half_of_an_acknowledged_append_is_lost: Rule.ACK_THERE,
    an_acknowledged_append_stands_elsewhere: Rule.ACK_PLACE,
    a_refused_append_is_stored: Rule.DEFINITE_ABSENT,
    half_of_an_unknown_append_is_stored: Rule.WHOLE,
    an_append_is_torn_apart: Rule.WHOLE,
    an_update_is_lost: Rule.EXPECTED,
    a_stream_that_should_be_new_is_not: Rule.EXPECTED,
    a_repeat_is_told_other_places: Rule.REPEAT,
    a_repeat_is_called_new: Rule.REPEAT,
    a_repeat_of_what_is_stored_is_refused: Rule.REPEAT,
    a_clients_appends_are_swapped: Rule.CLIENT_ORDER,
    an_answer_came_before_a_request_that_stands_first: Rule.REAL_TIME,
    a_request_stands_before_what_was_seen: Rule.REAL_TIME,
    what_was_seen_is_gone: Rule.SEEN_KEPT,
    what_was_seen_is_another: Rule.SEEN_KEPT,
    what_was_seen_has_other_bytes: Rule.SEEN_KEPT,
    what_was_read_is_gone: Rule.SEEN_KEPT,
    a_head_was_told_that_is_no_more: Rule.SEEN_KEPT,
    an_event_is_seen_twice: Rule.SEEN_ORDER,
    events_are_seen_in_another_order: Rule.SEEN_ORDER,
    an_event_is_not_seen: Rule.SEEN_DENSE,
    a_life_begins_too_late: Rule.SEEN_DENSE,
    a_read_leaves_out_an_event: Rule.SEEN_DENSE,
    the_end_is_not_seen: Rule.SEEN_ALL,
    a_head_is_older_than_an_answer: Rule.FRESH,
    a_call_is_never_answered: Rule.ANSWERED,
    a_call_is_answered_too_late: Rule.ANSWERED,
    a_probe_is_not_acknowledged: Rule.ANSWERED,
    there_is_no_probe: Rule.ANSWERED,
    a_subscriber_is_told_too_late: Rule.ANSWERED,
    a_client_does_not_end: Rule.ANSWERED,
}


def test_a_history_that_keeps_every_promise_has_no_fault() -> None:
    verdict = judge(World().history())
    assert verdict.faults == []
    assert (verdict.events, verdict.acknowledged, verdict.refused, verdict.unknown, verdict.unknown_stored) == (
        11, 7, 1, 2, 1,
    )  # fmt: skip
    assert (verdict.repeats, verdict.seen, verdict.reads) == (1, 18, 2)


@pytest.mark.parametrize("lie", BREAKS, ids=lambda lie: lie.__name__)
def test_a_broken_promise_is_rejected_by_its_rule_and_by_no_other(lie: Callable[[World], None]) -> None:
    """T-10"""
    world = World()
    lie(world)
    verdict = judge(world.history())
    assert verdict.broken == {BREAKS[lie]}, [str(fault) for fault in verdict.faults]


def test_every_rule_rejects_something() -> None:
    assert {*BREAKS.values(), *OF_CUTS.values()} == set(RULES) == set(Rule)


def test_a_row_of_an_unknown_kind_is_no_history() -> None:
    world = World()
    world.w0.append(row("rumour", 230))
    with pytest.raises(ValueError, match="rumour"):
        world.history()


def test_another_content_has_another_digest() -> None:
    def of(kind: str, payload: bytes, metadata: bytes) -> str:
        return stored(Recorded(0, "s", 0, kind, payload, metadata, bytes(16), 0)).digest

    rows = [
        ("a", b"bc", b""),
        ("ab", b"c", b""),
        ("a", b"c", b"b"),
        ("a", b"b", b"c"),
        ("a", b"", b"bc"),
        ("abc", b"", b""),
    ]
    assert len({of(*one) for one in rows}) == len(rows)
