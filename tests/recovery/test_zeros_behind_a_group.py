"""Zeros never land on a group: the loop that needs room while that room is being prepared waits for it (spec §6)."""

from __future__ import annotations

import threading

import pytest
from support.cases import SETTINGS, Case
from support.faults import FaultyDisk, Plan


class ToldLock:
    """A lock that tells when this thread wants it."""

    def __init__(self, thread: threading.Thread, wanted: threading.Event) -> None:
        self._lock = threading.Lock()
        self._thread, self._wanted = thread, wanted

    def __enter__(self) -> None:
        if threading.current_thread() is self._thread:
            self._wanted.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class UntilTheLoop(threading.Event):
    """Who waits for it starts the loop, and goes on when the loop waits for the lock, or has come through without."""

    def __init__(self, loop: threading.Thread, wanted: threading.Event) -> None:
        super().__init__()
        self._loop, self._wanted = loop, wanted

    def wait(self, timeout: float | None = None) -> bool:
        self._loop.start()
        return self._wanted.wait(timeout)


def test_a_group_that_needs_the_room_that_is_being_zeroed_is_there_after_its_acknowledgement(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk(case.disk)
    case.open(faulty=disk)
    case.commit([("s/1", [b"so that there is space to prepare"])])
    wanted = threading.Event()

    def commit() -> None:
        try:
            case.commit([("s/1", [b"x" * 2 * SETTINGS.zero_step])])
        finally:
            wanted.set()

    loop = threading.Thread(target=commit, daemon=True)
    monkeypatch.setattr(case.log, "_lock", ToldLock(loop, wanted))
    disk.plans = [Plan("write", hang=UntilTheLoop(loop, wanted))]
    assert case.log.prepare()
    loop.join()
    case.stop()
    assert len(case.bodies) == 2, "the loop has failed"
    assert case.open() == case.bodies
    case.works(2)
