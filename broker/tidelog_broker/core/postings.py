"""The batches of one stream or category, in rising order, wherever the index has them. PURE.

A *posting* is a batch's number and its key: the first version of a stream's batch, the first position of a category's.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

from .run import Block, Entry, Run

TAIL_BLOCK = 256


class RunPart:
    """The postings of a run's entry."""

    __slots__ = ("_entry", "_run", "blocks", "count")

    def __init__(self, run: Run, entry: Entry) -> None:
        self._run = run
        self._entry = entry
        self.count = entry.postings
        self.blocks = run.blocks(entry)

    def block(self, at: int) -> Block:
        return self._run.postings(self._entry, at)

    def first(self, at: int) -> tuple[int, int]:
        """(number, key) of a block's first posting."""
        numbers, keys = self.block(at)
        return numbers[0], keys[0]


class TailPart:
    """The postings of what is in memory: rows, and their keys in a column of the tail."""

    __slots__ = ("_first", "_keys", "_rows", "blocks", "count")

    def __init__(self, first: int, rows: array[int], keys: array[int]) -> None:
        self._first = first
        self._rows = rows
        self._keys = keys
        self.count = len(rows)
        self.blocks = -(-len(rows) // TAIL_BLOCK)

    def block(self, at: int) -> Block:
        rows = self._rows[at * TAIL_BLOCK : (at + 1) * TAIL_BLOCK]
        first, keys = self._first, self._keys
        return array("Q", [first + row for row in rows]), array("Q", [keys[row] for row in rows])

    def first(self, at: int) -> tuple[int, int]:
        """(number, key) of a block's first posting."""
        row = self._rows[at * TAIL_BLOCK]
        return self._first + row, self._keys[row]


Part = RunPart | TailPart


class Series:
    """All postings of one stream or category, the oldest part first."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [part for part in parts if part.count]

    def _seek(self, value: int, which: int) -> tuple[int, int]:
        """(part, block) where the last posting stands whose number (0) or key (1) is not greater; (0, 0) if there is none."""
        for at in range(len(self._parts) - 1, -1, -1):
            part = self._parts[at]
            if part.first(0)[which] <= value:
                return at, bisect_right(range(part.blocks), value, key=lambda block: part.first(block)[which]) - 1
        return 0, 0

    def ascending(self, key: int) -> Iterator[tuple[int, int]]:
        """(number, key) from the last posting whose key is not greater, or from the first."""
        return self._ascending(key, 1)

    def from_number(self, number: int) -> Iterator[tuple[int, int]]:
        """(number, key) from the first posting whose number is not less."""
        for row in self._ascending(number, 0):
            if row[0] >= number:
                yield row

    def _ascending(self, value: int, which: int) -> Iterator[tuple[int, int]]:
        if not self._parts:
            return
        first, block = self._seek(value, which)
        skip = True
        for part in islice(self._parts, first, None):
            for at in range(block, part.blocks):
                numbers, keys = part.block(at)
                low = 0
                if skip:
                    low = max(0, bisect_right(keys if which else numbers, value) - 1)
                    skip = False
                yield from zip(numbers[low:], keys[low:], strict=True)
            block = 0

    def descending(self, key: int) -> Iterator[tuple[int, int]]:
        """(number, key) of the postings whose key is less, the last first."""
        if not self._parts:
            return
        last, block = self._seek(key, 1)
        for place in range(last, -1, -1):
            part = self._parts[place]
            if place < last:
                block = part.blocks - 1
            for at in range(block, -1, -1):
                numbers, keys = part.block(at)
                high = bisect_left(keys, key)
                yield from zip(reversed(numbers[:high]), reversed(keys[:high]), strict=True)

    def count_from(self, number: int) -> int:
        """How many postings have a number that is not less."""
        count = sum(part.count for part in self._parts)
        if not number or not self._parts:
            return count
        at, block = self._seek(number, 0)
        part = self._parts[at]
        numbers, _ = part.block(block)
        before = (
            sum(other.count for other in self._parts[:at]) + part_before(part, block) + bisect_left(numbers, number)
        )
        return count - before


def part_before(part: Part, block: int) -> int:
    """How many postings stand before a block; all blocks but the last are equally long."""
    return block * len(part.block(0)[0]) if block else 0
