"""Any disk, with calls that fail or hang: the n-th of an operation, once or lasting, with an errno or a short write.

Over the real disk the failing call does not reach the kernel (a short write takes its part); what a failed sync does
to the cache is the SimDisk's to show.
"""

from __future__ import annotations

import errno as errnos
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tidelog_broker.disk import Disk, File, RealDisk, RealFile, synced

HANG_S = 60.0
"""No call hangs for longer, whatever a test forgets."""


class Killed(BaseException):
    """The process is gone before the call. No Exception: nobody may handle it."""


@dataclass(slots=True)
class Plan:
    """Fail the `nth` call (from 1) of `op` on names that contain `name`; `lasting`: and all behind it.

    `errno` 0 on a write means: take `short` bytes and say so. With an errno, `short` bytes are taken and then it fails.
    Operations: names, create, open, rename, unlink, make_folder, sync_folder, size, read, write, datasync, sync,
    truncate, drop_cache; "" means all that change something. `kill`: the process is gone instead, before the call.
    `hang`: the call does not begin before the event is set, and then succeeds. `thread`: only calls of the thread of this name.
    """

    op: str
    nth: int = 1
    errno: int = errnos.EIO
    lasting: bool = False
    short: int = 0
    name: str = ""
    kill: bool = False
    hang: threading.Event | None = None
    thread: str = ""
    calls: int = 0

    def hits(self, op: str, name: str) -> bool:
        if (op != self.op if self.op else op not in CHANGING) or self.name not in name:
            return False
        if self.thread and threading.current_thread().name != self.thread:
            return False
        self.calls += 1
        return self.calls == self.nth or (self.lasting and self.calls > self.nth)


class MortalFile(RealFile):
    """A real file that fails when it is closed twice, for that would close somebody else's descriptor."""

    __slots__ = ()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)


class MortalDisk(RealDisk):
    """A real disk whose process can be gone: `kill` closes what it left open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._opened: list[MortalFile] = []

    def create(self, name: str) -> RealFile:
        return self._mortal(super().create(name))

    def open(self, name: str, *, writable: bool = False) -> RealFile:
        return self._mortal(super().open(name, writable=writable))

    def _mortal(self, file: RealFile) -> MortalFile:
        self._opened.append(MortalFile(file.name, file.fd))
        return self._opened[-1]

    def left_open(self) -> list[str]:
        """Names of the files that are open."""
        return [file.name for file in self._opened if file.fd >= 0]

    def kill(self) -> None:
        for file in self._opened:
            if file.fd >= 0:
                file.close()
        self.close()


CHANGING = {"create", "rename", "unlink", "make_folder", "sync_folder", "write", "datasync", "sync", "truncate"}


@dataclass(slots=True)
class FaultyDisk:
    """`disk` with the faults of `plans`, which may be changed at any time. `trace`: every call that came."""

    disk: Disk
    plans: list[Plan] = field(default_factory=list)
    trace: list[tuple[str, str]] = field(default_factory=list)

    def due(self, op: str, name: str) -> Plan | None:
        self.trace.append((op, name))
        due = [plan for plan in self.plans if plan.hits(op, name)]
        if any(plan.kill for plan in due):
            raise Killed(op, name)
        for plan in due:
            if plan.hang is not None:
                plan.hang.wait(HANG_S)
        return next((plan for plan in due if plan.hang is None), None)

    def check(self, op: str, name: str) -> None:
        plan = self.due(op, name)
        if plan is not None:
            raise OSError(plan.errno, os.strerror(plan.errno), name)

    def names(self, folder: str = "") -> list[str]:
        self.check("names", folder)
        return self.disk.names(folder)

    def create(self, name: str) -> FaultyFile:
        self.check("create", name)
        return FaultyFile(self, self.disk.create(name))

    def open(self, name: str, *, writable: bool = False) -> FaultyFile:
        self.check("open", name)
        return FaultyFile(self, self.disk.open(name, writable=writable))

    def rename(self, old: str, new: str) -> None:
        self.check("rename", old)
        self.disk.rename(old, new)

    def unlink(self, name: str) -> None:
        self.check("unlink", name)
        self.disk.unlink(name)

    def make_folder(self, name: str) -> None:
        self.check("make_folder", name)
        self.disk.make_folder(name)

    def sync_folder(self, folder: str = "") -> None:
        synced(lambda _: self.check("sync_folder", folder), 0)
        self.disk.sync_folder(folder)


class FaultyFile:
    """An open file of a FaultyDisk."""

    __slots__ = ("_disk", "_file", "name")

    def __init__(self, disk: FaultyDisk, file: File) -> None:
        self._disk = disk
        self._file = file
        self.name = file.name

    def size(self) -> int:
        self._disk.check("size", self.name)
        return self._file.size()

    def read(self, offset: int, count: int) -> bytes:
        self._disk.check("read", self.name)
        return self._file.read(offset, count)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        plan = self._disk.due("write", self.name)
        if plan is None:
            return self._file.write(offset, data)
        taken = self._file.write(offset, data[: plan.short]) if plan.short else 0
        if plan.errno:
            raise OSError(plan.errno, os.strerror(plan.errno), self.name)
        return taken

    def datasync(self) -> None:
        synced(lambda _: self._disk.check("datasync", self.name), 0)
        self._file.datasync()

    def sync(self) -> None:
        synced(lambda _: self._disk.check("sync", self.name), 0)
        self._file.sync()

    def truncate(self, size: int) -> None:
        self._disk.check("truncate", self.name)
        self._file.truncate(size)

    def drop_cache(self) -> None:
        self._disk.check("drop_cache", self.name)
        self._file.drop_cache()

    def close(self) -> None:
        self._file.close()
