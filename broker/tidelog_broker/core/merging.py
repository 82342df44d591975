"""Runs out of what is in memory, and one run out of several. PURE.

Merging keeps their number small: eight neighbours of one size become one of the next, so that every row is rewritten a few
times in a log's life, and a stream is looked for in a few places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from typing import Any

from .base import CATEGORIES, STREAMS, BaseReader
from .index import Tail
from .postings import Part, RunPart, Series, TailPart
from .run import DELETED, STREAM_KEY, Block, Entry, Put, Run, RunWriter, category_key, stream_key

FAN = 8
"""Neighbours of one size that are merged."""
FILTER_STREAMS = 1 << 16
"""Streams that the filter of a base's run is made for, whose number is not known before."""
SMALLEST = 1 << 17
"""Up to so many rows or entries, a run counts as smallest."""


def write_tail(tail: Tail, put: Put, log_id: bytes) -> bytes:
    """A tail as a run; its trailer. What streams did behind it is not looked at."""
    writer = RunWriter(put, log_id, tail.first, tail.positions[0] if tail.positions else tail.end, len(tail.streams))
    writer.rows(tail)
    for name in sorted(tail.categories):
        _, batches = tail.categories[name]
        end = tail.behind(batches[-1])
        writer.entry(category_key(name), end, end, 0, _blocks(TailPart(tail.first, batches, tail.positions)))
    for name in tail.names():
        _, batches = tail.streams[name]
        last = batches[-1]
        end = tail.behind(last)
        flags = DELETED if last in tail.deletions else 0
        version = tail.versions[last] + end - tail.positions[last]
        if len(batches) == 1:
            writer.single(stream_key(name), version, end, flags, tail.first + last, tail.versions[last])
            continue
        writer.entry(stream_key(name), version, end, flags, _blocks(TailPart(tail.first, batches, tail.versions)))
    return writer.finish()


def merge_runs(runs: Sequence[Run], put: Put, log_id: bytes, base_number: int) -> bytes:
    """One run that says what neighbours said; its trailer. What stands before `base_number` is in no file, and is left out."""
    writer = RunWriter(put, log_id, runs[0].first, runs[0].first_position, sum(run.streams for run in runs))
    for run in runs:
        for piece in range(len(run.firsts)):
            behind = run.firsts[piece + 1] if piece + 1 < len(run.firsts) else run.stop
            if behind > base_number:
                writer.piece(*run.raw_piece(piece))
    for key, entry, parts in entries_of(runs):
        writer.entry(key, entry.next, entry.end, entry.flags, _remaining(parts, base_number))
    return writer.finish()


def entries_of(runs: Sequence[Run]) -> Iterator[tuple[bytes, Entry, list[RunPart]]]:
    """(key, its newest entry, its postings in all runs, the oldest first) in the order of the keys."""
    entries = merge(*(_aged(run, age) for age, run in enumerate(runs)), key=lambda row: row[:2])
    for key, rows in groupby(entries, key=lambda row: row[0]):
        same = list(rows)
        yield key, same[-1][2], [RunPart(runs[age], entry) for _, age, entry in same if entry.postings]


def _aged(run: Run, age: int) -> Iterator[tuple[bytes, int, Entry]]:
    for key, entry in run.entries():
        yield key, age, entry


def _remaining(parts: Iterable[RunPart], base_number: int) -> Iterator[Block]:
    for part in parts:
        for numbers, keys in _blocks(part):
            low = bisect_left(numbers, base_number) if numbers[0] < base_number else 0
            if low < len(numbers):
                yield (numbers[low:], keys[low:]) if low else (numbers, keys)


def base_rows(runs: Sequence[Run], number: int) -> Iterator[tuple[str, list[Any]]]:
    """The rows of a base (base.py) as of the batch `number`: streams and categories of which something stood before it."""
    for key, entry, parts in entries_of(runs):
        following = next(Series(parts).from_number(number), None)
        name = key[1:].decode()
        if key[0] != STREAM_KEY:
            # An end that a later batch moved is moved again when that batch is read.
            yield CATEGORIES, [name, entry.end if following is None else 0]
        elif following is None:
            yield STREAMS, [name, entry.next, entry.end, bool(entry.flags & DELETED)]
        elif following[1] > 0:
            yield STREAMS, [name, following[1], 0, False]


def write_base_run(reader: BaseReader, put: Put, log_id: bytes) -> bytes:
    """A run without batches: the streams and categories that a base tells of; its trailer."""
    base = reader.base
    writer = RunWriter(put, log_id, base.number, base.head, FILTER_STREAMS)
    for kind, row in reader.rows():
        if kind == CATEGORIES:
            name, end = row
            writer.entry(category_key(name), end, end, 0, ())
        elif kind == STREAMS:
            name, following, end, deleted = row
            writer.entry(stream_key(name), following, end, DELETED if deleted else 0, ())
    return writer.finish()


def _blocks(part: Part) -> Iterator[Block]:
    for at in range(part.blocks):
        yield part.block(at)


def to_merge(weights: Sequence[int]) -> int:
    """How many of the newest runs should become one; 0 if none. A weight is a run's rows or entries, whichever are more."""
    levels = [_level(weight) for weight in weights]
    same = 0
    while same < len(levels) and levels[-1 - same] == levels[-1]:
        same += 1
    # A larger one behind which smaller ones stand is left alone; one before which a smaller one stands can't be.
    return same if same >= FAN else 0


def weight(run: Run) -> int:
    """What merging a run costs: its rows or entries, whichever are more."""
    rows: int = run.stop - run.first
    return max(rows, run.entries_total)


def _level(weight: int) -> int:
    level = 0
    while weight > SMALLEST:
        weight //= FAN
        level += 1
    return level
