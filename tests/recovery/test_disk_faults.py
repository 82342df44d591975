"""No room, syncs that fail with a cache that lies, kills and power cuts at every call, one after the other (spec §§6, 8).

Every other error of every call is in tests/faults/test_fault_matrix.py, the search of crash states in test_crash_states.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from support.builders import Writer, seeded_random
from support.cases import FIRST, HEADER, TINY, Case
from support.faults import FaultyDisk, Killed, MortalDisk, Plan
from support.simdisk import Fault, PowerCut, SimDisk
from tidelog.errors import CorruptLog, StorageFull
from tidelog_broker.disk import Disk
from tidelog_broker.log import FailStop, Log

# ---- T-11, T-12: no room, failing syncs


@pytest.mark.parametrize("plan", [Plan("write", 1, errno.ENOSPC), Plan("write", 1, 0, short=100),
                                  Plan("write", 1, errno.EDQUOT, short=64), Plan("write", 1, errno.EFBIG)])  # fmt: skip
def test_no_room_inside_a_group_rolls_back_and_appends_go_on(case: Case, plan: Plan) -> None:
    """T-11"""
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    case.commit([("s/1", [b"before"])])
    end = case.log.end
    plan.calls = 0
    disk.plans = [plan]
    disk.trace.clear()
    group = case.writer.stage([("s/1", [b"refused" * 50])])
    with pytest.raises(StorageFull):
        case.log.commit(group.parts, group.batches, group.next_position)
    assert [op for op, _ in disk.trace] == ["write", "truncate", "sync"]
    assert len(case.read()) == end == case.log.end
    assert (case.log.head, case.log.group) == (1, 1)
    case.commit([("s/1", [b"after"])])
    case.stop()
    assert case.open() == case.bodies


def test_room_that_runs_out_while_preparing_is_storage_full_until_it_returns(case: Case) -> None:
    """T-11"""
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    case.commit([("s/1", [b"before"])])
    disk.plans = [Plan("write", 1, errno.ENOSPC, lasting=True)]
    assert not case.log.prepare()
    assert case.log.full
    disk.plans = [Plan("write", 2, errno.ENOSPC, lasting=True)]
    large = [("s/1", [case.writer.payload(20_000)])]
    group = case.writer.stage(large)
    for _ in range(2):
        with pytest.raises(StorageFull):
            case.log.commit(group.parts, group.batches, group.next_position)
    disk.plans = []
    case.commit(large)
    assert not case.log.full
    case.stop()
    assert case.open() == case.bodies


def test_no_room_for_the_next_segment_is_storage_full_until_it_returns(tmp_path: Path) -> None:
    """T-11"""
    case = Case(tmp_path / "log", TINY)
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    case.commit([("s/1", [case.writer.payload(6_000)])])
    disk.plans = [Plan("write", 1, errno.ENOSPC, lasting=True, name="spare")]
    group = case.writer.stage([("s/1", [case.writer.payload(7_000)])])
    for _ in range(2):
        with pytest.raises(StorageFull):
            case.log.commit(group.parts, group.batches, group.next_position)
    disk.plans = []
    case.commit([("s/1", [case.writer.payload(7_000)])])
    assert case.log.segments() == 2
    case.stop()
    assert case.open() == case.bodies


@pytest.mark.parametrize("reached", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("power", [False, True])
def test_after_a_failed_data_sync_no_position_ever_names_two_events(reached: float, power: bool) -> None:
    """T-12"""
    disk = SimDisk()
    found: list[bytes] = []
    log = Log.open(disk, TINY, seeded_random(b"1"))
    writer = Writer()
    known = [writer.commit(log, [("s/1", [b"before"])])]
    disk.fault = lambda op, name: Fault(reached=reached) if op == "datasync" else None
    group = writer.stage([("s/1", [writer.payload(3_000)]), ("s/2", [writer.payload(3_000)])])
    with pytest.raises(FailStop):
        log.commit(group.parts, group.batches, group.next_position)
    for start in range(3):
        disk = SimDisk(disk.durable()) if power else disk.clone()
        found.clear()
        log = Log.open(disk, TINY, seeded_random(b"start %d" % start), lambda ordinal, group: found.append(group.body))
        if start == 0:
            assert found in (known, [*known, group.body])
            if len(found) > len(known):
                writer.accept(group)
            known = list(found)
        assert found == known
        known.append(writer.commit(log, [("s/1", [b"start %d" % start])]))


# ---- T-57: kills and power cuts in every phase


def first_start(disk: Disk, seed: bytes = b"first") -> Log:
    return Log.open(disk, TINY, seeded_random(seed))


def creation(disk: Disk) -> Iterator[bytes]:
    first_start(disk)
    yield from ()


def roll(disk: Disk) -> Iterator[bytes]:
    log, writer = first_start(disk), Writer()
    for _ in range(4):
        yield writer.commit(log, [("s/1", [writer.payload(5_000)])])


def roll_of_control_batches(disk: Disk) -> Iterator[bytes]:
    log, writer = first_start(disk), Writer()
    for number in range(4):
        yield writer.commit(log, *(f"session {number} {i} " + "x" * 200 for i in range(24)))


def preparing(disk: Disk) -> Iterator[bytes]:
    log, writer = first_start(disk), Writer()
    while log.prepare():
        pass
    yield writer.commit(log, [("s/1", [writer.payload(7_000)])])
    while log.prepare():
        pass
    yield writer.commit(log, [("s/1", [writer.payload(7_000)])])


def marking(disk: Disk) -> Iterator[bytes]:
    log, writer = first_start(disk), Writer()
    for _ in range(3):
        log.mark()
        yield writer.commit(log, [("s/1", [writer.payload(64)])])
    log.mark()


def clean_stops(disk: Disk) -> Iterator[bytes]:
    writer = Writer()
    for number in range(3):
        log = first_start(disk, b"%d" % number)
        yield writer.commit(log, [("s/1", [writer.payload(64)])])
        log.close()


PHASES = [creation, roll, roll_of_control_batches, preparing, marking, clean_stops]


def recovered(disk: Disk, seed: bytes = b"recovered") -> list[bytes]:
    found: list[bytes] = []
    log = Log.open(disk, TINY, seeded_random(seed), lambda ordinal, group: found.append(group.body))
    log.abandon()
    return found


def recovered_from(path: Path) -> list[bytes]:
    disk = MortalDisk(path)
    try:
        return recovered(disk)
    finally:
        disk.kill()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory without a real disk under it where there is such a thing: a kill leaves what is in the cache."""
    place = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="tl-", dir=place if os.access(place, os.W_OK) else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("phase", PHASES)
def test_kill_before_any_call_keeps_every_acknowledged_group(
    phase: Callable[[Disk], Iterator[bytes]], memory: Path
) -> None:
    """T-57"""
    for number in range(1, 500):
        path = memory / str(number)
        path.mkdir()
        acknowledged: list[bytes] = []
        mortal = MortalDisk(path)
        disk = FaultyDisk(mortal, [Plan("", number, kill=True)])
        try:
            for body in phase(disk):
                acknowledged.append(body)
        except Killed:
            mortal.kill()
        else:
            assert number > 5
            mortal.kill()
            return
        # The next start is killed too, at each call in turn, before one comes through.
        for again in range(1, 60):
            mortal = MortalDisk(path)
            try:
                found = recovered(FaultyDisk(mortal, [Plan("", again, kill=True)]), b"%d" % again)
            except Killed:
                mortal.kill()
                continue
            mortal.kill()
            break
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1
        assert recovered_from(path) == found
        shutil.rmtree(path)
    raise AssertionError("the phase has no end")


@pytest.mark.parametrize("phase", PHASES)
def test_power_cut_in_any_call_keeps_every_acknowledged_group(phase: Callable[[Disk], Iterator[bytes]]) -> None:
    """T-57"""
    rng = Random(57)
    for number in range(1, 500):
        acknowledged: list[bytes] = []
        disk = SimDisk()
        disk.cut_at = number
        try:
            for body in phase(disk):
                acknowledged.append(body)
        except PowerCut:
            pass
        else:
            return
        for image in disk.crash_states(rng, 40):
            found = recovered(SimDisk(image))
            assert found[: len(acknowledged)] == acknowledged
            assert len(found) <= len(acknowledged) + 1
    raise AssertionError("the phase has no end")


def recovery(disk: Disk) -> Iterator[bytes]:
    log, writer = first_start(disk), Writer()
    yield writer.commit(log, [("s/1", [writer.payload(5_000)])])
    file = disk.open(FIRST, writable=True)
    file.write(log.end, b"torn" * 300)
    log = first_start(disk, b"second")
    yield writer.commit(log, [("s/1", [writer.payload(5_000)])])


@pytest.mark.parametrize("reached", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("phase", [*PHASES, recovery])
def test_after_any_sync_that_failed_the_broker_ends_and_whatever_the_disk_has_nothing_acknowledged_is_lost(
    phase: Callable[[Disk], Iterator[bytes]], reached: float
) -> None:
    """T-12: the sync leaves nothing, half or all on the disk and a cache that says otherwise; then a kill, or a power cut."""
    for number in range(1, 200):
        acknowledged: list[bytes] = []
        disk = SimDisk()
        failing = Sync(number, reached)
        disk.fault = failing
        try:
            for body in phase(disk):
                acknowledged.append(body)
        except FailStop:
            pass
        if not failing.failed:
            assert number > 5
            return
        disk.fault = None
        for left in (disk.clone(), SimDisk(disk.durable()), *map(SimDisk, disk.crash_states(Random(number), 8))):
            found = recovered(left)
            assert found[: len(acknowledged)] == acknowledged
            assert len(found) <= len(acknowledged) + 1
            # What was found is durable now: it is what the next starts find, also behind the worst power cut.
            assert recovered(SimDisk(left.durable()), b"again") == found
    raise AssertionError("the phase has no end")


@dataclass(slots=True)
class Sync:
    """The n-th sync of any kind fails, and no other call."""

    nth: int
    reached: float
    calls: int = 0
    failed: bool = False

    def __call__(self, op: str, name: str) -> Fault | None:
        self.calls += op in ("datasync", "sync", "sync_folder")
        if self.calls < self.nth or self.failed:
            return None
        self.failed = True
        return Fault(reached=self.reached)


def test_torn_bytes_are_in_the_segment_or_in_quarantine_at_every_call_of_recovery() -> None:
    disk = SimDisk()
    log, writer = first_start(disk), Writer()
    writer.commit(log, [("s/1", [b"before"])])
    torn = writer.payload(1_500)
    image = disk.durable()
    end = log.end
    image[FIRST] = image[FIRST][:end] + torn + image[FIRST][end + len(torn) :]
    rng = Random(3)
    looked = 0

    def before(op: str, name: str) -> None:
        nonlocal looked
        for state in again.crash_states(rng, 200):
            looked += 1
            kept = [content for name, content in state.items() if name.startswith("quarantine/")]
            assert torn in state[FIRST] or torn in kept, f"before {op} {name}"

    again = SimDisk(image)
    again.before = before
    first_start(again, b"again")
    assert looked > 100
    assert torn in again.image()[f"quarantine/1-{end}-2"]


# ---- descriptors


def test_log_that_let_go_has_no_file_open(tmp_path: Path) -> None:
    case = Case(tmp_path / "log", TINY)
    case.open()
    while case.log.segments() < 3:
        case.commit([("s/1", [case.writer.payload(3_000)])])
    case.log.close()
    assert case.disk.left_open() == []
    case.open()
    case.stop()
    assert case.disk.left_open() == []
    case.flip(HEADER)
    case.refused(CorruptLog)
    assert case.disk.left_open() == []
    case.disk.kill()


def test_log_that_let_go_twice_closes_nothing_twice(case: Case) -> None:
    """A descriptor's number may be another file's by then; MortalFile fails when it is closed again."""
    case.open()
    case.commit([("s/1", [b"kept"])])
    case.log.close()
    case.log.abandon()
    assert case.open() == case.bodies
    for _ in range(2):
        case.log.abandon()
    assert case.disk.left_open() == []


# ---- the order of calls


def test_commit_is_one_write_and_one_data_sync(case: Case) -> None:
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    for _ in range(3):
        disk.trace.clear()
        case.commit([("s/1", [b"a"]), ("s/2", [b"b"])], "session", [("s/3", [b"c"])])
        assert disk.trace == [("write", FIRST), ("datasync", FIRST)]


def test_creation_syncs_each_file_before_its_directory(case: Case) -> None:
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    calls = [(op, name) for op, name in disk.trace if op not in ("names", "open", "size", "read")]
    assert calls[:5] == [
        ("create", "marks.tmp"),
        ("write", "marks.tmp"),
        ("sync", "marks.tmp"),
        ("sync_folder", ""),
        ("rename", "marks.tmp"),
    ]
    assert calls[5:] == [
        ("sync_folder", ""),
        ("create", "spare"),
        ("write", "spare"),
        ("sync", "spare"),
        ("sync_folder", ""),
        ("write", "spare"),
        ("sync", "spare"),
        ("rename", "spare"),
        ("sync_folder", ""),
        ("create", "marks.tmp"),
        ("write", "marks.tmp"),
        ("sync", "marks.tmp"),
        ("sync_folder", ""),
        ("rename", "marks.tmp"),
        ("sync_folder", ""),
    ]
