"""From backup files to a log: `tidelog restore`.

Promises: everything is checked before anything is written; the log gets its name when it is durable and was read back, so a
kill leaves nothing that looks like one. Sealed segments are byte for byte what they were. The one that was open at the log point
is sealed there, and the log goes on in a segment with a new key: nothing that the original wrote later can be taken for its own.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tidelog.errors import CorruptLog

from .backup import CHUNK_BYTES, NO_DIGEST, Backup, Contents, LogFile, Part, Tally, judged, unfit
from .core.format import BLOCK, NO_TAG, SEGMENT_HEADER_BYTES, SEGMENT_NAME, SegmentHeader, pack_seal
from .core.recovery import Chain
from .disk import Disk
from .files import LogFiles, LogSettings
from .marks import Marks
from .snapshot import write_all

UNFINISHED = ".restoring"


class Joined:
    """A backup and the older ones that it leaves segments to."""

    def __init__(self, backups: Sequence[Backup]) -> None:
        """`backups`: the one to restore first, the others in any order. Raises CorruptLog when one is missing."""
        newest = at = backups[0]
        self.header = newest.header
        self.name = newest.name
        known = {backup.digest: backup for backup in backups[1:]}
        parts = list(at.parts)
        while at.header.since != NO_DIGEST:
            older = known.pop(at.header.since, None)
            if older is None:
                raise unfit(at.name, "the older backup that it was made since is needed, too")
            # The segment that was open then is whole in the newer one.
            kept = [part for part in older.parts if SEGMENT_NAME.match(part.name) and _ordinal(part) < _first(at)]
            parts = [*parts[: _bases(parts)], *kept, *parts[_bases(parts) :]]
            at = older
        # What a later truncation took away is not wanted any more.
        self.parts = [
            part for part in parts if not SEGMENT_NAME.match(part.name) or _ordinal(part) >= newest.header.first_ordinal
        ]

    def judged(self) -> Contents:
        """Everything checked, as a start of the restored log would. Raises CorruptLog or InvalidHeader."""
        return judged(self.header, self.parts, self.name)


def _ordinal(part: LogFile) -> int:
    return int(part.name[:10])


def _bases(parts: Sequence[LogFile]) -> int:
    return sum(not SEGMENT_NAME.match(part.name) for part in parts)


def _first(backup: Backup) -> int:
    """The ordinal of the first segment that a backup holds itself."""
    return min((_ordinal(part) for part in backup.parts[_bases(backup.parts) :]), default=backup.header.open_ordinal)


def restore(
    joined: Joined,
    contents: Contents,
    target: Path,
    random: Callable[[int], bytes],
    opened: Callable[[Path], AbstractContextManager[Disk]],
) -> None:
    """Make `target`, which must not exist or be empty, the log that `judged` found; `opened` gives the disk of a directory.

    Raises FileExistsError for what an earlier restore left, CorruptLog when what was written is not what can be read, OSError;
    then nothing of `target` has been made, unless it was the very last sync that failed. A kill may leave its `.restoring`.
    """
    unfinished = target.with_name(target.name + UNFINISHED)
    with opened(target.parent) as parent:
        parent.make_folder(unfinished.name)
        try:
            parent.sync_folder()
            with opened(unfinished) as log:
                _write(log, joined, contents, random)
                _read_back(log, contents)
            parent.rename(unfinished.name, target.name)
        except (Exception, KeyboardInterrupt):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        parent.sync_folder()


def _write(disk: Disk, joined: Joined, contents: Contents, random: Callable[[int], bytes]) -> None:
    header, last = joined.header, contents.last
    for part in joined.parts:
        end = b""
        if last is not None and part.name == last.name:
            at = last.aligned(header.offset)
            seal = pack_seal(last.key, header.group, last.ordinal, at, header.next_position, header.tag)
            end = bytes(at - header.offset) + seal
        _copy(disk, part, end)
    sizes = last or LogSettings()
    opened = SegmentHeader(
        log_id=header.log_id, ordinal=header.open_ordinal, first_position=contents.head, first_group=header.group + 1,
        key=random(16), previous_tag=header.tag if header.group else NO_TAG, group_bytes_max=sizes.group_bytes_max,
        zero_step=sizes.zero_step, align=sizes.align, segment_bytes=sizes.segment_bytes,
    )  # fmt: skip
    file = disk.create(opened.name)
    try:
        write_all(file, 0, opened.pack().ljust(SEGMENT_HEADER_BYTES + BLOCK, b"\0"))
        file.sync()
    finally:
        file.close()
    disk.sync_folder()
    # The marks come last: without them no start takes the directory for a log.
    marks = Marks(disk, header.log_id, [], True)
    chain = Chain(header.group, header.tag, contents.head)
    try:
        marks.replace_file(chain, header.ordinal, header.offset, opened)
    finally:
        marks.close()


def _copy(disk: Disk, part: Part, end: bytes) -> None:
    file = disk.create(part.name)
    try:
        for number in range(-(-part.length // CHUNK_BYTES)):
            write_all(file, number * CHUNK_BYTES, part.chunk(number))
        write_all(file, part.length, end)
        file.sync()
    finally:
        file.close()


def _read_back(disk: Disk, contents: Contents) -> None:
    """Judge the new log as a start would. Raises CorruptLog unless it is what the backup holds, or OSError."""
    tally = Tally()
    log = LogFiles.inspect(disk, LogSettings(), lambda ordinal, group: tally.take(group))
    try:
        if log.damage is not None:
            raise log.damage
        if log.unreadable:
            raise OSError(errno.EIO, "a sync of what was written failed")
        found = (log.group, log.head, tally.digest().hex())
        if found != (contents.group, contents.head, contents.digest):
            raise CorruptLog("what was restored is not what the backup holds: check the disk", log.whole.segment, 0)
    finally:
        log.abandon()
