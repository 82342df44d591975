"""Files of EventfoldDB, made byte by byte from the words of the contract; shares nothing with the reader under test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID
from zlib import crc32


class Given(NamedTuple):
    """One event as it goes into a file."""

    stream: bytes
    id: bytes
    type: bytes = b"t"
    metadata: bytes = b""
    payload: bytes = b""


class Wanted(NamedTuple):
    """One event as it must come out."""

    position: int
    stream: str
    version: int
    type: str
    metadata: bytes
    payload: bytes
    id: UUID
    recorded_at: int


Appends = Sequence[tuple[int, Sequence[Given]]]
"""(milliseconds, events) of each append."""


def u(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


def record(version: int, position: int, ms: int, stream_version: int, event: Given) -> bytes:
    inside = u(position, 8)
    if version == 3:
        inside += u(ms, 8)
    inside += event.stream + u(stream_version, 8) + event.id
    inside += u(len(event.type), 2) + event.type
    inside += u(len(event.metadata), 4) + event.metadata
    inside += u(len(event.payload), 4) + event.payload
    return u(len(inside) + 4, 4) + inside + u(crc32(inside), 4)


def envelope(first_position: int, records: Sequence[bytes]) -> bytes:
    inside = bytes.fromhex("45464242") + u(len(records), 4) + u(first_position, 8) + b"".join(records)
    return inside + bytes.fromhex("45464246") + u(crc32(inside), 4)


def header(version: int) -> bytes:
    return bytes.fromhex("45464442") + u(version, 4)


class Seed:
    """A file that grows by appends, and what a migration must make of them."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.parts = [header(version)]
        self.starts: list[int] = []
        """Offset of each append."""
        self.wanted: list[list[Wanted]] = []
        """The events of each append."""
        self.position = 0
        self.versions: dict[bytes, int] = {}
        self._size = 8
        self._time = 0

    def append(self, ms: int, events: Sequence[Given]) -> Seed:
        """One append; in format 1, which has none, one for each event."""
        if self.version == 1 and len(events) > 1:
            for event in events:
                self.append(ms, [event])
            return self
        if self.version == 3:
            self._time = max(self._time, ms * 1000)
        first, records, wanted = self.position, [], []
        for number, event in enumerate(events):
            stream_version = self.versions.get(event.stream, 0)
            self.versions[event.stream] = stream_version + 1
            # Only the first record's time counts.
            records.append(record(self.version, self.position, ms + 77 * number, stream_version, event))
            wanted.append(
                Wanted(
                    self.position, str(UUID(bytes=event.stream)), stream_version, event.type.decode(), event.metadata,
                    event.payload, UUID(bytes=event.id), self._time,
                )
            )  # fmt: skip
            self.position += 1
        return self.raw(records[0] if self.version == 1 else envelope(first, records), wanted)

    def raw(self, data: bytes, wanted: list[Wanted]) -> Seed:
        """Bytes as they are, in the place of an append."""
        self.starts.append(self._size)
        self.wanted.append(wanted)
        self.parts.append(data)
        self._size += len(data)
        return self

    @property
    def bytes(self) -> bytes:
        return b"".join(self.parts)

    def events(self, appends: int | None = None) -> list[Wanted]:
        """What the first appends hold; None for all."""
        return [event for wanted in self.wanted[:appends] for event in wanted]


def grown(version: int, appends: Appends) -> Seed:
    seed = Seed(version)
    for ms, events in appends:
        seed.append(ms, events)
    return seed


def small(version: int) -> Seed:
    """Three appends: one event; three of mixed streams and times that go back; two with everything in them."""
    one, two = bytes(range(16)), bytes(range(100, 116))
    return grown(
        version,
        [
            (1_700_000_000_000, [Given(one, b"a" * 16, b"opened", b"", b"\0\xffbytes")]),
            (1_600_000_000_000, [Given(two, b"b" * 16), Given(one, b"c" * 16), Given(two, b"d" * 16, "größer".encode())]),
            (1_700_000_000_001, [Given(one, b"e" * 16, b"t", b"meta", b"p" * 40), Given(one, b"f" * 16, b"u")]),
        ],
    )  # fmt: skip


def large(version: int, events: int, streams: int, seed: int = 1) -> Seed:
    """Many appends of 1 to 20 events; 3 streams in 10 of them."""
    random_ = random.Random(seed)
    names = [random_.randbytes(16) for _ in range(streams)]
    made = Seed(version)
    ms = 1_700_000_000_000
    while made.position < events:
        ms += random_.randrange(-5, 20)
        chosen = random_.choices(names, k=3 if random_.random() < 0.3 else 1)
        made.append(
            ms,
            [
                Given(
                    random_.choice(chosen), random_.randbytes(16), random_.choice((b"placed", b"paid", b"sent")),
                    random_.randbytes(random_.choice((0, 0, 30))), random_.randbytes(random_.randrange(200)),
                )
                for _ in range(random_.choice((1, 1, 2, 20)))
            ],
        )  # fmt: skip
    return made
