"""Subscription: history, then live, in one iterator. Works the SUB socket; the rule is follow.py's.

History is read before the SUB socket is opened, so that a long one does not fill a buffer with messages that will be
dropped. Then: subscribe to the topic, then to heartbeats; the first heartbeat shows that the subscription is in force,
and one more read closes the hand-over. Whatever is missed later shows as a hole or as a heartbeat's head, and is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, inf
from random import random
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import zmq

from .batch import signature_of
from .errors import (
    ClientClosed,
    InvalidArgument,
    Lagged,
    LeaseLost,
    ProtocolMismatch,
    StreamNotFound,
    TidelogError,
    UsedAfterFork,
)
from .follow import Follow, Verdict
from .limits import STREAM_BYTES_MAX
from .link import Wakeup
from .messages import CaughtUp, Checkpoint, Recorded
from .reading import Pages
from .wire import (
    BYTES_FOLLOW,
    EVERYTHING,
    PUBLISHED,
    STREAM,
    bound,
    choose_endpoints,
    decode_page,
    read_published,
    topic,
)

if TYPE_CHECKING:
    from .consuming import Consumes
    from .pager import Pager

HEARTBEAT_TOPIC: Final = b"H"
RECEIVE_MESSAGES_MAX: Final = 2_000
"""Messages that wait for a slow subscriber; more are dropped, and read instead. At 64 KiB each: 128 MiB."""
SILENT_HEARTBEATS: Final = 3
UNATTENDED: Final = 0.5
"""Seconds in which this thread did not look (a slow consumer, a stopped process): silence proves nothing about them."""
WAIT_MAX: Final = 1.0
"""Seconds of one wait."""
GRACE: Final = 1.0
"""Seconds of looking after that, before silence counts again."""
RETRY_FIRST: Final = 0.05
RETRY_MAX: Final = 1.0
LEASE_LOOK: Final = 2.0
"""Seconds between two looks at our lease; a restarted broker waits five for its holders."""


class Subscription:
    """Events in order, each once, for ever. Iterate in one thread; `stop()` from any. Made by `Client.subscribe`."""

    def __init__(
        self,
        client: Consumes,
        scope: int,
        name: str,
        start: int | Literal["end"] | None,
        types: tuple[str, ...] | None,
        markers: bool,
        raise_on_lag: bool,
        checkpoint_events: int,
        checkpoint_idle: float,
        cursor: str | None = None,
        leased: bool = False,
    ) -> None:
        if scope != EVERYTHING:
            _check_name(name)
        if types == ():
            raise InvalidArgument("a subscription to no event type at all would never deliver anything")
        self._client = client
        self._cursor, self._leased, self._look_at = cursor, leased, 0.0
        self._scope, self._name = scope, name
        self._types = types
        self._wanted = None if types is None else frozenset(types)
        self._signature = 0 if types is None else signature_of(types)
        self._place = 2 if scope == STREAM else 0
        self._markers = markers
        self._raise_on_lag = raise_on_lag
        self._checkpoint_events = bound(checkpoint_events, "checkpoint_events") or 1
        self._checkpoint_idle = _idle_seconds(checkpoint_idle)
        self._hello = client._hello()
        self._follow = Follow(0)
        self._from_first = start is None
        self._page: Iterator[Recorded] = iter(())
        self._said: CaughtUp | Checkpoint | None = None
        self._caught_up = False
        self._given = False
        self._since_checkpoint = 0
        self._checkpoint_at = inf
        self._pager: Pager | None = None
        self._reading_for = 0
        self._retry_at = 0.0
        self._retries = 0
        self._sub: Any = None
        self._sub_endpoint = ""
        self._heard = 0.0
        self._looked = 0.0
        self._stopped = False
        self._error: TidelogError | None = None
        self._wakeup = Wakeup()
        self._busy = Lock()
        if start == "end":
            self._follow.next, self._follow.covered = self._end()
        elif start is not None:
            self._follow.next = bound(start, "start")
        self._position = self._follow.next
        self._start_reading()
        self._read_page()  # here, so that what is wrong with the subscription is told at the call

    @property
    def position(self) -> int:
        """The next version (of a stream) or position that this subscription wants: what to store and start from."""
        return self._position

    @property
    def cursor(self) -> tuple[str, int]:
        """(name, position) of its cursor as it would be now: for `append(…, cursor=sub.cursor)`."""
        if self._cursor is None:
            raise InvalidArgument("this subscription has no cursor: name one when you subscribe")
        return self._cursor, self._position

    def commit(self, *, timeout: float | None = None) -> None:
        """Store the position in the cursor: who subscribes with it next goes on behind what was given out.

        Raises CursorMoved when somebody else moved it, LeaseLost when its lease is another's.
        """
        name, position = self.cursor
        self._client.commit_cursor(name, position, timeout=timeout)

    def stop(self) -> None:
        """End the iteration, from any thread: `next` raises StopIteration soon. The position stays."""
        self._stopped = True
        self._wakeup.set()
        pager = self._pager
        if pager is not None:
            pager.cancel(ClientClosed("the subscription was stopped"))

    def close(self) -> None:
        """Stop, and give the socket back."""
        if self._client._link.forked:
            return
        self.stop()
        if self._leased:
            self._leased = False
            self._client._let_go(self._cursor)
        if self._busy.acquire(timeout=1.0):
            try:
                if self._sub is not None:
                    self._sub.close(0)
                self._sub = None
                self._wakeup.close()
            finally:
                self._busy.release()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # No lock is taken: a collection may come while this very thread holds it. A lease ends with the client.
        if hasattr(self, "_busy") and not self._client._link.forked:
            self._stopped = True
            if self._sub is not None:
                self._sub.close(0)
                self._sub = None
            self._wakeup.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Any:
        """The next event (with markers: or CaughtUp, Checkpoint).

        Raises StopIteration after `stop`, Lagged (with on_lag="raise"), Truncated when events were removed before they
        were delivered, ProtocolMismatch when the endpoint serves another log. The broker's absence only means waiting.
        """
        while True:
            if self._stopped:
                raise StopIteration
            if self._given:
                self._count()
            if self._said is not None:
                marker, self._said = self._said, None
                return marker
            for event in self._page:
                # No call from here to the return: an interrupt would come behind it, and the event would be lost.
                self._position = event[self._place] + 1
                if self._caught_up and self._markers:
                    self._since_checkpoint += 1
                    self._given = True
                return event
            self._position = max(self._position, self._follow.next)
            with self._busy:
                self._advance()

    # One step

    def _advance(self) -> None:
        """Do the next thing that may bring events: read a page, or wait for a message."""
        if self._client._link.forked:
            raise UsedAfterFork("this subscription belongs to the parent process")
        now = monotonic()
        if self._error is not None:
            raise self._error
        if self._leased and now >= self._look_at:
            self._look_at = now + LEASE_LOOK
            self._keep_lease()
        if self._pager is not None:
            if now >= self._retry_at:
                self._try_page(now)
            else:
                self._wait(self._retry_at, now)
            return
        if now >= self._follow.read_at:
            self._start_reading()
        elif not self._caught_up:
            marker = CaughtUp(self._follow.next) if self._markers else None
            self._said, self._caught_up, self._checkpoint_at = marker, True, now + self._checkpoint_idle
        elif self._sub is None:
            self._open(now)
        else:
            silent_at = self._silent_at(now, now - self._looked)
            due = min(self._follow.read_at, silent_at, self._checkpoint_at if self._markers else inf)
            if self._wait(due, now):
                return
            asked, began, now = min(max(due - now, 0.0), WAIT_MAX), now, monotonic()
            if now >= self._silent_at(now, now - began - asked):
                self._heard = now
                self._follow.silent(now)
            elif self._markers and now >= self._checkpoint_at:
                # Only when nothing else was to be done, or a consumer slower than the idle time would get nothing else.
                self._checkpoint(now)

    def _keep_lease(self) -> None:
        """Show the broker that we are there, also behind its restart, and see whether the lease is still ours."""
        assert self._cursor is not None
        try:
            kept = self._client._still_held(self._cursor)
        except TidelogError as error:
            if not error.retryable:
                raise
            return
        if not kept:
            self._error = LeaseLost(f"the lease of cursor {self._cursor!r} is another's now", self._cursor)
            raise self._error

    def _count(self) -> None:
        """The event given last has been dealt with: a Checkpoint may be due, and the idle time begins anew."""
        now = monotonic()
        self._checkpoint_at = now + self._checkpoint_idle
        if self._since_checkpoint >= self._checkpoint_events:
            self._checkpoint(now)
        self._given = False

    def _checkpoint(self, now: float) -> None:
        marker = Checkpoint(self._position)
        self._said, self._since_checkpoint, self._checkpoint_at = marker, 0, now + self._checkpoint_idle

    # Reading

    def _start_reading(self) -> None:
        from .pager import Pager

        start = None if self._from_first else self._follow.next
        pages = Pages(self._scope, self._name, start, types=self._types)
        self._reading_for = self._follow.beat_head
        self._pager = Pager(self._client, pages)
        self._follow.read_at = inf  # last, so that an interrupt leaves it due

    def _try_page(self, now: float) -> None:
        """Read a page; a broker that does not answer is asked again and again."""
        try:
            self._read_page()
        except TidelogError as error:
            if self._stopped:
                return
            if not error.retryable:
                self._error = error
                raise
            self._retries += 1
            self._retry_at = now + min(RETRY_FIRST * 2 ** min(self._retries, 8), RETRY_MAX)

    def _read_page(self) -> None:
        """Take the next page of the read under way; behind the last, the read is over."""
        pager = self._pager
        assert pager is not None
        follow = self._follow
        pages = pager.pages
        try:
            events = pager.next()
            if events is not None:
                if self._raise_on_lag and follow.live and any(event[0] < self._reading_for for event in events):
                    self._lagged()
                fresh, behind = iter(events), max(follow.next, pages.covers_to)
                # Plain stores, so that an interrupt finds the page either taken or not.
                self._page, follow.next, self._from_first = fresh, behind, False
        except StreamNotFound:
            # No such stream as of a head that is at least the heartbeat's which asked for this read.
            self._pager = None
            follow.read(follow.next, follow.next, max(follow.covered, self._reading_for))
            self._from_first = False
            self._check_endpoint()
            return
        except TidelogError as error:
            if error.retryable and pager.failed:
                self._start_reading()
            raise
        except BaseException:
            # An interrupt may have swallowed a page; what was taken is known, so read again from there.
            self._pager, follow.read_at = None, 0.0
            raise
        self._retries, self._retry_at = 0, 0.0
        if events is None:
            self._pager = None
        elif follow.read(pages.covers_to, pages.end, pages.head):
            self._pager = None
            pager.close()
            self._check_endpoint()

    def _lagged(self) -> NoReturn:
        follow = self._follow
        self._error = Lagged(f"live messages behind {follow.next} were lost", follow.next)
        raise self._error

    def _end(self) -> tuple[int, int]:
        """Where "end" is now: the next version or position, and the head until which nothing is wanted."""
        if self._scope != STREAM:
            head = self._client.head()
            return head, head
        try:
            info = self._client.stream_info(self._name)
        except StreamNotFound:
            return 0, 0
        return info.last_version + 1, info.last_position + 1

    # Publishing

    def _open(self, now: float) -> None:
        """A SUB socket to the publishing endpoint that HELLO names: first our topic, then heartbeats."""
        if self._client._link.exchange.closed is not None:
            raise ClientClosed("the client is closed")
        endpoint = choose_endpoints(self._client.endpoint, self._hello.endpoints)[1]
        sub = self._client._link.context.socket(zmq.SUB)
        try:
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RCVHWM, RECEIVE_MESSAGES_MAX)
            sub.setsockopt(zmq.RECONNECT_IVL, 20)
            sub.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
            sub.setsockopt(zmq.SUBSCRIBE, topic(self._scope, self._name))
            sub.setsockopt(zmq.SUBSCRIBE, HEARTBEAT_TOPIC)
            sub.connect(endpoint)
        except BaseException:
            sub.close(0)
            raise
        self._sub, self._sub_endpoint = sub, endpoint
        self._heard = now

    def _check_endpoint(self) -> None:
        """After a restart the broker may publish elsewhere, and serve another log."""
        hello = self._client._link.exchange.hello
        if hello is None or hello is self._hello:
            return
        if hello.log_id != self._hello.log_id:
            self._error = ProtocolMismatch("the endpoint serves another log than before")
            raise self._error
        self._hello = hello
        if self._sub is not None and choose_endpoints(self._client.endpoint, hello.endpoints)[1] != self._sub_endpoint:
            self._sub.close(0)
            self._sub = None

    def _silent_at(self, now: float, unattended: float) -> float:
        """When the silence will have lasted too long; not soon after a time in which nobody looked."""
        bearable = SILENT_HEARTBEATS * max(self._hello.heartbeat_ms / 1000, 0.1)
        if unattended > UNATTENDED:
            self._heard = max(self._heard, now + GRACE - bearable)
        self._looked = now
        return self._heard + bearable

    def _wait(self, until: float, now: float) -> bool:
        """Wait for a published message, a stop, or the time; → whether there was a message."""
        items: list[Any] = [(self._wakeup.fd, zmq.POLLIN)]
        if self._sub is not None and self._pager is None:
            items.append((self._sub, zmq.POLLIN))
        wait_ms = ceil(min(max(until - now, 0.0), WAIT_MAX) * 1000)
        for which, _ in zmq.zmq_poll(items, wait_ms):
            if which is self._sub:
                self._receive()
                return True
            self._wakeup.clear()
        return False

    def _receive(self) -> None:
        """Take in one message."""
        try:
            name = self._sub.recv()
            body = self._sub.recv() if self._sub.getsockopt(zmq.RCVMORE) else b""
            self._take(name, body)
        except TidelogError:
            raise
        except BaseException:
            # An interrupt may have left half a message: begin again with a new socket, and read what it may have held.
            self._sub.close(0)
            self._sub = None
            self._follow.silent(monotonic())
            raise

    def _take(self, name: bytes, body: bytes) -> None:
        message = read_published(body)
        if message.log_id != self._hello.log_id:
            self._error = ProtocolMismatch("what is published belongs to another log")
            raise self._error
        now = monotonic()
        self._heard = now
        follow = self._follow
        if name == HEARTBEAT_TOPIC:
            follow.heartbeat(message.head, now, random() * self._hello.heartbeat_ms / 1000)
            return
        verdict = follow.message(message.start, message.stop, message.head, bool(message.flags & BYTES_FOLLOW))
        if verdict is Verdict.TAKE:
            data = body[PUBLISHED.size :]
            by_version = self._scope == STREAM
            events = decode_page(data, by_version, follow.next, message.stop, self._wanted, self._signature)
            fresh = iter(events)
            self._page, follow.next = fresh, message.stop
            follow.took(message.stop, message.head)
        elif verdict is Verdict.READ:
            if follow.lost and self._raise_on_lag:
                self._lagged()
            self._start_reading()


def _check_name(name: str) -> None:
    """Refuse to wait for ever for a stream or category that can't exist. Raises InvalidArgument."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= STREAM_BYTES_MAX or any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name):
        raise InvalidArgument(f"a name has 1 to {STREAM_BYTES_MAX} bytes of UTF-8 and no control characters")


def _idle_seconds(value: object) -> float:
    if isinstance(value, int | float) and value > 0:
        return float(value)
    raise InvalidArgument("checkpoint_idle is a number of seconds, more than 0")
