"""What the log may expect of a disk: the same tests for the real one and the simulated one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from support.faults import FaultyDisk, Killed, Plan
from support.simdisk import ALL_SELECTIONS_MAX, Fault, PowerCut, SimDisk
from tidelog_broker.disk import Disk, RealDisk


@pytest.fixture(params=["real", "sim", "real behind faults"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "sim":
        return SimDisk()
    real = RealDisk(tmp_path)
    return real if request.param == "real" else FaultyDisk(real)


def test_what_was_written_is_read_back_with_zeros_in_holes(disk: Disk) -> None:
    file = disk.create("a")
    assert file.write(5, b"hello") == 5
    assert file.size() == 10
    assert file.read(0, 100) == bytes(5) + b"hello"
    assert file.read(7, 2) == b"ll"
    assert file.read(10, 4) == b""
    assert file.write(6, memoryview(b"a")) == 1
    assert file.read(0, 10) == bytes(5) + b"hallo"


def test_truncate_cuts_and_grows_with_zeros(disk: Disk) -> None:
    file = disk.create("a")
    file.write(0, b"0123456789")
    file.truncate(4)
    assert file.read(0, 10) == b"0123"
    file.truncate(6)
    assert file.read(0, 10) == b"0123\0\0"
    assert file.size() == 6


def test_empty_write_changes_nothing(disk: Disk) -> None:
    file = disk.create("a")
    assert file.write(9, b"") == 0
    assert file.size() == 0


def test_two_open_files_of_one_name_see_one_content(disk: Disk) -> None:
    file = disk.create("a")
    other = disk.open("a", writable=True)
    other.write(0, b"x")
    assert file.read(0, 9) == b"x"
    file.close()
    assert other.read(0, 9) == b"x"


def test_an_open_file_outlives_rename_and_unlink(disk: Disk) -> None:
    file = disk.create("a")
    disk.rename("a", "b")
    file.write(0, b"x")
    assert disk.open("b").read(0, 9) == b"x"
    disk.unlink("b")
    assert file.read(0, 9) == b"x"
    assert disk.names() == []


def test_rename_replaces(disk: Disk) -> None:
    disk.create("a").write(0, b"new")
    disk.create("b").write(0, b"older")
    disk.rename("a", "b")
    assert disk.names() == ["b"]
    assert disk.open("b").read(0, 9) == b"new"


def test_names_are_sorted_and_folders_are_among_them(disk: Disk) -> None:
    disk.create("b")
    disk.create("a")
    disk.make_folder("q")
    disk.create("q/2").write(0, b"x")
    disk.create("q/1")
    assert disk.names() == ["a", "b", "q"]
    assert disk.names("q") == ["1", "2"]
    assert disk.names("nowhere") == []
    disk.sync_folder()
    disk.sync_folder("q")
    assert disk.open("q/2").read(0, 9) == b"x"


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda disk: disk.open("none"), errno.ENOENT),
        (lambda disk: disk.unlink("none"), errno.ENOENT),
        (lambda disk: disk.rename("none", "b"), errno.ENOENT),
        (lambda disk: disk.create("a"), errno.EEXIST),
        (lambda disk: disk.make_folder("f"), errno.EEXIST),
        (lambda disk: disk.create("nowhere/a"), errno.ENOENT),
        (lambda disk: disk.sync_folder("nowhere"), errno.ENOENT),
        (lambda disk: disk.open("a").write(0, b"x"), errno.EBADF),
    ],
)
def test_impossible_calls_raise_the_same_errors(disk: Disk, call: Callable[[Disk], object], number: int) -> None:
    disk.create("a")
    disk.make_folder("f")
    with pytest.raises(OSError) as caught:
        call(disk)
    assert caught.value.errno == number


def test_closed_file_can_not_be_used(disk: Disk) -> None:
    file = disk.create("a")
    file.close()
    with pytest.raises(OSError):
        file.size()


def test_syncs_and_dropped_cache_keep_the_content(disk: Disk) -> None:
    file = disk.create("a")
    file.write(0, b"x" * 10_000)
    file.datasync()
    file.truncate(9_000)
    file.sync()
    file.drop_cache()
    assert file.read(0, 20_000) == b"x" * 9_000


def states(disk: SimDisk) -> set[tuple[tuple[str, bytes], ...]]:
    return {tuple(sorted(image.items())) for image in disk.crash_states(Random(1), 500)}


def test_synced_file_without_a_synced_folder_is_not_there() -> None:
    disk = SimDisk()
    file = disk.create("a")
    file.write(0, b"x")
    file.datasync()
    assert states(disk) == {(), (("a", b"x"),)}
    disk.sync_folder()
    assert states(disk) == {(("a", b"x"),)}


def test_directory_operations_may_each_be_done_or_not_unless_names_are_ordered() -> None:
    found = {}
    for ordered in (False, True):
        disk = SimDisk({"old": b"o"}, ordered_names=ordered)
        disk.create("spare")
        disk.rename("spare", "new")
        disk.unlink("old")
        found[ordered] = {tuple(name for name, _ in state) for state in states(disk)}
    assert found[True] == {("old",), ("old", "spare"), ("new", "old"), ("new",)}
    assert found[False] == found[True] | {("spare",), ()}


def test_rename_of_a_file_whose_creation_is_not_durable_may_leave_neither_name() -> None:
    disk = SimDisk({"marks": b"old"})
    disk.create("marks.tmp")
    disk.rename("marks.tmp", "marks")
    assert () in states(disk)
    disk = SimDisk({"marks": b"old"})
    disk.create("marks.tmp")
    disk.sync_folder()
    disk.rename("marks.tmp", "marks")
    assert states(disk) == {(("marks", b""),), (("marks", b"old"), ("marks.tmp", b""))}


def test_of_many_directory_operations_each_alone_all_but_one_and_all_up_to_one_may_be_done() -> None:
    disk = SimDisk()
    names = [f"{number}" for number in range(ALL_SELECTIONS_MAX + 2)]
    for name in names:
        disk.create(name)
    found = {tuple(sorted(name for name, _ in state)) for state in states(disk)}
    for place, name in enumerate(names):
        assert {(name,), tuple(names[:place]), tuple(names[:place] + names[place + 1 :])} <= found


def test_unsynced_write_may_be_absent_whole_torn_reordered_or_a_hole() -> None:
    disk = SimDisk({"a": b"o" * 512})
    file = disk.open("a", writable=True)
    file.write(500, b"n" * 1_036)
    found = {dict(state)["a"] for state in states(disk)}
    assert b"o" * 512 in found
    assert b"o" * 500 + b"n" * 1_036 in found
    assert b"o" * 500 + b"n" * 12 in found
    assert b"o" * 512 + bytes(1_024) in found
    assert b"o" * 512 + bytes(512) + b"n" * 512 in found
    assert b"o" * 500 + b"n" * 8 + b"o" * 4 in found
    assert all(state[:500] == b"o" * 500 for state in found)
    file.datasync()
    assert states(disk) == {(("a", b"o" * 500 + b"n" * 1_036),)}


OLD, STALE, NEW = b"o" * 1_024, b"s" * 512, b"n" * 1_536
"""A file holds OLD + STALE; STALE is cut off, then NEW is written behind OLD, and nothing is synced."""
KINDS: dict[str, Callable[[bytes], object]] = {
    "absent": lambda tail: tail == STALE,
    "cut off, not written": lambda tail: tail == b"",
    "whole": lambda tail: tail == NEW,
    "a prefix": lambda tail: tail == NEW[:512],
    "reordered, the last sector without those before": lambda tail: tail == bytes(1_024) + NEW[:512],
    "a hole of zeros": lambda tail: tail == NEW[:512] + bytes(512) + NEW[:512],
    "the size without the data": lambda tail: tail == bytes(1_536),
    "torn inside its first sector": lambda tail: tail == NEW[: len(tail)] and 0 < len(tail) < 512,
    "torn inside a later sector": lambda tail: tail == NEW[: len(tail)] and len(tail) % 512,
    "torn, only the end of a sector is new": lambda tail: tail.endswith(b"\0n") or b"\0" * 8 + NEW[:9] in tail[1_025:],
    "old bytes behind new ones": lambda tail: tail.startswith(b"n") and b"s" in tail,
    "new bytes behind old ones": lambda tail: tail.startswith(b"s") and b"n" in tail,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_state_that_an_unsynced_write_may_leave_is_made(kind: str) -> None:
    disk = SimDisk({"a": OLD + STALE})
    file = disk.open("a", writable=True)
    file.truncate(len(OLD))
    file.write(len(OLD), NEW)
    tails = {image["a"].removeprefix(OLD) for seed in range(40) for image in disk.crash_states(Random(seed), 1_000)}
    assert any(KINDS[kind](tail) for tail in tails)


def test_a_few_states_are_enough_to_show_all_undone_all_done_and_what_is_between() -> None:
    disk = SimDisk({"a": OLD})
    disk.open("a", writable=True).write(512, b"n" * 5_000)
    disk.create("b")
    found = [image for image in disk.crash_states(Random(1), 24)]
    assert {"a": OLD} in found
    assert {"a": OLD[:512] + b"n" * 5_000, "b": b""} in found
    assert 24 >= len(found) > len({tuple(image.items()) for image in found}) // 2 > 6


def test_unsynced_truncate_may_be_undone() -> None:
    disk = SimDisk({"a": b"0123456789"})
    disk.open("a", writable=True).truncate(4)
    assert states(disk) == {(("a", b"0123456789"),), (("a", b"0123"),)}


def test_interrupted_sector_keeps_what_the_write_does_not_change_unless_garbage() -> None:
    disk = SimDisk({"a": b"o" * 4_096})
    disk.open("a", writable=True).write(100, b"n" * 50)
    kept = [image["a"] for image in disk.crash_states(Random(1), 500)]
    assert all(content[:100] == b"o" * 100 and content[150:] == b"o" * 3_946 for content in kept)
    garbled = [image["a"] for image in disk.crash_states(Random(1), 500, garbage=True)]
    assert any(content[:100] != b"o" * 100 for content in garbled)


def test_after_a_failed_sync_the_cache_lies_until_it_is_dropped() -> None:
    disk = SimDisk({"a": b"o" * 4_096})
    file = disk.open("a", writable=True)
    file.write(0, b"new")
    disk.fault = lambda op, name: Fault() if op == "datasync" else None
    with pytest.raises(OSError):
        file.datasync()
    disk.fault = None
    file.datasync()
    assert file.read(0, 3) == b"new"
    assert states(disk) == {(("a", b"o" * 4_096),)}
    file.write(4_090, b"y")
    assert ("a", b"new" + b"o" * 4_087 + b"yooooo") in {state[0] for state in states(disk)}
    file.datasync()
    file.drop_cache()
    assert file.read(0, 3) == b"new"


def test_sync_that_fails_midway_may_leave_a_torn_sector_that_only_the_cache_has_whole() -> None:
    for torn, reached in ((False, b"o" * 200), (True, b"n" * 50 + b"o" * 150)):
        disk = SimDisk({"a": b"o" * 200})
        file = disk.open("a", writable=True)
        file.write(0, b"n" * 100)
        disk.fault = lambda op, name, torn=torn: Fault(reached=0.5, torn=torn)
        with pytest.raises(OSError):
            file.sync()
        disk.fault = None
        assert states(disk) == {(("a", reached),)}
        assert file.read(0, 100) == b"n" * 100
        assert disk.is_synced()
        assert not disk.is_faithful()


def test_sticky_pages_outlive_a_dropped_cache() -> None:
    disk = SimDisk({"a": b"old", "b": b"old"}, sticky=("a",))
    disk.fault = lambda op, name: Fault() if op == "sync" else None
    for name in ("a", "b"):
        file = disk.open(name, writable=True)
        file.write(0, b"new")
        with pytest.raises(OSError):
            file.sync()
    disk.fault = None
    twin = disk.clone()
    for name, content in (("a", b"new"), ("b", b"old")):
        file = twin.open(name)
        file.drop_cache()
        assert file.read(0, 3) == content


def test_failed_sync_of_a_folder_keeps_its_operations_under_way() -> None:
    disk = SimDisk()
    disk.create("a")
    disk.fault = lambda op, name: Fault()
    with pytest.raises(OSError):
        disk.sync_folder()
    disk.fault = None
    assert states(disk) == {(), (("a", b""),)}
    disk.sync_folder()
    assert states(disk) == {(("a", b""),)}


def test_dropped_cache_shows_the_platter_and_the_size_of_either() -> None:
    for keep_size, size in ((True, 10), (False, 4_096)):
        disk = SimDisk({"a": b"o" * 4_096}, keep_size=keep_size)
        file = disk.open("a", writable=True)
        file.truncate(10)
        disk.fault = lambda op, name: Fault(reached=0.0)
        with pytest.raises(OSError):
            file.sync()
        disk.fault = None
        assert file.size() == 10
        file.drop_cache()
        assert file.size() == size
        assert states(disk) == {(("a", b"o" * 4_096),)}


def test_killed_process_leaves_its_cache() -> None:
    disk = SimDisk()
    disk.create("a").write(0, b"x")
    twin = disk.clone()
    disk.open("a", writable=True).write(0, b"y")
    assert twin.image() == {"a": b"x"}
    assert states(twin) >= {(), (("a", b""),), (("a", b"x"),)}
    twin.open("a").sync()
    twin.sync_folder()
    assert states(twin) == {(("a", b"x"),)}


def test_power_goes_in_the_planned_call_and_stays_away() -> None:
    disk = SimDisk()
    file = disk.create("a")
    disk.cut_at = 2
    file.write(0, b"x")
    with pytest.raises(PowerCut):
        file.datasync()
    with pytest.raises(PowerCut):
        disk.names()


@pytest.mark.parametrize("kind", ["real", "sim"])
def test_planned_call_fails_once_or_lastingly(kind: str, tmp_path: Path) -> None:
    disk = FaultyDisk(RealDisk(tmp_path) if kind == "real" else SimDisk())
    file = disk.create("a")
    disk.plans = [Plan("write", 2, errno.ENOSPC), Plan("datasync", 1, lasting=True), Plan("write", 3, 0, short=2)]
    assert file.write(0, b"abc") == 3
    with pytest.raises(OSError) as caught:
        file.write(3, b"def")
    assert caught.value.errno == errno.ENOSPC
    assert file.write(3, b"def") == 2
    assert file.read(0, 9) == b"abcde"
    for _ in range(2):
        with pytest.raises(OSError):
            file.datasync()
    file.sync()
    disk.plans = [Plan("", 2, kill=True)]
    file.write(0, b"z")
    with pytest.raises(Killed):
        disk.sync_folder()
    assert disk.trace[-1] == ("sync_folder", "")
