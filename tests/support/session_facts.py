"""What a log says of sessions, cursors and leases, record by record in its order: what support/checker_sessions.py judges.

Every batch is read by the client library's `read_batch`, its place from the broker's walk over the groups. Nothing is concluded
here: an append is what its batches say, a control batch is its array.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgpack
from support.noted import events_of
from tidelog.batch import CONTROL, Batch, read_batch
from tidelog_broker.core.format import CURSOR, LEASE, SESSION
from tidelog_broker.core.recovery import Group
from tidelog_broker.disk import RealDisk
from tidelog_broker.files import Replay
from tidelog_broker.log import LogSettings
from tidelog_broker.store import Store


class Opened(NamedTuple):
    """A session got this epoch."""

    session: str
    epoch: int


class Moved(NamedTuple):
    """A cursor stands at this position from here on, under this lease."""

    cursor: str
    position: int
    holder: str | None
    lease: int


class Leased(NamedTuple):
    """A lease was taken; without a holder it was given back, or broken."""

    cursor: str
    holder: str | None
    lease: int


class Part(NamedTuple):
    """One batch of an append: (event id, digest) in order, from a position and a version on."""

    stream: str
    position: int
    version: int
    events: list[tuple[str, str]]


class Stored(NamedTuple):
    """An append: its batches, the session it names (name, epoch, serial), and the cursor that it carries."""

    parts: list[Part]
    session: tuple[str, int, int] | None = None
    moved: Moved | None = None


Fact = Opened | Moved | Leased | Stored
"""`Moved` alone is a commit; one that an append carries is in its `Stored`."""


def read_facts(data: Path) -> list[Fact]:
    """All of a log that is whole and not open."""
    facts: list[Fact] = []

    def around(replay: Replay) -> Replay:
        def look(ordinal: int, group: Group) -> None:
            facts.extend(facts_of(group.body))
            replay(ordinal, group)

        return look

    disk = RealDisk(data)
    try:
        store = Store.inspect(disk, LogSettings(), around)
        store.log.abandon()
        if store.log.damage is not None:
            raise store.log.damage
    finally:
        disk.close()
    return facts


def facts_of(body: bytes) -> list[Fact]:
    """Those of one group."""
    facts: list[Fact] = []
    batches: list[Batch] = []
    at = 0
    while at < len(body):
        batch = read_batch(body, at)
        assert isinstance(batch, Batch), "a group ends inside of a batch"
        at += batch.length
        batches.append(batch)
        if batch.append_index + 1 == batch.append_count:
            facts += _append(batches)
            batches = []
    assert not batches, "a group ends inside of an append"
    return facts


def _append(batches: list[Batch]) -> list[Fact]:
    controls = [fact for batch in batches if batch.kind == CONTROL and (fact := _control(batch)) is not None]
    parts = [
        Part(batch.stream, batch.first_position, batch.first_version, [(row[0], row[1]) for row in events_of(batch.region)])
        for batch in batches
        if batch.kind != CONTROL
    ]  # fmt: skip
    if not parts:
        return controls
    sessions = {batch.session for batch in batches if batch.kind != CONTROL}
    assert len(sessions) == 1, "the batches of an append name different sessions"
    moves = [fact for fact in controls if isinstance(fact, Moved)]
    assert controls == moves[:1], "an append carries something else than one cursor"
    return [Stored(parts, sessions.pop(), moves[0] if moves else None)]


def _control(batch: Batch) -> Fact | None:
    fields = msgpack.unpackb(batch.region)
    if batch.layout == SESSION:
        return Opened(*fields[:2])
    if batch.layout == CURSOR:
        return Moved(*fields[:4])
    return Leased(*fields[:3]) if batch.layout == LEASE else None
