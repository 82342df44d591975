"""Which stored bytes answer a read. PURE: turns a range into extents of the log; nobody looks inside them.

A page holds whole appends, is at most PAGE_BYTES_MAX unless one append is larger, and says the range that it covers
(PROTOCOL.md §6).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tidelog.errors import StreamNotFound, Truncated
from tidelog.limits import PAGE_BYTES_MAX

from .index import OFFSET_MASK, PLACE_SHIFT, Index

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
    keys: Sequence[int]
    numbers: Sequence[int]
    first, end, keys = index.first_position, index.head, index.positions
    if query.scope == STREAM:
        stream = index.streams.get(query.name)
        if stream is None:
            raise StreamNotFound(f"there is no stream {query.name!r}", query.name)
        first, end, keys, numbers = stream.first_version, stream.next_version, index.versions, stream.batches
    elif query.scope == CATEGORY:
        category = index.categories.get(query.name)
        numbers = category.batches if category else array("I")
    else:
        numbers = range(len(index.positions))
    start = first if query.start is None else query.start
    if start < first:
        raise Truncated(f"what lies before {first} was removed", first)
    stop = end if query.stop is None else min(query.stop, end)
    if start >= stop or query.limit == 0:
        edge = stop if query.backwards and start < stop else start
        return Page(edge, edge, end, [], 0)
    cut = _backwards if query.backwards else _forwards
    if query.scope == EVERYTHING and not query.signature and not query.backwards:
        return _run(index, start, stop, end, query.limit)
    return cut(index, query, numbers, keys, start, stop, end)


def _run(index: Index, start: int, stop: int, end: int, limit: int | None) -> Page:
    """Everything, forwards: one extent of the file, found by bisection, with the group headers that lie in it."""
    places, positions = index.places, index.positions
    low = index.number_at(start)
    # Places of the next segment are far beyond, so bisection stops at the segment's end by itself.
    high = bisect_right(places, places[low] + PAGE_BYTES_MAX, low)
    if high - 1 > low and places[high - 1] + index.lengths[high - 1] - places[low] > PAGE_BYTES_MAX:
        high -= 1
    high = min(high, bisect_left(positions, stop, low))
    if limit is not None:
        high = min(high, bisect_left(positions, start + limit, low))
    high = max(high, low + 1)
    if high < len(positions) and not index.starts[high]:
        back = index.append_start(high)
        high = back if back > low else index.append_stop(high)
        # What of that append lies wholly behind the range is nobody's.
        high = max(low + 1, min(high, bisect_left(positions, stop, low)))
    size = places[high - 1] + index.lengths[high - 1] - places[low]
    covered = min(stop, index.position_behind(high - 1))
    return Page(start, covered, end, [(places[low] >> PLACE_SHIFT, places[low] & OFFSET_MASK, size)], high - low)


def _forwards(
    index: Index, query: Query, numbers: Sequence[int], keys: Sequence[int], start: int, stop: int, end: int
) -> Page:
    """Single batches in rising order, merged where they lie side by side."""
    at = max(0, bisect_right(numbers, start, key=keys.__getitem__) - 1)
    if at < len(numbers) and _stop_of(index, keys, numbers[at]) <= start:
        at += 1
    pieces = _Pieces(index, query, keys, start, stop)
    while at < len(numbers):
        number = numbers[at]
        if keys[number] >= stop:
            break
        if pieces.is_full(number) and not (pieces.any and index.append_start(number) <= pieces.last):
            return Page(start, max(start, keys[number]), end, pieces.extents(), pieces.count)
        pieces.take(number)
        at += 1
    return Page(start, stop, end, pieces.extents(), pieces.count)


def _backwards(
    index: Index, query: Query, numbers: Sequence[int], keys: Sequence[int], start: int, stop: int, end: int
) -> Page:
    """The same from the end; inside the page the order still rises."""
    at = bisect_left(numbers, stop, key=keys.__getitem__) - 1
    pieces = _Pieces(index, query, keys, start, stop)
    covered = stop
    while at >= 0:
        number = numbers[at]
        if _stop_of(index, keys, number) <= start:
            break
        if pieces.is_full(number) and not (pieces.any and index.append_start(pieces.last) <= number):
            return Page(covered, stop, end, pieces.extents(), pieces.count)
        pieces.take(number)
        covered = max(start, keys[number])
        at -= 1
    return Page(start, stop, end, pieces.extents(), pieces.count)


def _stop_of(index: Index, keys: Sequence[int], number: int) -> int:
    """The key behind a batch's last event."""
    return keys[number] + index.position_behind(number) - index.positions[number]


class _Pieces:
    """Batches gathered for one page."""

    def __init__(self, index: Index, query: Query, keys: Sequence[int], start: int, stop: int) -> None:
        self.any = False
        self.last = 0
        self._index = index
        self._keys = keys
        self._start, self._stop = start, stop
        self._signature = query.signature
        # What the signature lets through need not match, so a limit can only be counted without a filter.
        self._wanted = query.limit if query.limit is not None and not query.signature else 1 << 62
        self._numbers: list[int] = []
        self._bytes = 0
        self._scanned = 0

    def is_full(self, number: int) -> bool:
        """True when the page should end before `number`, if an append ends there."""
        return self.any and (
            self._bytes + self._index.lengths[number] > PAGE_BYTES_MAX
            or len(self._numbers) >= EXTENTS_MAX
            or self._scanned >= SCANNED_MAX
            or self._wanted <= 0
        )

    def take(self, number: int) -> None:
        index = self._index
        self.any = True
        self.last = number
        self._scanned += 1
        if self._signature and not index.signatures[number] & self._signature:
            return
        self._numbers.append(number)
        self._bytes += index.lengths[number]
        first = self._keys[number]
        events = index.position_behind(number) - index.positions[number]
        self._wanted -= min(self._stop, first + events) - max(self._start, first)

    @property
    def count(self) -> int:
        """How many batches were taken."""
        return len(self._numbers)

    def extents(self) -> list[Extent]:
        """In rising order, neighbours merged."""
        index = self._index
        merged: list[Extent] = []
        expected = -1
        for number in sorted(self._numbers):
            place, length = index.places[number], index.lengths[number]
            if place == expected:
                ordinal, offset, size = merged[-1]
                merged[-1] = (ordinal, offset, size + length)
            else:
                merged.append((place >> PLACE_SHIFT, place & OFFSET_MASK, length))
            expected = place + length
        return merged
