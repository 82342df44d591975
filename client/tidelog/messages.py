"""What callers hold in their hands: events, results, markers, and the words for expected versions.

Objects that are made per event are plain (slots or tuples), because that is what a reader's speed consists of.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID


class Expected(Enum):
    """What may stand instead of a version number where an append says what it expects of its stream."""

    ANY = "any"
    NO_STREAM = "no stream"
    EXISTS = "exists"

    def __repr__(self) -> str:
        return self.name


ANY: Final = Expected.ANY
"""Whatever the stream's version is."""
NO_STREAM: Final = Expected.NO_STREAM
"""The stream has no event, or ends in a deletion."""
EXISTS: Final = Expected.EXISTS
"""The stream has at least one event, and does not end in a deletion."""

ExpectedVersion = Expected | int


class Event:
    """An event to be written.

    `type` is 1 to 256 bytes of UTF-8; `payload` and `metadata` are opaque bytes; `id` a uuid.UUID, made when the
    event is appended if it is None (so give one yourself if you want to repeat an append from another call).
    """

    __slots__ = ("id", "metadata", "payload", "type")

    def __init__(self, type: str, payload: bytes = b"", metadata: bytes = b"", id: UUID | None = None) -> None:
        self.type = type
        self.payload = payload
        self.metadata = metadata
        self.id = id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return (self.type, self.payload, self.metadata, self.id) == (
            other.type,
            other.payload,
            other.metadata,
            other.id,
        )

    def __hash__(self) -> int:
        return hash((self.type, self.payload, self.metadata, self.id))

    def __repr__(self) -> str:
        return f"Event({self.type!r}, {_short(self.payload)}, metadata={_short(self.metadata)}, id={self.id})"


class Recorded(tuple[Any, ...]):
    """An event as it stands in the log. As a tuple it has the fields in this order, with the id as 16 raw bytes."""

    __slots__ = ()

    def __new__(
        cls,
        position: int,
        stream: str,
        version: int,
        type: str,
        payload: bytes,
        metadata: bytes,
        id: UUID | bytes,
        recorded_at: int,
    ) -> Recorded:
        raw = id if isinstance(id, bytes) else id.bytes
        return tuple.__new__(cls, (position, stream, version, type, payload, metadata, raw, recorded_at))

    if TYPE_CHECKING:
        position: int
        stream: str
        version: int
        type: str
        payload: bytes
        metadata: bytes
        recorded_at: int
    else:
        position = property(itemgetter(0), doc="Global position, from 0.")
        stream = property(itemgetter(1), doc="Name of its stream.")
        version = property(itemgetter(2), doc="Version inside its stream, from 0.")
        type = property(itemgetter(3), doc="Event type.")
        payload = property(itemgetter(4), doc="Opaque bytes.")
        metadata = property(itemgetter(5), doc="Opaque bytes.")
        recorded_at = property(itemgetter(7), doc="Microseconds since the epoch, by the broker's clock.")

    @property
    def id(self) -> UUID:
        """The writer's id of the event; made on access, because most readers never look at it."""
        from uuid import UUID

        return UUID(bytes=self[6])

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return (
            f"Recorded(position={self[0]}, stream={self[1]!r}, version={self[2]}, type={self[3]!r}, "
            f"payload={_short(self[4])}, metadata={_short(self[5])}, id={self.id}, recorded_at={self[7]})"
        )


make_recorded: Final[partial[Recorded]] = partial(tuple.__new__, Recorded)
"""Row (id raw) → Recorded without a Python frame."""


class Write(NamedTuple):
    """One stream's part of `append_many`; without events it only asserts the stream's version."""

    stream: str | UUID
    events: Event | Iterable[Event]
    expected_version: ExpectedVersion = ANY


class Appended(NamedTuple):
    """Where an append stands. The four numbers are None for a write without events.

    `duplicate`: this append was already in the log, and these are its places. `durability` is what was reached.
    `boot_id` and `generation` say which life of the broker gave the answer (`Client.wait_durable`).
    """

    first_position: int
    last_position: int
    first_version: int
    last_version: int
    duplicate: bool
    durability: Literal["durable", "accepted"]
    boot_id: bytes = b""
    generation: int = 0


class StreamInfo(NamedTuple):
    """A stream at a glance: versions are inside it, `last_position` is global, `batches` counts its stored batches."""

    stream: str
    first_version: int
    last_version: int
    last_position: int
    deleted: bool
    batches: int


class StreamRow(NamedTuple):
    """One line of `list_streams`."""

    stream: str
    last_version: int
    last_position: int
    deleted: bool


class Health(NamedTuple):
    """How the broker is. `sync_us`: microseconds that the running data-sync has taken, 0 if none runs. `degraded`: what is wrong
    though it serves (damage that was found while it runs), or ""."""

    live: bool
    ready: bool
    reason: str
    head: int
    sync_us: int
    degraded: str = ""


class CursorInfo(NamedTuple):
    """A cursor: the next position it wants (None: it was never moved), in the unit of what it reads; who holds its lease (None:
    nobody), and that lease's number."""

    name: str
    position: int | None
    holder: str | None
    lease: int


class CaughtUp(NamedTuple):
    """Marker of a subscription: everything that was there has been delivered; comes once."""

    position: int


class Checkpoint(NamedTuple):
    """Marker of a subscription: everything before `position` (in its unit) has been delivered or filtered."""

    position: int


def _short(data: bytes) -> str:
    """Bytes for people: the first 32, and how many there are."""
    return repr(data) if len(data) <= 32 else f"{bytes(data[:32])!r}…({len(data)} bytes)"
