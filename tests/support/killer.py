"""A broker that kills itself at a chosen call to its disk: python -m support.killer ORDER serve …

So does every other command of `tidelog` that is given in the place of `serve`. Owns the order file, which the process maps, so
that looking at it costs nothing, an order can come at any time, and what is in it survives the kill. The command line behind
ORDER is the real one; only the methods of RealDisk and RealFile are wrapped. SIGKILL is sent by the process to itself: not a
byte of its own is written behind it.

`Order` is the other side: what the test says and reads.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import struct
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

FIELDS = struct.Struct("<QQQQ")
"""order, how many matching calls are still let pass, calls so far, the point at which it died."""
CALLS_AT, DIED_AT = 16, 24
NAME_BYTES = 200
GROUP_MAGIC, GROUP_HEADER_BYTES = b"TLGR", 64
TRUNCATE_LOG = 4
SEGMENT_NAME = re.compile(r"\d{10}-\d{20}")
OF_DISK = ("create", "open", "rename", "unlink", "make_folder", "sync_folder")
OF_FILE = ("write", "datasync", "sync", "truncate")


class Point(IntEnum):
    """Where to die: by what happens, or (CALL, HALF, OTHER) at the n-th call whatever it is."""

    NONE = 0
    GROUP_SYNC = 1  # a group is written and not synced
    GROUP_TORN = 2  # half of a group is written
    GROUP_SYNCED = 3  # a group is synced, nobody was told
    MARK = 4  # a mark is written and not synced
    CALL = 5  # before the n-th call of the main thread
    HALF = 6  # the same, but when it is a write, half of it is done
    OTHER = 7  # before the n-th call of the other threads
    CUT_TORN = 8  # half of a group that holds a truncation is written
    REMOVE = 9  # before a segment is deleted


class Order:
    """The file of one broker's orders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(FIELDS.size + NAME_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), FIELDS.size + NAME_BYTES)

    def give(self, point: Point, skip: int = 0) -> None:
        """Die at this point, after `skip` calls that match. NONE takes an order back and forgets what was counted."""
        self._map[8:32] = struct.pack("<QQQ", skip, 0, 0)
        self._map[0:8] = struct.pack("<Q", point)

    @property
    def calls(self) -> int:
        """How many calls the main thread made since the order, while it was CALL or HALF; otherwise since the start."""
        return int(FIELDS.unpack_from(self._map)[2])

    @property
    def died(self) -> Point:
        """The point at which it killed itself; NONE when it did not."""
        return Point(FIELDS.unpack_from(self._map)[3])

    @property
    def last_call(self) -> str:
        """The name of the call it died at."""
        raw: bytes = self._map[FIELDS.size : FIELDS.size + NAME_BYTES]
        return raw.partition(b"\0")[0].decode()

    def close(self) -> None:
        self._map.close()


class Killer:
    """The broker's side: wraps every call, and ends the process where the order says."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), FIELDS.size + NAME_BYTES)
        self._main = threading.main_thread()
        self._group_unsynced = False

    def wrap(self, kind: type, name: str) -> None:
        original: Callable[..., Any] = getattr(kind, name)

        def call(thing: Any, *args: Any, **kwargs: Any) -> Any:
            return self._call(name, original, thing, args, kwargs)

        setattr(kind, name, call)

    def _call(self, name: str, original: Callable[..., Any], thing: Any, args: Any, kwargs: Any) -> Any:
        point, left, calls, _ = FIELDS.unpack_from(self._map)
        main = threading.current_thread() is self._main
        where = getattr(thing, "name", "") or (args[0] if args else "")
        if main:
            self._map[CALLS_AT : CALLS_AT + 8] = struct.pack("<Q", calls + 1)
        of_group = main and name == "write" and bytes(args[1][:4]) == GROUP_MAGIC
        of_sync = main and name == "datasync" and self._group_unsynced
        matches = (
            (point == Point.GROUP_SYNC and of_sync)
            or (point == Point.GROUP_TORN and of_group)
            or (point == Point.GROUP_SYNCED and of_sync)
            or (point == Point.MARK and name == "datasync" and where == "marks")
            or (point in (Point.CALL, Point.HALF) and main)
            or (point == Point.OTHER and not main)
            or (point == Point.CUT_TORN and of_group and holds_truncation(bytes(args[1])))
            or (point == Point.REMOVE and name == "unlink" and SEGMENT_NAME.match(str(where)) is not None)
        )
        if matches and left:
            self._map[8:16] = struct.pack("<Q", left - 1)
        dies = matches and not left
        if dies and point != Point.GROUP_SYNCED:
            if name == "write" and point in (Point.GROUP_TORN, Point.CUT_TORN, Point.HALF):
                offset, data = args
                original(thing, offset, data[: len(data) // 2])
            self._die(point, f"{name} {where}")
        result = original(thing, *args, **kwargs)
        if dies:
            self._die(point, f"after {name} {where}")
        if of_group or of_sync:
            self._group_unsynced = of_group
        return result

    def _die(self, point: int, call: str) -> None:
        text = call.encode()[: NAME_BYTES - 1] + b"\0"
        self._map[FIELDS.size : FIELDS.size + len(text)] = text
        self._map[DIED_AT : DIED_AT + 8] = struct.pack("<Q", point)
        os.kill(os.getpid(), signal.SIGKILL)


def holds_truncation(group: bytes) -> bool:
    """Whether one of the batches of a group, as it is written, truncates the log (docs/FORMAT.md §3, §4)."""
    at = GROUP_HEADER_BYTES
    while at < len(group):
        if (group[at : at + 1], group[at + 3]) == (b"C", TRUNCATE_LOG):
            return True
        at += int.from_bytes(group[at + 4 : at + 8], "little") or len(group)
    return False


def main() -> None:
    path = sys.argv.pop(1)
    from tidelog_broker.cli import main as tidelog
    from tidelog_broker.disk import RealDisk, RealFile

    killer = Killer(path)
    for name in OF_DISK:
        killer.wrap(RealDisk, name)
    for name in OF_FILE:
        killer.wrap(RealFile, name)
    tidelog()


if __name__ == "__main__":
    main()
