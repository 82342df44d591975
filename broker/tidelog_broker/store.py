"""The log and its index together: opened, read back.

Owns nothing of its own; joins log.py (bytes) and core.index (meaning) at start and for the few reads that the rules of
append need.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from zlib import crc32

from tidelog.batch import EVENTS, HEADER, HEADER_BYTES, Batch, Incomplete, read_batch
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.wire import CRC_RESIDUE

from .core.appender import Appender
from .core.idwindow import generations
from .core.index import OFFSET_MASK, PLACE_SHIFT, Index, Staged
from .core.recovery import Group
from .disk import Disk
from .files import Replay
from .log import Log, LogSettings
from .opening import opening_failed

READ_AHEAD_BYTES = 1 << 20


class Store:
    """An open log with its index."""

    def __init__(self, disk: Disk, settings: LogSettings, random: Callable[[int], bytes]) -> None:
        """Raises what Log.open raises."""
        self.index = Index()
        self.log = Log.open(disk, settings, random, self._replay)

    @classmethod
    def inspect(
        cls,
        disk: Disk,
        settings: LogSettings,
        around: Callable[[Replay], Replay] = lambda replay: replay,
        until: int | None = None,
    ) -> Store:
        """A log that can only be read, as far as it is good (Log.inspect). `around` may look at each group, before and after it
        is taken into the index."""
        store = cls.__new__(cls)
        store.index = Index()
        store.log = Log.inspect(disk, settings, around(store._replay), until)
        return store

    def _replay(self, ordinal: int, group: Group) -> None:
        """One recovered group into the index; stream versions must follow. Raises CorruptLog or InvalidHeader."""
        index = self.index
        staged: list[Staged] = []
        versions: dict[str, int] = {}
        for row in group.rows:
            if row.kind != EVENTS or row.flags:
                # Ignoring it would serve what a later version hid, or forget its sessions.
                raise InvalidHeader(
                    f"group {group.header.number} holds a record (kind {row.kind:#x}, flags {row.flags}, subtype "
                    f"{row.layout}) that this version does not honour: use a newer Tidelog"
                )
            known = index.streams.get(row.stream)
            expected = versions.get(row.stream, known.next_version if known else 0)
            if row.first_version != expected:
                offset = group.body_offset + row.at
                raise CorruptLog(
                    f"the log is damaged in segment {ordinal} at offset {offset}: stream {row.stream!r} goes on with "
                    f"version {row.first_version}, expected {expected}. Nothing was changed.",
                    str(ordinal),
                    offset,
                )
            versions[row.stream] = row.first_version + row.events
            index.recorded_at = max(index.recorded_at, row.recorded_at)
            starts = row.append_index == 0
            staged.append((row.stream, row.events, row.first_version, row.signature, row.length, starts, False))
        index.apply(ordinal, group.body_offset, staged)

    def restore_ids(self, appender: Appender) -> None:
        """Fill the id window from the newest appends, as if the broker had never stopped.

        A part of opening: raises StorageFull or FailStop when the disk fails, CorruptLog when what it gives is damaged.
        """
        try:
            self._restore_ids(appender)
        except OSError as error:
            raise opening_failed(error) from error
        except CorruptLog as error:
            if isinstance(error.__cause__, OSError):
                raise opening_failed(error.__cause__) from error
            raise

    def _restore_ids(self, appender: Appender) -> None:
        index = self.index
        begins = [0, *generations(index, appender.limits.id_window_events)][-2]
        if begins >= index.head:
            return
        number = index.number_at(begins)
        appender.window.start_at(begins)
        batches: list[Batch] = []
        for batch in self._batches_from(number):
            batches.append(batch)
            if batch.append_index + 1 == batch.append_count:
                appender.restore_ids(number, batches)
                number += len(batches)
                batches = []

    def _batches_from(self, number: int) -> Iterator[Batch]:
        """All batches from one on, read in large pieces and checked."""
        index = self.index
        data, held = b"", range(0)
        for at in range(number, len(index.positions)):
            place, length = index.places[at], index.lengths[at]
            if place not in held or place + length > held.stop:
                room = self.log.readable(place >> PLACE_SHIFT) - (place & OFFSET_MASK)
                data = self.log.read(
                    place >> PLACE_SHIFT, place & OFFSET_MASK, max(length, min(READ_AHEAD_BYTES, room))
                )
                held = range(place, place + len(data))
            yield self._whole(read_batch(data, place - held.start), place)

    def append(self, number: int) -> list[Batch]:
        """The event batches of the append that begins with batch `number`, read from the log and checked."""
        return [self.batch(at) for at in range(number, self.index.append_stop(number))]

    def batch(self, number: int) -> Batch:
        """One batch, read from the log and checked. Raises CorruptLog."""
        place, length = self.index.places[number], self.index.lengths[number]
        ordinal, offset = place >> PLACE_SHIFT, place & OFFSET_MASK
        try:
            return self._whole(read_batch(self.log.read(ordinal, offset, length)), place)
        except CorruptLog:
            raise self.log.rot(ordinal, offset, f"position {self.index.positions[number]} can't be read") from None

    def checked(self, extents: list[tuple[int, int, int]]) -> tuple[bytes, CorruptLog | None]:
        """The batches of a page, each looked at, and what is wrong between them (they can be read all the same).

        Raises CorruptLog with the segment and the offset of the first bad batch.
        """
        index = self.index
        parts: list[memoryview] = []
        between: CorruptLog | None = None
        for ordinal, offset, size in extents:
            data = memoryview(self.log.read(ordinal, offset, size))
            first = ordinal << PLACE_SHIFT | offset
            at, edge = bisect_left(index.places, first), 0
            while at < len(index.places) and index.places[at] < first + size:
                start, length = index.places[at] - first, index.lengths[at]
                piece = data[start : start + length]
                header = HEADER.unpack_from(piece)
                # The right checksum at the wrong place would be a write that went astray.
                is_it = (header[0], header[4], header[9]) == (EVENTS, length, index.positions[at])
                if not is_it or crc32(piece) != CRC_RESIDUE:
                    raise self.log.rot(ordinal, offset + start, f"position {index.positions[at]} can't be read")
                if (
                    start > edge
                    and between is None
                    and not self.log.is_between(ordinal, offset + edge, data[edge:start])
                ):
                    between = self.log.rot(ordinal, offset + edge, "no group header stands between its batches")
                parts.append(piece)
                edge = start + length
                at += 1
        return b"".join(parts), between

    def _whole(self, batch: Batch | Incomplete, place: int) -> Batch:
        if isinstance(batch, Incomplete):
            raise self.log.rot(place >> PLACE_SHIFT, place & OFFSET_MASK, "the batch is cut off")
        return batch

    def recorded_at(self, number: int, checked: bool = False) -> int:
        """When a batch was recorded, from its header alone, or from all of it, `checked`. Raises CorruptLog."""
        if checked:
            return self.batch(number).recorded_at
        place = self.index.places[number]
        header = self.log.read(place >> PLACE_SHIFT, place & OFFSET_MASK, HEADER_BYTES)
        return int(HEADER.unpack(header)[11])

    def read(self, extents: list[tuple[int, int, int]]) -> Iterator[bytes]:
        """The bytes of a page's extents."""
        for ordinal, offset, size in extents:
            yield self.log.read(ordinal, offset, size)
