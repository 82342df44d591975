"""What an index says, as one short text: equal for two indexes that answer alike, however they lie in tails and runs.

Looks at everything an answer can come from, in an order that no freeze, run or merge changes, and holds a piece at a time.
`compare` is `tidelog verify --index`: the index that a start would load against the one that the log alone makes.
"""

from __future__ import annotations

import errno
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from heapq import merge
from itertools import groupby
from typing import Any, NamedTuple

import msgpack
from tidelog.errors import CorruptLog

from . import checkpoints
from .core.idwindow import IdWindow
from .core.index import Index, Tail
from .core.known import Known
from .core.postings import Part, RunPart, TailPart
from .core.rows import Rows
from .core.run import DELETED, BadIndex, Run, category_key, stream_key
from .disk import Disk, File
from .files import LogSettings
from .store import IndexSettings, Store
from .verify import DAMAGED, HEALTHY

DIGEST_BYTES = 16
NEVER = 1 << 62
"""Batches in memory that become no run."""
_HEAD = struct.Struct("<5Q")
_STANDS = struct.Struct("<QQ?")


class _Said(NamedTuple):
    """What one tail or run says of a stream or category: (next version, end position, deleted), and the batches it has of it."""

    key: bytes
    age: int
    stands: tuple[int, int, bool]
    part: Part


def digest(index: Index) -> str:
    """Of the head, what was removed, each batch's row, and each stream and category with its batches. Raises BadIndex."""
    whole = blake2b(digest_size=DIGEST_BYTES)
    whole.update(
        _HEAD.pack(index.head, index.first_position, index.first_number, index.stream_count, index.recorded_at)
    )
    columns = [blake2b(digest_size=DIGEST_BYTES) for _ in range(5)]
    for rows, low in _rows(index):
        parts: tuple[array[int] | bytearray, ...] = (
            rows.positions, rows.places, rows.lengths, rows.signatures, rows.starts
        )  # fmt: skip
        for hasher, column in zip(columns, parts, strict=True):
            hasher.update(memoryview(column)[low:])
    for hasher in columns:
        whole.update(hasher.digest())
    for key, same in groupby(merge(*_sources(index), key=lambda said: said[:2]), key=lambda said: said.key):
        told = list(same)
        whole.update(b"%d " % len(key) + key + _STANDS.pack(*told[-1].stands))
        numbers, keys = (blake2b(digest_size=DIGEST_BYTES) for _ in range(2))
        for block in _remaining([said.part for said in told], index.first_number):
            numbers.update(block[0].tobytes())
            keys.update(block[1].tobytes())
        whole.update(numbers.digest() + keys.digest())
    return whole.hexdigest()


def _rows(index: Index) -> Iterator[tuple[Rows, int]]:
    """(rows, the first of them that counts) of all batches that are still there, in order."""
    number = index.first_number
    while number < index.stop:
        rows = index.rows(number)
        if not rows.first <= number < rows.stop:
            raise BadIndex(f"batch {number} stands nowhere in the index")
        yield rows, number - rows.first
        number = rows.stop


def _sources(index: Index) -> list[Iterator[_Said]]:
    tails = [*index.frozen, index.tail]
    return [
        *(_of_run(run, age) for age, run in enumerate(index.runs)),
        *(_of_tail(tail, age) for age, tail in enumerate(tails, len(index.runs))),
    ]


def _of_run(run: Run, age: int) -> Iterator[_Said]:
    for key, entry in run.entries():
        yield _Said(key, age, (entry.next, entry.end, bool(entry.flags & DELETED)), RunPart(run, entry))


def _of_tail(tail: Tail, age: int) -> Iterator[_Said]:
    for name in sorted(tail.categories):
        category, batches = tail.categories[name]
        # A run has a category's end in both fields.
        stands = category.end, category.end, False
        yield _Said(category_key(name), age, stands, TailPart(tail.first, batches, tail.positions))
    for name in tail.names():
        stream, batches = tail.streams[name]
        stands = stream.next_version, stream.end, stream.deleted
        yield _Said(stream_key(name), age, stands, TailPart(tail.first, batches, tail.versions))


def _remaining(parts: list[Part], first_number: int) -> Iterator[tuple[array[int], array[int]]]:
    for part in parts:
        for at in range(part.blocks if part.count else 0):
            numbers, keys = part.block(at)
            low = bisect_left(numbers, first_number)
            yield numbers[low:], keys[low:]


def digest_of_ids(window: IdWindow) -> str:
    """Of the event ids that are known, with their appends, and where the window begins."""
    whole = blake2b(digest_size=DIGEST_BYTES)
    whole.update(struct.pack("<3Q", window.events, window.begins, window.young_begins))
    for generation in (window.old, window.young):
        whole.update(struct.pack("<Q", len(generation)))
        for event_id, number in sorted(generation.items()):
            whole.update(event_id + number.to_bytes(8, "little"))
    return whole.hexdigest()


def digest_of_known(known: Known) -> str:
    """Of all that is known beside the index: event ids, sessions with their results, cursors."""
    whole = blake2b(digest_of_ids(known.window).encode(), digest_size=DIGEST_BYTES)
    whole.update(msgpack.packb([known.sessions.images(), known.cursors.rows()]))
    return whole.hexdigest()


class _Untouched:
    """A disk to look at. Setting a bad index aside does nothing here, so that it shows a second time."""

    def __init__(self, disk: Disk) -> None:
        self.names = disk.names
        self.open = disk.open

    def unlink(self, name: str) -> None:
        pass

    def sync_folder(self, folder: str = "") -> None:
        pass

    def create(self, name: str) -> File:
        raise OSError(errno.EROFS, "nothing is changed here")

    def rename(self, old: str, new: str) -> None:
        raise OSError(errno.EROFS, "nothing is changed here")

    def make_folder(self, name: str) -> None:
        raise OSError(errno.EROFS, "nothing is changed here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`saved`: digest of the index as a start would have it, from the checkpoint at group `checkpoint_group` (0: none can be
    used) and the log behind it; `rebuilt`: from the log alone."""

    verdict: str
    group: int
    head: int
    checkpoint_group: int
    saved: str
    rebuilt: str
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(disk: Disk, settings: LogSettings) -> Comparison:
    """Change nothing, and hold the rebuilt index in memory. Raises CorruptLog, InvalidHeader, OSError."""
    rebuilt = Store.inspect(disk, settings)
    try:
        if rebuilt.log.damage is not None:
            raise rebuilt.log.damage
        right, ids = digest(rebuilt.index), digest_of_known(rebuilt.known)
        group, head, log_id = rebuilt.log.group, rebuilt.index.head, rebuilt.log.log_id
    finally:
        rebuilt.log.abandon()
    found, used, reason = right, 0, ""
    checkpoint = next((saved for _, saved in checkpoints.good(disk) if saved.log_id == log_id), None)
    if checkpoint is not None:
        events = checkpoint.window.events
        try:
            found, its_ids, used = _as_started(disk, settings, events, group)
            if found != right or (events == rebuilt.window.events and its_ids != ids):
                reason = "it is another index than the log's"
        except (BadIndex, CorruptLog) as error:
            # CorruptLog too: the log alone is good, so it is the index that speaks against what comes behind it.
            found, reason = "", str(error)
    return Comparison(
        verdict=DAMAGED if reason else HEALTHY, group=group, head=head, checkpoint_group=used, saved=found, rebuilt=right,
        reason=reason,
    )  # fmt: skip


def _as_started(disk: Disk, settings: LogSettings, window_events: int, group: int) -> tuple[str, str, int]:
    """(digest, digest of the ids, group of the checkpoint) of the index as a start would load it. Raises BadIndex, CorruptLog."""
    in_memory = IndexSettings(id_window_events=window_events, tail_batches=NEVER)
    store = Store.behind_checkpoint(_Untouched(disk), settings, in_memory, group)
    try:
        return digest(store.index), digest_of_known(store.known), store.checkpoint_group
    finally:
        store.log.abandon()
