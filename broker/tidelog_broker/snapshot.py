"""The files of a log at a log point, also of a running broker's, and the backup file that is made of them.

Owns the open files. Promises: what is durable at the log point is in the backup, and nothing behind it; the backup is read
back and judged before it gets its name. The broker is not disturbed: its files are only read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tidelog.errors import CorruptLog, Overloaded

from .backup import (
    CHUNK_BYTES,
    END_BYTES,
    NO_DIGEST,
    Backup,
    Contents,
    Header,
    LogFile,
    Part,
    judged,
    new_digest,
    pack_chunk,
    pack_end,
    pack_part,
    unfit,
)
from .core.base import BaseReader
from .core.format import SEGMENT_HEADER_BYTES, SEGMENT_NAME, SegmentHeader
from .core.recovery import Chain, SegmentReader
from .disk import Disk, File
from .files import BASE_NAME

TRIES = 10
"""How often files may vanish (a truncation deletes them) between their listing and their opening."""


class Cut:
    """A file of the log, as far as the log point."""

    def __init__(self, file: File, length: int) -> None:
        self.name = file.name
        self.length = length
        self.file = file

    def read(self, offset: int, count: int) -> bytes:
        try:
            return self.file.read(offset, max(0, min(count, self.length - offset)))
        except OSError as error:
            raise OSError(error.errno, f"{self.name} can't be read at offset {offset}: {error.strerror}") from error


class _Moved(Exception):
    """The log was truncated beyond the group that was asked for: ask again."""


class Snapshot:
    """The open files of a log, and the log point that they are cut at."""

    def __init__(self, header: Header, files: list[Cut]) -> None:
        self.header = header
        self.files = files

    def close(self) -> None:
        for cut in self.files:
            cut.file.close()


def take(disk: Disk, ask: Callable[[], tuple[bytes, int]], made_at: int, older: Backup | None = None) -> Snapshot:
    """Open everything that a backup needs. `ask` gives the log's id and the number of a group that is durable.

    With `older`, the segments that an older backup has whole are left out. Raises CorruptLog, InvalidHeader, OSError, and
    Overloaded when the files went away again and again.
    """
    for _ in range(TRIES):
        log_id, group = ask()
        opened: list[Cut] = []
        try:
            _open(disk, opened)
            return _at(log_id, group, opened, made_at, older)
        except BaseException as error:
            for cut in opened:
                cut.file.close()
            if not isinstance(error, FileNotFoundError | _Moved):
                raise
    raise Overloaded("the log's files vanished while they were opened, again and again")


def _open(disk: Disk, opened: list[Cut]) -> None:
    """The newest base, if there is one, and all segments: from here on nothing can take them away."""
    names = sorted(disk.names())
    bases = [name for name in names if BASE_NAME.match(name)]
    for name in [*bases[-1:], *filter(SEGMENT_NAME.match, names)]:
        file = disk.open(name)
        opened.append(Cut(file, file.size()))


def _at(log_id: bytes, group: int, opened: list[Cut], made_at: int, older: Backup | None) -> Snapshot:
    """Choose and cut the files for the log point of a durable group; those that are not needed are closed."""
    base = opened[0] if opened and BASE_NAME.match(opened[0].name) else None
    told = 0 if base is None else int(base.name[5:])
    rows = [(_header_of(cut, log_id), cut) for cut in opened[base is not None :]]
    # What the base tells already is only waiting for its deletion.
    alive = [(header, cut) for header, cut in rows if header.first_group > told]
    if not alive:
        raise CorruptLog("there is no open segment, so no log to back up", "", 0)
    if base is not None:
        told = max(told, BaseReader(base.name, base.read, base.length).base.told)
    if group < told:
        raise _Moved
    kept = [(header, cut) for header, cut in alive if header.first_group <= group]
    first = alive[0][0].ordinal
    if kept:
        at = _walk(*kept[-1], group)
        ordinal, offset = kept[-1][0].ordinal, at.end
        tag, position, open_ordinal = at.chain.tag, at.chain.position, ordinal + 1
        kept[-1][1].length = offset
    else:
        ordinal = offset = 0
        tag, position = alive[0][0].previous_tag, alive[0][0].first_position
        open_ordinal = first
    since = _left_out(kept, older, log_id, group)
    files = [*([base] if base else []), *(cut for _, cut in kept if since is None or _ordinal(cut) >= since)]
    for cut in opened:
        if cut not in files:
            cut.file.close()
    header = Header(
        parts=len(files), log_id=log_id, group=group, ordinal=ordinal, offset=offset, next_position=position, tag=tag,
        first_ordinal=first, open_ordinal=open_ordinal, made_at=made_at,
        **({} if since is None or older is None else {"since": older.digest}),
    )  # fmt: skip
    return Snapshot(header, files)


def _ordinal(cut: Cut) -> int:
    return int(cut.name[:10])


def _header_of(cut: Cut, log_id: bytes) -> SegmentHeader:
    header = SegmentHeader.unpack(cut.read(0, SEGMENT_HEADER_BYTES), cut.name)
    if header.log_id != log_id:
        raise CorruptLog(f"segment {cut.name} belongs to another log", cut.name, 0)
    return header


def _walk(header: SegmentHeader, cut: Cut, group: int) -> SegmentReader:
    """Read one segment up to a durable group. Raises CorruptLog when it is not there."""
    chain = Chain(header.first_group - 1, header.previous_tag, header.first_position)
    reader = SegmentReader(header, cut.read, cut.length, chain)
    for _ in reader.groups():
        if chain.group == group:
            return reader
    raise reader.damage(f"group {group} was durable, the last good one is {chain.group}")


def _left_out(kept: list[tuple[SegmentHeader, Cut]], older: Backup | None, log_id: bytes, group: int) -> int | None:
    """The first ordinal that an older backup does not have whole; None when it has none of them whole.

    Raises CorruptLog when it is no backup of this log's past.
    """
    if older is None:
        return None
    header = older.header
    if header.log_id != log_id:
        raise unfit(older.name, "it is of another log")
    if header.group > group:
        raise unfit(older.name, f"it goes up to group {header.group}, and the log only to {group}")
    mine = {block.ordinal: cut for block, cut in kept}
    if header.ordinal not in mine or header.ordinal == min(mine):
        return None  # what it has whole was truncated since, or it has nothing whole
    theirs = older.parts[-1]
    # The key in a segment's header is random, so this is the very same segment, and by its chain all before it are.
    if theirs.read(0, SEGMENT_HEADER_BYTES) != mine[header.ordinal].read(0, SEGMENT_HEADER_BYTES):
        raise unfit(older.name, "it is of another history of this log, one that was restored from a backup")
    return header.ordinal


class _Sink:
    """Writes a file from front to back and digests it."""

    def __init__(self, file: File) -> None:
        self.at = 0
        self.digest: Any = new_digest()
        self._file = file

    def put(self, data: bytes) -> None:
        self.digest.update(data)
        write_all(self._file, self.at, data)
        self.at += len(data)


def write_all(file: File, offset: int, data: bytes) -> None:
    """All of `data`, in as many writes as it takes. Raises OSError."""
    view = memoryview(data)
    while view:
        done = file.write(offset, view)
        if done <= 0:
            raise OSError(errno.ENOSPC, "short write")
        offset, view = offset + done, view[done:]


def write_backup(disk: Disk, name: str, snapshot: Snapshot) -> tuple[Contents, int]:
    """Make the backup file; durable and judged when this returns: what it holds, and its bytes.

    Until then it is called `name`.tmp. Raises CorruptLog or InvalidHeader when the log is damaged, FileExistsError when there
    is such a file, OSError; none leaves a file behind, unless the very last sync failed: then a whole one may have its name. A
    kill may leave the .tmp.
    """
    temporary = f"{name}.tmp"
    file = disk.create(temporary)
    try:
        try:
            contents, length = _fill(file, name, snapshot)
        finally:
            file.close()
        disk.rename(temporary, name)
    except (Exception, KeyboardInterrupt):
        try:
            disk.unlink(temporary)
        except OSError:
            pass  # what went wrong first is what has to be told
        raise
    disk.sync_folder()
    return contents, length


def _fill(file: File, name: str, snapshot: Snapshot) -> tuple[Contents, int]:
    sink = _Sink(file)
    sink.put(snapshot.header.pack())
    parts: list[LogFile] = []
    for cut in snapshot.files:
        sink.put(pack_part(cut.name, cut.length))
        parts.append(Part(file, name, cut.name, sink.at, cut.length))
        for at in range(0, cut.length, CHUNK_BYTES):
            data = cut.read(at, CHUNK_BYTES)
            if len(data) < min(CHUNK_BYTES, cut.length - at):
                raise CorruptLog(f"{cut.name} is damaged: it ends before offset {cut.length}", cut.name, at + len(data))
            sink.put(pack_chunk(data))
    file.sync()
    file.drop_cache()  # judged is what the disk holds
    contents = judged(snapshot.header, parts, name, whole=snapshot.header.since == NO_DIGEST)
    length = sink.at + END_BYTES
    sink.put(pack_end(length))
    write_all(file, sink.at, sink.digest.digest())
    file.sync()
    return contents, length
