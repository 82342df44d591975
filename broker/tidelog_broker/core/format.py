"""Records of the log on disk: bytes ↔ values. PURE. FORMAT.md §§2, 4, 5 have the bytes.

Headers are checked in full before anything in them is believed; a verdict is a value, damage that a caller must hear of
is raised.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from zlib import adler32, crc32

import msgpack
from tidelog.batch import CONTROL, HEADER, HEADER_BYTES
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import GROUP_BYTES_MAX

VERSION = 1
BLOCK = 4_096
SEGMENT_HEADER_BYTES = 4_096
ZERO_STEP_MAX = 16 << 20
NO_TAG = bytes(8)
SESSION, CURSOR, LEASE, TRUNCATE_LOG = 1, 2, 3, 4
"""Subtypes of control batches (FORMAT.md §4)."""

SEGMENT_MAGIC = b"TideSeg\0"
MARK_MAGIC = b"TideMrk\0"
GROUP_MAGIC = b"TLGR"
SEAL_MAGIC = b"TLSL"

_SEGMENT = struct.Struct("<8sHHI16sQQQ16s8sIIIIQQQ4s")
_GROUP = struct.Struct("<4sIQQQQII8s")
_MARK = struct.Struct("<8sHHI16sQQQQQQQ20s")
_U32 = struct.Struct("<I")
GROUP_HEADER_BYTES = _GROUP.size + 8
MARK_BYTES = _MARK.size + 4
MARKS_FILE_BYTES = 2 * BLOCK

SEGMENT_NAME = re.compile(r"(\d{10})-(\d{20})\Z")


def segment_name(ordinal: int, first_position: int) -> str:
    """The file name of a segment."""
    return f"{ordinal:010d}-{first_position:020d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What the first block of a segment says; sizes in bytes."""

    log_id: bytes
    ordinal: int
    first_position: int
    first_group: int
    key: bytes
    previous_tag: bytes
    group_bytes_max: int
    zero_step: int
    align: int
    segment_bytes: int

    @property
    def name(self) -> str:
        return segment_name(self.ordinal, self.first_position)

    def pack(self) -> bytes:
        """The header block, padded to 4,096 bytes."""
        body = _SEGMENT.pack(
            SEGMENT_MAGIC, VERSION, 1, _SEGMENT.size + 4, self.log_id, self.ordinal, self.first_position,
            self.first_group, self.key, self.previous_tag, self.group_bytes_max, self.zero_step, self.align, 0,
            self.segment_bytes, 0, 0, bytes(4),
        )  # fmt: skip
        return (body + _U32.pack(crc32(body))).ljust(SEGMENT_HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, block: bytes, name: str) -> SegmentHeader:
        """The header in a segment's first block.

        Raises InvalidHeader (magic or version are not ours) or CorruptLog (ours, but damaged or misplaced).
        """
        if len(block) < SEGMENT_HEADER_BYTES:
            raise CorruptLog(f"segment {name} has {len(block)} bytes, less than a header", name, 0)
        check_magic(block, SEGMENT_MAGIC, name)
        body, crc = block[: _SEGMENT.size], block[_SEGMENT.size : _SEGMENT.size + 4]
        if _U32.pack(crc32(body)) != crc:
            raise CorruptLog(f"segment {name}: checksum of its header", name, 0)
        (_, _, kind, _, log_id, ordinal, position, group, key, tag, group_max, step, align, _, size, _, _, _) = (
            _SEGMENT.unpack(body)
        )
        if kind != 1:
            raise InvalidHeader(f"segment {name} is of kind {kind}, which this version does not read")
        if not (GROUP_HEADER_BYTES < group_max <= GROUP_BYTES_MAX and 0 < step <= ZERO_STEP_MAX and 0 < align <= BLOCK):
            raise CorruptLog(f"segment {name}: sizes in its header are impossible", name, 0)
        header = cls(
            log_id=log_id, ordinal=ordinal, first_position=position, first_group=group, key=key, previous_tag=tag,
            group_bytes_max=group_max, zero_step=step, align=align, segment_bytes=size,
        )  # fmt: skip
        if header.name != name:
            raise CorruptLog(f"segment {name} holds the header of {header.name}", name, 0)
        return header

    def aligned(self, offset: int) -> int:
        """Where a record may begin at or behind `offset`."""
        return -(-offset // self.align) * self.align


def check_magic(data: bytes, magic: bytes, name: str) -> None:
    """Raises InvalidHeader unless `data` begins with the magic and version 1."""
    if data[:8] != magic:
        raise InvalidHeader(f"{name}: magic is {data[:8]!r}, not {magic!r}: this is no file of a Tidelog log")
    version = int.from_bytes(data[8:10], "little")
    if version > VERSION:
        raise InvalidHeader(f"{name}: format version {version} is newer than {VERSION}, the newest this Tidelog reads")
    if version < VERSION:
        raise InvalidHeader(f"{name}: format version {version} is older than {VERSION}: run `tidelog migrate`")


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """A group record's header, or a seal's; `tag` is its own."""

    seal: bool
    body_bytes: int
    number: int
    ordinal: int
    offset: int
    first_position: int
    batches: int
    body_sum: int
    previous_tag: bytes
    tag: bytes


def pack_group_header(
    key: bytes, body: bytes, number: int, ordinal: int, offset: int, position: int, batches: int, previous_tag: bytes
) -> bytes:
    """The 64 bytes before a group's body; the last 8 are its tag."""
    head = _GROUP.pack(
        GROUP_MAGIC, len(body), number, ordinal, offset, position, batches, adler32(body), previous_tag
    )  # fmt: skip
    return head + tag_of(key, head)


def pack_seal(key: bytes, number: int, ordinal: int, offset: int, position: int, previous_tag: bytes) -> bytes:
    """The 64 bytes that end a sealed segment."""
    head = _GROUP.pack(SEAL_MAGIC, 0, number, ordinal, offset, position, 0, 0, previous_tag)
    return head + tag_of(key, head)


def tag_of(key: bytes, head: bytes) -> bytes:
    """The keyed tag: 8 bytes of blake2b. A salted CRC would not do: it is linear, one seen tag forges any header."""
    return blake2b(head, key=key, digest_size=8).digest()


def authentic_header(data: bytes, at: int, key: bytes, ordinal: int, offset: int) -> GroupHeader | None:
    """The group header or seal that was written for just this place, or None.

    `at` is where to look in `data`, `offset` the same place in the file. A copy of a header that stands elsewhere (in a
    payload that a client read from a page, in an older life of the file) has another place in it and is none.
    """
    if len(data) - at < GROUP_HEADER_BYTES:
        return None
    magic, size, number, its_ordinal, its_offset, position, batches, crc, previous = _GROUP.unpack_from(data, at)
    if its_offset != offset or its_ordinal != ordinal or magic not in (GROUP_MAGIC, SEAL_MAGIC):
        return None
    tag = bytes(data[at + _GROUP.size : at + GROUP_HEADER_BYTES])
    if tag_of(key, bytes(data[at : at + _GROUP.size])) != tag:
        return None
    return GroupHeader(
        magic == SEAL_MAGIC, size, number, its_ordinal, its_offset, position, batches, crc, previous, tag
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A durable log point: (group, segment, offset behind the group), the head there, and the open segment."""

    log_id: bytes
    sequence: int
    group: int
    ordinal: int
    offset: int
    next_position: int
    open_ordinal: int
    open_first_position: int
    clean: bool = False

    def pack(self) -> bytes:
        body = _MARK.pack(
            MARK_MAGIC, VERSION, int(self.clean), 0, self.log_id, self.sequence, self.group, self.ordinal, self.offset,
            self.next_position, self.open_ordinal, self.open_first_position, bytes(20),
        )  # fmt: skip
        return body + _U32.pack(crc32(body))

    @classmethod
    def unpack(cls, data: bytes) -> Mark | None:
        """The mark in a slot, or None when the slot is damaged. Raises InvalidHeader for a good slot of a newer version."""
        body, crc = data[: _MARK.size], data[_MARK.size : MARK_BYTES]
        if len(crc) < 4 or body[:8] != MARK_MAGIC or _U32.pack(crc32(body)) != crc:
            return None
        check_magic(body, MARK_MAGIC, "marks")
        _, _, flags, _, log_id, sequence, group, ordinal, offset, position, open_, first, _ = _MARK.unpack(body)
        return cls(
            log_id=log_id, sequence=sequence, group=group, ordinal=ordinal, offset=offset, next_position=position,
            open_ordinal=open_, open_first_position=first, clean=bool(flags & 1),
        )  # fmt: skip


def pack_control(
    subtype: int, body: list[Any], recorded_at: int, index: int = 0, count: int = 1
) -> tuple[bytes, bytes, bytes]:
    """A control batch (FORMAT.md §4): header, body, checksum."""
    region: bytes = msgpack.packb(body)
    length = HEADER_BYTES + len(region) + 4
    head = HEADER.pack(CONTROL, 0, 0, subtype, length, index, count, 0, len(region), 0, 0, recorded_at, 0)
    return head, region, _U32.pack(crc32(region, crc32(head)))
