"""Appending: one stream or several, waiting or not, in a session or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .calls import Calls, first, seconds
from .consuming import CursorMove, cursor_move
from .errors import DeadlineExceeded, InvalidArgument, OutcomeUnknown, TidelogError
from .link import Future, Watched
from .messages import ANY, Appended, Event, ExpectedVersion, Write
from .wire import (
    APPEND,
    DUPLICATE_FLAG,
    DURABLE_FLAG,
    WAIT_DURABLE,
    bound,
    expected_wire,
    pack_event,
    pack_events,
    stream_name,
)

if TYPE_CHECKING:
    from uuid import UUID

    from .exchange import Call
    from .producer import Producer
    from .session import Session

T = TypeVar("T")
Durability = Literal["durable", "accepted"]
_DURABILITY = {"durable": 0, "accepted": 1}


class Appends(Calls):
    """What writes events."""

    def append(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> Appended:
        """Append events to a stream, all of them or none, and wait until they are durable.

        Raises WrongExpectedVersion, InvalidArgument, EventTooLarge, AppendTooLarge, DuplicateEventId, StorageFull: in
        these cases nothing was written. OutcomeUnknown, and DeadlineExceeded with `maybe_applied`, leave it open; a
        repeat settles it if the events carry ids of yours.

        `durability` "accepted" waits only until the events have their places: they may still be lost, and are seen by nobody
        before they are durable; `wait_durable` and `flush` wait for that. `cursor` (name, position) moves a cursor atomically
        with the events, from where this client last read or set it; raises CursorMoved and LeaseLost.
        """
        now = monotonic()
        call = self._append_call(stream, events, expected_version, durability, timeout, now, cursor)
        if type(call) is Future:
            self._link.submit(call, now)
        else:
            self._submit(call, now, waits=True)
        return call.result()

    def append_nowait(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> Future[Appended]:
        """Like `append`, but returns a future at once: the append is sent, sent again and answered though nobody asks
        the future. Blocks only while as many calls are under way as the broker allows (4,096)."""
        now = monotonic()
        call = self._append_call(stream, events, expected_version, durability, timeout, now, cursor)
        if type(call) is Future:
            self._link.submit_unattended(call, now)
        else:
            self._submit(call, now, waits=False)
        return call

    def append_many(
        self,
        writes: Iterable[Write],
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> list[Appended]:
        """Append to several streams atomically → one Appended per write, in their order.

        A write without events asserts its stream's version; at least one write has events. Raises like `append`.
        """
        now = monotonic()
        call = self._many_call(writes, durability, timeout, now, cursor)
        return self._submit(call, now, waits=True).result()

    def _append_call(
        self, stream: Any, events: Any, expected: Any, durability: str, timeout: float | None, now: float,
        cursor: CursorMove | None = None, producer: Producer | None = None,
    ) -> Future[Appended]:  # fmt: skip
        if type(stream) is not str:
            stream = stream_name(stream)
        region = pack_event(events, self._ids) if type(events) is Event else pack_events(events, self._ids)
        word = None if expected is ANY else expected_wire(expected)
        deadline = now + (self.timeout if timeout is None else seconds(timeout))
        level = 0 if durability == "durable" else _durability(durability)
        writes = ((stream, word, region),)
        if cursor is None and (level == 0 or producer is not None):
            call = Future(self._link, APPEND, (level, None, None, writes), deadline, _appended)
            if producer is not None:
                call.session = producer
            return call
        return self._watched(level, cursor, writes, deadline, _appended, producer)

    def _many_call(
        self, writes: Iterable[Write], durability: str, timeout: float | None, now: float, cursor: CursorMove | None,
        producer: Producer | None = None,
    ) -> Future[list[Appended]]:  # fmt: skip
        packed = []
        for stream, events, expected in writes:
            given = [events] if isinstance(events, Event) else list(events)
            region = pack_events(given, self._ids) if given else None
            packed.append((stream_name(stream), expected_wire(expected), region))
        if not packed:
            raise InvalidArgument("append_many has at least one write")
        deadline = now + (self.timeout if timeout is None else seconds(timeout))
        return self._watched(_durability(durability), cursor, packed, deadline, _appended_rows, producer)

    def _watched(
        self, level: int, cursor: CursorMove | None, writes: Any, deadline: float, shape: Callable[[Future[T]], T],
        producer: Producer | None,
    ) -> Future[T]:  # fmt: skip
        """An append whose end others have to know: its cursor, whoever flushes."""
        words, move = (None, None) if cursor is None else self._cursors.move(*cursor_move(cursor))
        enders: list[Callable[[Call], None]] = [] if move is None else [move.ended]
        if producer is None and level:
            enders.append(self._link.exchange.note_accepted)
        fields = (level, None, words, writes)
        call = Watched(self._link, APPEND, fields, deadline, shape, enders, move.undo if move is not None else None)
        call.session = producer
        return call

    def session(self, name: str, resume: bool | int = False, *, timeout: float | None = None) -> Session:
        """A producer session: its appends are in the log exactly once, in order, whatever is killed meanwhile.

        Opens a new epoch: whoever held the session before gets SessionFenced from then on. With `resume` the epoch in force goes
        on (True), or just the one given, and a session that was never opened is opened; raises SessionFenced when another is in
        force, so two instances do not fence each other in turn. With True nobody is fenced: what a killed holder had sent last
        may still count, and two who hold the session at once get SerialReused and NotApplied.
        """
        from .session import opened

        if not isinstance(name, str):
            raise InvalidArgument("a session is named by a str")
        epoch = None if resume is False else 0 if resume is True else bound(resume, "an epoch")
        return opened(self, name, epoch, timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every append of this client is answered, and durable if it was accepted.

        Sessions send again what was lost meanwhile; outside of sessions that raises OutcomeUnknown.
        """
        until = monotonic() + (self.timeout if timeout is None else seconds(timeout))
        exchange = self._link.exchange
        for call in self._link.locked(exchange.under_way):
            self._link.wait(call, max(until - monotonic(), 0.0))
        told: TidelogError | None = None
        for key, position in self._link.locked(lambda: list(exchange.accepted.items())):
            try:
                self._call(WAIT_DURABLE, (*key, position), first, max(until - monotonic(), 0.0)).result()
            except OutcomeUnknown as error:
                told = told or error
            self._link.locked(partial(exchange.flushed, key, position))
        for producer in self._link.locked(lambda: list(exchange.unflushed)):
            try:
                producer.flush(until)
            except DeadlineExceeded:
                raise
            except TidelogError as error:
                told = told or error
        if told is not None:
            raise told

    def wait_durable(self, appended: Appended, timeout: float | None = None) -> int:
        """Wait until an append is durable → the head. Raises OutcomeUnknown when the broker has lost track of it."""
        if appended.last_position is None:
            raise InvalidArgument("a write without events has nothing to become durable")
        fields = (appended.boot_id, appended.generation, appended.last_position)
        return self._call(WAIT_DURABLE, fields, first, timeout).result()


def _appended(call: Future[Appended]) -> Appended:
    """The reply to an append of one write."""
    _, _, flags, generation, first, last, first_version, last_version = call.reply
    return tuple.__new__(
        Appended,
        (
            first, last, first_version, last_version, flags & DUPLICATE_FLAG == DUPLICATE_FLAG,
            "durable" if flags & DURABLE_FLAG else "accepted",
            b"" if call.hello is None else call.hello.boot_id, generation,
        ),
    )  # fmt: skip


def _appended_rows(call: Future[list[Appended]]) -> list[Appended]:
    """The reply to an append of several writes."""
    reply = call.reply
    flags, generation = reply[2], reply[3]
    duplicate = flags & DUPLICATE_FLAG != 0
    durability: Durability = "durable" if flags & DURABLE_FLAG else "accepted"
    boot_id = b"" if call.hello is None else call.hello.boot_id
    rows = [reply[at : at + 4] for at in range(4, len(reply), 4)]
    return [Appended(row[0], row[1], row[2], row[3], duplicate, durability, boot_id, generation) for row in rows]


def _durability(durability: str) -> int:
    try:
        return _DURABILITY[durability]
    except (KeyError, TypeError):
        raise InvalidArgument('durability is "durable" or "accepted"') from None
