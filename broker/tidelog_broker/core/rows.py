"""Rows of the index: batches of events in log order, one row of plain arrays each, never an object per event. PURE.

A batch's *number* counts event batches from the log's first, 0, 1, 2 …, and is never used again; a *place* is segment
ordinal << 40 | offset. The newest rows are in memory (index.py), older ones in runs on disk (run.py), a piece at a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

PLACE_SHIFT = 40
OFFSET_MASK = (1 << PLACE_SHIFT) - 1


class Rows:
    """The batches number `first` … `stop` - 1: whole appends. `end` is the position behind the last, in `positions` the first
    position of each, in `starts` 1 for the first of its append."""

    __slots__ = ("end", "first", "lengths", "places", "positions", "signatures", "starts")

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.positions = array("Q")
        self.places = array("Q")
        self.lengths = array("I")
        self.signatures = array("Q")
        self.starts = bytearray()

    @property
    def stop(self) -> int:
        """The number behind the last."""
        return self.first + len(self.positions)

    def at_position(self, position: int) -> int:
        """The row, counted from 0, that holds a position."""
        return bisect_right(self.positions, position) - 1

    def at_place(self, place: int) -> int:
        """The row that lies at a place or is the last before it."""
        return bisect_right(self.places, place) - 1

    def behind(self, row: int) -> int:
        """The position behind a row's last event."""
        row += 1
        return self.positions[row] if row < len(self.positions) else self.end

    def append_start(self, row: int) -> int:
        """The first row of the append that `row` belongs to."""
        return self.starts.rfind(1, 0, row + 1)

    def append_stop(self, row: int) -> int:
        """The row behind the last of the append that `row` belongs to."""
        stop = self.starts.find(1, row + 1)
        return stop if stop >= 0 else len(self.starts)
