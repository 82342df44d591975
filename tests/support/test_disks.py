"""What the log may expect of a disk: the same tests for the real one and the simulated one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from support.faults import FaultyDisk, Killed, Plan
from support.simdisk import Fault, PowerCut, SimDisk
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


def test_directory_operations_are_durable_in_order() -> None:
    disk = SimDisk({"old": b"o"})
    disk.create("spare")
    disk.rename("spare", "new")
    disk.unlink("old")
    names = {tuple(name for name, _ in state) for state in states(disk)}
    assert names == {("old",), ("old", "spare"), ("new", "old"), ("new",)}


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
