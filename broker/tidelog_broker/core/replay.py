"""A group of the log into the index and what is known beside it: how a log that is read is understood. PURE.

The same rules as append's, seen from behind: versions, serials and epochs go on without a gap, or the log is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
from tidelog.batch import CONTROL, EVENTS, HAS_SESSION, HEADER_BYTES, SESSION_TAIL
from tidelog.errors import CorruptLog, InvalidHeader

from .format import CURSOR, LEASE, SESSION, TRUNCATE_LOG
from .idwindow import event_ids
from .index import Index, Staged
from .known import Known
from .names import is_name
from .recovery import BatchRow, Group


def replay(index: Index, known: Known, ordinal: int, group: Group, told: int = 0) -> None:
    """Take in one recovered group. `told`: what groups up to this one say of sessions and cursors is known already, from a base.

    Raises CorruptLog, or InvalidHeader for what this version does not honour.
    """
    _Replay(index, known, ordinal, group, group.header.number > told).run()


class _Replay:
    def __init__(self, index: Index, known: Known, ordinal: int, group: Group, tells: bool) -> None:
        self._index = index
        self._known = known
        self._ordinal = ordinal
        self._group = group
        self._tells = tells
        self._staged: list[Staged] = []
        self._versions: dict[str, int] = {}
        self._truncations: list[int] = []
        self._number = index.stop

    def run(self) -> None:
        index, window = self._index, self._known.window
        ids: dict[bytes, int] = {}
        position = first_position = self._group.header.first_position
        batches, session = 0, b""
        for row in self._group.rows:
            starts = row.append_index == 0
            index.recorded_at = max(index.recorded_at, row.recorded_at)
            if starts:
                first_position, batches, session = position, 0, b""
            if row.kind == CONTROL:
                self._control(row)
                self._staged.append(("", 0, 0, 0, row.length, starts, False))
            elif row.kind != EVENTS or row.flags & ~HAS_SESSION:
                raise self._not_honoured(row)
            else:
                its_session = self._session_bytes(row) if row.flags else b""
                if not batches:
                    session = its_session
                elif its_session != session:
                    raise self._damage(row, "two batches of an append name different sessions")
                self._version(row)
                self._staged.append(
                    (row.stream, row.events, row.first_version, row.signature, row.length, starts, False)
                )
                ids.update(dict.fromkeys(self._ids(row), self._number))
                batches += 1
                position += row.events
            if row.append_index + 1 == row.append_count and batches:
                if session:
                    self._serial(row, session)
                window.restore(ids, first_position)
                self._number += batches
                ids = {}
        index.apply(self._ordinal, self._group.body_offset, self._staged)
        for position in self._truncations:
            index.truncate(position)
        index.tidy()

    def _version(self, row: BatchRow) -> None:
        index = self._index
        expected = self._versions.get(row.stream)
        if expected is None and index.recalls:
            known = index.find(row.stream)
            expected = known.next_version if known else 0
        if row.first_version != expected and expected is not None:
            raise self._damage(
                row, f"stream {row.stream!r} goes on with version {row.first_version}, expected {expected}"
            )
        self._versions[row.stream] = row.first_version + row.events

    def _ids(self, row: BatchRow) -> tuple[bytes, ...]:
        try:
            return event_ids(self._group.body, row.region, row.events)
        except Exception:
            # A right checksum over wrong columns: it was written so. msgpack raises a dozen kinds.
            raise self._damage(row, "the batch holds no column of event ids") from None

    # -- sessions and control batches

    def _session_bytes(self, row: BatchRow) -> bytes:
        """What stands between a batch's name and its region."""
        body = self._group.body
        at = row.at + HEADER_BYTES + body[row.at + 2]
        stored = body[at : row.region]
        if not stored or len(stored) != 1 + stored[0] + SESSION_TAIL.size:
            raise self._damage(row, "the parts of a batch do not fit")
        return stored

    def _serial(self, row: BatchRow, stored: bytes) -> None:
        if not self._tells:
            return
        epoch, serial = SESSION_TAIL.unpack_from(stored, 1 + stored[0])
        name = stored[1 : 1 + stored[0]].decode("utf-8", "replace")
        wrong = self._known.sessions.restore(name, epoch, serial, self._number)
        if wrong:
            raise self._damage(row, wrong)

    def _control(self, row: BatchRow) -> None:
        apply = _CONTROLS.get(row.layout)
        if apply is None or row.flags or (row.append_count > 1 and row.layout != CURSOR):
            raise self._not_honoured(row)
        if row.append_index + 1 != row.append_count:
            raise self._damage(row, "a control batch that is not the last of its append")
        try:
            body = msgpack.unpackb(self._group.body[row.region : row.at + row.length - 4])
            good = type(body) is list and apply(self, body)
        except Exception:
            good = False
        if not good:
            raise self._damage(row, f"a control batch of subtype {row.layout} that can't be")

    def _session(self, body: list[Any]) -> bool:
        name, epoch = body[:2]
        return is_name(name) and (not self._tells or self._known.sessions.reopen(name, epoch))

    def _cursor(self, body: list[Any]) -> bool:
        return not self._tells or self._known.cursors.restore(CURSOR, body)

    def _lease(self, body: list[Any]) -> bool:
        return not self._tells or self._known.cursors.restore(LEASE, body)

    def _truncation(self, body: list[Any]) -> bool:
        position = body[0]
        header = self._group.header
        head = header.first_position + sum(row.events for row in self._group.rows)
        if type(position) is not int or not 0 <= position <= head:
            return False
        self._truncations.append(position)
        return True

    # -- verdicts

    def _damage(self, row: BatchRow, why: str) -> CorruptLog:
        offset = self._group.body_offset + row.at
        return CorruptLog(
            f"the log is damaged in segment {self._ordinal} at offset {offset}: {why}. Nothing was changed.",
            str(self._ordinal),
            offset,
        )

    def _not_honoured(self, row: BatchRow) -> InvalidHeader:
        # Ignoring it would serve what a later version hid.
        return InvalidHeader(
            f"group {self._group.header.number} holds a record (kind {row.kind:#x}, flags {row.flags}, subtype {row.layout}) "
            "that this version does not honour: use a newer Tidelog"
        )


_CONTROLS: dict[int, Callable[[_Replay, list[Any]], bool]] = {
    SESSION: _Replay._session,
    CURSOR: _Replay._cursor,
    LEASE: _Replay._lease,
    TRUNCATE_LOG: _Replay._truncation,
}
