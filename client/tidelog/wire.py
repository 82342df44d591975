"""Frames ↔ messages (PROTOCOL.md). PURE: no I/O, no clock, no threads.

Requests are packed once, alone, and joined behind an array header when they are sent, so that a message costs one
frame however many requests it carries. Pages are decoded column by column, because a Python frame per event would be
most of a reader's time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from zlib import crc32

import msgpack

from .batch import (
    COLUMNS,
    CONTROL,
    EVENTS,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    HAS_SESSION,
    HEADER,
    HEADER_BYTES,
    PADDING_BYTE,
    id_splitter,
    pack_columns,
)
from .errors import AppendTooLarge, CorruptLog, InvalidArgument, ProtocolMismatch
from .limits import (
    APPEND_BYTES_CEILING,
    APPEND_BYTES_MAX,
    APPEND_EVENTS_CEILING,
    APPEND_EVENTS_MAX,
    BATCH_BYTES_CEILING,
    EVENT_BYTES_MAX,
    EVENT_FIXED_BYTES,
    ID_WINDOW_EVENTS,
    IN_FLIGHT_MAX,
    INT_MAX,
    PAGE_BYTES_MAX,
)
from .messages import ANY, EXISTS, NO_STREAM, Event, Expected, Recorded, make_recorded

if TYPE_CHECKING:
    from .ids import IdPool

PROTOCOL: Final = 1
HELLO, PING, APPEND, READ, STREAM_INFO, LIST_STREAMS, HEAD, POSITION_AT, INFO, WAIT_DURABLE, HEALTH = range(1, 12)
READ_CHECKED, VERIFY, CHECKPOINT, TRUNCATE = 12, 13, 14, 15
OPEN_SESSION, COMMIT_CURSOR, LEASE, CURSOR_INFO, LIST_CURSORS = 16, 17, 18, 19, 20
WRITTEN: Final = frozenset((APPEND, TRUNCATE, OPEN_SESSION, COMMIT_CURSOR, LEASE))
"""What goes into the log: sent without an answer, it may have been applied. All of them may be sent again."""
ACQUIRE, RELEASE, BREAK = 0, 1, 2
WITHOUT_DEADLINE: Final = frozenset((PING, INFO, HEALTH))
EVERYTHING, CATEGORY, STREAM = 0, 1, 2
DUPLICATE_FLAG, DURABLE_FLAG = 1, 2

_packer = msgpack.Packer()
pack = _packer.pack
"""One packer for all: packb() makes a new one, with its buffer, at each call. It never runs Python code on builtins,
so threads can't meet inside it."""


class Limits(NamedTuple):
    """What the broker takes at present; bytes and counts."""

    event_bytes: int = EVENT_BYTES_MAX
    append_events: int = APPEND_EVENTS_MAX
    append_bytes: int = APPEND_BYTES_MAX
    page_bytes: int = PAGE_BYTES_MAX
    in_flight: int = IN_FLIGHT_MAX
    id_window_events: int = ID_WINDOW_EVENTS


class Hello(NamedTuple):
    """The broker's answer to HELLO."""

    protocol: int
    log_id: bytes
    boot_id: bytes
    generation: int
    head: int
    first_available: int
    limits: Limits
    endpoints: tuple[tuple[str, str, str], ...]
    heartbeat_ms: int
    version: str


def read_hello(reply: tuple[Any, ...]) -> Hello:
    """A HELLO reply with code 0 → Hello. Raises ProtocolMismatch when its shape is another's."""
    try:
        _, _, protocol, log_id, boot_id, generation, head, first, limits, endpoints, heartbeat_ms, version = reply[:12]
        rows = tuple((str(row[0]), str(row[1]), str(row[2])) for row in endpoints)
        hello = Hello(
            protocol, log_id, boot_id, generation, head, first, Limits(*limits[:6]), rows, heartbeat_ms, version
        )
        numbers = (generation, head, first, heartbeat_ms, *hello.limits)
        fits = (
            protocol == PROTOCOL
            and len(limits) >= 6
            and len(log_id) == len(boot_id) == 16
            and all(type(n) is int for n in numbers)
        )
    except (ValueError, TypeError, IndexError) as error:
        raise ProtocolMismatch(f"the answer to HELLO can't be read: {error}") from None
    if not fits:
        raise ProtocolMismatch(f"the broker speaks protocol {protocol!r}, this client {PROTOCOL}", protocol)
    return hello


def choose_endpoints(own: str, rows: tuple[tuple[str, str, str], ...]) -> tuple[str, str, str]:
    """The row for a client that reached the broker at `own`: (request, publishing, health) endpoint.

    Its own row, else one of the same transport; over tcp only that row's ports count, the host is the one we know.
    Raises ProtocolMismatch when no row fits.
    """
    for row in rows:
        if row[0] == own:
            return row
    transport = own.partition("://")[0]
    for row in rows:
        if row[0].partition("://")[0] != transport:
            continue
        if transport != "tcp":
            return own, row[1], row[2]
        host = own.rpartition(":")[0]
        return own, f"{host}:{row[1].rpartition(':')[2]}", f"{host}:{row[2].rpartition(':')[2]}"
    raise ProtocolMismatch(f"the broker names no publishing endpoint for {own}")


def array_header(count: int) -> bytes:
    """The msgpack header of an array of `count` items (at most 65,535)."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def join_requests(requests: list[bytes]) -> bytes:
    """Packed requests → one message frame."""
    return b"".join((array_header(len(requests)), *requests))


def read_replies(frame: bytes) -> tuple[tuple[Any, ...], ...]:
    """A reply frame → its replies, each (request id, code, …). Raises ProtocolMismatch on anything else."""
    try:
        replies = msgpack.unpackb(frame, use_list=False)
    except Exception as error:  # msgpack raises a dozen kinds on foreign bytes
        raise ProtocolMismatch(f"a reply can't be read: {type(error).__name__}") from None
    if type(replies) is not tuple or set(map(type, replies)) - {tuple} or min(map(len, replies), default=2) < 2:
        raise ProtocolMismatch("a reply message is not an array of replies")
    return replies


# Values at the edge


def stream_name(name: object) -> str:
    """A str or uuid.UUID → the stream's name. Raises InvalidArgument."""
    if isinstance(name, str):
        return str(name)
    from uuid import UUID

    if isinstance(name, UUID):
        return str(name)
    raise InvalidArgument(f"a stream is named by a str or a uuid.UUID, not by {type(name).__name__}")


def expected_wire(expected: object) -> int | bool | None:
    """ANY, NO_STREAM, EXISTS or a version → the wire's word. Raises InvalidArgument."""
    if expected is ANY:
        return None
    if type(expected) is int and 0 <= expected <= INT_MAX:
        return expected
    if isinstance(expected, Expected):
        return expected is EXISTS if expected in (EXISTS, NO_STREAM) else None
    raise InvalidArgument("an expected version is ANY, NO_STREAM, EXISTS or an integer from 0 to 2^63 - 1")


def bound(value: object, what: str) -> int:
    """A position, version, count or time → itself. Raises InvalidArgument for what is no integer in [0, 2^63)."""
    if type(value) is not int or not 0 <= value <= INT_MAX:
        raise InvalidArgument(f"{what} is an integer from 0 to 2^63 - 1, not {str(value)[:40]}")
    return value


def pack_event(event: Event, ids: IdPool) -> bytes:
    """One event → an events region of one."""
    try:
        kind, payload, metadata, given = event.type, event.payload, event.metadata, event.id
    except AttributeError:
        raise InvalidArgument(f"an event is an Event, not {type(event).__name__}") from None
    if given is not None or type(kind) is not str or type(payload) is not bytes or type(metadata) is not bytes:
        kind, payload, metadata = _text(kind), _octets(payload, "payload"), _octets(metadata, "metadata")
    try:
        raw = ids.one() if given is None else _raw_id(given, ids)
        return pack((raw, kind, (metadata,) if metadata else None, (payload,)))  # type: ignore[no-any-return]
    except ValueError as error:
        raise InvalidArgument(f"an event type is valid Unicode: {error}") from None


def pack_events(events: Event | Iterable[Event], ids: IdPool) -> bytes:
    """Events → the events region (FORMAT.md §3.1); ids are made where an event has none.

    Raises InvalidArgument (no events, or values of the wrong type) and AppendTooLarge (over the fixed ceilings, which
    no setting of a broker can lift; its own limits are the broker's to check).
    """
    try:
        if isinstance(events, Event):
            events = (events,)
        events = events if type(events) is list else list(events)
        if len(events) == 1 and type(events[0]) is Event:
            return pack_event(events[0], ids)
        types: list[Any] = [event.type for event in events]
        payloads: list[Any] = [event.payload for event in events]
        metadata: list[Any] = [event.metadata for event in events]
        given: list[Any] = [event.id for event in events]
    except (AttributeError, TypeError):
        raise InvalidArgument("events are an Event or an iterable of Event") from None
    count = len(events)
    if not count:
        raise InvalidArgument("an append has at least one event")
    if count > APPEND_EVENTS_CEILING:
        raise AppendTooLarge(f"{count} events in one append", count, APPEND_EVENTS_CEILING)
    if set(map(type, payloads)) != {bytes}:
        payloads = [_octets(value, "payload") for value in payloads]
    if any(metadata) and set(map(type, metadata)) != {bytes}:
        metadata = [_octets(value, "metadata") for value in metadata]
    if set(map(type, types)) != {str}:
        types = [_text(value) for value in types]
    column = ids.many(count) if given.count(None) == count else b"".join(_raw_id(value, ids) for value in given)
    try:
        region = pack_columns(column, types, metadata, payloads)
    except ValueError as error:
        raise InvalidArgument(f"an event type is valid Unicode: {error}") from None
    if len(region) > APPEND_BYTES_CEILING:
        size = sum(map(len, payloads)) + sum(map(len, metadata)) + EVENT_FIXED_BYTES * count
        size += sum(len(value.encode()) for value in types)
        if size > APPEND_BYTES_CEILING:
            raise AppendTooLarge(f"{size} bytes in one append", size, APPEND_BYTES_CEILING)
    return region


def _octets(value: object, what: str) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise InvalidArgument(f"{what} is bytes, not {type(value).__name__}")


def _text(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    raise InvalidArgument(f"an event type is a str, not {type(value).__name__}")


def _raw_id(value: Any, ids: IdPool) -> bytes:
    if value is None:
        return ids.one()
    from uuid import UUID

    if isinstance(value, UUID):
        return value.bytes
    raise InvalidArgument(f"an event id is a uuid.UUID, not {type(value).__name__}")


# Stored bytes

CRC_RESIDUE: Final = 0x2144DF1C
"""CRC-32 of any bytes with their own little-endian CRC-32 behind them: one call checks a batch."""


class Cover(NamedTuple):
    """What the header of a page says about its bytes: `batches` of events (None: it does not say), rising, each reaching into
    [start, stop) of the page's unit, and all of one stream or category. Zeros where a batch was look like padding, and a batch
    that was written astray has the right checksum: only this tells."""

    batches: int | None
    start: int
    stop: int
    scope: int
    name: bytes


ANYTHING: Final = Cover(None, 0, INT_MAX + 1, EVERYTHING, b"")


def decode_page(
    data: bytes,
    by_version: bool,
    start: int,
    stop: int,
    types: frozenset[str] | None = None,
    signature: int = 0,
    cover: Cover = ANYTHING,
) -> list[Recorded]:
    """Stored bytes → the events in [start, stop), in order (a page's unit: versions if `by_version`, else positions).

    Group headers, control batches and padding are skipped. With `types`, exactly those are left; `signature` is theirs.
    Raises CorruptLog (segment "", offset in `data`) on a wrong checksum, an unknown record, bytes that end early, and on batches
    that are not those of `cover`.
    """
    events: list[Recorded] = []
    names: dict[bytes, str] = {}
    at, size, met, edge = 0, len(data), 0, 0
    promised, first, behind, scope, owner = cover
    if scope == CATEGORY:
        owner += b"/"
    view = memoryview(data)
    unpack = HEADER.unpack_from
    while at < size:
        kind = data[at]
        if kind == EVENTS:
            if size - at < HEADER_BYTES:
                raise CorruptLog(f"batch at offset {at}: it is cut off", "", at)
            header = unpack(data, at)
            length, count = header[4], header[7]
            end = at + length
            if not HEADER_BYTES + 4 < length <= BATCH_BYTES_CEILING or crc32(view[at:end]) != CRC_RESIDUE:
                raise CorruptLog(f"batch at offset {at}: checksum or length", "", at)
            place = header[10] if by_version else header[9]
            if place < edge or place >= behind or place + count <= first:
                raise CorruptLog(f"batch at offset {at}: {place} does not belong there", "", at)
            if scope:
                fits = header[2] == len(owner) if scope == STREAM else header[2] >= len(owner)
                if not fits or not data.startswith(owner, at + HEADER_BYTES):
                    raise CorruptLog(f"batch at offset {at}: it is of another stream", "", at)
            met += 1
            edge = place + count
            if types is not None and not header[12] & signature:
                if promised is not None:
                    raise CorruptLog(f"batch at offset {at}: it holds no event of these types", "", at)
            elif place < stop and edge > start:
                _decode_batch(view, data, at, header, events, names, by_version, start, stop, types)
            at = end
        elif data.startswith(GROUP_MAGIC, at):
            at += GROUP_HEADER_BYTES
        elif kind == CONTROL:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            if length < HEADER_BYTES or crc32(view[at : at + length]) != CRC_RESIDUE:
                raise CorruptLog(f"control batch at offset {at}: checksum or length", "", at)
            at += length
        elif kind == PADDING_BYTE:
            at = size - len(data[at:].lstrip(b"\0"))
        else:
            raise CorruptLog(f"no record begins at offset {at}", "", at)
    if at > size:
        raise CorruptLog("stored bytes end inside a record", "", size)
    if promised is not None and met != promised:
        raise CorruptLog(f"{met} batches stand where {promised} should", "", 0)
    return events


def _decode_batch(
    view: memoryview, data: bytes, at: int, header: tuple[int, ...], events: list[Recorded], names: dict[bytes, str],
    by_version: bool, start: int, stop: int, types: frozenset[str] | None,
) -> None:  # fmt: skip
    """Decode the batch at `at`, its checksum right, onto `events`."""
    _, flags, name_bytes, layout, length, _, _, count, region_bytes, position, version, time, _ = header
    end = at + length - 4
    name = at + HEADER_BYTES
    place = version if by_version else position
    try:
        region = end - region_bytes
        if layout != COLUMNS or region < name + name_bytes or (not flags & HAS_SESSION and region > name + name_bytes):
            raise CorruptLog(f"batch at offset {at}: its parts do not fit", "", at)
        raw = data[name : name + name_bytes]
        stream = names.get(raw)
        if stream is None:
            stream = names[raw] = raw.decode()
        ids, kinds, metadata, payloads = msgpack.unpackb(view[region:end], use_list=False, object_pairs_hook=_no_maps)
        if (
            len(payloads) != count
            or len(ids) != 16 * count
            or (type(kinds) is not str and len(kinds) != count)
            or (metadata is not None and len(metadata) != count)
        ):
            raise CorruptLog(f"batch at offset {at}: its columns do not have {count} rows", "", at)
        if count == 1:
            kind = kinds if type(kinds) is str else kinds[0]
            if types is None or kind in types:
                extra = b"" if metadata is None else metadata[0]
                events.append(make_recorded((position, stream, version, kind, payloads[0], extra, ids, time)))
            return
        rows = map(
            make_recorded,
            zip(
                range(position, position + count),
                repeat(stream),
                range(version, version + count),
                repeat(kinds) if type(kinds) is str else kinds,
                payloads,
                repeat(b"") if metadata is None else metadata,
                id_splitter(count).unpack(ids),
                repeat(time),
            ),
        )
    except (ValueError, TypeError, struct.error, IndexError, msgpack.UnpackException) as error:
        raise CorruptLog(f"batch at offset {at}: {error}", "", at) from None
    if place >= start and place + count <= stop:
        made = rows if types is None else [row for row in rows if row[3] in types]
    else:
        cut = list(rows)[max(start - place, 0) : stop - place]
        made = cut if types is None else [row for row in cut if row[3] in types]
    events.extend(made)


def _no_maps(pairs: object) -> NoReturn:
    """A map has a length and takes an index, but it is no column."""
    raise ValueError("a map in an events region")


PUBLISHED = struct.Struct("<16sQQQQII")
BYTES_FOLLOW, STOPPING = 1, 2


class Published(NamedTuple):
    """The fixed part of a published message; `start` and `stop` in the topic's unit, `head` a position."""

    log_id: bytes
    start: int
    stop: int
    head: int
    generation: int
    flags: int


def read_published(body: bytes) -> Published:
    """A published body's first 56 bytes; the stored bytes, if flagged, follow. Raises ProtocolMismatch."""
    if len(body) < PUBLISHED.size:
        raise ProtocolMismatch("a published message is too short")
    return Published(*PUBLISHED.unpack_from(body)[:6])


def topic(scope: int, name: str) -> bytes:
    """The publishing topic of what is read."""
    if scope == EVERYTHING:
        return b"A"
    return (b"C" if scope == CATEGORY else b"S") + name.encode() + b"\0"
