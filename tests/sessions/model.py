"""Sessions, cursors and leases once more, as plainly as possible (spec §§3, 5, 10; PROTOCOL.md): dicts, lists and copies.

A `State` is a log behind some request; `Model` holds the durable one, the one behind a sealed group, and the newest. What a
reply was decided on and is not durable yet makes it share the group's fate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tidelog.errors import (
    CursorMoved,
    DuplicateEventId,
    InvalidArgument,
    LeaseLost,
    Overloaded,
    SerialGap,
    SerialReused,
    SessionFenced,
    WrongExpectedVersion,
)

DUPLICATE, DURABLE = 1, 2
ACQUIRE, RELEASE, BREAK = 0, 1, 2
NUMBER_MAX = 2**63 - 1


class Answer(NamedTuple):
    """An error's code and facts, or 0 and what stands behind it in the reply; whether it shares the fate of a group."""

    code: int
    rest: tuple[Any, ...]
    fated: bool


class Write(NamedTuple):
    """What goes to a stream: its ids and the bytes of its region (None: it only asserts the version)."""

    stream: str
    expected: bool | int | None
    ids: tuple[bytes, ...]
    region: bytes | None


@dataclass(frozen=True, slots=True)
class Placed:
    """An append that is in the log, durable or not."""

    number: int
    """Of its first batch, counted over the log."""
    writes: tuple[Write, ...]
    places: tuple[tuple[int, int, int, int], ...]

    @property
    def content(self) -> tuple[tuple[str, bytes], ...]:
        return _content(self.writes)


class Producer(NamedTuple):
    """A session: serial n is its results' n-th."""

    epoch: int = 0
    results: tuple[Placed, ...] = ()


class Place(NamedTuple):
    """A cursor and its lease."""

    position: int | None = None
    holder: str = ""
    lease: int = 0
    commit: bytes = b""


class Move(NamedTuple):
    """What is asked of a cursor."""

    name: str
    expected: int | bool | None
    position: int
    lease: int | None
    commit: bytes = b""


@dataclass(slots=True)
class State:
    """A log as it stands."""

    head: int = 0
    batches: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    ids: dict[bytes, Placed] = field(default_factory=dict)
    sessions: dict[str, Producer] = field(default_factory=dict)
    cursors: dict[str, Place] = field(default_factory=dict)

    def copy(self) -> State:
        return replace(
            self,
            versions=dict(self.versions),
            ids=dict(self.ids),
            sessions=dict(self.sessions),
            cursors=dict(self.cursors),
        )


class Refused(Exception):
    """A definite error: its code, its facts, and whether what it was decided on is durable."""

    def __init__(self, code: int, facts: tuple[Any, ...], fated: bool) -> None:
        self.answer = Answer(code, facts, fated)


class Model:
    """The rules over a log. `results_max`: results of a session that are kept."""

    def __init__(self, sessions_max: int, cursors_max: int, results_max: int) -> None:
        self.sessions_max = sessions_max
        self.cursors_max = cursors_max
        self.results_max = results_max
        self.durable = State()
        self.sealed: State | None = None
        self.now = State()

    # -- groups

    def seal(self) -> None:
        self.sealed = self.now.copy()

    def commit(self) -> None:
        """The sealed group is durable; all that is staged, when none is."""
        self.durable = self.sealed or self.now.copy()
        self.sealed = None

    def rollback(self) -> None:
        self.sealed = None
        self.now = self.durable.copy()

    # -- requests

    def judged(self, request: Callable[[], Answer]) -> Answer:
        """The answer to a request; refused, it leaves nothing behind."""
        before = self.now.copy()
        try:
            return request()
        except Refused as refusal:
            self.now = before
            return refusal.answer

    def open(self, name: str, resume: int | None) -> Answer:
        """→ (epoch, last serial)"""
        session = self.now.sessions.get(name)
        if session is None:
            if resume:
                raise Refused(SessionFenced.code, (0,), False)
            if len(self.now.sessions) >= self.sessions_max:
                raise Refused(Overloaded.code, (), False)
            session = self.now.sessions[name] = Producer(1)
        elif resume is None:
            session = self.now.sessions[name] = session._replace(epoch=session.epoch + 1)
        elif resume not in (0, session.epoch):
            raise self._fenced(name, session)
        return Answer(0, (session.epoch, len(session.results)), self._is_staged(name))

    def append(
        self, session: tuple[str, int, int] | None, move: Move | None, writes: tuple[Write, ...], accepted: bool
    ) -> Answer:
        """→ (flags, four places a write)"""
        if session is not None:
            placed = self._repeat(*session, writes)
            if placed is not None:
                name, _, serial = session
                durable = len(self._durable(name).results)
                if serial <= durable - self.results_max:
                    return Answer(0, (DUPLICATE | DURABLE, *[None] * 4 * len(writes)), False)
                if placed.content != _content(writes):
                    raise Refused(SerialReused.code, (serial,), serial > durable)
                return self._again(placed, writes, accepted)
        known = [self.now.ids.get(event_id) for write in writes for event_id in write.ids]
        if any(known):
            first = known[0]
            if session is None and first and all(one is first for one in known) and first.content == _content(writes):
                return self._again(first, writes, accepted)
            raise Refused(DuplicateEventId.code, (), any(one and self._is_pending(one) for one in known))
        for write in writes:
            self._expect(write)
        if move is not None:
            self._move(move)
        placed = self._place(writes)
        if session is not None:
            name = session[0]
            before = self.now.sessions[name]
            self.now.sessions[name] = before._replace(results=(*before.results, placed))
        return Answer(0, (0 if accepted else DURABLE, *_places(placed, writes)), not accepted)

    def commit_cursor(self, move: Move) -> Answer:
        """→ (position)"""
        before = self.now.cursors.get(move.name, Place())
        if not (move.commit and (before.commit, before.position) == (move.commit, move.position)):
            self._move(move)
        return Answer(0, (move.position,), self._is_moved(move.name))

    def lease(self, name: str, what: int, lease: int | None, me: str, *, gone: bool) -> Answer:
        """→ (lease, position)"""
        cursor = self.now.cursors.get(name, Place())
        after = cursor
        if what == ACQUIRE and cursor.holder != me:
            if cursor.holder and not gone:
                raise Refused(LeaseLost.code, (name,), self._is_moved(name))
            self._room(name)
            after = cursor._replace(holder=me, lease=cursor.lease + 1)
        elif what == BREAK or (what == RELEASE and cursor.lease == lease):
            after = cursor._replace(holder="")
        if after != cursor:
            self.now.cursors[name] = after
        return Answer(0, (after.lease, after.position), self._is_moved(name))

    # -- rules

    def _repeat(self, name: str, epoch: int, serial: int, writes: tuple[Write, ...]) -> Placed | None:
        """The append with this serial; None when it is the next one."""
        if serial == 0:
            raise Refused(InvalidArgument.code, (), False)
        session = self.now.sessions.get(name)
        if session is None:
            raise Refused(SessionFenced.code, (0,), False)
        if session.epoch != epoch:
            raise self._fenced(name, session)
        last = len(session.results)
        if serial > last + 1:
            raise Refused(SerialGap.code, (last,), self._is_staged(name))
        return session.results[serial - 1] if serial <= last else None

    def _fenced(self, name: str, session: Producer) -> Refused:
        return Refused(SessionFenced.code, (session.epoch,), session.epoch != self._durable(name).epoch)

    def _durable(self, name: str) -> Producer:
        return self.durable.sessions.get(name, Producer())

    def _is_staged(self, name: str) -> bool:
        return self._durable(name) != self.now.sessions[name]

    def _is_pending(self, placed: Placed) -> bool:
        return placed.number >= self.durable.batches

    def _is_moved(self, name: str) -> bool:
        """Whether a move of the cursor is staged, be it to where it stands."""
        return self.durable.cursors.get(name) is not self.now.cursors.get(name)

    def _again(self, placed: Placed, writes: tuple[Write, ...], accepted: bool) -> Answer:
        pending = self._is_pending(placed)
        flags = DUPLICATE if pending and accepted else DUPLICATE | DURABLE
        return Answer(0, (flags, *_places(placed, writes)), pending and not accepted)

    def _expect(self, write: Write) -> None:
        version = self.now.versions.get(write.stream, 0)
        expected = write.expected
        if expected is None or (version == expected + 1 if type(expected) is int else expected == (version > 0)):
            return
        fated = version != self.durable.versions.get(write.stream, 0)
        actual = version - 1 if version else None
        raise Refused(WrongExpectedVersion.code, (write.stream, expected, actual, False), fated)

    def _move(self, move: Move) -> None:
        name = move.name
        cursor = self.now.cursors.get(name, Place())
        fated = self._is_moved(name)
        # A lease is worth something only as long as it is held.
        mine = bool(cursor.holder) and move.lease == cursor.lease
        if (cursor.holder or move.lease is not None) and not mine:
            raise Refused(LeaseLost.code, (name,), fated)
        if move.expected is not True and move.expected != cursor.position:
            raise Refused(CursorMoved.code, (name, move.expected, cursor.position), fated)
        self._room(name)
        self.now.cursors[name] = cursor._replace(position=move.position, commit=move.commit)

    def _room(self, name: str) -> None:
        if name not in self.now.cursors and len(self.now.cursors) >= self.cursors_max:
            raise Refused(Overloaded.code, (), False)

    def _place(self, writes: tuple[Write, ...]) -> Placed:
        now = self.now
        places = []
        number = now.batches
        for stream, _, ids, region in writes:
            if region is None:
                continue
            version = now.versions.get(stream, 0)
            places.append((now.head, now.head + len(ids) - 1, version, version + len(ids) - 1))
            now.head += len(ids)
            now.versions[stream] = version + len(ids)
            now.batches += 1
        placed = Placed(number, writes, tuple(places))
        now.ids.update((event_id, placed) for write in writes for event_id in write.ids)
        return placed


def _content(writes: tuple[Write, ...]) -> tuple[tuple[str, bytes], ...]:
    return tuple((write.stream, write.region) for write in writes if write.region is not None)


def _places(placed: Placed, writes: tuple[Write, ...]) -> list[int | None]:
    """Four places a write; all None where a write has no events."""
    rows = iter(placed.places)
    found: list[int | None] = []
    for write in writes:
        found += next(rows) if write.region is not None else (None, None, None, None)
    return found
