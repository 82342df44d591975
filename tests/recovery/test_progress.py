"""A start that reads much says how far it is, and one that does not says nothing."""

from __future__ import annotations

import re
from itertools import pairwise

from support.builders import Writer, seeded_random
from support.simdisk import SimDisk
from tidelog_broker.log import LogSettings
from tidelog_broker.progress import EVERY_S, QUIET_S, Progress
from tidelog_broker.store import IndexSettings, Store

SETTINGS = LogSettings(segment_bytes=16_384, group_bytes_max=8_192, zero_step=4_096, prepare_ahead=4_096)
INDEXED = IndexSettings(tail_batches=1_000)
GROUPS = 100


class Clock:
    """Goes on by so many seconds each time that it is asked."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def log_of(groups: int, *, saved_at: int = 0) -> SimDisk:
    """A log in several segments that was killed, its index saved behind a group."""
    disk, writer = SimDisk(), Writer()
    store = Store(disk, SETTINGS, seeded_random(b"progress"), INDEXED)
    for number in range(1, groups + 1):
        writer.commit(store.log, [(f"s/{number % 7}", [writer.payload(300)])])
        if number == saved_at:
            store.log.mark()
            beside = Store.behind_checkpoint(disk, SETTINGS, INDEXED, number)
            beside.checkpoint()
            beside.log.abandon()
    assert store.log.segments() > 2
    store.log.mark()
    return SimDisk(disk.image())


def told(disk: SimDisk, step_s: float) -> tuple[list[int], list[float], Store]:
    """The percentages that a start says, when it said them, and what it opened."""
    clock, lines, times = Clock(step_s), list[str](), list[float]()

    def say(line: str) -> None:
        lines.append(line)
        times.append(clock.now_s)

    progress = Progress(disk, clock, say)
    store = Store(disk, SETTINGS, seeded_random(b"again"), INDEXED, progress.around)
    found = [re.fullmatch(r"reading the log: \d+\.\d of \d+\.\d GB, (\d+) %", line) for line in lines]
    return [int(match[1]) for match in found if match], times, store


def test_a_long_start_says_about_once_a_second_how_far_it_is() -> None:
    percents, times, store = told(log_of(GROUPS), step_s=0.25)
    assert store.log.report.groups == GROUPS
    assert len(percents) == len(times) > 10
    assert percents == sorted(percents)
    assert percents[-1] <= 100
    assert percents[-1] > 80, "all but the space prepared ahead"
    assert times[0] >= QUIET_S
    assert all(later - earlier >= EVERY_S for earlier, later in pairwise(times))


def test_a_short_start_says_nothing() -> None:
    percents, _, store = told(log_of(GROUPS), step_s=QUIET_S / (2 * GROUPS))
    assert store.log.report.groups == GROUPS
    assert percents == []


def test_behind_a_saved_index_the_tail_alone_is_the_whole() -> None:
    percents, _, store = told(log_of(GROUPS, saved_at=GROUPS // 2), step_s=1.0)
    assert store.log.report.groups == GROUPS // 2
    assert percents[0] < 10
    assert percents[-1] > 80
