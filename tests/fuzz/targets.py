"""What is fuzzed: every decoder, with what it may raise and what must hold of what it takes.

A target is a function of bytes that returns or, when a promise is broken, raises. The first byte of an input chooses what
is put right before the decoder sees the rest (checksums, tags, places), so that mutations reach what lies behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
from fuzz.files import base, eventfold
from fuzz.memory import CLIENT, STRANGER, MemoryBroker
from fuzz.records import CHECKSUMS, SEGMENT, TAGS, known, with_batch_checksums, with_tags
from tidelog.batch import CRC, HAS_SESSION, HEADER, HEADER_BYTES, Incomplete, read_batch, unpack_columns
from tidelog.errors import CorruptLog, InvalidArgument, InvalidHeader, ProtocolMismatch
from tidelog.exchange import Call, Exchange, State
from tidelog.messages import Recorded
from tidelog.wire import APPEND, PUBLISHED, READ, decode_page, read_hello, read_published, read_replies
from tidelog_broker.core.appender import Appender, AppendLimits
from tidelog_broker.core.format import (
    SEGMENT_HEADER_BYTES,
    Mark,
    SegmentHeader,
    authentic_header,
    pack_group_header,
)
from tidelog_broker.core.index import Index
from tidelog_broker.core.recovery import Chain, SegmentReader
from tidelog_broker.core.requests import unpack_requests


class Target(NamedTuple):
    """A decoder under test; `files` are the ends of the paths whose lines count as covered."""

    name: str
    run: Callable[[bytes], None]
    files: tuple[str, ...]


def group(data: bytes) -> None:
    """Group records and a tail → good groups and a verdict, or CorruptLog or InvalidHeader."""
    how, data = data[:1], data[1:]
    if how and how[0] & TAGS:
        data = with_tags(data, bool(how[0] & CHECKSUMS))
    content = SEGMENT.pack() + data
    chain = Chain()
    reader = SegmentReader(SEGMENT, lambda offset, count: content[offset : offset + count], len(content), chain)
    position, stop = 0, SEGMENT_HEADER_BYTES
    try:
        for found in reader.groups():
            header, body = found.header, found.body
            assert header.offset == stop
            assert header.first_position == position
            packed = pack_group_header(
                SEGMENT.key, body, header.number, 1, header.offset, position, len(found.rows), header.previous_tag
            )
            assert packed + body == content[stop : stop + 64 + len(body)]
            assert authentic_header(content, stop, SEGMENT.key, 1, stop) == header
            at = 0
            for row in found.rows:
                assert row.at == at
                at += row.length
                assert not row.events or row.first_position == position
                position += row.events
            assert at == len(body)
            stop += 64 + at
        assert (reader.offset, chain.position) == (stop, position)
        tail = reader.tail([], {})
        assert stop == tail.offset <= tail.stop <= len(content)
        assert not content[tail.stop :].strip(b"\0")
    except (CorruptLog, InvalidHeader):
        return


def batch(data: bytes) -> None:
    """One stored batch → Batch, INCOMPLETE or CorruptLog; a Batch packs to the bytes it came from."""
    how, data = data[:1], data[1:]
    if how and how[0] & CHECKSUMS:
        data = with_batch_checksums(data)
    try:
        found = read_batch(data)
    except CorruptLog:
        return
    if isinstance(found, Incomplete):
        return
    name = found.stream.encode()
    session = b""
    if found.session is not None:
        holder = found.session[0].encode()
        session = bytes([len(holder)]) + holder + struct.pack("<QQ", *found.session[1:])
    assert bool(found.flags & HAS_SESSION) == (found.session is not None)
    head = HEADER.pack(
        found.kind, found.flags, len(name), found.layout, found.length, found.append_index, found.append_count,
        found.events, len(found.region), found.first_position, found.first_version, found.recorded_at, found.signature,
    )  # fmt: skip
    body = head + name + session + found.region
    assert body + CRC.pack(crc32(body)) == data[: found.length]
    for cut in {0, 1, HEADER_BYTES - 1, HEADER_BYTES, found.length - 1}:
        assert isinstance(read_batch(data[:cut]), Incomplete)
    assert read_batch(b"x" * 9 + data, 9) == found


def segment(data: bytes) -> None:
    """A segment's first block → SegmentHeader, CorruptLog or InvalidHeader; a header packs to one that is read the same."""
    how, data = data[:1], data[1:]
    if how and how[0] & CHECKSUMS and len(data) >= 128:
        data = data[:124] + CRC.pack(crc32(data[:124])) + data[128:]
    name = SEGMENT.name
    if how and how[0] & TAGS and len(data) >= 48:
        ordinal, position = struct.unpack_from("<QQ", data, 32)
        name = f"{ordinal:010d}-{position:020d}"
    block = data.ljust(SEGMENT_HEADER_BYTES, b"\0") if how and how[0] & 4 else data
    try:
        header = SegmentHeader.unpack(block, name)
    except (CorruptLog, InvalidHeader):
        return
    assert header.name == name
    assert SegmentHeader.unpack(header.pack(), name) == header
    assert header.aligned(4_097) >= 4_097


def mark(data: bytes) -> None:
    """A slot of the marks → Mark, None (damaged) or InvalidHeader (newer); a Mark packs to one that is read the same."""
    how, data = data[:1], data[1:]
    if how and how[0] & CHECKSUMS and len(data) >= 112:
        data = data[:108] + CRC.pack(crc32(data[:108])) + data[112:]
    try:
        found = Mark.unpack(data)
    except InvalidHeader:
        return
    if found is None:
        return
    assert Mark.unpack(found.pack()) == found
    assert Mark.unpack(replace(found, clean=not found.clean).pack()) != found


def page(data: bytes) -> None:
    """Stored bytes as a client reads them → events in the range, or CorruptLog."""
    how = data[:4].ljust(4, b"\0")
    stored = data[4:]
    if how[0] & CHECKSUMS:
        stored = with_batch_checksums(stored)
    start = how[1]
    stop = start + (how[2] or 1 << 62)
    types = frozenset(("placed", "t")) if how[3] & 1 else None
    try:
        events = decode_page(stored, bool(how[0] & TAGS), start, stop, types, (1 << 64) - 1 if types else 0)
    except CorruptLog:
        return
    for event in events:
        assert type(event) is Recorded
        assert start <= event[2 if how[0] & TAGS else 0] < stop
        assert types is None or event[3] in types


def published(data: bytes) -> None:
    """A published message's body → its range and events, ProtocolMismatch or CorruptLog."""
    how, body = data[:1], data[1:]
    try:
        message = read_published(body)
        stored = body[PUBLISHED.size :]
        assert PUBLISHED.pack(*message, 0)[:52] == body[:52]
        if how and how[0] & CHECKSUMS:
            stored = with_batch_checksums(stored)
        decode_page(stored, False, message.start, message.stop)
    except (ProtocolMismatch, CorruptLog):
        return


def reply(data: bytes) -> None:
    """A reply message, and what the client's state machine makes of it: nothing is raised, and it can go on."""
    how = data[:1]
    frame = data[1:]
    try:
        for one in read_replies(frame):
            try:
                read_hello(one)
            except ProtocolMismatch:
                pass
    except ProtocolMismatch:
        pass
    exchange, calls = waiting(greeted=bool(how and how[0] & 1))
    exchange.receive(frame, frame if how and how[0] & 2 else b"", 2.0, exchange.incarnation)
    exchange.tick(2.1)
    exchange.timer(2.1)
    exchange.take(2.2)
    if exchange.state is State.IDLE and exchange.closed is None:
        exchange.opened(3.0)
        exchange.take(3.0)
        exchange.receive(hello(exchange), b"", 3.1, exchange.incarnation)
    if exchange.state is State.READY:
        exchange.tick(9.0)
        for _ in range(10):
            if exchange.take(9.0) is None:
                break
    # The deadline ends every call, whatever came.
    exchange.tick(1_000.0)
    assert all(call.settled for call in calls)
    assert not exchange.table


HELLO_FIELDS = (
    1,
    bytes(16),
    b"b" * 16,
    0,
    5,
    0,
    (65_536, 4_096, 1 << 23, 1 << 20, 4_096, 65_536),
    (("a", "b", "c"),),
    1_000,
    "1",
)


def hello(exchange: Exchange) -> bytes:
    """The right answer to the HELLO that was sent last."""
    packed: bytes = msgpack.packb([[exchange._greeting_id, 0, *HELLO_FIELDS]])
    return packed


def waiting(*, greeted: bool) -> tuple[Exchange, list[Call]]:
    """A client with three calls in flight (request ids 1 to 3), or, not `greeted`, waiting for HELLO (id 4)."""
    exchange = Exchange(b"c" * 16, "ipc://x")
    calls = [
        Call(APPEND, (0, None, None, [["s", None, b"region"]]), 100.0),
        Call(READ, (0, "", None, None, None, False, None, None), 100.0),
        Call(APPEND, (0, None, None, [["t", None, b"region"]]), 100.0),
    ]
    for call in calls:
        exchange.submit(call, 0.0)
    exchange.opened(0.0)
    exchange.take(0.0)
    if greeted:
        exchange.receive(hello(exchange), b"", 0.1, exchange.incarnation)
        exchange.take(0.2)
    return exchange, calls


def request(data: bytes) -> None:
    """A request message → requests, or InvalidArgument."""
    try:
        requests = unpack_requests(data)
    except InvalidArgument:
        return
    for row in requests:
        assert type(row) is tuple
        assert type(row[0]) is int
        assert 0 <= row[1] < 1 << 63


_broker: list[MemoryBroker] = []


def broker(data: bytes) -> None:
    """T-55 in the core: any message costs its sender an error or nothing, and another client is served as ever."""
    if not _broker:
        _broker.append(MemoryBroker())
    memory = _broker[0]
    how, frame = data[:1], data[1:]
    known = not how or how[0] & 1
    identity = CLIENT if known else STRANGER
    if known and memory.broker.peers.find(CLIENT) is None:
        memory.hello(CLIENT)
    try:
        for whom, answer in memory.message(identity, frame):
            assert whom == identity
            assert type(answer[1]) is int
        memory.answers()
    except BaseException:
        _broker.clear()  # a finding: the next input gets a broker of its own
        raise


def events(data: bytes) -> None:
    """An events region: what the broker lets in, the client decodes to the very columns; the short way decides the same."""
    region = data
    index = Index()
    limits = AppendLimits(event_bytes_max=1 << 10, append_events_max=64)
    verdicts: list[Any] = []
    for plain in (False, True):
        appender = Appender(index, limits, 1 << 16, lambda number: [])
        if plain:
            # It takes only streams and types that it knows.
            index.apply(1, 4_160, [("s", 1, 0, 1, 60, True, False)])
            appender = Appender(index, limits, 1 << 16, lambda number: [])
            for name in ("placed", "t", "µ", "TLGR"):
                appender._checks._learn_type(name)
        try:
            row = (APPEND, 1, 0, None, 0, None, None, (("s", None, region),))
            answer = appender.admit_plain(row, 5, 0) if plain else None
            if plain and answer is None:
                return
            if answer is None:
                answer, _ = appender.admit(row, 5, 0)
        except InvalidArgument:
            verdicts.append(None)
            continue
        assert not plain or verdicts[0] is not None, "the short way takes what the rules refuse"
        stored = b"".join(appender.parts)
        found = read_batch(stored)
        assert not isinstance(found, Incomplete)
        assert found.region == region
        columns = unpack_columns(region)
        rows = [(e.type, e.payload, e.metadata, e[6]) for e in decode_page(stored, False, 0, 1 << 62)]
        assert rows == list(columns.rows())
        assert len(rows) == found.events == answer[5] - answer[4] + 1
        for kind, payload, metadata, raw in rows:
            assert (type(kind), type(payload), type(metadata), type(raw), len(raw)) == (str, bytes, bytes, bytes, 16)
            assert 0 < len(kind.encode()) <= 256
            assert 16 + len(kind.encode()) + len(payload) + len(metadata) <= limits.event_bytes_max
        verdicts.append(rows)


CORE = "tidelog_broker/core/"
TARGETS = {
    target.name: target
    for target in (
        Target("group", group, (CORE + "recovery.py", CORE + "format.py")),
        Target("batch", batch, ("tidelog/batch.py",)),
        Target("segment", segment, (CORE + "format.py",)),
        Target("mark", mark, (CORE + "format.py",)),
        Target("page", page, ("tidelog/wire.py",)),
        Target("published", published, ("tidelog/wire.py",)),
        Target("reply", reply, ("tidelog/wire.py", "tidelog/exchange.py", "tidelog/errors.py")),
        Target("request", request, (CORE + "requests.py", CORE + "unpack.py")),
        Target(
            "broker", broker,
            tuple(CORE + name + ".py" for name in (
                "broker", "requests", "unpack", "appender", "writes", "staged", "sessions", "cursors", "names", "peers", "pages",
            )),
        ),
        Target("known", known, tuple(CORE + name for name in ("replay.py", "sessions.py", "cursors.py", "names.py"))),
        Target("base", base, (CORE + "base.py",)),
        Target("eventfold", eventfold, ("tidelog_broker/eventfold.py",)),
        Target("events", events, (CORE + "appender.py", CORE + "unpack.py", "tidelog/wire.py", "tidelog/batch.py")),
    )
}  # fmt: skip
