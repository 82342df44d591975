"""What a log is: a list. The rules of append (spec §§3, 4) written once more, as plainly as possible.

A `State` is the log behind some group; `judge` says what a request must be answered there, `take` what that leaves behind. It
knows every id for ever; how far the broker's memory goes is asked of the broker (`begins`) and judged on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from e2e.raw_client import New, pack_region
from tidelog.errors import DuplicateEventId, OutcomeUnknown, WrongExpectedVersion

OK, DUPLICATE = 2, 3
"""The flags of a reply: durable; durable and a duplicate."""


class Row(NamedTuple):
    """An event as every reader must see it."""

    position: int
    stream: str
    version: int
    type: str
    id: bytes
    payload: bytes
    metadata: bytes


class Write(NamedTuple):
    """`events` empty: it only asserts the stream's version."""

    stream: str
    expected: bool | int | None
    events: tuple[New, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """An append as its client keeps it to send it again: the same bytes, and the head it knew when it first sent."""

    writes: tuple[Write, ...]
    head: int

    def __repr__(self) -> str:
        rows = [(write.stream, write.expected, len(write.events)) for write in self.writes]
        return f"<Request {rows}, first sent at head {self.head}>"

    @property
    def ids(self) -> list[bytes]:
        return [event.id for write in self.writes for event in write.events]

    @property
    def content(self) -> list[tuple[str, tuple[New, ...]]]:
        return [(write.stream, write.events) for write in self.writes if write.events]

    def message(self, request_id: int, *, resend: bool) -> list[Any]:
        writes = [
            [write.stream, write.expected, pack_region(list(write.events)) if write.events else None]
            for write in self.writes
        ]
        return [3, request_id, 0, self.head if resend else None, 0, None, None, writes]


@dataclass(frozen=True, slots=True)
class Placed:
    """An append that is in the log."""

    request: Request
    first_position: int
    versions: tuple[int, ...]
    """First version of each write with events."""

    @property
    def events(self) -> int:
        return sum(len(write.events) for write in self.request.writes)


class Answer(NamedTuple):
    """Flags or an error's code; the places of an append, or the facts of the error where they are fixed."""

    code: int
    flags: int
    rest: tuple[Any, ...]


def _passes(expected: bool | int | None, next_version: int) -> bool:
    if expected is None:
        return True
    if type(expected) is bool:
        return expected == (next_version > 0)
    return next_version == expected + 1


@dataclass(slots=True)
class State:
    """A log: its events in order, and what follows from them."""

    rows: list[Row] = field(default_factory=list)
    appends: list[Placed] = field(default_factory=list)
    next_versions: dict[str, int] = field(default_factory=dict)
    known: dict[bytes, Placed] = field(default_factory=dict)

    def copy(self) -> State:
        return State(list(self.rows), list(self.appends), dict(self.next_versions), dict(self.known))

    @property
    def head(self) -> int:
        return len(self.rows)

    def judge(self, request: Request, begins: int, resend: bool) -> Answer:
        """The answer due to an append whose shape is right; ids from before `begins` are forgotten."""
        originals = []
        for event_id in request.ids:
            placed = self.known.get(event_id)
            originals.append(placed if placed is not None and placed.first_position >= begins else None)
        first = originals[0]
        whole = first is not None and all(placed is first for placed in originals)
        if whole and first is not None and first.request.content == request.content:
            return Answer(0, DUPLICATE, self._places(request, first.first_position, first.versions))
        if any(originals):
            return Answer(DuplicateEventId.code, 0, ())
        if resend and request.head < begins:
            return Answer(OutcomeUnknown.code, 0, ())
        for write in request.writes:
            version = self.next_versions.get(write.stream, 0)
            if not _passes(write.expected, version):
                actual = version - 1 if version else None
                return Answer(WrongExpectedVersion.code, 0, (write.stream, write.expected, actual))
        return Answer(0, OK, self._places(request, self.head, self._versions(request)))

    def _versions(self, request: Request) -> tuple[int, ...]:
        return tuple(self.next_versions.get(write.stream, 0) for write in request.writes if write.events)

    @staticmethod
    def _places(request: Request, position: int, versions: Sequence[int]) -> tuple[int | None, ...]:
        places: list[int | None] = []
        following = iter(versions)
        for write in request.writes:
            count = len(write.events)
            if not count:
                places += (None, None, None, None)
                continue
            version = next(following)
            places += (position, position + count - 1, version, version + count - 1)
            position += count
        return tuple(places)

    def take(self, request: Request) -> None:
        """The append is in the log."""
        placed = Placed(request, self.head, self._versions(request))
        self.appends.append(placed)
        for write in request.writes:
            for event in write.events:
                version = self.next_versions.get(write.stream, 0)
                self.next_versions[write.stream] = version + 1
                self.rows.append(
                    Row(self.head, write.stream, version, event.type, event.id, event.payload, event.metadata)
                )
                self.known[event.id] = placed

    def known_from(self, window: int) -> int:
        """Where the newest whole appends begin that together hold the window: their ids must be known."""
        held = 0
        for placed in reversed(self.appends):
            held += placed.events
            if held >= window:
                return placed.first_position
        return 0

    def read(
        self, scope: int, name: str, start: int | None, stop: int | None, limit: int | None, backwards: bool
    ) -> list[Row]:
        """What a read must give."""
        low, high = start or 0, 1 << 62 if stop is None else stop
        found = []
        for row in self.rows:
            wanted = (True, row.stream.startswith(name + "/"), row.stream == name)[scope]
            if wanted and low <= (row.version if scope == 2 else row.position) < high:
                found.append(row)
        if backwards:
            found.reverse()
        return found if limit is None else found[:limit]
