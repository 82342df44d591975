"""A checkpoint: the index as it was at a log point, by the names of its runs (FORMAT.md §7). PURE: bytes ↔ values."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from .cursors import Cursor
from .run import BadIndex
from .sessions import SessionImage

MAGIC = b"TideChk\0"
VERSION = 2
_HEADER = struct.Struct("<8sHHI16sQQ8sI")
HEADER_BYTES = _HEADER.size + 4


class RunName(NamedTuple):
    """A run's file and what binds it to the checkpoint: its size in bytes and its trailer."""

    name: str
    size: int
    trailer: bytes


class WindowImage(NamedTuple):
    """The id window (idwindow.py): its size in events, where its generations begin, ids and the numbers they came with."""

    events: int
    begins: int
    young_events: int
    turns: bytes
    old_ids: bytes
    old_numbers: bytes
    young_ids: bytes
    young_numbers: bytes


CursorRow = tuple[str, Cursor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where the log stood, (group, its tag, segment, offset of its header, offset behind its body), and the index there."""

    log_id: bytes
    group: int
    tag: bytes
    ordinal: int
    at: int
    end: int
    head: int
    number: int
    recorded_at: int
    stream_count: int
    first_position: int
    first_number: int
    sessions: tuple[SessionImage, ...]
    cursors: tuple[CursorRow, ...]
    runs: tuple[RunName, ...]
    window: WindowImage

    def pack(self) -> bytes:
        """The file's bytes."""
        values = [list(value) if isinstance(value, tuple) else value for value in astuple(self)[3:]]
        body: bytes = msgpack.packb(values)
        header = _HEADER.pack(MAGIC, VERSION, 0, crc32(body), self.log_id, self.group, len(body), self.tag, 0)
        return header + crc32(header).to_bytes(4, "little") + body

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Checkpoint:
        """Raises BadIndex for whatever is not wholly a checkpoint of this version."""
        head, body = data[: _HEADER.size], data[HEADER_BYTES:]
        if len(data) < HEADER_BYTES or crc32(head) != int.from_bytes(data[_HEADER.size : HEADER_BYTES], "little"):
            raise BadIndex(f"{name}: checksum of its header")
        magic, version, _, crc, log_id, group, length, tag, _ = _HEADER.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise BadIndex(f"{name} is no checkpoint of this version")
        if len(body) != length or crc32(body) != crc:
            raise BadIndex(f"{name}: checksum of its body")
        values: list[Any] = msgpack.unpackb(body)
        if len(values) != len(fields(cls)) - 3:
            raise BadIndex(f"{name} holds {len(values)} values")
        *plain, sessions, cursors, runs, window = values
        return cls(
            **dict(zip((field.name for field in fields(cls)), (log_id, group, tag, *plain), strict=False)),
            sessions=tuple(SessionImage(*row) for row in sessions),
            cursors=tuple((name, Cursor(*row)) for name, row in cursors),
            runs=tuple(RunName(*row) for row in runs), window=WindowImage(*window),
        )  # fmt: skip
