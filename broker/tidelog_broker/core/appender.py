"""The rules of append (spec §§3, 4): a request → staged batches and a reply, or a refusal that changes nothing. PURE.

The same requests in the same order with the same times make the same batches. One Appender holds what is staged for the
next group: the loop admits requests, writes `parts`, syncs, and then calls `commit` (or `rollback`). Nothing staged is in
the index before that; what a later request of the same group must know of it stands in `_versions` and the id window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgpack
from tidelog.batch import COLUMNS, CRC, EVENTS, HEADER, HEADER_BYTES, check_type, id_splitter, type_signature
from tidelog.errors import (
    AppendTooLarge,
    CorruptLog,
    DuplicateEventId,
    EventTooLarge,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    WrongExpectedVersion,
)
from tidelog.limits import (
    APPEND_BYTES_MAX,
    APPEND_EVENTS_MAX,
    EVENT_BYTES_MAX,
    EVENT_FIXED_BYTES,
    ID_WINDOW_EVENTS,
    INT_MAX,
    STREAM_BYTES_MAX,
)

from .base import KeptWrite, fingerprint
from .format import TRUNCATE_LOG, pack_control
from .idwindow import IdWindow
from .index import Index, Staged
from .unpack import SMALL_BYTES, unpack

DURABLE_FLAG, DUPLICATE_FLAG = 2, 1
Reply = tuple[Any, ...]
StoredAppend = Callable[[int], Sequence[KeptWrite]]
"""First batch's number → what a repeat of that durable append is compared with, read back from the log."""

Planned = tuple[str, bool | int | None, bytes | None, int, int]
"""A checked write: (stream, expected version, region, count of events, signature)."""

_join = b"".join
_unpack = msgpack.unpackb
_ONE_EVENT = b"\x94\xc4\x10"
"""How a region of one event begins: an array of four, the first a bin of 16 bytes."""
_NO_METADATA = (b"",)
_pack_header, _pack_crc = HEADER.pack, CRC.pack
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
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

    def __init__(
        self,
        index: Index,
        limits: AppendLimits,
        body_bytes_max: int,
        stored: StoredAppend,
        window: IdWindow | None = None,
    ) -> None:
        self.index = index
        self.limits = limits
        self.window = window or IdWindow(limits.id_window_events)
        self.body_bytes_max = body_bytes_max
        self.parts: list[bytes] = []
        self.staged: list[Staged] = []
        self.bytes = 0
        self.position = index.head
        self._stored = stored
        self._number = index.stop
        self._versions: dict[str, int] = {}
        self._appends: list[tuple[dict[bytes, int], int]] = []
        self._truncations: list[int] = []
        self._types: dict[str, tuple[int, int]] = {}
        self._plain_bytes_max = min(limits.event_bytes_max, limits.append_bytes_max)

    # -- one request

    def admit_plain(self, request: tuple[Any, ...], now: int, generation: int) -> Reply | None:
        """The plainest append (one event of a known type to a known stream, first sent, nothing to refuse) → its reply.

        None for every other, which `admit` then takes. In half its time it decides nothing of its own: a test compares the
        two. The reply shares the fate of the group being staged.
        """
        try:
            _, request_id, _, resend_head, durability, session, cursor, ((name, expected, region),) = request
            if not region.startswith(_ONE_EVENT) or len(region) > SMALL_BYTES:
                return None
            event_id, kind, metadata, payloads = _unpack(region, use_list=False)
            if metadata is None:
                metadata = _NO_METADATA
            (payload,), (extra,) = payloads, metadata
            type_bytes, signature = self._types[kind]
            stream = self.index.streams.get(name) or self.index.find(name)
        except Exception:
            return None
        window = self.window
        if stream is None:
            return None
        version = self._versions.get(name, stream.next_version)
        size = len(region) + len(name) * 4 + HEADER_BYTES + 4
        if (
            type(event_id) is not bytes
            or type(payloads) is not tuple  # a map of one would have unpacked too
            or type(metadata) is not tuple
            or type(payload) is not bytes
            or type(extra) is not bytes
            or resend_head is not None
            or durability != 0
            or session is not None
            or cursor is not None
            or not (expected is None or (type(expected) is int and 0 <= expected == version - 1))
            or len(payload) + len(extra) + type_bytes + EVENT_FIXED_BYTES > self._plain_bytes_max
            or event_id in window.young
            or event_id in window.old
            or self.bytes + size > self.body_bytes_max
        ):
            return None
        position = self.position
        new = {event_id: self._number}
        self._put(name, region, 1, signature, version, now, 0, 1)
        window.young.update(new)
        self._appends.append((new, position))
        return request_id, 0, DURABLE_FLAG, generation, position, position, version, version

    def admit(self, request: tuple[Any, ...], now: int, generation: int) -> tuple[Reply, bool]:
        """Stage an APPEND request (PROTOCOL.md §5) → (reply, whether it shares the fate of the group being staged).

        `now` in µs, never less than in an earlier call. Raises the refusal, its `maybe_applied` False but for
        OutcomeUnknown; GroupFull when this request belongs into the next group.
        """
        try:
            _, request_id, _, resend_head, durability, session, cursor, writes = request
        except ValueError:
            raise InvalidArgument("an append has eight parts") from None
        if durability != 0 or session is not None or cursor is not None:
            raise InvalidArgument("accepted durability, sessions and cursors are not built in this version")
        if type(writes) is not tuple or not writes:
            raise InvalidArgument("an append has at least one write")
        if resend_head is not None:
            self._check_resend(resend_head)
        plan, ids = self._plan(writes)
        number = self._number
        if len(ids) == 1:
            new = {ids[0]: number}
        else:
            new = dict.fromkeys(ids, number)
            if len(new) != len(ids):
                raise InvalidArgument("an event id stands twice in one request")
        window = self.window
        if not (window.young.keys().isdisjoint(new) and window.old.keys().isdisjoint(new)):
            places, pending = self._duplicate(plan, ids)
            return (request_id, 0, DUPLICATE_FLAG | DURABLE_FLAG, generation, *places), pending
        if resend_head is not None and resend_head < window.begins:
            raise OutcomeUnknown(
                f"the window of known event ids begins at position {window.begins}, behind the {resend_head} that the "
                "client knew when it first sent this"
            )
        first_position = self.position
        if len(plan) == 1:
            name, expected, region, count, signature = plan[0]
            first = self._next_version(name, expected)
            self._check_room(plan)
            self._put(name, region, count, signature, first, now, 0, 1)
            reply = (
                request_id, 0, DURABLE_FLAG, generation, first_position, self.position - 1, first, first + count - 1
            )  # fmt: skip
        else:
            reply = (request_id, 0, DURABLE_FLAG, generation, *self._stage(plan, now))
        window.young.update(new)
        self._appends.append((new, first_position))
        return reply, True

    def truncate(self, request: tuple[Any, ...], now: int) -> tuple[Reply, bool]:
        """Stage a TRUNCATE request (PROTOCOL.md §4) → (reply, whether it shares the fate of the group being staged).

        Rounded down to where an append begins. Raises InvalidArgument behind the head, GroupFull.
        """
        if len(request) != 4 or type(request[3]) is not int or not 0 <= request[3] <= INT_MAX:
            raise InvalidArgument("a truncation names a position")
        _, request_id, _, position = request
        index = self.index
        if position > index.head:
            raise InvalidArgument(f"position {position} is behind the head, {index.head}: nothing was truncated")
        if index.first_position < position < index.head:
            rows = index.rows_at(position)
            position = rows.positions[rows.append_start(rows.at_position(position))]
        first = max(self._truncations, default=index.first_position)
        if position <= first:
            return (request_id, 0, first), bool(self._truncations)
        head, region, crc = pack_control(TRUNCATE_LOG, [position], now)
        length = len(head) + len(region) + len(crc)
        if self.bytes + length > self.body_bytes_max:
            raise GroupFull
        self.parts += (head, region, crc)
        self.staged.append(("", 0, 0, 0, length, True, False))
        self.bytes += length
        self._truncations.append(position)
        return (request_id, 0, position), True

    @staticmethod
    def _check_resend(resend_head: Any) -> None:
        if type(resend_head) is not int or not 0 <= resend_head <= INT_MAX:
            raise InvalidArgument("resend head is nil or a position")

    def _plan(self, writes: Any) -> tuple[list[Planned], tuple[bytes, ...]]:
        """The writes, their shape and limits checked, and the ids of all their events."""
        streams = self.index.streams
        plan: list[Planned] = []
        count = size = 0
        ids = b""
        for write in writes:
            if type(write) is not tuple or len(write) != 3:
                raise InvalidArgument("a write is [stream, expected version, events]")
            stream, expected, region = write
            if type(stream) is not str or stream not in streams:
                check_stream(stream)
            if type(expected) is int:
                if not 0 <= expected <= INT_MAX:
                    raise InvalidArgument("an expected version is at least 0 and below 2^63")
            elif expected is not None and type(expected) is not bool:
                raise InvalidArgument("an expected version is nil, false, true or an integer")
            if region is None:
                plan.append((stream, expected, None, 0, 0))
                continue
            if type(region) is not bytes:
                raise InvalidArgument("the events of a write are bin, or nil")
            events, event_bytes, signature, event_ids = self._events(region)
            plan.append((stream, expected, region, events, signature))
            count += events
            size += event_bytes
            ids = ids + event_ids if ids else event_ids
        if not count:
            raise InvalidArgument("an append has at least one event")
        if len(plan) > 1 and len({row[0] for row in plan}) != len(plan):
            raise InvalidArgument("a stream stands at most once in an append")
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
        return plan, (ids,) if count == 1 else id_splitter(count).unpack(ids)

    def _events(self, region: bytes) -> tuple[int, int, int, bytes]:
        """Check a region's events → (count, sum of event sizes, signature, ids). Per event only C code runs."""
        try:
            ids, types, metadata, payloads = unpack(region)
            count = len(payloads)
            if type(ids) is not bytes or len(ids) != 16 * count or type(payloads) is not tuple or not count:
                raise InvalidArgument("ids are 16 bytes an event, payloads an array")
            # join takes nothing but bytes here, so it checks every type and sums in one call. Sums stand in for the
            # largest sizes: only where they are too much, each event is measured.
            total = len(_join(payloads)) if count != 1 else len(_bytes(payloads[0]))
            if metadata is not None:
                if type(metadata) is not tuple or len(metadata) != count:
                    raise InvalidArgument("metadata is nil or one bin an event")
                total += len(_join(metadata))
            largest = total
            if type(types) is str:
                size, signature = self._types.get(types) or self._learn_type(types)
                total += size * count
                largest += size
            else:
                if type(types) is not tuple or len(types) != count or set(map(type, types)) != {str}:
                    raise InvalidArgument("types are one str, or one an event")
                known = {name: self._types.get(name) or self._learn_type(name) for name in set(types)}
                total += sum([known[name][0] for name in types])
                largest = total
                signature = 0
                for _, bit in known.values():
                    signature |= bit
        except InvalidArgument:
            raise
        except Exception:
            # Hostile bytes end here whatever msgpack made of them; their repr is never logged.
            raise InvalidArgument("the events of a write are not four columns (FORMAT.md 3.1)") from None
        if largest + EVENT_FIXED_BYTES > self.limits.event_bytes_max:
            self._check_each(types, metadata, payloads)
        return count, total + EVENT_FIXED_BYTES * count, signature, ids

    def _learn_type(self, name: str) -> tuple[int, int]:
        """(bytes, signature) of a type not seen lately. Raises InvalidArgument."""
        known = check_type(name), type_signature(name)
        if len(self._types) >= _TYPES_KNOWN_MAX:
            self._types.clear()
        self._types[name] = known
        return known

    def _check_each(self, types: Any, metadata: Any, payloads: tuple[bytes, ...]) -> None:
        for place, payload in enumerate(payloads):
            name = types if type(types) is str else types[place]
            size = EVENT_FIXED_BYTES + len(name.encode()) + len(payload) + (len(metadata[place]) if metadata else 0)
            if size > self.limits.event_bytes_max:
                limit = self.limits.event_bytes_max
                raise EventTooLarge(f"event {place} has {size} bytes, the limit is {limit}", size, limit)

    def _next_version(self, name: str, expected: Any) -> int:
        """The version that the stream's next event gets. Raises WrongExpectedVersion."""
        pending = self._versions.get(name)
        if pending is not None:
            version, deleted = pending, False
        else:
            stream = self.index.find(name)
            version, deleted = (stream.next_version, stream.deleted) if stream is not None else (0, False)
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
        raise _wrong_version(name, expected, version, deleted, shares_fate=pending is not None)

    def _stage(self, plan: list[Planned], now: int) -> list[int | None]:
        """Several writes: all versions are checked, then all batches made → the reply's four places per write."""
        firsts = [self._next_version(row[0], row[1]) for row in plan]
        self._check_room(plan)
        total = sum(row[2] is not None for row in plan)
        places: list[int | None] = []
        index = 0
        for (name, _, region, count, signature), first in zip(plan, firsts, strict=True):
            if region is None:
                places += (None, None, None, None)
                continue
            places += (self.position, self.position + count - 1, first, first + count - 1)
            self._put(name, region, count, signature, first, now, index, total)
            index += 1
        return places

    def _put(
        self, name: str, region: Any, count: int, signature: int, first: int, now: int, index: int, total: int
    ) -> None:
        """Stage one batch (FORMAT.md §3): number `index` of the `total` of its append."""
        encoded = name.encode()
        length = HEADER_BYTES + len(encoded) + len(region) + 4
        header = _pack_header(
            EVENTS,
            0,
            len(encoded),
            COLUMNS,
            length,
            index,
            total,
            count,
            len(region),
            self.position,
            first,
            now,
            signature,
        )
        head = header + encoded
        self.parts += (head, region, _pack_crc(crc32(region, crc32(head))))
        self.staged.append((name, count, first, signature, length, index == 0, False))
        self._versions[name] = first + count
        self.position += count
        self.bytes += length
        self._number += 1

    def _check_room(self, plan: list[Planned]) -> None:
        """Raises GroupFull, or AppendTooLarge when no group could hold it."""
        free = self.body_bytes_max - self.bytes
        for name, _, region, _, _ in plan:
            if region is not None:
                # Up to four bytes a character: only where that is too much, the names are measured.
                free -= len(region) + 4 * len(name) + HEADER_BYTES + 4
        if free >= 0:
            return
        size = sum(len(row[2]) + len(row[0].encode()) + HEADER_BYTES + 4 for row in plan if row[2] is not None)
        if size > self.body_bytes_max:
            limit = self.body_bytes_max
            raise AppendTooLarge(f"the append takes {size} bytes in the log, a group holds {limit}", size, limit)
        if self.bytes + size > self.body_bytes_max:
            raise GroupFull

    # -- known ids

    def _duplicate(self, plan: list[Planned], ids: tuple[bytes, ...]) -> tuple[list[Any], bool]:
        """The original's places, if the request is one whole known append; else DuplicateEventId."""
        numbers = {self.window.get(event_id) for event_id in ids}
        first_pending = self.index.stop
        shares_fate = any(number is not None and number >= first_pending for number in numbers)
        number = numbers.pop()
        pending = number is not None and number >= first_pending
        if not numbers and number is not None:
            try:
                original: Sequence[KeptWrite] = self._pending(number) if pending else self._stored(number)
            except (CorruptLog, Overloaded) as damage:
                raise OutcomeUnknown(
                    f"these ids are in the log, but what they came with can't be read: {damage}"
                ) from None
            writes = [(row[0], fingerprint(row[2])) for row in plan if row[2] is not None]
            if [(row.stream, row.digest) for row in original] == writes:
                rows = iter(original)
                places: list[Any] = []
                for _, _, region, count, _ in plan:
                    if region is None:
                        places += (None, None, None, None)
                        continue
                    _, position, version, _, _ = next(rows)
                    places += (position, position + count - 1, version, version + count - 1)
                return places, pending
        error = DuplicateEventId("an event id is known from another append; nothing was written")
        error.shares_fate = shares_fate
        raise error

    def _pending(self, number: int) -> list[KeptWrite]:
        """A staged append's batches."""
        wanted = number - self.index.stop
        rows: list[KeptWrite] = []
        position = self.index.head
        for place, (name, events, version, _, _, starts, _) in enumerate(self.staged):
            if rows and starts:
                break
            if events:
                if wanted <= 0:
                    rows.append(KeptWrite(name, position, version, events, fingerprint(self.parts[3 * place + 1])))
                wanted -= 1
                position += events
        return rows

    # -- the group's end

    def commit(self, ordinal: int, offset: int) -> None:
        """The staged group is durable: index, head and id window advance."""
        self.index.apply(ordinal, offset, self.staged)
        for position in self._truncations:
            self.index.truncate(position)
        self.window.commit(self._appends)
        self._clear()

    def rollback(self) -> None:
        """The staged group is not in the log: forget it."""
        self.window.rollback(self._appends)
        self._clear()

    def _clear(self) -> None:
        self.parts = []
        self.staged = []
        self.bytes = 0
        self.position = self.index.head
        self._number = self.index.stop
        self._versions.clear()
        self._appends.clear()
        self._truncations.clear()


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise InvalidArgument("a payload is bin")
    return value


def _wrong_version(
    name: str, expected: bool | int, version: int, deleted: bool, *, shares_fate: bool
) -> WrongExpectedVersion:
    actual = version - 1 if version else None
    wanted = f"version {expected}" if type(expected) is int else "a stream that exists" if expected else "no stream"
    found = "has no event" if actual is None else f"is at version {actual}{' and deleted' if deleted else ''}"
    error = WrongExpectedVersion(f"stream {name!r} {found}, expected {wanted}", name, expected, actual, deleted)
    error.shares_fate = shares_fate
    return error
