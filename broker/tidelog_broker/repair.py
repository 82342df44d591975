"""Putting a damaged log into a state that can be served: `tidelog repair`.

A torn tail is cut as a start would cut it. At damage, and only when the operator accepts the loss, the log is made to end
at the hole; everything behind goes to quarantine/, nothing is thrown away. Every step may be repeated after a crash: another
repair goes on from where one ended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

from tidelog.errors import CorruptLog

from . import checkpoints
from .core.base import SESSIONS, BaseReader
from .core.format import SEGMENT_HEADER_BYTES
from .disk import Disk
from .files import BASE_NAME, QUARANTINE
from .log import LogSettings
from .store import Store
from .verify import DAMAGED, HEALTHY, Survey, survey

CHUNK = 1 << 20


def repair(disk: Disk, settings: LogSettings, random: Callable[[int], bytes], *, accept_loss: bool) -> list[str]:
    """Make the log one that a start takes; what was done, a sentence each (none: it was healthy).

    Raises CorruptLog at damage without `accept_loss`, when the damage is an I/O error, or when nothing could be kept, and what
    Log.open raises.
    """
    found = survey(disk, settings)
    if found.verdict == HEALTHY:
        return []
    done = []
    if found.verdict == DAMAGED:
        assert found.damage is not None
        if not accept_loss or found.damage["unreadable"]:
            raise CorruptLog(found.damage["proof"], found.damage["segment"], found.damage["offset"])
        done = _cut_at_hole(disk, found)
        settings = replace(settings, accept_missing_mark=True)
    log = Store(disk, settings, random).log
    done += log.report.warnings
    log.close()
    return done


def plan(found: Survey) -> list[str]:
    """What `repair` would do, a sentence each."""
    if found.tail is not None:
        tail = found.tail
        return [
            f"cut {tail['bytes']} bytes at offset {tail['offset']} of segment {tail['segment']}, kept in {QUARANTINE}/"
        ]
    if found.damage is None:
        return []
    hole = found.damage
    if hole["unreadable"]:
        return [
            "nothing: the disk can't be read, which may pass; copy the directory to a good disk and repair the copy"
        ]
    if not _kept(found):
        return ["nothing: no segment is good, so only a copy of the log can help"]
    plans = [
        f"with --accept-loss: end the log at position {hole['position']} (segment {hole['segment']}, offset "
        f"{hole['offset']}); everything behind goes to {QUARANTINE}/"
    ]
    if hole["groups_behind"]:
        plans.append(
            f"this takes away acknowledged events: {hole['groups_behind']} whole groups stand behind the hole, the last begins "
            f"at position {hole['last_group_behind_begins_at_position']}"
        )
    return plans


def _kept(found: Survey) -> list[str]:
    """The segments that stay, wholly or in part."""
    hole = found.damage
    assert hole is not None
    names = [row["name"] for row in found.segments]
    return [name for name in names if (name, SEGMENT_HEADER_BYTES) <= (hole["segment"], hole["offset"])]


def _cut_at_hole(disk: Disk, found: Survey) -> list[str]:
    """Move what lies behind the hole to quarantine/, and the marks that speak of it."""
    hole = found.damage
    assert hole is not None
    kept = _kept(found)
    if not kept:
        raise CorruptLog(f"{hole['proof']} No segment is good, so nothing can be kept", hole["segment"], hole["offset"])
    if QUARANTINE not in disk.names():
        disk.make_folder(QUARANTINE)
        disk.sync_folder()
    # They name groups that will be gone, and a start would take that for damage.
    checkpoints.forget(disk)
    done = []
    cut = hole["segment"] == kept[-1]
    if cut:
        # Before anything moves: there may be no room for the copy.
        done += _copy_tail(disk, kept[-1], hole["offset"], hole["group"])
    # From the last on: at no moment does a gap in the ordinals hide what comes behind it.
    for name in reversed([row["name"] for row in found.segments if row["name"] not in kept]):
        done.append(_move(disk, name))
    if cut:
        _truncate(disk, kept[-1], hole["offset"])
    done += _retell(disk, hole["group"] - 1)
    # The marks last: they name what is gone now, so that until here the log is damaged for whoever looks.
    if "marks" in disk.names():
        done.append(_move(disk, "marks"))
    return done


def _retell(disk: Disk, group: int) -> list[str]:
    """The newest base tells of sessions and cursors behind groups that are gone now: from here on, behind the last that is left.

    A serial that was given out stays used: nothing can be written twice.
    """
    names = sorted(name for name in disk.names() if BASE_NAME.match(name))
    if not names:
        return []
    file = disk.open(names[-1])
    try:
        reader = BaseReader(names[-1], file.read, file.size())
        if reader.base.told <= group:
            return []
        # Results are told by the numbers of batches, some of which are gone, and others will have their numbers.
        rows = ((kind, [*row[:3], b""] if kind == SESSIONS else row) for kind, row in reader.rows())
        checkpoints.write_base(disk, replace(reader.base, told=group), reader.kept(), rows)
    finally:
        file.close()
    return [f"{names[-1]} tells of sessions and cursors as of group {group} now"]


def _free(disk: Disk, stem: str) -> str:
    """A name in the quarantine that is not taken."""
    taken = set(disk.names(QUARANTINE))
    return f"{QUARANTINE}/" + next(
        name for name in (stem, *(f"{stem}.{number}" for number in range(1, len(taken) + 2))) if name not in taken
    )


def _move(disk: Disk, name: str) -> str:
    """A whole file into the quarantine."""
    place = _free(disk, name)
    disk.rename(name, place)
    disk.sync_folder(QUARANTINE)
    disk.sync_folder()
    return f"moved {name} to {place}"


def _copy_tail(disk: Disk, name: str, offset: int, group: int) -> list[str]:
    """A segment's bytes from `offset` to the last that is not zero into the quarantine, durable there before they go here."""
    file = disk.open(name)
    try:
        stop = file.size()
        while stop > offset:
            low = max(offset, stop - CHUNK)
            data = file.read(low, stop - low).rstrip(b"\0")
            stop = low + len(data)
            if data:
                break
        if stop <= offset:
            return []
        place = _free(disk, f"{int(name[:10])}-{offset}-{group}")
        copy = disk.create(place)
        try:
            for at in range(offset, stop, CHUNK):
                data = file.read(at, min(CHUNK, stop - at))
                if copy.write(at - offset, data) != len(data):
                    raise OSError(errno.ENOSPC, "no room for the copy in the quarantine: nothing was cut or moved")
            copy.sync()
        finally:
            copy.close()
        disk.sync_folder(QUARANTINE)
    finally:
        file.close()
    return [f"cut {stop - offset} bytes at offset {offset} of segment {name}, kept in {place}"]


def _truncate(disk: Disk, name: str, size: int) -> None:
    file = disk.open(name, writable=True)
    try:
        file.truncate(size)
        file.sync()
    finally:
        file.close()
