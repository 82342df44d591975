"""The event ids of the newest whole appends (spec §4). PURE.

Two generations of dict, so that nothing is evicted id by id: when the younger holds the window's events, it becomes the
older. Together they hold at least the window, at most twice that and one append more. Values are the number of the
append's first batch (index.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from .index import Index


class IdWindow:
    """ids of 16 bytes → first batch of their append; `begins` is the position where the window begins.

    The ids of a staged append stand among the others until `commit` or `rollback`, so that one look finds both.
    """

    def __init__(self, events: int) -> None:
        self.events = events
        self.begins = 0
        self.young: dict[bytes, int] = {}
        self.old: dict[bytes, int] = {}
        self._young_begins = 0
        self._young_events = 0

    def start_at(self, position: int) -> None:
        """Before anything else after a restart: what comes in begins at this position."""
        self.begins = self._young_begins = position

    def get(self, event_id: bytes) -> int | None:
        """The append that an id came with, by the number of its first batch."""
        number = self.young.get(event_id)
        return self.old.get(event_id) if number is None else number

    def stage(self, ids: dict[bytes, int]) -> None:
        """An admitted append's ids, none of which is known."""
        self.young.update(ids)

    def commit(self, appends: list[tuple[dict[bytes, int], int]]) -> None:
        """The staged appends are durable: (ids, first position) of each, in log order."""
        turned = False
        for ids, first_position in appends:
            if self._young_events >= self.events:
                self.old, self.young = self.young, {}
                self.begins, self._young_begins = self._young_begins, first_position
                self._young_events = 0
                turned = True
            if turned:
                for event_id in ids:
                    self.old.pop(event_id, None)
                self.young.update(ids)
            self._young_events += len(ids)

    def rollback(self, appends: list[tuple[dict[bytes, int], int]]) -> None:
        """The staged appends are not in the log."""
        for ids, _ in appends:
            for event_id in ids:
                del self.young[event_id]


def generations(index: Index, events: int) -> Iterator[int]:
    """First positions of the window's generations over the whole log, as `commit` would have begun them.

    After a restart only the last two are read back from disk, and the window is the same as if it had never ended.
    """
    begins = 0
    while True:
        yield begins
        number = index.append_at_or_behind(begins + events)
        # The generation takes whole appends until it holds enough: the next one begins with the append behind that.
        if number >= len(index.positions):
            return
        begins = index.positions[number]
