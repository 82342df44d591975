"""Truncation and removal as a broker does them: operations of the search for crash states (support/workloads.py).

Owns also what a broker's child does (`save`), and how a process ends in between (`crash`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from support.appends import roll, small
from support.crashes import SEGMENT_DIGIT, World
from support.opened import INDEXED
from support.simdisk import Fault, PowerCut
from tidelog_broker.store import Store

BASE = "base-"
CALLS_OF_A_REMOVAL = 30
FAULTS = [
    ("create", BASE), ("write", BASE), ("sync", BASE), ("rename", BASE), ("unlink", BASE), ("unlink", SEGMENT_DIGIT),
    ("sync_folder", ""),
]  # fmt: skip


def crash(world: World, call: int, what: Callable[[], object]) -> None:
    """Everything stands still behind the n-th changing call of `what`, if it makes so many."""
    world.disk.cut_at = call
    try:
        what()
    except PowerCut:
        pass
    world.disk.dead, world.disk.cut_at = False, None


def save(world: World, base: int = 0) -> bool:
    """What the child does: a checkpoint, and the base of what goes up to a segment. False when there was no room."""
    store = Store.behind_checkpoint(world.disk, world.settings, INDEXED, world.log.group)
    try:
        store.checkpoint()
        if base:
            store.write_base(base)
    except OSError:
        return False
    finally:
        store.log.abandon()
    return True


def truncate(world: World) -> bool:
    """To where some group ends, alone or beside an append."""
    beside = world.rng.choice([[], [[("s/1", [world.writer.payload(64)])]]])
    ends = [world.points[name].position for name in world.names]
    return world.commit(*beside, first=world.rng.choice(ends))


def truncate_all(world: World) -> None:
    """Beyond what is sealed, in one group with what is left."""
    world.commit([("s/2", [world.writer.payload(64)])], first=world.writer.position)


def truncate_fails(world: World) -> None:
    """Nobody knows whether it is durable."""
    small(world)
    world.fail("datasync", Fault(reached=world.rng.choice([0.0, 0.5, 1.0])), name=SEGMENT_DIGIT)
    if not world.commit(first=world.writer.position):
        world.restart(world.rng.random() < 0.5)


def removable(world: World, segments: int = 1, more: int = 0) -> int:
    """See that so many segments can go, behind those that are going, and `more` may or may not; the last that can."""
    with world.quietly():
        while world.log.to_remove:
            world.log.remove_one()
        while world.log.segments() <= segments + more:
            roll(world)
        behind = world.log.segment_header(world.log._header.ordinal - world.log.segments() + 1 + segments)
        if world.point.first < behind.first_position:
            ends = {world.points[name].position for name in world.names}
            world.commit(first=world.rng.choice(sorted(end for end in ends if end >= behind.first_position)))
    return world.log.removable(world.point.first)


def clear(world: World, most: int = 100, meanwhile: Callable[[], object] = lambda: None) -> bool:
    """What a broker does when segments can go, and at most so many of them; False when the process would have ended.

    Its index, which goes on with the child's, is not here: it changes nothing on the disk (tests/truncate/driven.py has it).
    """
    log = world.log
    last = log.removable(world.point.first)
    if last and not log.to_remove:
        if not world.stop_on_failure(log.mark):
            return False
        if not save(world, last):
            return True
        log.use_base()
        log.remove_told()
    for _ in range(min(most, len(log.to_remove))):
        if not world.stop_on_failure(log.remove_one):
            return False
        meanwhile()
    world.look("after the removal")
    return True


def remove(world: World) -> None:
    removable(world)
    clear(world)


def remove_begins(world: World) -> None:
    """The rest goes later, whatever comes before that."""
    removable(world, 2)
    clear(world, 1)


def remove_beside_appends(world: World) -> None:
    removable(world, more=1)
    clear(world, meanwhile=lambda: small(world))


def remove_fails(world: World) -> None:
    """A call for the base fails: the broker goes on. One for a segment: the process ends. The next attempt succeeds."""
    removable(world)
    op, name = world.rng.choice(FAULTS)
    fault = Fault(
        world.rng.choice([errno.EIO, errno.ENOSPC]),
        short=world.rng.choice([0, 100]) if op == "write" else 0,
        reached=world.rng.choice([0.0, 0.5, 1.0]),
    )
    world.fail(op, fault, nth=world.rng.randrange(1, 3), name=name)
    if not clear(world):
        world.restart(world.rng.random() < 0.3)
    world.disk.fault = None
    _cleared(world)


def _cleared(world: World) -> None:
    """Nothing keeps a broker from removing what can go."""
    if not clear(world) or world.log.removable(world.point.first):
        raise world.wrong("a removal was not taken up again")


def remove_child_killed(world: World) -> None:
    """The process that writes the base is killed at some call, the broker goes on."""
    last = removable(world)
    with world.quietly():
        world.log.mark()
        crash(world, world.rng.randrange(1, CALLS_OF_A_REMOVAL), lambda: save(world, last))
    world.look("after a killed child")
    small(world)
    _cleared(world)


def remove_killed(world: World) -> None:
    """The whole broker is killed at some call, or the power goes; the next start goes on removing."""
    removable(world, more=world.rng.choice([0, 1]))
    with world.quietly():
        crash(world, world.rng.randrange(1, CALLS_OF_A_REMOVAL), lambda: clear(world))
    world.restart(power=world.rng.random() < 0.5)
    _cleared(world)
