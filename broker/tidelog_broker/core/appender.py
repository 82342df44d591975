"""The rules of append (spec §§3, 4, 5): a request → staged batches and a reply, or a refusal that changes nothing. PURE.

The same requests in the same order with the same times make the same batches. One Appender holds what is staged for the
next group (staged.py): the loop admits requests, writes `parts`, syncs, and then calls `commit` (or `rollback`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from tidelog.batch import HEADER_BYTES, SESSION_TAIL
from tidelog.errors import (
    AppendTooLarge,
    CorruptLog,
    DuplicateEventId,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    WrongExpectedVersion,
)
from tidelog.limits import EVENT_FIXED_BYTES, INT_MAX

from .base import KeptWrite, fingerprint
from .cursors import Move
from .format import SESSION, TRUNCATE_LOG
from .index import Index
from .known import Known
from .sessions import Session
from .staged import GroupFull, Staging
from .unpack import SMALL_BYTES
from .writes import AppendLimits, Planned, WriteChecks

__all__ = ["AppendLimits", "Appender", "GroupFull"]

DURABLE_FLAG, DUPLICATE_FLAG = 2, 1
Reply = tuple[Any, ...]
StoredAppend = Callable[[int], Sequence[KeptWrite]]
"""First batch's number → what a repeat of that durable append is compared with, read back from the log."""
CONTROL_BYTES_MAX = 1_024
"""A cursor's batch is no longer."""

_unpack = msgpack.unpackb
_pack_tail = SESSION_TAIL.pack
_ONE_EVENT = b"\x94\xc4\x10"
"""How a region of one event begins: an array of four, the first a bin of 16 bytes."""
_NO_METADATA = (b"",)


class Appender(Staging):
    """Admits appends; what it has staged is one group to be."""

    def __init__(
        self, index: Index, limits: AppendLimits, body_bytes_max: int, stored: StoredAppend, known: Known | None = None
    ) -> None:
        super().__init__(index, known or Known.nothing(limits.id_window_events), body_bytes_max)
        self.limits = limits
        self._stored = stored
        self._checks = WriteChecks(limits)
        self._types = self._checks.types
        self._plain_bytes_max = min(limits.event_bytes_max, limits.append_bytes_max)

    # -- one request

    def admit_plain(self, request: tuple[Any, ...], now: int, generation: int) -> Reply | None:
        """The plainest append (one event of a known type to a known stream, first sent, nothing to refuse) → its reply.

        None for every other, which `admit` then takes. In half its time it decides nothing of its own: a test compares the
        two. The reply shares the fate of the group being staged, unless its flags say that it is only accepted.
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
            stored = b""
            if session is not None:
                owner, epoch, serial = session
                owner = self.sessions.by_name[owner]
                if (
                    type(serial) is not int
                    or type(epoch) is not int
                    or (epoch, serial) != (owner.epoch, owner.last + 1)
                ):
                    return None
                stored = owner.stored(serial)
        except Exception:
            return None
        window = self.window
        if stream is None:
            return None
        version = self.versions.get(name, stream.next_version)
        size = len(region) + len(name) * 4 + len(stored) + HEADER_BYTES + 4
        if (
            type(event_id) is not bytes
            or type(payloads) is not tuple  # a map of one would have unpacked too
            or type(metadata) is not tuple
            or type(payload) is not bytes
            or type(extra) is not bytes
            or resend_head is not None
            or type(durability) is not int
            or not 0 <= durability <= 1
            or cursor is not None
            or not (expected is None or (type(expected) is int and 0 <= expected == version - 1))
            or len(payload) + len(extra) + type_bytes + EVENT_FIXED_BYTES > self._plain_bytes_max
            or event_id in window.young
            or event_id in window.old
            or self.bytes + size > self.body_bytes_max
        ):
            return None
        position = self.position
        new = {event_id: self.number}
        if stored:
            owner.last = serial
            self.sessions.steps.append((owner, self.number))
        self.put(name, region, 1, signature, version, now, 0, 1, stored)
        window.young.update(new)
        self.appends.append((new, position))
        flags = DURABLE_FLAG
        if durability:
            flags, self.accepted = 0, True
        return request_id, 0, flags, generation, position, position, version, version

    def admit(self, request: tuple[Any, ...], now: int, generation: int) -> tuple[Reply, bool]:
        """Stage an APPEND request (PROTOCOL.md §5) → (reply, whether it shares the fate of the group being staged).

        `now` in µs, never less than in an earlier call. Raises the refusal, its `maybe_applied` False but for
        OutcomeUnknown; GroupFull when this request belongs into the next group.
        """
        try:
            _, request_id, _, resend_head, durability, session, cursor, writes = request
        except ValueError:
            raise InvalidArgument("an append has eight parts") from None
        if type(durability) is not int or not 0 <= durability <= 1:
            raise InvalidArgument("durability is 0 durable or 1 accepted")
        if type(writes) is not tuple or not writes:
            raise InvalidArgument("an append has at least one write")
        if resend_head is not None:
            self._check_resend(resend_head)
        asked = None if cursor is None else self.cursors.check(cursor)
        plan, ids = self._checks.plan(writes, self.index.streams)
        number = self.number
        if len(ids) == 1:
            new = {ids[0]: number}
        else:
            new = dict.fromkeys(ids, number)
            if len(new) != len(ids):
                raise InvalidArgument("an event id stands twice in one request")
        owner, serial = (None, 0) if session is None else self.sessions.find(session)
        if owner is not None:
            if serial <= owner.last:
                return self._again(request_id, generation, durability, *self._repeat(owner, serial, plan))
            if serial > owner.last + 1:
                raise self.sessions.gap(owner, serial)
        window = self.window
        if not (window.young.keys().isdisjoint(new) and window.old.keys().isdisjoint(new)):
            if owner is not None:
                raise self._known_elsewhere(ids)
            return self._again(request_id, generation, durability, *self._duplicate(plan, ids))
        if resend_head is not None and owner is None and resend_head < window.begins:
            raise OutcomeUnknown(
                f"the window of known event ids begins at position {window.begins}, behind the {resend_head} that the "
                "client knew when it first sent this"
            )
        first_position = self.position
        firsts = [self._next_version(row[0], row[1]) for row in plan]
        move = None if asked is None else self.cursors.move(asked)
        stored = b"" if owner is None else owner.stored(serial)
        self._check_room(plan, len(stored) * len(plan) + (CONTROL_BYTES_MAX if move else 0))
        places = self._stage(plan, firsts, now, stored, move)
        if owner is not None:
            self.sessions.stage(owner, number)
        window.young.update(new)
        self.appends.append((new, first_position))
        if durability:
            self.accepted = True
            return (request_id, 0, 0, generation, *places), False
        return (request_id, 0, DURABLE_FLAG, generation, *places), True

    @staticmethod
    def _again(
        request_id: int, generation: int, durability: int, places: list[int | None], pending: bool
    ) -> tuple[Reply, bool]:
        """The answer to a repeat, which is as durable as the original; whoever asks for no more need not wait for it."""
        if pending and durability:
            return (request_id, 0, DUPLICATE_FLAG, generation, *places), False
        return (request_id, 0, DUPLICATE_FLAG | DURABLE_FLAG, generation, *places), pending

    # -- other requests that are written

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
        pending = self.truncations if self.sealed is None else [*self.sealed.truncations, *self.truncations]
        first = max(pending, default=index.first_position)
        if position <= first:
            return (request_id, 0, first), bool(pending)
        self.put_control(TRUNCATE_LOG, [position], now)
        self.truncations.append(position)
        return (request_id, 0, position), True

    def open_session(self, request: tuple[Any, ...], now: int) -> tuple[Reply, bool]:
        """Stage an OPEN_SESSION request (PROTOCOL.md §5.1) → ((epoch, last serial), whether it shares the group's fate).

        Raises InvalidArgument, SessionFenced, Overloaded, GroupFull.
        """
        if len(request) != 5:
            raise InvalidArgument("a session is opened by its name and the epoch to go on with, or nil")
        _, request_id, _, name, resume = request
        session, epoch = self.sessions.open(name, resume)
        if epoch is not None:
            self.put_control(SESSION, [session.name, epoch], now)
            self.sessions.stage_open(session, epoch)
        return (request_id, 0, session.epoch, session.last), session.is_staged

    def commit_cursor(self, request: tuple[Any, ...], now: int) -> tuple[Reply, bool]:
        """Stage a COMMIT_CURSOR request (PROTOCOL.md §5.2) → ((position), whether it shares the group's fate).

        Raises InvalidArgument, CursorMoved, LeaseLost, Overloaded, GroupFull.
        """
        if len(request) != 8:
            raise InvalidArgument("a cursor's commit has eight parts")
        asked = self.cursors.check(request[3:])
        if not self.cursors.is_repeat(asked):
            move = self.cursors.move(asked)
            self.put_control(move.subtype, move.body(), now)
            self.cursors.stage(move)
        return (request[1], 0, asked.position), self.cursors.is_staged(asked.name)

    def lease(self, request: tuple[Any, ...], now: int, holder: str, *, gone: bool) -> tuple[Reply, bool]:
        """Stage a LEASE request (PROTOCOL.md §5.2) → ((lease, position), whether it shares the group's fate).

        `gone`: whoever holds the lease now is not there any more. Raises InvalidArgument, LeaseLost, Overloaded, GroupFull.
        """
        if len(request) != 6:
            raise InvalidArgument("a lease has six parts")
        _, request_id, _, name, what, lease = request
        move = self.cursors.lease(name, what, lease, holder, gone=gone)
        if move is not None:
            self.put_control(move.subtype, move.body(), now)
            self.cursors.stage(move)
        cursor = self.cursors.get(name)
        return (request_id, 0, cursor.lease, cursor.position), self.cursors.is_staged(name)

    # -- versions

    @staticmethod
    def _check_resend(resend_head: Any) -> None:
        if type(resend_head) is not int or not 0 <= resend_head <= INT_MAX:
            raise InvalidArgument("resend head is nil or a position")

    def _next_version(self, name: str, expected: Any) -> int:
        """The version that the stream's next event gets. Raises WrongExpectedVersion."""
        pending = self.versions.get(name)
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

    def _stage(
        self, plan: list[Planned], firsts: list[int], now: int, session: bytes, move: Move | None
    ) -> list[int | None]:
        """All writes of an append, and the cursor that it moves → the reply's four places per write."""
        total = sum(row[2] is not None for row in plan) + (move is not None)
        places: list[int | None] = []
        index = 0
        for (name, _, region, count, signature), first in zip(plan, firsts, strict=True):
            if region is None:
                places += (None, None, None, None)
                continue
            places += (self.position, self.position + count - 1, first, first + count - 1)
            self.put(name, region, count, signature, first, now, index, total, session)
            index += 1
        if move is not None:
            self.put_control(move.subtype, move.body(), now, index, total)
            self.cursors.stage(move)
        return places

    def _check_room(self, plan: list[Planned], extra: int) -> None:
        """Raises GroupFull, or AppendTooLarge when no group could hold it. `extra`: bytes beside the writes."""
        free = self.body_bytes_max - self.bytes - extra
        for name, _, region, _, _ in plan:
            if region is not None:
                # Up to four bytes a character: only where that is too much, the names are measured.
                free -= len(region) + 4 * len(name) + HEADER_BYTES + 4
        if free >= 0:
            return
        size = extra + sum(len(row[2]) + len(row[0].encode()) + HEADER_BYTES + 4 for row in plan if row[2] is not None)
        if size > self.body_bytes_max:
            limit = self.body_bytes_max
            raise AppendTooLarge(f"the append takes {size} bytes in the log, a group holds {limit}", size, limit)
        if self.bytes + size > self.body_bytes_max:
            raise GroupFull

    # -- repeats

    def _repeat(self, session: Session, serial: int, plan: list[Planned]) -> tuple[list[int | None], bool]:
        """The places of a session's append that is in the log, or pending. Raises SerialReused, OutcomeUnknown."""
        if serial > session.durable_last:
            number: int | None = self.sessions.staged_number(session, serial)
        else:
            number = session.number_of(serial)
        if number is None:
            return [None] * (4 * len(plan)), False
        places = self._places(plan, number)
        if places is None:
            raise self.sessions.reused(session, serial)
        return places, serial > session.durable_last

    def _duplicate(self, plan: list[Planned], ids: tuple[bytes, ...]) -> tuple[list[int | None], bool]:
        """The original's places, if the request is one whole known append; else DuplicateEventId."""
        numbers = {self.window.get(event_id) for event_id in ids}
        number = numbers.pop()
        if not numbers and number is not None:
            places = self._places(plan, number)
            if places is not None:
                return places, number >= self.index.stop
        raise self._known_elsewhere(ids)

    def _known_elsewhere(self, ids: tuple[bytes, ...]) -> DuplicateEventId:
        """The refusal of ids that another append has."""
        error = DuplicateEventId("an event id is known from another append; nothing was written")
        numbers = (self.window.get(event_id) for event_id in ids)
        error.shares_fate = any(number is not None and number >= self.index.stop for number in numbers)
        return error

    def _places(self, plan: list[Planned], number: int) -> list[int | None] | None:
        """The places of the append that begins with this batch, if these are its writes. Raises OutcomeUnknown."""
        try:
            original: Sequence[KeptWrite] = self._pending(number) if number >= self.index.stop else self._stored(number)
        except (CorruptLog, Overloaded) as damage:
            raise OutcomeUnknown(f"these are in the log, but what they came with can't be read: {damage}") from None
        writes = [(row[0], fingerprint(row[2])) for row in plan if row[2] is not None]
        if [(row.stream, row.digest) for row in original] != writes:
            return None
        rows = iter(original)
        places: list[int | None] = []
        for _, _, region, count, _ in plan:
            if region is None:
                places += (None, None, None, None)
                continue
            _, position, version, _, _ = next(rows)
            places += (position, position + count - 1, version, version + count - 1)
        return places

    def _pending(self, number: int) -> list[KeptWrite]:
        """A pending append's batches."""
        return [
            KeptWrite(row.stream, row.first_position, row.first_version, row.events, fingerprint(row.region))
            for row in self.pending(number)
        ]


def _wrong_version(
    name: str, expected: bool | int, version: int, deleted: bool, *, shares_fate: bool
) -> WrongExpectedVersion:
    actual = version - 1 if version else None
    wanted = f"version {expected}" if type(expected) is int else "a stream that exists" if expected else "no stream"
    found = "has no event" if actual is None else f"is at version {actual}{' and deleted' if deleted else ''}"
    error = WrongExpectedVersion(f"stream {name!r} {found}, expected {wanted}", name, expected, actual, deleted)
    error.shares_fate = shares_fate
    return error
