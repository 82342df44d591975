"""Killed, or failing, at every single call to a real disk while a base is written and segments are deleted."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.faults import FaultyDisk, Killed, MortalDisk, Plan
from tidelog_broker.log import FailStop
from truncate.driven import INDEXED, SMALL, Driven, Model, beside, holds

CALLS_MAX = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, int]:
    """A log with an older base, truncated again and not cleared yet: (its directory, what is in it, the last segment to go)."""
    place = tmp_path_factory.mktemp("made")
    disk = MortalDisk(place)
    driven = Driven(disk)
    driven.fill(5)
    driven.truncate(9)
    assert driven.clear()
    driven.fill(4)
    driven.truncate(28)
    driven.fill(1)
    last = driven.removable()
    model = driven.model.copy()
    disk.kill()
    return place, model, last


@contextmanager
def opened(place: Path, model: Model, plans: list[Plan]) -> Iterator[tuple[Driven, FaultyDisk]]:
    """The log on a disk that dies when this ends; the plans count from behind the start."""
    mortal = MortalDisk(place)
    disk = FaultyDisk(mortal, [])
    driven = Driven(disk, model=model.copy())
    disk.plans = plans
    try:
        yield driven, disk
    finally:
        mortal.kill()


def clear(driven: Driven, disk: FaultyDisk, last: int) -> None:
    """As the broker and its child do it."""
    log = driven.store.log
    log.mark()
    if driven.store.index.tail.positions:
        driven.store.index.freeze()
    beside(disk, SMALL, INDEXED, log.group, last)
    driven.store.adopt(log.group)
    driven.store.use_base()
    driven.remove()


def whole(place: Path, model: Model) -> None:
    """A start finds all of it, can clear it, and the next start finds that."""
    with opened(place, model, []) as (driven, _):
        holds(driven, deep=False)
        driven.fill(1)
        driven.clear()
        after = driven.model
    with opened(place, after, []) as (driven, _):
        holds(driven)


def test_killed_before_any_call_nothing_is_lost(made: tuple[Path, Model, int], tmp_path: Path) -> None:
    place, model, last = made
    died: list[str] = []
    for nth in range(1, CALLS_MAX):
        copy = Path(shutil.copytree(place, tmp_path / str(nth)))
        with opened(copy, model, [Plan("", nth, kill=True)]) as (driven, disk):
            try:
                clear(driven, disk, last)
                break
            except Killed as killed:
                died.append(" ".join(map(str, killed.args)))
        whole(copy, model)
        shutil.rmtree(copy)
    wanted = {
        "create base-",
        "write base-",
        "sync base-",
        "rename base-",
        "unlink 000000000",
        "unlink base-",
        "sync_folder ",
    }
    assert not {call for call in wanted if not any(one.startswith(call) for one in died)}, died


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_deletion_that_fails_stops_the_broker_and_loses_nothing(
    made: tuple[Path, Model, int], tmp_path: Path, number: int
) -> None:
    """A directory whose sync failed is in doubt, as after every such error; the next start settles it."""
    place, model, last = made
    stopped = 0
    for op, name in (("unlink", "0000"), ("unlink", "base-"), ("sync_folder", "")):
        for nth in range(1, CALLS_MAX):
            copy = Path(shutil.copytree(place, tmp_path / f"{op}{name}{nth}"))
            with opened(copy, model, []) as (driven, disk):
                log = driven.store.log
                log.mark()
                driven.store.index.freeze()
                beside(disk, SMALL, INDEXED, log.group, last)
                driven.store.adopt(log.group)
                driven.store.use_base()
                if nth > (1 if name == "base-" else len(log.to_remove)):
                    break
                disk.plans = [Plan(op, nth, number, name=name)]
                with pytest.raises(FailStop, match="deleting a truncated segment"):
                    driven.remove()
                stopped += 1
            whole(copy, model)
    assert stopped >= 5


def test_a_base_that_can_not_be_read_when_it_is_taken_over_removes_nothing_and_the_next_attempt_works(
    made: tuple[Path, Model, int], tmp_path: Path
) -> None:
    place, model, last = made
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    with opened(copy, model, []) as (driven, disk):
        driven.store.log.mark()
        driven.store.index.freeze()
        beside(disk, SMALL, INDEXED, driven.store.log.group, last)
        driven.store.adopt(driven.store.log.group)
        for op in ("open", "size", "read"):
            for nth in (1, 2, 3):
                disk.plans = [Plan(op, nth, errno.EIO, name="base-")]
                try:
                    driven.store.use_base()
                except OSError:
                    assert driven.store.log.to_remove == []
                disk.plans = []
                driven.store.log.to_remove = []
                holds(driven, deep=False)
        driven.store.use_base()
        driven.remove()
        holds(driven)
    whole(copy, driven.model)
