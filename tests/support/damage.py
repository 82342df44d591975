"""Small logs whose every byte is known, ways to damage them, and what opening the damaged one comes to.

`make` writes a log with the real Log on a simulated disk and remembers where every record lies. `judge` opens a damaged
image with the real Store and asserts what holds whatever was damaged: what opens is a prefix of the original log, byte
for byte, with at least everything up to the newest mark; what was cut is kept; a refusal changes nothing. Which class a
damaged byte leads to is in `byte_classes` and `cut_class`, written from docs/FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from zlib import crc32

from support.builders import Writer, seeded_random
from support.simdisk import Image, SimDisk
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog_broker.core.format import SegmentHeader, pack_group_header, pack_seal
from tidelog_broker.core.index import OFFSET_MASK, PLACE_SHIFT
from tidelog_broker.log import Log, LogSettings
from tidelog_broker.store import Store

HEADER = 4_096
"""Bytes of a segment's header block, and where the second mark slot begins."""
SLOT = 112
RECORD_HEADER = 64

PLAIN = LogSettings(segment_bytes=5_900, group_bytes_max=4_096, zero_step=512, prepare_ahead=512, mark_groups=1_000)
ALIGNED = replace(PLAIN, align=4_096, segment_bytes=13_000)

HEALTHY, SHORTER, TORN, CORRUPT, INVALID = "healthy", "shorter", "torn tail", "CorruptLog", "InvalidHeader"
"""SHORTER: groups behind the newest mark are gone and not a byte of them is left to be kept."""

HEADER_FIELDS = {
    "magic": 4, "length": 4, "number": 8, "ordinal": 8, "offset": 8, "first position": 8, "count": 4, "body CRC": 4,
    "previous tag": 8, "tag": 8,
}  # fmt: skip


class Record(NamedTuple):
    """A group record: [start, stop) of a file; `parts` are the lengths of its batches."""

    group: int
    name: str
    start: int
    stop: int
    parts: tuple[int, ...]


@dataclass
class Known:
    """A log that was stopped by a kill (or, `clean`, as it should be)."""

    name: str
    settings: LogSettings
    image: Image = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])
    """Batches behind each group: ends[g] of the first g groups."""
    marked: int = 0
    """The group that the newest mark names."""
    lives: list[Image] = field(default_factory=list)
    """What stood on the disk behind each group: older copies of its files."""

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.image if name != "marks")

    def in_file(self, name: str) -> list[Record]:
        return [record for record in self.records if record.name == name]

    def aligned(self, offset: int) -> int:
        return -(-offset // self.settings.align) * self.settings.align

    def header(self, name: str) -> SegmentHeader:
        return SegmentHeader.unpack(self.image[name][:HEADER], name)


def make(name: str, settings: LogSettings, groups: int, behind: int, *, clean: bool = False) -> Known:
    """A log of `groups` groups, `behind` of them behind the newest mark. Streams, several in an append, several appends."""
    known = Known(name, settings)
    disk = SimDisk()
    log = Log.open(disk, settings, seeded_random(name.encode()))
    writer = Writer()
    for number in range(1, groups + 1):
        several = [("a/1", [b"event %d" % number]), (f"b/{number % 3}", [b"left %d" % number, b"right"])]
        staged = writer.stage(several, [("plain", [b"%d" % number * 40])])
        place = log.commit(staged.parts, staged.batches, staged.next_position)
        writer.accept(staged)
        known.batches += staged.parts
        known.ends.append(len(known.batches))
        start = place.offset - RECORD_HEADER
        parts = tuple(map(len, staged.parts))
        known.records.append(
            Record(number, sorted(disk.names())[place.ordinal - 1], start, start + 64 + sum(parts), parts)
        )
        if start == HEADER:
            known.marked = number - 1  # a roll marks what stands before it
        if number == groups - behind:
            log.mark()
            known.marked = number
        known.lives.append(disk.image())
    if clean:
        log.close()
        known.marked = groups
    else:
        log.abandon()
    known.image = disk.image()
    assert known.marked == (groups if clean else groups - behind), "a roll stands behind the mark that was meant"
    return known


# ---- what damage comes to


class Outcome(NamedTuple):
    """What opening came to; `groups` that were served and the words of a refusal or warning."""

    kind: str
    groups: int
    text: str


def judge(known: Known, image: Image) -> Outcome:
    """Open a damaged copy with the real code and assert what holds for any damage."""
    disk = SimDisk(dict(image))
    try:
        store = Store(disk, known.settings, seeded_random(b"again"))
    except CorruptLog as error:
        refused = Outcome(CORRUPT, 0, str(error))
    except InvalidHeader as error:
        refused = Outcome(INVALID, 0, str(error))
    else:
        return _opened(known, image, disk, store)
    assert disk.image() == image, f"a refusal changed the disk: {refused}"
    return refused


def _opened(known: Known, image: Image, disk: SimDisk, store: Store) -> Outcome:
    index, log = store.index, store.log
    assert log.group >= known.marked, f"cut before the mark: {log.group} of {known.marked} groups"
    rows = index.tail
    assert len(rows.places) == known.ends[log.group]
    for number, place in enumerate(rows.places):
        stored = log.read(place >> PLACE_SHIFT, place & OFFSET_MASK, rows.lengths[number])
        assert stored == known.batches[number], f"batch {number} is another"
    report = log.report
    log.abandon()
    after = disk.image()
    for name in known.segments[:-1]:
        assert after[name] == image[name], f"{name} was changed"
    last = known.segments[-1]
    if report.cut_bytes:
        cut = image[last][report.cut_offset : report.cut_offset + report.cut_bytes]
        assert (report.cut_segment, after[report.quarantine]) == (last, cut), "what was cut is not what was kept"
        assert not image[last][report.cut_offset + report.cut_bytes :].strip(b"\0"), "more was cut than kept"
        assert len(report.warnings) == 1
        return Outcome(TORN, log.group, report.warnings[0])
    assert not report.warnings
    assert not image[last][log.end :].strip(b"\0"), "cut in silence"
    return Outcome(HEALTHY if log.group == len(known.records) else SHORTER, log.group, "")


class Span(NamedTuple):
    """[start, stop) of a file: what stands there, what a flipped bit there leads to, and how many groups are left."""

    start: int
    stop: int
    what: str
    expected: str
    groups: int


def byte_classes(known: Known, name: str) -> list[Span]:
    """Every byte of a file, in order."""
    size, every = len(known.image[name]), len(known.records)
    if name == "marks":
        return [
            Span(0, SLOT, "mark slot", HEALTHY, every),
            Span(SLOT, HEADER, "padding of marks", HEALTHY, every),
            Span(HEADER, HEADER + SLOT, "mark slot", HEALTHY, every),
            Span(HEADER + SLOT, size, "padding of marks", HEALTHY, every),
        ]
    spans = [
        Span(0, 8, "segment header: magic", INVALID, 0),
        Span(8, 10, "segment header: version", INVALID, 0),
        Span(10, 124, "segment header: fields", CORRUPT, 0),
        Span(124, 128, "segment header: CRC", CORRUPT, 0),
        Span(128, HEADER, "padding of the segment header", HEALTHY, every),
    ]
    at = HEADER
    for record in known.in_file(name):
        if record.start > at:
            spans.append(Span(at, record.start, "padding between groups", HEALTHY, every))
        lost = record.group == every > known.marked
        expected, left = (TORN, every - 1) if lost else (CORRUPT, 0)
        where = "last group, not marked" if lost else "group before the end or the mark"
        at = record.start
        for part, length in HEADER_FIELDS.items():
            spans.append(Span(at, at + length, f"{where}: header, {part}", expected, left))
            at += length
        for length in record.parts:
            spans.append(Span(at, at + 56, f"{where}: header of a batch", expected, left))
            spans.append(Span(at + 56, at + length - 4, f"{where}: name and events", expected, left))
            at += length
            spans.append(Span(at - 4, at, f"{where}: CRC of a batch", expected, left))
        assert at == record.stop
    behind = known.aligned(at)
    if behind > at and size > at:
        spans.append(Span(at, min(behind, size), "padding behind the last group", HEALTHY, every))
    if name != known.segments[-1]:
        assert size == behind + RECORD_HEADER
        spans.append(Span(behind, size, "seal", CORRUPT, 0))
    elif size > behind:
        spans.append(Span(behind, size, "prepared zeros", TORN, every))
    return spans


def cut_class(known: Known, name: str, length: int) -> tuple[str, int]:
    """(outcome, groups left) of a file that ends at `length`, which is less than it was."""
    every = len(known.records)
    if name == "marks":
        return (CORRUPT, 0) if length < SLOT else (HEALTHY, every)
    if name != known.segments[-1] or length < HEADER:
        return CORRUPT, 0
    before = every - len(known.in_file(name))
    whole = [record for record in known.in_file(name) if record.stop <= length]
    left = before + len(whole)
    if left < known.marked:
        return CORRUPT, 0
    if left == every:
        return HEALTHY, every
    begins = known.aligned(whole[-1].stop if whole else HEADER)
    return (TORN if length > begins else SHORTER), left


# ---- ways to damage


def patched(image: Image, name: str, offset: int, data: bytes) -> Image:
    """A copy with `data` at this place, the file as long as it must be."""
    old = image[name].ljust(offset, b"\0")
    return {**image, name: old[:offset] + data + old[offset + len(data) :]}


def flips(content: bytes, mask: int) -> Iterator[tuple[int, bytes]]:
    """(offset, content with that byte changed): by `mask`, or (0) by one bit, another one from byte to byte."""
    copy = bytearray(content)
    for offset, byte in enumerate(content):
        copy[offset] = byte ^ (mask or 1 << offset % 8)
        yield offset, bytes(copy)
        copy[offset] = byte


# ---- logs that look authentic and are wrong


def resealed(batch: bytes) -> bytes:
    """A batch with its checksum made again."""
    return batch[:-4] + crc32(batch[:-4]).to_bytes(4, "little")


def parts_of(known: Known, group: int) -> list[bytes]:
    """The batches of a group."""
    return known.batches[known.ends[group - 1] : known.ends[group]]


def remade(known: Known, bodies: dict[int, list[bytes]], counts: dict[int, int] | None = None) -> Image:
    """The log with other batches in some groups, every checksum, tag and link of the chain made again with its keys.

    What a header says of its batches is their count, or that of `counts`; first positions stay what they were.
    """
    image = dict(known.image)
    tag = bytes(8)
    for name in known.segments:
        header = replace(known.header(name), previous_tag=tag)
        content = bytearray(header.pack())
        records = known.in_file(name)
        position = 0
        for record in records:
            parts = bodies.get(record.group, parts_of(known, record.group))
            content += bytes(known.aligned(len(content)) - len(content))
            position = 4 * (record.group - 1)
            count = (counts or {}).get(record.group, len(parts))
            head = pack_group_header(
                header.key, b"".join(parts), record.group, header.ordinal, len(content), position, count, tag
            )
            content += head + b"".join(parts)
            tag = head[-8:]
        if name != known.segments[-1]:
            content += bytes(known.aligned(len(content)) - len(content))
            last = records[-1].group
            content += pack_seal(header.key, last, header.ordinal, len(content), 4 * last, tag)
        image[name] = (
            bytes(content).ljust(len(known.image[name]), b"\0") if name == known.segments[-1] else bytes(content)
        )
    return image
