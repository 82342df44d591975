"""`tidelog append -` and `tidelog import`: JSON lines on a descriptor become appends.

Neighbouring lines of one stream are one append; many appends are in flight; the log has the order of the lines. A line
is sent when nothing more can be read at the moment, so a live feed is not held back; but what was exported is cut into
appends by its lines alone, so that a repeat makes the same appends and is recognised. The first failure ends it: what is
in flight is still waited for, and nothing more is sent.
"""

from __future__ import annotations

import json
import os
import select
from base64 import b64decode
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

from tidelog import ANY, NO_STREAM, Appended, Client, Event, ExpectedVersion, Future
from tidelog.errors import TidelogError

WINDOW: Final = 256
"""Appends in flight."""
EVENTS_MAX: Final = 256
BYTES_AIM: Final = 256 << 10
"""An append of lines ends behind so many events, or so many bytes of lines."""
LINE_BYTES_MAX: Final = 16 << 20
"""The largest event, written in JSON with every byte escaped, is shorter."""
CHUNK_BYTES: Final = 256 << 10
IGNORED: Final = {"position", "version", "recorded_at"}
"""What `read --json` prints and only the broker decides."""


class WrongLine(ValueError):
    """A line is not an event; says why."""


class Acknowledged(NamedTuple):
    """One append that is in the log."""

    stream: str
    appended: Appended


class Failure(NamedTuple):
    """Lines (numbered from 1, inclusive) that are not in the log, or with a TidelogError that says so perhaps are."""

    first: int
    last: int
    why: str
    error: TidelogError | None


@dataclass(slots=True)
class _Batch:
    stream: str
    first: int
    last: int
    events: list[Event]
    size: int
    expected: ExpectedVersion
    next_version: int | None
    future: Future[Appended] | None = None


def parse_line(line: bytes) -> tuple[str, Event]:
    """One line → the stream and the event. Raises WrongLine."""
    return _event(_row(line))


def parse_exported(line: bytes) -> tuple[str, Event, int]:
    """One line of `tidelog export` → the stream, the event and its version. Raises WrongLine."""
    row = _row(line)
    stream, event = _event(row)
    version = row.get("version")
    if type(version) is not int or version < 0:
        raise WrongLine("version is missing, or no number: `tidelog append -` takes such lines")
    if event.id is None:
        raise WrongLine("id is missing, so a repeat could not be recognised: `tidelog append -` takes such lines")
    return stream, event, version


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise WrongLine(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise WrongLine("not a JSON object")
    return row


def _event(row: dict[str, Any]) -> tuple[str, Event]:
    unknown = set(row) - IGNORED - {"stream", "type", "payload", "payload_b64", "metadata", "metadata_b64", "id"}
    if unknown:
        raise WrongLine(f"there is no key {min(unknown)!r}")
    for name in ("stream", "type"):
        if not isinstance(row.get(name), str):
            raise WrongLine(f"{name} is missing, or no text")
    try:
        event_id = None if row.get("id") is None else UUID(row["id"])
    except (ValueError, AttributeError, TypeError):
        raise WrongLine(f"id is no UUID: {row['id']!r}") from None
    return row["stream"], Event(row["type"], _opaque(row, "payload"), _opaque(row, "metadata"), event_id)


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _opaque(row: dict[str, Any], name: str) -> bytes:
    """Text as UTF-8, another JSON value as JSON text, NAME_b64 as its bytes."""
    encoded = row.get(f"{name}_b64")
    try:
        if encoded is not None:
            if name in row:
                raise WrongLine(f"{name} and {name}_b64 exclude each other")
            return b64decode(encoded, validate=True)
        value = row.get(name, "")
        return (
            value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        ).encode()
    except WrongLine:
        raise
    except (ValueError, TypeError):
        raise WrongLine(f"{name} can't be made into bytes") from None


class Feed:
    """The appends of one input. The counts are of what is known to be in the log."""

    def __init__(self, client: Client, *, exported: bool = False, checked: bool = False) -> None:
        """`exported`: the lines are those of `tidelog export`; `checked`: each event must get the version that its line says."""
        self.events = 0
        self.appends = 0
        self.repeated = 0
        self.last_position: int | None = None
        self.sent_line = 0
        self.failed: Failure | None = None
        self._client = client
        self._exported = exported
        self._checked = checked
        self._flying: deque[_Batch] = deque()
        self._open: _Batch | None = None
        self._rest = b""
        self._line = 0
        self._events_max = EVENTS_MAX
        self._bytes_aim = BYTES_AIM

    def run(self, descriptor: int) -> Iterator[Acknowledged]:
        """Read to the end, or to the first failure; yields each append once it is in the log."""
        # Tells that no broker is there before anything is read; its limits may be below ours.
        limits = self._client._hello().limits
        self._events_max = min(EVENTS_MAX, limits.append_events)
        self._bytes_aim = min(BYTES_AIM, limits.append_bytes)
        ended = False
        while not ended or self._flying:
            if self._flying and (ended or len(self._flying) >= WINDOW or not select.select([descriptor], [], [], 0)[0]):
                done = self._land()
                if done is not None:
                    yield done
            elif not ended:
                self._take(os.read(descriptor, CHUNK_BYTES))
                ended = self._line < 0
            ended = ended or self.failed is not None

    def _take(self, data: bytes) -> None:
        """Send the events of the whole lines that have arrived; no data is the end."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop() if data else b""
        number = self._line
        try:
            for line in lines:
                number += 1
                if line.strip():
                    self._add(number, len(line), *self._parse(line))
            if len(self._rest) > LINE_BYTES_MAX:
                number += 1
                raise WrongLine(f"longer than {LINE_BYTES_MAX} bytes")
        except WrongLine as error:
            self.failed = Failure(number, number, str(error), None)
        self._line = number if data else -1
        # A cut append would be another one than the whole, and could not be repeated.
        if not self._exported or (not data and self.failed is None):
            self._send()

    def _parse(self, line: bytes) -> tuple[str, Event, int | None]:
        if not self._exported:
            return (*parse_line(line), None)
        stream, event, version = parse_exported(line)
        return stream, event, version if self._checked else None

    def _add(self, number: int, size: int, stream: str, event: Event, version: int | None) -> None:
        """To the append of its neighbours, or to a new one. A line is never shorter than its event's size."""
        batch = self._open
        full = batch and (len(batch.events) >= self._events_max or batch.size + size > self._bytes_aim)
        if batch is None or batch.stream != stream or full or batch.next_version != version:
            self._send()
            expected = ANY if version is None else version - 1 if version else NO_STREAM
            batch = self._open = _Batch(stream, number, number, [], 0, expected, version)
        batch.events.append(event)
        batch.next_version = None if version is None else version + 1
        batch.last = number
        batch.size += size

    def _send(self) -> None:
        batch, self._open = self._open, None
        if batch is None or (self.failed is not None and self.failed.error is not None):
            return
        try:
            batch.future = self._client.append_nowait(batch.stream, batch.events, batch.expected)
        except TidelogError as error:
            self.failed = Failure(batch.first, batch.last, str(error), error)
            return
        self.sent_line = batch.last
        self._flying.append(batch)

    def _land(self) -> Acknowledged | None:
        """Wait for the oldest append."""
        batch = self._flying.popleft()
        assert batch.future is not None
        try:
            appended = batch.future.result()
        except TidelogError as error:
            if self.failed is None or self.failed.first > batch.first:
                self.failed = Failure(batch.first, batch.last, str(error), error)
            return None
        self.events += len(batch.events)
        self.appends += 1
        self.repeated += len(batch.events) * appended.duplicate
        self.last_position = appended.last_position
        return Acknowledged(batch.stream, appended)
