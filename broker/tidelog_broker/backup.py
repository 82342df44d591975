"""A backup file: a log up to a log point in one file, its bytes, and whether it is whole (FORMAT.md §7).

Owns the format. Promises: a file that was cut short or changed in any bit is refused, and so is one whose checksums are
right but which holds no whole log: every group is checked as a start would. Changes nothing; snapshot.py writes backups,
restore.py makes logs of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol
from zlib import crc32

from tidelog.errors import CorruptLog

from .core.base import BaseReader
from .core.format import SEGMENT_HEADER_BYTES, SEGMENT_NAME, VERSION, SegmentHeader, check_magic
from .core.recovery import Chain, Group, SegmentReader
from .disk import File
from .files import BASE_NAME

MAGIC, PART_MAGIC, END_MAGIC = b"TideBkp\0", b"TLBF", b"TLBE"
CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)

_HEADER = struct.Struct("<8sHHI16sQQQQ8sQQQ32s")
_PART = struct.Struct("<4sIQ")
_END = struct.Struct("<4sIQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
END_BYTES = _END.size + DIGEST_BYTES
PART_NAME_BYTES_MAX = 64


def new_digest() -> Any:
    """The digest of this format: blake2b of 32 bytes."""
    return blake2b(digest_size=DIGEST_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a backup is of: the log point, and the log around it. Times in microseconds, offsets and sizes in bytes."""

    parts: int
    log_id: bytes
    group: int
    ordinal: int
    offset: int
    next_position: int
    tag: bytes
    first_ordinal: int
    open_ordinal: int
    made_at: int
    since: bytes = NO_DIGEST
    """Digest of the backup file that has the segments from `first_ordinal` up to this file's first; zeros: none are missing."""

    def pack(self) -> bytes:
        body = _HEADER.pack(
            MAGIC, VERSION, 0, self.parts, self.log_id, self.group, self.ordinal, self.offset, self.next_position,
            self.tag, self.first_ordinal, self.open_ordinal, self.made_at, self.since,
        )  # fmt: skip
        return body + _CRC.pack(crc32(body))

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Header:
        """Raises InvalidHeader (no backup, or a newer one) or CorruptLog."""
        check_magic(data, MAGIC, name)
        body = data[: _HEADER.size]
        if data[_HEADER.size : HEADER_BYTES] != _CRC.pack(crc32(body)):
            raise damaged(name, 0, "checksum of its header")
        (_, _, _, parts, log_id, group, ordinal, offset, position, tag, first, open_, made_at, since) = _HEADER.unpack(
            body
        )
        return cls(
            parts=parts, log_id=log_id, group=group, ordinal=ordinal, offset=offset, next_position=position, tag=tag,
            first_ordinal=first, open_ordinal=open_, made_at=made_at, since=since,
        )  # fmt: skip


def damaged(name: str, offset: int, why: str) -> CorruptLog:
    """CorruptLog that says where in a backup file, and why."""
    return CorruptLog(f"the backup {name} is damaged at offset {offset}: {why}", name, offset)


def unfit(name: str, why: str) -> CorruptLog:
    """A whole backup file is not the one that is needed."""
    return CorruptLog(f"{name} does not fit: {why}", name, 0)


def pack_part(name: str, length: int) -> bytes:
    """What stands before the bytes of one of the log's files."""
    head = _PART.pack(PART_MAGIC, len(name), length) + name.encode()
    return head + _CRC.pack(crc32(head))


def pack_chunk(data: bytes) -> bytes:
    """A piece of a file and its CRC-32."""
    return data + _CRC.pack(crc32(data))


def pack_end(length: int) -> bytes:
    """The end of a backup file of `length` bytes, but for the digest of all bytes before that digest."""
    return _END.pack(END_MAGIC, 0, length)


class LogFile(Protocol):
    """A base or a segment: wholly, or as far as the log point."""

    name: str
    length: int

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes; fewer only at the end."""
        ...


class Part:
    """One of a log's files inside a backup file. What it reads has the right checksum, at every read."""

    def __init__(self, file: File, backup: str, name: str, start: int, length: int) -> None:
        self.name = name
        self.length = length
        self._file = file
        self._backup = backup
        self._start = start

    @property
    def stop(self) -> int:
        """The offset behind its last chunk in the backup file."""
        return self._start + self.length + _CRC.size * -(-self.length // CHUNK_BYTES)

    def chunk(self, number: int) -> bytes:
        """One chunk. Raises CorruptLog."""
        size = min(CHUNK_BYTES, self.length - number * CHUNK_BYTES)
        at = self._start + number * (CHUNK_BYTES + _CRC.size)
        data = self._file.read(at, size + _CRC.size)
        if len(data) < size + _CRC.size:
            raise damaged(self._backup, at, f"it ends inside {self.name}")
        if crc32(data[:size]) != _CRC.unpack_from(data, size)[0]:
            raise damaged(self._backup, at, f"checksum of a piece of {self.name}")
        return data[:size]

    def read(self, offset: int, count: int) -> bytes:
        stop = min(offset + count, self.length)
        if stop <= offset:
            return b""
        first = offset // CHUNK_BYTES
        chunks = b"".join(map(self.chunk, range(first, -(-stop // CHUNK_BYTES))))
        return chunks[offset - first * CHUNK_BYTES : stop - first * CHUNK_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A file whose every byte is as it was written; `judged` tells what the bytes are worth."""

    name: str
    header: Header
    parts: list[Part]
    digest: bytes
    """Digest of the file, by which another one names it in `since`."""


def read_backup(file: File) -> Backup:
    """Read a backup file from its first byte to its last and check it. Raises InvalidHeader or CorruptLog."""
    scan = _Scan(file)
    header = Header.unpack(scan.take(HEADER_BYTES, "its header"), file.name)
    parts = [scan.part() for _ in range(header.parts)]
    at = scan.at
    end = scan.take(_END.size, "its end")
    magic, _, length = _END.unpack(end)
    found = scan.digest.digest()
    digest = scan.take(DIGEST_BYTES, "its digest")
    if magic != END_MAGIC or length != scan.size or scan.at != scan.size:
        raise damaged(file.name, at, "its end is not where it should be")
    if found != digest:
        raise damaged(file.name, at, "its digest is not that of its bytes")
    return Backup(name=file.name, header=header, parts=parts, digest=digest)


class _Scan:
    """A backup file from front to back; nothing is believed before its checksum, and no length beyond the file's."""

    def __init__(self, file: File) -> None:
        self.size = file.size()
        self.at = 0
        self.digest = new_digest()
        self._file = file

    def take(self, count: int, what: str) -> bytes:
        data = self._file.read(self.at, count)
        if len(data) < count:
            # Its beginning may still tell that it is no backup at all.
            if not self.at and data[:8] != MAGIC[: len(data)]:
                check_magic(data, MAGIC, self._file.name)
            raise damaged(self._file.name, self.at, f"the file ends inside {what}")
        self.digest.update(data)
        self.at += count
        return data

    def part(self) -> Part:
        at = self.at
        head = self.take(_PART.size, "the beginning of a part")
        magic, name_bytes, length = _PART.unpack(head)
        if magic != PART_MAGIC or name_bytes > PART_NAME_BYTES_MAX or length > self.size:
            raise damaged(self._file.name, at, "here should be one of the log's files")
        name = self.take(name_bytes, "a file's name")
        if self.take(_CRC.size, "a file's name") != _CRC.pack(crc32(head + name)):
            raise damaged(self._file.name, at, "checksum of a file's name and length")
        part = Part(self._file, self._file.name, name.decode("ascii", "replace"), self.at, length)
        for number in range(-(-length // CHUNK_BYTES)):
            data = part.chunk(number)
            self.digest.update(data)
            self.digest.update(_CRC.pack(crc32(data)))
        self.at = part.stop
        return part


@dataclass(slots=True)
class Contents:
    """What a backup's files hold, checked. `digest`: of all stored batches' bytes in their order, groups left out, so equal
    for two logs that hold the same at the same log point."""

    segments: int = 0
    groups: int = 0
    batches: int = 0
    events: int = 0
    first_position: int = 0
    head: int = 0
    group: int = 0
    digest: str = ""
    last: SegmentHeader | None = None


class Tally:
    """Counts and digests groups as they come."""

    def __init__(self) -> None:
        self.contents = Contents()
        self._digest = new_digest()

    def take(self, group: Group) -> None:
        self._digest.update(group.body)
        self.contents.groups += 1
        self.contents.batches += len(group.rows)
        self.contents.events += sum(row.events for row in group.rows)

    def digest(self) -> bytes:
        return bytes(self._digest.digest())


def judged(header: Header, files: Sequence[LogFile], where: str, *, whole: bool = True) -> Contents:
    """Walk all groups of these files, in order, up to the log point that the header names.

    Not `whole`: what comes before the first segment is in an older backup, and is judged when the two are restored.
    Raises CorruptLog with segment and offset, or InvalidHeader (a newer format).
    """
    base = files[0] if files and BASE_NAME.match(files[0].name) else None
    segments = files if base is None else files[1:]
    ordinals = [int(name[1]) if (name := SEGMENT_NAME.match(file.name)) else 0 for file in segments]
    start = header.open_ordinal - len(ordinals)
    begins = header.first_ordinal == start if whole else 0 < header.first_ordinal <= start
    if ordinals != list(range(start, start + len(ordinals))) or not begins or not start:
        raise damaged(where, 0, "its files are not those of one log")
    chain = Chain() if base is None else _behind_base(base, header)
    tally = Tally()
    contents = tally.contents
    reader = None
    for file in segments:
        if reader is not None:
            reader.sealed_or_damage()
        block = SegmentHeader.unpack(file.read(0, SEGMENT_HEADER_BYTES), file.name)
        if block.log_id != header.log_id:
            raise damaged(where, 0, f"{file.name} belongs to another log")
        if reader is None:
            if block.ordinal != header.first_ordinal:
                chain = Chain(block.first_group - 1, block.previous_tag, block.first_position)
            contents.first_position = block.first_position
        reader = SegmentReader(block, file.read, file.length, chain)
        for group in reader.groups():
            tally.take(group)
        contents.last = block
    if reader is None:
        contents.first_position = chain.position
    elif (header.ordinal, header.offset) != (reader.header.ordinal, reader.end) or chain.group != header.group:
        raise reader.damage(f"group {header.group} was durable, the last good one is {chain.group}")
    if (chain.group, chain.tag, chain.position) != (header.group, header.tag, header.next_position):
        raise damaged(where, 0, f"its files end with group {chain.group}, not with group {header.group} as it says")
    contents.segments, contents.group, contents.head = len(segments), chain.group, chain.position
    contents.digest = tally.digest().hex()
    return contents


def _behind_base(file: LogFile, header: Header) -> Chain:
    """Where a log begins whose first segments a base tells about; checks all of it. Raises CorruptLog or InvalidHeader."""
    reader = BaseReader(file.name, file.read, file.length)
    for _ in reader.rows():
        pass
    base = reader.base
    if base.log_id != header.log_id or base.ordinal + 1 != header.first_ordinal:
        raise CorruptLog(f"{file.name} does not belong to the segments behind it", file.name, 0)
    return Chain(base.group, base.tag, base.head)
