"""Where everything is: stream → batches, position → place, category. PURE: derived from the log, owned by the broker loop.

Three layers, the newest first: the *tail*, rows and postings in memory that grow with each group; *frozen* tails, which are
on their way to disk; and *runs* (run.py), files that never change. What a stream's last version is stands in `streams`, as
far as it was asked for lately; whoever is not there is recalled from a tail or a run. So memory is bounded by the settings
and not by the log.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any, TypeVar
from zlib import crc32

from .postings import RunPart, Series, TailPart
from .rows import OFFSET_MASK, PLACE_SHIFT, Rows
from .run import DELETED, STREAM_KEY, Entry, Run, category_key, stream_key

__all__ = ["OFFSET_MASK", "PLACE_SHIFT", "Category", "Index", "Staged", "Stream", "Tail", "category_of"]

STREAMS_CACHED = 1 << 17
"""Streams, and categories, in each of the two generations that are kept in memory."""
PIECES_CACHED = 64
TIDY_STEP, TIDY_PART = 256, 32
"""What is given back at once: so much, or such a part of it all."""
NO_TAIL = -1
_NO_ROWS = array("I")
"""What a stream has in no tail; never appended to, for a tail gives it rows of its own."""

Staged = tuple[str, int, int, int, int, bool, bool]
"""A batch on its way into the index: (stream, or "" for a control batch; count of events; first version; signature; length in
bytes; whether it is the first of its append; deletion). A plain tuple: one is made for every append."""


class Category:
    """A category as it stands: `end` is the position behind its last event; `batches` as a stream's."""

    __slots__ = ("batches", "end", "name", "tail")

    def __init__(self, name: str, end: int = 0) -> None:
        self.name = name
        self.end = end
        self.tail = NO_TAIL
        self.batches = _NO_ROWS


class Stream:
    """A stream as it stands: `end` is the position behind its last event. `batches` are its rows in the
    tail that begins with batch `tail`."""

    __slots__ = ("batches", "category", "deleted", "end", "name", "next_version", "tail")

    def __init__(self, name: str, next_version: int = 0, end: int = 0, deleted: bool = False) -> None:
        self.name = name
        self.category = category_of(name)
        self.next_version = next_version
        self.end = end
        self.deleted = deleted
        self.tail = NO_TAIL
        self.batches = _NO_ROWS


Held = TypeVar("Held", Stream, Category)


def category_of(stream: str) -> str | None:
    """The part before the first `/`; a name without one has none."""
    name, slash, _ = stream.partition("/")
    return name if slash else None


class Tail(Rows):
    """Rows in memory, with the streams and categories that they touched and the rows of each."""

    __slots__ = ("_sorted", "_unsorted", "categories", "deletions", "streams", "versions")

    def __init__(self, first: int, end: int) -> None:
        super().__init__(first, end)
        self.versions = array("Q")
        self.deletions: set[int] = set()
        self.streams: dict[str, tuple[Stream, array[int]]] = {}
        self.categories: dict[str, tuple[Category, array[int]]] = {}
        self._sorted: list[str] = []
        self._unsorted: list[str] = []

    def touch(self, stream: Stream) -> None:
        """The stream's first batch in this tail comes."""
        stream.tail = self.first
        stream.batches = array("I")
        self.streams[stream.name] = stream, stream.batches
        self._unsorted.append(stream.name)

    def touch_category(self, category: Category) -> None:
        """The same for a category."""
        category.tail = self.first
        category.batches = array("I")
        self.categories[category.name] = category, category.batches

    def names(self) -> list[str]:
        """Its streams in the order of their UTF-8 bytes; code points sort the same."""
        if self._unsorted:
            # Timsort merges the sorted run with the new names; nothing is sorted while nobody lists.
            self._sorted += sorted(self._unsorted)
            self._unsorted.clear()
            self._sorted.sort()
        return self._sorted


class Index:
    """The index of durable batches. `head` is the first position that is not in it; what is before `first_position`, in the batch
    `first_number`, was removed; from the batch `base_number` on, it is still in the files.

    Every method may raise BadIndex when a run turns out to be damaged. Without `recalls` runs are not asked for streams: enough
    to make another run of what is applied.
    """

    def __init__(self, streams_cached: int = STREAMS_CACHED) -> None:
        self.head = 0
        self.first_position = 0
        self.first_number = 0
        self.base_number = 0
        self.recorded_at = 0
        self.stream_count = 0
        self.recalls = True
        self.tail = Tail(0, 0)
        self.frozen: list[Tail] = []
        self.runs: list[Run] = []
        self.streams: dict[str, Stream] = {}
        self._streams_before: dict[str, Stream] = {}
        self._categories: dict[str, Category] = {}
        self._categories_before: dict[str, Category] = {}
        self._cached = streams_cached
        self._run_firsts: list[int] = []
        self._pieces: dict[tuple[bytes, int], Rows] = {}
        self._litter: list[dict[Any, Any]] = []

    @property
    def stop(self) -> int:
        """The number that the next batch gets."""
        return self.tail.first + len(self.tail.positions)

    # -- growing

    def apply(self, ordinal: int, offset: int, staged: Iterable[Staged]) -> None:
        """Take in a durable group's batches; `offset` is where its body lies."""
        tail = self.tail
        position = self.head
        row, first = len(tail.positions), tail.first
        streams, categories = self.streams, self._categories
        add_position, add_place, add_length = tail.positions.append, tail.places.append, tail.lengths.append
        add_version, add_signature, add_start = tail.versions.append, tail.signatures.append, tail.starts.append
        place = ordinal << PLACE_SHIFT | offset
        for name, events, version, signature, length, starts, deletion in staged:
            if events:
                stream = streams.get(name) or self._stream(name)
                if stream.tail != first:
                    tail.touch(stream)
                add_position(position)
                add_place(place)
                add_length(length)
                add_version(version)
                add_signature(signature)
                add_start(starts)
                position += events
                stream.batches.append(row)
                if not version:
                    self.stream_count += 1
                stream.next_version = version + events
                stream.end = position
                stream.deleted = deletion
                if deletion:
                    tail.deletions.add(row)
                if stream.category is not None:
                    category = categories.get(stream.category) or self._category(stream.category)
                    if category.tail != first:
                        tail.touch_category(category)
                    category.batches.append(row)
                    category.end = position
                row += 1
            place += length
        self.head = tail.end = position
        if len(self.streams) > self._cached or len(self._categories) > self._cached:
            self._rotate()

    def _stream(self, name: str) -> Stream:
        stream = self.find(name)
        if stream is None:
            stream = self.streams[name] = Stream(name)
        return stream

    def _category(self, name: str) -> Category:
        category = self.find_category(name)
        if category is None:
            category = self._categories[name] = Category(name)
        return category

    def _rotate(self) -> None:
        """The younger generation becomes the older; who is not asked for again goes with the next turn."""
        self._litter += [self._streams_before, self._categories_before]
        self._streams_before, self._categories_before = self.streams, self._categories
        self.streams, self._categories = {}, {}

    def tidy(self) -> None:
        """Give back a little of what is not needed any more: all at once would hold up appends."""
        if len(self.streams) > self._cached or len(self._categories) > self._cached:
            self._rotate()  # refused appends and questions recall streams too
        if self._litter:
            # In proportion: however fast it comes, it goes faster than it piles up.
            step = max(TIDY_STEP, sum(map(len, self._litter)) // TIDY_PART)
            dying = self._litter[-1]
            for _ in range(min(step, len(dying))):
                _, value = dying.popitem()
                if type(value) is tuple:
                    held, batches = value
                    if held.batches is batches:
                        held.tail, held.batches = NO_TAIL, _NO_ROWS
            if not dying:
                self._litter.pop()

    def truncate(self, position: int) -> None:
        """What lies before this position, where an append begins or the log ends, is gone."""
        if position > self.first_position:
            self.first_number = self.number_at(position) if position < self.head else self.stop
            self.first_position = position

    # -- to disk and back

    def freeze(self) -> Tail:
        """What is in memory now is to become a run; what comes goes into a new tail."""
        frozen = self.tail
        self.frozen.append(frozen)
        self.tail = Tail(frozen.stop, frozen.end)
        return frozen

    def adopt(self, runs: list[Run]) -> None:
        """From here on these runs are the index, up to the last one's end; frozen tails that they cover go.

        `runs` end where a tail ends or begin an empty index, which then goes on behind them.
        """
        stop = runs[-1].stop if runs else 0
        if not self.frozen and not self.tail.positions and not self.runs:
            # They are all there is: read back, or out of a base.
            end = runs[-1].end if runs else 0
            self.tail = Tail(stop, end)
            self.head = end
        for tail in self.frozen:
            if tail.stop <= stop:
                self._litter += [tail.streams, tail.categories]
        self.frozen = [tail for tail in self.frozen if tail.stop > stop]
        self.runs = runs
        self._run_firsts = [run.first for run in runs]
        kept = {run.trailer for run in runs}
        self._pieces = {key: rows for key, rows in self._pieces.items() if key[0] in kept}

    # -- streams and categories

    def find(self, name: str) -> Stream | None:
        """A stream as it stands, or None if it never had an event; it is kept in memory from here on."""
        stream = self.streams.get(name)
        if stream is None:
            stream = self._streams_before.pop(name, None) or self.peek(name)
            if stream is not None:
                self.streams[name] = stream
        return stream

    def peek(self, name: str) -> Stream | None:
        """The same, without keeping it."""
        stream = self.streams.get(name) or self._streams_before.get(name)
        if stream is not None:
            return stream
        for tail in (self.tail, *reversed(self.frozen)):
            held = tail.streams.get(name)
            if held is not None:
                return held[0]
        if not self.recalls:
            return None
        key = stream_key(name)
        digest = crc32(key)
        for run in reversed(self.runs):
            if run.may_hold(digest):
                entry = run.find(key)
                if entry is not None:
                    return _stream_of(name, entry)
        return None

    def find_category(self, name: str) -> Category | None:
        """A category as it stands, or None if it never had an event."""
        category = self._categories.get(name)
        if category is None:
            category = self._categories_before.pop(name, None) or self._recall_category(name)
            if category is not None:
                self._categories[name] = category
        return category

    def _recall_category(self, name: str) -> Category | None:
        for tail in (self.tail, *reversed(self.frozen)):
            held = tail.categories.get(name)
            if held is not None:
                return held[0]
        for run in reversed(self.runs) if self.recalls else ():
            entry = run.find(category_key(name))
            if entry is not None:
                return Category(name, entry.end)
        return None

    def stream_series(self, name: str) -> Series:
        """A stream's batches: their numbers and first versions."""
        return self._series(stream_key(name), [(tail, tail.streams.get(name)) for tail in self._tails()], True)

    def category_series(self, name: str) -> Series:
        """A category's batches: their numbers and first positions."""
        return self._series(category_key(name), [(tail, tail.categories.get(name)) for tail in self._tails()], False)

    def _tails(self) -> list[Tail]:
        return [*self.frozen, self.tail]

    def _series(self, key: bytes, held: list[tuple[Tail, Any]], by_version: bool) -> Series:
        digest = crc32(key)
        parts: list[RunPart | TailPart] = []
        for run in self.runs:
            entry = run.find(key) if not by_version or run.may_hold(digest) else None
            if entry is not None and entry.postings:
                parts.append(RunPart(run, entry))
        for tail, touched in held:
            if touched is not None:
                parts.append(TailPart(tail.first, touched[1], tail.versions if by_version else tail.positions))
        return Series(parts)

    def first_version(self, stream: Stream) -> int:
        """The first version that is still there; the next one if none is."""
        if not self.first_number:
            return 0
        for number, version in self.stream_series(stream.name).from_number(self.first_number):
            del number
            return version
        return stream.next_version

    def batches_of(self, stream: Stream) -> int:
        """How many batches of a stream are still there."""
        return self.stream_series(stream.name).count_from(self.first_number)

    def list_streams(self, prefix: str, after: str | None, limit: int) -> tuple[bool, list[Stream]]:
        """(more, streams) in the order of their names' UTF-8 bytes."""
        begin = prefix if after is None or after < prefix else after
        sources: list[Iterator[tuple[bytes, int, Any]]] = []
        for age, tail in enumerate(reversed(self._tails())):
            sources.append(_touched(tail, age, begin))
        for age, run in enumerate(reversed(self.runs), len(sources)):
            sources.append(_listed(run, age, stream_key(begin)))
        listed: list[Stream] = []
        more = False
        wanted = stream_key(prefix)
        last = b"" if after is None else stream_key(after)
        for key, _, source in merge(*sources, key=lambda row: row[:2]):
            if key <= last:
                continue
            if not key.startswith(wanted):
                break
            if len(listed) == limit:
                more = True
                break
            last = key
            name = key[1:].decode()
            listed.append(source.streams[name][0] if isinstance(source, Tail) else _stream_of(name, source))
        return more, listed

    # -- rows

    def rows(self, number: int) -> Rows:
        """The rows that hold a batch, which must be in [0, stop)."""
        if number >= self.tail.first:
            return self.tail
        for tail in reversed(self.frozen):
            if number >= tail.first:
                return tail
        run = self.runs[bisect_right(self._run_firsts, number) - 1]
        return self._piece(run, bisect_right(run.firsts, number) - 1)

    def rows_at(self, position: int) -> Rows:
        """The rows that hold a position, which must be in [0, head)."""
        for tail in reversed(self._tails()):
            if tail.positions and position >= tail.positions[0]:
                return tail
        run = self.runs[bisect_right(self.runs, position, key=lambda run: run.first_position) - 1]
        return self._piece(run, bisect_right(run.positions, position) - 1)

    def rows_from(self, place: int) -> Iterator[Rows]:
        """The rows that hold a place, and all behind them."""
        tails = self._tails()
        for at, run in enumerate(self.runs):
            following = (
                self.runs[at + 1].places
                if at + 1 < len(self.runs)
                else next((t.places for t in tails if t.places), None)
            )
            if not run.places or (following and following[0] <= place):
                continue
            for piece in range(max(0, bisect_right(run.places, place) - 1), len(run.places)):
                yield self._piece(run, piece)
        for at, tail in enumerate(tails):
            if not (at + 1 < len(tails) and tails[at + 1].places and tails[at + 1].places[0] <= place):
                yield tail

    def _piece(self, run: Run, piece: int) -> Rows:
        key = run.trailer, piece
        rows = self._pieces.pop(key, None)
        if rows is None:
            rows = run.piece(piece)
            if len(self._pieces) >= PIECES_CACHED:
                del self._pieces[next(iter(self._pieces))]
        self._pieces[key] = rows
        return rows

    def number_at(self, position: int) -> int:
        """The batch that holds a position, which must be in [0, head)."""
        rows = self.rows_at(position)
        return rows.first + rows.at_position(position)

    def append_stop(self, number: int) -> int:
        """The number behind the last batch of the append that `number` belongs to."""
        rows = self.rows(number)
        return rows.first + rows.append_stop(number - rows.first)

    def append_at_or_behind(self, position: int) -> int:
        """The first batch of the first append that begins at or behind a position; `stop` if there is none."""
        if position >= self.head:
            return self.stop
        rows = self.rows_at(position)
        row = rows.at_position(position)
        if rows.positions[row] == position and rows.starts[row]:
            return rows.first + row
        return rows.first + rows.append_stop(row)

    def position_of(self, number: int) -> int:
        """A batch's first position; the head for `stop`."""
        if number >= self.stop:
            return self.head
        rows = self.rows(number)
        return rows.positions[number - rows.first]


def _stream_of(name: str, entry: Entry) -> Stream:
    return Stream(name, entry.next, entry.end, bool(entry.flags & DELETED))


def _touched(tail: Tail, age: int, begin: str) -> Iterator[tuple[bytes, int, Any]]:
    names = tail.names()
    for at in range(bisect_left(names, begin), len(names)):
        yield stream_key(names[at]), age, tail


def _listed(run: Run, age: int, start: bytes) -> Iterator[tuple[bytes, int, Any]]:
    for key, entry in run.entries(start):
        if key[0] != STREAM_KEY:
            return
        yield key, age, entry
