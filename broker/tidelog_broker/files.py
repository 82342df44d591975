"""The files of a log, judged and read: what a start, a check and a salvage have in common (spec §8).

Owns the descriptors and where the log stands. Promises: nothing here changes a byte; core.recovery decides what the bytes prove.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self
from zlib import adler32

from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import GROUP_BYTES_MAX

from .core.base import BaseReader
from .core.format import (
    BLOCK,
    GROUP_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    SEGMENT_NAME,
    ZERO_STEP_MAX,
    Mark,
    SegmentHeader,
    authentic_header,
)
from .core.recovery import Chain, Group, SegmentReader, Tail, damage
from .disk import Disk, File
from .marks import Marks

SPARE = "spare"
QUARANTINE = "quarantine"
BASE_NAME = re.compile(r"base-\d{20}\Z")
UNFINISHED = re.compile(r"(spare|marks\.tmp|base-\d{20}(\.\d+)?\.tmp)\Z")
OURS = {QUARANTINE, "index", "marks", "run", "lost+found"}
OPEN_FILES_MAX = 128
"""Segments kept open for reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Sizes in bytes. They are for new segments; recovery uses what each segment's header says."""

    segment_bytes: int = 256 << 20
    group_bytes_max: int = GROUP_BYTES_MAX
    zero_step: int = 1 << 20
    prepare_ahead: int = 8 << 20
    align: int = 1
    mark_groups: int = 64
    mark_bytes: int = 64 << 20
    strict: bool = False
    accept_missing_mark: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that a reader of the format would refuse."""
        if self.align < 1 or self.align > BLOCK or self.align & (self.align - 1):
            raise ValueError(f"align: {self.align} is not a power of two up to {BLOCK}")
        if not GROUP_HEADER_BYTES < self.group_bytes_max <= GROUP_BYTES_MAX:
            raise ValueError(f"group_bytes_max: {self.group_bytes_max} is not up to {GROUP_BYTES_MAX}")
        if not 0 < self.zero_step <= ZERO_STEP_MAX:
            raise ValueError(f"zero_step: {self.zero_step} is not from 1 to {ZERO_STEP_MAX}")


def _no_random(count: int) -> bytes:
    raise AssertionError("a log that is only read makes nothing")


@dataclass(slots=True)
class Report:
    """What opening found and did; the broker logs it. `groups` and `bytes_read` of the log, behind group `since` of a checkpoint
    (0: from its beginning)."""

    created: bool = False
    groups: int = 0
    bytes_read: int = 0
    since: int = 0
    cut_segment: str = ""
    cut_offset: int = 0
    cut_bytes: int = 0
    quarantine: str = ""
    warnings: list[str] = field(default_factory=list)


class Whole(NamedTuple):
    """Up to where the log is good: behind this group, at this offset of this segment ("" before the first)."""

    segment: str = ""
    offset: int = 0
    group: int = 0
    position: int = 0


Replay = Callable[[int, Group], None]
"""(segment ordinal, group): called for each good group in order; may raise CorruptLog."""


class Since(NamedTuple):
    """A log point that a saved index names: a group, its tag, where its header stands and its body ends, and the head there."""

    group: int
    tag: bytes
    ordinal: int
    at: int
    end: int
    head: int


class Saved(Protocol):
    """Saved indexes: with one, only what came behind it is read."""

    def begin(self, base: BaseReader | None) -> None:
        """The log is read from its beginning, behind the removed segments that `base` tells of."""
        ...

    def named(self, log_id: bytes) -> dict[str, int]:
        """The groups that good checkpoints name as durable, by file name."""
        ...

    def points(self, log_id: bytes) -> Iterator[Since]:
        """Their log points, the newest first."""
        ...

    def take(self, since: Since, base: BaseReader | None) -> bool:
        """This one stands in the log: the index is taken from it, or False if it can't be."""
        ...


class LogFiles:
    """The files of a log and where it stands; opening.py makes it one that can be written."""

    def __init__(self, disk: Disk, settings: LogSettings, random: Callable[[int], bytes]) -> None:
        self.settings = settings
        self.report = Report()
        self.whole = Whole()
        self.tail: Tail | None = None
        self.damage: CorruptLog | None = None
        self.read_only = False
        self.unreadable = False
        self._cached = False
        self.syncs = 0
        self.end = SEGMENT_HEADER_BYTES
        self._disk = disk
        self._random = random
        self._chain = Chain()
        self._files: dict[int, File] = {}
        self._names: dict[int, str] = {}
        self.base: BaseReader | None = None
        self._bases: list[str] = []
        self._removed: list[str] = []
        self.to_remove: list[int] = []
        self._spare: File | None = None
        # (segment ordinal, offset behind its body) of the last durable group.
        self._last_group = (0, 0)
        self._last_at = 0
        self._prepared = 0
        self._full = False
        self._closed = False
        self._let_go = False
        self._groups_unmarked = 0
        self._bytes_unmarked = 0
        # Guards _prepared, _spare and the open segment's size: they are shared with the preparing thread.
        self._lock = threading.Lock()
        self._file: File
        self._zeroing: File
        self._header: SegmentHeader
        self._marks: Marks

    # -- judging

    @classmethod
    def inspect(
        cls,
        disk: Disk,
        settings: LogSettings,
        replay: Replay,
        until: int | None = None,
        saved: Saved | None = None,
        *,
        cached: bool = False,
    ) -> Self:
        """Read a log and judge it as `open` would, but change nothing: `tail` or `damage` has the verdict, `whole` how far it
        is good, and that far it can be read. `cached`: not asked is what the device holds; that was, when it was written.

        `until`: the number of a durable group to end with; what a running broker has written behind it is left alone.
        `unreadable`: the device failed meanwhile, so damage may go away. Raises InvalidHeader when it is no log or a newer one,
        OSError when it can't be opened.
        """
        log = cls(disk, settings, _no_random)
        log.read_only = True
        log._cached = cached
        log._marks = Marks(disk, b"", [], True)
        try:
            log._inspect(replay, until, saved)
        except CorruptLog as error:
            log.damage = error
        except BaseException:
            log.abandon()
            raise
        return log

    def _inspect(self, replay: Replay, until: int | None, saved: Saved | None) -> None:
        segments = self._list()
        if segments is None:
            raise InvalidHeader("there is no log in this directory")
        try:
            marks = self._read_marks(segments, settle=until is None)
        except OSError as error:
            self._io_error(error)
            marks = self._marks
        if not segments:
            marks.creation_or_damage()
            return
        bad_marks = None
        try:
            marks.good_or_damage(segments[-1], self.settings.accept_missing_mark)
        except CorruptLog as error:
            bad_marks = error  # told at the end: the groups are read all the same
        try:
            reader = self._judge(segments, replay, until, saved)
            if until is None:
                self.tail = reader.tail(marks.good, self._named(saved))
        except OSError as error:
            raise self._io_error(error) from error
        if until is not None and self.whole.group < until:
            raise reader.damage(f"group {until} was durable, the last good one is {self.whole.group}")
        if bad_marks:
            raise bad_marks

    def _named(self, saved: Saved | None) -> dict[str, int]:
        """The groups that a base and the saved index name as durable."""
        named = saved.named(self.log_id) if saved else {}
        return named if self.base is None else {**named, self.base.name: self.base.base.told}

    def _io_error(self, error: OSError) -> CorruptLog:
        """An I/O error is a hole like others, but one that may go away. Raises every other error again."""
        if error.errno != errno.EIO:
            raise error
        self.unreadable = True
        at = self.whole
        return damage(at.segment, at.offset, self._chain, f"the device can't be read: {error}")

    def _list(self) -> list[str] | None:
        """The segments' names in order; None when there is nothing yet. Raises InvalidHeader for what is not ours."""
        names = self._disk.names()
        segments = sorted(name for name in names if SEGMENT_NAME.match(name))
        self._bases = sorted(name for name in names if BASE_NAME.match(name))
        ours = {*OURS, *segments, *self._bases}
        foreign = [name for name in names if name not in ours and not UNFINISHED.match(name)]
        if "marks" not in names and not segments and not self._bases:
            if foreign:
                raise InvalidHeader(f"not a Tidelog directory: it holds {foreign[0]!r} and no log")
            return None
        for name in foreign:
            if name.startswith("base-") or name[:21].replace("-", "").isdigit():
                raise InvalidHeader(f"{name} is of a kind that this version does not read: use a newer Tidelog")
        if self._bases:
            self._open_base(self._bases[-1])
        self._removed = [name for name in segments if int(name[:10]) <= self._base_ordinal]
        return segments[len(self._removed) :]

    def _open_base(self, name: str) -> None:
        """The base of the greatest group counts; the chain goes on behind that group. Raises CorruptLog or InvalidHeader."""
        file = self._disk.open(name)
        try:
            size = file.size()
        finally:
            file.close()
        self.base = BaseReader(name, self._read_base, size)
        base = self.base.base
        self._chain = Chain(base.group, base.tag, base.head)

    def _read_base(self, offset: int, count: int) -> bytes:
        # Opened for each block: a base is read once, and a descriptor for it would have to be kept.
        assert self._bases
        file = self._disk.open(self._bases[-1])
        try:
            return file.read(offset, count)
        finally:
            file.close()

    @property
    def _base_ordinal(self) -> int:
        """The last segment that is gone; 0 if none is."""
        return self.base.base.ordinal if self.base else 0

    def _read_marks(self, segments: list[str], *, settle: bool = True) -> Marks:
        """The marks, read from the disk and not from its cache, as will be the segments."""
        exists = "marks" in self._disk.names()
        if settle:
            self._settle(exists, segments)
        self._marks = Marks.read(self._disk, exists)
        return self._marks

    def _settle(self, marked: bool, segments: list[str]) -> None:
        """Sync and forget what will be judged: behind a failed sync the cache may hold bytes that the disk does not."""
        for name in [*self._bases[-1:], *segments, *(["marks"] if marked else [])]:
            file = self._disk.open(name, writable=not self.read_only)
            try:
                file.sync()
                file.drop_cache()
            except OSError:
                if not self.read_only:
                    raise
                # What is read now may be the cache's word: good enough to look, not to cut anything.
                self.unreadable = True
            finally:
                file.close()
        if not self.read_only:
            self._disk.sync_folder()

    def _judge(
        self, segments: list[str], replay: Replay, until: int | None = None, saved: Saved | None = None
    ) -> SegmentReader:
        """Read the groups behind a saved index, or all, at most to number `until`; the reader of the last segment.

        Raises CorruptLog.
        """
        if self.base and self._marks.log_id and self.base.base.log_id != self._marks.log_id:
            raise damage(self.base.name, 0, self._chain, "it belongs to another log than the marks")
        since = None
        if saved is not None:
            since = self._resume(segments, saved)
            if since is None:
                saved.begin(self.base)
        reader = None
        for place, name in enumerate(segments, self._base_ordinal + 1):
            if since is not None and place < since.ordinal:
                continue
            if reader is not None:
                if self.whole.group == until:
                    break
                reader.sealed_or_damage()
            if int(name[:10]) != place:
                raise damage(name, 0, self._chain, f"segment {place} is missing")
            reader = self._read_segment(name, replay, until, since if since and since.ordinal == place else None)
        assert reader is not None
        return reader

    def _resume(self, segments: list[str], saved: Saved) -> Since | None:
        """The newest saved index that beyond doubt belongs to this log, as it is; the chain stands behind it then.

        A mark is written before each checkpoint, so one that no mark reaches is in doubt, and so is whatever can't be read.
        """
        marks = self._marks.good
        for since in saved.points(self.log_id):
            if not marks or since.group > marks[-1].group:
                continue
            try:
                stands = self._stands(since, segments)
            except (CorruptLog, InvalidHeader):
                continue
            if stands and saved.take(since, self.base):
                self._chain = Chain(since.group, since.tag, since.head)
                self._last_at = since.at
                for name in segments[: since.ordinal - 1 - self._base_ordinal]:
                    self._names[int(name[:10])] = name
                self.report.since = since.group
                return since
        return None

    def _stands(self, since: Since, segments: list[str]) -> bool:
        """Whether the group that a saved index names ends where it says, all segments before it are there with their seals, and
        no mark says otherwise."""
        first = self._base_ordinal + 1
        if not first <= since.ordinal < first + len(segments):
            return False
        for mark in self._marks.good:
            if mark.group == since.group and (mark.ordinal, mark.offset, mark.next_position) != (
                since.ordinal,
                since.end,
                since.head,
            ):
                return False
        group, tag, position = self._chain.group, self._chain.tag, self._chain.position
        for place, name in enumerate(segments[: since.ordinal + 1 - first], first):
            file = self._disk.open(name)
            try:
                header = SegmentHeader.unpack(file.read(0, SEGMENT_HEADER_BYTES), name)
                follows = (header.ordinal, header.first_group, header.previous_tag, header.first_position)
                if header.log_id != self.log_id or follows != (place, group + 1, tag, position):
                    return False
                if place == since.ordinal:
                    head = authentic_header(
                        file.read(since.at, GROUP_HEADER_BYTES), 0, header.key, header.ordinal, since.at
                    )
                    if head is None or head.seal or (head.number, head.tag) != (since.group, since.tag):
                        return False
                    body = file.read(since.at + GROUP_HEADER_BYTES, head.body_bytes)
                    self.report.bytes_read += len(body) + GROUP_HEADER_BYTES
                    return since.end == since.at + GROUP_HEADER_BYTES + len(body) and adler32(body) == head.body_sum
                offset = file.size() - GROUP_HEADER_BYTES
                seal = authentic_header(file.read(offset, GROUP_HEADER_BYTES), 0, header.key, header.ordinal, offset)
                if seal is None or not seal.seal:
                    return False
                group, tag, position = seal.number, seal.previous_tag, seal.first_position
            finally:
                file.close()
        return False

    def _read_segment(self, name: str, replay: Replay, until: int | None, since: Since | None = None) -> SegmentReader:
        chain = self._chain
        self.whole = Whole(name, 0, chain.group, chain.position)
        file = self._disk.open(name)
        self._files[int(name[:10])] = file
        size = file.size()
        if self.read_only and not self._cached:
            file.drop_cache()  # asked is what the disk holds
        block = file.read(0, SEGMENT_HEADER_BYTES)
        if self.read_only and block[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
            raise damage(name, 0, chain, "its first bytes are no segment's")
        header = self._header = SegmentHeader.unpack(block, name)
        if not self._marks.log_id:
            self._marks.log_id = header.log_id
        if header.log_id != self._marks.log_id:
            raise damage(name, 0, chain, "it belongs to another log than the marks")
        self._keep(header, file)
        end = since.end if since else None
        reader = SegmentReader(header, file.read, size, chain, patient=self.read_only, since=end)
        self.whole = Whole(name, reader.offset, chain.group, chain.position)
        reader.begins_as_marked(self._marks.good)
        for group in reader.groups() if chain.group != until else ():
            reader.ends_as_marked(self._marks.good)
            replay(header.ordinal, group)
            self._last_at = group.header.offset
            self.report.groups += 1
            self.whole = Whole(name, reader.offset, chain.group, chain.position)
            if chain.group == until:
                break
        self.report.bytes_read += size - (end or 0)
        if reader.end > SEGMENT_HEADER_BYTES:
            self._last_group = (header.ordinal, reader.end)
        return reader

    # -- what is open

    @property
    def log_id(self) -> bytes:
        return self._marks.log_id

    @property
    def head(self) -> int:
        """The first position that is not durable."""
        return self._chain.position

    @property
    def group(self) -> int:
        """Number of the last durable group; 0 before the first."""
        return self._chain.group

    def point(self) -> Since:
        """The log point of the last durable group."""
        chain, (ordinal, end) = self._chain, self._last_group
        return Since(chain.group, chain.tag, ordinal, self._last_at, end, chain.position)

    def marks(self) -> list[Mark]:
        """The good marks that were found, the newest last."""
        return self._marks.good

    def _keep(self, header: SegmentHeader, file: File) -> None:
        """Remember a segment's open file; the one longest open is closed when there are too many."""
        self._names[header.ordinal] = header.name
        self._files[header.ordinal] = file
        if len(self._files) > OPEN_FILES_MAX:
            self._files.pop(next(iter(self._files))).close()

    def _segment(self, ordinal: int) -> File:
        """A segment's file, opened again if it was closed. Raises OSError."""
        file = self._files.get(ordinal)
        if file is None:
            if len(self._files) >= OPEN_FILES_MAX:
                # The open segment is the youngest when it comes, but may be the oldest by now.
                oldest = next(known for known in self._files if known != self._header.ordinal)
                self._files.pop(oldest).close()
            file = self._files[ordinal] = self._disk.open(self._names[ordinal])
        return file

    def abandon(self) -> None:
        """Let go of every file without another word to the disk; once, for its descriptor may be another file's by then."""
        if self._let_go:
            return
        self._let_go = True
        for file in [
            *self._files.values(),
            getattr(self, "_zeroing", None),
            self._spare,
            getattr(self, "_marks", None),
        ]:
            if file is not None:  # opening may have failed before there was one
                file.close()
        self._files.clear()
