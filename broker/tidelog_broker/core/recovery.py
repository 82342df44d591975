"""Torn tail or damage: what the bytes of a log prove. PURE: reads through the callable it is given, decides, does nothing.

The rule is spec §8 and DURABILITY.md: by the writer's invariant 1 not a byte of group N + 1 is written before the sync of
N returned, so whatever shows that a group > g + 1 was written shows that g + 1 was durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from zlib import adler32, crc32

from tidelog.batch import COLUMNS, CONTROL, CRC, DELETION, EVENTS, HAS_SESSION, HEADER, HEADER_BYTES
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import APPEND_EVENTS_CEILING, BATCH_BYTES_CEILING

from .format import (
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    SEAL_MAGIC,
    SEGMENT_HEADER_BYTES,
    ZERO_STEP_MAX,
    GroupHeader,
    Mark,
    SegmentHeader,
    authentic_header,
)

Read = Callable[[int, int], bytes]
"""(offset, count) → bytes of one segment; fewer at its end."""

CHUNK_BYTES = 4 << 20
CONTROL_SUBTYPES = 7
"""Subtypes of control batches that FORMAT.md §4 knows: 1 to this."""


class BatchRow(NamedTuple):
    """A batch's header as recovery hands it to the index; `at` is its place in the body, `region` that of its events."""

    at: int
    length: int
    kind: int
    flags: int
    layout: int
    append_index: int
    append_count: int
    events: int
    first_position: int
    first_version: int
    recorded_at: int
    signature: int
    stream: str
    region: int


@dataclass(slots=True)
class Chain:
    """Where the log stands behind its last good group."""

    group: int = 0
    tag: bytes = bytes(8)
    position: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A good group: its header, where its body lies, the body and its batches."""

    header: GroupHeader
    body_offset: int
    body: bytes
    rows: list[BatchRow]


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands behind the last good group of the open segment: at `offset`, its last non-zero byte before `stop`."""

    offset: int
    stop: int
    unfinished_roll: bool


class SegmentReader:
    """Walks one segment's groups; afterwards `offset` is T, the place behind the last good one, and `seal` its seal.

    `patient`: when the device fails, ask again for no more than is needed now. `since`: the chain stands behind a group of this
    segment that ends at this offset, not before its first.
    """

    def __init__(
        self,
        header: SegmentHeader,
        read: Read,
        size: int,
        chain: Chain,
        patient: bool = False,
        since: int | None = None,
    ) -> None:
        self.header = header
        self.chain = chain
        self.offset = SEGMENT_HEADER_BYTES
        self.end = SEGMENT_HEADER_BYTES
        self.seal: GroupHeader | None = None
        self._read = read
        self._patient = patient
        self._size = size
        self._buffer = b""
        self._buffer_at = 0
        if since is not None:
            self.end = since
            self.offset = header.aligned(since)
            return
        if header.first_group != chain.group + 1 or header.previous_tag != chain.tag:
            raise self.damage(
                f"it begins with group {header.first_group} behind tag {header.previous_tag.hex()}, expected group "
                f"{chain.group + 1} behind {chain.tag.hex()}",
                at=0,
            )
        if header.first_position != chain.position:
            raise self.damage(f"it begins at position {header.first_position}, expected {chain.position}", at=0)

    def groups(self) -> Iterator[Group]:
        """The good groups in order; ends at the first place that holds none."""
        while group := self._next():
            yield group

    def _next(self) -> Group | None:
        at = self.offset
        head = authentic_header(self._bytes(at, GROUP_HEADER_BYTES), 0, self.header.key, self.header.ordinal, at)
        if head is None:
            return None
        if head.seal:
            if head.number == self.chain.group and head.previous_tag == self.chain.tag:
                self.seal = head
            return None
        if (
            head.number != self.chain.group + 1
            or head.previous_tag != self.chain.tag
            or not 0 < head.body_bytes <= self.header.group_bytes_max - GROUP_HEADER_BYTES
            or at + GROUP_HEADER_BYTES + head.body_bytes > self._size
        ):
            return None
        body = self._bytes(at + GROUP_HEADER_BYTES, head.body_bytes)
        if adler32(body) != head.body_sum:
            return None
        rows, position = self._rows(head, body)
        self.chain.group, self.chain.tag, self.chain.position = head.number, head.tag, position
        self.end = at + GROUP_HEADER_BYTES + head.body_bytes
        self.offset = self.header.aligned(self.end)
        return Group(head, at + GROUP_HEADER_BYTES, body, rows)

    def _rows(self, head: GroupHeader, body: bytes) -> tuple[list[BatchRow], int]:
        """The batches of an authentic body. What is wrong here was written so: damage, never a torn tail."""
        if head.first_position != self.chain.position:
            raise self.damage(
                f"group {head.number} begins at position {head.first_position}, expected {self.chain.position}"
            )
        position, at, next_index, count_now = head.first_position, 0, 0, 0
        rows: list[BatchRow] = []
        view = memoryview(body)
        while at < len(body):
            if len(body) - at < HEADER_BYTES:
                raise self.damage(f"group {head.number}: {len(body) - at} bytes behind its last batch")
            (kind, flags, name_bytes, layout, length, index, count, events, region, first, version, time, signature) = (
                HEADER.unpack_from(body, at)
            )
            if length > min(BATCH_BYTES_CEILING, len(body) - at) or length < HEADER_BYTES + name_bytes + region + 4:
                raise self.damage(f"group {head.number}: a batch of {length} bytes does not fit")
            stop = at + length - 4
            if crc32(view[at:stop]) != CRC.unpack_from(body, stop)[0]:
                raise self.damage(f"group {head.number}: checksum of a batch")
            if index != next_index or index >= count or (index and count != count_now):
                raise self.damage(f"group {head.number}: an append is not whole (batch {index} of {count})")
            if kind == EVENTS:
                if first != position:
                    raise self.damage(f"group {head.number}: a batch at position {first}, expected {position}")
                if not 0 < events <= APPEND_EVENTS_CEILING or not name_bytes:
                    raise self.damage(f"group {head.number}: a batch of {events} events")
            elif kind != CONTROL or events or name_bytes or flags & HAS_SESSION:
                raise self.damage(f"group {head.number}: a batch of kind {kind}")
            if flags & ~(DELETION | HAS_SESSION) or not 0 < layout <= (COLUMNS if kind == EVENTS else CONTROL_SUBTYPES):
                raise InvalidHeader(
                    f"segment {self.header.name}: group {head.number} holds a batch of flags {flags}, layout {layout}: "
                    "this was written by a newer Tidelog"
                )
            name = body[at + HEADER_BYTES : at + HEADER_BYTES + name_bytes]
            try:
                stream = name.decode()
            except UnicodeDecodeError:
                raise self.damage(f"group {head.number}: a stream name that is not UTF-8") from None
            rows.append(
                BatchRow(
                    at, length, kind, flags, layout, index, count, events, first, version, time, signature, stream,
                    stop - region,
                )
            )  # fmt: skip
            position += events
            at += length
            next_index, count_now = (index + 1, count) if index + 1 < count else (0, 0)
        if next_index or len(rows) != head.batches:
            raise self.damage(f"group {head.number} holds {len(rows)} batches, its header says {head.batches}")
        return rows, position

    def _bytes(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`, fewer at the end of the file; read in large chunks."""
        start = offset - self._buffer_at
        if start < 0 or start + count > len(self._buffer):
            try:
                self._buffer = self._read(offset, max(count, CHUNK_BYTES))
            except OSError:
                if not self._patient:
                    raise
                # One bad sector must not hide what stands before it.
                self._buffer = self._read(offset, count)
            self._buffer_at, start = offset, 0
        return self._buffer[start : start + count]

    def damage(self, proof: str, at: int | None = None) -> CorruptLog:
        """What is wrong behind the last good group, at T or at another offset of this segment."""
        return damage(self.header.name, self.offset if at is None else at, self.chain, proof)

    def sealed_or_damage(self) -> None:
        """Raises CorruptLog unless the segment ended with its seal: a later segment exists."""
        if self.seal is None:
            raise self.damage("a later segment exists, but here stands neither a whole group nor the seal")

    def begins_as_marked(self, marks: list[Mark]) -> None:
        """Raises CorruptLog when a mark names this segment as open, but with another first position."""
        for mark in marks:
            if mark.open_ordinal == self.header.ordinal and mark.open_first_position != self.header.first_position:
                raise self.damage(
                    f"mark {mark.sequence} names it with first position {mark.open_first_position}: it is not the segment that "
                    "was there",
                    at=0,
                )

    def ends_as_marked(self, marks: list[Mark]) -> None:
        """Raises CorruptLog when a mark names the group just read, but at another place or before another head.

        A number is used again only when recovery cut that group, which no mark ever named: these are files of two histories.
        """
        for mark in marks:
            if mark.group == self.chain.group and (
                (mark.ordinal, mark.offset, mark.next_position) != (self.header.ordinal, self.end, self.chain.position)
            ):
                raise self.damage(
                    f"mark {mark.sequence} names group {mark.group} as ending at offset {mark.offset} of segment "
                    f"{mark.ordinal} before position {mark.next_position}, not here"
                )

    def tail(self, marks: list[Mark], groups_named: dict[str, int]) -> Tail:
        """The verdict about the open segment behind T: a Tail to cut, or CorruptLog with its proof.

        `groups_named`: what else (a base, a checkpoint) names a durable group, by file name.
        """
        g, offset = self.chain.group, self.offset
        for mark in marks:
            if mark.group > g:
                raise self.damage(f"mark {mark.sequence} names group {mark.group} as durable, the last good one is {g}")
            if mark.open_ordinal > self.header.ordinal:
                raise self.damage(f"mark {mark.sequence} names open segment {mark.open_ordinal}, which is missing")
        for name, number in groups_named.items():
            if number > g:
                raise self.damage(f"{name} names group {number} as durable, the last good one is {g}")
        window = 2 * self.header.group_bytes_max + ZERO_STEP_MAX
        for at, head in self._authentic(offset, min(self._size, offset + window)):
            if head.number >= (g + 1 if head.seal else g + 2):
                what = "seal" if head.seal else "group"
                raise self.damage(f"an authentic {what} header numbered {head.number} stands at offset {at}")
        stop = self._last_non_zero(offset)
        alone = self.seal is not None and stop <= offset + GROUP_HEADER_BYTES
        return Tail(offset, stop, unfinished_roll=alone)

    def _authentic(self, start: int, stop: int) -> Iterator[tuple[int, GroupHeader]]:
        """Every authentic header that begins in [start, stop)."""
        at = start
        while at < stop:
            data = self._read(at, min(CHUNK_BYTES, stop - at) + GROUP_HEADER_BYTES - 1)
            for magic in (GROUP_MAGIC, SEAL_MAGIC):
                place = data.find(magic)
                while place >= 0:
                    head = authentic_header(data, place, self.header.key, self.header.ordinal, at + place)
                    if head is not None:
                        yield at + place, head
                    place = data.find(magic, place + 1)
            at += CHUNK_BYTES

    def islands(self) -> Iterator[GroupHeader]:
        """Whole groups behind T, out of the chain's reach: what cutting there would take away."""
        for at, head in self._authentic(self.offset, self._size):
            if not head.seal and adler32(self._read(at + GROUP_HEADER_BYTES, head.body_bytes)) == head.body_sum:
                yield head

    def _last_non_zero(self, start: int) -> int:
        """The offset behind the last non-zero byte at or behind `start`; `start` if there is none."""
        at = self._size
        while at > start:
            low = max(start, at - CHUNK_BYTES)
            data = self._read(low, at - low).rstrip(b"\0")
            if data:
                return low + len(data)
            at = low
        return start


def damage(segment: str, offset: int, chain: Chain, proof: str) -> CorruptLog:
    """CorruptLog that says where (segment, offset, group, position) and why."""
    return CorruptLog(
        f"the log is damaged in segment {segment} at offset {offset}, behind group {chain.group} "
        f"(next position {chain.position}): {proof}. Nothing was changed.",
        segment,
        offset,
    )
