"""Whose index it is: one of another log, of a fork, or that no mark reaches is never served; one ahead of its log is proof of
damage (spec §8, §11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from index.small_logs import (
    INDEXED,
    SETTINGS,
    SmallLog,
    answers,
    files_of,
    rebuilt,
    saved_log,
    started,
    tiny,
    without_index,
)
from support.builders import seeded_random
from support.simdisk import Image, SimDisk
from tidelog.errors import CorruptLog
from tidelog_broker.store import Store


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with tiny():
        yield


def index_of(image: Image) -> Image:
    return {name: data for name, data in image.items() if name.startswith("index/")}


def used(image: Image) -> int:
    """The group of the checkpoint that a start uses, which must answer as the log alone does."""
    store = started(SimDisk(image))
    assert answers(store) == rebuilt(image)
    return store.log.report.since


def test_a_log_that_ends_before_its_checkpoint_is_damaged_though_no_mark_says_so() -> None:
    log = SmallLog()
    log.grow(6)
    log.store.log.mark()
    before = log.image()["marks"]
    log.grow(3)
    log.save()
    image = {**log.image(), "marks": before}
    name = files_of(image, "checkpoint-")[-1]
    segment = sorted(name for name in image if name.startswith("0"))[-1]
    place = image[segment].rfind(b"TLGR")
    for case in ({segment: image[segment][: place + 80]}, {segment: image[segment][:place] + bytes(500)}):
        disk = SimDisk({**image, **case})
        with pytest.raises(CorruptLog, match=name.removeprefix("index/")):
            started(disk)
        assert disk.image() == {**image, **case}
    assert used({**image, segment: image[segment]}) == 0, "whole, but no mark reaches the checkpoint: it is in doubt"


def test_a_checkpoint_that_no_mark_reaches_is_not_used_and_an_older_one_is() -> None:
    log = SmallLog()
    log.grow(6)
    log.save()
    before = log.image()["marks"]
    log.grow(6)
    log.save()
    image = log.image()
    assert used(image) == 12
    assert used({**image, "marks": before}) == 6


def test_the_index_of_another_log_is_ignored_and_does_not_keep_this_ones_away() -> None:
    log, other = SmallLog(), SmallLog(b"another")
    other.grow(20)
    other.save()
    other.grow(5)
    other.save()
    log.grow(10)
    mixed = {**without_index(log.image()), **index_of(other.image())}
    assert used(mixed) == 0
    log.save()
    disk = SimDisk({**log.image(), **index_of(other.image())})
    store = started(disk)
    store.log.mark()
    store.checkpoint()
    assert used(disk.image()) == store.log.group


def test_the_index_of_a_fork_is_used_only_as_far_as_both_are_one() -> None:
    log = SmallLog()
    log.grow(6)
    log.save()
    fork = log.fork()
    log.grow(6)
    log.save()
    fork.grow(4)
    fork.store.log.mark()
    theirs = index_of(log.image())
    with pytest.raises(CorruptLog, match=f"checkpoint-{12:020d}"):
        started(SimDisk({**fork.image(), **theirs}))
    fork.grow(4)
    fork.store.log.mark()
    assert used({**fork.image(), **theirs}) == 6
    assert (
        used({**fork.image(), **{name: data for name, data in theirs.items() if name != files_of(theirs, "ch")[0]}})
        == 0
    )


def test_runs_of_a_fork_under_the_names_of_this_logs_are_noticed() -> None:
    """Of the same sizes, too: a checkpoint means the contents of its runs and not only their names."""
    log = SmallLog()
    fork = log.fork()
    for one in (log, fork):
        one.grow(10)
        one.save()
    ours, theirs = log.image(), fork.image()
    names = files_of(ours, "run-")
    assert [(name, len(ours[name])) for name in names] == [(name, len(theirs[name])) for name in names]
    assert used(ours) == 10
    for name in names:
        assert ours[name] != theirs[name]
        assert used({**ours, name: theirs[name]}) == 0
    assert used({**theirs, **index_of(ours)}) == 0, "a group of the same number at the same place is another group"


SETTINGS_TRIED = {
    "a wider id window": replace(INDEXED, id_window_events=1 << 17),
    "an id window that turned": replace(INDEXED, id_window_events=16),
    "one stream cached": replace(INDEXED, streams_cached=1),
    "many streams cached": replace(INDEXED, streams_cached=1_000),
    "small runs": replace(INDEXED, tail_batches=3),
    "no runs": replace(INDEXED, tail_batches=1 << 20),
}


@pytest.mark.parametrize("before", SETTINGS_TRIED)
@pytest.mark.parametrize("after", SETTINGS_TRIED)
def test_with_other_settings_than_before_the_answers_are_right(before: str, after: str) -> None:
    disk = SimDisk(without_index(saved_log().image()))
    for settings in (SETTINGS_TRIED[before], SETTINGS_TRIED[after], SETTINGS_TRIED[before]):
        store = Store(disk, SETTINGS, seeded_random(b"again"), settings)
        assert answers(store) == rebuilt(disk.image(), settings)
        store.log.mark()
        store.checkpoint()
        store.log.close()
        assert answers(Store(disk, SETTINGS, seeded_random(b"and again"), settings)) == rebuilt(disk.image(), settings)
