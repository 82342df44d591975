"""From backup files to a log: what it is and goes on as, and that no fault and no kill leaves what only looks like one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from backup.plain import SINCE, SMALL, Place, truncate, unpack
from support.faults import CHANGING, FaultyDisk, Killed, MortalDisk, Plan
from support.independent import reader
from tidelog.errors import CorruptLog
from tidelog_broker.backup import Contents
from tidelog_broker.core.format import SegmentHeader
from tidelog_broker.core.recovery import Group
from tidelog_broker.disk import Disk, RealDisk
from tidelog_broker.log import Log, LogSettings
from tidelog_broker.restore import Joined, restore
from tidelog_broker.verify import HEALTHY, survey


@contextmanager
def real(path: Path) -> Iterator[Disk]:
    disk = RealDisk(path)
    yield disk
    disk.close()


def restored(place: Place, target: Path, *names: str) -> Contents:
    joined = Joined([place.read(name) for name in names])
    contents = joined.judged()
    restore(joined, contents, target, os.urandom, real)
    return contents


def header_of(path: Path) -> SegmentHeader:
    return SegmentHeader.unpack(path.read_bytes()[:4_096], path.name)


def bodies(path: Path) -> list[bytes]:
    """What a start finds; it makes the log ready for new groups, too."""
    found: list[bytes] = []

    def take(ordinal: int, group: Group) -> None:
        found.append(group.body)

    disk = RealDisk(path)
    Log.open(disk, SMALL, os.urandom, take).abandon()
    disk.close()
    return found


@pytest.mark.parametrize("align", [1, 512])
@pytest.mark.parametrize("groups", [0, 1, 8, 20])
def test_a_restored_log_is_what_it_was_at_the_log_point(tmp_path: Path, align: int, groups: int) -> None:
    place = Place(tmp_path, replace(SMALL, align=align))
    place.append(groups)
    place.backup("b")
    place.append(25)
    target = tmp_path / "new"
    contents = restored(place, target, "b")
    assert (contents.group, contents.head, contents.digest) == (groups, 4 * groups, place.digest(groups))
    with real(target) as disk:
        found = survey(disk, SMALL)
    assert (found.verdict, found.head, found.groups, found.tail, found.damage) == (
        HEALTHY,
        4 * groups,
        groups,
        None,
        None,
    )
    assert found.log_id == place.log.log_id.hex()
    events, verdict = reader.read_log(target)
    assert (str(verdict), len(events)) == ("whole", 4 * groups)
    assert bodies(target) == place.bodies[:groups]
    assert (target.stat().st_mode & 0o777, {p.stat().st_mode & 0o777 for p in target.iterdir()}) == (0o700, {0o600})
    place.close()


def test_sealed_segments_are_the_same_bytes_and_the_log_goes_on_in_a_segment_with_a_new_key(place: Place) -> None:
    place.append(20)
    place.backup("b")
    place.append(25)
    target = place.path / "new"
    last = len(unpack((place.path / "b").read_bytes()).parts)
    restored(place, target, "b")
    old, new = (sorted(path for path in where.glob("0*")) for where in (place.data, target))
    assert len(new) == last + 1
    assert len(old) > last
    # The one that was open at the log point has another end, the ones before it are the same.
    assert [path.name for path in new[:-1]] == [path.name for path in old[:last]]
    assert [path.read_bytes() for path in new[: last - 1]] == [path.read_bytes() for path in old[: last - 1]]
    assert header_of(new[last - 1]).key == header_of(old[last - 1]).key
    opened = header_of(new[-1])
    assert (opened.ordinal, opened.first_position, opened.first_group) == (last + 1, 80, 21)
    assert opened.key not in {header_of(path).key for path in [*old, *new[:-1]]}


def test_a_restored_log_goes_on_at_the_head_of_its_log_point(place: Place) -> None:
    place.append(20)
    place.backup("b")
    place.append(9)
    target = place.path / "new"
    contents = restored(place, target, "b")
    disk = RealDisk(target)
    log = Log.open(disk, SMALL, os.urandom)
    assert (log.group, log.head) == (20, contents.head)
    place.writer.position, place.writer.versions = 80, {"a/0": 14, "a/1": 14, "a/2": 12, "b": 40}
    body = place.writer.commit(log, [("a/0", [b"x"])])
    log.close()
    disk.close()
    assert bodies(target) == [*place.bodies[:20], body]


def test_a_chain_of_backups_is_restored_as_one(place: Place) -> None:
    sizes = []
    older = None
    for number, groups in enumerate((20, 30, 1, 40)):
        place.append(groups)
        place.backup(f"b{number}", older)
        older = place.read(f"b{number}")
        sizes.append((place.path / f"b{number}").stat().st_size)
    assert sizes[2] < sizes[0] / 2, "a small step makes a small file"
    contents = restored(place, place.path / "new", "b3", "b0", "b2", "b1")
    assert (contents.group, contents.digest) == (91, place.digest(91))
    assert bodies(place.path / "new") == place.bodies
    assert Joined([place.read("b1"), place.read("b0")]).judged().digest == place.digest(50)
    for names in (["b3"], ["b3", "b2", "b1"], ["b3", "b1", "b0"], ["b1"]):
        with pytest.raises(CorruptLog, match="the older backup that it was made since is needed, too"):
            Joined([place.read(name) for name in names])


def test_an_older_backup_that_has_no_whole_segment_is_not_needed(place: Place) -> None:
    place.backup("b0")
    place.append(2)
    place.backup("b1", place.read("b0"))
    place.append(2)
    place.backup("b2", place.read("b1"))
    assert unpack((place.path / "b2").read_bytes()).fields[SINCE] == bytes(32)
    assert restored(place, place.path / "new", "b2", "b1").digest == place.digest(4)


def test_an_older_backup_of_another_log_or_another_history_is_refused(place: Place, tmp_path: Path) -> None:
    place.append(60)
    place.backup("b0", group=10)
    place.backup("b1")
    (tmp_path / "x").mkdir()
    other = Place(tmp_path / "x")
    other.append(30)
    other.backup("c")
    with pytest.raises(CorruptLog, match="of another log"):
        place.backup("b2", other.read("c"))
    restored(place, tmp_path / "new", "b0")
    other.close()
    fork = Place(place.path, name="new")
    fork.writer, fork.bodies = place.writer, place.bodies[:10]
    fork.writer.position, fork.writer.versions = 40, {"a/0": 8, "a/1": 6, "a/2": 6, "b": 20}
    with pytest.raises(CorruptLog, match="goes up to group 60, and the log only to 10"):
        fork.backup("b2", place.read("b1"))
    fork.append(20)
    fork.backup("f1")
    fork.append(40)
    fork.backup("f2", fork.read("f1"))
    with pytest.raises(CorruptLog, match="another history"):
        fork.backup("b2", place.read("b1"))
    fork.backup("b2", place.read("b0"))
    assert Joined([place.read("b2"), place.read("b0")]).judged().group == 70
    assert Joined([place.read("f2"), place.read("f1")]).judged().group == 70
    # A file that says it goes with another one is found out by the chain of its groups.
    lie = unpack((place.path / "f2").read_bytes()).field(SINCE, place.read("b1").digest)
    place.write("b3", lie.pack())
    with pytest.raises(CorruptLog, match="it begins with group"):
        Joined([place.read("b3"), place.read("b1")]).judged()
    fork.close()


@pytest.mark.parametrize("behind", [0, 1, 40])
def test_a_log_whose_beginning_was_truncated_is_restored_with_its_base(place: Place, behind: int) -> None:
    place.append(60)
    group = truncate(place, 2)
    place.backup("b", group=group + behind)
    contents = restored(place, place.path / "new", "b")
    assert (contents.group, contents.head, contents.groups) == (group + behind, 4 * (group + behind), behind)
    names = sorted(path.name for path in (place.path / "new").iterdir())
    assert (names[0][:10], names[-2:]) == ("0000000003", [f"base-{group:020d}", "marks"])
    assert bodies(place.path / "new") == place.bodies[group : group + behind]


# Faults and kills


class Faulty:
    """Disks of any directory with the same plans; `kill` closes what a killed process would have left open."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = list(plans)
        self.calls: list[tuple[str, str]] = []
        self._disks: list[MortalDisk] = []

    @contextmanager
    def __call__(self, path: Path) -> Iterator[Disk]:
        disk = MortalDisk(path)
        self._disks.append(disk)
        yield FaultyDisk(disk, self.plans, self.calls)

    def kill(self) -> None:
        for disk in self._disks:
            disk.kill()


def changing(calls: list[tuple[str, str]]) -> int:
    return sum(op in CHANGING for op, _ in calls)


def test_a_kill_before_any_call_of_a_restore_leaves_no_log_or_a_whole_one(place: Place) -> None:
    place.append(20)
    place.backup("b")
    joined = Joined([place.read("b")])
    contents = joined.judged()
    counted = Faulty()
    restore(joined, contents, place.path / "all", os.urandom, counted)
    counted.kill()
    points = changing(counted.calls)
    assert points > 25
    whole = 0
    for nth in range(1, points + 1):
        target = place.path / f"new{nth}"
        faulty = Faulty(Plan("", nth, kill=True, lasting=True))
        with pytest.raises(Killed):
            restore(joined, contents, target, os.urandom, faulty)
        faulty.kill()
        unfinished = target.with_name(target.name + ".restoring")
        if target.exists():
            whole += 1
            assert bodies(target) == place.bodies
            continue
        held = os.listdir(unfinished) if unfinished.exists() else []
        if "marks" not in held and any(name.startswith("0") for name in held):
            # Even who takes the unfinished directory for a log is not believed.
            with pytest.raises(CorruptLog), real(unfinished) as disk:
                Log.open(disk, LogSettings(), os.urandom)
    assert whole == 1, "only the last call, the sync of the folder, comes behind the rename"
    print(f"{points} points of kill")


def test_a_kill_before_any_call_of_a_backup_leaves_no_file_or_a_whole_one(place: Place) -> None:
    place.append(20)
    counted = Faulty()
    with counted(place.path) as folder:
        place.backup("all", folder=folder)
    counted.kill()
    points = changing(counted.calls)
    assert points > 15
    whole = 0
    for nth in range(1, points + 1):
        faulty = Faulty(Plan("", nth, kill=True, lasting=True))
        with pytest.raises(Killed), faulty(place.path) as folder:
            place.backup(f"b{nth}", folder=folder)
        faulty.kill()
        if (place.path / f"b{nth}").exists():
            whole += 1
            assert Joined([place.read(f"b{nth}")]).judged().group == 20
    assert whole == 1
    print(f"{points} points of kill")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_any_call_of_a_restore_leaves_nothing(place: Place, code: int) -> None:
    place.append(20)
    place.backup("b")
    joined = Joined([place.read("b")])
    contents = joined.judged()
    counted = Faulty()
    restore(joined, contents, place.path / "all", os.urandom, counted)
    counted.kill()
    before = sorted(os.listdir(place.path))
    points = changing(counted.calls)
    for nth in range(1, points):
        faulty = Faulty(Plan("", nth, errno=code))
        with pytest.raises(OSError, match=r"."):
            restore(joined, contents, place.path / "new", os.urandom, faulty)
        faulty.kill()
        assert sorted(os.listdir(place.path)) == before, nth


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_any_call_of_a_backup_leaves_nothing(place: Place, code: int) -> None:
    place.append(20)
    counted = Faulty()
    with counted(place.path) as folder:
        place.backup("all", folder=folder)
    counted.kill()
    before = sorted(os.listdir(place.path))
    for nth in range(1, changing(counted.calls)):
        faulty = Faulty(Plan("", nth, errno=code))
        with pytest.raises(OSError, match=r"."), faulty(place.path) as folder:
            place.backup("b", folder=folder)
        faulty.kill()
        assert sorted(os.listdir(place.path)) == before, nth


def test_short_writes_are_no_error(place: Place) -> None:
    place.append(20)
    plans = [Plan("write", nth, errno=0, short=7) for nth in range(1, 40, 3)]
    faulty = Faulty(*plans)
    with faulty(place.path) as folder:
        place.backup("b", folder=folder)
    joined = Joined([place.read("b")])
    for plan in plans:
        plan.calls = 0
        plan.name = "0000"
    restore(joined, joined.judged(), place.path / "new", os.urandom, faulty)
    faulty.kill()
    assert bodies(place.path / "new") == place.bodies


def test_a_disk_that_keeps_something_else_than_it_was_given_is_found_out(place: Place) -> None:
    """The new log is read back before it gets its name."""
    place.append(20)
    place.backup("b")
    joined = Joined([place.read("b")])

    class Losing(RealDisk):
        def sync_folder(self, folder: str = "") -> None:
            super().sync_folder(folder)
            segment = self.path / "0000000001-00000000000000000000"
            if segment.exists():
                segment.write_bytes(segment.read_bytes().replace(b"a/1", b"a/2", 1))

    @contextmanager
    def losing(path: Path) -> Iterator[Disk]:
        disk = Losing(path)
        yield disk
        disk.close()

    with pytest.raises(CorruptLog):
        restore(joined, joined.judged(), place.path / "new", os.urandom, losing)
    assert not list(place.path.glob("new*"))
