"""Client: the broker from ordinary, synchronous code. Safe for threads; not for forks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from itertools import chain
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import zmq

from .errors import (
    ClientClosed,
    CorruptLog,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolMismatch,
    TidelogError,
    Truncated,
    UsedAfterFork,
)
from .ids import IdPool
from .limits import INT_MAX, LIST_STREAMS_MAX
from .link import Future, Link
from .messages import ANY, Appended, Event, ExpectedVersion, Health, Recorded, StreamInfo, StreamRow, Write
from .reading import Pages, types_filter
from .wire import (
    APPEND,
    CATEGORY,
    CHECKPOINT,
    DUPLICATE_FLAG,
    DURABLE_FLAG,
    EVERYTHING,
    HEAD,
    HEALTH,
    INFO,
    LIST_STREAMS,
    POSITION_AT,
    READ,
    READ_CHECKED,
    STREAM,
    STREAM_INFO,
    TRUNCATE,
    VERIFY,
    WAIT_DURABLE,
    Hello,
    bound,
    choose_endpoints,
    expected_wire,
    join_requests,
    pack,
    pack_event,
    pack_events,
    read_replies,
    stream_name,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from .subscription import Subscription

T = TypeVar("T")
Durability = Literal["durable", "accepted"]
_DURABILITY = {"durable": 0, "accepted": 1}


class Client:
    """A connection to one broker.

    `endpoint` is the broker's request endpoint (`ipc://…` or `tcp://host:port`), all that needs to be known; `timeout`
    the default deadline of a call in seconds, with all retries inside it. Connects with the first call. One client may
    be used by many threads; in a forked child every call raises UsedAfterFork.

    Every call may raise DeadlineExceeded (of an append with `maybe_applied` telling whether it was sent), ClientClosed,
    ProtocolMismatch, NotPermitted, Overloaded and Unavailable beside what its own text names.
    """

    def __init__(self, endpoint: str, timeout: float = 5.0) -> None:
        if not isinstance(endpoint, str) or "://" not in endpoint:
            raise InvalidArgument("an endpoint looks like ipc:///path or tcp://host:port")
        self.endpoint = endpoint
        self.timeout = _seconds(timeout)
        self._link = Link(endpoint, os.urandom(16))
        self._ids = IdPool()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """End it: calls under way get ClientClosed, subscriptions end. Quick, and harmless when repeated."""
        for subscription in list(self._subscriptions):
            subscription.close()
        self._link.close()

    # Appending

    def append(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
    ) -> Appended:
        """Append events to a stream, all of them or none, and wait until they are durable.

        Raises WrongExpectedVersion, InvalidArgument, EventTooLarge, AppendTooLarge, DuplicateEventId, StorageFull: in
        these cases nothing was written. OutcomeUnknown, and DeadlineExceeded with `maybe_applied`, leave it open; a
        repeat settles it if the events carry ids of yours.
        """
        now = monotonic()
        call = self._append_call(stream, events, expected_version, durability, timeout, now)
        self._link.submit(call, now)
        return call.result()

    def append_nowait(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
    ) -> Future[Appended]:
        """Like `append`, but returns a future at once: the append is sent, sent again and answered though nobody asks
        the future. Blocks only while as many calls are under way as the broker allows (4,096)."""
        now = monotonic()
        call = self._append_call(stream, events, expected_version, durability, timeout, now)
        self._link.submit_unattended(call, now)
        return call

    def append_many(
        self, writes: Iterable[Write], durability: Durability = "durable", timeout: float | None = None
    ) -> list[Appended]:
        """Append to several streams atomically → one Appended per write, in their order.

        A write without events asserts its stream's version; at least one write has events. Raises like `append`.
        """
        packed = []
        for stream, events, expected in writes:
            given = [events] if isinstance(events, Event) else list(events)
            region = pack_events(given, self._ids) if given else None
            packed.append((stream_name(stream), expected_wire(expected), region))
        if not packed:
            raise InvalidArgument("append_many has at least one write")
        fields = (_durability(durability), None, None, packed)
        return self._call(APPEND, fields, _appended_rows, timeout).result()

    def _append_call(
        self, stream: Any, events: Any, expected: Any, durability: str, timeout: float | None, now: float
    ) -> Future[Appended]:
        if type(stream) is not str:
            stream = stream_name(stream)
        region = pack_event(events, self._ids) if type(events) is Event else pack_events(events, self._ids)
        word = None if expected is ANY else expected_wire(expected)
        deadline = now + (self.timeout if timeout is None else _seconds(timeout))
        level = 0 if durability == "durable" else _durability(durability)
        return Future(self._link, APPEND, (level, None, None, ((stream, word, region),)), deadline, _appended)

    # Reading

    def read_stream(
        self,
        stream: str | UUID,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
        *,
        types: str | Iterable[str] | None = None,
        wait_for: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Recorded]:
        """The stream's events with versions in [start, stop), in order, or exactly reversed with `backwards`.

        `start` None is the first that is still there. `limit` counts events, from the end if backwards. `types` leaves
        only events of these types. `wait_for` waits until the head has passed that position (read your writes).
        `timeout` in seconds is for each page. Raises StreamNotFound and Truncated at the call.
        """
        name = stream_name(stream)
        return self._read(Pages(STREAM, name, start, stop, limit, backwards, types_filter(types), wait_for), timeout)

    def read_all(
        self,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
        types: str | Iterable[str] | None = None,
        category: str | None = None,
        *,
        wait_for: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Recorded]:
        """All events with positions in [start, stop), or those of one category; the rest is as in `read_stream`."""
        scope, name = (EVERYTHING, "") if category is None else (CATEGORY, _category(category))
        return self._read(Pages(scope, name, start, stop, limit, backwards, types_filter(types), wait_for), timeout)

    def read_category(
        self,
        category: str,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
        types: str | Iterable[str] | None = None,
        *,
        wait_for: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Recorded]:
        """`read_all` of one category: the streams `category/…`. Empty when it has no events."""
        return self.read_all(
            start, stop, limit, backwards, types, _category(category), wait_for=wait_for, timeout=timeout
        )

    def _read(self, pages: Pages, timeout: float | None) -> Iterator[Recorded]:
        pager = Pager(self, pages, timeout)
        first = pager.next()
        return iter(()) if first is None else chain(first, chain.from_iterable(pager))

    def stream_info(
        self, stream: str | UUID, *, wait_for: int | None = None, timeout: float | None = None
    ) -> StreamInfo:
        """First available and last version, last position, whether it ends in a deletion. Raises StreamNotFound."""
        name = stream_name(stream)
        wait = None if wait_for is None else bound(wait_for, "wait_for")
        return StreamInfo(name, *self._call(STREAM_INFO, (name, wait), _numbers, timeout).result()[:5])

    def list_streams(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[StreamRow]:
        """All streams whose name begins with `prefix`, sorted by the UTF-8 bytes of their names, read page by page."""
        if not isinstance(prefix, str):
            raise InvalidArgument("a prefix is a str")
        after: str | None = None
        while True:
            more, rows = self._call(LIST_STREAMS, (prefix, after, LIST_STREAMS_MAX), _numbers, timeout).result()[:2]
            for row in rows:
                yield StreamRow(*row[:4])
            if not more or not rows:
                return
            after = rows[-1][0]

    def head(self, *, wait_for: int | None = None, timeout: float | None = None) -> int:
        """The first position that is not durable: the next event's; 0 on an empty log."""
        wait = None if wait_for is None else bound(wait_for, "wait_for")
        return self._call(HEAD, (wait,), _first, timeout).result()

    def position_at(self, when: int | datetime, *, timeout: float | None = None) -> int:
        """The position of the first event recorded at or after `when`; the head if there is none.

        `when` is microseconds since the epoch, or a datetime (without a zone: local time).
        """
        return self._call(POSITION_AT, (_microseconds(when),), _first, timeout).result()

    def subscribe(
        self,
        stream: str | UUID | None = None,
        category: str | None = None,
        start: int | Literal["end"] | None = None,
        types: str | Iterable[str] | None = None,
        markers: bool = False,
        on_lag: Literal["follow", "raise"] = "follow",
        cursor: str | None = None,
        *,
        checkpoint_events: int = 100,
        checkpoint_idle: float = 5.0,
    ) -> Subscription:
        """Follow a stream, a category or everything: history, then live, in order, each event once, for ever.

        `start`: the version (of a stream) or position to begin with; None the first available, "end" only what comes.
        `markers` adds CaughtUp (once) and Checkpoint (after `checkpoint_events` live events, or `checkpoint_idle`
        seconds without one). `on_lag`: "follow" reads by itself what was missed; "raise" raises Lagged. `cursor` is not
        built yet. Raises Truncated at the call when an explicit start is no longer there.
        """
        from .subscription import Subscription

        if cursor is not None:
            raise InvalidArgument("cursors are not built yet")
        if stream is not None and category is not None:
            raise InvalidArgument("subscribe to a stream or to a category, not to both")
        if on_lag not in ("follow", "raise"):
            raise InvalidArgument('on_lag is "follow" or "raise"')
        scope, name = EVERYTHING, ""
        if stream is not None:
            scope, name = STREAM, stream_name(stream)
        elif category is not None:
            scope, name = CATEGORY, _category(category)
        made = Subscription(
            self,
            scope,
            name,
            start,
            types_filter(types),
            markers,
            on_lag == "raise",
            checkpoint_events,
            checkpoint_idle,
        )
        self._subscriptions.add(made)
        return made

    def session(self, name: str, resume: bool = False) -> NoReturn:
        """A producer session. Raises InvalidArgument: not built yet."""
        raise InvalidArgument("sessions are not built yet")

    # The broker

    def wait_durable(self, appended: Appended, timeout: float | None = None) -> int:
        """Wait until an append is durable → the head. Raises OutcomeUnknown when the broker has lost track of it."""
        if appended.last_position is None:
            raise InvalidArgument("a write without events has nothing to become durable")
        fields = (appended.boot_id, appended.generation, appended.last_position)
        return self._call(WAIT_DURABLE, fields, _first, timeout).result()

    def verify(self, *, begin: bool = False, timeout: float | None = None) -> tuple[str, dict[str, Any] | None]:
        """The broker's check of its whole log while it runs: ("none" | "running" | "done" | "failed", report or None).

        `begin` starts one unless it is running. The report is that of `tidelog verify --json`.
        """
        reply = self._call(VERIFY, (begin,), _whole, timeout).result()
        return reply[2], reply[3]

    def truncate_before(self, position: int, *, timeout: float | None = None) -> int:
        """Remove what lies before a position, rounded down to where an append begins → the first position that is left.

        Going back does nothing. Raises InvalidArgument behind the head.
        """
        if type(position) is not int or not 0 <= position <= INT_MAX:
            raise InvalidArgument("a position is an integer from 0 to 2^63-1")
        return self._call(TRUNCATE, (position,), _first, timeout).result()

    def checkpoint(self, *, begin: bool = False, timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """The saving of the broker's index: ("none" | "running" | "done" | "failed", facts); `begin` starts one unless one runs.

        The facts hold the log point's `group`, or the `reason` of a failure.
        """
        reply = self._call(CHECKPOINT, (begin,), _whole, timeout).result()
        return reply[2], reply[3]

    def info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Figures about the broker, for people; names may be added."""
        return self._call(INFO, (), _first, timeout).result()  # type: ignore[return-value]

    def health(self, timeout: float | None = None) -> Health:
        """How the broker is, asked on the socket that answers while a disk hangs. Raises DeadlineExceeded."""
        if self._link.forked:
            raise UsedAfterFork("this client belongs to the parent process; make one in this process")
        if self._link.exchange.closed is not None:
            raise ClientClosed("the client is closed")
        until = monotonic() + (self.timeout if timeout is None else _seconds(timeout))
        hello = self._link.exchange.hello
        if hello is None and self.endpoint.startswith("ipc://"):
            # Whoever asks for health may be unable to get an answer to HELLO: the disk may hang.
            endpoint = self.endpoint + ".health"
        else:
            hello = hello or self._hello(until - monotonic())
            endpoint = choose_endpoints(self.endpoint, hello.endpoints)[2]
        with self._link.context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint)
            socket.send(join_requests([pack((HEALTH, 1))]))
            while (left := until - monotonic()) > 0:
                if socket.poll(int(left * 1000) + 1):
                    reply = read_replies(socket.recv())[0]
                    if reply[1] != 0 or len(reply) < 7:
                        raise ProtocolMismatch("the answer to HEALTH can't be read")
                    return Health(*reply[2:8])
        raise DeadlineExceeded(f"no answer from {endpoint}")

    def _hello(self, timeout: float | None = None) -> Hello:
        """The broker's latest answer to HELLO, after asking it something."""
        call = self._call(HEAD, (None,), _first, timeout)
        call.result()
        assert call.hello is not None
        return call.hello

    def _call(
        self, kind: int, fields: tuple[Any, ...], shape: Callable[[Future[T]], T], timeout: float | None
    ) -> Future[T]:
        deadline = monotonic() + (self.timeout if timeout is None else _seconds(timeout))
        call = Future(self._link, kind, fields, deadline, shape)
        self._link.submit(call, monotonic())
        return call


class Pager:
    """Pages of one read, the next one asked for before this one is decoded. Iterates over lists of events."""

    def __init__(self, client: Client, pages: Pages, timeout: float | None = None, first: bool = True) -> None:
        self.pages = pages
        self._link = client._link
        self._timeout = client.timeout if timeout is None else _seconds(timeout)
        self._call: Future[tuple[Any, ...]] | None = None
        if first:
            self._ask(pages.request(), monotonic() + self._timeout)

    def __iter__(self) -> Iterator[list[Recorded]]:
        try:
            while (events := self.next()) is not None:
                yield events
        finally:
            self.close()

    def next(self) -> list[Recorded] | None:
        """The next page's events (there may be none), or None at the end.

        Raises what the read raises; DeadlineExceeded leaves the pager as it was, to be asked again.
        """
        call = self._call
        if call is None:
            return None
        if not call.settled:
            self._link.wait(call, self._timeout)
        pages = self.pages
        try:
            reply = call.result()
        except Truncated as error:
            if not pages.ended_by(error):
                raise
            self._call = None
            return None
        pages.arrived(reply)
        self._link.exchange.note_head(pages.head)
        self._call = None
        # No deadline for a page asked for ahead: its reader may take its time before it comes back.
        self._ask(pages.ahead(), inf)
        try:
            events = pages.decode(call.bulk)
        except CorruptLog:
            events = self._checked(*pages.covered())
        if self._call is None:
            self._ask(pages.request(), inf)
        return events

    def _checked(self, *fields: Any) -> list[Recorded]:
        """The page again, each batch checked by the broker, which says where it is damaged and remembers that.

        Raises CorruptLog(segment, offset), or what the read raises.
        """
        self.close()
        # Kept where `cancel` finds it, and while it has failed `failed` tells that what the page held is not known.
        call = self._call = Future(self._link, READ_CHECKED, fields, monotonic() + self._timeout, _whole)
        self._link.submit(call, monotonic(), push=True)
        self.pages.again(call.result())
        events = self.pages.decode(call.bulk)
        self._call = None
        return events

    @property
    def failed(self) -> bool:
        """Whether the page under way has ended with an error: this pager can't go on."""
        return self._call is not None and self._call.settled and self._call.error is not None

    def cancel(self, error: TidelogError) -> None:
        """End a `next` that waits in another thread, with this error."""
        call = self._call
        if call is not None:
            self._link.cancel(call, error)

    def close(self) -> None:
        """Forget the page asked for ahead."""
        self.cancel(ClientClosed("the read was closed"))
        self._call = None

    def _ask(self, fields: tuple[Any, ...] | None, deadline: float) -> None:
        if fields is not None:
            call = Future(self._link, READ, fields, deadline, _whole)
            self._link.submit(call, monotonic(), push=True)
            self._call = call


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


def _first(call: Future[int]) -> int:
    """A reply's one value."""
    return call.reply[2]  # type: ignore[no-any-return]


def _numbers(call: Future[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A reply without its request id and code."""
    return call.reply[2:]


def _whole(call: Future[tuple[Any, ...]]) -> tuple[Any, ...]:
    return call.reply


def _durability(durability: str) -> int:
    try:
        return _DURABILITY[durability]
    except (KeyError, TypeError):
        raise InvalidArgument('durability is "durable" or "accepted"') from None


def _category(name: object) -> str:
    if isinstance(name, str) and name and "/" not in name:
        return name
    raise InvalidArgument("a category is a str without /")


def _seconds(timeout: object) -> float:
    if isinstance(timeout, int | float) and timeout >= 0:
        return float(timeout)
    raise InvalidArgument("a timeout is a number of seconds, 0 or more")


def _microseconds(when: int | datetime) -> int:
    if isinstance(when, int):
        return bound(when, "a time")
    from datetime import datetime, timedelta

    if not isinstance(when, datetime):
        raise InvalidArgument("a time is microseconds since the epoch, or a datetime")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return bound((when.astimezone(UTC) - epoch) // timedelta(microseconds=1), "a time")
