"""Shapes and limits of an append (spec §§2, 3): what is accepted, what is refused, and that a refusal leaves no trace."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import pytest
from e2e.raw_client import RawClient, Refused
from support.process import BrokerProcess
from tidelog import AppendTooLarge, Client, Event, EventTooLarge, InvalidArgument, StreamNotFound, Write

LIMIT = 65_536


def segments(data: Path) -> dict[str, str]:
    """A digest of every segment, without the zeros that are prepared ahead meanwhile."""
    return {path.name: hashlib.sha256(path.read_bytes().rstrip(b"\0")).hexdigest() for path in data.glob("0*-*")}


def raw_append(broker: BrokerProcess, *writes: Any) -> list[Any]:
    with closing(RawClient(broker.endpoint)) as raw:
        return raw.call(3, 0, None, 0, None, None, list(writes))[0]


def raw_refused(broker: BrokerProcess, *writes: Any) -> tuple[int, list[Any]]:
    with pytest.raises(Refused) as refused:
        raw_append(broker, *writes)
    return refused.value.code, refused.value.facts


def region(*events: tuple[Any, Any, Any]) -> bytes:
    """(type, metadata, payload) …"""
    ids = b"".join(uuid4().bytes for _ in events)
    columns = [[event[i] for event in events] for i in range(3)]
    packed: bytes = msgpack.packb([ids, columns[0], columns[1], columns[2]])
    return packed


def test_an_event_of_exactly_the_limit_is_accepted_and_comes_back(client: Client, stream: str) -> None:
    """T-16"""
    kinds = ["t", "ü" * 128, "t"]
    payloads = [bytes(LIMIT - 16 - 1), bytes(LIMIT - 16 - 256 - 10), b""]
    metadata = [b"", bytes(10), bytes(LIMIT - 17)]
    for kind, payload, meta in zip(kinds, payloads, metadata, strict=True):
        client.append(stream, Event(kind, payload, meta))
    found = list(client.read_stream(stream))
    assert [event.type for event in found] == kinds
    assert [event.payload for event in found] == payloads
    assert [event.metadata for event in found] == metadata


OVER = [
    (Event("t", bytes(LIMIT - 16)), EventTooLarge),
    (Event("t", b"", bytes(LIMIT - 16)), EventTooLarge),
    (Event("t", bytes(LIMIT // 2), bytes(LIMIT // 2 - 16)), EventTooLarge),
    (Event("ü" * 128, bytes(LIMIT - 16 - 255)), EventTooLarge),
    (Event("", b"x"), InvalidArgument),
    (Event("ü" * 128 + "x", b"x"), InvalidArgument),
    (Event("x" * 257, b"x"), InvalidArgument),
    (Event("$mine", b"x"), InvalidArgument),
    (Event("\ud800", b"x"), InvalidArgument),
]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "last of a batch"])
@pytest.mark.parametrize(("bad", "error"), OVER, ids=lambda value: ascii(value)[:24])
def test_one_bad_event_is_refused_with_its_whole_append_and_no_byte_of_the_log_changes(
    shared: BrokerProcess, client: Client, stream: str, bad: Event, error: type[Exception], alone: bool
) -> None:
    """T-16"""
    client.append(stream + "before", Event("a"))
    before, head = segments(shared.data), client.head()
    with pytest.raises(error):
        client.append(stream, [bad] if alone else [*(Event("a", b"%d" % i) for i in range(20)), bad])
    assert client.head() == head
    assert segments(shared.data) == before
    with pytest.raises(StreamNotFound):
        client.stream_info(stream)


def test_a_type_of_256_bytes_is_accepted_whatever_its_characters(client: Client, stream: str) -> None:
    """T-16"""
    kinds = ["x" * 256, "ü" * 128, "€" * 85 + "x", "🌊" * 64]
    assert {len(kind.encode()) for kind in kinds} == {256}
    client.append(stream, [Event(kind) for kind in kinds])
    assert [event.type for event in client.read_stream(stream)] == kinds


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (("t", b"", bytes(LIMIT - 16)), 2),
        (("ü" * 128, b"", bytes(LIMIT - 16 - 255)), 2),
        (("", b"", b"x"), 1),
        (("ü" * 128 + "x", b"", b"x"), 1),
        (("$deleted", b"", b"x"), 1),
    ],
    ids=lambda value: str(value)[:24],
)
def test_the_broker_itself_refuses_a_bad_event_at_the_end_of_a_batch(
    shared: BrokerProcess, client: Client, stream: str, bad: Any, code: int
) -> None:
    """T-16, without the library's own checks."""
    client.append(stream + "before", Event("a"))
    before, head = segments(shared.data), client.head()
    good = ("t", b"", b"payload")
    told, facts = raw_refused(shared, [stream, None, region(good, good, bad)])
    assert told == code
    if code == 2:
        assert facts == [16 + len(bad[0].encode()) + len(bad[1]) + len(bad[2]), LIMIT]
    assert raw_refused(shared, [stream + "x", None, region(good)], [stream, None, region(bad)])[0] == code
    assert client.head() == head
    assert segments(shared.data) == before


def test_the_largest_of_each_column_may_stand_in_different_events(shared: BrokerProcess, stream: str) -> None:
    """T-16: the sum of the greatest type, metadata and payload is over the limit, no event is."""
    half = bytes(LIMIT // 2)
    raw_append(shared, [stream, None, region(("t", half, b""), ("t", b"", half + half[:-17]), ("ü" * 128, b"", b""))])


def test_4096_events_and_8_mib_are_accepted_and_one_more_is_not(client: Client, stream: str) -> None:
    """T-16"""
    client.append(stream, [Event("t") for _ in range(4_096)])
    assert client.stream_info(stream).last_version == 4_095
    with pytest.raises(AppendTooLarge) as refused:
        client.append(stream, [Event("t") for _ in range(4_097)])
    assert (refused.value.size, refused.value.max) == (4_097, 4_096)
    with pytest.raises(AppendTooLarge):
        client.append_many([Write(f"{stream}{i}", [Event("t") for _ in range(2_049)]) for i in "ab"])
    most = [Event("t", bytes(LIMIT - 17)) for _ in range(128)]
    done = client.append(stream, most)
    assert done.last_version - done.first_version == 127
    head = client.head()
    with pytest.raises(AppendTooLarge) as refused:
        client.append(stream, [*(Event("t", bytes(LIMIT - 17)) for _ in range(128)), Event("t")])
    assert (refused.value.size, refused.value.max) == ((8 << 20) + 17, 8 << 20)
    assert client.head() == head


def test_an_append_without_events_is_refused_in_the_library_and_no_stream_appears(client: Client, stream: str) -> None:
    """T-17"""
    head = client.head()
    for call in (
        lambda: client.append(stream, []),
        lambda: client.append_many([]),
        lambda: client.append_many([Write(stream, [])]),
        lambda: client.append_many([Write(stream, [], "any")]),  # type: ignore[arg-type]
        lambda: client.append_nowait(stream, []).result(),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert client.head() == head
    with pytest.raises(StreamNotFound):
        client.stream_info(stream)


@pytest.mark.parametrize(
    "events",
    [
        None,
        b"",
        msgpack.packb([b"", "t", None, []]),
        msgpack.packb([b"", [], None, []]),
        msgpack.packb([b"", [], [], []]),
        msgpack.packb([b"", "t", None, None]),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_append_without_events_is_refused_on_the_wire_and_no_stream_appears(
    shared: BrokerProcess, client: Client, stream: str, events: Any
) -> None:
    """T-17"""
    head = client.head()
    assert raw_refused(shared, [stream, None, events]) == (1, [])
    if events is not None:
        # A write whose region holds no events is none that only asserts.
        assert raw_refused(shared, [stream, None, events], [stream + "b", None, region(("t", b"", b""))]) == (1, [])
    assert client.head() == head
    with pytest.raises(StreamNotFound):
        client.stream_info(stream)
    assert list(client.list_streams(stream)) == []


@pytest.mark.parametrize(
    "name", ["", "x" * 256, "ü" * 128, "a\0b", "a\nb", "a\x7fb", "a\x85b", "\x1f"], ids=lambda name: ascii(name)[:12]
)
def test_a_stream_name_outside_the_rules_is_refused_by_library_and_broker(
    shared: BrokerProcess, client: Client, name: str
) -> None:
    """T-16: 1 to 255 bytes of UTF-8 without control characters."""
    with pytest.raises(InvalidArgument):
        client.append(name, Event("a"))
    assert raw_refused(shared, [name, None, region(("t", b"", b""))]) == (1, [])


def test_a_stream_name_of_255_bytes_and_a_uuid_are_names(client: Client) -> None:
    name, key = "€" * 80 + uuid4().hex[:15], uuid4()
    assert len(name.encode()) == 255
    client.append(name, Event("a", b"1"))
    client.append(key, Event("a", b"2"))
    assert [event.payload for event in client.read_stream(name)] == [b"1"]
    assert [event.stream for event in client.read_stream(str(key))] == [str(key)]
    assert client.stream_info(key).last_version == 0


@pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1, "1", 1.0])
def test_numbers_outside_0_to_2_63_are_refused_at_the_edge(shared: BrokerProcess, stream: str, number: Any) -> None:
    good = region(("t", b"", b""))
    assert raw_refused(shared, [stream, number, good]) == (1, [])
    with closing(RawClient(shared.endpoint)) as raw:
        with pytest.raises(Refused) as refused:
            raw.call(3, 0, number, 0, None, None, [[stream, None, good]])
        assert refused.value.code == 1
