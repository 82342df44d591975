"""The log on disk: one writer, groups, segments, marks; opening is recovery.

Owns every file of the directory. Promises the writer invariants of spec §6: one write and one data-sync a group, not a byte
of the next before that sync returned; marks only behind the syncs they speak of; a failed sync is never retried.
FORMAT.md has the bytes, DURABILITY.md the argument. Must not import zmq, threading's queues, or the clock.
"""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from tidelog.batch import CONTROL, HEADER_BYTES
from tidelog.errors import CorruptLog, InvalidHeader, Overloaded, StorageFull
from tidelog.wire import CRC_RESIDUE

from .core.base import BaseReader
from .core.format import (
    GROUP_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_NAME,
    SegmentHeader,
    authentic_header,
    pack_group_header,
    pack_seal,
)
from .files import BASE_NAME, SPARE, LogSettings, Report
from .opening import ROOM_ERRORS, ZEROS, FailStop, OpenFiles

__all__ = ["FailStop", "Log", "LogSettings", "Place", "Report"]


SHORT_OF_MEANS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Place(NamedTuple):
    """Where a group's body lies."""

    ordinal: int
    offset: int


class Log(OpenFiles):
    """An open log (`Log.open`). One thread commits; `prepare` may run in one other thread."""

    # -- appending

    @property
    def body_bytes_max(self) -> int:
        """The largest body that one group may have, in the open segment and in those that follow it."""
        return min(self._header.group_bytes_max, self.settings.group_bytes_max) - GROUP_HEADER_BYTES

    def commit(self, parts: list[bytes], batches: int, next_position: int) -> Place:
        """Write one group (batches without gaps, in `parts`) and sync it; durable when this returns.

        Raises StorageFull: it is not in the log and never will be. Raises FailStop: nobody knows, the process must end.
        """
        body = b"".join(parts)
        offset = self._make_room(len(body))
        chain = self._chain
        header = pack_group_header(
            self._header.key, body, chain.group + 1, self._header.ordinal, offset, chain.position, batches, chain.tag
        )
        self._write(offset, header + body)
        try:
            self._file.datasync()
        except OSError as error:
            # Never retried: the kernel may have dropped the pages and call the next sync a success.
            raise FailStop(f"data-sync of group {chain.group + 1}: {error}") from error
        self.syncs += 1
        chain.group += 1
        chain.tag = header[-8:]
        chain.position = next_position
        stop = offset + len(header) + len(body)
        # The end is where the next record may begin: with `align`, no cut and no zeros ever touch this group's last block.
        self.end = self._header.aligned(stop)
        self._last_group = (self._header.ordinal, stop)
        self._last_at = offset
        self._groups_unmarked += 1
        self._bytes_unmarked += len(header) + len(body)
        settings = self.settings
        if (
            settings.strict
            or self._groups_unmarked >= settings.mark_groups
            or self._bytes_unmarked >= settings.mark_bytes
        ):
            self.mark()
        return Place(self._header.ordinal, offset + len(header))

    def _make_room(self, body_bytes: int) -> int:
        """The offset for a group, its space prepared, in a new segment when this one is at its end."""
        offset = self._header.aligned(self.end)
        room = GROUP_HEADER_BYTES + body_bytes + 2 * GROUP_HEADER_BYTES + self._header.align
        if offset + room > self._header.segment_bytes and self.end > SEGMENT_HEADER_BYTES:
            self._roll()
            offset = self._header.aligned(self.end)
        while offset + room > self._prepared:
            with self._lock:
                if not self._zero_more(max(self._header.zero_step, 1)):
                    raise StorageFull("no room on disk to prepare space for this append")
        return offset

    def _write(self, offset: int, data: bytes) -> None:
        """One write; when the disk has no room, everything back to T and synced."""
        try:
            if self._file.write(offset, data) == len(data):
                return
            reason = "short write"
        except OSError as error:
            if error.errno not in ROOM_ERRORS:
                raise FailStop(f"write at offset {offset} of {self._header.name}: {error}") from error
            reason = str(error)
        with self._lock:
            try:
                self._file.truncate(self.end)
                self._file.sync()
            except OSError as error:
                raise FailStop(f"rollback behind {reason}: {error}") from error
            self._prepared = self.end
            self._full = True
        raise StorageFull(f"no room on disk ({reason}); the append is not in the log")

    def _roll(self) -> None:
        """Seal this segment and open the next; only behind its mark comes the first group."""
        with self._lock:
            if self._spare is None:
                try:
                    self._spare = self._new_spare()
                except OSError as error:
                    self._drop_spare()
                    failure = self._room_or_stop(error, "preparing the next segment")
                    self._full = isinstance(failure, StorageFull)
                    raise failure from error
        offset = self._header.aligned(self.end)
        chain = self._chain
        seal = pack_seal(self._header.key, chain.group, self._header.ordinal, offset, chain.position, chain.tag)
        self._write(offset, seal)
        with self._lock:
            spare, self._spare = self._spare, None
            assert spare is not None
            try:
                self._file.truncate(offset + len(seal))
                self._file.sync()
                zeroing = self._zeroing
                self._use_spare(spare, self._header.ordinal + 1)
                zeroing.close()
            except OSError as error:
                raise FailStop(f"rolling to segment {self._header.ordinal + 1}: {error}") from error
        self.mark()

    # -- preparing, off the append path

    def prepare(self) -> bool:
        """One step: zeros ahead in the open segment, or the spare. True if something was done; may run in a thread.

        A full disk is remembered and no error here: StorageFull is for the append that needs the room.
        Raises FailStop.
        """
        with self._lock:
            if self._closed:
                return False
            ahead = min(self.end + self.settings.prepare_ahead, self._header.segment_bytes)
            if self._prepared < ahead:
                return self._zero_more(min(self._header.zero_step, ahead - self._prepared))
            if self._spare is None and self.end > self._header.segment_bytes // 2:
                try:
                    self._spare = self._new_spare()
                except OSError as error:
                    self._drop_spare()
                    failure = self._room_or_stop(error, "preparing the next segment")
                    if isinstance(failure, FailStop):
                        raise failure from error
                    self._full = True
                    return False
                return True
            self._full = False
        return False

    @property
    def full(self) -> bool:
        """True when the last step of preparing found no room."""
        return self._full

    def _zero_more(self, count: int) -> bool:
        """Zeros behind the prepared space, synced through a description of its own (see Disk.open). Call with the lock."""
        try:
            done = self._zeroing.write(self._prepared, ZEROS[:count])
        except OSError as error:
            if error.errno not in ROOM_ERRORS:
                raise FailStop(f"preparing space in {self._header.name}: {error}") from error
            done = 0
        if done:
            try:
                self._zeroing.datasync()
            except OSError as error:
                raise FailStop(f"data-sync of prepared space: {error}") from error
        self._prepared += done
        self._full = done < count
        return done > 0

    def _drop_spare(self) -> None:
        """A spare that could not be finished gives its room back; what can't be unlinked is deleted at start."""
        try:
            self._disk.unlink(SPARE)
        except OSError:
            pass

    @staticmethod
    def _room_or_stop(error: OSError, doing: str) -> StorageFull | FailStop:
        if error.errno in ROOM_ERRORS:
            return StorageFull(f"no room on disk: {doing}: {error}")
        return FailStop(f"{doing}: {error}")

    @property
    def wants_preparing(self) -> bool:
        """True when `prepare` has something to do; a guess without the lock, for the loop to ask after each group."""
        end, header = self.end, self._header
        ahead = min(end + self.settings.prepare_ahead // 2, header.segment_bytes)
        return self._prepared < ahead or (self._spare is None and end > header.segment_bytes // 2)

    # -- removing what was truncated

    def removable(self, first_position: int) -> int:
        """The last segment whose every event lies before a position, and not the open one; 0 if there is none."""
        ordinals = sorted(self._names)
        last = 0
        for ordinal, following in pairwise(ordinals):
            if int(self._names[following][11:31]) <= first_position:
                last = ordinal
        return last

    def segment_header(self, ordinal: int) -> SegmentHeader:
        """A segment's header. Raises CorruptLog."""
        if ordinal not in self._names:
            # Who reads up to a durable group only has not met an open segment that holds none yet.
            names = (name for name in self._disk.names() if SEGMENT_NAME.match(name))
            self._names.update((ordinal, name) for name in names if int(name[:10]) == ordinal)
        try:
            return SegmentHeader.unpack(self.read(ordinal, 0, SEGMENT_HEADER_BYTES), self._names[ordinal])
        except InvalidHeader as error:
            raise self.rot(ordinal, 0, error.text) from None

    def use_base(self) -> BaseReader:
        """Go on with the newest base, which is durable. Raises CorruptLog or OSError."""
        known, chain = self._bases, self._chain
        self._bases = sorted(name for name in self._disk.names() if BASE_NAME.match(name))
        try:
            self._open_base(self._bases[-1])
        except BaseException:
            self._bases = known
            raise
        self._chain = chain
        assert self.base is not None
        return self.base

    def remove_told(self) -> None:
        """From here on the segments that the base tells of are `to_remove`."""
        self.to_remove = [ordinal for ordinal in sorted(self._names) if ordinal <= self._base_ordinal]

    def remove_one(self) -> None:
        """Delete the first segment of `to_remove`, and with the last the older bases. Raises FailStop."""
        gone = self.to_remove.pop(0)
        file = self._files.pop(gone, None)
        if file is not None:
            file.close()
        try:
            self._disk.unlink(self._names.pop(gone))
            if not self.to_remove:
                for name in self._bases[:-1]:
                    self._disk.unlink(name)
            self._disk.sync_folder()
        except OSError as error:
            raise FailStop(f"deleting a truncated segment: {error}") from error

    # -- marks, reading, closing

    @property
    def unmarked(self) -> bool:
        """True when groups are durable that no mark names."""
        return self._groups_unmarked > 0

    def mark(self, *, clean: bool = False) -> None:
        """Write the mark of the last durable group. Raises FailStop."""
        try:
            self._marks.write_slot(self._chain, *self._last_group, self._header, clean=clean)
        except OSError as error:
            raise FailStop(f"writing a mark: {error}") from error
        self._groups_unmarked = self._bytes_unmarked = 0

    def read(self, ordinal: int, offset: int, count: int) -> bytes:
        """Stored bytes. Raises CorruptLog when the device can't give them or the file is shorter, and Overloaded for want of
        memory or descriptors."""
        try:
            data = self._segment(ordinal).read(offset, count)
        except OSError as error:
            if error.errno in SHORT_OF_MEANS:
                raise Overloaded(f"a segment can't be read now: {error.strerror}") from error
            raise self.rot(ordinal, offset, str(error)) from error
        if len(data) < count:
            raise self.rot(ordinal, offset, f"it ends before offset {offset + count}")
        return data

    def is_between(self, ordinal: int, offset: int, data: memoryview) -> bool:
        """Whether the bytes at a place are what may stand between two event batches: padding, group headers, control batches."""
        raw, at = bytes(data), 0
        try:
            header = self.segment_header(ordinal)
        except CorruptLog:
            return False
        while at < len(raw):
            if raw[at] == CONTROL:
                length = int.from_bytes(raw[at + 4 : at + 8], "little")
                if length < HEADER_BYTES or crc32(raw[at : at + length]) != CRC_RESIDUE:
                    return False
                at += length
            elif raw[at]:
                if authentic_header(raw, at, header.key, ordinal, offset + at) is None:
                    return False
                at += GROUP_HEADER_BYTES
            else:
                at = len(raw) - len(raw[at:].lstrip(b"\0"))
        return True

    def rot(self, ordinal: int, offset: int, why: str) -> CorruptLog:
        """Stored bytes that were good when the log was opened, or written, and are not now."""
        name = self._names[ordinal]
        return CorruptLog(f"segment {name} is damaged at offset {offset}: {why}", name, offset)

    def readable(self, ordinal: int) -> int:
        """How many bytes a segment has now."""
        return self._segment(ordinal).size()

    def segments(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Clean stop: cut the open segment to its end, sync, mark. Raises FailStop. A log that is only read is let go."""
        if self.read_only:
            self.abandon()
            return
        with self._lock:
            # No more zeros behind the cut, and none into a descriptor that may be another file's by then.
            self._closed = True
            try:
                self._file.truncate(self.end)
                self._file.sync()
            except OSError as error:
                raise FailStop(f"closing {self._header.name}: {error}") from error
        self.mark(clean=True)
        self.abandon()
