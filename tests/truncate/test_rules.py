"""What a truncation does to what is read, expected and known: at once, and as every kind of start finds it (T-40)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.simdisk import Image, SimDisk
from tidelog.batch import pack_columns
from tidelog.errors import DuplicateEventId, InvalidArgument, OutcomeUnknown, WrongExpectedVersion
from tidelog_broker.core.topics import BODY, Topics
from truncate.driven import INDEXED, SMALL, START_US, Driven, answers, holds, rebuilt, without_index


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def newest_bad(image: Image) -> Image:
    """The newest checkpoint damaged: the older one counts."""
    newest = max(name for name in image if name.startswith("index/checkpoint"))
    return {**image, newest: flipped(image[newest])}


def all_bad(image: Image) -> Image:
    """Every checkpoint damaged: the log is read from its base on."""
    return {name: flipped(data) if name.startswith("index/checkpoint") else data for name, data in image.items()}


STARTS: dict[str, Callable[[Image], Image]] = {
    "with its checkpoint": lambda image: image,
    "with the older checkpoint": newest_bad,
    "with every checkpoint damaged": all_bad,
    "without index": without_index,
}


def started(driven: Driven, how: str) -> Driven:
    """The log after a kill and a start of this kind."""
    return driven.reopened(SimDisk(STARTS[how](driven.sim.image())))


def filled(groups: int = 20) -> Driven:
    driven = Driven(SimDisk())
    driven.fill(groups)
    return driven


# -- where it ends up


def test_it_is_rounded_down_to_where_an_append_begins() -> None:
    driven = filled(4)
    starts = driven.model.starts()
    assert len(starts) == 8
    for position in range(driven.store.index.head):
        other = driven.reopened(SimDisk(driven.sim.image()))
        right = max(start for start in starts if start <= position)
        assert other.truncate(position) == right
        holds(other, deep=False)


def test_behind_the_head_it_is_refused_and_nothing_is_written() -> None:
    driven = filled(2)
    for position in (driven.store.index.head + 1, 2**63 - 1):
        with pytest.raises(InvalidArgument, match="behind the head"):
            driven.stage_truncation(position)
    for wrong in (-1, 2**63, None, "3", True):
        with pytest.raises(InvalidArgument):
            driven.appender.truncate((15, 1, 0, wrong), START_US)
    assert not driven.appender.parts
    holds(driven)


@pytest.mark.parametrize("position", [0, 5, 12, 13, 14, 15])
def test_backwards_or_to_the_same_append_it_writes_nothing_and_tells_the_first_that_is_left(position: int) -> None:
    driven = filled(6)
    assert driven.truncate(13) == 12
    assert driven.model.starts()[6:8] == [12, 15]
    if position < 15:
        assert driven.stage_truncation(position) == 12
        assert not driven.appender.parts
    else:
        assert driven.stage_truncation(position) == 15
        assert driven.appender.parts


def test_of_several_in_one_group_the_furthest_counts_and_all_are_told_so() -> None:
    driven = filled(6)
    told = [driven.stage_truncation(position) for position in (13, 20, 3, 13, 20)]
    assert told == [12, 20, 20, 20, 20]
    assert len(driven.appender.staged) == 2
    driven.commit()
    holds(driven)
    holds(driven.reopened(SimDisk(driven.sim.image())))


def test_a_group_that_is_not_written_takes_its_truncation_with_it() -> None:
    driven = filled(6)
    driven.stage_truncation(13)
    driven.appender.rollback()
    driven.pending = driven.model
    holds(driven)
    assert driven.truncate(9) == 8


def test_on_an_empty_log_and_at_0_there_is_nothing_to_do() -> None:
    driven = Driven(SimDisk())
    assert driven.truncate(0) == 0
    with pytest.raises(InvalidArgument):
        driven.truncate(1)
    assert driven.store.log.group == 0
    driven.fill(1)
    assert driven.truncate(0) == 0
    assert driven.store.log.group == 1


def test_an_append_of_the_same_group_stands_behind_it() -> None:
    driven = filled(3)
    head = driven.store.index.head
    driven.stage(("a/1", [b"before"]))
    assert driven.stage_truncation(head) == head
    driven.stage(("a/1", [b"behind"]))
    with pytest.raises(InvalidArgument, match="behind the head"):
        driven.stage_truncation(head + 1)  # not durable yet
    driven.commit()
    holds(driven)
    assert driven.model.first == head


# -- what is left of streams


@pytest.mark.parametrize("how", STARTS)
def test_every_start_finds_the_same_log_with_the_same_versions(how: str) -> None:
    driven = filled()
    driven.save()
    driven.fill(3)
    driven.truncate(61)
    driven.fill(2)
    assert driven.clear()
    holds(driven)
    once = started(driven, how)
    assert answers(once.store) == rebuilt(driven.sim.image())
    holds(once)
    once.fill(8)
    once.save()
    once.truncate(97)
    assert once.clear()
    twice = started(once, how)
    assert answers(twice.store) == rebuilt(once.sim.image())
    holds(twice)


@pytest.mark.parametrize("how", ["at once", *STARTS])
def test_expected_versions_are_as_before_for_streams_that_lost_all_a_part_or_nothing(how: str) -> None:
    driven = Driven(SimDisk())
    driven.append(("all/1", [b"1", b"2", b"3"]), ("part/1", [b"1"]))
    driven.fill(8)
    driven.save()
    driven.append(("part/1", [b"2"]), ("none/1", [b"1", b"2"]))
    driven.save()
    driven.truncate(driven.store.index.head - 3)
    assert driven.clear()
    if how != "at once":
        driven = started(driven, how)
    versions = {"all/1": 3, "part/1": 2, "none/1": 2, "never/1": 0}
    for stream, known in versions.items():
        wrong = [known, known + 1, *([known - 2] if known > 1 else []), *([False] if known else [True])]
        for expected in wrong:
            with pytest.raises(WrongExpectedVersion) as refused:
                append_expecting(driven, stream, expected)
            assert refused.value.actual == (known - 1 if known else None)
        for right in (None, True, known - 1) if known else (None, False):
            assert append_expecting(driven, stream, right)[6:] == (known, known)
            driven.appender.rollback()
    assert {row.name: row.next_version for row in driven.store.index.list_streams("", None, 1_000)[1]}.items() >= {
        "all/1": 3, "part/1": 2, "none/1": 2
    }.items()  # fmt: skip


def append_expecting(driven: Driven, stream: str, expected: Any) -> tuple[Any, ...]:
    region = pack_columns(b"expected" * 2, ["t"], [b""], [b"x"])
    reply, _ = driven.appender.admit((3, 1, 0, None, 0, None, None, ((stream, expected, region),)), START_US * 2, 0)
    return reply


@pytest.mark.parametrize("how", STARTS)
def test_a_checkpoint_that_is_older_than_the_truncation_and_not_than_the_base_is_used_right(how: str) -> None:
    """The truncation reaches behind the checkpoint's head, into the segment that the checkpoint names."""
    driven = filled(9)
    ordinal = driven.store.log.segments()
    while driven.store.log.segments() == ordinal:
        driven.append(("roll/1", [b"x"]))
    driven.save()
    for payload in (b"1", b"2", b"3"):
        driven.append(("a/1", [payload]))
    driven.truncate(driven.store.index.head - 1)
    driven.append(("once/more", [b"4"]))
    assert driven.store.log.segments() == ordinal + 1
    older = driven.store.checkpoint_group
    assert driven.clear()
    image = STARTS[how](driven.sim.image())
    other = driven.reopened(SimDisk(image))
    if how == "with the older checkpoint":
        assert other.store.log.report.since == older
    assert answers(other.store) == rebuilt(image)
    holds(other)


# -- known ids


def test_the_window_is_the_same_behind_two_bases_that_no_generation_lies_between() -> None:
    indexed = replace(INDEXED, id_window_events=40)
    driven = Driven(SimDisk(), indexed=indexed)
    driven.fill(20)
    driven.truncate(60)
    assert driven.clear()
    driven = driven.reopened(SimDisk(without_index(driven.sim.image())))
    begins = driven.store.window.begins
    driven.truncate(79)
    assert driven.clear()
    image = driven.sim.image()
    assert answers(driven.reopened(SimDisk(image)).store) == rebuilt(image, indexed=indexed)
    driven = driven.reopened(SimDisk(without_index(image)))
    assert driven.store.window.begins == begins
    holds(driven)


@pytest.mark.parametrize("how", ["at once", *STARTS])
def test_a_repeat_of_a_removed_append_is_answered_with_its_places_and_another_payload_is_refused(how: str) -> None:
    driven = filled(12)
    driven.append(("a/1", [b"removed", b"too"]), ("b/1", [b"removed"]))
    removed = driven.model.sent[-1]
    driven.append(("a/1", [b"last"]))
    driven.save()
    driven.truncate(driven.store.index.head)
    driven.append(("roll/1", [bytes(1_900)]))
    assert driven.clear()
    base = driven.store.log.base
    assert base is not None
    assert base.base.head > removed.places[0]
    if how != "at once":
        driven = started(driven, how)
    group = driven.store.log.group
    assert driven.stage(repeat=removed)[4:] == removed.places
    other = replace(removed, writes=(removed.writes[0], (*removed.writes[1][:2], flipped(removed.writes[1][2]))))
    for wrong in (other, replace(removed, writes=removed.writes[:1]), replace(removed, writes=removed.writes[::-1])):
        with pytest.raises(DuplicateEventId):
            driven.stage(repeat=wrong)
    assert driven.store.log.group == group
    holds(driven)


@pytest.mark.parametrize("events", [4, 8, 64])
def test_with_another_setting_of_the_window_a_resend_of_what_was_forgotten_is_never_written_again(events: int) -> None:
    driven = filled(20)
    driven.truncate(driven.store.index.head)
    driven.fill(2)
    driven.clear()
    forgotten = driven.model.sent[0]
    indexed = replace(INDEXED, id_window_events=events)
    driven = Driven(SimDisk(driven.sim.image()), SMALL, indexed, driven.model.copy())
    with pytest.raises(OutcomeUnknown):
        driven.appender.admit((3, 1, 0, 0, 0, None, None, forgotten.writes), START_US * 2, 0)
    known = driven.model.sent[-4]
    assert driven.stage(repeat=known)[4:] == known.places
    driven.fill(70)
    driven.truncate(driven.store.index.head - 20)
    driven.clear()
    image = driven.sim.image()
    assert answers(driven.reopened(SimDisk(image)).store) == rebuilt(image, indexed=indexed)
    holds(driven.reopened(SimDisk(without_index(image))))


# -- what is published


@pytest.mark.parametrize("how", ["at once", *STARTS])
def test_published_ranges_join_over_a_truncation(how: str) -> None:
    """Of categories that lost everything, a part and nothing, as of one that never had an event."""
    driven = filled(6)
    driven.append(("gone/1", [b"1"]), ("gone/2", [b"2"]))
    driven.fill(6)
    driven.save()
    driven.append(("kept/1", [b"1"]))
    driven.truncate(driven.store.index.head - 1)
    driven.save()
    driven.clear()
    if how != "at once":
        driven = started(driven, how)
    topics = Topics(bytes(16))
    streams = ["gone/1", "a/1", "kept/1", "never/1"]
    for stream in streams:
        topics.subscribed.add(b"C" + stream.partition("/")[0].encode() + b"\0")
    ends = {
        category: max((at + 1 for at, row in enumerate(driven.model.events) if row[0].startswith(category)), default=0)
        for category in ("gone/", "a/", "kept/", "never/")
    }
    driven.stage(*((stream, [b"more"]) for stream in streams))
    said = topics.messages(driven.store.index, driven.appender.staged, driven.appender.parts, 0)
    begins = {topic[1:-1].decode() + "/": BODY.unpack_from(body)[1] for topic, body in said}
    assert begins == ends


# -- the oddest logs


def test_everything_may_go_and_the_log_goes_on_where_it_was() -> None:
    driven = filled(5)
    head = driven.store.index.head
    driven.truncate(head)
    driven.append(("roll/1", [bytes(2_000)]))
    driven.truncate(head + 1)
    driven.clear()
    for how in STARTS:
        other = started(driven, how)
        holds(other)
        assert other.append(("a/0", [b"x"]))[4] == head + 1
        holds(other)


def test_what_an_open_segment_without_a_group_leaves_behind_it_can_go(tiny_room: Driven) -> None:
    """The roll was done, its group found no room: the segment before it is the one whose room is wanted."""
    driven = tiny_room
    ordinal = driven.store.log.point().ordinal
    assert driven.clear() == ordinal
    holds(driven)
    for how in ("with its checkpoint", "without index"):
        other = started(driven, how)
        assert other.store.index.recorded_at == driven.store.index.recorded_at
        holds(other)
        other.fill(3)
        other.save()
        other = started(other, how)
        holds(other)
        assert other.store.log.report.since == (0 if how == "without index" else other.store.log.group)


@pytest.fixture
def tiny_room() -> Driven:
    driven = filled(10)
    driven.truncate(driven.store.index.head)
    driven.store.log._roll()
    return driven
