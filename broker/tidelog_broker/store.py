"""The log and its index together: opened, read back.

Owns nothing of its own; joins log.py (bytes) and core.index (meaning) at start and for the few reads that the rules of
append need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tidelog.batch import DELETION, EVENTS, Batch, Incomplete, read_batch
from tidelog.errors import CorruptLog

from .core.appender import Appender
from .core.format import segment_name
from .core.idwindow import generations
from .core.index import OFFSET_MASK, PLACE_SHIFT, Index
from .core.recovery import Group
from .disk import Disk
from .log import Log, LogSettings


class Store:
    """An open log with its index."""

    def __init__(self, disk: Disk, settings: LogSettings, random: Callable[[int], bytes]) -> None:
        """Raises what Log.open raises."""
        self.index = Index()
        self.log = Log.open(disk, settings, random, self._replay)

    def _replay(self, ordinal: int, group: Group) -> None:
        index = self.index
        staged = []
        versions: dict[str, int] = {}
        starts = True
        for row in group.rows:
            if row.kind == EVENTS:
                expected = versions.get(row.stream)
                if expected is None:
                    name = segment_name(ordinal, group.header.first_position)
                    index.check_version(name, group.body_offset + row.at, row.stream, row.first_version)
                elif expected != row.first_version:
                    raise CorruptLog(
                        f"the log is damaged in segment {ordinal} at offset {group.body_offset + row.at}: stream "
                        f"{row.stream!r} goes on with version {row.first_version}, expected {expected}. Nothing was changed.",
                        str(ordinal),
                        group.body_offset + row.at,
                    )
                versions[row.stream] = row.first_version + row.events
                index.recorded_at = max(index.recorded_at, row.recorded_at)
            # The first event batch of an append starts it, whatever control batch stands beside it.
            starts = starts or row.append_index == 0
            deletion = bool(row.flags & DELETION)
            staged.append((row.stream, row.events, row.first_version, row.signature, row.length, starts, deletion))
            if row.events:
                starts = False
        index.apply(ordinal, group.body_offset, staged)

    def restore_ids(self, appender: Appender) -> None:
        """Fill the id window from the newest appends, as if the broker had never stopped."""
        index = self.index
        begins = [0, *generations(index, appender.limits.id_window_events)][-2]
        if begins >= index.head:
            return
        number = index.number_at(begins)
        appender.window.start_at(begins)
        while number < len(index.positions):
            appender.restore_ids(number, self.append(number))
            number = index.append_stop(number)

    def append(self, number: int) -> list[Batch]:
        """The event batches of the append that begins with batch `number`, read from the log and checked."""
        return [self.batch(at) for at in range(number, self.index.append_stop(number))]

    def batch(self, number: int) -> Batch:
        """One batch, read from the log and checked. Raises CorruptLog."""
        place, length = self.index.places[number], self.index.lengths[number]
        ordinal, offset = place >> PLACE_SHIFT, place & OFFSET_MASK
        batch = read_batch(self.log.read(ordinal, offset, length))
        if isinstance(batch, Incomplete):
            raise CorruptLog(f"segment {ordinal} at offset {offset}: the batch is cut off", str(ordinal), offset)
        return batch

    def read(self, extents: list[tuple[int, int, int]]) -> Iterator[bytes]:
        """The bytes of a page's extents."""
        for ordinal, offset, size in extents:
            yield self.log.read(ordinal, offset, size)
