"""The event ids of the newest whole appends (spec §4). PURE.

Two generations of dict, so that nothing is evicted id by id: when the younger holds the window's events, it becomes the
older. Together they hold at least the window, at most twice that and one append more. Values are the number of the
append's first batch (index.py).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable

from tidelog.batch import id_splitter

from .base import Base, KeptAppend
from .checkpoint import WindowImage
from .unpack import unpack

_ID_COLUMN = {b"\x94\xc4": 3, b"\x94\xc5": 4, b"\x94\xc6": 6}
"""How a region begins, an array of four with a bin in front → where the bin's bytes begin."""


class IdWindow:
    """ids of 16 bytes → first batch of their append; `begins` is the position where the window begins.

    The ids of a staged append stand among the others until `commit` or `rollback`, so that one look finds both.
    """

    def __init__(self, events: int) -> None:
        self.events = events
        self.begins = 0
        self.young: dict[bytes, int] = {}
        self.old: dict[bytes, int] = {}
        self.turns = [0]
        self._young_events = 0

    @property
    def young_begins(self) -> int:
        """The position where the younger generation begins."""
        return self.turns[-1]

    def get(self, event_id: bytes) -> int | None:
        """The append that an id came with, by the number of its first batch."""
        number = self.young.get(event_id)
        return self.old.get(event_id) if number is None else number

    def stage(self, ids: dict[bytes, int]) -> None:
        """An admitted append's ids, none of which is known."""
        self.young.update(ids)

    def commit(
        self, appends: list[tuple[dict[bytes, int], int]], staged: list[tuple[dict[bytes, int], int]] | None = None
    ) -> None:
        """These staged appends are durable: (ids, first position) of each, in log order; those of `staged` are not yet."""
        turned = False
        for ids, first_position in appends:
            if self._young_events >= self.events:
                self.old, self.young = self.young, {}
                self.begins = self.turns[-1]
                self.turns.append(first_position)
                self._young_events = 0
                turned = True
            if turned:
                for event_id in ids:
                    self.old.pop(event_id, None)
                self.young.update(ids)
            self._young_events += len(ids)
        if turned and staged:
            # They went with the others, and are the younger generation's.
            for ids, _ in staged:
                for event_id in ids:
                    self.old.pop(event_id, None)
                self.young.update(ids)

    def rollback(self, appends: list[tuple[dict[bytes, int], int]]) -> None:
        """The staged appends are not in the log."""
        for ids, _ in appends:
            for event_id in ids:
                del self.young[event_id]

    def restore(self, ids: dict[bytes, int], first_position: int) -> None:
        """A durable append of the log that is being read, in log order."""
        self.young.update(ids)
        self.commit([(ids, first_position)])

    @classmethod
    def from_base(cls, base: Base, kept: Iterable[KeptAppend]) -> IdWindow:
        """The window as it was behind the segments that are gone."""
        window = cls(base.window_events)
        window.begins = base.window_begins
        window.turns = [base.window_young_begins]
        window._young_events = base.head - base.window_young_begins
        for append in kept:
            young = append.writes[0].first_position >= base.window_young_begins
            ids = dict.fromkeys(struct.unpack("16s" * (len(append.ids) // 16), append.ids), append.number)
            (window.young if young else window.old).update(ids)
        return window

    def turned_before(self, position: int) -> tuple[int, int]:
        """(where the older, where the younger generation began when the head was `position`)"""
        at = max(1, bisect_right(self.turns, position))
        return self.turns[max(0, at - 2)], self.turns[at - 1]

    def image(self) -> WindowImage:
        """The window as it stands between two groups, for a checkpoint."""
        return WindowImage(
            self.events, self.begins, self._young_events, array("Q", self.turns).tobytes(),
            b"".join(self.old), array("Q", self.old.values()).tobytes(),
            b"".join(self.young), array("Q", self.young.values()).tobytes(),
        )  # fmt: skip

    @classmethod
    def from_image(cls, image: WindowImage) -> IdWindow:
        """The window that `image` shows."""
        window = cls(image.events)
        window.begins, window._young_events = image.begins, image.young_events
        window.turns = list(array("Q", image.turns))
        window.old = _ids(image.old_ids, image.old_numbers)
        window.young = _ids(image.young_ids, image.young_numbers)
        return window


def _ids(ids: bytes, numbers: bytes) -> dict[bytes, int]:
    return dict(zip(struct.unpack("16s" * (len(ids) // 16), ids), array("Q", numbers), strict=True))


def event_ids(body: bytes, region: int, events: int) -> tuple[bytes, ...]:
    """The ids of a stored batch's events, whose region begins there; of the region only the first column is looked at."""
    start = region + _ID_COLUMN.get(body[region : region + 2], 0)
    if start > region and int.from_bytes(body[region + 2 : start], "big") == 16 * events:
        return id_splitter(events).unpack_from(body, start)
    return id_splitter(events).unpack(unpack(body[region:])[0])  # packed in another way than the shortest
