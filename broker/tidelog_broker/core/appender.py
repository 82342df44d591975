"""The rules of append (spec §§3, 4): a request → staged batches and a reply, or a refusal that changes nothing. PURE.

The same requests in the same order with the same times make the same batches. One Appender holds what is staged for the
next group: the loop admits requests, writes `parts`, syncs, and then calls `commit` (or `rollback`). Nothing staged is in
the index before that; what a later request of the same group must know of it stands in `_versions` and `_ids`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgpack
from tidelog.batch import COLUMNS, CRC, EVENTS, HEADER, HEADER_BYTES, Batch, check_type, id_splitter, type_signature
from tidelog.errors import (
    AppendTooLarge,
    DuplicateEventId,
    EventTooLarge,
    InvalidArgument,
    OutcomeUnknown,
    WrongExpectedVersion,
)
from tidelog.limits import (
    APPEND_BYTES_MAX,
    APPEND_EVENTS_CEILING,
    APPEND_EVENTS_MAX,
    EVENT_BYTES_MAX,
    EVENT_FIXED_BYTES,
    ID_WINDOW_EVENTS,
    INT_MAX,
    STREAM_BYTES_MAX,
)

from .idwindow import IdWindow
from .index import Index, Staged

DURABLE_FLAG, DUPLICATE_FLAG = 2, 1
Reply = tuple[Any, ...]
StoredAppend = Callable[[int], list[Batch]]
"""First batch's number → the batches of a durable append, read back from the log."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SMALL_REGION = 64 << 10
_TYPES_KNOWN_MAX = 65_536


class GroupFull(Exception):
    """The append does not fit into the group being staged: commit that, then admit it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLimits:
    """Settings for new requests; bytes are event sizes."""

    event_bytes_max: int = EVENT_BYTES_MAX
    append_events_max: int = APPEND_EVENTS_MAX
    append_bytes_max: int = APPEND_BYTES_MAX
    id_window_events: int = ID_WINDOW_EVENTS


def check_stream(name: object) -> bytes:
    """The UTF-8 bytes of a stream's name. Raises InvalidArgument."""
    if type(name) is not str:
        raise InvalidArgument("a stream name is a str")
    data = name.encode()
    if not 1 <= len(data) <= STREAM_BYTES_MAX:
        raise InvalidArgument(f"a stream name has 1 to {STREAM_BYTES_MAX} bytes, this one {len(data)}")
    if _CONTROL_CHARACTER.search(name):
        raise InvalidArgument("a stream name has no control characters")
    return data


class Appender:
    """Admits appends; what it has staged is one group to be."""

    def __init__(self, index: Index, limits: AppendLimits, body_bytes_max: int, stored: StoredAppend) -> None:
        self.index = index
        self.limits = limits
        self.window = IdWindow(limits.id_window_events)
        self.body_bytes_max = body_bytes_max
        self.parts: list[bytes] = []
        self.staged: list[Staged] = []
        self.bytes = 0
        self.position = index.head
        self._stored = stored
        self._number = len(index.positions)
        self._versions: dict[str, int] = {}
        self._ids: dict[bytes, int] = {}
        self._appends: list[tuple[dict[bytes, int], int]] = []
        self._types: dict[str, int] = {}

    # -- one request

    def admit(self, request: tuple[Any, ...], now: int, generation: int) -> tuple[Reply, bool]:
        """Stage an APPEND request (PROTOCOL.md §5) → (reply, whether it shares the fate of the group being staged).

        `now` in µs, never less than in an earlier call. Raises the refusal, its `maybe_applied` False but for
        OutcomeUnknown; GroupFull when this request belongs into the next group.
        """
        writes, resend_head, request_id = self._shape(request)
        plan = [self._write_shape(write) for write in writes]
        ids = self._totals(plan)
        number = self._number
        new = dict.fromkeys(ids, number)
        if len(new) != len(ids):
            raise InvalidArgument("an event id stands twice in one request")
        if not (self.window.is_disjoint(new) and self._ids.keys().isdisjoint(new)):
            places, pending = self._duplicate(plan, ids)
            return (request_id, 0, DUPLICATE_FLAG | DURABLE_FLAG, generation, *places), pending
        if resend_head is not None and resend_head < self.window.begins:
            raise OutcomeUnknown(
                f"the window of known event ids begins at position {self.window.begins}, behind the {resend_head} that the "
                "client knew when it first sent this"
            )
        firsts = [self._expected(name, expected) for name, expected, _, _ in plan]
        reply: list[Any] = [request_id, 0, DURABLE_FLAG, generation]
        self._stage(plan, firsts, now, reply)
        self._ids.update(new)
        self._appends.append((new, reply[4] if len(plan) == 1 else self._first_of(reply)))
        return tuple(reply), True

    @staticmethod
    def _first_of(reply: list[Any]) -> int:
        return next(position for position in reply[4::4] if position is not None)

    def _shape(self, request: tuple[Any, ...]) -> tuple[tuple[Any, ...], int | None, Any]:
        try:
            _, request_id, _, resend_head, durability, session, cursor, writes = request
        except ValueError:
            raise InvalidArgument("an append has eight parts") from None
        if durability != 0 or session is not None or cursor is not None:
            raise InvalidArgument("accepted durability, sessions and cursors are not built in this version")
        if type(writes) is not tuple or not writes:
            raise InvalidArgument("an append has at least one write")
        if resend_head is not None and (type(resend_head) is not int or not 0 <= resend_head <= INT_MAX):
            raise InvalidArgument("resend head is nil or a position")
        if len(writes) > 1 and len({write[0] for write in writes if type(write) is tuple and write}) != len(writes):
            raise InvalidArgument("a stream stands at most once in an append")
        return writes, resend_head, request_id

    def _write_shape(self, write: Any) -> tuple[str, Any, bytes | None, Any]:
        """(stream, expected, region, (events, event bytes, signature, ids)) of one write, each event checked."""
        if type(write) is not tuple or len(write) != 3:
            raise InvalidArgument("a write is [stream, expected version, events]")
        stream, expected, region = write
        if type(stream) is not str or stream not in self.index.streams:
            check_stream(stream)
        if not (expected is None or expected is True or expected is False) and not (
            type(expected) is int and 0 <= expected <= INT_MAX
        ):
            raise InvalidArgument("an expected version is nil, false, true or an integer from 0 to 2^63-1")
        if region is None:
            return stream, expected, None, None
        if type(region) is not bytes:
            raise InvalidArgument("the events of a write are bin, or nil")
        return stream, expected, region, self._events(region)

    def _events(self, region: bytes) -> tuple[int, int, int, bytes]:
        """Check a region's events → (count, sum of event sizes, signature, ids). Per event only C code runs."""
        try:
            ids, types, metadata, payloads = unpack_region(region)
            count = len(payloads)
            if type(ids) is not bytes or len(ids) != 16 * count or type(payloads) is not tuple:
                raise InvalidArgument("ids are 16 bytes an event, payloads an array")
            if count == 1:
                payload = payloads[0]
                if type(payload) is not bytes:
                    raise InvalidArgument("a payload is bin")
                total = largest = len(payload)
            else:
                if set(map(type, payloads)) != {bytes}:
                    raise InvalidArgument("payloads are bin, at least one")
                sizes = list(map(len, payloads))
                total, largest = sum(sizes), max(sizes)
            if metadata is not None:
                if type(metadata) is not tuple or len(metadata) != count or set(map(type, metadata)) != {bytes}:
                    raise InvalidArgument("metadata is nil or one bin an event")
                sizes = list(map(len, metadata))
                total += sum(sizes)
                largest += max(sizes)
            if type(types) is str:
                size = self._types.get(types) or self._learn_type(types)
                total += size * count
                largest += size
                signature = type_signature(types)
            else:
                if type(types) is not tuple or len(types) != count or set(map(type, types)) != {str}:
                    raise InvalidArgument("types are one str, or one an event")
                known = {name: self._types.get(name) or self._learn_type(name) for name in set(types)}
                sizes = [known[name] for name in types]
                total += sum(sizes)
                largest += max(sizes)
                signature = 0
                for name in known:
                    signature |= type_signature(name)
        except InvalidArgument:
            raise
        except Exception:
            # Hostile bytes end here whatever msgpack made of them; their repr is never logged.
            raise InvalidArgument("the events of a write are not four columns (FORMAT.md 3.1)") from None
        if largest + EVENT_FIXED_BYTES > self.limits.event_bytes_max:
            # `largest` adds the greatest of each column, which need not be one event's: now exactly.
            self._check_each(types, metadata, payloads)
        return count, total + EVENT_FIXED_BYTES * count, signature, ids

    def _learn_type(self, name: str) -> int:
        size = check_type(name)
        if len(self._types) >= _TYPES_KNOWN_MAX:
            self._types.clear()
        self._types[name] = size
        return size

    def _check_each(self, types: Any, metadata: Any, payloads: tuple[bytes, ...]) -> None:
        for place, payload in enumerate(payloads):
            name = types if type(types) is str else types[place]
            size = EVENT_FIXED_BYTES + len(name.encode()) + len(payload) + (len(metadata[place]) if metadata else 0)
            if size > self.limits.event_bytes_max:
                limit = self.limits.event_bytes_max
                raise EventTooLarge(f"event {place} has {size} bytes, the limit is {limit}", size, limit)

    def _totals(self, plan: list[tuple[str, Any, bytes | None, Any]]) -> tuple[bytes, ...]:
        """All ids of the request, its sums checked."""
        if len(plan) == 1:
            events = plan[0][3]
            if events is None:
                raise InvalidArgument("an append has at least one event")
            count, size, _, ids = events
        else:
            parts = [events for _, _, _, events in plan if events is not None]
            if not parts:
                raise InvalidArgument("an append has at least one event")
            count = sum(part[0] for part in parts)
            size = sum(part[1] for part in parts)
            ids = b"".join([part[3] for part in parts])
        limits = self.limits
        if count > limits.append_events_max:
            raise AppendTooLarge(
                f"{count} events in an append, the limit is {limits.append_events_max}", count, limits.append_events_max
            )
        if size > limits.append_bytes_max:
            raise AppendTooLarge(
                f"{size} bytes of events in an append, the limit is {limits.append_bytes_max}",
                size,
                limits.append_bytes_max,
            )
        return (ids,) if count == 1 else id_splitter(count).unpack(ids)

    def _expected(self, name: str, expected: Any) -> int:
        """The version that the stream's next event gets. Raises WrongExpectedVersion."""
        pending = self._versions.get(name)
        stream = self.index.streams.get(name)
        if pending is not None:
            version, deleted = pending, False
        elif stream is not None:
            version, deleted = stream.next_version, stream.deleted
        else:
            version, deleted = 0, False
        if expected is None:
            return version
        if expected is True:
            passes = version > 0 and not deleted
        elif expected is False:
            passes = version == 0 or deleted
        else:
            passes = version == expected + 1
        if passes:
            return version
        actual = version - 1 if version else None
        error = WrongExpectedVersion(
            f"stream {name!r} is at {'no version' if actual is None else f'version {actual}'}"
            f"{' (deleted)' if deleted else ''}, expected {_expected_text(expected)}",
            name, expected, actual, deleted,
        )  # fmt: skip
        if pending is not None:
            error.shares_fate = True  # type: ignore[attr-defined]
        raise error

    def _stage(self, plan: list[Any], firsts: list[int], now: int, reply: list[Any]) -> None:
        """Make the batches. Raises GroupFull before anything is changed."""
        rows = [(row, first) for row, first in zip(plan, firsts, strict=True) if row[2] is not None]
        total = len(rows)
        sizes = HEADER_BYTES + 4
        names = [row[0].encode() for row, _ in rows]
        size = sum([len(name) + len(row[2]) + sizes for name, (row, _) in zip(names, rows, strict=True)])
        if self.bytes + size > self.body_bytes_max:
            if size > self.body_bytes_max:
                limit = self.body_bytes_max
                raise AppendTooLarge(f"the append takes {size} bytes in the log, a group holds {limit}", size, limit)
            raise GroupFull
        position = self.position
        place = 0
        for (name, _, region, events), first in zip(plan, firsts, strict=True):
            if region is None:
                reply += (None, None, None, None)
                continue
            count, _, signature, _ = events
            encoded = names[place]
            length = HEADER_BYTES + len(encoded) + len(region) + 4
            head = (
                HEADER.pack(
                    EVENTS, 0, len(encoded), COLUMNS, length, place, total, count, len(region), position, first, now, signature
                )
                + encoded
            )  # fmt: skip
            self.parts += (head, region, CRC.pack(crc32(region, crc32(head))))
            self.staged.append(Staged(name, count, first, signature, length, place == 0, False))
            self._versions[name] = first + count
            reply += (position, position + count - 1, first, first + count - 1)
            position += count
            place += 1
        self.position = position
        self.bytes += size
        self._number += total

    # -- known ids

    def _duplicate(self, plan: list[Any], ids: tuple[bytes, ...]) -> tuple[list[Any], bool]:
        """The original's places, if the request is one whole known append; else DuplicateEventId."""
        numbers = {self._ids.get(event_id, self.window.get(event_id)) for event_id in ids}
        number = numbers.pop()
        pending = number is not None and number >= len(self.index.positions)
        if not numbers and number is not None:
            original = self._pending(number) if pending else [_row(batch) for batch in self._stored(number)]
            writes = [(name, region) for name, _, region, _ in plan if region is not None]
            if [(name, region) for name, region, _, _ in original] == writes:
                rows = iter(original)
                places: list[Any] = []
                for _, _, region, events in plan:
                    if region is None:
                        places += (None, None, None, None)
                        continue
                    _, _, position, version = next(rows)
                    count = events[0]
                    places += (position, position + count - 1, version, version + count - 1)
                return places, pending
        error = DuplicateEventId("an event id is known from another append; nothing was written")
        if any(event_id in self._ids for event_id in ids):
            error.shares_fate = True  # type: ignore[attr-defined]
        raise error

    def _pending(self, number: int) -> list[tuple[str, bytes, int, int]]:
        """(stream, region, first position, first version) of a staged append's batches."""
        at = number - len(self.index.positions)
        rows = []
        position = self.index.head + sum(row.events for row in self.staged[:at])
        for place in range(at, len(self.staged)):
            row = self.staged[place]
            if rows and row.starts:
                break
            rows.append((row.stream, self.parts[3 * place + 1], position, row.first_version))
            position += row.events
        return rows

    # -- the group's end

    def commit(self, ordinal: int, offset: int) -> None:
        """The staged group is durable: index, head and id window advance."""
        self.index.apply(ordinal, offset, self.staged)
        add = self.window.add
        for ids, first_position in self._appends:
            add(ids, first_position)
        self._clear()

    def rollback(self) -> None:
        """The staged group is not in the log: forget it."""
        self._clear()

    def _clear(self) -> None:
        self.parts = []
        self.staged = []
        self.bytes = 0
        self.position = self.index.head
        self._number = len(self.index.positions)
        self._versions.clear()
        self._ids.clear()
        self._appends.clear()

    def restore_ids(self, number: int, batches: list[Batch]) -> None:
        """Start: a durable append's ids come back into the window, appends in log order."""
        ids: dict[bytes, int] = {}
        for batch in batches:
            column = unpack_region(batch.region)[0]
            ids.update(dict.fromkeys(id_splitter(batch.events).unpack(column), number))
        self.window.add(ids, batches[0].first_position)


def _row(batch: Batch) -> tuple[str, bytes, int, int]:
    return batch.stream, batch.region, batch.first_position, batch.first_version


def _expected_text(expected: Any) -> str:
    return {True: "a stream that exists", False: "no stream"}.get(expected, f"version {expected}") if isinstance(
        expected, bool
    ) else f"version {expected}"  # fmt: skip


def unpack_region(region: bytes) -> Any:
    """msgpack of an events region, tuples for arrays.

    A large one is watched while it is unpacked: nested or endless arrays would otherwise grow 30-fold in memory.
    """
    if len(region) <= _SMALL_REGION:
        return msgpack.unpackb(region, use_list=False, object_pairs_hook=_no_maps)
    room = 4 * APPEND_EVENTS_CEILING

    def count(array: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal room
        room -= len(array) + 64
        if room < 0:
            raise InvalidArgument("too many elements")
        return array

    return msgpack.unpackb(
        region, use_list=False, list_hook=count, object_pairs_hook=_no_maps, max_array_len=APPEND_EVENTS_CEILING
    )


def _no_maps(pairs: Any) -> Any:
    raise InvalidArgument("requests hold no maps")
