"""Expected versions (spec §3): the table, the order of the checks, all or nothing over several streams."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from support.process import BrokerProcess
from tidelog import (
    ANY,
    EXISTS,
    NO_STREAM,
    Client,
    DuplicateEventId,
    Event,
    EventTooLarge,
    InvalidArgument,
    StreamNotFound,
    Write,
    WrongExpectedVersion,
)

PASSES = True
TABLE: list[tuple[Any, bool, Any]] = [
    # expected, the stream is at version 3, passes or the actual version told
    (ANY, False, PASSES),
    (ANY, True, PASSES),
    (NO_STREAM, False, PASSES),
    (NO_STREAM, True, 3),
    (EXISTS, False, None),
    (EXISTS, True, PASSES),
    (3, False, None),
    (3, True, PASSES),
    (0, False, None),
    (0, True, 3),
    (2, True, 3),
    (4, True, 3),
    (2**63 - 1, True, 3),
    (2**63 - 1, False, None),
]


def four(client: Client, stream: str) -> None:
    client.append(stream, [Event("a", b"%d" % i) for i in range(4)], NO_STREAM)


def check(client: Client, stream: str, expected: Any, exists: bool, outcome: Any) -> None:
    head = client.head()
    if outcome is PASSES:
        done = client.append(stream, Event("b"), expected)
        first = 4 if exists else 0
        assert (done.first_version, done.last_version) == (first, first)
        assert (done.first_position, done.last_position, done.duplicate) == (head, head, False)
        return
    with pytest.raises(WrongExpectedVersion) as refused:
        client.append(stream, Event("b"), expected)
    error = refused.value
    assert (error.stream, error.actual) == (stream, outcome)
    assert error.expected == {NO_STREAM: False, EXISTS: True}.get(expected, expected)
    assert not error.retryable
    assert not error.maybe_applied
    assert client.head() == head
    if exists:
        assert client.stream_info(stream).last_version == 3
    else:
        with pytest.raises(StreamNotFound):
            client.stream_info(stream)


@pytest.mark.parametrize(("expected", "exists", "outcome"), TABLE, ids=str)
def test_expected_versions_pass_and_fail_as_the_table_says(
    client: Client, stream: str, expected: Any, exists: bool, outcome: Any
) -> None:
    """T-15"""
    if exists:
        four(client, stream)
    check(client, stream, expected, exists, outcome)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_expected_versions_pass_and_fail_as_the_table_says_after_a_restart(broker: BrokerProcess, how: str) -> None:
    """T-15, the same after restart."""
    with Client(broker.endpoint, timeout=20.0) as client:
        for row, (_, exists, _) in enumerate(TABLE):
            if exists:
                four(client, f"row/{row}")
        if how == "killed":
            broker.kill()
        else:
            assert broker.stop() == 0
        broker.start()
        for row, (expected, exists, outcome) in enumerate(TABLE):
            check(client, f"row/{row}", expected, exists, outcome)


@pytest.mark.parametrize("expected", [-1, 2**63, 2**64, 1.0, "any", True, False, None])
def test_an_expected_version_that_is_none_is_refused_and_nothing_is_written(
    client: Client, stream: str, expected: Any
) -> None:
    head = client.head()
    with pytest.raises(InvalidArgument):
        client.append(stream, Event("a"), expected)
    assert client.head() == head


def test_an_oversized_event_is_told_before_a_version_conflict(client: Client, stream: str) -> None:
    """T-18: the order of the checks is fixed."""
    four(client, stream)
    with pytest.raises(EventTooLarge) as refused:
        client.append(stream, Event("a", bytes(65_536)), NO_STREAM)
    assert refused.value.size == 65_536 + 16 + 1
    assert refused.value.max == 65_536
    assert client.stream_info(stream).last_version == 3


def test_an_oversized_event_in_the_second_write_is_told_before_a_conflict_of_the_first(
    client: Client, stream: str
) -> None:
    """T-18"""
    four(client, stream)
    with pytest.raises(EventTooLarge):
        client.append_many([Write(stream, [Event("a")], NO_STREAM), Write(stream + "b", [Event("a", bytes(65_536))])])


def test_a_known_append_is_answered_with_its_places_though_its_version_conflicts_now(
    client: Client, stream: str
) -> None:
    """T-18: known ids are looked at before expected versions."""
    events = [Event("a", b"1", id=uuid4()), Event("b", b"2", id=uuid4())]
    first = client.append(stream, events, NO_STREAM)
    client.append(stream, Event("c"))
    again = client.append(stream, events, NO_STREAM)
    assert again[:4] == first[:4]
    assert again.duplicate
    assert again.durability == "durable"
    assert client.append(stream, events, 77)[:4] == first[:4]


def test_known_ids_with_another_payload_are_told_before_a_version_conflict(client: Client, stream: str) -> None:
    """T-18, T-24"""
    known = Event("a", b"1", id=uuid4())
    client.append(stream, known, NO_STREAM)
    with pytest.raises(DuplicateEventId):
        client.append(stream, Event("a", b"2", id=known.id), NO_STREAM)


def test_an_id_that_stands_twice_is_told_before_a_version_conflict_and_before_known_ids(
    client: Client, stream: str
) -> None:
    """T-18: an id twice in one request comes before known ids and versions."""
    known = Event("a", b"1", id=uuid4())
    client.append(stream, known, NO_STREAM)
    twice = Event("a", b"1", id=uuid4())
    head = client.head()
    for events in ([twice, twice], [known, known]):
        with pytest.raises(InvalidArgument):
            client.append(stream, events, NO_STREAM)
    with pytest.raises(InvalidArgument):
        client.append_many([Write(stream, [twice]), Write(stream + "b", [twice])])
    assert client.head() == head


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_wrong_expected_version_of_three_streams_leaves_all_three_unwritten(
    client: Client, stream: str, place: int
) -> None:
    """T-49"""
    head = client.head()
    names = [f"{stream}{i}" for i in range(3)]
    writes = [
        Write(name, [Event("a"), Event("b")], EXISTS if i == place else NO_STREAM) for i, name in enumerate(names)
    ]
    with pytest.raises(WrongExpectedVersion) as refused:
        client.append_many(writes)
    assert refused.value.stream == names[place]
    assert client.head() == head
    for name in names:
        with pytest.raises(StreamNotFound):
            client.stream_info(name)
    done = client.append_many([Write(name, [Event("a")], NO_STREAM) for name in names])
    assert [row[:4] for row in done] == [(head + i, head + i, 0, 0) for i in range(3)]


@pytest.mark.parametrize("place", [0, 1])
def test_a_bare_assertion_that_fails_leaves_the_other_stream_unwritten(client: Client, stream: str, place: int) -> None:
    """T-49"""
    four(client, stream)
    head = client.head()
    writes = [Write(stream + "b", [Event("a")])]
    writes.insert(place, Write(stream, [], 2))
    with pytest.raises(WrongExpectedVersion) as refused:
        client.append_many(writes)
    assert (refused.value.stream, refused.value.expected, refused.value.actual) == (stream, 2, 3)
    assert client.head() == head
    with pytest.raises(StreamNotFound):
        client.stream_info(stream + "b")
    writes[place] = Write(stream, [], 3)
    done = client.append_many(writes)
    assert set(done[place][:4]) == {None}
    assert done[1 - place][:4] == (head, head, 0, 0)
    assert client.stream_info(stream).last_version == 3


def test_a_stream_stands_at_most_once_in_an_append(client: Client, stream: str) -> None:
    """T-49"""
    head = client.head()
    for second in (Write(stream, [Event("b")]), Write(stream, [], NO_STREAM)):
        with pytest.raises(InvalidArgument):
            client.append_many([Write(stream, [Event("a")]), second])
    assert client.head() == head


def test_positions_follow_the_order_of_the_writes(client: Client, stream: str) -> None:
    head = client.head()
    names = [f"{stream}{i}" for i in (5, 1, 9, 3)]
    done = client.append_many([Write(name, [Event("a", name.encode()), Event("b")]) for name in names])
    assert [row[:2] for row in done] == [(head + 2 * i, head + 2 * i + 1) for i in range(4)]
    assert [event.stream for event in client.read_all(head)] == [name for name in names for _ in "ab"]
    assert len({event.recorded_at for event in client.read_all(head)}) == 1
