"""Frames and pages: what a client packs, and what it makes of bytes that come."""

from __future__ import annotations

import uuid
from typing import Any

import msgpack
import pytest
from support.builders import control_batch, event_batch
from tidelog import ANY, EXISTS, NO_STREAM, AppendTooLarge, CorruptLog, Event, InvalidArgument, ProtocolMismatch
from tidelog.batch import signature_of, unpack_columns
from tidelog.ids import IdPool, random_ids
from tidelog.wire import (
    array_header,
    choose_endpoints,
    decode_page,
    expected_wire,
    join_requests,
    pack_event,
    pack_events,
    read_hello,
    read_published,
    read_replies,
    stream_name,
    topic,
)

LAST = 2**63 - 1
IDS = IdPool()
MAKE: Any = Event
"""For events that a type checker refuses."""


def page_of_three() -> bytes:
    return event_batch("a/1", 0, 10, [b"x"]) + event_batch("a/2", 5, 11, [b"y", b"z"])


def test_page_gives_every_field_of_every_event() -> None:
    events = decode_page(page_of_three(), False, 0, LAST)
    assert [(e.position, e.stream, e.version, e.type, e.payload, e.metadata) for e in events] == [
        (10, "a/1", 0, "t", b"x", b""),
        (11, "a/2", 5, "t", b"y", b""),
        (12, "a/2", 6, "t", b"z", b""),
    ]
    assert all(isinstance(e.id, uuid.UUID) and e.recorded_at == 1_700_000_000_000_000 for e in events)


def test_page_skips_group_headers_control_batches_and_padding() -> None:
    header = b"TLGR" + bytes(60)
    data = (
        header + page_of_three() + bytes(7) + control_batch(1, []) + header + event_batch("b", 0, 13, [b"w"]) + bytes(3)
    )
    assert [e.position for e in decode_page(data, False, 0, LAST)] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("start", "stop", "left"), [(0, LAST, [10, 11, 12]), (12, LAST, [12]), (0, 12, [10, 11]), (11, 12, [11])]
)
def test_page_is_cut_at_both_edges(start: int, stop: int, left: list[int]) -> None:
    assert [e.position for e in decode_page(page_of_three(), False, start, stop)] == left


def test_page_of_a_stream_is_cut_by_versions() -> None:
    assert [e.version for e in decode_page(event_batch("s", 4, 100, [b"a", b"b", b"c"]), True, 5, 6)] == [5]


def test_page_filter_on_types_is_exact() -> None:
    ids = random_ids(2)
    region = msgpack.packb([ids, ["left", "right"], None, [b"1", b"2"]])
    assert list(unpack_columns(region).rows())[1][0] == "right"
    mixed = event_batch("s", 0, 0, [b"1"], event_type="left") + event_batch("s", 1, 1, [b"2"], event_type="right")
    wanted = frozenset(["right"])
    assert [e.payload for e in decode_page(mixed, False, 0, LAST, wanted, signature_of(["right"]))] == [b"2"]
    assert [e.payload for e in decode_page(mixed, False, 0, LAST, wanted, 2**64 - 1)] == [b"2"]


def test_page_cut_anywhere_gives_whole_batches_or_corrupt_log() -> None:
    whole = page_of_three()
    edge = len(event_batch("a/1", 0, 10, [b"x"]))
    for size in range(len(whole)):
        if size in (0, edge):
            assert len(decode_page(whole[:size], False, 0, LAST)) == bool(size)
            continue
        with pytest.raises(CorruptLog):
            decode_page(whole[:size], False, 0, LAST)


def test_page_with_any_flipped_bit_is_corrupt_or_says_less_but_never_wrong() -> None:
    batch = event_batch("a/1", 0, 10, [b"x", b"y"])
    right = decode_page(batch, False, 0, LAST)
    for at in range(len(batch)):
        for bit in range(8):
            flipped = bytearray(batch)
            flipped[at] ^= 1 << bit
            try:
                assert decode_page(bytes(flipped), False, 0, LAST) in (right, [])
            except CorruptLog:
                pass


def test_one_event_and_many_are_packed_as_columns() -> None:
    given = uuid.uuid4()
    ids, types, metadata, payloads = msgpack.unpackb(pack_event(Event("t", b"p", b"m", given), IDS))
    assert (ids, types, metadata, payloads) == (given.bytes, "t", [b"m"], [b"p"])
    ids, types, metadata, payloads = msgpack.unpackb(pack_event(Event("t", b"p"), IDS))
    assert (len(ids), types, metadata, payloads) == (16, "t", None, [b"p"])
    ids, types, metadata, payloads = msgpack.unpackb(
        pack_events([Event("t", bytearray(b"p")), Event("u", memoryview(b"q"), b"m", given)], IDS)  # type: ignore[arg-type]
    )
    assert (ids[16:], types, metadata, payloads) == (given.bytes, ["t", "u"], [b"", b"m"], [b"p", b"q"])


@pytest.mark.parametrize(
    "events",
    [
        [],
        "text",
        5,
        [b"x"],
        [MAKE(5)],
        [MAKE("t", "text")],
        [MAKE("t", b"", "m")],
        [MAKE("t", id="x")],
        [MAKE("\ud800")],
    ],
)
def test_events_of_the_wrong_type_are_invalid_arguments(events: object) -> None:
    with pytest.raises(InvalidArgument):
        pack_events(events, IDS)  # type: ignore[arg-type]
    if isinstance(events, list) and len(events) == 1:
        with pytest.raises(InvalidArgument):
            pack_event(events[0], IDS)
    assert msgpack.unpackb(pack_event(Event("t", b"after"), IDS))[3] == [b"after"]


def test_append_over_the_fixed_ceilings_is_refused_here() -> None:
    with pytest.raises(AppendTooLarge) as refused:
        pack_events([Event("t")] * 65_537, IDS)
    assert (refused.value.size, refused.value.max) == (65_537, 65_536)
    with pytest.raises(AppendTooLarge) as refused:
        pack_events([Event("t", bytes(1 << 20))] * 13, IDS)
    assert refused.value.size == 13 * ((1 << 20) + 17)


def test_ids_are_distinct_version_4_uuids() -> None:
    block = random_ids(1000)
    made = {uuid.UUID(bytes=block[at : at + 16]) for at in range(0, len(block), 16)}
    made |= {uuid.UUID(bytes=IDS.one()) for _ in range(1000)}
    assert len(made) == 2000
    assert {(each.version, each.variant) for each in made} == {(4, uuid.RFC_4122)}


def test_expected_versions_have_their_words() -> None:
    assert [expected_wire(word) for word in (ANY, NO_STREAM, EXISTS, 0, 7)] == [None, False, True, 0, 7]
    for wrong in (-1, 2**63, True, None, "any", 1.0):
        with pytest.raises(InvalidArgument):
            expected_wire(wrong)


def test_uuid_stands_for_its_canonical_text() -> None:
    name = uuid.uuid4()
    assert stream_name(name) == str(name)
    with pytest.raises(InvalidArgument):
        stream_name(b"bytes")


@pytest.mark.parametrize("count", [1, 15, 16, 1024])
def test_packed_requests_are_joined_into_one_array(count: int) -> None:
    assert len(array_header(count)) <= 3
    assert msgpack.unpackb(join_requests([msgpack.packb([2, n]) for n in range(count)])) == [
        [2, n] for n in range(count)
    ]


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x05", msgpack.packb([1]), msgpack.packb([[1]]), b"\x91" * 2000])
def test_foreign_reply_is_a_protocol_mismatch(frame: bytes) -> None:
    with pytest.raises(ProtocolMismatch):
        read_replies(frame)


def test_hello_of_another_protocol_or_shape_is_a_protocol_mismatch() -> None:
    good = (1, 0, 1, b"l" * 16, b"b" * 16, 0, 5, 0, (1, 2, 3, 4, 5, 6), (("a", "b", "c"),), 500, "0.1")
    assert read_hello(good).head == 5
    for at, value in [(2, 2), (3, b"short"), (6, "x"), (8, ()), (9, 5)]:
        with pytest.raises(ProtocolMismatch):
            read_hello((*good[:at], value, *good[at + 1 :]))
    with pytest.raises(ProtocolMismatch):
        read_hello(good[:8])


def test_endpoints_are_those_of_the_own_row_else_of_the_transport() -> None:
    rows = (
        ("ipc:///a", "ipc:///a.pub", "ipc:///a.health"),
        ("tcp://0.0.0.0:1", "tcp://0.0.0.0:2", "tcp://0.0.0.0:3"),
    )
    assert choose_endpoints("ipc:///a", rows) == rows[0]
    assert choose_endpoints("ipc:///link/a", rows)[1] == "ipc:///a.pub"
    assert choose_endpoints("tcp://host:1", rows) == ("tcp://host:1", "tcp://host:2", "tcp://host:3")
    with pytest.raises(ProtocolMismatch):
        choose_endpoints("tcp://host:1", rows[:1])


def test_topics_and_published_bodies() -> None:
    assert [topic(0, ""), topic(1, "a"), topic(2, "a/1")] == [b"A", b"Ca\0", b"Sa/1\0"]
    body = b"l" * 16 + b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 4)) + b"\1\0\0\0" + bytes(4)
    assert read_published(body + b"stored") == (b"l" * 16, 1, 2, 3, 4, 1)
    for size in range(56):
        with pytest.raises(ProtocolMismatch):
            read_published(body[:size])
