"""A base: what removed segments can no longer tell (FORMAT.md §6). PURE: bytes ↔ values, through the callables it is given.

It is no cache: a damaged one is damage of the log. Written once, as of the last group of the last removed segment, in blocks,
so that neither writing nor reading holds it all in memory.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
from tidelog.batch import Batch
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import INT_MAX, STREAM_BYTES_MAX

from .cursors import Cursor, is_cursor
from .format import VERSION, check_magic
from .names import is_name
from .run import Put, Read

MAGIC = b"TideBas\0"
_HEADER = struct.Struct("<8sHHI16sQQ8sI")
HEADER_BYTES = _HEADER.size + 4
_BLOCK = struct.Struct("<II")
BLOCK_ROWS = 512
BLOCK_BYTES = 1 << 20
"""A block is closed when it has so many rows or bytes; one row may be longer."""
BLOCK_BYTES_MAX = 64 << 20
BLOCK_HEAD_BYTES = 64
"""A block's first row begins within these."""
LOG, IDS, CATEGORIES, STREAMS, SESSIONS, CURSORS = "log", "ids", "categories", "streams", "sessions", "cursors"
_KINDS = (IDS, CATEGORIES, STREAMS, SESSIONS, CURSORS)


class KeptWrite(NamedTuple):
    """One batch of a removed append: enough to know a repeat of it, and to answer."""

    stream: str
    first_position: int
    first_version: int
    events: int
    digest: bytes


class KeptAppend(NamedTuple):
    """A removed append that may be asked for again, because its ids are in the id window (else `ids` is empty) or its result is a
    session's: the number of its first batch, its ids, its writes."""

    number: int
    ids: bytes
    writes: tuple[KeptWrite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The log point behind the removed segments, the last of them `ordinal`, and what was known there.

    Sessions and cursors are told as they were behind group `told`, which was durable then too.
    """

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
    told: int = 0


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
    packer = msgpack.Packer()

    def block(payload: bytes) -> None:
        nonlocal length, crc
        data = _BLOCK.pack(len(payload), crc32(payload)) + payload
        put(data)
        length += len(data)
        crc = crc32(data, crc)

    def block_of_rows(kind: str, packed: list[bytes]) -> None:
        block(b"".join((b"\x92", packer.pack(kind), packer.pack_array_header(len(packed)), *packed)))

    window = [base.window_events, base.window_begins, base.window_young_begins]
    log: list[Any] = [LOG, base.ordinal, base.head, base.number, base.first_position, base.recorded_at, window]
    block(packer.pack([*log, base.told] if base.told else log))
    held: list[bytes] = []
    held_bytes = 0
    of = IDS
    for kind, row in _all_rows(kept, rows):
        if held and (kind != of or len(held) >= BLOCK_ROWS or held_bytes >= BLOCK_BYTES):
            block_of_rows(of, held)
            held, held_bytes = [], 0
        of = kind
        held.append(packer.pack(row))
        held_bytes += len(held[-1])
    if held:
        block_of_rows(of, held)
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
        self._blocks: list[tuple[int, int]] | None = None
        header = read(0, HEADER_BYTES)
        if len(header) < HEADER_BYTES or crc32(header[:-4]).to_bytes(4, "little") != header[-4:]:
            raise self._damage(0, "checksum of its header")
        check_magic(header, MAGIC, name)
        _, _, _, self._crc, log_id, group, length, tag, _ = _HEADER.unpack(header[:-4])
        if size != HEADER_BYTES + length or name != base_name(group):
            raise self._damage(0, f"its header says group {group} and {length} bytes behind it")
        self._size = size
        told, self._first = self._block(HEADER_BYTES)
        try:
            kind, ordinal, head, number, first_position, recorded_at, (events, begins, young_begins), *more = told
            behind = more[0] if more else 0
        except (TypeError, ValueError):
            kind, head, begins, young_begins = "", 0, 0, 0
        numbers = (
            (ordinal, head, number, first_position, recorded_at, events, begins, young_begins, behind)
            if kind == LOG
            else ()
        )
        if not numbers or not _are_numbers(*numbers) or not begins <= young_begins <= head or group > INT_MAX:
            raise self._damage(HEADER_BYTES, "its first block is not the log's")
        self.base = Base(
            log_id=log_id, group=group, tag=tag, ordinal=ordinal, head=head, number=number, first_position=first_position,
            recorded_at=recorded_at, window_events=events, window_begins=begins, window_young_begins=young_begins, told=behind,
        )  # fmt: skip

    def _rows(self, at: int) -> tuple[str, list[Any], int]:
        """(kind, rows, where the next block begins). Raises CorruptLog."""
        block, following = self._block(at)
        if type(block) is list and len(block) == 2 and type(block[0]) is str and type(block[1]) is list:
            return block[0], block[1], following
        raise self._damage(at, "a block is not a kind and its rows")

    def _block(self, at: int) -> tuple[Any, int]:
        """(what a block holds, where the next begins). Raises CorruptLog."""
        length, crc = _BLOCK.unpack(self._read(at, _BLOCK.size).ljust(_BLOCK.size, b"\0"))
        payload = self._read(at + _BLOCK.size, length) if length <= min(BLOCK_BYTES_MAX, self._size - at) else b""
        if not length or len(payload) != length or crc32(payload) != crc:
            raise self._damage(at, "checksum of a block")
        try:
            return msgpack.unpackb(payload), at + _BLOCK.size + length
        except Exception:  # a right checksum over wrong bytes; msgpack raises a dozen kinds
            raise self._damage(at, "a block that is no msgpack") from None

    def _damage(self, at: int, why: str) -> CorruptLog:
        return CorruptLog(f"{self.name} is damaged at offset {at}: {why}. Nothing was changed.", self.name, at)

    def kept(self) -> Iterator[KeptAppend]:
        """The removed appends whose ids were in the window, in log order."""
        at = self._first
        while at < self._size:
            kind, rows, following = self._rows(at)
            if kind != IDS:
                return
            for row in rows:
                append = _kept_of(row)
                if append is None or append.number >= self.base.number:
                    raise self._damage(at, "a row of ids")
                yield append
            at = following

    def find(self, number: int) -> KeptAppend | None:
        """The removed append that begins with this batch, if it is kept. Raises CorruptLog.

        Reads one block of them; the first time it looks where each block begins.
        """
        if self._blocks is None:
            self._blocks = list(self._kept_blocks())
        at = bisect_right(self._blocks, (number, self._size)) - 1
        if at < 0:
            return None
        place = self._blocks[at][1]
        for row in self._rows(place)[1]:
            append = _kept_of(row)
            if append is None:
                raise self._damage(place, "a row of ids")
            if append.number == number:
                return append
        return None

    def _kept_blocks(self) -> Iterator[tuple[int, int]]:
        """(number of the first append, offset) of each block of kept appends, from the blocks' first bytes alone."""
        at = self._first
        while at < self._size:
            length, _ = _BLOCK.unpack(self._read(at, _BLOCK.size).ljust(_BLOCK.size, b"\0"))
            unpacker = msgpack.Unpacker()
            unpacker.feed(self._read(at + _BLOCK.size, min(length, BLOCK_HEAD_BYTES)))
            try:
                unpacker.read_array_header()
                if unpacker.unpack() != IDS:
                    return
                unpacker.read_array_header()
                unpacker.read_array_header()
                number = unpacker.unpack()
            except Exception:
                number = None
            if type(number) is not int or not length:
                raise self._damage(at, "a block of ids")
            yield number, at
            at += _BLOCK.size + length

    def rows(self) -> Iterator[tuple[str, list[Any]]]:
        """(kind, row) of all that stands behind the ids, each kind sorted by name, the kinds in their order:

        CATEGORIES [name, end position], STREAMS [name, next version, end position, deleted], SESSIONS [name, epoch, last serial,
        batch numbers], CURSORS [name, position, holder, lease, commit]. Checks everything to the end. Raises InvalidHeader for a
        kind that this version does not know.
        """
        at = self._first
        crc = crc32(self._read(HEADER_BYTES, self._first - HEADER_BYTES))
        before = (0, "")
        while at < self._size:
            kind, rows, following = self._rows(at)
            crc = crc32(self._read(at, following - at), crc)
            if kind not in _KINDS:
                raise InvalidHeader(
                    f"{self.name} holds {kind!r}, which this version does not honour: use a newer Tidelog"
                )
            order = _KINDS.index(kind)
            if order < before[0]:
                raise self._damage(at, f"{kind} behind {_KINDS[before[0]]}")
            if kind != IDS:
                for row in rows:
                    if not _RIGHT[kind](row) or (order, row[0]) <= before:
                        raise self._damage(at, f"a row of {kind}")
                    before = order, row[0]
                    yield kind, row
            at = following
        if crc != self._crc:
            raise self._damage(0, "checksum of its body")


def _are_numbers(*values: object) -> bool:
    return all(type(value) is int and 0 <= value <= INT_MAX for value in values)


def _is_name(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= STREAM_BYTES_MAX and "\0" not in value


def _is_category(row: object) -> bool:
    # "/x" is in the category without a name.
    if type(row) is not list or len(row) != 2:
        return False
    return (row[0] == "" or _is_name(row[0])) and _are_numbers(row[1])


def _is_stream(row: object) -> bool:
    if type(row) is not list or len(row) != 4:
        return False
    name, following, end, deleted = row
    return _is_name(name) and _are_numbers(following, end) and type(deleted) is bool


def _is_session(row: object) -> bool:
    if type(row) is not list or len(row) != 4:
        return False
    name, epoch, last, numbers = row
    return is_name(name) and _are_numbers(epoch, last) and type(numbers) is bytes and len(numbers) % 8 == 0


def _is_cursor(row: object) -> bool:
    if type(row) is not list or len(row) != 5:
        return False
    name, position, holder, lease, commit = row
    return (
        is_name(name) and holder != "" and is_cursor(Cursor(position, "" if holder is None else holder, lease, commit))
    )


_RIGHT = {CATEGORIES: _is_category, STREAMS: _is_stream, SESSIONS: _is_session, CURSORS: _is_cursor}


def _kept_of(row: object) -> KeptAppend | None:
    """A row of ids, or None if it is none."""
    if type(row) is not list or len(row) != 3:
        return None
    number, ids, writes = row
    if not _are_numbers(number) or type(ids) is not bytes or len(ids) % 16:
        return None
    if type(writes) is not list or not writes or not all(type(write) is list and len(write) == 5 for write in writes):
        return None
    made = tuple(KeptWrite(*write) for write in writes)
    for name, position, version, events, digest in made:
        if not _is_name(name) or not _are_numbers(position, version, events) or type(digest) is not bytes:
            return None
    return KeptAppend(number, ids, made)


def base_name(group: int) -> str:
    """The file name of the base as of a group."""
    return f"base-{group:020d}"
