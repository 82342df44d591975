"""A log that is appended to and truncated without a broker: the rules, the store, and a list of what must be in it.

`Driven` does what a broker's loop and its child process do, one step at a time, over any disk. `holds` compares a store with
the list: every event that is left, versions, categories, known ids, and the index against one made from the log alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import pytest
from support.builders import seeded_random
from support.simdisk import Image, SimDisk
from tidelog.batch import pack_columns
from tidelog.errors import Truncated
from tidelog.wire import decode_page
from tidelog_broker import checkpoints
from tidelog_broker.core.appender import Appender, AppendLimits
from tidelog_broker.core.pages import CATEGORY, EVERYTHING, STREAM, Query, cut_page
from tidelog_broker.disk import Disk
from tidelog_broker.index_digest import digest, digest_of_known
from tidelog_broker.log import LogSettings
from tidelog_broker.store import IndexSettings, Store

SMALL = LogSettings(segment_bytes=6_144, group_bytes_max=4_096, zero_step=1_024, prepare_ahead=1_024, mark_groups=8)
INDEXED = IndexSettings(id_window_events=8, streams_cached=3, tail_batches=12)
START_US = 1_700_000_000_000_000
PAGES_MAX = 1_000

Wanted = tuple[str, int, bytes]
"""(stream, version, payload) of an event; its position is its place in the list."""
Writes = Sequence[tuple[str, Sequence[bytes]]]


@dataclass(slots=True)
class Sent:
    """An append that was acknowledged: what a repeat of it sends, and the places it was given."""

    writes: tuple[tuple[str, None, bytes], ...]
    places: tuple[int, ...]


@dataclass(slots=True)
class Model:
    """What was acknowledged: events by position, the first that is left, and all appends."""

    events: list[Wanted] = field(default_factory=list)
    first: int = 0
    sent: list[Sent] = field(default_factory=list)
    ids: int = 0

    def copy(self) -> Model:
        return replace(self, events=list(self.events), sent=list(self.sent))

    def next_version(self, stream: str) -> int:
        return sum(row[0] == stream for row in self.events)

    def starts(self) -> list[int]:
        """Where appends begin."""
        return [sent.places[0] for sent in self.sent]


class Driven:
    """A log with its index and its rules."""

    def __init__(
        self, disk: Disk, settings: LogSettings = SMALL, indexed: IndexSettings = INDEXED, model: Model | None = None
    ) -> None:
        """Opens the log, or makes it. Raises what Store raises."""
        self.disk = disk
        self.settings = settings
        self.indexed = indexed
        self.model = model or Model()
        self.pending = self.model
        """The model as it will be when the group under way is durable."""
        self.store = Store(disk, settings, seeded_random(b"truncate"), indexed)
        self.appender = Appender(
            self.store.index, AppendLimits(), self.store.log.body_bytes_max, self.store.original, self.store.known
        )

    @property
    def sim(self) -> SimDisk:
        """The disk, in memory."""
        assert isinstance(self.disk, SimDisk)
        return self.disk

    # -- requests

    def stage(self, *writes: tuple[str, Sequence[bytes]], repeat: Sent | None = None) -> tuple[Any, ...]:
        """Admit an append, or a repeat of one; its reply."""
        made = repeat.writes if repeat else tuple((stream, None, self._region(rows)) for stream, rows in writes)
        reply, _ = self.appender.admit((3, 1, 0, None, 0, None, None, made), self._now(), 0)
        if not reply[2] & 1:
            after = self.pending = self.pending.copy()
            after.ids = self.model.ids
            for stream, payloads in writes:
                version = after.next_version(stream)
                after.events += [(stream, version + at, payload) for at, payload in enumerate(payloads)]
            after.sent.append(Sent(made, reply[4:]))
        return reply

    def _now(self) -> int:
        """The time of the group under way."""
        return START_US + self.store.log.group

    def _region(self, payloads: Sequence[bytes]) -> bytes:
        first, self.model.ids = self.model.ids, self.model.ids + len(payloads)
        ids = b"".join((first + at + 1).to_bytes(16, "big") for at in range(len(payloads)))
        return pack_columns(ids, ["t"] * len(payloads), [b""] * len(payloads), list(payloads))

    def stage_truncation(self, position: int) -> int:
        """Admit a truncation; what it answers."""
        reply, _ = self.appender.truncate((15, 1, 0, position), self._now())
        self.pending = self.pending.copy()
        self.pending.first = max(self.pending.first, reply[2])
        assert type(reply[2]) is int
        return reply[2]

    def commit(self) -> None:
        """Make what is staged durable."""
        if self.appender.parts:
            appender = self.appender
            self.store.index.recorded_at = self._now()
            place = self.store.log.commit(appender.parts, len(appender.staged), appender.position)
            appender.commit(*place)
        self.pending.ids = self.model.ids
        self.model = self.pending

    def append(self, *writes: tuple[str, Sequence[bytes]]) -> tuple[Any, ...]:
        reply = self.stage(*writes)
        self.commit()
        return reply

    def truncate(self, position: int) -> int:
        first = self.stage_truncation(position)
        self.commit()
        return first

    def fill(self, groups: int, size: int = 300) -> None:
        """So many groups of two appends: streams that go on, and one that is never seen again."""
        for _ in range(groups):
            number = self.store.log.group
            pad = b"%05d" % number * (size // 5)
            self.stage((f"a/{number % 3}", [pad, b"x%d" % number]), ("b/1", [b"y%d" % number]))
            self.stage((f"once/{number}", [b"z%d" % number]))
            self.commit()

    # -- what a broker does beside

    def removable(self) -> int:
        return self.store.log.removable(self.store.index.first_position)

    def save(self, base: int = 0) -> None:
        """A checkpoint by the child process, and the base of what is truncated up to a segment; the broker goes on with them."""
        log = self.store.log
        log.mark()
        if self.store.index.tail.positions:
            self.store.index.freeze()
        beside(self.disk, self.settings, self.indexed, log.group, base)
        self.store.adopt(log.group)
        if base:
            self.store.use_base()

    def remove(self) -> None:
        """Delete all that a base tells of."""
        while self.store.log.to_remove:
            self.store.log.remove_one()

    def clear(self) -> int:
        """All of it, if there is something to remove; the last segment that is gone."""
        last = self.removable()
        if last:
            self.save(last)
            self.remove()
        return last

    def prepare(self) -> None:
        while self.store.log.prepare():
            pass

    def reopened(self, disk: Disk | None = None) -> Driven:
        """The same log as a start finds it, on this disk or another."""
        return Driven(disk or self.disk, self.settings, self.indexed, self.model.copy())


def beside(disk: Disk, settings: LogSettings, indexed: IndexSettings, group: int, base: int) -> None:
    """What the child process does."""
    store = Store.behind_checkpoint(disk, settings, indexed, group)
    store.checkpoint()
    if base:
        store.write_base(base)
    store.log.abandon()


# -- reading


def read(store: Store, scope: int = EVERYTHING, name: str = "", start: int | None = None) -> list[tuple[int, Wanted]]:
    """(key, event) of all that a reader gets, page by page; keys in the scope's unit."""
    found: list[tuple[int, Wanted]] = []
    for _ in range(PAGES_MAX):
        query = Query(scope=scope, name=name, start=start, stop=None, limit=None, backwards=False, signature=0)
        page = cut_page(store.index, query)
        stored = b"".join(store.read(page.extents))
        events = decode_page(stored, scope == STREAM, page.start, page.stop)
        found += [
            (event[2 if scope == STREAM else 0], (event.stream, event.version, event.payload)) for event in events
        ]
        start = page.stop
        if start >= page.end:
            return found
    raise AssertionError("a read without an end")


def read_backwards(store: Store, scope: int = EVERYTHING, name: str = "") -> list[tuple[int, Wanted]]:
    """The same from the end, turned round."""
    found: list[tuple[int, Wanted]] = []
    stop: int | None = None
    for _ in range(PAGES_MAX):
        query = Query(scope=scope, name=name, start=None, stop=stop, limit=7, backwards=True, signature=0)
        page = cut_page(store.index, query)
        stored = b"".join(store.read(page.extents))
        events = decode_page(stored, scope == STREAM, page.start, page.stop)
        rows = [(event[2 if scope == STREAM else 0], (event.stream, event.version, event.payload)) for event in events]
        if not rows and page.start == page.stop:
            return found
        found = rows + found
        stop = page.start
    raise AssertionError("a read without an end")


def without_index(image: Image) -> Image:
    """The log alone."""
    return {name: data for name, data in image.items() if not name.startswith(f"{checkpoints.FOLDER}/")}


def answers(store: Store) -> tuple[str, str]:
    """All that the index and the id window answer from."""
    return digest(store.index), digest_of_known(store.known)


def holds(driven: Driven, *, deep: bool = True) -> None:
    """The log is what the model says. `deep`: read stream by stream and backwards, too, and ask for repeats."""
    store, model = driven.store, driven.model
    index = store.index
    assert index.head == len(model.events)
    assert index.first_position == model.first
    left = list(enumerate(model.events))[model.first :]
    assert read(store) == left
    streams: dict[str, list[tuple[int, Wanted]]] = {}
    for position, row in enumerate(model.events):
        streams.setdefault(row[0], []).append((position, row))
    more, listed = index.list_streams("", None, 1_000)
    assert not more
    last = {name: (rows[-1][1][1] + 1, rows[-1][0] + 1) for name, rows in streams.items()}
    assert {stream.name: (stream.next_version, stream.end) for stream in listed} == last
    assert index.stream_count == len(streams)
    if model.first:
        with pytest.raises(Truncated) as refused:
            read(store, start=model.first - 1)
        assert refused.value.first_available == model.first
    if not deep:
        return
    assert read_backwards(store) == left
    for name, rows in streams.items():
        stream = index.peek(name)
        assert stream is not None
        kept = [(row[1], row) for position, row in rows if position >= model.first]
        first = kept[0][0] if kept else len(rows)
        assert index.first_version(stream) == first
        assert read(store, STREAM, name) == read_backwards(store, STREAM, name) == kept
        if first:
            with pytest.raises(Truncated) as refused:
                read(store, STREAM, name, start=first - 1)
            assert refused.value.first_available == first
    for category in {name.partition("/")[0] for name in streams if "/" in name}:
        inside = [pair for pair in left if pair[1][0].startswith(category + "/")]
        assert read(store, CATEGORY, category) == read_backwards(store, CATEGORY, category) == inside
        known = index.find_category(category)
        assert known is not None
        assert known.end == max(rows[-1][0] + 1 for name, rows in streams.items() if name.startswith(category + "/"))
    for number in range(index.first_number, index.stop):
        assert store.recorded_at(number) >= START_US
    repeats(driven)


def repeats(driven: Driven) -> None:
    """A repeat of each append that the window must know is answered with its places, and writes nothing."""
    model, head = driven.model, driven.store.index.head
    events = 0
    for sent in reversed(model.sent):
        if events >= driven.indexed.id_window_events:
            return
        reply = driven.stage(repeat=sent)
        assert reply[2] & 1, f"the append at {sent.places[0]} is not known any more"
        assert reply[4:] == sent.places
        assert not driven.appender.parts
        assert driven.store.index.head == head
        events += sum(len(msgpack.unpackb(region)[3]) for _, _, region in sent.writes)


def rebuilt(image: Image, settings: LogSettings = SMALL, indexed: IndexSettings = INDEXED) -> tuple[str, str]:
    """What the log alone says."""
    store = Store(SimDisk(without_index(image)), settings, seeded_random(b"again"), indexed)
    return answers(store)
