"""Recovery on a real directory: torn tails are cut and kept, damage is named and nothing touched (spec §8).

`stop` here is a kill: the Log lets go of its files without a word to the disk. What power cuts leave is in
test_crash_states.py.
"""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pytest
from support.builders import event_batch
from support.cases import FIRST, HEADER, SETTINGS, TINY, Case
from tidelog.batch import read_batch
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog_broker.core.format import Mark, pack_group_header, pack_seal, tag_of
from tidelog_broker.log import LogSettings

# ---- T-1, T-2: whole logs and tails of chance bytes


def test_clean_stop_and_open_gives_every_byte_back(case: Case) -> None:
    case.open()
    assert case.log.report.created
    case.commit([("a/1", [b"1", b"2"]), ("b/1", [b"3"])])
    case.commit([("a/1", [b"4", b"5"])])
    case.log.close()
    assert len(case.read()) == case.log.end
    assert case.open() == case.bodies
    assert (case.log.head, case.log.group, case.log.report.warnings) == (5, 2, [])
    versions = [
        (batch.stream, batch.first_version, batch.first_position, batch.events)  # type: ignore[union-attr]
        for batch in (read_batch(case.bodies[0]), read_batch(case.bodies[1]))
    ]
    assert versions == [("a/1", 0, 0, 2), ("a/1", 2, 3, 2)]


@pytest.mark.parametrize("where", ["behind the last group", "at the end of the prepared file", "behind the file"])
def test_ten_chance_bytes_are_cut_and_kept(case: Case, where: str) -> None:
    case.three()
    size = len(case.read())
    chance = Random(2).randbytes(9) + b"\x01"
    at = {"behind the last group": case.end, "at the end of the prepared file": size - 10, "behind the file": size}[
        where
    ]
    case.change(at, chance)
    assert case.open() == case.bodies
    report = case.log.report
    assert case.log.head == 3
    assert (report.cut_segment, report.cut_offset, report.cut_bytes) == (FIRST, case.end, at + 10 - case.end)
    kept = case.read(report.quarantine)
    assert kept == bytes(at - case.end) + chance
    assert str(case.end) in report.warnings[0]
    assert "3 groups" in report.warnings[0]
    assert case.read()[case.end :] == bytes(SETTINGS.zero_step)
    case.works(3)


def test_quarantine_never_overwrites_what_it_holds(case: Case) -> None:
    case.three()
    for number in range(3):
        case.change(case.end, b"chance %d" % number)
        assert case.open() == case.bodies
        case.log.abandon()
    kept = sorted((case.path / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [b"chance 0", b"chance 1", b"chance 2"]
    assert [path.name.partition(".")[2] for path in kept] == ["", "1", "2"]


# ---- T-3, T-4: flipped bytes


def test_flip_in_the_last_unmarked_group_is_a_torn_tail(case: Case) -> None:
    case.three()
    pristine = case.read()
    for offset in range(case.offsets[2], case.end):
        shutil.rmtree(case.path / "quarantine", ignore_errors=True)
        (case.path / FIRST).write_bytes(pristine)
        case.flip(offset)
        assert case.open() == case.bodies[:2]
        assert case.log.head == 2
        case.log.abandon()


def test_flip_in_the_last_group_is_damage_once_a_mark_names_it(case: Case) -> None:
    case.open()
    for number in range(3):
        case.commit([("s/1", [b"event %d" % number])])
    case.log.mark()
    case.stop()
    pristine = case.read()
    for offset in range(case.offsets[2], case.end):
        (case.path / FIRST).write_bytes(pristine)
        case.flip(offset)
        error = case.refused(CorruptLog, "names group 3", "behind group 2")
        assert (error.segment, error.offset) == (FIRST, case.offsets[2])


@pytest.mark.parametrize("group", [1, 2, 51, 99])
@pytest.mark.parametrize("marked", [False, True])
def test_flip_in_the_middle_is_damage_and_nothing_is_changed(case: Case, group: int, marked: bool) -> None:
    case.open()
    for number in range(100):
        case.commit([("s/1", [b"event %d" % number])])
    if marked:
        case.log.mark()
    case.stop()
    pristine = case.read()
    start = case.offsets[group - 1]
    stop = case.offsets[group]
    for offset in (*range(start, start + 64), start + 64, start + 90, stop - 5, *range(stop - 4, stop)):
        (case.path / FIRST).write_bytes(pristine)
        case.flip(offset)
        words = "names group 100" if marked else f"numbered {group + 1}"
        error = case.refused(CorruptLog, FIRST, str(start), words, f"behind group {group - 1}")
        assert (error.segment, error.offset) == (FIRST, start)


def test_flip_in_a_sealed_segment_or_its_seal_is_damage(tmp_path: Path) -> None:
    case = Case(tmp_path / "log", TINY)
    case.open()
    while case.log.segments() < 2:
        case.commit([("s/1", [case.writer.payload(3_000)])])
    case.stop()
    pristine = case.read()
    seal = len(pristine) - 64
    last = pristine.rindex(b"TLGR")
    for offset in (last, last + 20, last + 100, seal, seal + 30, seal + 63):
        (case.path / FIRST).write_bytes(pristine)
        case.flip(offset)
        assert case.refused(CorruptLog, "a later segment exists").segment == FIRST
    (case.path / FIRST).write_bytes(pristine[:seal])
    case.refused(CorruptLog, "a later segment exists")


# ---- T-5, T-48: groups cut short


def cut_anywhere(case: Case, appends: list[Any], replacement: bytes | None) -> None:
    case.open()
    case.commit([("s/1", [b"first"])])
    case.commit([("s/1", [b"second"])])
    case.commit(*appends)
    case.stop()
    pristine = case.files()
    for offset in range(case.offsets[2], case.end):
        shutil.rmtree(case.path)
        case.path.mkdir()
        for name, content in pristine.items():
            (case.path / name).write_bytes(content)
        if replacement is None:
            (case.path / FIRST).write_bytes(pristine[FIRST][:offset])
        else:
            case.change(offset, replacement * (case.end - offset))
        assert case.open() == case.bodies[:2]
        assert case.log.head == 2
        if offset % 16:
            case.log.abandon()
        else:
            bodies, writer = case.bodies, case.writer
            case.works(2)
            case.bodies, case.writer = bodies, writer


@pytest.mark.parametrize("replacement", [None, b"\0", b"\xff"])
def test_group_cut_at_any_byte_is_not_there_and_appends_work_after(case: Case, replacement: bytes | None) -> None:
    cut_anywhere(case, [[("s/1", [b"third", b"fourth", b"fifth"])]], replacement)


def test_group_of_several_appends_cut_at_any_byte_holds_none_of_them(case: Case) -> None:
    cut_anywhere(case, [[("s/1", [b"a"])], [("s/2", [b"b"])], "session", [("s/3", [b"c"])]], None)


def test_append_of_two_writes_torn_between_its_batches_is_not_there(case: Case) -> None:
    case.open()
    case.commit([("s/1", [b"first"])])
    group = case.writer.stage([("s/1", [b"one"]), ("s/2", [b"two"])])
    case.offsets.append(case.log.end)
    case.log.commit(group.parts, group.batches, group.next_position)
    case.stop()
    between = case.offsets[1] + 64 + len(group.parts[0])
    case.change(between, bytes(case.end - between))
    assert case.open() == case.bodies
    case.works(1)


# ---- T-6: tails that look like more


def tail_is_torn(case: Case, tail: bytes) -> None:
    case.change(case.end, tail)
    assert case.open() == case.bodies
    assert case.log.head == 3
    case.works(3)


@pytest.mark.parametrize("zeros", [0, 1, 63, 64, 511, 4_096, 16_384, 100_000])
def test_tail_of_zeros_of_any_length_is_no_tail(case: Case, zeros: int) -> None:
    case.three()
    (case.path / FIRST).write_bytes(case.read()[: case.end] + bytes(zeros))
    assert case.open() == case.bodies
    assert case.log.report.warnings == []
    case.works(3)


def test_forged_headers_and_batches_in_a_torn_payload_prove_nothing(case: Case) -> None:
    case.three()
    header = case.header()
    forged = bytearray(3_000)
    for number, at in ((4, 0), (5, 500), (6, 1_000), (9, 2_000)):
        forged[at : at + 64] = pack_group_header(
            b"not the key 0123", b"x" * 40, number, 1, case.end + 1_000 + at, 3, 1, header.previous_tag
        )
    batch = event_batch("s/1", 3, 3, [b"whole and forged"])
    tail_is_torn(case, bytes(100) + b"TLGR" + bytes(896) + bytes(forged) + batch)


def test_copies_of_our_own_headers_prove_nothing_in_another_place(case: Case) -> None:
    case.three()
    group = case.read()[case.offsets[2] : case.end]
    tail_is_torn(case, bytes(17) + group + case.read()[case.offsets[1] : case.end])


def test_stale_group_of_an_older_life_of_the_segment_proves_nothing(case: Case, tmp_path: Path) -> None:
    older = Case(tmp_path / "older")
    older.starts = 50
    older.open()
    for number in range(9):
        older.commit([("s/1", [b"older %d" % number])])
    older.stop()
    case.three()
    tail_is_torn(case, older.read()[case.end : older.end])


def test_payload_with_our_magic_and_a_whole_batch_is_kept_as_it_is(case: Case) -> None:
    case.open()
    case.commit([("s/1", [b"TLGR" + event_batch("s/1", 0, 0, [b"x"]) + b"TLSL" + bytes(64)])])
    copy = case.read()[case.offsets[0] : case.log.end]
    case.commit([("s/1", [copy])])
    case.stop()
    assert case.open() == case.bodies
    assert case.log.report.warnings == []


# ---- T-7, T-8: authentic records that are wrong


def write_group(case: Case, body: bytes, batches: int = 1, **other: Any) -> None:
    """A group with the right key and chain behind the last one, whatever its body says."""
    header = case.header()
    last = case.read()[case.offsets[-1] : case.offsets[-1] + 64]
    facts: dict[str, Any] = {
        "number": 4,
        "ordinal": 1,
        "offset": case.end,
        "position": 3,
        "previous_tag": last[-8:],
    } | other
    case.change(case.end, pack_group_header(header.key, body, batches=batches, **facts) + body)


@pytest.mark.parametrize("position", [0, 2, 4, 2**63])
def test_position_that_repeats_or_skips_is_damage(case: Case, position: int) -> None:
    case.three()
    write_group(case, event_batch("s/1", 3, position, [b"x"]))
    case.refused(CorruptLog, f"position {position}", "expected 3", FIRST)


def test_group_that_begins_at_another_position_is_damage(case: Case) -> None:
    case.three()
    write_group(case, event_batch("s/1", 3, 5, [b"x"]), position=5)
    case.refused(CorruptLog, "begins at position 5", "expected 3")


def test_batches_that_are_fewer_or_not_whole_appends_are_damage(case: Case) -> None:
    case.three()
    pristine = case.read()
    whole = event_batch("s/1", 3, 3, [b"x"])
    for body, batches, words in (
        (whole, 2, "holds 1 batches, its header says 2"),
        (event_batch("s/1", 3, 3, [b"x"], index=0, count=2), 1, "group 4"),
        (event_batch("s/1", 3, 3, [b"x"], index=1, count=2), 1, "not whole"),
        (whole + event_batch("s/1", 4, 4, [b"x"], index=1, count=2), 2, "not whole"),
        (whole + whole[:20], 1, "behind its last batch"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), 1, "checksum"),
        (b"\0" * len(whole), 1, "does not fit"),
    ):
        (case.path / FIRST).write_bytes(pristine)
        write_group(case, body, batches)
        case.refused(CorruptLog, words)


def test_group_of_another_chain_or_number_is_no_group(case: Case) -> None:
    case.three()
    pristine = case.read()
    body = event_batch("s/1", 3, 3, [b"x"])
    write_group(case, body, previous_tag=b"another!")
    assert case.open() == case.bodies
    case.log.abandon()
    (case.path / FIRST).write_bytes(pristine)
    write_group(case, body, number=5)
    case.refused(CorruptLog, "numbered 5")


@pytest.mark.parametrize("where", ["header of the group", "length of the batch", "region of the batch", "events"])
@pytest.mark.parametrize("marked", [False, True])
def test_huge_lengths_allocate_nothing(case: Case, where: str, marked: bool) -> None:
    case.open()
    for number in range(3):
        case.commit([("s/1", [b"event %d" % number])])
    if marked:
        case.log.mark()
    case.stop()
    huge = b"\xff\xff\xff\xff"
    if where == "header of the group":
        header = case.header()
        head = case.read()[case.offsets[2] : case.offsets[2] + 56]
        head = head[:4] + huge + head[8:40] + huge + head[44:]
        case.change(case.offsets[2], head + tag_of(header.key, head))
        groups = 2
    else:
        body = bytearray(event_batch("s/1", 3, 3, [b"x"]))
        at = {"length of the batch": 4, "region of the batch": 20, "events": 16}[where]
        body[at : at + 4] = huge
        body[-4:] = crc32(body[:-4]).to_bytes(4, "little")
        write_group(case, bytes(body))
        groups = 3
    tracemalloc.start()
    try:
        if where == "header of the group" and not marked:
            assert case.open() == case.bodies[:groups]
        else:
            case.refused(CorruptLog)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# ---- T-9: headers, versions, unfinished files


@pytest.mark.parametrize("size", [0, 1, 8, 100, 127, 128, 4_095])
def test_segment_without_a_whole_header_is_damage(case: Case, size: int) -> None:
    case.three()
    (case.path / FIRST).write_bytes(case.read()[:size])
    case.refused(CorruptLog, FIRST, f"{size} bytes")


def test_any_flip_in_a_segment_header_is_noticed(case: Case) -> None:
    case.three()
    for offset in range(128):
        case.flip(offset)
        case.refused(InvalidHeader if offset < 10 else CorruptLog, FIRST)
        case.flip(offset)
    assert case.open() == case.bodies


@pytest.mark.parametrize("name", ["spare", "marks.tmp", "base-00000000000000000001.tmp"])
@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 10_000])
def test_unfinished_file_of_any_length_is_deleted(case: Case, name: str, size: int) -> None:
    case.three()
    (case.path / name).write_bytes(Random(size).randbytes(size))
    assert case.open() == case.bodies
    assert name not in case.files()
    case.works(3)


@pytest.mark.parametrize("name", [FIRST, "marks"])
def test_wrong_magic_is_named(case: Case, name: str) -> None:
    case.three()
    case.change(0, b"NotOurs!", name)
    if name == "marks":
        case.change(HEADER, b"NotOurs!", name)
        case.refused(CorruptLog, "marks")
    else:
        case.refused(InvalidHeader, "magic", FIRST)


@pytest.mark.parametrize("version", [0, 2, 65_535])
def test_other_version_of_a_segment_is_refused_by_its_number(case: Case, version: int) -> None:
    case.three()
    case.change(8, version.to_bytes(2, "little"))
    case.refused(InvalidHeader, f"version {version}")


def test_missing_segment_is_damage(tmp_path: Path) -> None:
    case = Case(tmp_path / "log", TINY)
    case.open()
    while case.log.segments() < 3:
        case.commit([("s/1", [case.writer.payload(3_000)])])
    case.stop()
    pristine = case.files()
    segments = sorted(name for name in pristine if name[0] == "0")
    for name in segments:
        (case.path / name).unlink()
        case.refused(CorruptLog)
        (case.path / name).write_bytes(pristine[name])
    for name in segments:
        (case.path / name).unlink()
    case.refused(CorruptLog, "open segment 3")
    for name in segments:
        (case.path / name).write_bytes(pristine[name])
    assert case.open() == case.bodies


def test_segment_of_another_log_is_damage(case: Case, tmp_path: Path) -> None:
    other = Case(tmp_path / "other")
    other.starts = 70
    other.three()
    case.three()
    (case.path / FIRST).write_bytes(other.read())
    case.refused(CorruptLog, "another log")


def test_foreign_directory_is_refused_and_unchanged(case: Case) -> None:
    (case.path / "notes.txt").write_text("mine")
    case.refused(InvalidHeader, "notes.txt")


# ---- marks (spec §6.4)


def slots(case: Case) -> list[Mark]:
    marks = case.read("marks")
    found = [Mark.unpack(marks[:112]), Mark.unpack(marks[4_096 : 4_096 + 112])]
    return sorted((mark for mark in found if mark), key=lambda mark: mark.sequence)


def test_marks_are_written_in_turn_and_name_the_last_group(case: Case) -> None:
    case.open(LogSettings(segment_bytes=1 << 20, group_bytes_max=1 << 16, zero_step=1 << 14, mark_groups=2))
    for number in range(9):
        case.commit([("s/1", [b"event %d" % number])])
        older, newer = slots(case)
        assert newer.group == number + 1 - (number + 1) % 2
        assert newer.sequence == older.sequence + 1
    assert (newer.offset, newer.next_position, newer.open_ordinal) == (case.offsets[8], 8, 1)
    case.log.close()
    assert (slots(case)[1].group, slots(case)[1].clean) == (9, True)


def test_strict_marks_each_group_before_it_is_acknowledged(case: Case) -> None:
    case.open(LogSettings(segment_bytes=1 << 20, group_bytes_max=1 << 16, zero_step=1 << 14, strict=True))
    for number in range(5):
        case.commit([("s/1", [b"event %d" % number])])
        assert slots(case)[1].group == number + 1


def test_one_damaged_slot_is_enough_and_is_replaced(case: Case) -> None:
    case.three()
    for place in (0, HEADER):
        case.flip(place + 40, "marks")
        assert case.open() == case.bodies
        assert len(slots(case)) == 2
        case.log.abandon()


@pytest.mark.parametrize("missing", [False, True])
def test_both_slots_bad_or_missing_stops_unless_the_operator_accepts(case: Case, missing: bool) -> None:
    case.three()
    if missing:
        (case.path / "marks").unlink()
    else:
        case.flip(40, "marks")
        case.flip(HEADER + 40, "marks")
    case.refused(CorruptLog, "marks", "--accept-missing-mark")
    settings = LogSettings(
        segment_bytes=1 << 20, group_bytes_max=1 << 16, zero_step=1 << 14, prepare_ahead=1 << 14,
        mark_groups=1_000, accept_missing_mark=True,
    )  # fmt: skip
    assert case.open(settings) == case.bodies
    assert [mark.group for mark in slots(case)] == [3, 3]
    case.works(3)


def test_seal_without_a_next_segment_is_an_unfinished_roll(case: Case) -> None:
    case.three()
    last = case.read()[case.offsets[2] : case.offsets[2] + 64]
    case.change(case.end, pack_seal(case.header().key, 3, 1, case.end, 3, last[-8:]))
    assert case.open() == case.bodies
    assert case.log.report.warnings == []
    case.works(3)


def test_seal_that_names_a_later_group_is_damage(case: Case) -> None:
    case.three()
    case.change(case.end + 500, pack_seal(case.header().key, 4, 1, case.end + 500, 4, bytes(8)))
    case.refused(CorruptLog, "seal", "numbered 4")
