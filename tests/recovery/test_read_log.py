"""The independent reader's verdicts, on logs built here byte by byte from docs/FORMAT.md."""

import base64
import hashlib
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support.independent import SCRIPT, reader

LOG_ID = bytes(range(16))
TIME = 1_700_000_000_000_000


def with_crc(raw: bytes) -> bytes:
    return raw + struct.pack("<I", zlib.crc32(raw))


@dataclass
class Mark:
    group: int
    segment: int
    offset: int
    head: int
    open_segment: int = 1
    open_position: int = 0
    sequence: int = 1

    def encode(self) -> bytes:
        names = (self.sequence, self.group, self.segment, self.offset, self.head, self.open_segment, self.open_position)
        raw = struct.pack("<8sHHI16s7Q20s", b"TideMrk\0", 1, 0, 0, LOG_ID, *names, b"")
        return with_crc(raw).ljust(4096, b"\0")


def batch(
    stream: str, version: int, position: int, payloads: list[bytes], index: int = 0, count: int = 1, flags: int = 0
) -> bytes:
    n, name = len(payloads), stream.encode()
    ids = b"".join(hashlib.md5(b"%d" % (position + i)).digest() for i in range(n))
    types: Any = "added" if n == 1 else [f"type-{i}" for i in range(n)]
    region = msgpack.packb([ids, types, None if n == 1 else [b"m%d" % i for i in range(n)], payloads])
    signature = 0
    for kind in [types] if n == 1 else types:
        signature |= 1 << (zlib.crc32(kind.encode()) & 63)
    length = 56 + len(name) + len(region) + 4
    head = struct.pack("<4B5I", ord("B"), flags, len(name), 1, length, index, count, n, len(region))
    return with_crc(head + struct.pack("<4Q", position, version, TIME, signature) + name + region)


def control(subtype: int, fields: list[Any], index: int = 0, count: int = 1) -> bytes:
    region = msgpack.packb(fields)
    head = struct.pack("<4B5I", ord("C"), 0, 0, subtype, 60 + len(region), index, count, 0, len(region))
    return with_crc(head + struct.pack("<4Q", 0, 0, TIME, 0) + region)


@dataclass
class SegmentWriter:
    ordinal: int = 1
    first_position: int = 0
    first_group: int = 1
    before: bytes = bytes(8)
    align: int = 1
    log_id: bytes = LOG_ID
    version: int = 1
    compacted: tuple[int, int, bytes, list[tuple[int, int]]] | None = None
    suffix: str = ""
    raw: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = hashlib.md5(b"%d" % self.ordinal).digest()
        self.tag, self.group, self.head = self.before, self.first_group - 1, self.first_position
        last, tail = (0, 0), bytes(4)
        if self.compacted:
            next_position, last_group, tag, ranges = self.compacted
            last = (next_position, last_group)
            tail = tag + struct.pack("<I", len(ranges)) + b"".join(struct.pack("<QQ", *pair) for pair in ranges)
        numbers = (self.ordinal, self.first_position, self.first_group, self.key, self.before)
        sizes = (1 << 16, 1 << 16, self.align, 0, 1 << 20, *last)
        start = struct.pack(
            "<8sHHI16s", b"TideSeg\0", self.version, 2 if self.compacted else 1, 124 + len(tail), self.log_id
        )
        raw = with_crc(start + struct.pack("<QQQ16s8s4I3Q", *numbers, *sizes) + tail)
        self.raw += raw.ljust(-(-len(raw) // 4096) * 4096, b"\0")

    @property
    def name(self) -> str:
        return f"{self.ordinal:010}-{self.first_position:020}{self.suffix}"

    def header(self, magic: bytes, body: bytes, number: int, head: int, count: int) -> bytes:
        where = (number, self.ordinal, len(self.raw), head)
        raw = struct.pack("<4sI4QII8s", magic, len(body), *where, count, zlib.adler32(body) if body else 0, self.tag)
        return raw + hashlib.blake2b(raw, digest_size=8, key=self.key).digest()

    def append(self, *batches: bytes, number: int = 0, head: int | None = None, events: int = 0) -> None:
        self.raw += bytes(-len(self.raw) % self.align)
        self.group = number or self.group + 1
        self.head = self.head if head is None else head
        header = self.header(b"TLGR", b"".join(batches), self.group, self.head, len(batches))
        self.raw += header + b"".join(batches)
        self.tag = header[56:]
        self.head += events
        self.ends.append(len(self.raw))

    def seal(self, group: int = 0, head: int | None = None) -> None:
        self.raw += bytes(-len(self.raw) % self.align)
        self.raw += self.header(b"TLSL", b"", group or self.group, self.head if head is None else head, 0)

    def next(self) -> "SegmentWriter":
        return SegmentWriter(self.ordinal + 1, self.head, self.group + 1, self.tag)


def three_groups(align: int = 1) -> SegmentWriter:
    segment = SegmentWriter(align=align)
    segment.append(batch("cart-1", 0, 0, [b"a"]), control(2, ["c", 1, None, 0]), events=1)
    segment.append(batch("cart-1", 1, 1, [b"b", b"c"], 0, 2), batch("cart-2", 0, 3, [b"d"], 1, 2), events=3)
    segment.append(batch("cart-2", 1, 4, [b"e"], flags=1), events=1)
    return segment


def write(path: Path, mark: Mark, *segments: SegmentWriter, zeros: int = 0) -> Path:
    path.mkdir(exist_ok=True)
    older = Mark(0, 0, 0, 0, 0, sequence=0)
    (path / "marks").write_bytes(mark.encode() + older.encode())
    for segment in segments:
        (path / segment.name).write_bytes(bytes(segment.raw) + bytes(zeros))
    return path


def judge(path: Path) -> tuple[int, str]:
    events, verdict = reader.read_log(path)
    return len(events), str(verdict)


def mark_at(segment: SegmentWriter, groups: int, head: int) -> Mark:
    end = segment.ends[groups - 1]
    return Mark(groups, segment.ordinal, end, head, segment.ordinal, segment.first_position)


@pytest.mark.parametrize("align", [1, 512, 4096])
@pytest.mark.parametrize("zeros", [0, 1, 70_000])
def test_a_whole_log_is_whole_whatever_zeros_stand_behind_it(tmp_path: Path, align: int, zeros: int) -> None:
    segment = three_groups(align)
    log = write(tmp_path / "log", mark_at(segment, 3, 5), segment, zeros=zeros)
    events, verdict = reader.read_log(log)
    assert str(verdict) == "whole"
    assert [(e.position, e.stream, e.version, e.payload) for e in events] == [
        (0, "cart-1", 0, b"a"),
        (1, "cart-1", 1, b"b"),
        (2, "cart-1", 2, b"c"),
        (3, "cart-2", 0, b"d"),
        (4, "cart-2", 1, b"e"),
    ]
    assert [e.metadata for e in events] == [b"", b"m0", b"m1", b"", b""]
    assert [e.type for e in events] == ["added", "type-0", "type-1", "added", "added"]
    assert [e.deleted for e in events] == [False] * 4 + [True]
    assert all(e.recorded_at == TIME and e.id == hashlib.md5(b"%d" % e.position).digest() for e in events)


def test_an_empty_log_and_a_directory_without_segments_are_whole(tmp_path: Path) -> None:
    assert judge(write(tmp_path / "log", Mark(0, 0, 0, 0), SegmentWriter())) == (0, "whole")
    assert judge(write(tmp_path / "none", Mark(0, 0, 0, 0, 0))) == (0, "whole")


@pytest.mark.parametrize("zeros", [0, 300])
def test_every_truncation_inside_the_last_group_is_a_torn_tail_while_the_mark_is_behind(
    tmp_path: Path, zeros: int
) -> None:
    segment = three_groups()
    start, stop = segment.ends[1], segment.ends[2]
    mark, whole = mark_at(segment, 2, 4), bytes(segment.raw)
    for size in range(start + 1, stop):
        segment.raw = bytearray(whole[:size])
        kept = len(whole[:size].rstrip(b"\0")) - start
        expected = f"torn tail at segment 1 offset {start}, {kept} bytes"
        assert judge(write(tmp_path / "log", mark, segment, zeros=zeros)) == (4, expected), size


def test_truncations_that_a_mark_contradicts_are_damage(tmp_path: Path) -> None:
    segment = three_groups()
    mark, whole = mark_at(segment, 3, 5), bytes(segment.raw)
    for size in [*range(segment.ends[1], segment.ends[2], 7), segment.ends[2] - 1, segment.ends[0]]:
        segment.raw = bytearray(whole[:size])
        events, verdict = judge(write(tmp_path / "log", mark, segment))
        assert events == (1 if size == segment.ends[0] else 4)
        assert verdict.startswith("DAMAGED: mark 1 names group 3"), size


def test_a_mark_of_a_later_group_an_absent_segment_or_another_place_is_damage(tmp_path: Path) -> None:
    segment = three_groups()
    for mark, proof in [
        (Mark(4, 1, segment.ends[2] + 99, 6), "mark 1 names group 4, the last good one is 3"),
        (Mark(3, 1, segment.ends[2], 5, open_segment=2), "mark 1 names open segment 2, which is not there"),
        (Mark(3, 1, segment.ends[2], 5, open_position=5), "mark 1 names open segment 1, which is not there"),
        (Mark(3, 1, segment.ends[2] - 1, 5), "names another place or head for group 3"),
        (Mark(2, 1, segment.ends[1], 5), "names another place or head for group 2"),
    ]:
        verdict = judge(write(tmp_path / "log", mark, segment))[1]
        assert verdict.startswith("DAMAGED: ")
        assert proof in verdict


def test_a_flipped_byte_in_a_middle_group_is_damage_without_any_mark_behind_it(tmp_path: Path) -> None:
    segment = three_groups()
    whole = bytes(segment.raw)
    for at in range(segment.ends[0], segment.ends[1]):
        segment.raw = bytearray(whole)
        segment.raw[at] ^= 0x10
        events, verdict = judge(write(tmp_path / "log", mark_at(segment, 1, 1), segment))
        assert events == 1
        assert verdict.startswith("DAMAGED: "), at
        assert "authentic header of group 3" in verdict


def test_a_flipped_byte_in_the_last_group_is_a_torn_tail(tmp_path: Path) -> None:
    segment = three_groups()
    whole = bytes(segment.raw)
    for at in range(segment.ends[1], segment.ends[2]):
        segment.raw = bytearray(whole)
        segment.raw[at] ^= 0x10
        assert judge(write(tmp_path / "log", mark_at(segment, 1, 1), segment))[1].startswith("torn tail"), at


def test_a_stale_group_of_another_place_segment_or_key_is_not_authentic(tmp_path: Path) -> None:
    segment = three_groups()
    end = segment.ends[2]
    moved = three_groups()
    moved.append(batch("s", 0, 5, [b"x"]), events=1)
    moved.append(batch("s", 1, 6, [b"y"]), events=1)
    fifth = bytes(moved.raw[moved.ends[3] :])
    gap = moved.ends[3] - end
    other = three_groups()
    other.ordinal = 2  # the right place and key, another segment's number
    other.group, other.tag = 4, bytes(8)
    other.raw += b"\xff" * gap
    other.append(batch("s", 1, 6, [b"y"]))
    other_key = three_groups()
    other_key.key = bytes(16)
    other_key.group = 4
    other_key.raw += b"\xff" * gap
    other_key.append(batch("s", 1, 6, [b"y"]))
    mark = mark_at(segment, 3, 5)
    for junk, verdict in [
        (b"\xff" * (gap + 3) + fifth, "torn tail"),
        (bytes(other.raw[end:]), "torn tail"),
        (bytes(other_key.raw[end:]), "torn tail"),
        (b"\xff" * gap + fifth, "DAMAGED: "),  # the same bytes where they were written
    ]:
        segment.raw[end:] = junk
        events, said = judge(write(tmp_path / "log", mark, segment))
        assert events == 5
        assert said.startswith(verdict), (junk, said)


def test_a_group_right_by_its_checksums_and_wrong_in_its_batches_is_damage_at_the_very_end(tmp_path: Path) -> None:
    append = batch("s", 0, 5, [b"x"], 0, 2), batch("t", 0, 6, [b"y"], 1, 2)
    flipped = bytearray(batch("s", 0, 5, [b"x"]))
    flipped[-6] ^= 1
    for batches, proof in [
        ((batch("s", 0, 6, [b"x"]),), "position 6 does not follow"),
        ((batch("s", 1, 5, [b"x"]),), "version 1 of 's' does not follow"),
        ((batch("cart-1", 2, 5, [b"x"]),), "version 2 of 'cart-1' does not follow"),
        ((batch("cart-2", 2, 5, [b"x"]),), "ended"),
        ((append[0],), "an append is not whole"),
        ((append[0], batch("t", 0, 6, [b"y"], 1, 3)), "index or count of the append"),
        ((append[0], batch("t", 0, 6, [b"y"])), "index or count of the append"),
        ((batch("s", 0, 5, [b"x"], 1, 2),), "index or count of the append"),
        ((batch("s", 0, 5, [b"x", b"y"], flags=1),), "name or count"),
        ((bytes(flipped),), "CRC"),
        ((append[0] + append[1],), "count of batches"),
        ((control(1, ["name"]),), "fields of a control batch"),
        ((control(1, ["name", 1], 0, 2), append[1]), "within an append"),
    ]:
        segment = three_groups()
        segment.append(*batches)
        events, verdict = judge(write(tmp_path / "log", mark_at(segment, 3, 5), segment))
        assert events == 5
        assert verdict.startswith("DAMAGED: ")
        assert proof in verdict
    segment = three_groups()
    segment.tag = bytes(8)
    segment.append(batch("s", 0, 5, [b"x"]))
    assert "chain of tags" in judge(write(tmp_path / "log", mark_at(segment, 3, 5), segment))[1]


def test_the_chain_goes_over_a_seal_into_the_next_segment(tmp_path: Path) -> None:
    def two(**wrong: Any) -> tuple[SegmentWriter, SegmentWriter]:
        first = three_groups()
        if not wrong.pop("unsealed", False):
            first.seal(wrong.pop("group", 0), wrong.pop("head", None))
        first.raw += wrong.pop("junk", b"")
        second = first.next()
        for name, value in wrong.items():
            setattr(second, name, value)
        second.raw = bytearray()
        second.__post_init__()
        second.append(batch("cart-1", 3, second.first_position, [b"f"]), events=1)
        return first, second

    first, second = two()
    mark = Mark(4, 2, second.ends[0], 6, 2, 5)
    assert judge(write(tmp_path / "log", mark, first, second, zeros=64)) == (6, "whole")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"unsealed": True}, "no authentic header behind group 3"),
        ({"group": 4}, "the seal does not name the last group 3"),
        ({"head": 6}, "the seal does not name the last group 3"),
        ({"junk": b"\0\0x"}, "bytes behind the seal"),
        ({"before": bytes(8)}, "does not follow what came before"),
        ({"first_group": 5}, "does not follow what came before"),
        ({"log_id": bytes(16)}, "the log id is not the marks'"),
    ]
    for wrong, proof in cases:
        events, verdict = judge(write(tmp_path / "wrong", Mark(3, 1, first.ends[2], 5, 2, 5), *two(**wrong)))
        assert events == 5
        assert verdict.startswith("DAMAGED: ")
        assert proof in verdict, wrong
    (tmp_path / "log" / first.name).unlink()
    assert judge(tmp_path / "log") == (0, "DAMAGED: segment 1 is not there, segment 2 is")


def test_a_seal_in_the_open_segment_is_an_unfinished_roll_unless_it_names_a_lost_group(tmp_path: Path) -> None:
    segment = three_groups()
    segment.seal()
    mark = mark_at(segment, 3, 5)
    end = segment.ends[2]
    assert judge(write(tmp_path / "log", mark, segment)) == (5, f"torn tail at segment 1 offset {end}, 64 bytes")
    segment.raw[end - 1] ^= 1  # the last group, which the seal names
    verdict = judge(write(tmp_path / "log", mark_at(segment, 2, 4), segment))[1]
    assert verdict.startswith("DAMAGED: ")
    assert "authentic seal of group 3" in verdict


def test_the_highest_compaction_with_a_seal_counts_and_its_gaps_must_be_told(tmp_path: Path) -> None:
    plain = three_groups()
    plain.seal()
    second = plain.next()
    second.append(batch("cart-1", 3, 5, [b"f"]), events=1)
    mark = Mark(4, 2, second.ends[0], 6, 2, 5)

    def compact(ranges: list[tuple[int, int]], suffix: str = ".1") -> SegmentWriter:
        new = SegmentWriter(compacted=(5, 3, plain.tag, ranges), suffix=suffix)
        new.append(batch("cart-1", 1, 1, [b"b", b"c"], 0, 2), number=2, head=1, events=2)
        new.seal(3, 5)
        return new

    unfinished = compact([(0, 1), (3, 5)], ".2")
    del unfinished.raw[-64:]
    unfinished.raw[4100] ^= 1
    log = write(tmp_path / "log", mark, plain, second, compact([(0, 1), (3, 5)]), unfinished)
    events, verdict = reader.read_log(log)
    assert str(verdict) == "whole"
    assert [e.payload for e in events] == [b"b", b"c", b"f"]
    (log / plain.name).unlink()
    assert judge(log) == (3, "whole")
    for ranges, proof in [
        ([(3, 5)], "position 1 does not follow"),
        ([(0, 1), (3, 4)], "events are missing"),
        ([(0, 2), (3, 5)], "stands in a removed range"),
        ([(3, 5), (0, 1)], "order of the ranges"),
    ]:
        wrong = judge(write(tmp_path / "log", mark, second, compact(ranges)))[1]
        assert proof in wrong, ranges


def test_damaged_headers_and_marks_stop_the_reader_and_a_newer_version_is_told_as_such(tmp_path: Path) -> None:
    segment = three_groups()
    mark = mark_at(segment, 3, 5)
    whole = bytes(segment.raw)
    for at in [*range(128), 2000]:
        segment.raw = bytearray(whole)
        segment.raw[at] ^= 0x80
        kind = "NEWER: " if at in (8, 9) else "DAMAGED: "
        assert judge(write(tmp_path / "log", mark, segment))[1].startswith(kind), at
    segment.raw = bytearray(whole)
    log = write(tmp_path / "log", mark, segment)
    marks = bytearray((log / "marks").read_bytes())
    marks[3] ^= 1
    (log / "marks").write_bytes(marks)
    assert judge(log) == (5, "whole")  # the older slot still stands
    (log / "marks").write_bytes(marks[:4096])
    assert judge(log) == (0, "DAMAGED: no good mark while a segment exists")
    (log / "marks").unlink()
    assert judge(log) == (0, "DAMAGED: no good mark while a segment exists")
    segment.append(control(99, []))
    assert judge(write(tmp_path / "log", mark, segment))[1].startswith("NEWER: ")


def base(group: int, tag: bytes, *blocks: list[Any]) -> bytes:
    raw = b"".join(struct.pack("<II", len(b), zlib.crc32(b)) + b for b in map(msgpack.packb, blocks))
    head = struct.pack("<8sHHI16sQQ8sI", b"TideBas\0", 1, 0, zlib.crc32(raw), LOG_ID, group, len(raw), tag, 0)
    return with_crc(head) + raw


def test_behind_a_base_the_chain_and_the_versions_go_on_and_what_it_removed_is_not_read(tmp_path: Path) -> None:
    first = SegmentWriter()
    first.append(batch("cart-1", 0, 0, [b"a"]), events=1)
    first.append(batch("cart-1", 1, 1, [b"b", b"c"], 0, 2), batch("cart-2", 0, 3, [b"d"], 1, 2), events=3)
    first.seal()
    second = first.next()
    second.append(batch("cart-1", 3, 4, [b"e"]), events=1)
    rows: list[Any] = ["streams", [["cart-1", 3, 0, False], ["cart-2", 1, 4, False]]]
    log = write(tmp_path / "log", Mark(3, 2, second.ends[-1], 5, 2, 4), second)
    assert judge(log) == (0, "DAMAGED: segment 1 is not there, segment 2 is")
    cases: list[tuple[int, bytes, list[list[Any]], str]] = [
        (2, first.tag, [["log", 1, 4, 2, 4, TIME, [9, 0, 0]], rows], "whole"),
        (2, first.tag, [["log", 1, 4, 2, 4, TIME, [9, 0, 0]], ["retention rules", []]], "NEWER: "),
        (2, first.tag, [["log", 1, 4, 2, 4, TIME, [9, 0, 0]]], "version 3 of 'cart-1' does not follow"),
        (2, first.tag, [rows], "its first block"),
        (2, bytes(8), [["log", 1, 4, 2, 4, TIME, [9, 0, 0]], rows], "does not follow what came before"),
        (3, first.tag, [["log", 1, 4, 2, 4, TIME, [9, 0, 0]], rows], "does not follow what came before"),
        (2, first.tag, [["log", 1, 3, 2, 4, TIME, [9, 0, 0]], rows], "does not follow what came before"),
        (2, first.tag, [["log", 2, 4, 2, 4, TIME, [9, 0, 0]], rows], "names group 3, the last good one is 2"),
    ]
    for group, tag, blocks, verdict in cases:
        path = log / f"base-{group:020}"
        path.write_bytes(base(group, tag, *blocks))
        found = judge(log)
        assert verdict in found[1], (found, verdict)
        assert found[0] == (1 if verdict == "whole" else 0)
        path.unlink()
    good = base(2, first.tag, ["log", 1, 4, 2, 4, TIME, [9, 0, 0]], rows)
    (log / first.name).write_bytes(bytes(first.raw))  # a leftover of an unfinished removal
    for place in range(len(good)):
        (log / f"base-{2:020}").write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert not judge(log)[1].startswith("whole"), place
    (log / f"base-{2:020}").write_bytes(good)
    assert judge(log) == (1, "whole")


def test_the_command_prints_events_and_groups_and_ends_with_the_verdict(tmp_path: Path) -> None:
    segment = three_groups()
    log = write(tmp_path / "log", mark_at(segment, 2, 4), segment)

    def run(*options: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [sys.executable, SCRIPT, log, *options], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout.splitlines(), done.stderr.strip()

    before = {path: path.read_bytes() for path in log.iterdir()}
    code, lines, summary = run("--json")
    assert (code, summary) == (0, "3 groups, 5 events, whole")
    events = [json.loads(text) for text in lines]
    assert events[4] == {
        "position": 4,
        "stream": "cart-2",
        "version": 1,
        "type": "added",
        "id": hashlib.md5(b"4").hexdigest(),
        "recorded_at": TIME,
        "payload_b64": base64.b64encode(b"e").decode(),
        "metadata_b64": "",
        "deleted": True,
    }
    code, lines, _ = run("--json", "--groups")
    assert [next(iter(json.loads(text))) for text in lines].count("group") == 3
    assert json.loads(lines[2]) == {"control": "cursor", "recorded_at": TIME, "fields": ["c", 1, None, 0]}
    assert len(run("--groups")[1]) == 9
    (log / segment.name).write_bytes(segment.raw[:-1])
    code, lines, summary = run()
    assert code == 1
    assert summary.startswith("2 groups, 4 events, torn tail at segment 1 offset ")
    (log / segment.name).write_bytes(segment.raw[: segment.ends[0]])
    code, lines, summary = run()
    assert code == 65
    assert summary.startswith("1 groups, 1 events, DAMAGED: mark 1 names group 2")
    (log / segment.name).write_bytes(before[log / segment.name])
    assert {path: path.read_bytes() for path in log.iterdir()} == before
