"""The marks file: two slots, each a durable log point (FORMAT.md §5).

Owns the file `marks`. The slots lie in different blocks, so that a write that is cut off can hurt only one of them.
"""

from __future__ import annotations

import errno

from tidelog.errors import CorruptLog

from .core.format import BLOCK, MARK_BYTES, MARKS_FILE_BYTES, Mark, SegmentHeader
from .core.recovery import Chain
from .disk import Disk, File

NAME, TEMPORARY = "marks", "marks.tmp"


class Marks:
    """The good marks found at start, and the writing of new ones."""

    def __init__(self, disk: Disk, log_id: bytes, good: list[Mark], exists: bool) -> None:
        self.log_id = log_id
        self.good = good
        self._exists = exists
        self._disk = disk
        self._sequence = max((mark.sequence for mark in good), default=0)
        self._file: File | None = None

    @classmethod
    def create(cls, disk: Disk, log_id: bytes) -> Marks:
        """The first file of a new log: group 0 in both slots, durable before any segment exists."""
        if TEMPORARY in disk.names():
            disk.unlink(TEMPORARY)
        marks = cls(disk, log_id, [], True)
        marks._replace(
            dict(log_id=log_id, group=0, ordinal=0, offset=0, next_position=0, open_ordinal=0, open_first_position=0)
        )
        return marks

    @classmethod
    def read(cls, disk: Disk, exists: bool) -> Marks:
        """The good slots of the file. Raises InvalidHeader for a newer version."""
        good: list[Mark] = []
        if exists:
            file = disk.open(NAME)
            try:
                slots = [Mark.unpack(file.read(place, MARK_BYTES)) for place in (0, BLOCK)]
            finally:
                file.close()
            good = sorted((mark for mark in slots if mark), key=lambda mark: mark.sequence)
        if len({mark.log_id for mark in good}) > 1:
            raise CorruptLog("the two slots of marks name different logs", NAME, 0)
        return cls(disk, good[-1].log_id if good else b"", good, exists)

    def creation_or_damage(self) -> None:
        """There is no segment. Raises CorruptLog unless the marks say that there never was one."""
        if not self.good:
            raise CorruptLog("marks holds no good slot and no segment is there. Nothing was changed.", NAME, 0)
        if self.good[-1].open_ordinal:
            raise CorruptLog(
                f"a mark names open segment {self.good[-1].open_ordinal}, and no segment is there. Nothing was changed.",
                NAME,
                0,
            )

    def good_or_damage(self, segment: str, accept_missing: bool) -> None:
        """A segment exists. Raises CorruptLog when no slot is good, unless the operator accepts that."""
        if not self.good and not accept_missing:
            what = "both slots of marks are damaged" if self._exists else "the marks file is missing"
            raise CorruptLog(
                f"{what} though segment {segment} exists, so a lost tail could not be noticed. Nothing was changed. "
                "Put the file back, or start with --accept-missing-mark to take the log as it is.",
                NAME,
                0,
            )

    def write_slot(self, chain: Chain, ordinal: int, offset: int, header: SegmentHeader, *, clean: bool) -> None:
        """The next mark over the older slot, synced. Raises OSError."""
        assert self._file is not None
        self._sequence += 1
        data = self._pack(_fields(self.log_id, chain, ordinal, offset, header), self._sequence, clean)
        if self._file.write(self._sequence % 2 * BLOCK, data) != len(data):
            raise OSError(errno.EIO, "short write of a mark")
        self._file.datasync()

    def replace_file(self, chain: Chain, ordinal: int, offset: int, header: SegmentHeader) -> None:
        """The first mark after a start: a new file, for an old slot may be good only in the page cache. Raises OSError."""
        self._replace(_fields(self.log_id, chain, ordinal, offset, header))

    def _replace(self, fields: dict[str, object]) -> None:
        self.close()
        slots = {}
        for _ in range(2):
            self._sequence += 1
            slots[self._sequence % 2] = self._pack(fields, self._sequence, False)
        image = slots[0].ljust(BLOCK, b"\0") + slots[1].ljust(BLOCK, b"\0")
        file = self._disk.create(TEMPORARY)
        if file.write(0, image) != MARKS_FILE_BYTES:
            raise OSError(errno.ENOSPC, "short write of marks")
        file.sync()
        self._disk.sync_folder()
        self._disk.rename(TEMPORARY, NAME)
        self._disk.sync_folder()
        file.name = NAME
        self._file = file

    @staticmethod
    def _pack(fields: dict[str, object], sequence: int, clean: bool) -> bytes:
        return Mark(sequence=sequence, clean=clean, **fields).pack()  # type: ignore[arg-type]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _fields(log_id: bytes, chain: Chain, ordinal: int, offset: int, header: SegmentHeader) -> dict[str, object]:
    return dict(
        log_id=log_id, group=chain.group, ordinal=ordinal, offset=offset, next_position=chain.position,
        open_ordinal=header.ordinal, open_first_position=header.first_position,
    )  # fmt: skip
