"""Batches and appends for tests, made from FORMAT.md §3 and nothing of the broker's core.

`event_batch` and `control_batch` return the stored bytes; `Writer` keeps positions and versions as the appender would
and commits through a Log.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple
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


class Sent(NamedTuple):
    """An append of a session, which moves the cursor of the same name to where its events end."""

    session: str
    writes: Sequence[tuple[str, Sequence[bytes]]]


Asked = Sequence[tuple[str, Sequence[bytes]]] | Sent | str
"""An append of a list of (stream, payloads), one of a session, or a session's name: a control batch that opens it."""


@dataclass(slots=True)
class Staged:
    """A group that is ready to be committed."""

    parts: list[bytes]
    batches: int
    first_position: int
    next_position: int
    versions: dict[str, int]
    sessions: dict[str, tuple[int, int]]
    cursors: dict[str, int]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


@dataclass(slots=True)
class Writer:
    """Positions, versions, sessions as (epoch, last serial) and cursors of a log under test."""

    position: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, tuple[int, int]] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    serial: int = 0
    """Makes payloads distinct; never goes back."""

    def stage(self, *appends: Asked) -> Staged:
        """A group of appends."""
        group = Staged(
            [], 0, self.position, self.position, dict(self.versions), dict(self.sessions), dict(self.cursors)
        )
        for append in appends:
            if isinstance(append, str):
                epoch, last = group.sessions.get(append, (0, 0))
                group.sessions[append] = epoch + 1, last
                group.parts.append(control_batch(1, [append, epoch + 1], recorded_at=TIME + group.next_position))
                group.batches += 1
            elif isinstance(append, Sent):
                self._stage_sent(group, append)
            else:
                self._stage_writes(group, append)
        return group

    def _stage_sent(self, group: Staged, append: Sent) -> None:
        name = append.session
        epoch, last = group.sessions[name]
        group.sessions[name] = epoch, last + 1
        self._stage_writes(group, append.writes, (name, epoch, last + 1))
        group.cursors[name] = group.next_position
        count = len(append.writes) + 1
        group.parts.append(
            control_batch(
                2,
                [name, group.next_position, None, 0],
                index=count - 1,
                count=count,
                recorded_at=TIME + group.first_position,
            )
        )
        group.batches += 1

    def _stage_writes(
        self, group: Staged, writes: Sequence[tuple[str, Sequence[bytes]]], session: tuple[str, int, int] | None = None
    ) -> None:
        for index, (stream, payloads) in enumerate(writes):
            version = group.versions.get(stream, 0)
            group.parts.append(
                event_batch(
                    stream, version, group.next_position, payloads, index=index,
                    count=len(writes) + (session is not None), recorded_at=TIME + group.first_position, session=session,
                )
            )  # fmt: skip
            group.batches += 1
            group.next_position += len(payloads)
            group.versions[stream] = version + len(payloads)

    def accept(self, group: Staged) -> None:
        """The group is durable."""
        self.position, self.versions = group.next_position, group.versions
        self.sessions, self.cursors = group.sessions, group.cursors

    def commit(self, log: Any, *appends: Asked) -> bytes:
        """Stage and commit; the group's body."""
        group = self.stage(*appends)
        log.commit(group.parts, group.batches, group.next_position)
        self.accept(group)
        return group.body

    def payload(self, size: int) -> bytes:
        """Bytes that no other payload has, without long runs of zeros."""
        self.serial += 1
        return blake2b(b"%d" % self.serial, digest_size=32).digest() * (size // 32) or b"%03d" % self.serial
