"""A run: a part of the index as a file that never changes again (FORMAT.md §7). PURE: bytes through the callables it is given.

Holds the rows of consecutive batches in pieces, and for each stream and category that stands in them: how it stood behind
them, and which of them are its own. Entries are sorted by key, so that runs are merged, searched and listed in one order.
Every block has a checksum and is checked each time it is read: what is wrong raises BadIndex, and nothing wrong is served.
The checksum begins with the block's place, so that a right block at the wrong place is wrong; and the trailer has one over all
of them, so that who names a run by its trailer (core/checkpoint.py) means these contents and no others.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias
from zlib import crc32

import msgpack

from .rows import Rows

MAGIC = b"TideRun\0"
VERSION = 1
PIECE_ROWS = 4_096
"""Rows in a piece, more only where an append goes on."""
TABLE_BYTES = 4_096
"""A block of entries is closed when it has so many bytes."""
POSTINGS = 256
"""Postings in a block of their own; fewer stand beside their entry."""
FILTER_BITS = 16
"""Bits of the filter for each stream, at least."""

_TRAILER = struct.Struct("<8sHHI16sQQQI")
TRAILER_BYTES = _TRAILER.size + 4
_ENTRY = struct.Struct("<QQQIB")
_SINGLE = struct.Struct("=QQ")
_TABLE = struct.Struct("<II")
_U32 = struct.Struct("<I")
_PLACE = struct.Struct("<16sQQ")
_ROW_BYTES = 8 + 8 + 4 + 8 + 1
_POSTING_BYTES = 16
DELETED = 1
STREAM_KEY = 0x73
"""How the key of a stream begins."""

Read = Callable[[int, int], bytes]
"""(offset, count) → bytes of the file; fewer at its end."""
Put = Callable[[bytes], None]
Block: TypeAlias = "tuple[array[int], array[int]]"
"""(numbers, keys): keys are the first versions of a stream's batches, the first positions of a category's."""


class BadIndex(Exception):
    """A saved index can't be used; the log is not concerned."""


class Entry(NamedTuple):
    """A stream or category as a run knows it: the next version (or position), the position behind its last event, and where its
    `postings` postings lie."""

    next: int
    end: int
    at: int
    postings: int
    flags: int
    inline: bytes


def stream_key(name: str) -> bytes:
    """The key of a stream's entry."""
    return b"s" + name.encode()


def category_key(name: str) -> bytes:
    """The key of a category's entry."""
    return b"c" + name.encode()


# -- writing


def _place_crc(log_id: bytes, first: int, offset: int) -> int:
    """What the checksum of a block begins with."""
    return crc32(_PLACE.pack(log_id, first, offset))


class RunWriter:
    """Writes a run from its beginning to its end: pieces in order, then entries in the order of their keys, then `finish`."""

    def __init__(self, put: Put, log_id: bytes, first: int, first_position: int, streams: int) -> None:
        self._put_bytes = put
        self._log_id = log_id
        self._first = first
        self._first_position = first_position
        self._stop, self._end = first, first_position
        self._at = self._crc = 0
        self._firsts, self._positions, self._places = array("Q"), array("Q"), array("Q")
        self._piece_offsets, self._piece_lengths = array("Q"), array("I")
        self._keys: list[bytes] = []
        self._table_offsets, self._table_lengths = array("Q"), array("I")
        self._names: list[bytes] = []
        self._entries: list[bytes] = []
        self._inline: list[bytes] = []
        self._inline_bytes = self._block_bytes = 0
        self._streams = self._entries_total = 0
        bits = 1 << 10
        while bits < streams * FILTER_BITS:
            bits *= 2
        self._filter = bytearray(bits // 8)
        self._put(MAGIC + bytes(8))

    def _put(self, data: bytes) -> int:
        """Where it lies."""
        at = self._at
        self._put_bytes(data)
        self._at += len(data)
        return at

    def _put_block(self, payload: bytes) -> tuple[int, int]:
        checksum = _U32.pack(crc32(payload, _place_crc(self._log_id, self._first, self._at)))
        self._crc = crc32(checksum, self._crc)
        return self._put(payload + checksum), len(payload) + len(checksum)

    def piece(self, first: int, payload: bytes, end: int) -> None:
        """One piece of rows, packed."""
        offset, length = self._put_block(payload)
        count = len(payload) // _ROW_BYTES
        self._firsts.append(first)
        self._positions.append(int.from_bytes(payload[:8], "little"))
        self._places.append(int.from_bytes(payload[8 * count : 8 * count + 8], "little"))
        self._piece_offsets.append(offset)
        self._piece_lengths.append(length)
        self._stop, self._end = first + count, end

    def rows(self, rows: Rows) -> None:
        """All rows of `rows`, cut into pieces where an append begins."""
        low = 0
        while low < len(rows.positions):
            high = rows.starts.find(1, low + PIECE_ROWS)
            if high < 0:
                high = len(rows.positions)
            payload = b"".join(
                (rows.positions[low:high].tobytes(), rows.places[low:high].tobytes(), rows.lengths[low:high].tobytes(),
                 rows.signatures[low:high].tobytes(), rows.starts[low:high])
            )  # fmt: skip
            self.piece(rows.first + low, payload, rows.behind(high - 1))
            low = high

    def single(self, key: bytes, following: int, end: int, flags: int, number: int, first_key: int) -> None:
        """An entry with one posting: what most have, in a third of the time."""
        self._inline.append(_SINGLE.pack(number, first_key))
        self._close_entry(key, _ENTRY.pack(following, end, self._inline_bytes, 1, flags))
        self._inline_bytes += _POSTING_BYTES
        self._block_bytes += _POSTING_BYTES
        if self._block_bytes >= TABLE_BYTES:
            self._close_table()

    def entry(self, key: bytes, following: int, end: int, flags: int, postings: Iterable[Block]) -> None:
        """One entry, its key greater than the one before."""
        numbers, keys = array("Q"), array("Q")
        count = at = 0
        for more_numbers, more_keys in postings:
            numbers += more_numbers
            keys += more_keys
            while len(numbers) > POSTINGS:
                offset = self._postings(numbers[:POSTINGS], keys[:POSTINGS])
                at = at or offset
                count += POSTINGS
                del numbers[:POSTINGS], keys[:POSTINGS]
        if count:
            self._postings(numbers, keys)
        elif numbers:
            at = self._inline_bytes
            inline = numbers.tobytes() + keys.tobytes()
            self._inline.append(inline)
            self._inline_bytes += len(inline)
            self._block_bytes += len(inline)
        count += len(numbers)
        self._close_entry(key, _ENTRY.pack(following, end, at, count, flags))
        if self._block_bytes >= TABLE_BYTES:
            self._close_table()

    def _close_entry(self, key: bytes, packed: bytes) -> None:
        self._names.append(key)
        self._entries.append(packed)
        self._block_bytes += len(key) + 1 + len(packed)
        self._entries_total += 1
        if key[0] == STREAM_KEY:
            self._streams += 1
            bit = crc32(key) & (len(self._filter) * 8 - 1)
            self._filter[bit >> 3] |= 1 << (bit & 7)

    def _postings(self, numbers: array[int], keys: array[int]) -> int:
        return self._put_block(numbers.tobytes() + keys.tobytes())[0]

    def _close_table(self) -> None:
        names = b"\0" + b"\0".join(self._names) + b"\0"
        head = _TABLE.pack(len(self._names), len(names))
        offset, length = self._put_block(b"".join((head, names, *self._entries, *self._inline)))
        self._keys.append(self._names[0])
        self._table_offsets.append(offset)
        self._table_lengths.append(length)
        self._names, self._entries, self._inline = [], [], []
        self._inline_bytes = self._block_bytes = 0

    def finish(self) -> bytes:
        """The directory and the trailer; the trailer, which stands for everything else."""
        if self._names:
            self._close_table()
        filter_at, filter_bytes = self._put_block(bytes(self._filter))
        directory = msgpack.packb(
            [
                self._firsts.tobytes(), self._positions.tobytes(), self._places.tobytes(), self._piece_offsets.tobytes(),
                self._piece_lengths.tobytes(), self._keys, self._table_offsets.tobytes(), self._table_lengths.tobytes(),
                filter_at, filter_bytes, self._first_position, self._end, self._streams, self._entries_total,
            ]
        )  # fmt: skip
        offset, length = self._put_block(directory)
        trailer = _TRAILER.pack(MAGIC, VERSION, 0, length, self._log_id, offset, self._first, self._stop, self._crc)
        trailer += _U32.pack(crc32(trailer))
        self._put(trailer)
        return trailer


# -- reading


class Run:
    """A run that is read: the batches number `first` … `stop` - 1 and what they did to streams and categories."""

    def __init__(self, name: str, read: Read, size: int, log_id: bytes) -> None:
        """Raises BadIndex, or OSError when the device fails."""
        self.name = name
        self._read = read
        self.trailer = read(size - TRAILER_BYTES, TRAILER_BYTES) if size > TRAILER_BYTES else b""
        try:
            magic, version, _, length, self._log_id, offset, self.first, self.stop, _ = _TRAILER.unpack(
                self.trailer[:-4]
            )
        except struct.error:
            raise BadIndex(f"{name} is cut short") from None
        if (magic, version, self._log_id) != (MAGIC, VERSION, log_id):
            raise BadIndex(f"{name} is no run of this log")
        if crc32(self.trailer[:-4]) != _U32.unpack(self.trailer[-4:])[0]:
            raise BadIndex(f"{name}: checksum of its trailer")
        directory = msgpack.unpackb(self._block(offset, length))
        firsts, positions, places, offsets, lengths, self._keys, table_offsets, table_lengths, *rest = directory
        filter_at, filter_bytes, self.first_position, self.end, *counts = rest
        self.streams: int = counts[0]
        self.entries_total: int = counts[1]
        self.firsts, self.positions, self.places = _u64(firsts), _u64(positions), _u64(places)
        self._offsets, self._lengths = _u64(offsets), array("I", lengths)
        self._table_offsets, self._table_lengths = _u64(table_offsets), array("I", table_lengths)
        self._filter = self._block(filter_at, filter_bytes)
        self._mask = len(self._filter) * 8 - 1
        self.size = size
        self.directory_bytes = length + filter_bytes + TRAILER_BYTES

    def _block(self, offset: int, length: int) -> bytes:
        """A checked block's payload. Raises BadIndex."""
        data = self._read(offset, length)
        begin = _place_crc(self._log_id, self.first, offset)
        if len(data) != length or length < 4 or crc32(data[:-4], begin) != _U32.unpack_from(data, length - 4)[0]:
            raise BadIndex(f"{self.name}: the block at offset {offset} is damaged")
        return data[:-4]

    # -- rows

    def raw_piece(self, piece: int) -> tuple[int, bytes, int]:
        """(first number, payload, position behind it), to be copied."""
        end = self.positions[piece + 1] if piece + 1 < len(self.positions) else self.end
        return self.firsts[piece], self._block(self._offsets[piece], self._lengths[piece]), end

    def piece(self, piece: int) -> Rows:
        """A piece's rows."""
        first, data, end = self.raw_piece(piece)
        count = len(data) // _ROW_BYTES
        rows = Rows(first, end)
        rows.positions.frombytes(data[: 8 * count])
        rows.places.frombytes(data[8 * count : 16 * count])
        rows.lengths.frombytes(data[16 * count : 20 * count])
        rows.signatures.frombytes(data[20 * count : 28 * count])
        rows.starts += data[28 * count :]
        return rows

    # -- entries

    def may_hold(self, digest: int) -> bool:
        """False when no stream whose key has this CRC-32 stands in it."""
        bit = digest & self._mask
        return bool(self._filter[bit >> 3] >> (bit & 7) & 1)

    def find(self, key: bytes) -> Entry | None:
        """The entry of a key, if it has one."""
        if b"\0" in key:
            return None  # no name has one: across it, two neighbours would be taken for one
        at = bisect_right(self._keys, key) - 1
        if at < 0:
            return None
        block = self._block(self._table_offsets[at], self._table_lengths[at])
        count, names = _TABLE.unpack_from(block)
        place = block.find(b"\0" + key + b"\0", 8, 8 + names)
        if place < 0:
            return None
        return self._entry(block, count, names, block.count(b"\0", 8, place))

    @staticmethod
    def _entry(block: bytes, count: int, names: int, place: int) -> Entry:
        following, end, at, postings, flags = _ENTRY.unpack_from(block, 8 + names + place * _ENTRY.size)
        inline = b""
        if postings <= POSTINGS:
            begin = 8 + names + count * _ENTRY.size + at
            inline = block[begin : begin + postings * _POSTING_BYTES]
        return Entry(following, end, at, postings, flags, inline)

    def entries(self, start: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
        """All entries in the order of their keys, from the first that is not less than `start`."""
        for at in range(max(0, bisect_right(self._keys, start) - 1), len(self._keys)):
            block = self._block(self._table_offsets[at], self._table_lengths[at])
            count, names = _TABLE.unpack_from(block)
            for place, key in enumerate(block[9 : 7 + names].split(b"\0")):
                if key >= start:
                    yield key, self._entry(block, count, names, place)

    # -- postings

    def blocks(self, entry: Entry) -> int:
        """How many blocks an entry's postings have."""
        return 1 if entry.postings <= POSTINGS else -(-entry.postings // POSTINGS)

    def postings(self, entry: Entry, block: int) -> Block:
        """One block of an entry's postings."""
        if entry.postings <= POSTINGS:
            data = entry.inline
        else:
            count = min(POSTINGS, entry.postings - block * POSTINGS)
            data = self._block(entry.at + block * (POSTINGS * _POSTING_BYTES + 4), count * _POSTING_BYTES + 4)
        half = len(data) // 2
        return _u64(data[:half]), _u64(data[half:])


def _u64(data: bytes) -> array[int]:
    return array("Q", data)
