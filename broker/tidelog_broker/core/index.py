"""Where everything is: stream → batches, position → place, category. PURE: derived from the log, owned by the broker loop.

One row of plain arrays per event batch, never an object per event: 37 bytes a batch, 4 more in its stream and 4 in its
category. A *number* is a batch's row, 0, 1, 2 … in log order; a *place* is segment ordinal << 40 | offset.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

PLACE_SHIFT = 40
OFFSET_MASK = (1 << PLACE_SHIFT) - 1


Staged = tuple[str, int, int, int, int, bool, bool]
"""A batch on its way into the index: (stream, or "" for a control batch; count of events; first version; signature; length in
bytes; whether it is the first of its append; deletion). A plain tuple: one is made for every append."""


class Category:
    """Batches of all streams of a category; `end` is the position behind its last event."""

    __slots__ = ("batches", "end")

    def __init__(self) -> None:
        self.batches = array("I")
        self.end = 0


class Stream:
    """A stream that has or had events."""

    __slots__ = ("batches", "category", "deleted", "first_version", "next_version")

    def __init__(self, category: Category) -> None:
        self.batches = array("I")
        self.category = category
        self.next_version = 0
        self.first_version = 0
        self.deleted = False


def category_of(stream: str) -> str | None:
    """The part before the first `/`; a name without one has none."""
    name, slash, _ = stream.partition("/")
    return name if slash else None


class Index:
    """The index of durable batches. `head` is the first position that is not in it."""

    def __init__(self) -> None:
        self.head = 0
        self.first_position = 0
        self.recorded_at = 0
        self.streams: dict[str, Stream] = {}
        self.categories: dict[str, Category] = {}
        self.positions = array("Q")
        self.places = array("Q")
        self.lengths = array("I")
        self.versions = array("Q")
        self.signatures = array("Q")
        self.starts = bytearray()
        self._none = Category()
        self._sorted: list[str] = []
        self._unsorted: list[str] = []

    def apply(self, ordinal: int, offset: int, staged: Iterable[Staged]) -> None:
        """Take in a durable group's batches; `offset` is where its body lies."""
        position = self.head
        number = len(self.positions)
        streams, add_position, add_place = self.streams, self.positions.append, self.places.append
        add_length, add_version, add_signature = self.lengths.append, self.versions.append, self.signatures.append
        add_start = self.starts.append
        place = ordinal << PLACE_SHIFT | offset
        for name, events, version, signature, length, starts, deletion in staged:
            if events:
                stream = streams.get(name) or self._add(name)
                add_position(position)
                add_place(place)
                add_length(length)
                add_version(version)
                add_signature(signature)
                add_start(starts)
                position += events
                stream.batches.append(number)
                stream.next_version = version + events
                stream.deleted = deletion
                category = stream.category
                category.batches.append(number)
                category.end = position
                number += 1
            place += length
        self.head = position

    def _add(self, name: str) -> Stream:
        category_name = category_of(name)
        if category_name is None:
            category = self._none
        else:
            category = self.categories.get(category_name) or self.categories.setdefault(category_name, Category())
        stream = self.streams[name] = Stream(category)
        self._unsorted.append(name)
        return stream

    # -- finding

    def number_at(self, position: int) -> int:
        """The batch that holds a position, which must be in [first, head)."""
        return bisect_right(self.positions, position) - 1

    def append_start(self, number: int) -> int:
        """The first batch of the append that `number` belongs to."""
        return self.starts.rfind(1, 0, number + 1)

    def append_stop(self, number: int) -> int:
        """The number behind the last batch of the append that `number` belongs to."""
        stop = self.starts.find(1, number + 1)
        return stop if stop >= 0 else len(self.starts)

    def position_behind(self, number: int) -> int:
        """The position behind batch `number`'s last event."""
        return self.positions[number + 1] if number + 1 < len(self.positions) else self.head

    def append_at_or_behind(self, position: int) -> int:
        """The first batch of the first append that begins at or behind a position."""
        number = bisect_left(self.positions, position)
        if number < len(self.starts) and not self.starts[number]:
            return self.append_stop(number)
        return number

    def list_streams(self, prefix: str, after: str | None, limit: int) -> tuple[bool, list[str]]:
        """(more, names) in the order of their UTF-8 bytes; code points sort the same."""
        if self._unsorted:
            # Timsort merges the sorted run with the new names; nothing is sorted while nobody lists.
            self._sorted += sorted(self._unsorted)
            self._unsorted.clear()
            self._sorted.sort()
        at = bisect_left(self._sorted, prefix)
        if after is not None:
            at = max(at, bisect_right(self._sorted, after))
        names: list[str] = []
        for name in self._sorted[at : at + limit]:
            if not name.startswith(prefix):
                return False, names
            names.append(name)
        following = at + len(names)
        more = following < len(self._sorted) and self._sorted[following].startswith(prefix)
        return more, names
