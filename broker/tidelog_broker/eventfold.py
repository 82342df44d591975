"""Logs of EventfoldDB, formats 1, 2 and 3 → appends. PURE: reads through the callable it is given, decides, does nothing.

| what | bytes, little-endian |
|---|---|
| file | `45 46 44 42`, u32 version; then appends |
| append, v1 | one record |
| append, v2 and v3 | `45 46 42 42`, u32 count, u64 first position; records; `45 46 42 46`, u32 CRC-32 of header and records |
| record | u32 length of what follows; u64 position; v3: u64 milliseconds; 16 stream id; u64 stream version; 16 event id; |
| | u16 + type; u32 + metadata; u32 + payload; u32 CRC-32 of everything between length and CRC |

Promises: nothing is skipped or changed on the way. Positions and stream versions are 0, 1, 2 … or it stops. The
file may end inside its last append, when what is there is that append's beginning: `torn` says so afterwards. Everything
else that is not as it should be is refused, with a verdict and an offset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from zlib import crc32

from tidelog.errors import InvalidHeader
from tidelog.limits import (
    APPEND_BYTES_CEILING,
    APPEND_EVENTS_CEILING,
    EVENT_BYTES_CEILING,
    EVENT_FIXED_BYTES,
    INT_MAX,
    TYPE_BYTES_MAX,
)

from .source import Append, Event, SourceRefused, Torn, Verdict

Read = Callable[[int, int], bytes]
"""(offset, count) → bytes of the file; fewer at its end."""

FILE_MAGIC, ENVELOPE_MAGIC, FOOTER_MAGIC = b"EFDB", b"EFBB", b"EFBF"
VERSIONS = (1, 2, 3)
FIRST_WITH_ENVELOPES, FIRST_WITH_TIMES = 2, 3

_FILE = struct.Struct("<4sI")
_ENVELOPE = struct.Struct("<4sIQ")
_FOOTER = struct.Struct("<4sI")
_FIXED = struct.Struct("<Q16sQ16sH")
_FIXED_WITH_TIME = struct.Struct("<QQ16sQ16sH")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CHUNK_BYTES = 4 << 20


class _FileEnds(Exception):
    """The file ends inside an append, and so far the append is right."""


class EventfoldReader:
    """Reads one file, once: `appends`, then `torn`."""

    kind = "EventfoldDB"

    def __init__(self, read: Read, size: int) -> None:
        """Raises InvalidHeader when it is none of EventfoldDB's files, or of an unknown version."""
        self._read = read
        self._size = size
        self._buffer = b""
        self._buffer_at = 0
        head = self._bytes(0, _FILE.size)
        if head[:4] != FILE_MAGIC[: len(head)] or not head:
            raise InvalidHeader(f"magic is {head[:4]!r}, not {FILE_MAGIC!r}: this is no log of EventfoldDB")
        if len(head) < _FILE.size:
            raise InvalidHeader(f"the file has {len(head)} bytes, less than a header with magic and version")
        self.version: int = _FILE.unpack(head)[1]
        if self.version not in VERSIONS:
            raise InvalidHeader(f"version {self.version} of EventfoldDB's format is unknown: 1, 2 and 3 can be read")
        self.has_times = self.version >= FIRST_WITH_TIMES
        self.torn: Torn | None = None
        self._fixed = _FIXED_WITH_TIME if self.has_times else _FIXED
        # A record's length without its type, metadata and payload: their three lengths (one is in _fixed) and the CRC are in it.
        self._least = self._fixed.size + 4 + 4 + 4
        self._most = self._least + EVENT_BYTES_CEILING - EVENT_FIXED_BYTES
        self._position = 0
        self._recorded_at = 0
        self._ms = 0
        self._versions: dict[bytes, int] = {}

    def appends(self) -> Iterator[Append]:
        """The whole appends in order. Raises SourceRefused."""
        at = _FILE.size
        read = self._envelope if self.version >= FIRST_WITH_ENVELOPES else self._lone_record
        while at < self._size:
            first_position = self._position
            try:
                events, stop = read(at)
            except _FileEnds:
                self.torn = Torn(at, self._size - at)
                return
            yield Append(at, first_position, self._recorded_at, events)
            at = stop

    # -- one append

    def _lone_record(self, at: int) -> tuple[list[Event], int]:
        event, stop = self._record(at)
        self._take_time(at)
        return [event], stop

    def _envelope(self, at: int) -> tuple[list[Event], int]:
        head = self._bytes(at, _ENVELOPE.size)
        if head[:4] != ENVELOPE_MAGIC[: len(head)]:
            raise SourceRefused(Verdict.WRONG_MAGIC, at, f"{head[:4]!r} stands where an append begins")
        if len(head) < _ENVELOPE.size:
            raise _FileEnds
        _, count, first_position = _ENVELOPE.unpack(head)
        if not count:
            raise SourceRefused(Verdict.EMPTY_ENVELOPE, at, "it says that it holds no event")
        self._check_position(first_position, at)
        events: list[Event] = []
        place, size, crc = at + _ENVELOPE.size, 0, crc32(head)
        for number in range(count):
            event, stop = self._record(place)
            events.append(event)
            size += stop - place - 4 - self._least + EVENT_FIXED_BYTES
            if number >= APPEND_EVENTS_CEILING or size > APPEND_BYTES_CEILING:
                raise SourceRefused(
                    Verdict.APPEND_TOO_LARGE,
                    at,
                    f"it has over {APPEND_EVENTS_CEILING} events or {APPEND_BYTES_CEILING} bytes of events",
                )
            crc = crc32(self._bytes(place, stop - place), crc)
            if not number:
                self._take_time(place)
            place = stop
        foot = self._bytes(place, _FOOTER.size)
        if foot[:4] != FOOTER_MAGIC[: len(foot)]:
            raise SourceRefused(
                Verdict.WRONG_MAGIC, place, f"{foot[:4]!r} stands where an append of {count} events ends"
            )
        if len(foot) < _FOOTER.size:
            raise _FileEnds
        if _FOOTER.unpack(foot)[1] != crc:
            raise SourceRefused(Verdict.WRONG_CHECKSUM, at, f"the append of {count} events is not as it was written")
        return events, place + _FOOTER.size

    def _take_time(self, at: int) -> None:
        """An append's time follows from its first record and never goes back."""
        if self._ms * 1000 > INT_MAX:
            raise SourceRefused(Verdict.WRONG_TIME, at, f"{self._ms} milliseconds are no time that can be kept")
        self._recorded_at = max(self._recorded_at, self._ms * 1000)

    # -- one record

    def _record(self, at: int) -> tuple[Event, int]:
        """The event at `at`, next in position and version, and the offset behind it."""
        raw = self._bytes(at, 4)
        if len(raw) < 4:
            raise _FileEnds
        length = _U32.unpack(raw)[0]
        stop = at + 4 + length
        if length < self._least or length > self._most or stop > self._size:
            self._judge_length(at, length)
            self._judge_beginning(at)
            raise _FileEnds
        body = self._bytes(at + 4, length)
        if crc32(body[:-4]) != _U32.unpack_from(body, length - 4)[0]:
            raise SourceRefused(Verdict.WRONG_CHECKSUM, at, "the record is not as it was written")
        if not self._adds_up(at, length):
            raise SourceRefused(Verdict.WRONG_LENGTH, at, "the record's parts are not as long as the record")
        ms = 0
        if self.has_times:
            position, ms, stream, version, event_id, type_bytes = _FIXED_WITH_TIME.unpack_from(body)
        else:
            position, stream, version, event_id, type_bytes = _FIXED.unpack_from(body)
        self._check_position(position, at)
        self._check_version(stream, version, at)
        place = self._fixed.size + type_bytes
        kind = self._type(body[self._fixed.size : place], at)
        payload_at = place + 4 + _U32.unpack_from(body, place)[0]
        self._position = position + 1
        self._versions[stream] = version + 1
        self._ms = ms
        return (
            uuid_text(stream), version, event_id, kind, body[place + 4 : payload_at], body[payload_at + 4 : length - 4]
        ), stop  # fmt: skip

    def _judge_length(self, at: int, length: int) -> None:
        """A record that is too short, too long, or longer than the rest of the file. Returns when only the file's end is why."""
        if length < self._least or not self._adds_up(at, length):
            raise SourceRefused(
                Verdict.WRONG_LENGTH, at, f"the record says {length} bytes, and its parts another number"
            )
        if length <= self._most:
            return
        if at + 4 + length > self._size:
            raise SourceRefused(Verdict.WRONG_LENGTH, at, f"the record says {length} bytes, more than there are")
        size = length - self._least + EVENT_FIXED_BYTES
        raise SourceRefused(Verdict.EVENT_TOO_LARGE, at, f"{size} bytes, an event has at most {EVENT_BYTES_CEILING}")

    def _adds_up(self, at: int, length: int) -> bool:
        """Whether the lengths inside a record, as far as the file shows them, make up its own."""
        end = at + length  # of its parts: the CRC follows
        place = at + 4 + self._fixed.size - 2
        for width in (2, 4, 4):
            raw = self._bytes(place, width)
            if len(raw) < width:
                return True
            place += width + int.from_bytes(raw, "little")
            if place > end:
                return False
        return place == end

    def _judge_beginning(self, at: int) -> None:
        """What there is of a record that the file does not hold whole: at most the largest event's bytes."""
        rest = self._bytes(at, self._size - at)
        if len(rest) >= 12:
            self._check_position(_U64.unpack_from(rest, 4)[0], at)
        if len(rest) >= 4 + self._fixed.size:
            fields = self._fixed.unpack_from(rest, 4)
            self._check_version(fields[-4], fields[-3], at)
        for place in range(1, len(rest) - self._least - 3):
            length = _U32.unpack_from(rest, place)[0]
            stop = place + 4 + length
            if length < self._least or stop > len(rest):
                continue
            # The position is looked at before the CRC: it keeps this linear whatever the bytes are.
            position = _U64.unpack_from(rest, place + 4)[0]
            if not self._position < position <= self._position + len(rest):
                continue
            if crc32(rest[place + 4 : stop - 4]) == _U32.unpack_from(rest, stop - 4)[0]:
                raise SourceRefused(
                    Verdict.WHOLE_RECORD_BEHIND, at, f"a record with position {position} stands at offset {at + place}"
                )

    def _check_position(self, position: int, at: int) -> None:
        if position != self._position:
            verdict = Verdict.REPEATED_POSITION if position < self._position else Verdict.POSITION_GAP
            raise SourceRefused(verdict, at, f"position {position} stands where {self._position} is due")

    def _check_version(self, stream: bytes, version: int, at: int) -> None:
        due = self._versions.get(stream, 0)
        if version != due:
            verdict = Verdict.REPEATED_VERSION if version < due else Verdict.VERSION_GAP
            raise SourceRefused(verdict, at, f"version {version} of {uuid_text(stream)} stands where {due} is due")

    def _type(self, raw: bytes, at: int) -> str:
        if not 1 <= len(raw) <= TYPE_BYTES_MAX:
            raise SourceRefused(
                Verdict.WRONG_TYPE, at, f"the event's type has {len(raw)} bytes, 1 to {TYPE_BYTES_MAX} can be kept"
            )
        try:
            kind = raw.decode()
        except UnicodeDecodeError:
            raise SourceRefused(Verdict.WRONG_TYPE, at, f"the event's type {raw!r} is not UTF-8") from None
        if kind[0] == "$":
            raise SourceRefused(Verdict.RESERVED_TYPE, at, f"{kind!r}: types that begin with $ are the broker's own")
        return kind

    def _bytes(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`, fewer at the end of the file; read in large chunks."""
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        start = offset - self._buffer_at
        if start < 0 or start + count > len(self._buffer):
            self._buffer = self._read(offset, max(count, _CHUNK_BYTES))
            self._buffer_at, start = offset, 0
        return self._buffer[start : start + count]


def uuid_text(raw: bytes) -> str:
    """16 bytes as the canonical 36 characters of a UUID."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
