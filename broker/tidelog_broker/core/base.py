"""A base: what removed segments can no longer tell (FORMAT.md §6). PURE: bytes ↔ values, through the callables it is given.

It is no cache: a damaged one is damage of the log. Written once, as of the last group of the last removed segment, in blocks,
so that neither writing nor reading holds it all in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
from tidelog.batch import Batch
from tidelog.errors import CorruptLog, InvalidHeader

from .format import VERSION, check_magic
from .run import Put, Read

MAGIC = b"TideBas\0"
_HEADER = struct.Struct("<8sHHI16sQQ8sI")
HEADER_BYTES = _HEADER.size + 4
_BLOCK = struct.Struct("<II")
BLOCK_ROWS = 512
BLOCK_BYTES_MAX = 64 << 20
LOG, IDS, CATEGORIES, STREAMS = "log", "ids", "categories", "streams"


class KeptWrite(NamedTuple):
    """One batch of a removed append: enough to know a repeat of it, and to answer."""

    stream: str
    first_position: int
    first_version: int
    events: int
    digest: bytes


class KeptAppend(NamedTuple):
    """A removed append whose ids are still in the id window: the number of its first batch, its ids, its writes."""

    number: int
    ids: bytes
    writes: tuple[KeptWrite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The log point behind the removed segments, the last of them `ordinal`, and what was known there."""

    log_id: bytes
    group: int
    tag: bytes
    ordinal: int
    head: int
    number: int
    first_position: int
    recorded_at: int
    window_events: int
    window_begins: int
    window_young_begins: int


def fingerprint(region: bytes) -> bytes:
    """What stands for a batch's events where they are gone."""
    return blake2b(region, digest_size=16).digest()


def kept_writes(batches: Iterable[Batch]) -> tuple[KeptWrite, ...]:
    """What stands for the batches of an append."""
    return tuple(
        KeptWrite(row.stream, row.first_position, row.first_version, row.events, fingerprint(row.region))
        for row in batches
    )


def write_base(base: Base, kept: Iterable[KeptAppend], rows: Iterable[tuple[str, list[Any]]], put: Put) -> bytes:
    """The body through `put`; the header, which belongs before it. `rows`: (kind, row), kinds together."""
    length = crc = 0

    def block(kind: str, *values: Any) -> None:
        nonlocal length, crc
        payload = msgpack.packb([kind, *values])
        data = _BLOCK.pack(len(payload), crc32(payload)) + payload
        put(data)
        length += len(data)
        crc = crc32(data, crc)

    window = [base.window_events, base.window_begins, base.window_young_begins]
    block(LOG, base.ordinal, base.head, base.number, base.first_position, base.recorded_at, window)
    held: list[Any] = []
    of = IDS
    for kind, row in _all_rows(kept, rows):
        if held and (kind != of or len(held) >= BLOCK_ROWS):
            block(of, held)
            held = []
        of = kind
        held.append(row)
    if held:
        block(of, held)
    header = _HEADER.pack(MAGIC, VERSION, 0, crc, base.log_id, base.group, length, base.tag, 0)
    return header + crc32(header).to_bytes(4, "little")


def _all_rows(kept: Iterable[KeptAppend], rows: Iterable[tuple[str, list[Any]]]) -> Iterator[tuple[str, Any]]:
    for append in kept:
        yield IDS, [append.number, append.ids, [list(write) for write in append.writes]]
    yield from rows


class BaseReader:
    """A base that is read: `base`, then what stands in its blocks."""

    def __init__(self, name: str, read: Read, size: int) -> None:
        """Raises CorruptLog, or InvalidHeader for a newer version."""
        self.name = name
        self._read = read
        header = read(0, HEADER_BYTES)
        if len(header) < HEADER_BYTES or crc32(header[:-4]).to_bytes(4, "little") != header[-4:]:
            raise self._damage(0, "checksum of its header")
        check_magic(header, MAGIC, name)
        _, _, _, self._crc, log_id, group, length, tag, _ = _HEADER.unpack(header[:-4])
        if size != HEADER_BYTES + length or name != base_name(group):
            raise self._damage(0, f"its header says group {group} and {length} bytes behind it")
        self._size = size
        (kind, ordinal, head, number, first_position, recorded_at, window), self._first = self._block(HEADER_BYTES)
        if kind != LOG:
            raise self._damage(HEADER_BYTES, "its first block is not the log's")
        self.base = Base(
            log_id=log_id, group=group, tag=tag, ordinal=ordinal, head=head, number=number, first_position=first_position,
            recorded_at=recorded_at, window_events=window[0], window_begins=window[1], window_young_begins=window[2],
        )  # fmt: skip

    def _block(self, at: int) -> tuple[Any, int]:
        """(a block's values, where the next begins). Raises CorruptLog."""
        length, crc = _BLOCK.unpack(self._read(at, _BLOCK.size).ljust(_BLOCK.size, b"\0"))
        payload = self._read(at + _BLOCK.size, length) if length <= min(BLOCK_BYTES_MAX, self._size - at) else b""
        if not length or len(payload) != length or crc32(payload) != crc:
            raise self._damage(at, "checksum of a block")
        return msgpack.unpackb(payload), at + _BLOCK.size + length

    def _damage(self, at: int, why: str) -> CorruptLog:
        return CorruptLog(f"{self.name} is damaged at offset {at}: {why}. Nothing was changed.", self.name, at)

    def kept(self) -> Iterator[KeptAppend]:
        """The removed appends whose ids were in the window, in log order."""
        at = self._first
        while at < self._size:
            (kind, rows), at = self._block(at)
            if kind != IDS:
                return
            for number, ids, writes in rows:
                yield KeptAppend(number, ids, tuple(KeptWrite(*write) for write in writes))

    def rows(self) -> Iterator[tuple[str, list[Any]]]:
        """(CATEGORIES, [name, end position]) and (STREAMS, [name, next version, end position, deleted]), each sorted by name.

        Checks everything to the end. Raises InvalidHeader for a kind that this version does not know.
        """
        at = self._first
        crc = crc32(self._read(HEADER_BYTES, self._first - HEADER_BYTES))
        while at < self._size:
            (kind, rows), following = self._block(at)
            crc = crc32(self._read(at, following - at), crc)
            at = following
            if kind not in (IDS, CATEGORIES, STREAMS):
                raise InvalidHeader(
                    f"{self.name} holds {kind!r}, which this version does not honour: use a newer Tidelog"
                )
            if kind != IDS:
                for row in rows:
                    yield kind, row
        if crc != self._crc:
            raise self._damage(0, "checksum of its body")


def base_name(group: int) -> str:
    """The file name of the base as of a group."""
    return f"base-{group:020d}"
