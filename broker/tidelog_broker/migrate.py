"""Copying a log of another format or an older version into a new Tidelog log: `tidelog migrate`.

Promises: the source is opened read-only and not a byte of it changes; positions, stream versions, event ids, types, metadata and
payloads are the source's, and an append stays one append. The target is there whole, read back and durable, or not at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from zlib import crc32

from tidelog.batch import COLUMNS, CRC, EVENTS, HEADER, HEADER_BYTES, pack_columns, signature_of
from tidelog.errors import InvalidHeader

from .core.format import MARK_MAGIC, SEGMENT_MAGIC, SEGMENT_NAME, VERSION
from .disk import Disk, Locked, RealDisk, RealFile
from .eventfold import EventfoldReader
from .log import FailStop, Log, LogSettings
from .source import OLDER, Append, Source, SourceRefused, Torn, Verdict
from .staging import Staging, Unfit
from .verify import HEALTHY, survey

GROUP_BYTES = 4 << 20
"""A group is committed before it gets larger, unless one append is."""

Check = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What was copied. `torn`: the beginning of an append at the source's end, which was left out."""

    source: str
    kind: str
    version: int
    target: str
    log_id: str
    events: int
    appends: int
    batches: int
    streams: int
    has_times: bool
    torn: Torn | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"torn": self.torn and self.torn._asdict()}


def migrate(source: Path, target: Path) -> Migrated:
    """Copy `source`, a file of EventfoldDB or a directory of an older Tidelog, into a new log at `target`.

    Raises InvalidHeader (its kind or version is unknown), SourceRefused (it is damaged, or holds what can't be kept), Unfit or
    Locked (source or target can't be used), StorageFull, FailStop or OSError. The target is not there then.
    """
    with opened(source) as (reader, check_unchanged):
        staging = Staging(target)
        if source.resolve() in staging.target.parents:
            raise Unfit(f"{target} lies inside {source}, which is not to be changed")
        with staging:
            log = Log.open(staging.disk, LogSettings(), os.urandom)
            try:
                copy = Copy(log)
                for append in reader.appends():
                    copy.take(append)
                copy.commit()
                check_unchanged()
                log.close()
            finally:
                log.abandon()
            found = survey(staging.disk, LogSettings())
            if (found.verdict, found.events, found.batches) != (HEALTHY, copy.position, copy.batches):
                raise FailStop(f"what was written can't be read back: {found.verdict}, {found.damage}")
            staging.finish()
    return Migrated(
        source=str(source), kind=reader.kind, version=reader.version, target=str(target), log_id=found.log_id,
        events=copy.position, appends=copy.appends, batches=copy.batches, streams=found.streams,
        has_times=reader.has_times, torn=reader.torn,
    )  # fmt: skip


# Reading


def opened(path: Path) -> AbstractContextManager[tuple[Source, Check]]:
    """The reader for what stands at `path`, and a check that nobody has changed it meanwhile, which raises Locked.

    Raises InvalidHeader, Unfit, Locked or OSError when it is entered.
    """
    return opened_folder(path) if path.is_dir() else opened_file(path)


@contextmanager
def opened_folder(path: Path) -> Iterator[tuple[Source, Check]]:
    try:
        disk = RealDisk(path)
    except OSError as error:
        raise Unfit(f"{path}: {error.strerror}") from error
    try:
        disk.lock()  # while we have it no broker writes
        yield older(disk), lambda: None
    finally:
        disk.close()


@contextmanager
def opened_file(path: Path) -> Iterator[tuple[Source, Check]]:
    try:
        # A named pipe must not hold us up.
        file = RealFile(path.name, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise Unfit(f"{path}: {error.strerror}") from error
    try:
        before = os.fstat(file.fd)
        if not stat.S_ISREG(before.st_mode):
            raise Unfit(f"{path} is neither a file nor a directory")

        def check() -> None:
            now = os.fstat(file.fd)
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise Locked(path, None)

        yield EventfoldReader(file.read, before.st_size), check
    finally:
        file.close()


def older(disk: Disk) -> Source:
    """The reader of a Tidelog directory. Raises InvalidHeader for what is none, and for a version that needs no migration."""
    names = disk.names()
    found = [name for name in names if SEGMENT_NAME.match(name)] or [name for name in names if name == "marks"]
    if not found:
        raise InvalidHeader("the directory holds no log of Tidelog")
    name = found[0]
    file = disk.open(name)
    try:
        head = file.read(0, 10)
    finally:
        file.close()
    if head[:8] not in (SEGMENT_MAGIC, MARK_MAGIC):
        raise InvalidHeader(f"{name}: magic is {head[:8]!r}, not {SEGMENT_MAGIC!r}: this is no file of a Tidelog log")
    version = int.from_bytes(head[8:], "little")
    if version == VERSION:
        raise Unfit(f"{name} is of format version {version}, which this Tidelog writes: nothing is to be migrated")
    if version not in OLDER:
        raise InvalidHeader(f"{name}: format version {version} is unknown to this Tidelog, which writes {VERSION}")
    return OLDER[version](disk)


# Writing


class Copy:
    """Appends on their way into a new log, many in a group; the counts are of what was taken."""

    def __init__(self, log: Log) -> None:
        self.position = 0
        self.appends = 0
        self.batches = 0
        self._log = log
        self._staged: list[bytes] = []
        self._bytes = 0

    def take(self, append: Append) -> None:
        """Stage an append, behind a commit when the group would get too large. Raises SourceRefused, and what `commit` raises."""
        batches = pack_append(append)
        size = sum(map(len, batches))
        if size > self._log.body_bytes_max:
            raise SourceRefused(
                Verdict.APPEND_TOO_LARGE,
                append.offset,
                f"it takes {size} bytes in a log, and a group holds {self._log.body_bytes_max}",
            )
        if self._bytes + size > GROUP_BYTES:
            self.commit()
        self._staged += batches
        self._bytes += size
        self.appends += 1
        self.batches += len(batches)
        self.position += len(append.events)

    def commit(self) -> None:
        """What is staged, durable when this returns. Raises StorageFull or FailStop."""
        if self._staged:
            self._log.commit(self._staged, len(self._staged), self.position)
            self._staged, self._bytes = [], 0


def pack_append(append: Append) -> list[bytes]:
    """The batches of an append (FORMAT.md §3): one for each run of events of the same stream.

    Positions follow the order of the batches, so a stream whose events do not stand together in the source gets several.
    """
    runs = [list(run) for _, run in groupby(append.events, key=itemgetter(0))]
    position = append.first_position
    batches = []
    for index, run in enumerate(runs):
        stream, first_version = run[0][:2]
        _, _, ids, types, metadata, payloads = zip(*run, strict=True)
        name = stream.encode()
        region = pack_columns(b"".join(ids), list(types), list(metadata), list(payloads))
        head = HEADER.pack(
            EVENTS, 0, len(name), COLUMNS, HEADER_BYTES + len(name) + len(region) + 4, index, len(runs), len(run),
            len(region), position, first_version, append.recorded_at, signature_of(types),
        )  # fmt: skip
        body = head + name + region
        batches.append(body + CRC.pack(crc32(body)))
        position += len(run)
    return batches
