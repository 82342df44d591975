"""A log's directory as anybody may look at it, also beside its broker: names, sizes, marks, the newest checkpoint.

Promises: takes no lock, changes nothing, reads no group; so it is done in no time and says nothing about damage, which is for
verify.py. What it calls a problem is what a start would refuse at first sight.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidelog.errors import CorruptLog, InvalidHeader

from . import checkpoints
from .core.checkpoint import Checkpoint
from .core.format import SEGMENT_HEADER_BYTES, SEGMENT_NAME, SegmentHeader
from .disk import RealDisk
from .files import BASE_NAME, QUARANTINE
from .marks import NAME as MARKS
from .marks import Marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Sizes in bytes. `group`, `head` and `clean` are the newest mark's; `tail_bytes` is what a start would read of the log,
    space prepared ahead included, `tail_events` how many events of it the mark tells of; `bad_checkpoint` is newer than the one
    that counts, and can't be used."""

    path: str
    log_id: str
    room: int
    room_total: int
    segments: int
    log_bytes: int
    first_position: int
    align: int
    group: int
    head: int
    clean: bool
    problem: str
    checkpoint_group: int
    checkpoint_age_seconds: int
    bad_checkpoint: str
    index_bytes: int
    tail_bytes: int
    tail_events: int
    quarantine: list[str]
    quarantine_bytes: int


def look(disk: RealDisk, now_s: float) -> Directory:
    """Raises InvalidHeader when there is no log or a newer one, CorruptLog when the marks are of two logs, OSError."""
    # The marks before the names: a segment exists before a mark names it.
    marked = MARKS in disk.names()
    marks = Marks.read(disk, marked)
    names = disk.names()
    segments = [name for name in names if SEGMENT_NAME.match(name)]
    if not marked and not segments:
        raise InvalidHeader("there is no log in this directory")
    sizes = {int(name[:10]): _size(disk, name) for name in segments}
    log_id, align, problem = marks.log_id, 1, ""
    try:
        _joined(marks, segments, based=any(map(BASE_NAME.match, names)))
        if segments:
            header = _header(disk, segments[-1])
            log_id, align = log_id or header.log_id, header.align
    except CorruptLog as error:
        problem = error.text
    newest = marks.good[-1] if marks.good else None
    head = newest.next_position if newest else 0
    first_position = int(segments[0][11:31]) if segments else 0
    used, bad = _checkpoint(disk, log_id, sizes)
    kept = disk.names(QUARANTINE)
    room, room_total = disk.room()
    return Directory(
        path=str(disk.path.absolute()), log_id=log_id.hex(), room=room, room_total=room_total,
        segments=len(segments), log_bytes=sum(sizes.values()), align=align, problem=problem,
        first_position=first_position,
        group=newest.group if newest else 0, head=head, clean=newest is not None and newest.clean,
        checkpoint_group=used.group if used else 0,
        checkpoint_age_seconds=_age(disk, used, now_s), bad_checkpoint=bad,
        index_bytes=sum(_size(disk, f"{checkpoints.FOLDER}/{name}") for name in disk.names(checkpoints.FOLDER)),
        tail_bytes=_behind(used, sizes), tail_events=max(0, head - (used.head if used else first_position)),
        quarantine=kept,
        quarantine_bytes=sum(_size(disk, f"{QUARANTINE}/{name}") for name in kept),
    )  # fmt: skip


def _joined(marks: Marks, segments: list[str], *, based: bool) -> None:
    """Raises CorruptLog unless there is a good mark, and all segments are there that it and their numbers tell of."""
    if not segments:
        marks.creation_or_damage()
        return
    marks.good_or_damage(segments[-1], accept_missing=False)
    first = int(segments[0][:10])
    wanted = range(first if based else 1, 1 + max(int(segments[-1][:10]), marks.good[-1].open_ordinal))
    missing = sorted(set(wanted) - {int(name[:10]) for name in segments})
    if missing:
        raise CorruptLog(f"segment {missing[0]} is missing", segments[0], 0)


def _header(disk: RealDisk, name: str) -> SegmentHeader:
    """Raises CorruptLog or InvalidHeader."""
    file = disk.open(name)
    try:
        return SegmentHeader.unpack(file.read(0, SEGMENT_HEADER_BYTES), name)
    finally:
        file.close()


def _checkpoint(disk: RealDisk, log_id: bytes, sizes: dict[int, int]) -> tuple[Checkpoint | None, str]:
    """The newest that can be used, and the name of a newer one that can't."""
    newest = max(
        (name for name in disk.names(checkpoints.FOLDER) if checkpoints.CHECKPOINT_NAME.match(name)), default=""
    )
    for name, saved in checkpoints.good(disk):
        if saved.log_id == log_id and saved.ordinal in sizes:
            return saved, newest if newest > name else ""
    return None, newest


def _age(disk: RealDisk, saved: Checkpoint | None, now_s: float) -> int:
    if saved is None:
        return 0
    try:
        return max(0, int(now_s - disk.modified(f"{checkpoints.FOLDER}/{checkpoints.name_of(saved.group)}")))
    except FileNotFoundError:
        return 0  # two newer ones came meanwhile


def _behind(saved: Checkpoint | None, sizes: dict[int, int]) -> int:
    """The bytes that a start would read of the log."""
    if saved is None:
        return sum(sizes.values())
    return sum(size for ordinal, size in sizes.items() if ordinal >= saved.ordinal) - saved.end


def _size(disk: RealDisk, name: str) -> int:
    """0 when it has gone meanwhile: a truncation deletes segments, a checkpoint older runs."""
    try:
        file = disk.open(name)
    except FileNotFoundError:
        return 0
    try:
        return file.size()
    finally:
        file.close()
