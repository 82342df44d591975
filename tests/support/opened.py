"""A log that is opened, and the prefix that it turns out to hold.

Owns how a prefix is named: by the chain of its groups' bodies, which begins behind the base where segments were removed. Promises
for a log that is opened with its index that this is the one which the log alone makes, whatever was saved of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from support.builders import Writer, seeded_random
from support.simdisk import SimDisk
from tidelog_broker.checkpoints import FOLDER as INDEX
from tidelog_broker.core.known import Known
from tidelog_broker.core.recovery import Group
from tidelog_broker.files import QUARANTINE, Replay
from tidelog_broker.index_digest import digest, digest_of_known
from tidelog_broker.log import Log
from tidelog_broker.store import IndexSettings, Store

if TYPE_CHECKING:
    from support.crashes import World

NOTHING = b""
INDEXED = IndexSettings(streams_cached=4, tail_batches=6)
"""So few batches in memory that a log of some groups is saved while it is read."""
KNOWN_MAX = 10_000


class Counterexample(AssertionError):
    """A state that was recovered wrongly."""


@dataclass(slots=True)
class Point:
    """A prefix of the log: how many groups, the head behind it, the writer's knowledge there, the first position that is left,
    and the last group's body."""

    groups: int = 0
    position: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, tuple[int, int]] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    first: int = 0
    body: bytes = b""

    def writer(self, serial: int) -> Writer:
        """Whoever goes on from here."""
        return Writer(self.position, dict(self.versions), dict(self.sessions), dict(self.cursors), serial)


def chain(prefix: bytes, body: bytes) -> bytes:
    """The name of the prefix that `body` follows."""
    return blake2b(prefix + body, digest_size=16).digest()


class Opened(NamedTuple):
    """A log, the name of the prefix that it holds, the first position that is left, and what is known beside it: None where
    nobody asked its index."""

    log: Log
    held: bytes
    first: int | None = None
    known: Known | None = None

    def differs(self, point: Point) -> str:
        """What is not as it is at a point; "" if all is."""
        log = self.log
        if (log.head, log.group) != (point.position, point.groups):
            return f"head {log.head} and group {log.group}, expected {point.position} and {point.groups}"
        if self.first not in (None, point.first):
            return f"the first position that is left is {self.first}, expected {point.first}"
        if self.known is not None:
            sessions = {row.name: (row.epoch, row.last) for row in self.known.sessions.images()}
            cursors = {name: row.position for name, row in self.known.cursors.rows()}
            if (sessions, cursors) != (point.sessions, point.cursors):
                return f"sessions {sessions} and cursors {cursors}, expected {point.sessions} and {point.cursors}"
        return ""


class _Chained:
    """The bodies of groups as they are replayed."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def around(self, replay: Replay) -> Replay:
        def chained(ordinal: int, group: Group) -> None:
            replay(ordinal, group)
            self.bodies.append(group.body)

        return chained

    def held(self, log: Log, world: World) -> bytes:
        """The name of the prefix: removed segments held one that was committed."""
        behind = log.base.base.group if log.base else 0
        if behind >= len(world.names):
            raise Counterexample(f"a base of group {behind}, which never was durable")
        held = world.names[behind]
        for body in self.bodies:
            held = chain(held, body)
        return held


def open_log(disk: SimDisk, world: World, seed: bytes) -> Opened:
    """Recover, as a broker does once there is something for it to know that Log.open does not."""
    if world.truncated or INDEX in disk.names():
        return _open_indexed(disk, world, seed)
    chained = _Chained()
    log = Log.open(disk, world.settings, random=seeded_random(seed), replay=chained.around(lambda ordinal, group: None))
    return Opened(log, chained.held(log, world))


def _open_indexed(disk: SimDisk, world: World, seed: bytes) -> Opened:
    """Through the saved index, held against the one that the recovered log alone makes."""
    store = Store(disk, world.settings, seeded_random(seed), INDEXED)
    alone = _alone(disk, world)
    if digest(store.index) != alone.answers:
        raise Counterexample(f"behind the checkpoint at group {store.log.report.since} is another index than the log's")
    if digest_of_known(store.known) != alone.known:
        raise Counterexample(
            f"behind the checkpoint at group {store.log.report.since} other ids, sessions or cursors are known"
        )
    return Opened(store.log, alone.held, store.index.first_position, store.known)


class Alone(NamedTuple):
    """What a log says without a saved index: digests of its index and what is known beside it, and the prefix that it holds."""

    answers: str
    known: str
    held: bytes


def _alone(disk: SimDisk, world: World) -> Alone:
    """Many states differ in the saved index only, so what was read is remembered by the rest of the files."""
    image = {name: data for name, data in disk.image().items() if not name.startswith((INDEX, QUARANTINE))}
    hasher = blake2b(digest_size=16)
    for name in sorted(image):
        hasher.update(b"%s\0%d\0" % (name.encode(), len(image[name])) + image[name])
    key, known = hasher.digest(), world.explorer.alone
    found = known.get(key)
    if found is None:
        chained = _Chained()
        whole = Store.inspect(SimDisk(image), world.settings, chained.around)
        if whole.log.damage is not None:
            raise whole.log.damage
        if len(known) >= KNOWN_MAX:
            known.clear()
        found = known[key] = Alone(digest(whole.index), digest_of_known(whole.known), chained.held(whole.log, world))
    return found
