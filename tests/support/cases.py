"""A log in a real directory that is stopped, changed byte by byte, and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.builders import Writer, seeded_random
from support.faults import FaultyDisk, MortalDisk
from tidelog_broker.core.format import SegmentHeader
from tidelog_broker.core.recovery import Group
from tidelog_broker.log import Log, LogSettings

SETTINGS = LogSettings(
    segment_bytes=1 << 20, group_bytes_max=1 << 16, zero_step=1 << 14, prepare_ahead=1 << 14, mark_groups=1_000
)
TINY = LogSettings(segment_bytes=16_384, group_bytes_max=8_192, zero_step=4_096, prepare_ahead=8_192, mark_groups=1_000)
FIRST = "0000000001-00000000000000000000"
HEADER = 4_096


class Case:
    """A log in a directory that is stopped, changed and opened."""

    def __init__(self, path: Path, settings: LogSettings = SETTINGS) -> None:
        self.path = path
        self.settings = settings
        self.writer = Writer()
        self.bodies: list[bytes] = []
        self.offsets: list[int] = []
        self.starts = 0
        self.log: Log
        path.mkdir(exist_ok=True)
        self.disk = MortalDisk(path)

    def open(self, settings: LogSettings | None = None, faulty: FaultyDisk | None = None) -> list[bytes]:
        """The bodies recovered."""
        found: list[bytes] = []

        def replay(ordinal: int, group: Group) -> None:
            found.append(group.body)

        self.starts += 1
        self.disk.kill()
        self.disk = MortalDisk(self.path)
        if faulty is not None:
            faulty.disk = self.disk
        self.log = Log.open(faulty or self.disk, settings or self.settings, seeded_random(b"%d" % self.starts), replay)
        return found

    def commit(self, *appends: Any) -> None:
        self.offsets.append(self.log.end)
        self.bodies.append(self.writer.commit(self.log, *appends))

    def three(self) -> Case:
        """Three groups of one event, stopped by a kill."""
        self.open()
        for number in range(3):
            self.commit([("s/1", [b"event %d" % number])])
        self.stop()
        return self

    def stop(self) -> None:
        self.end = self.log.end
        self.log.abandon()

    def read(self, name: str = FIRST) -> bytes:
        return (self.path / name).read_bytes()

    def change(self, offset: int, data: bytes, name: str = FIRST) -> None:
        content = bytearray(self.read(name))
        content[offset : offset + len(data)] = data
        (self.path / name).write_bytes(content)

    def flip(self, offset: int, name: str = FIRST) -> None:
        self.change(offset, bytes([self.read(name)[offset] ^ 1]), name)

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.path)): p.read_bytes() for p in sorted(self.path.rglob("*")) if p.is_file()}

    def header(self, name: str = FIRST) -> SegmentHeader:
        return SegmentHeader.unpack(self.read(name)[:HEADER], name)

    def refused(self, kind: type[Exception], *words: str, settings: LogSettings | None = None) -> Any:
        """Opening raises, says all these words, and leaves every byte as it was."""
        before = self.files()
        with pytest.raises(kind) as caught:
            self.open(settings)
        assert self.files() == before
        for word in words:
            assert word in str(caught.value), str(caught.value)
        return caught.value

    def works(self, groups: int) -> None:
        """The log that was opened takes more, and has all of it after a clean stop."""
        self.writer = Writer(
            self.log.head, {"s/1": self.log.head}, {}, serial=self.writer.serial
        )  # every event of these cases is in s/1
        self.bodies = self.bodies[:groups]
        self.commit([("s/1", [b"one more"])])
        self.log.close()
        assert self.open() == self.bodies
        assert not self.log.report.warnings
        self.log.abandon()
