"""The base is no cache: a damaged, foreign or missing one is damage of the log, told with its name, and nothing is changed."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from zlib import crc32

import msgpack
import pytest
from support.independent import reader
from support.simdisk import Fault, Image, SimDisk
from tidelog.errors import CorruptLog, InvalidHeader, OutcomeUnknown
from tidelog_broker import checkpoints
from tidelog_broker.core import base as bases
from tidelog_broker.core.base import Base, BaseReader, KeptAppend, KeptWrite, base_name, write_base
from tidelog_broker.disk import RealDisk
from tidelog_broker.log import LogSettings
from tidelog_broker.repair import plan, repair
from tidelog_broker.store import Store
from tidelog_broker.verify import survey
from truncate.driven import SMALL, Driven, beside, holds, without_index

BASE = Base(
    log_id=b"l" * 16, group=9, tag=b"t" * 8, ordinal=2, head=40, number=20, first_position=41, recorded_at=5,
    window_events=8, window_begins=10, window_young_begins=30,
)  # fmt: skip


def packed(
    base: Base = BASE, kept: tuple[KeptAppend, ...] = (), rows: tuple[tuple[str, list[object]], ...] = ()
) -> bytes:
    parts: list[bytes] = []
    header = write_base(base, kept, rows, parts.append)
    return header + b"".join(parts)


def opened(data: bytes) -> BaseReader:
    return BaseReader(base_name(9), lambda offset, count: data[offset : offset + count], len(data))


def read_all(data: bytes) -> None:
    found = opened(data)
    list(found.kept())
    list(found.rows())


@pytest.fixture(scope="module")
def truncated() -> Driven:
    """A log that lost its first half, with a checkpoint."""
    driven = Driven(SimDisk())
    driven.fill(6)
    driven.truncate(13)
    driven.fill(2)
    assert driven.clear()
    driven.fill(1)
    return driven


def base_of(image: Image) -> str:
    return next(name for name in image if name.startswith("base-"))


# -- bytes


def test_what_is_written_is_read_back_whatever_the_sizes() -> None:
    kept = tuple(
        KeptAppend(
            number,
            bytes([number]) * 32,
            (KeptWrite("s" * 255, 3, 1, 2, b"d" * 16), KeptWrite("µ/x", 5, 0, 1, b"e" * 16)),
        )
        for number in range(20)
    )
    rows: tuple[tuple[str, list[object]], ...] = (
        ("categories", ["", 3]),
        *(("categories", [f"c{number:05d}", number]) for number in range(1_500)),
        *(("streams", [f"s{number:05d}/µ", number, number * 2, number % 2 == 0]) for number in range(1_500)),
    )
    found = opened(packed(kept=kept, rows=rows))
    assert found.base == BASE
    assert tuple(found.kept()) == kept
    assert tuple(found.rows()) == rows
    empty = opened(packed())
    assert (list(empty.kept()), list(empty.rows())) == ([], [])


def test_large_rows_never_make_a_block_that_a_reader_refuses() -> None:
    """A large id window, and appends to thousands of streams: what is deleted next must be readable."""
    writes = tuple(KeptWrite(f"{number:05d}" + "s" * 250, number, 0, 1, b"d" * 16) for number in range(4_000))
    kept = tuple(KeptAppend(number % 20, bytes(64_000), writes) for number in range(60))
    data = packed(kept=kept)
    assert len(data) > bases.BLOCK_BYTES_MAX
    found = opened(data)
    assert sum(len(append.writes) for append in found.kept()) == 240_000
    assert list(found.rows()) == []


def test_every_flipped_bit_and_every_cut_is_seen_and_named() -> None:
    kept = (KeptAppend(3, b"i" * 16, (KeptWrite("a/1", 7, 2, 1, b"d" * 16),)),)
    data = packed(kept=kept, rows=(("categories", ["a", 8]), ("streams", ["a/1", 3, 8, False])))
    damaged = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]
    damaged += [data[:size] for size in range(len(data))] + [data + b"\0"]
    for one in damaged:
        with pytest.raises((CorruptLog, InvalidHeader)) as told:
            read_all(one)
        assert base_name(9) in str(told.value)


def test_a_newer_version_or_a_kind_that_is_not_known_is_refused_as_newer() -> None:
    data = packed()
    newer = data[:8] + b"\2\0" + data[10:60]
    with pytest.raises(InvalidHeader, match="version"):
        opened(newer + struct.pack("<I", crc32(newer)) + data[64:])
    for kind in ("retention rules", "future"):
        with pytest.raises(InvalidHeader, match="newer Tidelog"):
            list(opened(packed(rows=((kind, ["name", 1]),))).rows())


WRONG: dict[str, object] = {
    "no array": 3,
    "no rows": ["streams"],
    "rows that are no array": ["streams", 4],
    "a number as kind": [3, []],
    "no such bytes": b"raw",
    "a short row": ["streams", [["a/1", 3]]],
    "a negative number": ["streams", [["a/1", -1, 3, False]]],
    "a number beyond 2^63": ["categories", [["a", 1 << 63]]],
    "a float": ["categories", [["a", 1.0]]],
    "a name of bytes": ["categories", [[b"a", 1]]],
    "a stream without a name": ["streams", [["", 1, 1, False]]],
    "a stream with NUL": ["streams", [["a\0b", 1, 1, False]]],
    "a deletion that is a number": ["streams", [["a/1", 1, 1, 0]]],
    "names out of order": ["streams", [["b", 1, 1, False], ["a", 1, 1, False]]],
    "a name twice": ["categories", [["a", 1], ["a", 1]]],
    "ids of 15 bytes": ["ids", [[1, b"i" * 15, [["a", 1, 1, 1, b"d"]]]]],
    "a session of three": ["sessions", [["s", 1, 1]]],
    "a session whose results are cut": ["sessions", [["s", 1, 1, b"1234567"]]],
    "a session with a negative epoch": ["sessions", [["s", -1, 1, b""]]],
    "a cursor whose commit is short": ["cursors", [["c", 1, None, 0, b"id"]]],
    "a cursor held by a number": ["cursors", [["c", 1, 7, 0, b""]]],
    "a lease beyond 2^63": ["cursors", [["c", 1, None, 1 << 63, b""]]],
    "an append without writes": ["ids", [[1, b"i" * 16, []]]],
    "a write of four": ["ids", [[1, b"i" * 16, [["a", 1, 1, 1]]]]],
    "a batch behind the base": ["ids", [[20, b"i" * 16, [["a", 1, 1, 1, b"d"]]]]],
}


def with_block(data: bytes, payload: bytes) -> bytes:
    """The same base with one more block, every checksum right."""
    body = data[64:] + struct.pack("<II", len(payload), crc32(payload)) + payload
    head = bytearray(data[:60])
    struct.pack_into("<I", head, 12, crc32(body))
    struct.pack_into("<Q", head, 40, len(body))
    return bytes(head) + struct.pack("<I", crc32(head)) + body


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_shape_under_right_checksums_is_damage(what: str) -> None:
    with pytest.raises(CorruptLog):
        read_all(with_block(packed(), msgpack.packb(WRONG[what])))


def test_kinds_out_of_order_are_damage() -> None:
    data = packed(rows=(("streams", ["a/1", 1, 1, False]),))
    for kind in ("ids", "categories"):
        with pytest.raises(CorruptLog, match="behind streams"):
            list(opened(with_block(data, msgpack.packb([kind, []]))).rows())


# -- in its log


def test_whatever_byte_of_the_base_is_damaged_the_log_is_not_opened_and_not_changed(truncated: Driven) -> None:
    image = without_index(truncated.sim.image())
    name = base_of(image)
    for at in range(len(image[name])):
        data = bytearray(image[name])
        data[at] ^= 0x41
        bad = {**image, name: bytes(data)}
        disk = SimDisk(bad)
        with pytest.raises((CorruptLog, InvalidHeader)) as told:
            Store(disk, SMALL, os.urandom, truncated.indexed)
        assert name in str(told.value)
        assert without_index(disk.image()) == without_index(bad)
        if at % 50 == 0:
            found = survey(SimDisk(bad), SMALL)
            assert (found.exit_code, found.damage is not None) == (65, True)


def test_salvage_of_a_log_without_its_base_has_nothing_to_serve_and_repair_says_so(truncated: Driven) -> None:
    image = truncated.sim.image()
    name = base_of(image)
    bad = {**image, name: image[name][:-1] + b"\0"}
    store = Store.inspect(SimDisk(bad), SMALL)
    assert store.log.damage is not None
    assert name in store.log.damage.text
    disk = SimDisk(bad)
    found = survey(disk, SMALL)
    assert plan(found)
    with pytest.raises(CorruptLog):
        repair(disk, SMALL, os.urandom, accept_loss=True)
    assert disk.image() == bad


def test_a_base_of_another_log_is_damage(truncated: Driven) -> None:
    image = without_index(truncated.sim.image())
    name = base_of(image)
    head = image[name][:16] + b"another log's id" + image[name][32:60]
    disk = SimDisk({**image, name: head + struct.pack("<I", crc32(head)) + image[name][64:]})
    with pytest.raises(CorruptLog, match="belongs to another log"):
        Store(disk, SMALL, os.urandom)


def test_a_segment_that_is_missing_behind_the_base_is_damage_with_and_without_index(truncated: Driven) -> None:
    image = truncated.sim.image()
    segments = sorted(name for name in image if name[:1] == "0")
    assert len(segments) > 2
    for missing in segments[:-1]:
        for one in (image, without_index(image)):
            disk = SimDisk({name: data for name, data in one.items() if name != missing})
            before = without_index(disk.image())
            with pytest.raises(CorruptLog):
                Store(disk, SMALL, os.urandom)
            assert without_index(disk.image()) == before


def test_without_its_base_a_truncated_log_is_damage(truncated: Driven) -> None:
    image = truncated.sim.image()
    disk = SimDisk({name: data for name, data in image.items() if not name.startswith("base-")})
    with pytest.raises(CorruptLog, match="segment 1 is missing"):
        Store(disk, SMALL, os.urandom)


def test_segments_and_bases_that_the_newest_base_tells_of_are_deleted_at_the_start() -> None:
    driven = Driven(SimDisk())
    driven.fill(9)
    driven.truncate(30)
    last = driven.removable()
    driven.save(1)
    driven.save(last)  # killed before anything was deleted
    image = driven.sim.image()
    assert len([name for name in image if name.startswith("base-")]) == 2
    for one in (image, without_index(image)):
        disk = SimDisk(one)
        found = survey(SimDisk(one), SMALL)
        assert (found.exit_code, found.first_position) == (0, driven.model.first)
        started = driven.reopened(disk)
        holds(started)
        left = disk.image()
        assert [name for name in left if name.startswith("base-")] == [max(n for n in image if n.startswith("base-"))]
        assert min(int(name[:10]) for name in left if name[:1] == "0") == last + 1


# -- writing it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_call_that_fails_leaves_the_log_whole_and_no_room_taken_and_the_next_attempt_works(
    number: int, lasting: bool
) -> None:
    driven = Driven(SimDisk())
    driven.fill(8)
    driven.truncate(25)
    driven.store.log.mark()
    group, last = driven.store.log.group, driven.removable()
    failed = 0
    for nth in range(1, 200):
        disk = driven.sim.clone()
        calls = 0

        def decide(op: str, name: str, nth: int = nth) -> Fault | None:
            nonlocal calls
            if not name.startswith("base-") and not (op == "sync_folder" and not name):
                return None
            calls += 1
            hit = calls == nth or (lasting and calls > nth)
            return Fault(number, short=20 if op == "write" else 0) if hit else None

        disk.fault = decide
        try:
            beside(disk, SMALL, driven.indexed, group, last)
        except OSError:
            failed += 1
        disk.fault = None
        left = [name for name in disk.image() if name.endswith(".tmp")]
        assert not left or lasting, "it leaves no room taken"
        holds(driven.reopened(SimDisk(disk.image())), deep=False)
        beside(disk, SMALL, driven.indexed, group, last)
        after = driven.reopened(disk)
        holds(after, deep=False)
        assert after.store.log.base is not None
        if calls < nth:
            break
    assert failed >= 6


def test_a_device_that_gives_back_something_else_costs_no_segment() -> None:
    driven = Driven(SimDisk())
    driven.fill(8)
    driven.truncate(25)
    driven.store.log.mark()
    disk = driven.sim

    def rot(op: str, name: str) -> None:
        if op == "sync" and name.startswith("base-"):
            file = disk._files[name]
            file.cache[-3] ^= 1

    disk.before = rot
    with pytest.raises(OSError, match="does not give back"):
        beside(disk, SMALL, driven.indexed, driven.store.log.group, driven.removable())
    disk.before = None
    assert not [name for name in disk.image() if name.startswith("base-")]
    assert driven.clear()
    holds(driven)


def test_a_base_that_is_damaged_when_the_broker_takes_it_over_removes_nothing() -> None:
    driven = Driven(SimDisk())
    driven.fill(8)
    driven.truncate(25)
    driven.store.log.mark()
    last = driven.removable()
    beside(driven.disk, SMALL, driven.indexed, driven.store.log.group, last)
    name = base_of(driven.sim.image())
    driven.sim._files[name].cache[75] ^= 1
    with pytest.raises(CorruptLog):
        driven.store.use_base()
    assert driven.store.log.to_remove == []
    holds(driven)


def test_a_repeat_that_only_a_damaged_base_could_answer_has_an_unknown_outcome_and_is_not_written() -> None:
    driven = Driven(SimDisk())
    driven.fill(8)
    driven.truncate(driven.store.index.head)
    driven.append(("roll/1", [bytes(1_900)]))
    driven.append(("roll/1", [bytes(1_900)]))
    assert driven.clear()
    removed = driven.model.sent[-3]
    assert driven.stage(repeat=removed)[4:] == removed.places
    driven = driven.reopened()
    name = base_of(driven.sim.image())
    at = 64 + 8 + int.from_bytes(driven.sim.image()[name][64:68], "little")
    driven.sim._files[name].cache[at + 40] ^= 1
    with pytest.raises(OutcomeUnknown, match=name):
        driven.stage(repeat=removed)
    assert not driven.appender.parts
    driven.fill(1)


# -- for others


def test_the_independent_reader_reads_what_is_left(tmp_path: Path) -> None:
    settings = LogSettings(segment_bytes=6_144, group_bytes_max=4_096, zero_step=1_024, prepare_ahead=1_024)
    driven = Driven(RealDisk(tmp_path), settings)
    for position in (0, 13, 30, 30, 47):
        driven.truncate(position)
        driven.clear()
        driven.fill(4)
        events, verdict = reader.read_log(tmp_path)
        assert str(verdict) == "whole"
        # It prints what is stored: what is hidden in the first segment that is left, too.
        rows = [(event.position, (event.stream, event.version, event.payload)) for event in events]
        first = rows[0][0] if rows else driven.store.index.head
        assert first <= driven.model.first
        assert rows == list(enumerate(driven.model.events))[first:]
    driven.store.log.close()


def test_two_processes_that_write_one_base_never_meet_in_one_file() -> None:
    """The child of a killed broker may be about to rename its base when the child of the next begins the same one."""
    driven = Driven(SimDisk())
    driven.fill(6)
    driven.truncate(13)
    driven.fill(2)
    last = driven.removable()
    driven.store.log.mark()
    others: list[str] = []

    def begin_another(op: str, name: str) -> None:
        if op == "rename" and name.startswith("base-") and not others:
            checkpoints.beside(2)
            others.append(checkpoints.temporary(name[:25]))
            if others[0] in driven.disk.names():
                driven.disk.unlink(others[0])
            driven.disk.create(others[0]).write(64, b"not whole yet")
            checkpoints.beside(1)

    driven.sim.before = begin_another
    checkpoints.beside(1)
    try:
        beside(driven.disk, SMALL, driven.indexed, driven.store.log.group, last)
    finally:
        checkpoints.beside(0)
        driven.sim.before = None
    assert others
    holds(driven.reopened())
    assert others[0] not in driven.disk.names()
