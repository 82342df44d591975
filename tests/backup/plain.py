"""Backup files taken apart and put together from FORMAT.md §7.1 alone, and small logs to make backups of."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

from support.builders import Writer
from tidelog_broker.backup import Backup, Contents, read_backup
from tidelog_broker.core.base import STREAMS, Base, base_name, write_base
from tidelog_broker.core.format import SegmentHeader
from tidelog_broker.disk import Disk, File, RealDisk
from tidelog_broker.log import Log, LogSettings
from tidelog_broker.snapshot import Snapshot, take, write_backup

SMALL = LogSettings(segment_bytes=8_192, group_bytes_max=1 << 16, zero_step=4_096, prepare_ahead=4_096)
HEADER = struct.Struct("<8sHHI16sQQQQ8sQQQ32s")
MADE_AT = 1_700_000_000_000_000


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32(data))


@dataclass(frozen=True, slots=True)
class Plain:
    """The values of a backup file. `fields`: those of the header, but for magic, version, reserved and count of parts."""

    fields: tuple[bytes | int, ...]
    parts: tuple[tuple[str, bytes], ...]

    def pack(self) -> bytes:
        """The file, with every checksum right."""
        data = with_crc(HEADER.pack(b"TideBkp\0", 1, 0, len(self.parts), *self.fields))
        for name, held in self.parts:
            data += with_crc(struct.pack("<4sIQ", b"TLBF", len(name), len(held)) + name.encode())
            for at in range(0, len(held), 1 << 20):
                data += with_crc(held[at : at + (1 << 20)])
        data += struct.pack("<4sIQ", b"TLBE", 0, len(data) + 16 + 32)
        return data + blake2b(data, digest_size=32).digest()

    def field(self, number: int, value: bytes | int) -> Plain:
        return replace(self, fields=(*self.fields[:number], value, *self.fields[number + 1 :]))


LOG_ID, GROUP, ORDINAL, OFFSET, POSITION, TAG, FIRST, OPEN, MADE, SINCE = range(10)


def unpack(data: bytes) -> Plain:
    """Take a good backup file apart."""
    magic, version, reserved, count, *fields = HEADER.unpack_from(data)
    assert (magic, version, reserved) == (b"TideBkp\0", 1, 0)
    at = HEADER.size + 4
    parts = []
    for _ in range(count):
        magic, name_bytes, length = struct.unpack_from("<4sIQ", data, at)
        assert magic == b"TLBF"
        at += 16
        name = data[at : at + name_bytes].decode()
        at += name_bytes + 4
        held = b""
        while len(held) < length:
            piece = min(1 << 20, length - len(held))
            held += data[at : at + piece]
            at += piece + 4
        parts.append((name, held))
    return Plain(tuple(fields), tuple(parts))


class Place:
    """A log that is written, and a folder of backups beside it."""

    def __init__(self, path: Path, settings: LogSettings = SMALL, name: str = "log") -> None:
        self.path = path
        self.data = path / name
        self.data.mkdir(exist_ok=True)
        self.folder = RealDisk(path)
        self.disk = RealDisk(self.data)
        self.log = Log.open(self.disk, settings, os.urandom)
        self.writer = Writer()
        self.bodies: list[bytes] = []
        self._read: list[File] = []

    def append(self, groups: int, size: int = 96) -> None:
        for _ in range(groups):
            streams = (f"a/{len(self.bodies) % 3}", "b")
            parts = [(stream, [self.writer.payload(size)] * 2) for stream in streams]
            self.bodies.append(self.writer.commit(self.log, parts))

    def snapshot(self, older: Backup | None = None, group: int | None = None) -> Snapshot:
        durable = self.log.group if group is None else group
        return take(self.disk, lambda: (self.log.log_id, durable), MADE_AT, older)

    def backup(
        self, name: str, older: Backup | None = None, group: int | None = None, folder: Disk | None = None
    ) -> Contents:
        snapshot = self.snapshot(older, group)
        try:
            return write_backup(folder or self.folder, name, snapshot)[0]
        finally:
            snapshot.close()

    def read(self, name: str) -> Backup:
        file = self.folder.open(name)
        try:
            backup = read_backup(file)
        except BaseException:
            file.close()
            raise
        self._read.append(file)
        return backup

    def write(self, name: str, data: bytes) -> Backup:
        (self.path / name).write_bytes(data)
        return self.read(name)

    def digest(self, groups: int) -> str:
        """Of the first groups' batches, from what was appended."""
        return blake2b(b"".join(self.bodies[:groups]), digest_size=32).hexdigest()

    def close(self) -> None:
        for file in self._read:
            file.close()
        self.log.abandon()
        self.disk.close()
        self.folder.close()


def truncate(place: Place, segments: int) -> int:
    """Leave a base instead of the first segments; the group it tells of."""
    names = sorted(path.name for path in place.data.glob("0*"))
    header = SegmentHeader.unpack((place.data / names[segments]).read_bytes()[:4_096], names[segments])
    group = header.first_group - 1
    base = Base(
        log_id=header.log_id, group=group, tag=header.previous_tag, ordinal=segments, head=header.first_position,
        number=2 * group, first_position=header.first_position, recorded_at=0, window_events=65_536, window_begins=0,
        window_young_begins=0,
    )  # fmt: skip
    body: list[bytes] = []
    rows: list[tuple[str, list[Any]]] = [(STREAMS, ["b", 2 * group, header.first_position, False])]
    head = write_base(base, [], rows, body.append)
    (place.data / base_name(group)).write_bytes(head + b"".join(body))
    return group
