"""The rules of append over a log in memory, where a group may be sealed while the next is collected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sessions.model import Answer
from tidelog.batch import Batch, Incomplete, read_batch
from tidelog.errors import TidelogError
from tidelog_broker.core.appender import Appender, AppendLimits, GroupFull
from tidelog_broker.core.base import KeptWrite, kept_writes
from tidelog_broker.core.index import OFFSET_MASK, Index
from tidelog_broker.core.known import Known

REQUEST_ID = 7


class Asked:
    """Requests as they come out of msgpack, answered by an Appender."""

    appender: Appender
    now = 0

    def answer(self, request: Callable[[], tuple[tuple[Any, ...], bool]]) -> Answer:
        """What a request is answered; GroupFull is raised."""
        self.now += 1
        try:
            reply, fated = request()
        except GroupFull:
            raise
        except TidelogError as error:
            return Answer(error.code, tuple(error.facts), error.shares_fate)
        assert reply[:2] == (REQUEST_ID, 0)
        return Answer(0, reply[2:], fated)

    def append(self, session: Any, cursor: Any, writes: Any, durability: int = 0) -> Answer:
        """The short way where it takes it, else the long one; without the generation, which is 5."""
        request = (3, REQUEST_ID, 0, None, durability, session, cursor, writes)

        def admit() -> tuple[tuple[Any, ...], bool]:
            plain = self.appender.admit_plain(request, self.now, 5)
            reply, fated = (plain, bool(plain[2])) if plain else self.appender.admit(request, self.now, 5)
            assert reply[3] == 5
            return (*reply[:3], *reply[4:]), fated

        return self.answer(admit)

    def open(self, name: Any, resume: Any) -> Answer:
        return self.answer(lambda: self.appender.open_session((16, REQUEST_ID, 0, name, resume), self.now))

    def commit_cursor(self, *parts: Any) -> Answer:
        return self.answer(lambda: self.appender.commit_cursor((17, REQUEST_ID, 0, *parts), self.now))

    def lease(self, name: Any, what: Any, lease: Any, me: str = "me", *, gone: bool = False) -> Answer:
        return self.answer(lambda: self.appender.lease((18, REQUEST_ID, 0, name, what, lease), self.now, me, gone=gone))


class Memory(Asked):
    """One segment, a bytearray."""

    def __init__(
        self, sessions_max: int = 9, cursors_max: int = 9, window: int = 1 << 16, body_bytes_max: int = 1 << 16
    ) -> None:
        self.log = bytearray(4_096)
        self.index = Index()
        self.known = Known.nothing(window, sessions_max, cursors_max)
        limits = AppendLimits(id_window_events=window)
        self.appender = Appender(self.index, limits, body_bytes_max, self._stored, self.known)

    def _stored(self, number: int) -> Sequence[KeptWrite]:
        return kept_writes(self.batch(at) for at in range(number, self.index.append_stop(number)))

    def batch(self, number: int) -> Batch:
        rows = self.index.rows(number)
        at = rows.places[number - rows.first] & OFFSET_MASK
        batch = read_batch(bytes(self.log[at : at + rows.lengths[number - rows.first]]))
        assert not isinstance(batch, Incomplete)
        return batch

    def seal(self) -> None:
        self.appender.seal()

    def commit(self) -> None:
        """The sealed group is durable; all that is staged, when none is."""
        group = self.appender.sealed or self.appender.seal()
        offset = len(self.log) + 64
        self.log += bytes(64) + b"".join(group.parts)
        self.appender.commit(1, offset)
