"""Files that are read from their beginning to their end: a base, and a log of EventfoldDB, with what their readers may raise.

As in targets.py, the first byte of an input chooses what is put right before the reader sees the rest.
"""

from __future__ import annotations

import struct
from zlib import crc32

from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import (
    APPEND_BYTES_CEILING,
    APPEND_EVENTS_CEILING,
    EVENT_BYTES_CEILING,
    EVENT_FIXED_BYTES,
    INT_MAX,
    TYPE_BYTES_MAX,
)
from tidelog_broker.core.base import (
    CATEGORIES,
    CURSORS,
    HEADER_BYTES,
    SESSIONS,
    STREAMS,
    BaseReader,
    base_name,
    write_base,
)
from tidelog_broker.eventfold import ENVELOPE_MAGIC, FOOTER_MAGIC, VERSIONS, EventfoldReader
from tidelog_broker.source import SourceRefused

CHECKSUMS = 1
"""Bit of an input's first byte: checksums and lengths made right."""
APPENDS_MAX = 10_000
"""No input of some KiB holds more."""


def with_base_checksums(data: bytes) -> bytes:
    """The header's length and checksums, and those of the blocks as far as their lengths lead."""
    out = bytearray(data)
    at = HEADER_BYTES
    while at + 8 <= len(out):
        length = int.from_bytes(out[at : at + 4], "little")
        if length > len(out) - at - 8:
            length = len(out) - at - 8  # the last block ends where the file does
            out[at : at + 4] = length.to_bytes(4, "little")
        struct.pack_into("<I", out, at + 4, crc32(out[at + 8 : at + 8 + length]))
        at += 8 + length
    if len(out) >= HEADER_BYTES:
        struct.pack_into("<I", out, 12, crc32(out[HEADER_BYTES:]))
        struct.pack_into("<Q", out, 40, len(out) - HEADER_BYTES)
        struct.pack_into("<I", out, 60, crc32(out[:60]))
    return bytes(out)


def base(data: bytes) -> None:
    """A base → what it tells, or CorruptLog or InvalidHeader; what it tells packs to a base that tells the same."""
    how, data = data[:1], data[1:]
    if how and how[0] & CHECKSUMS:
        data = with_base_checksums(data)
    group = int.from_bytes(data[32:40], "little")
    try:
        found = BaseReader(base_name(group), lambda offset, count: data[offset : offset + count], len(data))
        kept, rows = list(found.kept()), list(found.rows())
    except (CorruptLog, InvalidHeader):
        return
    for append in kept:
        assert append.writes
        assert len(append.ids) % 16 == 0
        assert 0 <= append.number < found.base.number
        assert all(0 <= number <= INT_MAX for write in append.writes for number in write[1:4])
    order = (CATEGORIES, STREAMS, SESSIONS, CURSORS)
    names = [(order.index(kind), row[0]) for kind, row in rows]
    assert names == sorted(set(names))
    for kind, row in rows:
        numbers = {CATEGORIES: row[1:], STREAMS: row[1:3], SESSIONS: row[1:3], CURSORS: [row[1] or 0, row[-2]]}[kind]
        assert all(0 <= number <= INT_MAX for number in numbers)
        row[0].encode()
    parts: list[bytes] = []
    again = write_base(found.base, kept, rows, parts.append) + b"".join(parts)
    read = BaseReader(base_name(group), lambda offset, count: again[offset : offset + count], len(again))
    assert (read.base, list(read.kept()), list(read.rows())) == (found.base, kept, rows)


def with_eventfold_checksums(data: bytes) -> bytes:
    """Records and envelopes one behind the other, each checksum made right where its length leads."""
    out = bytearray(data)
    version = int.from_bytes(out[4:8], "little")
    at, begins = 8, -1
    while at + 4 <= len(out):
        if version > 1 and out[at : at + 4] == ENVELOPE_MAGIC:
            begins, at = at, at + 16
        elif version > 1 and out[at : at + 4] == FOOTER_MAGIC:
            if begins >= 0 and at + 8 <= len(out):
                struct.pack_into("<I", out, at + 4, crc32(out[begins:at]))
            at += 8
        else:
            length = int.from_bytes(out[at : at + 4], "little")
            if length < 8 or at + 4 + length > len(out):
                break
            struct.pack_into("<I", out, at + length, crc32(out[at + 4 : at + length]))
            at += 4 + length
    return bytes(out)


def eventfold(data: bytes) -> None:
    """A log of EventfoldDB → appends that can be kept, then perhaps a torn tail; or SourceRefused or InvalidHeader."""
    how, data = data[:1], data[1:]
    if how and how[0] & CHECKSUMS:
        data = with_eventfold_checksums(data)
    try:
        found = EventfoldReader(lambda offset, count: data[offset : offset + count], len(data))
    except InvalidHeader:
        return
    assert found.version in VERSIONS
    position = recorded_at = 0
    at = 7
    versions: dict[str, int] = {}
    try:
        for number, (offset, first_position, time, events) in enumerate(found.appends()):
            assert number < APPENDS_MAX
            assert at < offset < len(data)
            assert first_position == position
            assert recorded_at <= time <= INT_MAX
            assert 0 < len(events) <= APPEND_EVENTS_CEILING
            at, recorded_at = offset, time
            size = 0
            for stream, version, event_id, kind, metadata, payload in events:
                assert version == versions.get(stream, 0)
                assert (len(stream), len(event_id)) == (36, 16)
                assert 0 < len(kind.encode()) <= TYPE_BYTES_MAX
                mine = EVENT_FIXED_BYTES + len(kind.encode()) + len(metadata) + len(payload)
                assert mine <= EVENT_BYTES_CEILING
                size += mine
                versions[stream] = version + 1
            assert size <= APPEND_BYTES_CEILING
            position += len(events)
    except SourceRefused:
        return
    if found.torn is not None:
        assert at < found.torn.offset < len(data)
        assert found.torn.offset + found.torn.bytes == len(data)
