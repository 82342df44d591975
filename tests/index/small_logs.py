"""Small logs with a saved index, in memory, and what a start makes of them.

Runs are cut into tiny pieces and blocks (`tiny`), so that a log of some hundred batches has all kinds of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.builders import Writer, seeded_random
from support.simdisk import Image, SimDisk
from tidelog_broker import checkpoints
from tidelog_broker.core import merging, postings, run
from tidelog_broker.index_digest import digest, digest_of_known
from tidelog_broker.log import LogSettings
from tidelog_broker.store import IndexSettings, Store

SETTINGS = LogSettings(
    segment_bytes=16_384,
    group_bytes_max=8_192,
    zero_step=4_096,
    prepare_ahead=4_096,
    mark_groups=64,
    mark_bytes=1 << 20,
)
INDEXED = IndexSettings(streams_cached=4, tail_batches=40)
STREAMS = ["a/1", "a/2", "b/1", "b/22", "c/1", "plain"]


@contextmanager
def tiny() -> Iterator[None]:
    """Pieces of 8 rows, tables of 120 bytes, postings in blocks of 4, three runs merged into one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PIECE_ROWS", 8), ("TABLE_BYTES", 120), ("POSTINGS", 4)):
            patch.setattr(run, name, value)
        patch.setattr(postings, "TAIL_BLOCK", 3)
        patch.setattr(merging, "FAN", 3)
        yield


class SmallLog:
    """A log on a SimDisk that grows, and saves its index when it is told to."""

    def __init__(self, seed: bytes = b"log") -> None:
        self.disk = SimDisk()
        self.writer = Writer()
        self.names = STREAMS
        self.store = Store(self.disk, SETTINGS, seeded_random(seed), INDEXED)

    def grow(self, groups: int) -> None:
        """So many groups of two appends, which begin and go on streams."""
        writer, p = self.writer, self.writer.payload
        for _ in range(groups):
            number = self.store.log.group
            first, second, third = (self.names[(number * step) % len(self.names)] for step in (1, 5, 7))
            pair = [(first, [p(40)]), ("d/1", [p(20), p(20)])]
            group = writer.stage(pair, [(second if second != first else third, [p(30)]), (f"n/{number}", [p(20)])])
            self.store.log.commit(group.parts, group.batches, group.next_position)
            writer.accept(group)

    def save(self) -> None:
        """As a broker has it done: a mark, then a reader of its own."""
        self.store.log.mark()
        beside = Store.behind_checkpoint(self.disk, SETTINGS, INDEXED, self.store.log.group)
        beside.checkpoint()
        beside.log.abandon()

    def fork(self) -> SmallLog:
        """A copy of the log alone, brought back later, that goes on by itself with other streams and other events."""
        other = SmallLog.__new__(SmallLog)
        other.disk = SimDisk(without_index(self.image()))
        other.writer = replace(self.writer, serial=500)
        other.names = [name.replace("1", "0") for name in self.names]
        other.store = Store(other.disk, SETTINGS, seeded_random(b"fork"), INDEXED)
        return other

    def image(self) -> Image:
        """What a kill leaves."""
        return self.disk.image()


def saved_log() -> SmallLog:
    """Two checkpoints, the newer with a merged run and another one, and a tail behind them."""
    log = SmallLog()
    for groups in (12, 8, 8, 5):
        log.grow(groups)
        log.save()
    log.grow(6)
    return log


def started(disk: SimDisk, settings: IndexSettings = INDEXED) -> Store:
    """What a start has; whatever is wrong with the saved index is no error."""
    return Store(disk, SETTINGS, seeded_random(b"start"), settings)


def answers(store: Store) -> tuple[str, str]:
    """All that the index answers from. Raises BadIndex."""
    return digest(store.index), digest_of_known(store.known)


def rebuilt(image: Image, settings: IndexSettings = INDEXED) -> tuple[str, str]:
    """The same from the log alone, all of it in memory."""
    return answers(started(SimDisk(without_index(image)), replace(settings, tail_batches=1 << 40)))


def without_index(image: Image) -> Image:
    """The log alone."""
    return {name: data for name, data in image.items() if not name.startswith(f"{checkpoints.FOLDER}/")}


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]


def files_of(image: Image, begins: str) -> list[str]:
    """The names in index/ that begin so, the newest last."""
    return sorted(name for name in image if name.startswith(f"{checkpoints.FOLDER}/{begins}"))
