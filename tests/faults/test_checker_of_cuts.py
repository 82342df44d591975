"""The checker says no to each broken promise about truncations and backups, by the rule that it breaks, and yes to none.

`TruncatedWorld` (support/world.py) keeps every promise; each break changes it in one way.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.checker import Rule, judge
from support.world import S, TruncatedWorld, cut, cut_ack, digest, event_id, row, subscribed


def an_acknowledged_truncation_is_lost(world: TruncatedWorld) -> None:
    world.first = world.proof_first = 0


def a_reader_is_told_a_first_position_of_before(world: TruncatedWorld) -> None:
    world.g0[4]["first"] = 1


def a_truncation_is_answered_with_a_first_position_of_before(world: TruncatedWorld) -> None:
    world.g0[3] = cut_ack(2, 161, 0)


def what_is_truncated_is_read(world: TruncatedWorld) -> None:
    world.g0[4] = row("read", 171, began=170 * S, scope="", events=[list(event[:5]) for event in world.log[:3]])


def what_is_truncated_is_delivered(world: TruncatedWorld) -> None:
    world.s2[:2] = [subscribed(182, "", 0), *world.seen(world.log[:2], 222)]


def more_is_gone_than_any_truncation_reached(world: TruncatedWorld) -> None:
    world.first = world.proof_first = 4


def more_is_gone_than_was_asked_for(world: TruncatedWorld) -> None:
    world.truncate_last(3, 4)
    world.first = world.proof_first = 4


def a_reader_is_refused_what_is_there(world: TruncatedWorld) -> None:
    world.g0[4]["start"] = 2


def a_truncation_is_called_done_before_it_was_sent(world: TruncatedWorld) -> None:
    world.s2[0] = row("truncated", 146, began=145 * S, start=0, first=2)


def a_truncation_is_answered_with_the_inside_of_an_append(world: TruncatedWorld) -> None:
    world.truncate_last(7, 7)
    world.first = world.proof_first = 7


def the_log_begins_inside_an_append(world: TruncatedWorld) -> None:
    world.truncate_last(7, 6)
    world.first = world.proof_first = 7


def a_truncation_stops_short(world: TruncatedWorld) -> None:
    world.truncate_last(6, 4)
    world.first = world.proof_first = 4


def a_truncation_is_refused(world: TruncatedWorld) -> None:
    world.g0[3] = row(
        "cut_failed", 161, number=2, error="InvalidArgument: position 1 is behind the head", unknown=False
    )


def a_truncation_is_never_answered(world: TruncatedWorld) -> None:
    world.g0[-1:-1] = [cut(3, 226, 2)]


def a_stream_is_forgotten(world: TruncatedWorld) -> None:
    everything_is_truncated(world)
    del world.last["t/1"]


def a_last_version_goes_back(world: TruncatedWorld) -> None:
    everything_is_truncated(world)
    world.last["t/1"] = (2, 8)


def a_last_version_is_another(world: TruncatedWorld) -> None:
    world.last["t/1"] = (4, 10)


def everything_is_truncated(world: TruncatedWorld) -> None:
    """No lie."""
    world.truncate_last(11, 11)
    world.first = world.proof_first = 11


def a_removed_append_is_lost_and_its_place_given_to_another(world: TruncatedWorld) -> None:
    everything_is_truncated(world)
    world.w1_again[-1:-1] = [
        {"what": "send", "at": 222 * S, "number": 3, "writes": [["u/1", "any", [[event_id(20), digest(20)]]]]},
        {"what": "ack", "at": 222 * S, "number": 3, "places": [[9, 9, 0, 0]]},
    ]
    world.w1_again[-1]["at"] = 223 * S
    world.last["u/1"] = (0, 9)


def the_independent_reader_finds_less_truncated(world: TruncatedWorld) -> None:
    world.proof_first = 0


def a_subscriber_skips_more_than_was_truncated(world: TruncatedWorld) -> None:
    world.s0_again[:2] = [subscribed(100, "", 4, 4)]


def a_backup_is_torn(world: TruncatedWorld) -> None:
    world.copies[1] = world.copies[1]._replace(verdict="torn tail at segment 1 offset 4096, 10 bytes")


def a_backup_lacks_what_was_acknowledged_before(world: TruncatedWorld) -> None:
    world.copies[0] = world.copies[0]._replace(head=8, events=world.log[:8])


def a_backup_has_what_the_log_has_not(world: TruncatedWorld) -> None:
    made_up = world.log[10]._replace(position=11, id=event_id(10))
    world.copies[1] = world.copies[1]._replace(head=12, events=[*world.log, made_up])


def a_backup_has_another_event(world: TruncatedWorld) -> None:
    changed = world.log[5]._replace(digest=digest(99))
    world.copies[1] = world.copies[1]._replace(events=[*world.log[:5], changed, *world.log[6:9]])


def a_backup_has_another_event_where_it_is_truncated_by_now(world: TruncatedWorld) -> None:
    changed = world.log[1]._replace(digest=digest(99))
    world.copies[0] = world.copies[0]._replace(events=[world.log[0], changed, *world.log[2:9]])


def a_backup_leaves_out_an_event(world: TruncatedWorld) -> None:
    world.copies[1] = world.copies[1]._replace(events=[*world.log[:5], *world.log[6:9]])


def a_backup_brings_back_what_was_truncated(world: TruncatedWorld) -> None:
    world.copies[1] = world.copies[1]._replace(first=0)


BREAKS: dict[Callable[[TruncatedWorld], None], Rule] = {
    an_acknowledged_truncation_is_lost: Rule.CUT_HELD,
    a_reader_is_told_a_first_position_of_before: Rule.CUT_HELD,
    a_truncation_is_answered_with_a_first_position_of_before: Rule.CUT_HELD,
    what_is_truncated_is_read: Rule.CUT_HELD,
    what_is_truncated_is_delivered: Rule.CUT_HELD,
    more_is_gone_than_any_truncation_reached: Rule.CUT_ONLY,
    more_is_gone_than_was_asked_for: Rule.CUT_ONLY,
    a_reader_is_refused_what_is_there: Rule.CUT_ONLY,
    a_truncation_is_called_done_before_it_was_sent: Rule.CUT_ONLY,
    a_truncation_is_answered_with_the_inside_of_an_append: Rule.CUT_EDGE,
    the_log_begins_inside_an_append: Rule.CUT_EDGE,
    a_truncation_stops_short: Rule.CUT_EDGE,
    a_truncation_is_refused: Rule.CUT_EDGE,
    a_truncation_is_never_answered: Rule.ANSWERED,
    a_stream_is_forgotten: Rule.LAST_VERSIONS,
    a_last_version_goes_back: Rule.LAST_VERSIONS,
    a_last_version_is_another: Rule.LAST_VERSIONS,
    a_removed_append_is_lost_and_its_place_given_to_another: Rule.ACK_THERE,
    the_independent_reader_finds_less_truncated: Rule.READERS_AGREE,
    a_subscriber_skips_more_than_was_truncated: Rule.SEEN_DENSE,
    a_backup_is_torn: Rule.BACKUP,
    a_backup_lacks_what_was_acknowledged_before: Rule.BACKUP,
    a_backup_has_what_the_log_has_not: Rule.BACKUP,
    a_backup_has_another_event: Rule.BACKUP,
    a_backup_has_another_event_where_it_is_truncated_by_now: Rule.BACKUP,
    a_backup_leaves_out_an_event: Rule.BACKUP,
    a_backup_brings_back_what_was_truncated: Rule.BACKUP,
}


@pytest.mark.parametrize("also", [lambda world: None, everything_is_truncated])
def test_a_history_with_truncations_that_keeps_every_promise_has_no_fault(
    also: Callable[[TruncatedWorld], None],
) -> None:
    world = TruncatedWorld()
    also(world)
    verdict = judge(world.history())
    assert verdict.faults == []
    assert verdict.truncations >= 2


@pytest.mark.parametrize("lie", BREAKS, ids=lambda lie: lie.__name__)
def test_a_broken_promise_about_truncations_is_rejected_by_its_rule_and_by_no_other(
    lie: Callable[[TruncatedWorld], None],
) -> None:
    """T-10, T-40, T-41"""
    world = TruncatedWorld()
    lie(world)
    verdict = judge(world.history())
    assert verdict.broken == {BREAKS[lie]}, [str(fault) for fault in verdict.faults]
