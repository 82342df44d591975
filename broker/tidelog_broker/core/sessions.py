"""Producer sessions (spec §5): which epoch is in force, which serial is the last, and where its results stand. PURE.

A result is not kept itself but by the number of its append's first batch, which the log or the base tells the rest of: so a
repeat is answered at any distance for 8 bytes. What is staged for the next group stands beside what is durable until `commit` or
`rollback`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

from tidelog.batch import SESSION_TAIL
from tidelog.errors import InvalidArgument, Overloaded, SerialGap, SerialReused, SessionFenced
from tidelog.limits import INT_MAX, SESSION_RESULTS_MAX

from .names import check_name

NUMBERS_MAX = 2 * SESSION_RESULTS_MAX
"""Results are thrown away by halves."""


class SessionImage(NamedTuple):
    """A session as it stands between two groups: `numbers` are u64 little-endian, of its newest results."""

    name: str
    epoch: int
    last: int
    numbers: bytes


class Session:
    """One producer. `epoch` and `last` count what is staged, `durable_epoch` and `durable_last` do not."""

    __slots__ = ("durable_epoch", "durable_last", "epoch", "last", "name", "numbers", "prefix")

    def __init__(self, name: str, epoch: int = 0, last: int = 0, numbers: bytes = b"") -> None:
        self.name = name
        self.epoch = self.durable_epoch = epoch
        self.last = self.durable_last = last
        self.numbers = array("Q", struct.unpack(f"<{len(numbers) // 8}Q", numbers))
        encoded = name.encode()
        self.prefix = bytes((len(encoded),)) + encoded

    @property
    def is_staged(self) -> bool:
        """Whether something about it is not durable yet."""
        return (self.epoch, self.last) != (self.durable_epoch, self.durable_last)

    def stored(self, serial: int) -> bytes:
        """What an append's batches carry of it (FORMAT.md §3)."""
        return self.prefix + SESSION_TAIL.pack(self.epoch, serial)

    def number_of(self, serial: int) -> int | None:
        """The first batch of a durable append of this session; None if it is older than the results that are kept."""
        back = self.durable_last - serial
        return self.numbers[-1 - back] if back < min(len(self.numbers), SESSION_RESULTS_MAX) else None

    def image(self) -> SessionImage:
        """What a checkpoint keeps of it."""
        kept = self.numbers[-SESSION_RESULTS_MAX:]
        return SessionImage(self.name, self.durable_epoch, self.durable_last, struct.pack(f"<{len(kept)}Q", *kept))


Step = tuple[Session, int]
"""A staged append of a session, and the number of its first batch."""


class Sessions:
    """All sessions of a log. Opened by a request, never ended: at most `limit` of them."""

    def __init__(self, limit: int, images: Iterable[SessionImage] = ()) -> None:
        self.limit = limit
        self.by_name = {row.name: Session(*row) for row in images}
        self.steps: list[Step] = []
        self.opened: list[Session] = []

    # -- rules

    def find(self, request: object) -> tuple[Session, int]:
        """(session, serial) of an append's `[name, epoch, serial]`. Raises InvalidArgument, SessionFenced."""
        if type(request) is not tuple or len(request) != 3:
            raise InvalidArgument("a session is [name, epoch, serial]")
        name, epoch, serial = request
        _check_numbers(epoch, serial)
        if serial == 0:
            raise InvalidArgument("serials begin with 1")
        session = self.by_name.get(name) if type(name) is str else None
        if session is None:
            check_name(name, "session")
            raise SessionFenced(f"there is no session {name!r}: open it first", 0)
        if epoch != session.epoch:
            raise _fenced(session, epoch)
        return session, serial

    @staticmethod
    def gap(session: Session, serial: int) -> SerialGap:
        """The refusal of a serial that skips some."""
        error = SerialGap(f"session {session.name!r} is at serial {session.last}, {serial} skips some", session.last)
        error.shares_fate = session.is_staged
        return error

    @staticmethod
    def reused(session: Session, serial: int) -> SerialReused:
        """The refusal of a serial that is in the log with other events."""
        error = SerialReused(f"serial {serial} of session {session.name!r} is in the log with other events", serial)
        error.shares_fate = serial > session.durable_last
        return error

    def open(self, name: object, resume: object) -> tuple[Session, int | None]:
        """(session, the epoch to be written, None if the one in force goes on) for OPEN_SESSION (PROTOCOL.md §5.1).

        `resume`: None a new epoch, 0 the one in force, n just that. Raises InvalidArgument, SessionFenced, Overloaded.
        """
        if type(resume) is not int and resume is not None:
            raise InvalidArgument("a session is resumed at an epoch, 0 or nil")
        _check_numbers(resume or 0)
        session = self.by_name.get(name) if type(name) is str else None
        if session is None:
            check_name(name, "session")
            assert isinstance(name, str)
            if resume:
                raise SessionFenced(f"there is no session {name!r}", 0)
            if len(self.by_name) >= self.limit:
                raise Overloaded(
                    f"there are {self.limit} sessions already (setting sessions_max); they never expire: use names again"
                )
            return Session(name), 1
        if resume is None:
            if session.epoch == INT_MAX:
                raise InvalidArgument("this session has used up its epochs")
            return session, session.epoch + 1
        if resume not in (0, session.epoch):
            raise _fenced(session, resume)
        return session, None

    # -- staging

    def stage_open(self, session: Session, epoch: int) -> None:
        """A control batch that opens it is staged."""
        self.by_name[session.name] = session
        session.epoch = epoch
        self.opened.append(session)

    def stage(self, session: Session, number: int) -> None:
        """An append with the next serial is staged, its first batch has this number."""
        session.last += 1
        self.steps.append((session, number))

    def staged_number(self, session: Session, serial: int) -> int:
        """The first batch of a staged append."""
        mine = [number for owner, number in self.steps if owner is session]
        return mine[serial - session.durable_last - 1]

    def commit(self, opened: int, steps: int) -> None:
        """So many of the staged opens and appends, the oldest, are durable."""
        for session in self.opened[:opened]:
            session.durable_epoch += 1
        for session, number in self.steps[:steps]:
            session.durable_last += 1
            session.numbers.append(number)
            if len(session.numbers) >= NUMBERS_MAX:
                del session.numbers[:-SESSION_RESULTS_MAX]
        del self.opened[:opened], self.steps[:steps]

    def rollback(self) -> None:
        """Nothing staged is in the log."""
        for session in [*self.opened, *(session for session, _ in self.steps)]:
            session.epoch, session.last = session.durable_epoch, session.durable_last
            if not session.epoch:
                self.by_name.pop(session.name, None)
        self.opened.clear()
        self.steps.clear()

    # -- the log that is read

    def reopen(self, name: str, epoch: object) -> bool:
        """A session record of the log; False when the epoch does not go on from the one before."""
        if type(epoch) is not int:
            return False
        session = self.by_name.get(name) or self.by_name.setdefault(name, Session(name))
        if epoch != session.epoch + 1:
            return False
        session.epoch = session.durable_epoch = epoch
        return True

    def restore(self, name: str, epoch: int, serial: int, number: int) -> str:
        """A session's append of the log, by the number of its first batch; what is wrong with it, or "" """
        session = self.by_name.get(name)
        if session is None or epoch != session.epoch:
            return f"session {name!r} appends in epoch {epoch}, expected {session.epoch if session else 'none'}"
        if serial != session.last + 1:
            return f"session {name!r} goes on with serial {serial}, expected {session.last + 1}"
        session.last += 1
        self.steps.append((session, number))
        self.commit(0, 1)
        return ""

    def images(self) -> list[SessionImage]:
        """All of them, sorted by name."""
        return [self.by_name[name].image() for name in sorted(self.by_name)]


def _check_numbers(*values: Any) -> None:
    if not all(type(value) is int and 0 <= value <= INT_MAX for value in values):
        raise InvalidArgument("epochs and serials are integers from 0 to 2^63-1")


def _fenced(session: Session, epoch: int) -> SessionFenced:
    if epoch > session.epoch:
        text = f"session {session.name!r} has epoch {session.epoch}, {epoch} was never given"
    else:
        text = f"session {session.name!r} was opened again: epoch {session.epoch} is in force, not {epoch}"
    error = SessionFenced(text, session.epoch)
    error.shares_fate = session.epoch != session.durable_epoch
    return error
