"""Records whose checksums, tags and places are made right, so that mutations reach what stands behind them; and what a start
makes of group records: sessions and cursors, or damage.
"""

from __future__ import annotations

import struct
from zlib import crc32

from tidelog.batch import CRC, HEADER_BYTES
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import INT_MAX
from tidelog_broker.core.cursors import is_cursor
from tidelog_broker.core.format import (
    GROUP_HEADER_BYTES,
    NO_TAG,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    pack_group_header,
    pack_seal,
)
from tidelog_broker.core.index import Index
from tidelog_broker.core.known import Known
from tidelog_broker.core.names import is_name
from tidelog_broker.core.recovery import Chain, SegmentReader
from tidelog_broker.core.replay import replay
from tidelog_broker.core.sessions import SessionImage, Sessions

CHECKSUMS, TAGS = 1, 2
"""Bits of an input's first byte: checksums of batches and headers made right; tags and places of group headers, too."""

SEGMENT = SegmentHeader(
    log_id=bytes(16), ordinal=1, first_position=0, first_group=1, key=b"k" * 16, previous_tag=NO_TAG,
    group_bytes_max=1 << 16, zero_step=1 << 12, align=1, segment_bytes=1 << 20,
)  # fmt: skip
TOLD = 4
"""One more: a base tells of sessions up to group 1: of one, which has appended once."""


def with_batch_checksums(data: bytes) -> bytes:
    """The batches that stand one behind the other, each CRC made right where its length leads."""
    out = bytearray(data)
    at = 0
    while at + HEADER_BYTES + 4 <= len(out):
        length = int.from_bytes(out[at + 4 : at + 8], "little")
        if out[at] == 0x54:
            at += GROUP_HEADER_BYTES
        elif out[at] in b"BC" and HEADER_BYTES + 4 <= length <= len(out) - at:
            out[at + length - 4 : at + length] = CRC.pack(crc32(out[at : at + length - 4]))
            at += length
        else:
            break
    return bytes(out)


def with_tags(data: bytes, checksums: bool) -> bytes:
    """Group records one behind the other, each in its place in the chain: number, offset, body's CRC, tags made right."""
    out, at, number, tag = bytearray(data), 0, 1, SEGMENT.previous_tag
    while at + GROUP_HEADER_BYTES <= len(out):
        magic, length, _, _, _, position, batches = struct.unpack_from("<4sIQQQQI", out, at)
        place = SEGMENT_HEADER_BYTES + at
        if magic == b"TLSL":
            out[at : at + 64] = pack_seal(SEGMENT.key, number - 1, 1, place, position, tag)
            break
        stop = at + 64 + length
        if stop > len(out):
            break
        body = bytes(out[at + 64 : stop])
        body = with_batch_checksums(body) if checksums else body
        header = pack_group_header(SEGMENT.key, body, number, 1, place, position, batches, tag)
        out[at:stop] = header + body
        tag, at, number = header[-8:], stop, number + 1
    return bytes(out)


def known(data: bytes) -> None:
    """Group records → what is known behind them, all of it such as a broker has it; or CorruptLog or InvalidHeader."""
    how, data = data[0] if data else 0, data[1:]
    content = SEGMENT.pack() + (with_tags(data, bool(how & CHECKSUMS)) if how & TAGS else data)
    reader = SegmentReader(SEGMENT, lambda offset, count: content[offset : offset + count], len(content), Chain())
    index, found = Index(), Known.nothing(4)
    told = serials = 1 if how & TOLD else 0
    if told:
        found.sessions = Sessions(9, [SessionImage("p", 1, 1, bytes(8))])
    try:
        for group in reader.groups():
            replay(index, found, 1, group, told)
            serials += sum(row.append_index == 0 and bool(row.flags) for row in group.rows)
    except (CorruptLog, InvalidHeader):
        return
    assert index.head == reader.chain.position
    images = found.sessions.images()
    for name, epoch, last, numbers in images:
        assert is_name(name)
        assert type(epoch) is type(last) is int
        assert 0 < epoch <= INT_MAX
        assert len(numbers) == 8 * last
        results = [number for (number,) in struct.iter_unpack("<Q", numbers)]
        assert results == sorted(set(results))
        assert all(number < max(told, index.stop) for number in results)
    assert sum(image.last for image in images) <= serials
    for name, cursor in found.cursors.rows():
        assert is_name(name)
        assert is_cursor(cursor)
