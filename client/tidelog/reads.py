"""Reading: pages of a stream, a category or everything, and what is known about streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC
from itertools import chain
from typing import TYPE_CHECKING

from .calls import Calls, first, numbers
from .errors import InvalidArgument
from .limits import LIST_STREAMS_MAX
from .messages import Recorded, StreamInfo, StreamRow
from .pager import Pager
from .reading import Pages, types_filter
from .wire import (
    CATEGORY,
    EVERYTHING,
    HEAD,
    LIST_STREAMS,
    POSITION_AT,
    STREAM,
    STREAM_INFO,
    bound,
    stream_name,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class Reads(Calls):
    """What reads events."""

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
        scope, name = (EVERYTHING, "") if category is None else (CATEGORY, category_name(category))
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
            start, stop, limit, backwards, types, category_name(category), wait_for=wait_for, timeout=timeout
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
        return StreamInfo(name, *self._call(STREAM_INFO, (name, wait), numbers, timeout).result()[:5])

    def list_streams(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[StreamRow]:
        """All streams whose name begins with `prefix`, sorted by the UTF-8 bytes of their names, read page by page."""
        if not isinstance(prefix, str):
            raise InvalidArgument("a prefix is a str")
        after: str | None = None
        while True:
            more, rows = self._call(LIST_STREAMS, (prefix, after, LIST_STREAMS_MAX), numbers, timeout).result()[:2]
            for row in rows:
                yield StreamRow(*row[:4])
            if not more or not rows:
                return
            after = rows[-1][0]

    def head(self, *, wait_for: int | None = None, timeout: float | None = None) -> int:
        """The first position that is not durable: the next event's; 0 on an empty log."""
        wait = None if wait_for is None else bound(wait_for, "wait_for")
        return self._call(HEAD, (wait,), first, timeout).result()

    def position_at(self, when: int | datetime, *, timeout: float | None = None) -> int:
        """The position of the first event recorded at or after `when`; the head if there is none.

        `when` is microseconds since the epoch, or a datetime (without a zone: local time).
        """
        return self._call(POSITION_AT, (_microseconds(when),), first, timeout).result()


def category_name(name: object) -> str:
    if isinstance(name, str) and name and "/" not in name:
        return name
    raise InvalidArgument("a category is a str without /")


def _microseconds(when: int | datetime) -> int:
    if isinstance(when, int):
        return bound(when, "a time")
    from datetime import datetime, timedelta

    if not isinstance(when, datetime):
        raise InvalidArgument("a time is microseconds since the epoch, or a datetime")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return bound((when.astimezone(UTC) - epoch) // timedelta(microseconds=1), "a time")
