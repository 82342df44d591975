"""A process that appends or subscribes for a long time and notes down what it was told: python writer.py KIND ARGUMENTS.

    writer.py append ENDPOINT LOG NAME SEED     until its standard input ends
    writer.py subscribe ENDPOINT LOG CATEGORY   ("" is everything) until its standard input ends

Every line is JSON, written before the call (`send`) and behind its answer (`ack`, `refused`, `unknown`), with a clock that
all processes share, so that tests/support/checker.py can judge what the broker promised.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import threading
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any
from uuid import UUID

from tidelog import ANY, NO_STREAM, Appended, Client, Event, TidelogError, Write

SHARED_STREAMS = 5


def payload_of(event_id: bytes) -> bytes:
    """What an event with this id holds; one in thirty is large."""
    seed = blake2b(event_id, digest_size=32).digest()
    return seed * (1_500 if seed[0] < 8 else seed[1] // 16)


class Log:
    """Lines that are in the file when `note` returns."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, **fields: Any) -> None:
        os.write(self._fd, json.dumps({"at": time.monotonic_ns(), **fields}).encode() + b"\n")


class Writer:
    """Appends of every kind: one event or many, one stream or several, with and without an expected version."""

    def __init__(self, endpoint: str, log: Log, name: str, seed: int) -> None:
        self._client = Client(endpoint, timeout=30.0)
        self._log = log
        self._name = name
        self._random = random.Random(seed)
        self._number = 0
        self._own_version: int | None = None

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            choice = self._random.random()
            if choice < 0.15:
                self._pipelined()
            elif choice < 0.3:
                self._one(*self._several_streams())
            else:
                self._one(*self._one_stream())
        self._client.close()

    def _events(self, most: int) -> list[Event]:
        made = []
        for _ in range(self._random.randint(1, most)):
            event_id = self._random.randbytes(16)
            made.append(Event(self._random.choice("abc"), payload_of(event_id), event_id[:3], UUID(bytes=event_id)))
        return made

    def _one_stream(self) -> tuple[list[Write], float | None]:
        patience = self._random.choice([None, None, 0.05, 0.3])
        if self._random.random() < 0.4:
            expected = NO_STREAM if self._own_version is None else self._own_version
            if self._random.random() < 0.1:
                expected = 10**9
            return [Write(f"own/{self._name}", self._events(4), expected)], patience
        stream = f"shared/{self._random.randrange(SHARED_STREAMS)}"
        return [Write(stream, self._events(8), ANY)], patience

    def _several_streams(self) -> tuple[list[Write], float | None]:
        streams = self._random.sample(range(SHARED_STREAMS), self._random.randint(2, 4))
        return [Write(f"shared/{stream}", self._events(4), ANY) for stream in streams], None

    def _note_send(self, writes: Sequence[Write]) -> int:
        self._number += 1
        rows = [[write.stream, [event.id.hex for event in write.events]] for write in writes]  # type: ignore[union-attr]
        self._log.note(what="send", number=self._number, writes=rows)
        return self._number

    def _settled(self, number: int, rows: list[Appended] | None, error: TidelogError | None) -> None:
        if rows is not None:
            self._log.note(what="ack", number=number, places=[row[:4] for row in rows], duplicate=rows[0].duplicate)
        elif error is not None:
            what = "unknown" if error.maybe_applied else "refused"
            self._log.note(what=what, number=number, error=f"{type(error).__name__}: {error}")

    def _one(self, writes: list[Write], timeout: float | None) -> None:
        number = self._note_send(writes)
        rows, error = None, None
        try:
            rows = self._client.append_many(writes, timeout=timeout)
        except TidelogError as failure:
            error = failure
        self._settled(number, rows, error)
        own = writes[0].stream == f"own/{self._name}"
        if own and rows is not None:
            self._own_version = rows[0].last_version
        elif own:
            self._find_own_version()

    def _pipelined(self) -> None:
        """Many in flight at once: they may share groups, and a kill meets them all."""
        under_way = []
        for _ in range(self._random.randint(5, 60)):
            writes = [Write(f"shared/{self._random.randrange(SHARED_STREAMS)}", self._events(2), ANY)]
            number = self._note_send(writes)
            under_way.append((number, self._client.append_nowait(writes[0].stream, writes[0].events)))
        for number, call in under_way:
            error = call.exception()
            self._settled(number, None if error else [call.result()], error)

    def _find_own_version(self) -> None:
        """Behind an unknown outcome: ask how far the stream is."""
        for row in self._client.list_streams(f"own/{self._name}", timeout=60.0):
            self._own_version = row.last_version


def subscribe(endpoint: str, log: Log, category: str, over: threading.Event) -> None:
    """Note each delivered event: position, id, digest of what it holds."""
    while not over.is_set():
        try:
            client = Client(endpoint, timeout=30.0)
            subscription = client.subscribe(category=category or None)
            break
        except TidelogError as error:
            log.note(what="waiting", error=str(error))
    else:
        return

    def stop() -> None:
        over.wait()
        subscription.stop()

    threading.Thread(target=stop, daemon=True).start()
    for event in subscription:
        log.note(what="seen", position=event.position, stream=event.stream, version=event.version, id=event.id.hex,
                 whole=event.payload == payload_of(event.id.bytes))  # fmt: skip
    client.close()


def main() -> None:
    kind, endpoint, path, name, *more = sys.argv[1:]
    over = threading.Event()

    def watch() -> None:
        select.select([sys.stdin], [], [])
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    if kind == "append":
        Writer(endpoint, Log(path), name, int(more[0])).run(over)
    else:
        subscribe(endpoint, Log(path), name, over)


if __name__ == "__main__":
    main()
