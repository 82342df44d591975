"""What is staged for the next group, and what it becomes (spec §6): bytes to write, and changes that wait for them. PURE.

At most one sealed group waits for its sync while the next one is being collected; both are pending. A pending change is seen by
the rules of append alone: index, id window, sessions and cursors take it in with `commit`, or forget all of them with `rollback`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

from tidelog.batch import COLUMNS, CRC, EVENTS, HAS_SESSION, HEADER, HEADER_BYTES

from .format import pack_control
from .index import Index, Staged
from .known import Known

_pack_header, _pack_crc = HEADER.pack, CRC.pack


class GroupFull(Exception):
    """The append does not fit into the group being staged: commit that, then admit it again."""


class Pending(NamedTuple):
    """A batch that is not durable yet."""

    number: int
    stream: str
    first_position: int
    first_version: int
    events: int
    region: bytes
    starts: bool


@dataclass(frozen=True, slots=True)
class SealedGroup:
    """A group as it goes to the log: `parts` are its bytes, three pieces a batch; the rest is what it changes once durable."""

    parts: list[bytes]
    staged: list[Staged]
    next_position: int
    recorded_at: int
    appends: list[tuple[dict[bytes, int], int]]
    truncations: list[int]
    opened: int
    serials: int
    moves: int


class Staging:
    """One group being collected, and at most one sealed."""

    def __init__(self, index: Index, known: Known, body_bytes_max: int) -> None:
        self.index = index
        self.known = known
        self.window = known.window
        self.sessions = known.sessions
        self.cursors = known.cursors
        self.body_bytes_max = body_bytes_max
        self.sealed: SealedGroup | None = None
        self.parts: list[bytes] = []
        self.staged: list[Staged] = []
        self.bytes = 0
        self.accepted = False
        """Whether somebody was told "accepted" of this group: he must not wait for its sync."""
        self.position = index.head
        self.number = index.stop
        self.recorded_at = 0
        self.versions: dict[str, int] = {}
        """Next versions of the streams in what is pending."""
        self.appends: list[tuple[dict[bytes, int], int]] = []
        self.truncations: list[int] = []
        self._rows: list[Pending] = []
        self._rows_of = 0

    @property
    def is_pending(self) -> bool:
        """Whether anything is staged or under way."""
        return self.sealed is not None or bool(self.parts)

    # -- collecting

    def put(
        self,
        name: str,
        region: Any,
        count: int,
        signature: int,
        first: int,
        now: int,
        index: int,
        total: int,
        session: bytes,
    ) -> None:
        """Stage one batch (FORMAT.md §3): number `index` of the `total` of its append."""
        encoded = name.encode()
        length = HEADER_BYTES + len(encoded) + len(session) + len(region) + 4
        header = _pack_header(
            EVENTS,
            HAS_SESSION if session else 0,
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
        head = header + encoded + session
        self.parts += (head, region, _pack_crc(crc32(region, crc32(head))))
        self.staged.append((name, count, first, signature, length, index == 0, False))
        self.versions[name] = first + count
        self.position += count
        self.bytes += length
        self.number += 1
        self.recorded_at = now

    def put_control(self, subtype: int, body: list[Any], now: int, index: int = 0, total: int = 1) -> None:
        """Stage a control batch (FORMAT.md §4). Raises GroupFull when it stands alone and there is no room."""
        parts = pack_control(subtype, body, now, index, total)
        length = sum(map(len, parts))
        if not index and self.bytes + length > self.body_bytes_max:
            raise GroupFull
        self.parts += parts
        self.staged.append(("", 0, 0, 0, length, index == 0, False))
        self.bytes += length
        self.recorded_at = now

    def pending(self, number: int) -> list[Pending]:
        """The event batches of the append that begins with this batch and is not durable yet."""
        first = self.index.stop
        rows = self._rows
        if self.sealed is not None and not rows:
            _add_rows(rows, self.sealed.parts, self.sealed.staged, 0, first, self.index.head)
        # Only what came since somebody asked last: repeats may be many, and must not cost the whole group each.
        position = rows[-1].first_position + rows[-1].events if rows else self.index.head
        _add_rows(rows, self.parts, self.staged, self._rows_of, first + len(rows), position)
        self._rows_of = len(self.staged)
        at = number - first
        stop = at + 1
        while stop < len(rows) and not rows[stop].starts:
            stop += 1
        return rows[at:stop]

    # -- the group's end

    def seal(self) -> SealedGroup:
        """Close the group that was collected; the next one begins behind it. None may be sealed already."""
        assert self.sealed is None
        group = self.sealed = SealedGroup(
            self.parts, self.staged, self.position, self.recorded_at, self.appends, self.truncations,
            len(self.sessions.opened), len(self.sessions.steps), len(self.cursors.steps),
        )  # fmt: skip
        self._empty()
        return group

    def commit(self, ordinal: int, offset: int) -> None:
        """The sealed group (sealed now, if none is) is durable at this place: everything that it changes is changed."""
        group = self.sealed or self.seal()
        self.sealed = None
        self._forget_rows()
        self.index.apply(ordinal, offset, group.staged)
        self.index.recorded_at = max(self.index.recorded_at, group.recorded_at)
        for position in group.truncations:
            self.index.truncate(position)
        self.window.commit(group.appends, self.appends)
        if group.opened or group.serials:
            self.sessions.commit(group.opened, group.serials)
        if group.moves:
            self.cursors.commit(group.moves)
        if self.staged:
            self.versions = {row[0]: row[2] + row[1] for row in self.staged if row[1]}
        else:
            self.versions.clear()

    def rollback(self) -> None:
        """Nothing pending is in the log: forget it."""
        if self.sealed is not None:
            self.window.rollback(self.sealed.appends)
            self.sealed = None
        self.window.rollback(self.appends)
        self.sessions.rollback()
        self.cursors.rollback()
        self._empty()
        self.versions.clear()
        self.position = self.index.head
        self.number = self.index.stop

    def _empty(self) -> None:
        self._forget_rows()
        self.parts = []
        self.staged = []
        self.appends = []
        self.truncations = []
        self.bytes = 0
        self.accepted = False

    def _forget_rows(self) -> None:
        self._rows = []
        self._rows_of = 0


def _add_rows(
    rows: list[Pending], parts: list[bytes], staged: list[Staged], since: int, number: int, position: int
) -> None:
    for place in range(since, len(staged)):
        name, events, version, _, _, starts, _ = staged[place]
        if events:
            rows.append(Pending(number, name, position, version, events, parts[3 * place + 1], bool(starts)))
            number += 1
            position += events
