"""What a power cut may make of a file's unsynced writes and truncates. The assumptions stand in support/simdisk.py."""

from __future__ import annotations

from itertools import islice
from random import Random

SECTOR = 512
PAGE = 4_096

Op = tuple[int, bytes]
"""(offset, data): a write; (size, b""): a truncate; (-size, b""): the size grows to that, the data is not there yet."""

FIELD_CUTS = (1, 4, 8, 16, 24, 32, 40, 44, 48, 56, 63, 64, 65, 108)
"""Byte places in a record where a tear is most telling: the fields of its header."""


def contents(undone: bytes, pending: list[Op], rng: Random, limit: int, garbage: bool = False) -> list[bytes]:
    """What a file may hold after a power cut: [undone, done, …], distinct."""
    done = apply(undone, pending)
    seen = {undone: None, done: None}
    per_op = [_parts(op, undone, rng, limit, garbage) for op in pending]
    if len(pending) == 1:
        for ops in per_op[0]:
            seen[apply(undone, ops)] = None
    else:
        for skipped in range(len(pending)):
            # each alone, all but each, and each a prefix
            seen[apply(undone, pending[: skipped + 1])] = None
            seen[apply(undone, [pending[skipped]])] = None
            seen[apply(undone, pending[:skipped] + pending[skipped + 1 :])] = None
            for ops in islice(per_op[skipped], limit):
                seen[apply(undone, pending[:skipped] + ops)] = None
        for _ in range(limit):
            mixed: list[Op] = []
            for index in range(len(pending)):
                mixed += rng.choice([[], [pending[index]], rng.choice(per_op[index])])
            seen[apply(undone, mixed)] = None
    states = list(seen)
    if undone == done:
        states.insert(0, undone)
    return states


def _parts(op: Op, base: bytes, rng: Random, limit: int, garbage: bool) -> list[list[Op]]:
    """The ways in which one operation may be half done, each as a list of smaller ones."""
    offset, data = op
    if not data:
        if garbage and offset % PAGE and offset > 0:  # a file system zeroes the rest of the last block
            return [[], [op], [_garbled(offset, offset, len(base), rng), op]]
        return [[], [op]]
    stop = offset + len(data)
    first = offset // SECTOR
    cuts = [at - offset for at in range((first + 1) * SECTOR, stop, SECTOR)]
    pieces = [(offset + a, data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    parts: list[list[Op]] = [[], [op]]
    if stop > len(base):
        parts.append([(-stop, b"")])  # the size, and zeros for data
        for at in cuts[:8]:
            parts.append([(-stop, b""), (offset + at, data[at:])])  # a hole, then data
    for index in range(1, len(pieces)):
        parts.append(pieces[:index])
        parts.append(pieces[index:])
    if len(pieces) > 2:
        for index in range(len(pieces)):
            parts.append([pieces[index]])
            parts.append(pieces[:index] + pieces[index + 1 :])
        for _ in range(min(limit, 8)):
            parts.append([piece for piece in pieces if rng.random() < 0.5])
    tears = {cut for cut in FIELD_CUTS if cut < len(data)}
    tears.update(len(data) - cut for cut in (1, 4, 5) if cut < len(data))
    tears.update(rng.randrange(1, len(data)) for _ in range(min(limit, 12)) if len(data) > 1)
    for cut in tears:
        at = offset + cut
        index = at // SECTOR - first
        start, sector = pieces[index]
        front, back = (start, sector[: at - start]), (at, sector[at - start :])
        parts.append([*pieces[:index], front] if front[1] else pieces[:index])  # the usual torn tail
        parts.append([back, *pieces[index + 1 :]])
        parts.append([*pieces[:index], back, *pieces[index + 1 :]])
        if garbage:
            parts.append([*pieces[:index], _garbled(at, stop, len(base), rng)])
    return parts


def _garbled(at: int, stop: int, size: int, rng: Random) -> Op:
    """Anything in the whole block around `at`, as far as the file goes."""
    start = at // PAGE * PAGE
    return start, rng.randbytes(min(start + PAGE, max(stop, size)) - start)


def apply(base: bytes, ops: list[Op]) -> bytes:
    """`base` after `ops`, in order."""
    data = bytearray(base)
    for offset, piece in ops:
        if not piece and 0 <= offset < len(data):
            del data[offset:]
            continue
        if abs(offset) > len(data):
            data.extend(bytes(abs(offset) - len(data)))
        if piece:
            data[offset : offset + len(piece)] = piece
    return bytes(data)
