"""The preparing thread's syncs never take a writeback error away from a group's sync (DURABILITY.md, why it holds, 6).

The kernel reports a failed writeback once to each open file description (errseq); a disk of this file does just that.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import Writer, seeded_random
from support.cases import SETTINGS
from support.faults import MortalDisk
from tidelog_broker.disk import RealFile
from tidelog_broker.log import FailStop, Log


class Description:
    """An open file that is told once of each writeback that failed since it was opened."""

    def __init__(self, disk: TellingDisk, file: RealFile) -> None:
        self.file, self.disk = file, disk
        self.told = disk.failed[self.inode()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def inode(self) -> int:
        return os.fstat(self.file.fd).st_ino

    def write(self, offset: int, data: bytes | memoryview) -> int:
        count = self.file.write(offset, data)
        behind, self.disk.behind_write = self.disk.behind_write, None
        if behind:
            self.disk.failed[self.inode()] += 1
            behind()
        return count

    def sync(self) -> None:
        failed = self.disk.failed[self.inode()]
        if self.told != failed:
            self.told = failed
            raise OSError(errno.EIO, "writeback failed")
        self.file.sync()

    datasync = sync


class TellingDisk:
    """A real disk; `behind_write`: the next write's pages are lost in the background, then this is called."""

    def __init__(self, path: Path) -> None:
        self.disk = MortalDisk(path)
        self.failed: Counter[int] = Counter()
        self.behind_write: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.disk, name)

    def create(self, name: str) -> Any:
        return Description(self, self.disk.create(name))

    def open(self, name: str, *, writable: bool = False) -> Any:
        return Description(self, self.disk.open(name, writable=writable))


@pytest.mark.parametrize("segment", ["created", "recovered"])
def test_a_writeback_error_that_the_preparing_thread_meets_first_still_fails_the_group(
    tmp_path: Path, segment: str
) -> None:
    disk = TellingDisk(tmp_path)
    writer = Writer()
    log = Log.open(disk, SETTINGS, seeded_random(b"1"))
    if segment == "recovered":
        log.close()
        log = Log.open(disk, SETTINGS, seeded_random(b"2"))
    writer.commit(log, [("s/1", [b"so that there is space to prepare"])])
    prepared: list[str] = []

    def prepare() -> None:
        with pytest.raises(FailStop):
            log.prepare()
        prepared.append("failed too")

    disk.behind_write = prepare
    with pytest.raises(FailStop, match="data-sync of group 2"):
        writer.commit(log, [("s/1", [b"its pages are lost"])])
    assert prepared
    log.abandon()
    disk.kill()
