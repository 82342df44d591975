"""Batches and appends for tests, made from FORMAT.md §3 and nothing of the broker's core.

`event_batch` and `control_batch` return the stored bytes; `Writer` keeps positions and versions as the appender would
and commits through a Log.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from zlib import crc32

import msgpack

HEADER = struct.Struct("<BBBBIIIIIQQQQ")
TIME = 1_700_000_000_000_000


def event_batch(
    stream: str,
    first_version: int,
    first_position: int,
    payloads: Sequence[bytes],
    *,
    index: int = 0,
    count: int = 1,
    recorded_at: int = TIME,
    event_type: str = "t",
    deletion: bool = False,
    session: tuple[str, int, int] | None = None,
) -> bytes:
    """One batch of events; ids follow from the position, so that equal calls make equal bytes."""
    ids = b"".join(
        blake2b(b"%d %d" % (first_position + i, first_version + i), digest_size=16).digest()
        for i in range(len(payloads))
    )
    region: bytes = msgpack.packb([ids, event_type, None, list(payloads)])
    name = stream.encode()
    tail = b""
    if session is not None:
        session_name = session[0].encode()
        tail = struct.pack(f"<B{len(session_name)}sQQ", len(session_name), session_name, *session[1:])
    flags = (1 if deletion else 0) | (2 if session else 0)
    length = HEADER.size + len(name) + len(tail) + len(region) + 4
    signature = 1 << (crc32(event_type.encode()) & 63)
    head = HEADER.pack(
        0x42, flags, len(name), 1, length, index, count, len(payloads), len(region), first_position, first_version,
        recorded_at, signature,
    )  # fmt: skip
    body = head + name + tail + region
    return body + struct.pack("<I", crc32(body))


def control_batch(subtype: int, body: list[Any], *, index: int = 0, count: int = 1, recorded_at: int = TIME) -> bytes:
    """One control batch."""
    region: bytes = msgpack.packb(body)
    length = HEADER.size + len(region) + 4
    head = HEADER.pack(0x43, 0, 0, subtype, length, index, count, 0, len(region), 0, 0, recorded_at, 0)
    data = head + region
    return data + struct.pack("<I", crc32(data))


def seeded_random(seed: bytes) -> Callable[[int], bytes]:
    """A stand-in for os.urandom that gives the same bytes in every run."""
    calls = 0

    def random(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return blake2b(b"%s %d" % (seed, calls), digest_size=count).digest()

    return random


@dataclass(slots=True)
class Staged:
    """A group that is ready to be committed."""

    parts: list[bytes]
    batches: int
    first_position: int
    next_position: int
    versions: dict[str, int]
    epochs: dict[str, int]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


@dataclass(slots=True)
class Writer:
    """Positions, versions and epochs of a log under test."""

    position: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    serial: int = 0
    """Makes payloads distinct; never goes back."""

    def stage(self, *appends: Sequence[tuple[str, Sequence[bytes]]] | str) -> Staged:
        """A group of appends, each a list of (stream, payloads), or a session's name: a control batch that opens it."""
        group = Staged([], 0, self.position, self.position, dict(self.versions), dict(self.epochs))
        for append in appends:
            if isinstance(append, str):
                epoch = group.epochs[append] = group.epochs.get(append, 0) + 1
                group.parts.append(control_batch(1, [append, epoch], recorded_at=TIME + group.next_position))
                group.batches += 1
                continue
            for index, (stream, payloads) in enumerate(append):
                version = group.versions.get(stream, 0)
                group.parts.append(
                    event_batch(
                        stream, version, group.next_position, payloads, index=index, count=len(append),
                        recorded_at=TIME + group.first_position,
                    )
                )  # fmt: skip
                group.batches += 1
                group.next_position += len(payloads)
                group.versions[stream] = version + len(payloads)
        return group

    def accept(self, group: Staged) -> None:
        """The group is durable."""
        self.position, self.versions, self.epochs = group.next_position, group.versions, group.epochs

    def commit(self, log: Any, *appends: Sequence[tuple[str, Sequence[bytes]]] | str) -> bytes:
        """Stage and commit; the group's body."""
        group = self.stage(*appends)
        log.commit(group.parts, group.batches, group.next_position)
        self.accept(group)
        return group.body

    def payload(self, size: int) -> bytes:
        """Bytes that no other payload has, without long runs of zeros."""
        self.serial += 1
        return blake2b(b"%d" % self.serial, digest_size=32).digest() * (size // 32) or b"%03d" % self.serial
