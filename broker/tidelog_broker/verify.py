"""What a log holds and whether it is whole: `tidelog verify`.

Judges as a start would (opening.py), decodes every event besides, and changes nothing. Spec §16: 0 healthy, 1 a torn tail
that a start would cut, 65 damage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tidelog.errors import CorruptLog, InvalidHeader
from tidelog.limits import INT_MAX
from tidelog.wire import decode_page

from .core.format import SEGMENT_HEADER_BYTES, SEGMENT_NAME, GroupHeader, SegmentHeader
from .core.recovery import Chain, Group, SegmentReader
from .disk import Disk
from .files import QUARANTINE, UNFINISHED, Replay
from .log import LogSettings
from .store import Store

HEALTHY, TORN, DAMAGED = "healthy", "torn", "damaged"
EXIT_CODES = {HEALTHY: 0, TORN: 1, DAMAGED: 65}


@dataclass(slots=True)
class Survey:
    """What was found. Sizes in bytes; `tail` and `damage` say where, and `damage` what still stands behind the hole."""

    verdict: str = HEALTHY
    log_id: str = ""
    first_position: int = 0
    head: int = 0
    groups: int = 0
    batches: int = 0
    events: int = 0
    streams: int = 0
    bytes: int = 0
    clean_stop: bool = False
    segments: list[dict[str, Any]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    tail: dict[str, Any] | None = None
    damage: dict[str, Any] | None = None
    unfinished: list[str] = field(default_factory=list)
    quarantine: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def survey(disk: Disk, settings: LogSettings, until: int | None = None) -> Survey:
    """Look at a whole log, or with `until` at what a running broker's log holds up to that durable group.

    Raises InvalidHeader when it is no log or a newer one, OSError when it can't be opened.
    """
    found = Survey()
    sizes: dict[int, list[int]] = {}

    def around(replay: Replay) -> Replay:
        def look(ordinal: int, group: Group) -> None:
            events = _decoded(ordinal, group)
            replay(ordinal, group)
            row = sizes.setdefault(ordinal, [0, group.header.first_position, 0])
            row[0] += 1
            row[2] = group.body_offset + len(group.body)
            found.groups += 1
            found.batches += len(group.rows)
            found.events += events

        return look

    store = Store.inspect(disk, settings, around, until)
    log = store.log
    try:
        names = disk.names()
        found.log_id = log.log_id.hex()
        found.first_position, found.head = store.index.first_position, store.index.head
        found.streams = store.index.stream_count
        found.unfinished = [name for name in names if UNFINISHED.match(name)]
        found.quarantine = list(map(_printable, disk.names(QUARANTINE))) if QUARANTINE in names else []
        marks = log.marks()
        found.marks = [
            {"sequence": mark.sequence, "group": mark.group, "segment": mark.ordinal, "offset": mark.offset,
             "next_position": mark.next_position, "open_segment": mark.open_ordinal, "clean_stop": mark.clean}
            for mark in marks
        ]  # fmt: skip
        found.clean_stop = bool(marks and marks[-1].clean and marks[-1].group == log.whole.group)
        segments = [name for name in names if SEGMENT_NAME.match(name)]
        for name in segments:
            groups, first, stop = sizes.get(int(name[:10]), [0, int(name[11:31]), SEGMENT_HEADER_BYTES])
            size = _size(disk, name)
            found.bytes += size
            found.segments.append(
                {"name": name, "bytes": size, "good_until": stop, "groups": groups, "first_position": first}
            )
        if log.damage is not None:
            found.verdict, found.damage = DAMAGED, _hole(disk, store, segments, log.damage)
        elif log.tail is not None and log.tail.stop > log.tail.offset and not log.tail.unfinished_roll:
            found.verdict = TORN
            found.tail = {
                "segment": segments[-1],
                "offset": log.tail.offset,
                "bytes": log.tail.stop - log.tail.offset,
            }
    finally:
        log.abandon()
    return found


def _decoded(ordinal: int, group: Group) -> int:
    """How many events a client finds in a group. Raises CorruptLog when they can't be decoded or are not as many as it says."""
    expected = sum(batch.events for batch in group.rows)
    try:
        found = len(decode_page(group.body, False, 0, INT_MAX))
    except CorruptLog as error:
        offset = group.body_offset + error.offset
        raise CorruptLog(
            f"the log is damaged in segment {ordinal} at offset {offset}: group {group.header.number} can't be "
            f"decoded: {error.text}",
            str(ordinal),
            offset,
        ) from None
    if found != expected:
        raise CorruptLog(
            f"group {group.header.number} says {expected} events and holds {found}", str(ordinal), group.body_offset
        )
    return found


def _printable(name: str) -> str:
    """A file's name as text, whatever its bytes are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _size(disk: Disk, name: str) -> int:
    file = disk.open(name)
    try:
        return file.size()
    finally:
        file.close()


def _hole(disk: Disk, store: Store, segments: list[str], error: CorruptLog) -> dict[str, Any]:
    """Where the log stops being good, the proof, and the whole groups that still stand behind."""
    at = store.log.whole
    behind, last = 0, at.position
    for name in segments:
        if at.segment and name >= at.segment:
            for head in _islands(disk, name, at.offset if name == at.segment else 0):
                if head.number > at.group + 1:  # that one is the hole itself
                    behind += 1
                    last = max(last, head.first_position)
    return {
        "segment": at.segment,
        "offset": at.offset,
        "group": at.group + 1,
        "position": at.position,
        "proof": error.text,
        "unreadable": store.log.unreadable,
        "groups_behind": behind,
        "last_group_behind_begins_at_position": last if behind else None,
    }


def _islands(disk: Disk, name: str, start: int) -> list[GroupHeader]:
    """The whole groups at or behind `start` in one segment; none when its header can't be read."""
    file = disk.open(name)
    try:
        header = SegmentHeader.unpack(file.read(0, SEGMENT_HEADER_BYTES), name)
        chain = Chain(header.first_group - 1, header.previous_tag, header.first_position)
        reader = SegmentReader(header, file.read, file.size(), chain)
        reader.offset = max(start, reader.offset)
        return list(reader.islands())
    except (CorruptLog, InvalidHeader, OSError):
        return []
    finally:
        file.close()
