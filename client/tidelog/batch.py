"""The stored batch: bytes → Batch, and the events in it. PURE: no I/O, no clock.

A batch is what lies on disk and what travels; FORMAT.md §3 has its bytes.

    0 u8 kind | 1 u8 flags | 2 u8 name bytes | 3 u8 layout | 4 u32 length | 8 u32 index | 12 u32 count | 16 u32 events
    20 u32 region bytes | 24 u64 first position | 32 u64 first version | 40 u64 recorded_at | 48 u64 signature
    56 name | [u8 n, session name, u64 epoch, u64 serial] | region | u32 CRC-32
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import repeat
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from .errors import CorruptLog, InvalidArgument
from .limits import APPEND_EVENTS_CEILING, BATCH_BYTES_CEILING, TYPE_BYTES_MAX

HEADER = struct.Struct("<BBBBIIIIIQQQQ")
HEADER_BYTES = HEADER.size
CRC = struct.Struct("<I")
SESSION_TAIL = struct.Struct("<QQ")
EVENTS, CONTROL = 0x42, 0x43
DELETION, HAS_SESSION = 1, 2
COLUMNS = 1
GROUP_MAGIC, PADDING_BYTE = b"TLGR", 0x00
GROUP_HEADER_BYTES = 64


class Incomplete:
    """The bytes end before the record does."""


INCOMPLETE: Final = Incomplete()


class Batch(NamedTuple):
    """A checked batch. `region` is the events as the client packed them (control: its body)."""

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
    session: tuple[str, int, int] | None
    region: bytes
    length: int


def read_batch(data: bytes | memoryview, offset: int = 0) -> Batch | Incomplete:
    """The batch at `offset`, its CRC and lengths checked; INCOMPLETE when `data` ends first.

    Raises CorruptLog (segment "", the offset given) when the bytes are no whole batch.
    """
    if len(data) - offset < HEADER_BYTES:
        return INCOMPLETE
    (
        kind,
        flags,
        name_bytes,
        layout,
        length,
        index,
        count,
        events,
        region_bytes,
        position,
        version,
        time,
        signature,
    ) = HEADER.unpack_from(data, offset)
    if kind not in (EVENTS, CONTROL) or length > BATCH_BYTES_CEILING or events > APPEND_EVENTS_CEILING:
        raise CorruptLog(f"no batch at offset {offset}", "", offset)
    if length < HEADER_BYTES + name_bytes + region_bytes + 4:
        raise CorruptLog(f"batch at offset {offset}: its parts are longer than it", "", offset)
    if len(data) - offset < length:
        return INCOMPLETE
    stop = offset + length - 4
    if crc32(data[offset:stop]) != CRC.unpack_from(data, stop)[0]:
        raise CorruptLog(f"batch at offset {offset}: checksum", "", offset)
    at = offset + HEADER_BYTES + name_bytes
    try:
        stream = str(data[at - name_bytes : at], "utf-8")
        session = None
        if flags & HAS_SESSION:
            tail = at + 1 + data[at]
            session = (str(data[at + 1 : tail], "utf-8"), *SESSION_TAIL.unpack_from(data, tail))
            at = tail + SESSION_TAIL.size
    except (ValueError, struct.error, IndexError) as error:
        raise CorruptLog(f"batch at offset {offset}: {error}", "", offset) from None
    if (
        at + region_bytes != stop
        or index >= count
        or (kind == EVENTS) != (events > 0)
        or (kind == EVENTS) != (name_bytes > 0)
    ):
        raise CorruptLog(f"batch at offset {offset}: its parts do not fit", "", offset)
    return Batch(
        kind, flags, layout, index, count, events, position, version, time, signature, stream, session,
        bytes(data[at:stop]), length,
    )  # fmt: skip


@lru_cache(maxsize=64)
def id_splitter(count: int) -> struct.Struct:
    """A Struct that cuts the ids column of `count` events into 16-byte pieces (5 times as fast as slices)."""
    return struct.Struct("16s" * count)


@lru_cache(maxsize=4096)
def type_signature(type_name: str) -> int:
    """The bit of one event type: 1 << (CRC-32 of its UTF-8 & 63)."""
    return 1 << (crc32(type_name.encode()) & 63)


def signature_of(types: str | list[str] | tuple[str, ...]) -> int:
    """The OR of the bits of all types in a batch or a filter."""
    if type(types) is str:
        return type_signature(types)
    signature = 0
    for name in set(types):
        signature |= type_signature(name)
    return signature


class Columns(NamedTuple):
    """The events region, unpacked. `types` is one str or one per event; `metadata` None when all are empty."""

    ids: bytes
    types: str | tuple[str, ...]
    metadata: tuple[bytes, ...] | None
    payloads: tuple[bytes, ...]

    def rows(self) -> zip[Any]:
        """(type, payload, metadata, id16) per event, made in C."""
        count = len(self.payloads)
        return zip(
            repeat(self.types) if type(self.types) is str else self.types,
            self.payloads,
            repeat(b"", count) if self.metadata is None else self.metadata,
            id_splitter(count).unpack(self.ids),
            strict=False,
        )


def unpack_columns(region: bytes | memoryview) -> Columns:
    """The events region → Columns, its shape not checked beyond four parts."""
    return Columns(*msgpack.unpackb(region, use_list=False))


_pack = msgpack.Packer().pack
"""packb() makes a new packer, with a buffer of 256 KiB, at each call."""


def pack_columns(ids: bytes, types: list[str], metadata: list[bytes], payloads: list[bytes]) -> bytes:
    """Columns → the events region; one str for equal types, nil for metadata that are all empty."""
    first = types[0]
    return _pack(  # type: ignore[no-any-return]
        (ids, first if types.count(first) == len(types) else types, metadata if any(metadata) else None, payloads)
    )


def check_type(name: str) -> int:
    """The bytes of an event type a client may write. Raises InvalidArgument."""
    size = len(name.encode())
    if not 1 <= size <= TYPE_BYTES_MAX:
        raise InvalidArgument(f"an event type has 1 to {TYPE_BYTES_MAX} bytes, this one {size}")
    if name[0] == "$":
        raise InvalidArgument("event types that begin with $ are the broker's own")
    return size
