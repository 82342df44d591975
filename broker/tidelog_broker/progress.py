"""How far a start has come in reading its log, told about once a second when it takes long.

The clock and the words are here; the log knows of neither: `around` sees the groups that go by (Store), and asks for sizes once.
"""

from __future__ import annotations

from collections.abc import Callable

from .core.format import GROUP_HEADER_BYTES, SEGMENT_NAME
from .core.recovery import Group
from .disk import Disk
from .files import Replay

QUIET_S = 2.0
"""A start that takes no longer says nothing."""
EVERY_S = 1.0


class Progress:
    """One start's. `clock` is in seconds, `say` gets a line."""

    def __init__(self, disk: Disk, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._disk = disk
        self._clock = clock
        self._say = say
        self._due_s = clock() + QUIET_S

    def around(self, replay: Replay) -> Replay:
        """`replay`, and a line when one is due; for one reading of the log from wherever it begins."""
        before: dict[int, int] = {}
        whole = 0

        def told(ordinal: int, group: Group) -> None:
            nonlocal whole
            replay(ordinal, group)
            now_s = self._clock()
            if not before:
                whole = self._measure(before, ordinal, group.body_offset - GROUP_HEADER_BYTES)
            if now_s >= self._due_s:
                self._due_s = now_s + EVERY_S
                done = before[ordinal] + group.body_offset + len(group.body)
                self._say(f"reading the log: {done / 1e9:.1f} of {whole / 1e9:.1f} GB, {100 * done // max(1, whole)} %")

        return told

    def _measure(self, before: dict[int, int], first: int, offset: int) -> int:
        """Fill in how many bytes are read before each segment, the first of them from an offset on; the bytes of all."""
        whole = -offset
        for name in self._disk.names():
            if SEGMENT_NAME.match(name) and int(name[:10]) >= first:
                before[int(name[:10])] = whole
                file = self._disk.open(name)
                try:
                    whole += file.size()
                finally:
                    file.close()
        return whole
