"""Consuming: subscriptions, and the cursors that say how far they came."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from time import monotonic, sleep
from typing import TYPE_CHECKING, Literal

from .calls import first, numbers, seconds
from .errors import InvalidArgument, LeaseLost, TidelogError
from .limits import LIST_STREAMS_MAX
from .link import Future, Watched
from .messages import CursorInfo
from .reading import types_filter
from .reads import Reads, category_name
from .wire import (
    ACQUIRE,
    BREAK,
    CATEGORY,
    COMMIT_CURSOR,
    CURSOR_INFO,
    EVERYTHING,
    LEASE,
    LIST_CURSORS,
    RELEASE,
    STREAM,
    bound,
    stream_name,
)

if TYPE_CHECKING:
    from uuid import UUID

    from .subscription import Subscription

CursorMove = tuple[str, int]
"""(name, position)"""
LEASE_RETRY = 0.25
"""Seconds between two tries to take over a lease."""


class Consumes(Reads):
    """What follows events."""

    _subscriptions: weakref.WeakSet[Subscription]

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
        lease: bool = False,
        checkpoint_events: int = 100,
        checkpoint_idle: float = 5.0,
    ) -> Subscription:
        """Follow a stream, a category or everything: history, then live, in order, each event once, for ever.

        `start`: the version (of a stream) or position to begin with; None the first available, "end" only what comes.
        `markers` adds CaughtUp (once) and Checkpoint (after `checkpoint_events` live events, or `checkpoint_idle`
        seconds without one). `on_lag`: "follow" reads by itself what was missed; "raise" raises Lagged. `cursor` names
        where to go on, before `start`; `commit()` of the subscription, or an append with `cursor=sub.cursor`, moves it. With
        `lease` the call waits until no other client holds that cursor, and then only this one moves it.
        Raises Truncated at the call when an explicit start is no longer there.
        """
        from .subscription import Subscription

        if stream is not None and category is not None:
            raise InvalidArgument("subscribe to a stream or to a category, not to both")
        if on_lag not in ("follow", "raise"):
            raise InvalidArgument('on_lag is "follow" or "raise"')
        scope, name = EVERYTHING, ""
        if stream is not None:
            scope, name = STREAM, stream_name(stream)
        elif category is not None:
            scope, name = CATEGORY, category_name(category)
        if cursor is not None:
            stands = self._hold(cursor) if lease else self.cursor(cursor).position
            start = start if stands is None else stands
        elif lease:
            raise InvalidArgument("a lease is of a cursor: name it")
        try:
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
                cursor,
                lease,
            )
        except BaseException:
            if lease:
                self._let_go(cursor)
            raise
        self._subscriptions.add(made)
        return made

    def _hold(self, cursor: str) -> int | None:
        """Wait for the lease of a cursor; where it stands then."""
        while True:
            try:
                return self.acquire_cursor(cursor)
            except LeaseLost:
                sleep(LEASE_RETRY)

    def cursor(self, name: str, *, timeout: float | None = None) -> CursorInfo:
        """Where a cursor stands; from there this client's next move of it is expected to go on."""
        row = self._call(CURSOR_INFO, (cursor_name(name),), numbers, timeout).result()
        self._cursors.found(name, row[0])
        if row[1] is None or row[2] != self._cursors.lease(name):
            self._cursors.leased(name, None)
        return CursorInfo(name, *row[:3])

    def cursors(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[CursorInfo]:
        """All cursors whose name begins with `prefix`, sorted by name, read page by page."""
        after: str | None = None
        while True:
            fields = (cursor_name(prefix), after, LIST_STREAMS_MAX)
            more, rows = self._call(LIST_CURSORS, fields, numbers, timeout).result()[:2]
            for row in rows:
                yield CursorInfo(*row[:4])
            if not more or not rows:
                return
            after = rows[-1][0]

    def commit_cursor(self, name: str, position: int, *, timeout: float | None = None) -> None:
        """Move a cursor from where this client last read or set it. Raises CursorMoved, LeaseLost."""
        words, move = self._cursors.move(cursor_name(name), bound(position, "position"))
        deadline = monotonic() + (self.timeout if timeout is None else seconds(timeout))
        fields = (*words, os.urandom(16))
        call = Watched(self._link, COMMIT_CURSOR, fields, deadline, first, [move.ended], move.undo)
        self._submit(call, monotonic(), waits=True).result()

    def set_cursor(self, name: str, position: int, *, timeout: float | None = None) -> None:
        """Put a cursor somewhere, wherever it stands now. Raises LeaseLost when somebody holds it."""
        lease = self._cursors.lease(cursor_name(name))
        fields = (name, True, bound(position, "position"), lease, os.urandom(16))
        self._call(COMMIT_CURSOR, fields, first, timeout).result()
        self._cursors.found(name, position)

    def acquire_cursor(self, name: str, *, timeout: float | None = None) -> int | None:
        """Take the lease of a cursor: only this client moves it from then on → its position. Again is harmless.

        Raises LeaseLost while another client holds it and is connected. It ends with `release_cursor`, with this client,
        or when an operator breaks it; then the next one may take it. Whoever holds one and does nothing should ask again now and
        then, as a subscription does by itself: behind a restart the broker waits five seconds for its holders.
        """
        fields = (cursor_name(name), ACQUIRE, None)
        lease, position = self._call(LEASE, fields, numbers, timeout).result()[:2]
        self._cursors.leased(name, lease)
        self._cursors.found(name, position)
        return position  # type: ignore[no-any-return]

    def release_cursor(self, name: str, *, timeout: float | None = None) -> None:
        """Give the lease of a cursor back, if we have it."""
        lease = self._cursors.lease(cursor_name(name))
        if lease is not None:
            self._call(LEASE, (name, RELEASE, lease), first, timeout).result()
            self._cursors.leased(name, None)

    def _still_held(self, name: str) -> bool:
        """Whether a lease that we took is still ours."""
        _, holder, lease = self._call(CURSOR_INFO, (name,), numbers, 1.0).result()[:3]
        return holder is not None and lease == self._cursors.lease(name)

    def _let_go(self, name: str | None) -> None:
        """Give a lease back without waiting for the answer: if it does not get there, the end of the connection tells as much."""
        lease = None if name is None else self._cursors.lease(name)
        if name is not None and lease is not None:
            self._cursors.leased(name, None)
            call = Future(self._link, LEASE, (name, RELEASE, lease), monotonic() + self.timeout, first)
            try:
                self._link.submit_unattended(call, monotonic())
            except TidelogError:
                pass  # the client is closed

    def break_lease(self, name: str, *, timeout: float | None = None) -> None:
        """Take the lease of a cursor from whoever holds it: for operators."""
        self._call(LEASE, (cursor_name(name), BREAK, None), first, timeout).result()


def cursor_name(name: object) -> str:
    if isinstance(name, str):
        return str(name)
    raise InvalidArgument("a cursor is named by a str")


def cursor_move(cursor: object) -> tuple[str, int]:
    if isinstance(cursor, tuple) and len(cursor) == 2:
        return cursor_name(cursor[0]), bound(cursor[1], "a cursor's position")
    raise InvalidArgument("a cursor is moved by (name, position)")
