"""Opening a log: create it or recover it (spec §8), and the files as that leaves them.

Owns what happens before the first new byte: settle and judge (files.py), keep what will be cut, cut. Promises: damage changes
nothing, and every step may be repeated after a crash.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Self

from tidelog.errors import StorageFull

from .core.format import NO_TAG, SEGMENT_HEADER_BYTES, ZERO_STEP_MAX, SegmentHeader
from .core.recovery import SegmentReader, Tail
from .disk import Disk, File
from .files import QUARANTINE, SPARE, UNFINISHED, LogFiles, LogSettings, Replay, Saved
from .marks import Marks

ZEROS = memoryview(bytes(ZERO_STEP_MAX))
ROOM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FailStop(Exception):
    """The disk broke a promise; the process must end with 74. What was not answered has an unknown outcome."""


def opening_failed(error: OSError) -> StorageFull | FailStop:
    """What an error before the first request means."""
    if error.errno in ROOM_ERRORS:
        return StorageFull(f"no room to open the log: {error}")
    return FailStop(f"opening the log: {error}")


class OpenFiles(LogFiles):
    """The files of a log that can be written; log.py has what is done with them."""

    # -- opening

    @classmethod
    def open(
        cls,
        disk: Disk,
        settings: LogSettings,
        random: Callable[[int], bytes],
        replay: Replay | None = None,
        saved: Saved | None = None,
    ) -> Self:
        """Create the log, or recover it; `replay` gets the groups behind the saved index that is taken, or all.

        Raises CorruptLog or InvalidHeader (nothing was changed), StorageFull (no room to open) or FailStop.
        """
        log = cls(disk, settings, random)
        try:
            log._open(replay or (lambda ordinal, group: None), saved)
        except BaseException as error:
            log.abandon()
            if not isinstance(error, OSError):
                raise
            raise opening_failed(error) from error
        return log

    def _open(self, replay: Replay, saved: Saved | None) -> None:
        segments = self._list()
        if segments is None:
            self._create(Marks.create(self._disk, self._random(16)))
            return
        marks = self._read_marks(segments)
        if not segments:
            marks.creation_or_damage()
            self._create(marks)
            return
        marks.good_or_damage(segments[-1], self.settings.accept_missing_mark)
        reader = self._judge(segments, replay, saved=saved)
        self._recover(segments, reader, self._named(saved))

    def _create(self, marks: Marks) -> None:
        """The first segment, behind a marks file that is already durable."""
        self._marks = marks
        self.report.created = True
        self._delete_unfinished()
        self._use_spare(self._new_spare(), ordinal=1)
        self._marks.replace_file(self._chain, 0, 0, self._header)

    def _recover(self, segments: list[str], reader: SegmentReader, named: dict[str, int]) -> None:
        """Cut what is torn and make everything ready for the first new group."""
        self.tail = reader.tail(self._marks.good, named)
        self._file = self._disk.open(segments[-1], writable=True)
        self._zeroing = self._disk.open(segments[-1], writable=True)
        self._header = reader.header
        self._files.pop(self._header.ordinal).close()
        self._keep(self._header, self._file)
        self.end = reader.offset
        self._delete_unfinished()
        self._cut(self.tail)
        self._marks.replace_file(self._chain, *self._last_group, self._header)

    def _delete_unfinished(self) -> None:
        """A spare or temporary file was never part of the log, and is never reused: its bytes are not known. What a base tells of
        is not needed any more."""
        for name in self._disk.names():
            if UNFINISHED.match(name) or name in self._removed or name in self._bases[:-1]:
                self._disk.unlink(name)

    def _cut(self, tail: Tail) -> None:
        """Make the open segment end at T; each step may be repeated after a crash."""
        if tail.stop > tail.offset and not tail.unfinished_roll:
            self._quarantine(tail)
        self._file.truncate(self.end)
        # Always, even if nothing was cut: after a rollback whose sync failed, only a write makes the disk's inode change.
        self._write_zeros(self.end, self._header.zero_step)
        self._file.sync()
        self._disk.sync_folder()
        self._prepared = self.end + self._header.zero_step

    def _write_zeros(self, offset: int, count: int) -> None:
        if self._file.write(offset, bytes(count)) != count:
            raise OSError(errno.ENOSPC, "short write")

    def _quarantine(self, tail: Tail) -> None:
        """Keep what will be cut, durable before it goes."""
        if QUARANTINE not in self._disk.names():
            self._disk.make_folder(QUARANTINE)
        self._disk.sync_folder()
        taken = set(self._disk.names(QUARANTINE))
        stem = f"{self._header.ordinal}-{tail.offset}-{self._chain.group + 1}"
        name = next(n for n in (stem, *(f"{stem}.{i}" for i in range(1, len(taken) + 2))) if n not in taken)
        copy = self._disk.create(f"{QUARANTINE}/{name}")
        try:
            at = tail.offset
            while at < tail.stop:
                data = self._file.read(at, min(1 << 20, tail.stop - at))
                if copy.write(at - tail.offset, data) != len(data):
                    raise OSError(errno.ENOSPC, "short write to the quarantine")
                at += len(data)
            copy.sync()
        finally:
            copy.close()
        self._disk.sync_folder(QUARANTINE)
        report = self.report
        report.cut_segment, report.cut_offset = self._header.name, tail.offset
        report.cut_bytes = tail.stop - tail.offset
        report.quarantine = f"{QUARANTINE}/{name}"
        report.warnings.append(
            f"torn tail: cut {report.cut_bytes} bytes at offset {tail.offset} of segment {self._header.name}, kept in "
            f"{report.quarantine}; {self._chain.group} groups and {self._chain.position} events are whole"
        )

    # -- segments and letting go

    def _use_spare(self, spare: File, ordinal: int) -> None:
        """The spare becomes the open segment: whole header first, then the name."""
        chain, settings = self._chain, self.settings
        header = SegmentHeader(
            log_id=self._marks.log_id, ordinal=ordinal, first_position=chain.position, first_group=chain.group + 1,
            key=self._random(16), previous_tag=chain.tag if chain.group else NO_TAG,
            group_bytes_max=settings.group_bytes_max, zero_step=settings.zero_step, align=settings.align,
            segment_bytes=settings.segment_bytes,
        )  # fmt: skip
        block = header.pack()
        if spare.write(0, block) != len(block):
            raise OSError(errno.ENOSPC, "short write of a segment header")
        spare.sync()
        self._disk.rename(SPARE, header.name)
        self._disk.sync_folder()
        spare.name = header.name
        self._header, self._file = header, spare
        self._zeroing = self._disk.open(header.name, writable=True)
        self._keep(header, spare)
        self.end = SEGMENT_HEADER_BYTES
        self._prepared = SEGMENT_HEADER_BYTES + settings.zero_step

    def _new_spare(self) -> File:
        """A zeroed file without a header, durable under its temporary name."""
        try:
            spare = self._disk.create(SPARE)
        except FileExistsError:
            self._disk.unlink(SPARE)  # one that found no room and could not be dropped then
            spare = self._disk.create(SPARE)
        try:
            size = SEGMENT_HEADER_BYTES + self.settings.zero_step
            if spare.write(0, bytes(size)) != size:
                raise OSError(errno.ENOSPC, "short write")
            spare.sync()
            self._disk.sync_folder()
        except OSError:
            spare.close()  # an unlinked file keeps its room while it is open
            raise
        self._full = False
        return spare
