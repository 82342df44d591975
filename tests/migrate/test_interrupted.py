"""A migration that is killed or whose disk fails, at every call: there is no target, or a whole one (T-54)."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from migrate.calls import Look, watched
from migrate.conftest import environment
from migrate.found import events, files
from migrate.seed import large
from support.command import COMMAND
from tidelog.errors import StorageFull
from tidelog_broker.disk import Locked
from tidelog_broker.log import FailStop
from tidelog_broker.migrate import migrate
from tidelog_broker.staging import Unfit

SEED = large(3, events=300, streams=5)
SEGMENT = "0000000001-00000000000000000000"
CALLS_MAX = 200
"""No migration of that seed makes so many."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    path.write_bytes(SEED.bytes)
    return path


def absent_or_whole(target: Path) -> bool:
    """Whether the target is there; if so, it must be whole."""
    if target.exists():
        assert events(target) == SEED.events()
        return True
    return False


def counted(number: int, act: Any) -> Any:
    """A look that acts at the call of this number, from 1."""
    calls = 0

    def look(name: str, where: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act(name, where)

    return look


def killed_at(number: int, source: Path, target: Path) -> bool:
    """A process of its own migrates and dies before the call of this number; False when it came to its end."""
    pid = os.fork()
    if not pid:
        try:
            with watched(counted(number, lambda *_: os.kill(os.getpid(), signal.SIGKILL))):
                migrate(source, target)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_kill_before_any_call_leaves_no_target_or_a_whole_one_and_the_next_run_ends_the_work(source: Path) -> None:
    before = files(source.parent)
    found = []
    for number in range(1, CALLS_MAX):
        target = source.parent / f"log{number}"
        if not killed_at(number, source, target):
            break
        found.append(absent_or_whole(target))
        if not found[-1]:
            migrate(source, target)
            assert events(target) == SEED.events()
            assert not target.with_name(target.name + ".migrating").exists()
    print(f"killed before each of {len(found)} calls; the target was whole behind {sum(found)} of them")
    assert 20 < len(found) < CALLS_MAX - 1
    assert found == sorted(found)
    assert files(source.parent)["events.db"] == before["events.db"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_an_error_of_any_call_leaves_no_target_or_a_whole_one_and_nothing_beside_it(source: Path, code: int) -> None:
    def fail(name: str, where: str) -> None:
        raise OSError(code, f"planned: {name} {where}")

    failed = 0
    for number in range(1, CALLS_MAX):
        target = source.parent / f"log{number}"
        try:
            with watched(counted(number, fail)):
                migrate(source, target)
        except (OSError, StorageFull, FailStop):
            failed += 1
            absent_or_whole(target)
        else:
            # Past the last call, or one whose failure loses nothing: the note's unlink, when all is done.
            assert absent_or_whole(target)
            if number > failed + 2:
                break
        left = target.with_name(target.name + ".migrating")
        if left.exists():
            assert target.exists()
            assert not (left / "log").exists()
    print(f"{failed} calls failed with {errno.errorcode[code]}")
    assert 20 < failed < CALLS_MAX - 3


def test_all_is_durable_before_the_target_gets_its_name_and_the_name_before_the_end(source: Path) -> None:
    work = str(source.parent / "log.migrating")
    unsynced: set[str] = set()
    renamed = False
    behind: list[tuple[str, str]] = []

    def look(name: str, where: str, arguments: tuple[Any, ...]) -> None:
        nonlocal renamed
        if name == "make_folder" and where == work:
            assert work not in unsynced  # the note
        if name == "rename" and arguments[1] == "log":
            assert not unsynced
            renamed = True
        elif renamed:
            behind.append((name, where))
        elif name in ("write", "truncate", "create", "rename", "unlink"):
            unsynced.add(where)
        elif name in ("sync", "datasync", "sync_folder"):
            unsynced.discard(where)

    with watched(look):
        migrate(source, source.parent / "log")
    assert renamed
    assert behind[:2] == [("sync_folder", str(source.parent)), ("sync_folder", work)]


def at_each(name: str, where: str, act: Callable[[], None]) -> Look:
    """A look that acts before each such call on that file or folder."""

    def look(its_name: str, its_place: str, arguments: tuple[Any, ...]) -> None:
        if (its_name, its_place) == (name, where):
            act()

    return look


def test_a_source_that_grows_meanwhile_is_in_use(source: Path) -> None:
    def grow() -> None:
        source.write_bytes(SEED.bytes + b"EFBB")

    with pytest.raises(Locked, match="in use"), watched(at_each("datasync", SEGMENT, grow)):
        migrate(source, source.parent / "log")
    assert list(source.parent.iterdir()) == [source]


def test_a_target_that_is_filled_meanwhile_is_not_touched(source: Path) -> None:
    target = source.parent / "log"

    def fill() -> None:
        target.mkdir(exist_ok=True)
        (target / "mine").write_bytes(b"1")

    with pytest.raises(Unfit, match="empty directory"), watched(at_each("datasync", SEGMENT, fill)):
        migrate(source, target)
    assert sorted(path.name for path in source.parent.iterdir()) == ["events.db", "log"]
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_what_the_disk_does_not_give_back_is_no_log(source: Path) -> None:
    segment = source.parent / "log.migrating" / "log" / SEGMENT

    def rot() -> None:
        data = bytearray(segment.read_bytes())
        if any(data[5_000:]):
            data[5_000] ^= 1
            segment.write_bytes(data)

    with pytest.raises(FailStop, match="can't be read back"), watched(at_each("write", "marks", rot)):
        migrate(source, source.parent / "log")
    assert list(source.parent.iterdir()) == [source]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda end: end.name)
def test_an_end_at_any_moment_leaves_no_target_or_a_whole_one(tmp_path: Path, end: signal.Signals) -> None:
    seed = large(2, events=20_000, streams=50, seed=2)
    source, target = tmp_path / "events.db", tmp_path / "log"
    source.write_bytes(seed.bytes)
    begin = time.monotonic()
    with running("migrate", str(source), str(target)) as process:
        assert process.wait(60) == 0
    whole_run = time.monotonic() - begin
    moments = random.Random(3)
    found: list[bool] = []
    for number in range(12):
        target = tmp_path / f"log{number}"
        with running("migrate", str(source), str(target)) as process:
            time.sleep(moments.random() * whole_run)
            process.send_signal(end)
            process.wait(20)
        found.append(target.exists())
        if target.exists():
            assert events(target) == seed.events()
        elif end == signal.SIGINT:
            assert not target.with_name(target.name + ".migrating").exists()
    print(f"{end.name}: {found.count(False)} of {len(found)} without a target")
    assert source.read_bytes() == seed.bytes
