"""Killed before any call of a checkpoint, or failing there, it costs a later start some time and nothing else (T-37)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from index.small_logs import INDEXED, SETTINGS, SmallLog, answers, files_of, rebuilt, started, tiny
from support.simdisk import Fault, PowerCut, SimDisk
from tidelog_broker.store import Store

CALLS_MAX = 200


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with tiny():
        yield


@pytest.fixture(scope="module")
def log() -> SmallLog:
    """Two checkpoints, and so much behind them that the next one writes a run, merges, and sweeps."""
    log = SmallLog()
    for groups in (12, 8):
        log.grow(groups)
        log.save()
    log.grow(14)
    log.store.log.mark()
    return log


def beside(disk: SimDisk) -> Callable[[], object]:
    """By a process beside the broker."""
    return Store.behind_checkpoint(disk, SETTINGS, INDEXED, 34).checkpoint


def by_itself(disk: SimDisk) -> Callable[[], object]:
    """By the broker, when it stops."""
    return started(disk).checkpoint


MAKERS = {"beside a broker": beside, "at a clean stop": by_itself}


@pytest.mark.parametrize("maker", MAKERS)
def test_killed_before_any_call_the_next_start_has_the_index_of_the_log(log: SmallLog, maker: str) -> None:
    right = rebuilt(log.image())
    since = set()
    for call in range(1, CALLS_MAX):
        disk = log.disk.clone()
        make = MAKERS[maker](disk)
        disk.cut_at = call
        try:
            make()
            break
        except PowerCut:
            pass
        disk.dead, disk.cut_at = False, None
        again = disk.clone()
        store = started(again)
        assert answers(store) == right
        since.add(store.log.report.since)
        store.checkpoint()
        assert answers(started(again)) == right
        left = [name for name in again.image() if name.endswith(".tmp")]
        assert not left, "what a kill left is swept"
        assert len(files_of(again.image(), "checkpoint-")) == 2
    assert call > 15
    assert since == {20, 34}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "short"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_failing_call_costs_a_checkpoint_and_no_room_and_the_next_attempt_works(
    log: SmallLog, maker: str, kind: str, lasting: bool
) -> None:
    right = rebuilt(log.image())
    fault = Fault(0 if kind == "short" else getattr(errno, kind), short=40 if kind == "short" else 0)
    failed = 0
    for nth in range(1, CALLS_MAX):
        disk = log.disk.clone()
        make = MAKERS[maker](disk)
        calls = 0

        def decide(op: str, name: str, nth: int = nth) -> Fault | None:
            nonlocal calls
            if not name.startswith("index") or op in ("open", "read") or (kind == "short" and op != "write"):
                return None
            calls += 1
            return fault if calls == nth or (lasting and calls > nth) else None

        disk.fault = decide
        try:
            make()
        except OSError:
            failed += 1
        disk.fault = None
        if calls < nth:
            break
        left = [name for name in disk.image() if name.endswith(".tmp")]
        assert not left or lasting, "it leaves no room taken"
        store = started(disk)
        assert answers(store) == right
        store.checkpoint()
        assert started(disk).log.report.since == 34
    assert failed >= (2 if kind == "short" else 10)


def test_whatever_can_not_be_read_of_it_at_a_start_is_read_from_the_log(log: SmallLog) -> None:
    right = rebuilt(log.image())
    for nth in range(1, CALLS_MAX):
        for lasting in (False, True):
            disk = log.disk.clone()
            calls = 0

            def decide(op: str, name: str, nth: int = nth, lasting: bool = lasting) -> Fault | None:
                nonlocal calls
                if not name.startswith("index") or op not in ("open", "read"):
                    return None
                calls += 1
                return Fault(errno.EIO) if calls == nth or (lasting and calls > nth) else None

            disk.fault = decide
            store = started(disk)
            read, disk.fault = calls, None
            assert answers(store) == right
        if read < nth:
            return
    raise AssertionError("a start reads more than was thought")
