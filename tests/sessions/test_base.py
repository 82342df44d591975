"""What a base tells of sessions and cursors, and the group `told` behind which it tells it: the log ends there or later, or it is
damaged; repair that accepts a loss says so anew; a backup never begins with a base that is ahead of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sessions.model import Move, Write
from sessions.ondisk import SETTINGS, Run, same
from support.builders import seeded_random
from support.independent import reader
from support.simdisk import Image, SimDisk
from tidelog.errors import CorruptLog
from tidelog_broker import checkpoints
from tidelog_broker.backup import read_backup
from tidelog_broker.core.base import Base, BaseReader
from tidelog_broker.disk import RealDisk
from tidelog_broker.index_digest import digest_of_known
from tidelog_broker.repair import repair
from tidelog_broker.restore import Joined, restore
from tidelog_broker.snapshot import take, write_backup
from tidelog_broker.store import Store
from tidelog_broker.verify import DAMAGED, HEALTHY, survey
from truncate.driven import SMALL, without_index

MADE_AT = 1_700_000_000_000_000
BEHIND = 6
"""Groups that stand behind the base, the first half of which it tells of, too."""


def based() -> Run:
    """A base that tells of sessions and cursors as of a group that is still there, and groups behind that."""
    run = Run()
    run.open_as("p")
    run.open_as("q")
    run.others(40)
    for number in range(BEHIND):
        if number == BEHIND // 2:
            run.truncate(run.model.durable.head - 3)
        for name in ("p", "q"):
            run.send((name, 1, number + 1), None, (run.new("a/1"),))
        run.move(Move("c", number - 1 if number else None, number, None))
        run.settle()
    return run


def base_of(disk: SimDisk) -> tuple[str, Base]:
    name = max(name for name in disk.names() if name.startswith("base-"))
    file = disk.open(name)
    return name, BaseReader(name, file.read, file.size()).base


def retold(image: Image, change: Callable[[Base], Base]) -> Image:
    """The log without its index, its base as `change` makes it."""
    disk = SimDisk(without_index(image))
    name, _ = base_of(disk)
    file = disk.open(name)
    found = BaseReader(name, file.read, file.size())
    checkpoints.write_base(disk, change(found.base), list(found.kept()), list(found.rows()))
    return disk.image()


def started(image: Image) -> Store:
    return Store(SimDisk(image), SMALL, seeded_random(b"base"), SETTINGS)


# -- told


def test_a_base_tells_of_groups_that_are_still_there_and_they_are_not_counted_twice() -> None:
    run = based()
    _, base = base_of(run.log.driven.sim)
    assert base.group < base.told < run.log.store.log.group
    same(run, deep=True)


@pytest.mark.parametrize("more", [0, 1, 2, 1_000, 2**62])
def test_a_base_that_tells_of_a_group_behind_the_log_is_damage(more: int) -> None:
    run = based()
    last = run.log.store.log.group
    # Behind the last group there is nothing that it could not tell of: sessions and cursors are as they were there.
    image = retold(run.log.image, lambda base: replace(base, told=last + more))
    if not more:
        started(image).log.abandon()
        return
    with pytest.raises(CorruptLog, match="names group"):
        started(image)
    disk = SimDisk(image)
    assert survey(disk, SMALL).verdict == DAMAGED
    assert disk.image() == image


def test_a_base_that_tells_of_less_than_it_says_is_damage() -> None:
    """Its serials go beyond `told`, so that the groups behind that repeat them."""
    run = based()
    with pytest.raises(CorruptLog, match="serial"):
        started(retold(run.log.image, lambda base: replace(base, told=base.group)))
    with pytest.raises(CorruptLog, match="serial"):
        started(retold(run.log.image, lambda base: replace(base, told=base.told + 1)))


# -- repair


def hole(run: Run, group: int) -> Image:
    """One byte of this group's body is another."""
    places: dict[int, tuple[str, int]] = {}

    def look(replay: Any) -> Any:
        def take(ordinal: int, found: Any) -> None:
            name = next(name for name in run.log.image if name.startswith(f"{ordinal:010d}-"))
            places[found.header.number] = name, found.body_offset
            replay(ordinal, found)

        return take

    Store.inspect(SimDisk(run.log.image), SMALL, look).log.abandon()
    image = dict(run.log.image)
    name, offset = places[group]
    data = image[name]
    image[name] = data[: offset + 20] + bytes([data[offset + 20] ^ 1]) + data[offset + 21 :]
    return image


def repaired(image: Image, folder: Path) -> Image:
    """What `tidelog repair --accept-loss` makes of these files."""
    for name, data in without_index(image).items():
        (folder / name).write_bytes(data)
    with real(folder) as disk:
        assert repair(disk, SMALL, seeded_random(b"repair"), accept_loss=True)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("behind", range(-2, 3))
def test_repair_with_loss_behind_a_base_gives_a_log_that_opens_and_no_serial_is_given_twice(
    tmp_path: Path, behind: int
) -> None:
    """`behind`: the first group that is lost, counted from the last that the base tells of."""
    run = based()
    _, base = base_of(run.log.driven.sim)
    image = hole(run, base.told + behind)
    assert survey(SimDisk(image), SMALL).verdict == DAMAGED
    image = repaired(image, tmp_path)
    assert survey(SimDisk(image), SMALL).verdict == HEALTHY
    left = base.told + behind - 1
    _, now = base_of(SimDisk(image))
    assert now.told == min(base.told, left)
    found = Run(disk=SimDisk(image))
    assert found.log.store.log.group == left
    # What the base tells, or what the groups behind that say.
    asked = found.log
    session = asked.appender.sessions.by_name["p"]
    serial = session.last
    result = run.model.durable.sessions["p"].results[serial - 1]
    # One that was acknowledged and is gone: nobody can say where it stood, and nothing takes its serial.
    place = None if behind <= 0 else result.places[0][0]
    found.ids = 1_000
    for _ in range(3):
        assert asked.append(("p", 1, serial), None, rows(*result.writes)).rest[:2] == (3, place)
        assert asked.append(("p", 1, session.last + 1), None, rows(found.new("a/2"))).code == 0
        asked.commit()
    assert digest_of_known(started(without_index(asked.image)).known) == digest_of_known(asked.store.known)


def rows(*writes: Write) -> tuple[tuple[str, None, bytes | None], ...]:
    return tuple((write.stream, None, write.region) for write in writes)


# -- backup


@contextmanager
def real(path: Path) -> Any:
    disk = RealDisk(path)
    yield disk
    disk.close()


def restored(disk: Any, ask: Callable[[], tuple[bytes, int]], folder: Path) -> str:
    """Back up, restore, and what is known there."""
    place = SimDisk()
    snapshot = take(disk, ask, MADE_AT)
    try:
        write_backup(place, "b", snapshot)
    finally:
        snapshot.close()
    joined = Joined([read_backup(place.open("b"))])
    restore(joined, joined.judged(), folder, os.urandom, real)
    with real(folder) as there:
        store = Store(there, SMALL, os.urandom, SETTINGS)
        try:
            return digest_of_known(store.known)
        finally:
            store.log.abandon()


def test_a_backup_that_is_asked_for_before_a_base_appears_is_taken_behind_what_that_tells(tmp_path: Path) -> None:
    run = based()
    log = run.log.store.log
    asked: list[int] = []
    digests: dict[int, str] = {}

    def ask() -> tuple[bytes, int]:
        run.others(30)
        group = log.group
        asked.append(group)
        if len(asked) < 3:
            # The log goes on, and a base of that appears, between the answer and the look at the files.
            run.send(("p", 1, len(run.model.now.sessions["p"].results) + 1), None, (run.new("a/1"),))
            run.truncate(run.model.durable.head - 1)
            _, base = base_of(run.log.driven.sim)
            assert base.group < group < base.told
        digests[log.group] = digest_of_known(run.log.store.known)
        return log.log_id, group

    assert restored(run.log.driven.sim, ask, tmp_path / "new") == digests[asked[-1]]
    assert len(asked) == 3
    events, verdict = reader.read_log(tmp_path / "new")
    assert str(verdict) == "whole"
    assert len(events) <= run.model.durable.head


def test_a_backup_at_the_very_group_that_a_base_tells_of_is_whole(tmp_path: Path) -> None:
    run = based()
    run.truncate()
    group = run.log.store.log.group
    _, base = base_of(run.log.driven.sim)
    assert base.told == group
    known = digest_of_known(run.log.store.known)
    run.group(Random(1))
    log_id = run.log.store.log.log_id
    assert restored(run.log.driven.sim, lambda: (log_id, group), tmp_path / "new") == known
