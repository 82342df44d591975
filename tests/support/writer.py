"""A process that appends or subscribes for a long time and notes down what it was told: python -m support.writer …

    append ENDPOINT NOTES NAME SEED [COUNTS SLOT]   until its standard input ends, then a last append as a probe
    subscribe ENDPOINT NOTES SCOPE START            until its standard input ends ("" everything, "c/" a category)

The rows are those of support/histories.py. COUNTS is a file of 8-byte counters of acknowledged appends, one for each SLOT,
so that whoever kills brokers knows when there is something to lose.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import threading
import time
from hashlib import blake2b
from typing import Any
from uuid import UUID

from support.histories import digest_of
from tidelog import (
    ANY,
    NO_STREAM,
    Appended,
    Client,
    Event,
    ExpectedVersion,
    Subscription,
    TidelogError,
    Truncated,
    Write,
)

SHARED_STREAMS = 5
PATIENCE_S = 30.0


def payload_of(event_id: bytes) -> bytes:
    """What an event with this id holds; one in a hundred is large."""
    seed = blake2b(event_id, digest_size=32).digest()
    return seed * (1_000 if seed[0] < 3 else seed[1] // 32)


class Notes:
    """Rows that are in the file when `note` returns."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **fields: Any) -> None:
        self.note_all([(what, fields)])

    def note_all(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        at = time.monotonic_ns()
        data = "".join(json.dumps({"what": what, "at": at, **fields}) + "\n" for what, fields in rows).encode()
        while data:
            data = data[os.write(self._fd, data) :]


class Counter:
    """One 8-byte counter in a file that somebody else reads."""

    def __init__(self, path: str | None, slot: int) -> None:
        self._fd = None if path is None else os.open(path, os.O_RDWR)
        self._offset = 8 * slot
        self._value = 0 if self._fd is None else int.from_bytes(os.pread(self._fd, 8, self._offset), "little")

    def add(self) -> None:
        self._value += 1
        if self._fd is not None:
            os.pwrite(self._fd, self._value.to_bytes(8, "little"), self._offset)


class Writer:
    """Appends of every kind: one event or many, one stream or several, expected versions, repeats, impatience; and reads."""

    def __init__(self, endpoint: str, notes: Notes, name: str, seed: int, counter: Counter) -> None:
        self._client = Client(endpoint, timeout=PATIENCE_S)
        self._notes = notes
        self._counter = counter
        self._name = name
        self._random = random.Random(seed)
        self._number = 0
        self._own_version: int | None = None
        self._sent: dict[int, list[Write]] = {}

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            choice = self._random.random()
            if choice < 0.4:
                self._pipelined()
            elif choice < 0.5:
                self._one(self._several_streams(), None)
            elif choice < 0.9:
                self._one(*self._one_stream())
            elif choice < 0.95:
                self._again()
            else:
                self._read()
        self._probe()
        self._client.close()
        self._notes.note("end")

    def _events(self, most: int) -> list[Event]:
        made = []
        for _ in range(self._random.randint(1, most)):
            event_id = self._random.randbytes(16)
            made.append(Event(self._random.choice("abc"), payload_of(event_id), event_id[:3], UUID(bytes=event_id)))
        return made

    def _one_stream(self) -> tuple[list[Write], float | None]:
        patience = self._random.choice([None, None, None, 0.05, 0.3])
        if self._random.random() < 0.4:
            expected: ExpectedVersion = NO_STREAM if self._own_version is None else self._own_version
            if self._random.random() < 0.1:
                expected = 10**9
            return [Write(f"own/{self._name}", self._events(3), expected)], patience
        stream = f"shared/{self._random.randrange(SHARED_STREAMS)}"
        return [Write(stream, self._events(4), ANY)], patience

    def _several_streams(self) -> list[Write]:
        streams = self._random.sample(range(SHARED_STREAMS), self._random.randint(2, 4))
        return [Write(f"shared/{stream}", self._events(2), ANY) for stream in streams]

    # -- what is noted

    def _send_row(self, writes: list[Write]) -> tuple[int, tuple[str, dict[str, Any]]]:
        self._number += 1
        self._sent[self._number] = writes
        if len(self._sent) > 100:
            del self._sent[next(iter(self._sent))]
        rows = [
            [write.stream, _word(write.expected_version),
             [[event.id.hex, digest_of(event.type, event.payload, event.metadata)] for event in write.events]]  # type: ignore[union-attr]
            for write in writes
        ]  # fmt: skip
        return self._number, ("send", {"number": self._number, "writes": rows})

    def _settled(self, number: int, rows: list[Appended] | None, error: BaseException | None) -> None:
        if rows is not None:
            self._notes.note("ack", number=number, places=[row[:4] for row in rows], duplicate=rows[0].duplicate)
            self._counter.add()
        elif isinstance(error, TidelogError):
            what = "unknown" if error.maybe_applied else "definite"
            self._notes.note(what, number=number, error=f"{type(error).__name__}: {error}")
        elif error is not None:
            raise error

    # -- calls

    def _one(self, writes: list[Write], timeout: float | None) -> None:
        number, row = self._send_row(writes)
        self._notes.note_all([row])
        self._call(number, writes, timeout)

    def _call(self, number: int, writes: list[Write], timeout: float | None) -> list[Appended] | None:
        rows, error = None, None
        try:
            rows = self._client.append_many(writes, timeout=timeout)
        except TidelogError as failure:
            error = failure
        self._settled(number, rows, error)
        if writes[0].stream == f"own/{self._name}":
            if rows is None:
                self._find_own_version()
            else:
                self._own_version = max(rows[0].last_version, -1 if self._own_version is None else self._own_version)
        return rows

    def _pipelined(self) -> None:
        """Many in flight at once: they may share groups, and a kill meets them all."""
        sent, rows = [], []
        for _ in range(self._random.randint(5, 60)):
            writes = [Write(f"shared/{self._random.randrange(SHARED_STREAMS)}", self._events(2), ANY)]
            number, row = self._send_row(writes)
            sent.append((number, writes))
            rows.append(row)
        self._notes.note_all(rows)
        under_way = [
            (number, self._client.append_nowait(writes[0].stream, writes[0].events)) for number, writes in sent
        ]
        for number, call in under_way:
            error = call.exception()
            self._settled(number, None if error else [call.result()], error)

    def _again(self) -> None:
        """The same events once more: what is in the log is told, what is not is written now."""
        if self._sent:
            number = self._random.choice(list(self._sent))
            self._notes.note("repeat", number=number)
            self._call(number, self._sent[number], None)

    def _read(self) -> None:
        """The head, and the end of the log or of a stream."""
        began = start = 0
        try:
            began = time.monotonic_ns()
            head = self._client.head()
            self._notes.note("head", began=began, head=head)
            began = time.monotonic_ns()
            scope = self._random.choice(["", "shared/", "shared/0"])
            start = max(0, head - 30)
            if scope == "shared/0":
                found = list(self._client.read_stream(scope, limit=20, backwards=True))[::-1]
            else:
                found = list(self._client.read_all(start, category=scope.rstrip("/") or None))
            self._notes.note("read", began=began, scope=scope, events=[sighting(event) for event in found])
        except Truncated as error:
            self._notes.note("truncated", began=began, start=start, first=error.first_available)
        except TidelogError as error:
            if not error.retryable and type(error).__name__ != "StreamNotFound":
                raise

    def _find_own_version(self) -> None:
        """Behind an unknown outcome: ask how far the stream is."""
        for row in self._client.list_streams(f"own/{self._name}", timeout=60.0):
            if row.stream == f"own/{self._name}":
                self._own_version = row.last_version

    def _probe(self) -> None:
        writes = [Write(f"shared/{self._random.randrange(SHARED_STREAMS)}", self._events(2), ANY)]
        number, row = self._send_row(writes)
        self._notes.note_all([row, ("probe", {"number": number})])
        self._call(number, writes, None)


def _word(expected: ExpectedVersion) -> int | str:
    """An expectation as the rows have it."""
    return expected if isinstance(expected, int) else {"ANY": "any", "NO_STREAM": "none"}[repr(expected)]


def sighting(event: Any) -> list[Any]:
    """An event as the rows have it."""
    position, stream, version, kind, payload, metadata, raw_id, _ = event
    return [position, stream, version, raw_id.hex(), digest_of(kind, payload, metadata)]


def stop_in_the_end(subscription: Subscription, over: threading.Event) -> None:
    over.wait()
    subscription.stop()


def subscribe(endpoint: str, notes: Notes, scope: str, start: int, over: threading.Event) -> None:
    """Note each delivered event. `start` in positions, so the scope is everything or a category.

    What was truncated before it came is noted, and skipped.
    """
    instead: int | None = None
    with Client(endpoint, timeout=PATIENCE_S) as client:
        while not over.is_set():
            began = time.monotonic_ns()
            try:
                subscription = client.subscribe(category=scope.rstrip("/") or None, start=start)
                notes.note("subscribed", began=began, scope=scope, start=start, instead=instead)
                threading.Thread(target=stop_in_the_end, args=(subscription, over), daemon=True).start()
                for event in subscription:
                    notes.note("seen", event=sighting(event))
                    start, instead = event.position + 1, None
            except Truncated as error:
                notes.note("truncated", began=began, start=start, first=error.first_available)
                instead = start if instead is None else instead
                start = error.first_available
            except TidelogError as error:
                # A broker that is away while a subscription is made says so, and the caller asks again.
                if not error.retryable:
                    raise
    notes.note("end")


def until_told() -> threading.Event:
    """Set when standard input ends."""
    over = threading.Event()

    def watch() -> None:
        select.select([sys.stdin], [], [])
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    return over


def main() -> None:
    kind, endpoint, path, name, *more = sys.argv[1:]
    over = until_told()
    if kind == "append":
        counter = Counter(more[1], int(more[2])) if len(more) > 1 else Counter(None, 0)
        Writer(endpoint, Notes(path), name, int(more[0]), counter).run(over)
    else:
        subscribe(endpoint, Notes(path), name, int(more[0]), over)


if __name__ == "__main__":
    main()
