"""Which stored bytes answer a read. PURE: turns a range into extents of the log; nobody looks inside them.

A page holds whole appends, is at most PAGE_BYTES_MAX unless one append is larger, and says the range that it covers
(PROTOCOL.md §6).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidelog.errors import StreamNotFound, Truncated
from tidelog.limits import PAGE_BYTES_MAX

from .index import Index
from .rows import OFFSET_MASK, PLACE_SHIFT, Rows

EVERYTHING, CATEGORY, STREAM = 0, 1, 2

EXTENTS_MAX = 256
"""Pieces in one page: each costs the loop a read of its own, and a page must not hold up appends."""

SCANNED_MAX = 4_096
"""Batches that one page looks at when a filter leaves most of them out."""

Extent = tuple[int, int, int]
"""(segment ordinal, offset, bytes)"""


@dataclass(frozen=True, slots=True)
class Page:
    """Covers [start, stop) in the read's unit; `end` is where the readable range ends now. `batches` of events stand in the
    extents: whoever finds fewer has met zeros or a wrong length where a batch was."""

    start: int
    stop: int
    end: int
    extents: list[Extent]
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A read, its shape already checked; `signature` 0 means every type."""

    scope: int
    name: str
    start: int | None
    stop: int | None
    limit: int | None
    backwards: bool
    signature: int


def cut_page(index: Index, query: Query) -> Page:
    """The next page of a read. Raises StreamNotFound or Truncated."""
    first, end = index.first_position, index.head
    if query.scope == STREAM:
        stream = index.peek(query.name)
        if stream is None:
            raise StreamNotFound(f"there is no stream {query.name!r}", query.name)
        first, end = index.first_version(stream), stream.next_version
    start = first if query.start is None else query.start
    if start < first and not (query.scope == CATEGORY and _category_end(index, query.name) <= start):
        raise Truncated(f"what lies before {first} was removed", first)
    stop = end if query.stop is None else min(query.stop, end)
    if start >= stop or query.limit == 0:
        edge = stop if query.backwards and start < stop else start
        return Page(edge, edge, end, [], 0)
    if query.scope == EVERYTHING and not query.signature and not query.backwards:
        return _run(index, start, stop, end, query.limit)
    if query.backwards:
        return _backwards(index, query, _listed(index, query, stop), start, stop, end)
    return _forwards(index, query, _listed(index, query, start), start, stop, end)


def _category_end(index: Index, name: str) -> int:
    """Behind the last event of a category: who had everything up to there misses nothing by a truncation."""
    category = index.find_category(name)
    return category.end if category else 0


def _listed(index: Index, query: Query, key: int) -> Iterator[tuple[int, int]]:
    """(number, key) of the batches of a scope: from the one that holds `key`, or backwards from those that begin before it."""
    if query.scope == EVERYTHING:
        return _everything_before(index, key) if query.backwards else _everything_from(index, key)
    series = index.stream_series(query.name) if query.scope == STREAM else index.category_series(query.name)
    return series.descending(key) if query.backwards else series.ascending(key)


def _everything_from(index: Index, position: int) -> Iterator[tuple[int, int]]:
    number = index.number_at(position)
    while number < index.stop:
        rows = index.rows(number)
        for row in range(number - rows.first, len(rows.positions)):
            yield rows.first + row, rows.positions[row]
        number = rows.stop


def _everything_before(index: Index, position: int) -> Iterator[tuple[int, int]]:
    number = index.number_at(position - 1)
    while number >= index.first_number:
        rows = index.rows(number)
        for row in range(number - rows.first, -1, -1):
            yield rows.first + row, rows.positions[row]
        number = rows.first - 1


def _run(index: Index, start: int, stop: int, end: int, limit: int | None) -> Page:
    """Everything, forwards: one extent of the file, found by bisection, with the group headers that lie in it."""
    rows = index.rows_at(start)
    places, positions = rows.places, rows.positions
    low = rows.at_position(start)
    # Places of the next segment are far beyond, so bisection stops at the segment's end by itself.
    high = bisect_right(places, places[low] + PAGE_BYTES_MAX, low)
    if high - 1 > low and places[high - 1] + rows.lengths[high - 1] - places[low] > PAGE_BYTES_MAX:
        high -= 1
    high = min(high, bisect_left(positions, stop, low))
    if limit is not None:
        high = min(high, bisect_left(positions, start + limit, low))
    high = max(high, low + 1)
    if high < len(positions) and not rows.starts[high]:
        back = rows.append_start(high)
        high = back if back > low else rows.append_stop(high)
        # What of that append lies wholly behind the range is nobody's.
        high = max(low + 1, min(high, bisect_left(positions, stop, low)))
    size = places[high - 1] + rows.lengths[high - 1] - places[low]
    covered = min(stop, rows.behind(high - 1))
    return Page(start, covered, end, [(places[low] >> PLACE_SHIFT, places[low] & OFFSET_MASK, size)], high - low)


def _forwards(index: Index, query: Query, listed: Iterable[tuple[int, int]], start: int, stop: int, end: int) -> Page:
    """Single batches in rising order, merged where they lie side by side."""
    pieces = _Pieces(index, query, start, stop)
    for number, key in listed:
        if key >= stop:
            break
        if number < index.first_number or pieces.look(number, key) <= start:
            continue
        if pieces.is_full() and not (pieces.any and pieces.append_start() <= pieces.last):
            return Page(start, max(start, key), end, pieces.extents(), pieces.count)
        pieces.take()
    return Page(start, stop, end, pieces.extents(), pieces.count)


def _backwards(index: Index, query: Query, listed: Iterable[tuple[int, int]], start: int, stop: int, end: int) -> Page:
    """The same from the end; inside the page the order still rises."""
    pieces = _Pieces(index, query, start, stop)
    covered = stop
    began = 0  # where the append of the batch taken last begins
    for number, key in listed:
        if number < index.first_number or pieces.look(number, key) <= start:
            break
        if pieces.is_full() and not (pieces.any and began <= number):
            return Page(covered, stop, end, pieces.extents(), pieces.count)
        pieces.take()
        began = pieces.append_start()
        covered = max(start, key)
    return Page(start, stop, end, pieces.extents(), pieces.count)


class _Pieces:
    """Batches gathered for one page: each is looked at, then taken or left."""

    def __init__(self, index: Index, query: Query, start: int, stop: int) -> None:
        self.any = False
        self.last = 0
        self._index = index
        self._start, self._stop = start, stop
        self._signature = query.signature
        # What the signature lets through need not match, so a limit can only be counted without a filter.
        self._wanted = query.limit if query.limit is not None and not query.signature else 1 << 62
        self._places: list[tuple[int, int]] = []
        self._bytes = 0
        self._scanned = 0
        self._rows: Rows | None = None
        self._row = self._key = self._events = 0

    def look(self, number: int, key: int) -> int:
        """Turn to this batch; the key behind its last event."""
        rows = self._rows
        if rows is None or not rows.first <= number < rows.stop:
            rows = self._rows = self._index.rows(number)
        row = self._row = number - rows.first
        self._key = key
        self._events = rows.behind(row) - rows.positions[row]
        return key + self._events

    def append_start(self) -> int:
        """The number of the first batch of this one's append."""
        assert self._rows is not None
        return self._rows.first + self._rows.append_start(self._row)

    def is_full(self) -> bool:
        """True when the page should end before this batch, if an append ends there."""
        assert self._rows is not None
        return self.any and (
            self._bytes + self._rows.lengths[self._row] > PAGE_BYTES_MAX
            or len(self._places) >= EXTENTS_MAX
            or self._scanned >= SCANNED_MAX
            or self._wanted <= 0
        )

    def take(self) -> None:
        rows, row = self._rows, self._row
        assert rows is not None
        self.any = True
        self.last = rows.first + row
        self._scanned += 1
        if self._signature and not rows.signatures[row] & self._signature:
            return
        length = rows.lengths[row]
        self._places.append((rows.places[row], length))
        self._bytes += length
        self._wanted -= min(self._stop, self._key + self._events) - max(self._start, self._key)

    @property
    def count(self) -> int:
        """How many batches were taken."""
        return len(self._places)

    def extents(self) -> list[Extent]:
        """In rising order, neighbours merged."""
        merged: list[Extent] = []
        expected = -1
        for place, length in sorted(self._places):
            if place == expected:
                ordinal, offset, size = merged[-1]
                merged[-1] = (ordinal, offset, size + length)
            else:
                merged.append((place >> PLACE_SHIFT, place & OFFSET_MASK, length))
            expected = place + length
        return merged
