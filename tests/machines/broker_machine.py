"""A machine of a real broker process and the real Client, compared with a list.

One broker serves all examples; each example has a category of its own, and nobody else appends, so that every position is
known. The broker is killed, stopped, held still and restarted with calls under way; what the client was told must be in the
log once, in its place, and every read and subscription must show the list.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from subscriptions.helpers import Follower
from support.process import BrokerProcess
from tidelog import (
    ANY,
    EXISTS,
    NO_STREAM,
    Appended,
    Client,
    DuplicateEventId,
    Event,
    StreamNotFound,
    Write,
    WrongExpectedVersion,
)

TIMEOUT_S = 60.0
STARTS_MAX = 2
"""Restarts of the broker in one example: each takes half a second."""
SUBSCRIPTIONS_MAX = 4
NAMES = ["1", "2", "ü"]
examples = itertools.count()


class Row(NamedTuple):
    """An event as every reader must see it."""

    position: int
    stream: str
    version: int
    type: str
    payload: bytes
    metadata: bytes
    id: UUID


class Sent(NamedTuple):
    """An append that was acknowledged, and its places."""

    writes: list[Write]
    places: list[Appended]


class Watch(NamedTuple):
    """A subscription and what it covers: a scope, and the key (position, or a stream's version) that it began with."""

    follower: Follower
    stream: str | None
    everything: bool
    start: int


counts = st.lists(st.integers(1, 3), min_size=1, max_size=3)
words = st.sampled_from(["any", "any", "right", "exists", "none", "stale"])
names = st.sampled_from(NAMES)
starts = st.one_of(st.none(), st.just("end"), st.integers(0, 9))


class BrokerMachine(RuleBasedStateMachine):
    """`rows` is the list: all events of this example's category. A subclass gives it the broker."""

    broker: BrokerProcess

    def __init__(self) -> None:
        super().__init__()
        if not self.broker.running:  # an example that failed may have left it so
            self.broker.start()
        self.category = f"c{next(examples)}"
        self.client = Client(self.broker.endpoint, timeout=TIMEOUT_S)
        self.base = self.head = self.client.head()
        self.rows: list[Row] = []
        self.sent: list[Sent] = []
        self.watches: list[Watch] = []
        self.starts = 0
        self.steps = 0
        self.numbers = 0

    @initialize()
    def subscribe_to_all_of_it(self) -> None:
        """Each example has a subscriber that sees everything from the beginning."""
        self.watches.append(Watch(Follower(self.client.subscribe(category=self.category)), None, False, 0))

    # -- appending

    @rule(name=names, count=st.integers(1, 4), word=words)
    def append(self, name: str, count: int, word: str) -> None:
        """With every kind of expected version; a wrong one is told with the version that is there."""
        stream = self._stream(name)
        version = self._next_version(stream)
        expected: Any = {"any": ANY, "exists": EXISTS, "none": NO_STREAM, "stale": version + 7}.get(
            word, version - 1 if version else NO_STREAM
        )
        passes = {"stale": False, "exists": version > 0, "none": version == 0}.get(word, True)
        events = self._events(count)
        if passes:
            self._took([Write(stream, events, expected)], [self.client.append(stream, events, expected)])
            return
        with pytest.raises(WrongExpectedVersion) as refused:
            self.client.append(stream, events, expected)
        assert refused.value.stream == stream
        assert refused.value.actual == (version - 1 if version else None)

    @rule(counts=counts, wrong=st.booleans())
    def append_many(self, counts: list[int], wrong: bool) -> None:
        """Several streams at once; one wrong expectation, and none of them has anything."""
        writes = [Write(self._stream(name), self._events(n)) for name, n in zip(NAMES, counts, strict=False)]
        if wrong:
            other = self._stream("asserted only")
            with pytest.raises(WrongExpectedVersion):
                self.client.append_many([*writes, Write(other, [], EXISTS)])
            return
        self._took(writes, self.client.append_many(writes))

    @rule(name=names, count=st.integers(1, 30))
    def append_without_waiting(self, name: str, count: int) -> None:
        """Many under way at once: placed in the order of their sending."""
        with self._under_way(name, count):
            pass

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 30))
    def repeat(self, index: int) -> None:
        """The same ids and bytes: the places of the first time, and nothing is written."""
        writes, places = self.sent[-1 - index % len(self.sent)]
        again = self.client.append_many(writes)
        assert [row[:4] for row in again] == [row[:4] for row in places]
        assert all(row.duplicate for row in again)

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 30), more=st.booleans())
    def conflict(self, index: int, more: bool) -> None:
        """Known ids with something else: refused, nothing is written."""
        (stream, events, _), *_ = self.sent[-1 - index % len(self.sent)].writes
        assert isinstance(events, list)
        first = events[0]
        changed = [first, *self._events(1)] if more else [Event(first.type, b"changed", b"", first.id)]
        with pytest.raises(DuplicateEventId):
            self.client.append(stream, changed)

    @contextmanager
    def _under_way(self, name: str, count: int) -> Iterator[None]:
        """Appends that are sent before the block and answered behind it."""
        stream = self._stream(name)
        sent = [self._events(1 + number % 2) for number in range(count)]
        futures = [self.client.append_nowait(stream, events) for events in sent]
        yield
        for events, future in zip(sent, futures, strict=True):
            self._took([Write(stream, events)], [future.result()])

    def _took(self, writes: list[Write], places: list[Appended]) -> None:
        """The append was acknowledged: at the end of the list, each event at the next position and version."""
        for write, place in zip(writes, places, strict=True):
            assert isinstance(write.stream, str)
            assert isinstance(write.events, list)
            version = self._next_version(write.stream)
            last = len(write.events) - 1
            assert place[:4] == (self.head, self.head + last, version, version + last)
            assert place.durability == "durable"
            for event in write.events:
                self.rows.append(
                    Row(self.head, write.stream, version, event.type, event.payload, event.metadata, event.id)
                )
                self.head += 1
                version += 1
        self.sent.append(Sent(writes, places))

    def _stream(self, name: str) -> str:
        return f"{self.category}/{name}"

    def _next_version(self, stream: str) -> int:
        return sum(row.stream == stream for row in self.rows)

    def _events(self, count: int) -> list[Event]:
        made = []
        for _ in range(count):
            self.numbers += 1
            rng = Random(f"{self.category} {self.numbers}")
            made.append(Event(rng.choice("tuv"), rng.randbytes(rng.choice([0, 5, 3_000])), rng.randbytes(rng.choice([0, 4])),
                              UUID(bytes=rng.randbytes(16))))  # fmt: skip
        return made

    # -- the broker's fate

    @precondition(lambda self: self.starts < STARTS_MAX)
    @rule(name=names, count=st.integers(0, 30), kill=st.booleans())
    def restart(self, name: str, count: int, kill: bool) -> None:
        """Killed or stopped with appends under way: the client brings all of them to their end by itself."""
        self.starts += 1
        with self._under_way(name, count):
            if kill:
                self.broker.kill()
            else:
                assert self.broker.stop(30.0) == 0
            self.broker.start()
        self._compare_watches()

    @rule(name=names, count=st.integers(1, 30))
    def stand_still(self, name: str, count: int) -> None:
        """SIGSTOP, appends, SIGCONT."""
        self.broker.signal(signal.SIGSTOP)
        try:
            with self._under_way(name, count):
                self.broker.signal(signal.SIGCONT)
        finally:
            self.broker.signal(signal.SIGCONT)
        self._compare_watches()

    # -- subscribing

    @precondition(lambda self: len(self.watches) < SUBSCRIPTIONS_MAX)
    @rule(name=st.one_of(st.none(), names), everything=st.booleans(), start=starts)
    def subscribe(self, name: str | None, everything: bool, start: Any) -> None:
        """To the category, one stream, or everything from this example's first position on."""
        stream = None if name is None else self._stream(name)
        whole = everything and stream is None
        end = self.head if stream is None else self._next_version(stream)
        if stream is None and (isinstance(start, int) or (whole and start is None)):
            start = self.base + (start or 0)
        options: dict[str, Any] = {"stream": stream} if stream else {} if whole else {"category": self.category}
        key = end if start == "end" else start or 0
        self.watches.append(Watch(Follower(self.client.subscribe(start=start, **options)), stream, whole, key))

    @precondition(lambda self: self.watches)
    @rule(index=st.integers(0, SUBSCRIPTIONS_MAX))
    def unsubscribe(self, index: int) -> None:
        self._compare_watches()
        self.watches.pop(index % len(self.watches)).follower.end(TIMEOUT_S)

    def _compare_watches(self) -> None:
        for watch in self.watches:
            if watch.stream is None:
                wanted = [row for row in self.rows if row.position >= watch.start]
            else:
                wanted = [row for row in self.rows if row.stream == watch.stream and row.version >= watch.start]
            assert watch.follower.wait(len(wanted), TIMEOUT_S), watch
            assert seen(watch.follower.events) == wanted

    # -- reading

    @invariant()
    def every_read_shows_the_list(self) -> None:
        """The whole category, and three reads that differ from step to step."""
        client, rows = self.client, self.rows
        self.steps += 1
        rng = Random(self.steps)
        assert client.head() == self.head
        assert seen(client.read_category(self.category)) == rows
        for _ in range(3):
            self._compare_read(rng)
        streams = sorted({row.stream for row in rows}, key=str.encode)
        wanted = [(name, *[row[:3:2] for row in rows if row.stream == name][-1][::-1], False) for name in streams]
        assert list(client.list_streams(self.category + "/")) == wanted
        for name, last_version, last_position, _ in wanted:
            assert client.stream_info(name)[1:5] == (0, last_version, last_position, False)
        for name in (self._stream(name) for name in NAMES):
            if name not in streams:
                with pytest.raises(StreamNotFound):
                    client.stream_info(name)

    def _compare_read(self, rng: Random) -> None:
        backwards, limit = rng.random() < 0.5, rng.choice([None, rng.randrange(20)])
        if rng.random() < 0.5:
            start, stop = (self.base + rng.randrange(len(self.rows) + 2) for _ in range(2))
            found = self.client.read_all(start, stop, limit, backwards)
            wanted = [row for row in self.rows if start <= row.position < stop]
        else:
            stream = self._stream(rng.choice(NAMES))
            mine = [row for row in self.rows if row.stream == stream]
            start, stop = (rng.randrange(len(mine) + 2) for _ in range(2))
            if not mine:
                with pytest.raises(StreamNotFound):
                    self.client.read_stream(stream, start, stop, limit, backwards)
                return
            found = self.client.read_stream(stream, start, stop, limit, backwards)
            wanted = mine[start:stop]
        assert seen(found) == (wanted[::-1] if backwards else wanted)[:limit]

    def teardown(self) -> None:
        try:
            self._compare_watches()
            for watch in self.watches:
                watch.follower.end(TIMEOUT_S)
        finally:
            self.client.close()


def seen(events: Any) -> list[Row]:
    """What a reader got."""
    return [Row(e.position, e.stream, e.version, e.type, e.payload, e.metadata, e.id) for e in events]
