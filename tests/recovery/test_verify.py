"""verify and repair tell a healthy log from a torn and a damaged one, change nothing unasked and throw nothing away (T-41)."""

from __future__ import annotations

import errno
import shutil
import struct
from pathlib import Path
from zlib import crc32

import pytest
from support.builders import HEADER, TIME, event_batch, seeded_random
from support.cases import FIRST, SETTINGS, TINY, Case
from support.faults import FaultyDisk, Killed, MortalDisk, Plan
from tidelog.errors import CorruptLog, InvalidHeader, StorageFull
from tidelog_broker.log import FailStop, LogSettings
from tidelog_broker.repair import plan, repair
from tidelog_broker.store import Store
from tidelog_broker.verify import DAMAGED, HEALTHY, TORN, Survey, survey


def found(case: Case, until: int | None = None) -> Survey:
    """A survey, which must not change a byte."""
    before = case.files()
    disk = MortalDisk(case.path)
    result = survey(disk, LogSettings(), until)
    assert not disk.left_open()
    disk.close()
    assert case.files() == before
    return result


def repaired(case: Case, *, accept_loss: bool = False) -> list[str]:
    disk = MortalDisk(case.path)
    try:
        return repair(disk, case.settings, seeded_random(b"repair"), accept_loss=accept_loss)
    finally:
        disk.kill()


def many(case: Case, groups: int = 12, *, mark: bool = True) -> Case:
    """A log of several small segments, the last group under a mark; `offsets` are the groups' places in their segments."""
    case.settings = TINY
    case.open()
    for _ in range(groups):
        case.commit([("s/1", [case.writer.payload(2_000)]), ("s/2", [b"beside"])])
    if mark:
        case.log.mark()
    case.stop()
    case.offsets = [place(case, number)[1] for number in range(1, groups + 1)]
    return case


def place(case: Case, group: int) -> tuple[str, int]:
    """(segment, offset) of a group's header."""
    for name in sorted(path.name for path in case.path.glob("0*")):
        at = case.read(name).find(b"TLGR", 4_096)
        while at >= 0:
            if case.read(name)[at + 8 : at + 16] == group.to_bytes(8, "little"):
                return name, at
            at = case.read(name).find(b"TLGR", at + 1)
    raise AssertionError(group)


def events(case: Case) -> int:
    """How many events a broker would serve after a start."""
    disk = MortalDisk(case.path)
    try:
        return Store(disk, case.settings, seeded_random(b"count")).index.head
    finally:
        disk.kill()


# -- verdicts


def test_a_log_that_was_stopped_or_killed_between_two_groups_is_healthy(case: Case) -> None:
    many(case)
    killed = found(case)
    assert (killed.verdict, killed.exit_code, killed.clean_stop) == (HEALTHY, 0, False)
    assert (killed.head, killed.events, killed.batches, killed.groups, killed.streams) == (24, 24, 24, 12, 2)
    assert len(killed.segments) > 2
    assert [row["first_position"] for row in killed.segments] == sorted(
        row["first_position"] for row in killed.segments
    )
    case.open()
    case.log.close()
    assert found(case).clean_stop
    assert repaired(case) == []


@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_a_torn_tail_is_told_with_the_bytes_that_a_start_would_cut(case: Case, size: int) -> None:
    case.three()
    case.change(case.end, b"\x01" * size)
    torn = found(case)
    assert (torn.verdict, torn.exit_code) == (TORN, 1)
    assert torn.tail == {"segment": FIRST, "offset": case.end, "bytes": size}
    assert plan(torn) == [f"cut {size} bytes at offset {case.end} of segment {FIRST}, kept in quarantine/"]
    done = repaired(case)
    assert len(done) == 1
    assert case.read(f"quarantine/1-{case.end}-4") == b"\x01" * size
    after = found(case)
    assert (after.verdict, after.head) == (HEALTHY, 3)
    assert after.quarantine == [f"1-{case.end}-4"]


@pytest.mark.parametrize("how", ["sixteen zeroed bytes", "two swapped words"])
@pytest.mark.parametrize("group", [0, 5, 11])
def test_damage_is_told_with_its_place_and_its_proof_and_repair_leaves_it_alone(
    case: Case, how: str, group: int
) -> None:
    many(case)
    name = place(case, group + 1)[0]
    at = case.offsets[group] + 200
    words = case.read(name)[at : at + 16]
    case.change(at, bytes(16) if how.startswith("sixteen") else words[8:12] + words[4:8] + words[:4] + words[12:], name)
    damaged = found(case)
    assert (damaged.verdict, damaged.exit_code) == (DAMAGED, 65)
    hole = damaged.damage
    assert hole is not None
    assert (hole["segment"], hole["offset"], hole["group"], hole["position"]) == (
        name, case.offsets[group], group + 1, 2 * group
    )  # fmt: skip
    assert damaged.events == 2 * group
    assert hole["groups_behind"] == 11 - group
    assert f"behind group {group}" in hole["proof"]
    before = case.files()
    with pytest.raises(CorruptLog) as caught:
        repaired(case)
    assert case.files() == before
    assert caught.value.segment == name


def test_an_event_that_no_client_could_decode_is_damage_though_every_checksum_is_right(case: Case) -> None:
    """A poisoned region: written so, by whatever; verify reads as a client does."""
    case.open()
    case.commit([("s/1", [b"good"])])
    body = b"s/1" + b"\x93\x01\x02\x03"
    head = HEADER.pack(0x42, 0, 3, 1, 56 + len(body) + 4, 0, 1, 1, 4, 1, 1, TIME, 1)
    case.log.commit([head + body + struct.pack("<I", crc32(head + body))], 1, 2)
    case.stop()
    damaged = found(case)
    assert damaged.damage is not None
    assert "can't be decoded" in damaged.damage["proof"]
    assert (damaged.events, damaged.damage["group"]) == (1, 2)


def test_a_group_whose_versions_do_not_follow_is_damage_and_counted_nowhere(case: Case) -> None:
    case.open()
    case.commit([("s/1", [b"good"])])
    case.log.commit([event_batch("s/1", 7, 1, [b"skips"]), event_batch("s/2", 0, 2, [b"beside"])], 2, 3)
    case.stop()
    damaged = found(case)
    assert damaged.damage is not None
    assert "version 7, expected 1" in damaged.damage["proof"]
    assert (damaged.groups, damaged.batches, damaged.events, damaged.streams, damaged.head) == (1, 1, 1, 1, 1)
    assert (damaged.segments[0]["groups"], damaged.damage["position"]) == (1, 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_segment_whose_header_is_bad_or_that_is_missing_is_a_hole_where_it_begins(case: Case, first: bool) -> None:
    many(case)
    names = [row["name"] for row in found(case).segments]
    name = names[0] if first else names[1]
    case.flip(0, name)
    hole = found(case).damage
    assert hole is not None
    assert (hole["segment"], hole["offset"]) == (name, 0)
    assert hole["position"] == int(name[11:])
    (case.path / name).unlink()
    hole = found(case).damage
    assert hole is not None
    assert "is missing" in hole["proof"]


def test_marks_that_can_not_be_read_are_damage_though_every_group_is_good(case: Case) -> None:
    many(case)
    case.change(0, bytes(8_192), "marks")
    damaged = found(case)
    assert damaged.damage is not None
    assert "marks" in damaged.damage["proof"]
    assert damaged.events == 24
    repaired(case, accept_loss=True)
    assert found(case).verdict == HEALTHY
    assert events(case) == 24
    assert case.read("quarantine/marks") == bytes(8_192)


def test_what_is_no_log_and_what_a_newer_tidelog_wrote_is_refused(case: Case) -> None:
    disk = MortalDisk(case.path)
    with pytest.raises(InvalidHeader):
        survey(disk, LogSettings())
    disk.close()
    case.three()
    case.change(8, b"\x02\x00")
    disk = MortalDisk(case.path)
    with pytest.raises(InvalidHeader, match="version"):
        survey(disk, LogSettings())
    assert not disk.left_open()
    disk.close()


def test_a_device_that_can_not_give_a_group_is_damage_there_and_the_groups_before_it_are_told(case: Case) -> None:
    many(case)
    disk = MortalDisk(case.path)
    name = found(case).segments[1]["name"]
    damaged = survey(FaultyDisk(disk, [Plan("read", errno=errno.EIO, nth=2, lasting=True, name=name)]), LogSettings())
    disk.close()
    assert damaged.damage is not None
    assert "can't be read" in damaged.damage["proof"]
    assert damaged.damage["segment"] == name
    before = case.files()
    disk = MortalDisk(case.path)
    with pytest.raises(CorruptLog, match="can't be read"):
        repair(
            FaultyDisk(disk, [Plan("read", nth=2, lasting=True, name=name)]),
            TINY,
            seeded_random(b"r"),
            accept_loss=True,
        )
    disk.kill()
    assert case.files() == before


def test_a_check_up_to_a_group_ignores_what_a_running_broker_writes_behind_it(case: Case) -> None:
    many(case, mark=False)
    last = [row["name"] for row in found(case).segments][-1]
    size = len(case.read(last))
    case.change(case.end, b"\xff" * min(300, size - case.end), last)
    partial = found(case, until=12)
    assert (partial.verdict, partial.groups) == (HEALTHY, 12)
    assert found(case, until=5).groups == 5
    missing = found(case, until=13)
    assert missing.damage is not None
    assert "group 13 was durable" in missing.damage["proof"]


@pytest.mark.parametrize("op", ["sync", "read"])
@pytest.mark.parametrize("name", ["marks", FIRST])
def test_a_bad_sector_hides_nothing_that_stands_before_it(case: Case, op: str, name: str) -> None:
    """Large reads are asked for again in small; what lies behind T, and the marks, are not needed to read the groups."""
    case.three()
    disk = MortalDisk(case.path)
    for nth in range(1, 9):
        one = survey(
            FaultyDisk(disk, [Plan(op, nth=nth, lasting=op == "read" and name == "marks", name=name)]), LogSettings()
        )
        if op == "read" and name == FIRST and nth == 1:
            continue  # the segment's header
        assert one.events == 3, nth
    disk.close()


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_a_quarantine_that_is_no_directory_is_refused_before_anything_is_done(
    case: Case, tmp_path: Path, what: str
) -> None:
    many(case)
    case.flip(case.offsets[4] + 100, place(case, 5)[0])
    (tmp_path / "elsewhere").mkdir()
    if what == "a file":
        (case.path / "quarantine").write_bytes(b"")
    else:
        (case.path / "quarantine").symlink_to(tmp_path / "elsewhere")
    before = case.files()
    with pytest.raises(OSError, match="quarantine must be a directory"):
        repaired(case, accept_loss=True)
    assert case.files() == before
    assert not list((tmp_path / "elsewhere").iterdir())


# -- repair with loss


@pytest.mark.parametrize("group", [0, 3, 11])
def test_accepting_the_loss_ends_the_log_at_the_hole_and_keeps_every_byte_behind_it(case: Case, group: int) -> None:
    many(case)
    names = [row["name"] for row in found(case).segments]
    name = place(case, group + 1)[0]
    case.flip(case.offsets[group] + 100, name)
    kept = case.files()
    plans = plan(found(case))
    assert f"position {2 * group}" in plans[0]
    assert len(plans) == (1 if group == 11 else 2)
    done = repaired(case, accept_loss=True)
    assert done
    after = found(case)
    assert (after.verdict, after.events) == (HEALTHY, 2 * group)
    for later in names[names.index(name) + 1 :]:
        assert case.read(f"quarantine/{later}") == kept[later]
    tail = case.read(f"quarantine/{int(name[:10])}-{case.offsets[group]}-{group + 1}")
    assert tail == kept[name][case.offsets[group] :].rstrip(b"\0")
    assert case.read("quarantine/marks") == kept["marks"]
    assert events(case) == 2 * group


def test_a_segment_whose_header_is_bad_goes_whole_and_the_one_before_it_is_written_on(case: Case) -> None:
    many(case)
    names = [row["name"] for row in found(case).segments]
    case.flip(20, names[1])
    repaired(case, accept_loss=True)
    assert found(case).events == int(names[1][11:])
    case.settings = TINY
    bodies = case.open()
    case.writer.position, case.writer.versions = case.log.head, {"s/1": len(bodies), "s/2": len(bodies)}
    case.commit([("s/1", [b"on"]), ("s/2", [b"beside"])])
    case.log.close()
    assert len(case.open()) == len(bodies) + 1
    assert not case.log.report.warnings


def test_a_log_without_one_good_segment_is_not_touched(case: Case) -> None:
    many(case)
    case.flip(20, FIRST)
    before = case.files()
    assert "only a copy" in plan(found(case))[0]
    with pytest.raises(CorruptLog, match="nothing can be kept"):
        repaired(case, accept_loss=True)
    assert case.files() == before


def test_a_repair_that_is_killed_at_any_call_is_finished_by_the_next(case: Case, tmp_path: Path) -> None:
    many(case)
    names = [row["name"] for row in found(case).segments]
    case.flip(case.offsets[4] + 100, place(case, 5)[0])
    original = tmp_path / "original"
    shutil.copytree(case.path, original)
    whole = {name: (original / name).read_bytes() for name in names}
    for nth in range(1, 200):
        shutil.rmtree(case.path)
        shutil.copytree(original, case.path)
        disk = MortalDisk(case.path)
        try:
            repair(FaultyDisk(disk, [Plan("", nth=nth, kill=True)]), TINY, seeded_random(b"r"), accept_loss=True)
            break
        except Killed:
            pass
        finally:
            disk.kill()
        repaired(case, accept_loss=True)
        after = found(case)
        assert (after.verdict, after.events) == (HEALTHY, 8), nth
        for name in names:
            left = [case.path / name, *(case.path / "quarantine").glob(f"{name}*")]
            content = [path.read_bytes() for path in left if path.exists()]
            assert content, (nth, name)
            assert whole[name] in content or whole[name].startswith(content[0].rstrip(b"\0")), (nth, name)
    else:
        pytest.fail("the repair never ended")
    assert nth > 20
    assert events(case) == 8


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_repair_whose_disk_fails_at_any_call_loses_nothing(case: Case, tmp_path: Path, number: int) -> None:
    many(case)
    case.flip(case.offsets[4] + 100, place(case, 5)[0])
    original = tmp_path / "original"
    whole = case.files()
    shutil.copytree(case.path, original)
    for nth in range(1, 200):
        shutil.rmtree(case.path)
        shutil.copytree(original, case.path)
        disk = MortalDisk(case.path)
        failing = Plan("", nth=nth, errno=number)
        try:
            repair(FaultyDisk(disk, [failing]), TINY, seeded_random(b"r"), accept_loss=True)
        except (FailStop, StorageFull, OSError):
            pass
        except CorruptLog:
            # A sync of the look itself failed: what it read may be the cache's word, so nothing is cut.
            assert case.files() == whole
        finally:
            disk.kill()
        if failing.calls < nth:
            break
        repaired(case, accept_loss=True)
        assert found(case).events == 8, nth
    assert nth > 20


# -- salvage


def test_a_damaged_log_can_be_read_up_to_the_hole_and_not_a_byte_is_changed(case: Case) -> None:
    many(case)
    case.flip(case.offsets[7] + 100, place(case, 8)[0])
    before = case.files()
    disk = MortalDisk(case.path)
    store = Store.inspect(disk, SETTINGS)
    assert store.log.read_only
    assert store.log.damage is not None
    assert store.index.head == 14
    assert [store.batch(number).first_position for number in range(14)] == list(range(14))
    store.log.close()
    assert not disk.left_open()
    disk.close()
    assert case.files() == before
