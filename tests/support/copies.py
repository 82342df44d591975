"""Backups of a running log, logs restored from them, and migrations: operations of the search for crash states
(support/workloads.py). They change nothing of the log; what is made of it must be just what it was, or not be there.

The folder that gets its name when it is whole is not on a SimDisk, which has no renames of folders: `_Beside` stands for the
directory around a restored log; behind a migration's survey comes `Staging.finish`, and `_migrated` returns the disk for it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.appends import roll, small
from support.builders import TIME, seeded_random
from support.crashes import World
from support.removals import clear, removable, truncate_all
from support.simdisk import Fault, Image, PowerCut, SimDisk
from tidelog.batch import EVENTS, Batch, read_batch, unpack_columns
from tidelog.limits import INT_MAX
from tidelog.messages import Recorded
from tidelog.wire import decode_page
from tidelog_broker import restore, snapshot
from tidelog_broker.backup import read_backup
from tidelog_broker.core.format import SEGMENT_MAGIC
from tidelog_broker.core.recovery import Group
from tidelog_broker.files import LogFiles
from tidelog_broker.log import Log
from tidelog_broker.migrate import Copy, older
from tidelog_broker.source import OLDER, Append, Torn
from tidelog_broker.verify import HEALTHY, survey

FILE = "log.backup"
PLACE = Path("simulated/log")
STATES = 16
ASK = "ask"
"""How a disk's `fault` is told that the broker has said up to which group a backup may go."""
CALLS_OF_A_BACKUP, CALLS_OF_A_RESTORE, CALLS_OF_A_MIGRATION = 16, 24, 60


def backup(world: World) -> None:
    """As a running broker's is made: it goes on between the opening of its files and the end of the copy."""
    with world.quietly():
        made = _backup(world, meanwhile=lambda: roll(world))
    _restored(world, *made)


def backup_since(world: World) -> None:
    """Only what came since another one, and both are restored."""
    _, before = _backup(world)
    with world.quietly():
        roll(world)
    _restored(world, *_backup(world, before), before)


def backup_beside_removal(world: World) -> None:
    """Segments that hold the group of the answer vanish behind it, or between the listing and the opening of any file."""
    removable(world, 2)
    nth, calls = world.rng.choice([1, 1, 2, 3]), 0

    def remove(op: str, name: str) -> None:
        nonlocal calls
        calls += op in (ASK, "open")
        if op in (ASK, "open") and calls == nth:
            small(world)
            roll(world)
            truncate_all(world)
            clear(world)

    with world.quietly():
        world.disk.fault = remove
        made = _backup(world, meanwhile=lambda: (removable(world), clear(world)))
    _restored(world, *made)


def backup_fails(world: World) -> None:
    """The power goes at some call of writing a backup, or the call fails, and then at some call of restoring one."""
    call = world.rng.randrange(1, CALLS_OF_A_BACKUP)
    disk = SimDisk()
    group, taken = _snapshot(world)
    _fail(world, disk, call)
    try:
        snapshot.write_backup(disk, FILE, taken)
    except PowerCut:
        pass
    except OSError:
        # When only the last sync failed, a whole one may have its name.
        if set(disk.names()) - {FILE}:
            raise world.wrong(f"a backup that failed at call {call} left {disk.names()}") from None
    finally:
        taken.close()
    for image in disk.crash_states(world.rng, STATES):
        if FILE in image:
            _restored(world, group, image[FILE])
    _restored(world, *_backup(world), call=world.rng.randrange(1, CALLS_OF_A_RESTORE))


def _fail(world: World, disk: SimDisk, call: int) -> None:
    """From the n-th changing call on the power is gone, or that call fails."""
    if world.rng.random() < 0.5:
        disk.cut_at = call
        return
    calls = 0
    fault = Fault(world.rng.choice([errno.EIO, errno.ENOSPC]), short=100)

    def decide(op: str, name: str) -> Fault | None:
        nonlocal calls
        if op in ("open", "read"):
            return None
        calls += 1
        return fault if calls == call else None

    disk.fault = decide


def _snapshot(world: World, before: bytes | None = None) -> tuple[int, snapshot.Snapshot]:
    """(its group, the files of the log as they are now)"""
    log = world.log
    since = None if before is None else read_backup(SimDisk({FILE: before}).open(FILE))

    def ask() -> tuple[bytes, int]:
        answer = log.log_id, log.group
        if world.disk.fault is not None:
            world.disk.fault(ASK, "")
        return answer

    taken = snapshot.take(world.disk, ask, TIME, since)
    world.disk.fault = None
    return taken.header.group, taken


def _backup(
    world: World, before: bytes | None = None, meanwhile: Callable[[], object] = lambda: None
) -> tuple[int, bytes]:
    """(the group that it goes up to, the file)"""
    group, taken = _snapshot(world, before)
    disk = SimDisk()
    try:
        meanwhile()
        snapshot.write_backup(disk, FILE, taken)
    finally:
        taken.close()
    if not disk.is_synced():
        raise world.wrong("a backup that was reported is not durable")
    return group, disk.durable()[FILE]


class _Beside(SimDisk):
    """The directory in which a restored log gets its name."""

    named = False

    def rename(self, old: str, new: str) -> None:
        self.begin_or_raise("rename", old)
        self.named = True


def _restored(world: World, group: int, *files: bytes, call: int = 0) -> None:
    """What is restored is the log up to that group, in every state that a power cut then leaves; `call`: it fails there."""
    if not world.armed:
        return
    joined = restore.Joined([read_backup(SimDisk({FILE: data}).open(FILE)) for data in files])
    beside, disk = _Beside(), SimDisk()
    if call:
        _fail(world, disk, call)
    try:
        restore.restore(
            joined, joined.judged(), PLACE, seeded_random(b"restored"),
            lambda path: nullcontext(beside if path == PLACE.parent else disk),
        )  # fmt: skip
    except (PowerCut, OSError):
        if not call:
            raise
    if not (beside.named or call):
        raise world.wrong("a restored log got no name")
    if beside.named:
        for image in disk.crash_states(world.rng, STATES):
            world.explorer.look_at_image(image, world, {world.names[group]}, f"a log restored at group {group}", {})


class _Groups:
    """Reads a made-up version 0 of the format: bodies of groups, one behind the other."""

    kind = "Tidelog"
    version = 0
    has_times = True
    torn: Torn | None = None
    NAME = "0000000001-00000000000000000000"
    HEAD = SEGMENT_MAGIC + bytes(2)

    def __init__(self, disk: Any) -> None:
        file = disk.open(self.NAME)
        self.data = file.read(len(self.HEAD), file.size())

    def appends(self) -> Iterator[Append]:
        at, first, rows = 0, 0, list[Any]()
        while at < len(self.data):
            batch = read_batch(self.data, at)
            assert isinstance(batch, Batch)
            if self.data[at] == EVENTS:
                if not batch.append_index:
                    first, rows = batch.first_position, []
                columns = unpack_columns(batch.region).rows()
                for version, (kind, payload, metadata, id_) in enumerate(columns, batch.first_version):
                    rows.append((batch.stream, version, id_, kind, metadata, payload))
            # A cursor's batch may be the last of an append.
            if rows and batch.append_index + 1 == batch.append_count:
                yield Append(at, first, batch.recorded_at, rows)
                rows = []
            at += batch.length


def migrate(world: World) -> None:
    """All that this log ever held, out of an older version; and again, with the power gone at some call.

    What a power cut leaves has no name, and so is no log: the next migration deletes it.
    """
    bodies = [world.points[name].body for name in world.names]
    if not world.armed:
        return
    source = SimDisk({_Groups.NAME: _Groups.HEAD + b"".join(bodies)})
    before = source.image()
    for call in (None, world.rng.randrange(1, CALLS_OF_A_MIGRATION)):
        disk = _migrated(world, source, call)
        if disk is not None and not disk.is_synced():
            raise world.wrong("a migrated log gets its name before it is durable")
        for image in disk.crash_states(world.rng, STATES) if disk is not None else ():
            if _events(image, world) != _decoded(bodies):
                raise world.wrong("a migrated log is not what was migrated")
    if source.calls or source.image() != before:
        raise world.wrong("a migration changed its source")


def _migrated(world: World, source: SimDisk, call: int | None) -> SimDisk | None:
    """The calls of migrate.migrate; the disk of a log that may get its name now, None when the power has gone."""
    disk = SimDisk()
    disk.cut_at = call
    settings = replace(world.settings, group_bytes_max=1 << 20)
    log: Log | None = None
    try:
        with patch.dict(OLDER, {0: _Groups}):
            reader = older(source)
        log = Log.open(disk, settings, seeded_random(b"migrated"))
        copy = Copy(log)
        for append in reader.appends():
            copy.take(append)
            if world.rng.random() < 0.7:
                copy.commit()
        copy.commit()
        log.close()
        found = survey(disk, settings)
    except PowerCut:
        return None
    finally:
        if log is not None:
            log.abandon()
    if (found.verdict, found.events, found.batches) != (HEALTHY, copy.position, copy.batches):
        raise world.wrong(f"a migrated log can't be read back: {found.verdict}, {found.damage}")
    disk.cut_at = None
    return disk


def _events(image: Image, world: World) -> list[Recorded]:
    bodies: list[bytes] = []

    def replay(ordinal: int, group: Group) -> None:
        bodies.append(group.body)

    log = LogFiles.inspect(SimDisk(image), world.settings, replay)
    log.abandon()
    if log.damage is not None:
        raise log.damage
    return _decoded(bodies)


def _decoded(bodies: Sequence[bytes]) -> list[Recorded]:
    return decode_page(b"".join(bodies), False, 0, INT_MAX)
