"""Random requests of sessions, cursors and leases, each answered by the broker's rules and by the model."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from sessions.memory import Asked
from sessions.model import ACQUIRE, BREAK, DUPLICATE, DURABLE, RELEASE, Answer, Model, Move, Placed, Write
from tidelog.batch import pack_columns
from tidelog.errors import Overloaded
from tidelog_broker.core.appender import GroupFull
from tidelog_broker.core.cursors import Cursor

SESSIONS = ["p", "q", "r", "s"]
CURSORS = ["c", "d", "e", "f"]
CLIENTS = ["me", "you"]
STREAMS = ["a/1", "a/2", "plain"]
OLD_MAX = 40


class Groups(Protocol):
    """What the log's groups are made of."""

    def commit(self) -> None: ...


class Driver:
    """A model beside a log. `commit` makes all of the sealed group, or of what is staged, durable in both."""

    def __init__(self, model: Model, asked: Asked, groups: Groups, *, old_max: int = OLD_MAX) -> None:
        """`old_max`: how many of the newest appends may be sent again outside of a session; the id window must know them."""
        self.model = model
        self.asked = asked
        self.groups = groups
        self.old_max = old_max
        self.ids = 0
        self.sent: list[tuple[Write, ...]] = []

    # -- groups

    @property
    def is_sealed(self) -> bool:
        return self.asked.appender.sealed is not None

    def commit(self) -> None:
        if self.asked.appender.is_pending:
            self.groups.commit()
            self.model.commit()

    def settle(self) -> None:
        """Everything is durable."""
        self.commit()
        self.commit()

    def seal(self) -> None:
        """Close the group; the next one is collected while it is under way."""
        if not self.is_sealed and self.asked.appender.parts:
            self.asked.appender.seal()
            self.model.seal()

    def rollback(self) -> None:
        self.asked.appender.rollback()
        self.model.rollback()

    # -- requests

    def step(self, rnd: Random) -> Answer:
        """One request of any kind."""
        kind = rnd.randrange(10)
        if kind < 1:
            return self.open(rnd)
        if kind < 7:
            return self.append(rnd)
        return self.commit_cursor(rnd) if kind < 8 else self.lease(rnd)

    def open(self, rnd: Random) -> Answer:
        name, resume = rnd.choice(SESSIONS), rnd.choice([None, 0, 1, 2, 3])
        return self.both(lambda: self.asked.open(name, resume), lambda: self.model.open(name, resume))

    def open_as(self, name: str) -> None:
        """A session that is open, durably."""
        assert self.both(lambda: self.asked.open(name, None), lambda: self.model.open(name, None)).code == 0
        self.settle()

    def append(self, rnd: Random) -> Answer:
        session = self._session(rnd) if rnd.randrange(4) else None
        move = self._move(rnd) if not rnd.randrange(4) else None
        writes = self._writes(rnd, session)
        accepted = not rnd.randrange(3)
        return self.send(session, move, writes, accepted=accepted)

    def send(
        self,
        session: tuple[str, int, int] | None,
        move: Move | None,
        writes: tuple[Write, ...],
        *,
        accepted: bool = False,
    ) -> Answer:
        rows = tuple((write.stream, write.expected, write.region) for write in writes)
        cursor = tuple(move) if move else None
        answer = self.both(
            lambda: self.asked.append(session, cursor, rows, int(accepted)),
            lambda: self.model.append(session, move, writes, accepted),
        )
        self.sent = [*self.sent, writes][-self.old_max :] if self.old_max else []
        return answer

    def commit_cursor(self, rnd: Random) -> Answer:
        return self.move(self._move(rnd)._replace(commit=bytes([rnd.randrange(3)]) * 16))

    def move(self, move: Move) -> Answer:
        return self.both(lambda: self.asked.commit_cursor(*move), lambda: self.model.commit_cursor(move))

    def lease(self, rnd: Random) -> Answer:
        name, what, me = rnd.choice(CURSORS), rnd.choice([ACQUIRE, ACQUIRE, RELEASE, BREAK]), rnd.choice(CLIENTS)
        return self.take(name, what, self._lease(rnd, name), me, gone=not rnd.randrange(4))

    def take(self, name: str, what: int, lease: int | None, me: str, *, gone: bool = False) -> Answer:
        """Something is asked of a lease."""
        return self.both(
            lambda: self.asked.lease(name, what, lease, me, gone=gone),
            lambda: self.model.lease(name, what, lease, me, gone=gone),
        )

    def both(self, ask: Callable[[], Answer], judge: Callable[[], Answer]) -> Answer:
        """The answer of the rules, which is the model's; what is not durable yet decides nothing that is told at once."""
        try:
            found = ask()
        except GroupFull:
            self.settle()
            found = ask()
        model = self.model
        staged = model.now.copy()
        answer = model.judged(judge)
        assert found == answer, (found, answer)
        if not found.fated and found.code != Overloaded.code:
            now, model.now = model.now, model.durable.copy()
            alone = model.judged(judge)
            model.now = now
            assert is_true_of(found, alone, model.durable.head), (found, alone)
        if found.code:
            assert model.now == staged
        return found

    def new(self, stream: str, count: int = 1, expected: bool | int | None = None) -> Write:
        """A write of events that nobody has sent before."""
        self.ids += count
        ids = tuple(number.to_bytes(16, "big") for number in range(self.ids - count + 1, self.ids + 1))
        payloads = [b"%d " % self.ids + bytes([self.ids % 251]) * 4] * count
        return Write(stream, expected, ids, pack_columns(b"".join(ids), ["t"] * count, [b""] * count, payloads))

    # -- what is asked

    def _session(self, rnd: Random) -> tuple[str, int, int]:
        name = rnd.choice(SESSIONS)
        session = self.model.now.sessions.get(name)
        if session is None:
            return name, 1, 1
        epoch = session.epoch + rnd.choice([0] * 9 + [-1, 1])
        serial = len(session.results) + rnd.choice([1] * 9 + [2, 3, 0, 0, 0, -1, -3, -9])
        return name, max(0, epoch), max(0, serial)

    def _writes(self, rnd: Random, session: tuple[str, int, int] | None) -> tuple[Write, ...]:
        placed = self._placed(session)
        if placed is not None and rnd.randrange(5):
            return placed.writes
        if self.sent and not rnd.randrange(8):
            return rnd.choice(self.sent)
        names = rnd.sample(STREAMS, rnd.choice([1, 1, 1, 2]))
        writes = [self.new(name, rnd.choice([1, 1, 3]), self._expected(rnd, name)) for name in names]
        if len(writes) > 1 and not rnd.randrange(3):
            at = rnd.randrange(2)
            writes[at] = writes[at]._replace(ids=(), region=None)
        elif self.sent and not rnd.randrange(4):
            old = rnd.choice(self.sent)
            writes = [write for write in writes if write.stream not in {one.stream for one in old}]
            writes += old
        return tuple(writes)

    def _placed(self, session: tuple[str, int, int] | None) -> Placed | None:
        if session is None or session[0] not in self.model.now.sessions:
            return None
        results = self.model.now.sessions[session[0]].results
        return results[session[2] - 1] if 1 <= session[2] <= len(results) else None

    def _expected(self, rnd: Random, name: str) -> bool | int | None:
        version = self.model.now.versions.get(name, 0)
        right: bool | int = version - 1 if version else False
        return rnd.choice([None, None, None, right, right, version > 0, version + 1])

    def _lease(self, rnd: Random, name: str) -> int | None:
        cursor = self.model.now.cursors.get(name)
        now = cursor.lease if cursor else 0
        return rnd.choice([now, now, now if cursor and cursor.holder else None, None, max(0, now - 1), now + 1])

    def _move(self, rnd: Random) -> Move:
        name = rnd.choice(CURSORS)
        cursor = self.model.now.cursors.get(name)
        stands = cursor.position if cursor else None
        expected = rnd.choice([stands, stands, stands, True, None, 7])
        return Move(name, expected, rnd.randrange(4), self._lease(rnd, name))

    # -- what is known

    def holds(self) -> None:
        """What is durable in the log's memory is what is durable in the model, and what is staged stands before it."""
        appender, durable, now = self.asked.appender, self.model.durable, self.model.now
        assert (appender.index.head, appender.index.stop) == (durable.head, durable.batches)
        assert (appender.position, appender.number) == (now.head, now.batches)
        images = {image.name: image[1:] for image in appender.sessions.images() if image.epoch}
        kept = self.model.results_max
        assert images == {
            name: (
                session.epoch,
                len(session.results),
                b"".join(placed.number.to_bytes(8, "little") for placed in session.results[-kept:]),
            )
            for name, session in durable.sessions.items()
        }
        staged = {name: (session.epoch, session.last) for name, session in appender.sessions.by_name.items()}
        assert staged == {name: (session.epoch, len(session.results)) for name, session in now.sessions.items()}
        cursors = appender.cursors
        assert cursors.by_name == {name: Cursor(*place) for name, place in durable.cursors.items()}
        assert {name: cursors.get(name) for name in now.cursors} == {
            name: Cursor(*place) for name, place in now.cursors.items()
        }
        if not appender.is_pending:
            assert not [*appender.parts, *appender.versions, *appender.appends, *appender.truncations]
            assert not [*appender.sessions.steps, *appender.sessions.opened]
            assert not [*cursors.steps, *cursors._staged]

    def repeats(self) -> None:
        """Each result of a session that is kept is told again, with its places, and writes nothing."""
        assert not self.asked.appender.is_pending
        for name, (epoch, results) in list(self.model.now.sessions.items()):
            for serial, placed in enumerate(results, 1):
                answer = self.send((name, epoch, serial), None, placed.writes)
                assert answer.code == 0
                assert not self.asked.appender.is_pending


def is_true_of(found: Answer, alone: Answer, head: int) -> bool:
    """Whether an answer that waits for nothing stays true whatever becomes of what is staged; `alone`: without all that."""
    if found.code:
        # Another refusal is as good: it is not in the log, and never will be.
        return alone.code != 0
    if alone[:2] == found[:2] or not found.rest[0] & DURABLE:
        return True
    return bool(found.rest[0] & DUPLICATE) and all(place is None or place < head for place in found.rest[2::4])
