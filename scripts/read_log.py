#!/usr/bin/env python3
"""Read a Tidelog log directory, prove every checksum, chain and number in it, and print its events.

Written from docs/FORMAT.md alone, shares no code with broker or client and changes nothing: read_log.py DIR [--json]
[--groups]. Events that control batches hide (truncation, retention) are printed: they are stored.
Exit status: 0 whole, 1 torn tail, 65 damaged or of a newer format, 66 not readable at all.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import struct
import sys
import zlib
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack

MARK = struct.Struct("<8sHHI16sQQQQQQQ20sI")
SEGMENT = struct.Struct("<8sHHI16sQQQ16s8sIIIIQQQ")
RECORD = struct.Struct("<4sIQQQQII8s8s")
BATCH = struct.Struct("<BBBBIIIIIQQQQ")
BASE = struct.Struct("<8sHHI16sQQ8sII")
SEGMENT_NAME = re.compile(r"(\d{10})-(\d{20})(?:\.([1-9]\d*))?", re.ASCII)
BASE_NAME = re.compile(r"base-(\d{20})", re.ASCII)
CONTROLS = ["", "session", "cursor", "lease", "truncate-log", "truncate-stream", "retention-rule", "retention-cut"]
CONTROL_FIELDS = [0, 2, 4, 3, 1, 2, 5, 3]
EVENT_MAX, APPEND_EVENTS_MAX, APPEND_BYTES_MAX = 1 << 20, 65_536, 12 << 20
CHUNK = 1 << 20
INT_MAX = (1 << 63) - 1

Event = namedtuple("Event", "position stream version type id recorded_at payload metadata deleted")
Group = namedtuple("Group", "group segment offset first_position batches length")
Control = namedtuple("Control", "control recorded_at fields")
Mark = namedtuple("Mark", "log_id sequence group segment offset head open_segment open_position")
Record = namedtuple("Record", "magic length number segment offset position count sum previous tag")
Items = Iterator[Event | Group | Control]
Batch = namedtuple("Batch", "kind flags name_len layout length index count n region_len position version time types")


class Verdict(NamedTuple):
    kind: str = "whole"  # or "torn", "damaged", "newer"
    segment: int = 0
    offset: int = 0
    length: int = 0
    proof: str = ""

    def __str__(self) -> str:
        if self.kind == "torn":
            return f"torn tail at segment {self.segment} offset {self.offset}, {self.length} bytes"
        return f"{self.kind.upper()}: {self.proof}" if self.proof else self.kind


class Proof(Exception):
    """Why the reading ends: the verdict's kind and the words for it."""


def need(right: object, proof: str, kind: str = "damaged") -> None:
    if not right:
        raise Proof(kind, proof)


def crc_right(raw: bytes) -> bool:
    return zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")


def is_name(value: Any) -> bool:
    right = isinstance(value, str) and 1 <= len(value.encode()) <= 255
    return right and not re.search(r"[\x00-\x1f\x7f-\x9f]", value)


def are_numbers(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value <= INT_MAX for value in values)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def content_end(file: BinaryIO, at: int) -> int:
    """The place behind the last byte from `at` on that is not zero, or `at` when there is none."""
    end = at
    file.seek(at)
    while chunk := file.read(CHUNK):
        kept = len(chunk.rstrip(b"\0"))
        end, at = at + kept if kept else end, at + len(chunk)
    return end


class Segment:
    """One segment file and its header, checked as far as it can be alone."""

    def __init__(self, path: Path, ordinal: int, first_position: int, compacted: bool) -> None:
        self.path, self.name, self.compacted = path, f"segment {path.name}", compacted
        self.size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(SEGMENT.size)
            need(len(raw) == SEGMENT.size and raw[:8] == b"TideSeg\0", f"{self.name}: no segment header")
            head = SEGMENT.unpack(raw)
            need(head[1] < 2, f"{self.name}: InvalidHeader, version {head[1]}", "newer")
            need(128 <= head[3] <= self.size, f"{self.name}: length of the header")
            raw += file.read(head[3] - SEGMENT.size)  # bounded by the file's size
            self.start = round_up(len(raw), 4096)
            padding = file.read(self.start - len(raw))
        need(crc_right(raw), f"{self.name}: CRC of the header")
        self.log_id, self.ordinal, self.first_position, self.first_group, self.key, self.previous = head[4:10]
        self.record_max, _, self.align = head[10:13]
        self.next_position, self.last_group = head[15:17]
        self.last_tag, count = (raw[120:128], int.from_bytes(raw[128:132], "little")) if compacted else (b"", 0)
        need(len(raw) == (136 + 16 * count if compacted else 128), f"{self.name}: length of the header")
        self.removed = list(struct.iter_unpack("<QQ", raw[132:-4])) if compacted else []
        bounds = [first_position, *(bound for pair in self.removed for bound in pair), self.next_position]
        need(not compacted or bounds == sorted(bounds), f"{self.name}: order of the ranges")
        padded = len(raw) + len(padding) == self.start and not padding.strip(b"\0")
        right = head[1:3] == (1, 1 + compacted) and self.align and padded
        need(right, f"{self.name}: version, kind, align or padding of the header")
        need((ordinal, first_position) == (self.ordinal, self.first_position), f"{self.name}: the name is another's")

    def record(self, raw: bytes, at: int) -> Record | None:
        """The group header or seal in `raw`, if it is authentic at the offset `at`."""
        if len(raw) < RECORD.size or raw[:4] not in (b"TLGR", b"TLSL"):
            return None
        record = Record(*RECORD.unpack(raw))
        tag = hashlib.blake2b(raw[:56], digest_size=8, key=self.key).digest()
        return record if record.tag == tag and record[3:5] == (self.ordinal, at) else None

    def has_seal(self) -> bool:
        with self.path.open("rb") as file:
            at = file.seek(self.start)
            while record := self.record(file.read(RECORD.size), at):
                if record.magic == b"TLSL":
                    return True
                at = file.seek(round_up(at + RECORD.size + record.length, self.align))
        return False

    def scan(self, file: BinaryIO, at: int, stop: int) -> Iterator[Record]:
        """Every authentic record that begins in [at, stop), wherever it stands."""
        for base in range(at, min(stop, self.size), CHUNK):
            file.seek(base)
            chunk = file.read(CHUNK + RECORD.size - 1)
            for hit in re.finditer(b"TLGR|TLSL", chunk):
                record = self.record(chunk[hit.start() : hit.start() + RECORD.size], base + hit.start())
                if record and record.offset < stop:
                    yield record

    def is_removed(self, start: int, stop: int) -> bool:
        """Whether every position of [start, stop) is told as removed."""
        for low, high in self.removed:
            start = high if low <= start < high else start
        return start >= stop


class Reader:
    """Walks a log once; `verdict` holds when the walk is over."""

    def __init__(self, path: Path) -> None:
        self.path, self.verdict = path, Verdict()
        self.group, self.tag, self.head = 0, bytes(8), 0  # the last good group, its tag, the position behind it
        self.streams: dict[str, tuple[int, int]] = {}  # next version (-1: ended), compacted segments before it
        self.compactions, self.doubt = 0, ""
        self.removed = 0  # the last segment that a base stands for
        self.told = 0  # up to this group a base tells of sessions and cursors
        self.sessions: dict[str, tuple[int, int]] = {}  # epoch and last serial
        self.cursors: dict[str, tuple[int | None, str | None, int]] = {}  # position, holder, lease

    def walk(self) -> Items:
        try:
            yield from self._walk()
        except Proof as error:
            self.verdict = Verdict(error.args[0], proof=error.args[1])

    def _walk(self) -> Items:
        self.marks = self._read_marks()
        log_id = max(self.marks, key=lambda mark: mark.sequence).log_id if self.marks else None
        files: dict[int, dict[int, tuple[Path, int]]] = {}
        self.bases: dict[int, bytes] = {}
        for path in sorted(self.path.iterdir()):
            if match := SEGMENT_NAME.fullmatch(path.name):
                files.setdefault(int(match[1]), {})[int(match[3] or 0)] = (path, int(match[2]))
            elif match := BASE_NAME.fullmatch(path.name):
                self.bases[int(match[1])] = self._read_base(path, (1, int(match[1]), log_id))
        need(self.marks or not files, "no good mark while a segment exists")
        files = {ordinal: names for ordinal, names in files.items() if ordinal > self.removed}
        for number, ordinal in enumerate(sorted(files), self.removed + 1):
            need(number == ordinal, f"segment {number} is not there, segment {ordinal} is")
            segment = self._choose(ordinal, files[ordinal])
            need(log_id == segment.log_id, f"{segment.name}: the log id is not the marks'")
            begins = (segment.first_group, segment.first_position, segment.previous)
            before = (self.group + 1, self.head, self.tag)
            need(begins == before, f"{segment.name}: group, position or tag does not follow what came before")
            with segment.path.open("rb") as file:
                yield from self._walk_segment(segment, file, ordinal == max(files))
        names = [(f"base-{group}", group) for group in self.bases]
        names += [(f"base-{max(self.bases)}", self.told)] if self.bases else []
        for name, group in names + [(f"mark {mark.sequence}", mark.group) for mark in self.marks]:
            need(group <= self.group, f"{name} names group {group}, the last good one is {self.group} ({self.doubt})")
        for mark in self.marks:
            there = {position for _, position in files.get(mark.open_segment, {}).values()}
            need(
                not mark.open_segment or mark.open_position in there,
                f"mark {mark.sequence} names open segment {mark.open_segment}, which is not there",
            )

    def _read_marks(self) -> list[Mark]:
        path = self.path / "marks"
        with path.open("rb") if path.exists() else io.BytesIO() as file:
            raw = file.read(8192)
        slots = [slot for slot in (raw[:112], raw[4096:4208]) if slot[:10] == b"TideMrk\0\1\0"]
        return [Mark(*MARK.unpack(slot)[4:12]) for slot in slots if len(slot) == 112 and crc_right(slot)]

    def _read_base(self, path: Path, names: tuple[int, int, bytes | None]) -> bytes:
        raw = path.read_bytes()
        need(len(raw) >= 64 and raw[:8] == b"TideBas\0" and crc_right(raw[:64]), f"{path.name}: base header")
        _, version, _, crc, log_id, group, length, tag, _, _ = BASE.unpack_from(raw)
        right = zlib.crc32(raw[64:]) == crc and length == len(raw) - 64 and (version, group, log_id) == names
        need(right, f"{path.name}: CRC, length, version, group or log id")
        self._begin_behind(path.name, group, tag, raw)
        return bytes(tag)

    def _begin_behind(self, name: str, group: int, tag: bytes, raw: bytes) -> None:
        """Start where this base ends; called for each, in the order of their groups."""
        self.streams, self.sessions, self.cursors, at = {}, {}, {}, 64
        kinds = ("log", "ids", "categories", "streams", "sessions", "cursors")
        while at < len(raw):
            need(len(raw) - at >= 8, f"{name}: a block is cut short")
            length, crc = struct.unpack_from("<II", raw, at)
            block = raw[at + 8 : at + 8 + length]
            need(len(block) == length and zlib.crc32(block) == crc, f"{name}: CRC of the block at {at}")
            kind, *values = msgpack.unpackb(block)
            need((kind == "log") == (at == 64), f"{name}: its first block, and no other, is the log's")
            need(kind in kinds, f"{name}: blocks of kind {kind}", "newer")
            if kind == "log":
                self.removed, self.head = values[:2]
                self.group, self.tag = group, tag
                self.told = values[6] if len(values) > 6 else 0
            if kind == "streams":
                for stream, version, _, deleted in values[0]:
                    self.streams[stream] = (-1 if deleted else version, self.compactions)
            for row in values[0] if kind in ("sessions", "cursors") else []:
                right = self._take_session(*row) if kind == "sessions" else self._take_cursor(*row)
                need(right, f"{name}: a row of {kind}")
            at += 8 + length

    def _take_session(self, name: Any, epoch: Any, last: Any, numbers: Any) -> bool:
        """A base's row of a session; whether it can be one."""
        self.sessions[name] = (epoch, last)
        return is_name(name) and are_numbers(epoch, last) and isinstance(numbers, bytes) and len(numbers) % 8 == 0

    def _take_cursor(self, name: Any, position: Any, holder: Any, lease: Any, commit: Any = b"") -> bool:
        """Where a cursor stands, and its lease, from a base or the log; whether it can be so."""
        held = holder is None or (isinstance(holder, str) and holder != "")
        right = held and isinstance(commit, bytes) and len(commit) in (0, 16)
        right = right and is_name(name) and are_numbers(position or 0, lease)
        if right:
            right = lease >= self.cursors.get(name, (None, None, 0))[2]
            self.cursors[name] = (position, holder, lease)
        return right

    def _choose(self, ordinal: int, files: dict[int, tuple[Path, int]]) -> Segment:
        """The highest suffix with a whole header and a seal; the lowest in any case, to explain itself."""
        for suffix in sorted(files, reverse=True):
            path, position = files[suffix]
            try:
                segment = Segment(path, ordinal, position, suffix > 0)
                if suffix == min(files) or segment.has_seal():
                    break
            except Proof as error:
                need(suffix > min(files) and error.args[0] == "damaged", error.args[1], error.args[0])
        return segment

    def _walk_segment(self, segment: Segment, file: BinaryIO, is_open: bool) -> Items:
        need(not (is_open and segment.compacted), f"{segment.name}: compacted, but the last one")
        self.compactions += segment.compacted
        at = end = segment.start
        while True:
            place = f"{segment.name} offset {at}"
            file.seek(at)
            record = segment.record(file.read(RECORD.size), at)
            doubt = self._doubt(segment, record, at)
            if record is None or doubt or record.magic == b"TLSL":
                break
            body = file.read(record.length)  # bounded by group_bytes_max and the file's size
            if zlib.adler32(body) != record.sum:
                doubt = f"sum of the body of group {record.number}"
                break
            need(record.previous == self.tag, f"{place}: group {record.number} does not continue the chain of tags")
            file.seek(end)
            need(not file.read(at - end).strip(b"\0"), f"{place}: bytes between the groups are not zeros")
            items = list(self._batches(segment, record, body, f"{place} group {record.number}"))
            self.group, self.tag = record.number, record.tag
            end = at + RECORD.size + record.length
            at = round_up(end, segment.align)
            same_tag = segment.compacted or self.bases.get(self.group, self.tag) == self.tag
            need(same_tag, f"{place}: base-{self.group} has another tag")
            for mark in self.marks:  # compaction moves the offsets and makes the tags anew
                same = mark.segment == segment.ordinal and mark.offset in (end, at) and mark.head == self.head
                right = same or segment.compacted or mark.group != self.group
                need(right, f"{place}: mark {mark.sequence} names another place or head for group {self.group}")
            yield Group(record.number, segment.ordinal, record.offset, record.position, record.count, record.length)
            yield from items
        if is_open:
            self._judge_tail(segment, file, at)
            self.doubt = f"{place}: {doubt or 'a seal'}"
            return
        need(not doubt, f"{place}: {doubt}")
        if segment.compacted:
            gone = segment.is_removed(self.head, segment.next_position)
            need(gone, f"{place}: events are missing and not told as removed")
            self.group, self.head = segment.last_group, segment.next_position
        assert record is not None  # no doubt: a seal
        named = record[1:3] + record[5:9] == (0, self.group, self.head, 0, 0, self.tag)
        need(named, f"{place}: the seal does not name the last group {self.group}")
        need(content_end(file, at + RECORD.size) == at + RECORD.size, f"{place}: bytes behind the seal")
        self.tag = segment.last_tag or self.tag

    def _doubt(self, segment: Segment, record: Record | None, at: int) -> str:
        """Why the record at this place cannot be the next good one ('' when nothing speaks against it yet)."""
        if record is None:
            return f"no authentic header behind group {self.group}"
        top = segment.last_group if segment.compacted else self.group + 1
        if record.magic == b"TLGR" and not self.group < record.number <= top:
            return f"group {record.number} stands behind group {self.group}"
        too_long = record.length > min(segment.record_max, segment.size - at) - RECORD.size
        return f"length of group {record.number}" if too_long else ""

    def _judge_tail(self, segment: Segment, file: BinaryIO, at: int) -> None:
        for record in segment.scan(file, at, at + 2 * segment.record_max + (16 << 20)):
            what, allowed = ("seal", self.group) if record.magic == b"TLSL" else ("header", self.group + 1)
            what = f"yet an authentic {what} of group {record.number} at offset {record.offset}"
            need(record.number <= allowed, f"{segment.name} offset {at}: last good group {self.group}, {what}")
        if (length := content_end(file, at) - at) > 0:
            self.verdict = Verdict("torn", segment.ordinal, at, length)

    def _batches(self, segment: Segment, record: Record, body: bytes, place: str) -> Iterator[Event | Control]:
        self._advance(segment, record.position, place)
        at = due = due_count = total = events = 0
        session = b""
        for number in range(record.count):
            where = f"{place} batch {number}"
            need(len(body) - at >= BATCH.size + 4, f"{where}: the body ends")
            batch = Batch(*BATCH.unpack_from(body, at))
            need(BATCH.size + 4 <= batch.length <= len(body) - at, f"{where}: length")
            raw, at = body[at : at + batch.length], at + batch.length
            need(crc_right(raw), f"{where}: CRC")
            need(batch.kind in b"BC" and not batch.flags & ~3, f"{where}: kind or flags")
            start = BATCH.size + batch.name_len
            start += 17 + raw[min(start, len(raw) - 1)] if batch.flags & 2 else 0
            need(start + batch.region_len + 4 == len(raw), f"{where}: lengths of the parts")
            if not segment.compacted:  # where the append's other batches may be gone
                follows = batch.index == due and (not due or batch.count == due_count)
                need(follows, f"{where}: index or count of the append")
                due, due_count = (batch.index + 1) % (batch.count or 1), batch.count
            need(batch.index < batch.count, f"{where}: index or count of the append")
            need(batch.kind == ord("C") or batch.layout == 1, f"{where}: layout {batch.layout}", "newer")
            try:
                name, fields = raw[BATCH.size :][: batch.name_len].decode(), msgpack.unpackb(raw[start:-4])
            except (ValueError, msgpack.UnpackException) as error:
                raise Proof("damaged", f"{where}: {error!r}") from error
            if batch.kind == ord("C"):
                yield self._control(batch, fields, where, record.number > self.told)
                continue
            mine = raw[BATCH.size + batch.name_len : start] if batch.flags & 2 else b""
            session = mine if segment.compacted or batch.index == 0 else session
            need(session == mine, f"{where}: two sessions in an append")
            if mine and batch.index == 0 and record.number > self.told:
                self._next_serial(mine, where)
            need(name and 1 <= batch.n <= (1 if batch.flags & 1 else APPEND_EVENTS_MAX), f"{where}: name or count")
            self._advance(segment, batch.position, where)
            self.head += batch.n
            free = all(high <= batch.position or self.head <= low for low, high in segment.removed)
            need(free, f"{where}: stands in a removed range")
            self._next_version(segment, name, batch, where)
            rows, size = self._columns(fields, batch, where)
            fresh = segment.compacted or batch.index == 0
            total, events = (size, batch.n) if fresh else (total + size, events + batch.n)
            need(total <= APPEND_BYTES_MAX and events <= APPEND_EVENTS_MAX, f"{where}: the append is too large")
            for i, (id_, kind, meta, data) in enumerate(rows):
                at_ = (batch.position + i, name, batch.version + i)
                yield Event(*at_, kind, id_, batch.time, data, meta, bool(batch.flags & 1))
        need(record.count and at == len(body) and not due, f"{place}: count of batches, or an append is not whole")

    def _advance(self, segment: Segment, position: int, where: str) -> None:
        follows = self.head <= position and segment.is_removed(self.head, position)
        need(follows, f"{where}: position {position} does not follow, the head is {self.head}")
        self.head = position

    def _next_serial(self, stored: bytes, where: str) -> None:
        name, (epoch, serial) = stored[1:-16].decode("utf-8", "replace"), struct.unpack("<QQ", stored[-16:])
        known, last = self.sessions.get(name, (0, 0))
        need(epoch == known, f"{where}: session {name!r} in epoch {epoch}, {known} is in force (0: none)")
        follows = serial == last + 1 or (serial > last and self.compactions)
        need(follows, f"{where}: serial {serial} of session {name!r} does not follow {last}")
        self.sessions[name] = (epoch, serial)

    def _next_version(self, segment: Segment, name: str, batch: Batch, where: str) -> None:
        due, known = self.streams.get(name, (0, 0))
        gap_allowed = segment.compacted or known < self.compactions  # removed batches leave gaps in the versions
        follows = batch.version == due or (batch.version > due >= 0 and gap_allowed)
        need(follows, f"{where}: version {batch.version} of {name!r} does not follow, {due} is due (-1: ended)")
        self.streams[name] = (-1 if batch.flags & 1 else batch.version + batch.n, self.compactions)

    def _columns(self, fields: Any, batch: Batch, where: str) -> tuple[list[tuple[bytes, str, bytes, bytes]], int]:
        need(isinstance(fields, list) and len(fields) == 4, f"{where}: the region is no array of four")
        ids, types, metadata, payloads = fields
        metadata = [b""] * batch.n if metadata is None else metadata
        need(isinstance(ids, bytes) and len(ids) == 16 * batch.n, f"{where}: event ids")
        columns = ([types] * batch.n if isinstance(types, str) else types, metadata, payloads)
        for column, kind in zip(columns, (str, bytes, bytes), strict=True):
            cells = isinstance(column, list) and len(column) == batch.n and all(type(cell) is kind for cell in column)
            need(cells, f"{where}: a column is not {batch.n} of {kind.__name__}")
        rows = list(zip((ids[at : at + 16] for at in range(0, len(ids), 16)), *columns, strict=True))
        sizes = [16 + len(kind.encode()) + len(meta) + len(data) for _, kind, meta, data in rows]
        need(max(sizes) <= EVENT_MAX, f"{where}: an event is too large")
        bits = {zlib.crc32(kind.encode()) & 63 for kind in columns[0]}
        need(sum(1 << bit for bit in bits) == batch.types, f"{where}: signature of the types")
        return rows, sum(sizes)

    def _control(self, batch: Batch, fields: Any, where: str, tells: bool) -> Control:
        need(1 <= batch.layout < len(CONTROLS), f"{where}: control subtype {batch.layout}", "newer")
        right = not any((batch.name_len, batch.n, batch.position, batch.version, batch.types))
        right = right and batch.index + 1 == batch.count and (batch.count == 1 or batch.layout == 2)
        need(right, f"{where}: a control batch with events, or within an append")
        right = isinstance(fields, list) and len(fields) >= CONTROL_FIELDS[batch.layout]
        need(right, f"{where}: fields of a control batch")
        if tells and batch.layout == 1:
            name, epoch = fields[:2]
            need(is_name(name) and are_numbers(epoch), f"{where}: fields of a session")
            before, last = self.sessions.get(name, (0, 0))
            need(epoch == before + 1, f"{where}: epoch {epoch} of session {name!r} does not follow {before}")
            self.sessions[name] = (epoch, last)
        elif tells and batch.layout == 2:
            need(fields[1] is not None and self._take_cursor(*fields[:5]), f"{where}: fields of a cursor")
        elif tells and batch.layout == 3:
            name, holder, lease = fields[:3]
            position = self.cursors.get(name, (None,))[0] if is_name(name) else None
            need(self._take_cursor(name, position, holder, lease), f"{where}: fields of a lease")
        return Control(CONTROLS[batch.layout], batch.time, fields)


def read_log(path: str | Path) -> tuple[list[Event], Verdict]:
    """All good events of the log in their order, and what is to be said of the whole."""
    reader = Reader(Path(path))
    return [item for item in reader.walk() if isinstance(item, Event)], reader.verdict


def line(item: Any, as_json: bool) -> str:
    shown = item._asdict() | ({"id": item.id.hex()} if isinstance(item, Event) else {})
    if not as_json:
        return " ".join(f"{key} {value}" for key, value in shown.items())
    for key in ("payload", "metadata") if isinstance(item, Event) else ():
        shown[f"{key}_b64"] = base64.b64encode(shown.pop(key)).decode()
    return json.dumps(shown, ensure_ascii=False, default=repr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--groups", action="store_true", help="group and control batch lines too")
    options = parser.parse_args()
    reader, groups, events = Reader(options.dir), 0, 0
    try:
        for item in reader.walk():
            groups, events = groups + isinstance(item, Group), events + isinstance(item, Event)
            if options.groups or isinstance(item, Event):
                print(line(item, options.json))
    except OSError as error:
        print(f"cannot read: {error}", file=sys.stderr)
        return 66
    print(f"{groups} groups, {events} events, {reader.verdict}", file=sys.stderr)
    return {"whole": 0, "torn": 1}.get(reader.verdict.kind, 65)


if __name__ == "__main__":
    sys.exit(main())
