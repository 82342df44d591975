"""A read as a chain of pages: which range to ask for next, and what of a page counts. PURE.

PROTOCOL.md §6: a page covers [from, to) in the read's unit and holds whole appends, so it is cut at both edges here;
`limit` counts after the filter on types, from the end when the read goes backwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .batch import signature_of
from .errors import CorruptLog, InvalidArgument, ProtocolMismatch, Truncated
from .limits import INT_MAX, TYPES_FILTER_MAX
from .messages import Recorded
from .wire import ANYTHING, STREAM, Cover, bound, decode_page


def types_filter(types: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """A filter on event types → its distinct names; None takes all. Raises InvalidArgument."""
    if types is None:
        return None
    names = (types,) if isinstance(types, str) else tuple(dict.fromkeys(types))
    if len(names) > TYPES_FILTER_MAX or not all(isinstance(name, str) for name in names):
        raise InvalidArgument(f"types is an event type or at most {TYPES_FILTER_MAX} of them")
    return names


class Pages:
    """One read. `request()` and `ahead()` give the fields of a READ behind its deadline, None when none is needed."""

    def __init__(
        self,
        scope: int,
        name: str,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
        types: tuple[str, ...] | None = None,
        wait_for: int | None = None,
    ) -> None:
        """Raises InvalidArgument when a number is not in [0, 2^63)."""
        self.scope = scope
        self.name = name
        self.start = None if start is None else bound(start, "start")
        self.stop = None if stop is None else bound(stop, "stop")
        self.remaining = None if limit is None else bound(limit, "limit")
        self.backwards = backwards
        self.types = types
        self.wait_for = None if wait_for is None else bound(wait_for, "wait_for")
        self.finished = types == ()
        self.covers_from = self.covers_to = self.end = self.head = 0
        self.cover = ANYTHING
        self._low = self._high = 0
        self._wanted = None if types is None else frozenset(types)
        self._signature = 0 if types is None else signature_of(types)
        self._first = True

    def request(self) -> tuple[Any, ...] | None:
        """The next request, once the page before has been decoded. The first one is sent even for limit 0, because
        it tells whether the stream exists."""
        if self.finished and not self._first:
            return None
        limit = 0 if self.finished else self.remaining
        return (self.scope, self.name, self.start, self.stop, limit, self.backwards, self.types, self.wait_for)

    def arrived(self, reply: tuple[Any, ...]) -> None:
        """A page's header: [id, 0, from, to, end, head, batches]. Raises ProtocolMismatch when it leads nowhere."""
        covers_from, covers_to, end, head = reply[2:6]
        if not all(type(number) is int and 0 <= number <= INT_MAX for number in (covers_from, covers_to, end, head)):
            raise ProtocolMismatch("a page's header is not four numbers")
        self.covers_from, self.covers_to, self.end, self.head = covers_from, covers_to, end, head
        self.cover = self._cover(reply)
        self._first = False
        self.wait_for = None
        self.finished = self.finished or self.remaining == 0
        if self.backwards:
            floor = 0 if self.start is None else self.start
            # A page that is empty and does not move tells that what is left below is gone.
            stuck = covers_from >= covers_to
            self._low = max(covers_from, floor)
            self._high = covers_to if self.stop is None else min(covers_to, self.stop)
            self.finished = self.finished or covers_from <= floor or stuck
            self.stop = covers_from
            return
        self._low = covers_from if self.start is None else max(covers_from, self.start)
        self._high = covers_to if self.stop is None else min(covers_to, self.stop)
        limit = end if self.stop is None else min(end, self.stop)
        self.finished = self.finished or covers_to >= limit
        if not self.finished and self.start is not None and covers_to <= self.start:
            raise ProtocolMismatch("a page does not go on from where the last one ended")
        self.start = max(covers_to, self.start or 0)

    def covered(self) -> tuple[Any, ...]:
        """A request for just the range that the last page covers, whatever is appended meanwhile."""
        return (self.scope, self.name, self.covers_from, self.covers_to, None, self.backwards, self.types, None)

    def again(self, reply: tuple[Any, ...]) -> None:
        """The last page came once more. Raises CorruptLog when it does not cover the same range."""
        if not reply[2] <= self.covers_from <= self.covers_to <= reply[3]:
            raise CorruptLog(f"the page from {self.covers_from} to {self.covers_to} can't be read", "", 0)
        self.cover = self._cover(reply)

    def _cover(self, reply: tuple[Any, ...]) -> Cover:
        batches = reply[6] if len(reply) > 6 and type(reply[6]) is int else None
        return Cover(batches, reply[2], reply[3], self.scope, self.name.encode())

    def ended_by(self, error: Truncated) -> bool:
        """Whether this error only says that a backward read without a start has come to what was removed meanwhile."""
        return self.backwards and self.start is None and not self._first

    def ahead(self) -> tuple[Any, ...] | None:
        """The request behind the page that has just arrived, when it is needed whatever that page holds."""
        if self.finished:
            return None
        if self.remaining is None:
            return self.request()
        left = self.remaining - max(self.covers_to - self.covers_from, 0)
        if left <= 0:
            return None
        fields = self.request()
        return None if fields is None else (*fields[:4], left, *fields[5:])

    def decode(self, data: bytes) -> list[Recorded]:
        """The page's events that count, in the read's direction. Raises CorruptLog: ask again with READ_CHECKED."""
        if not data and not self.cover.batches:
            return []
        events = decode_page(
            data, self.scope == STREAM, self._low, self._high, self._wanted, self._signature, self.cover
        )
        if self.backwards:
            events.reverse()
        if self.remaining is not None:
            if len(events) >= self.remaining:
                del events[self.remaining :]
                self.finished = True
            self.remaining -= len(events)
        return events
