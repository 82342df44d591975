"""The damage sweep: every byte flipped, every cut, whatever is swapped, repeated, put back or written astray.

Whatever was damaged, `support.damage.judge` asserts that no wrong data is served, that nothing before the newest mark is
cut, that what is cut is kept, and that a refusal changes nothing. Here stands what each kind of damage must come to; the
run ends with a table of how often each happened.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.damage import (
    ALIGNED,
    CORRUPT,
    HEADER,
    HEALTHY,
    INVALID,
    PLAIN,
    SHORTER,
    SLOT,
    TORN,
    Known,
    Outcome,
    byte_classes,
    cut_class,
    flips,
    judge,
    make,
    patched,
)
from support.independent import reader
from support.simdisk import Image
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog_broker.disk import RealDisk
from tidelog_broker.store import Store

TABLE: Counter[tuple[str, str, str]] = Counter()
"""(damage, what stood there, outcome) → how often."""

MAKERS: dict[str, Callable[[], Known]] = {
    "one group behind the mark": lambda: make("one behind", PLAIN, 6, 1),
    "all marked": lambda: make("marked", PLAIN, 6, 0),
    "two groups behind the mark, aligned": lambda: make("aligned", ALIGNED, 4, 2),
    "stopped cleanly": lambda: make("clean", PLAIN, 5, 0, clean=True),
    "three segments": lambda: make("three", PLAIN, 10, 1),
}


@cache
def log(which: str) -> Known:
    return MAKERS[which]()


SWEPT = ["one group behind the mark", "all marked", "two groups behind the mark, aligned", "stopped cleanly"]


def count(damage: str, what: str, outcome: Outcome) -> None:
    TABLE[damage, what, outcome.kind] += 1


def test_the_logs_swept_are_what_they_should_be() -> None:
    for which in MAKERS:
        known = log(which)
        assert judge(known, known.image) == (HEALTHY, len(known.records), "")
        assert len(known.segments) >= 2
        assert known.header(known.segments[0]).align == known.settings.align
        for name in known.image:
            spans = byte_classes(known, name)
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert spans[-1].stop == len(known.image[name])
    assert len(log("three segments").segments) == 3


# ---- every byte, every length


@pytest.mark.parametrize("mask", [0, 0xFF], ids=["one bit", "all bits"])
@pytest.mark.parametrize("which", SWEPT)
def test_every_byte_flipped_comes_to_the_class_of_its_place(which: str, mask: int) -> None:
    known = log(which)
    for name, content in known.image.items():
        changed = flips(content, mask)
        for span in byte_classes(known, name):
            for _ in range(span.start, span.stop):
                offset, damaged = next(changed)
                outcome = judge(known, {**known.image, name: damaged})
                found = (outcome.kind, outcome.groups)
                assert found == (span.expected, span.groups), f"{name} byte {offset}, {span.what}: {outcome}"
            TABLE["a byte flipped", span.what, span.expected] += span.stop - span.start


@pytest.mark.parametrize("which", SWEPT)
def test_every_cut_of_every_file_loses_at_most_what_no_mark_names(which: str) -> None:
    known = log(which)
    for name, content in known.image.items():
        for length in range(len(content)):
            outcome = judge(known, {**known.image, name: content[:length]})
            assert (outcome.kind, outcome.groups) == cut_class(known, name, length), (
                f"{name} cut at {length}: {outcome}"
            )
            kind = "marks" if name == "marks" else "open segment" if name == known.segments[-1] else "sealed segment"
            count("a file cut short", kind, outcome)


# ---- damage of many bytes: groups


def neighbours(known: Known) -> Iterator[tuple[Any, Any]]:
    for name in known.segments:
        records = known.in_file(name)
        yield from pairwise(records)


def groups_class(known: Known, first: int) -> tuple[str, int]:
    """What losing the groups from `first` on comes to, when nothing authentic is left behind it."""
    return (CORRUPT, 0) if first <= known.marked else (TORN, first - 1)


@pytest.mark.parametrize("which", [*SWEPT, "three segments"])
def test_two_neighbouring_groups_swapped_are_no_groups(which: str) -> None:
    known = log(which)
    for left, right in neighbours(known):
        content = known.image[left.name]
        one, two = content[left.start : left.stop], content[right.start : right.stop]
        swapped = two + content[left.stop : right.start] + one
        outcome = judge(known, patched(known.image, left.name, left.start, swapped))
        # With two groups behind the mark and swapped, nothing is left that shows the first had been durable.
        proof = left.group <= known.marked or right is not known.records[-1]
        assert (outcome.kind, outcome.groups) == ((CORRUPT, 0) if proof else (TORN, left.group - 1))
        count("two neighbouring groups swapped", "groups", outcome)


@pytest.mark.parametrize("which", [*SWEPT, "three segments"])
def test_a_group_repeated_over_the_next_or_between_is_no_group(which: str) -> None:
    known = log(which)
    for place, record in enumerate(known.records):
        content = known.image[record.name]
        copy = content[record.start : record.stop]
        last = known.records[-1]
        behind = known.aligned(record.stop)
        # Between this one and what follows: everything behind it moves, so nothing there is at its place any more.
        outcome = judge(known, {**known.image, record.name: content[:behind] + copy + content[behind:]})
        if record is last:
            expected = (TORN, last.group)
        elif record.name != last.name:
            expected = (CORRUPT, 0)
        else:
            expected = groups_class(known, record.group + 1)
        assert (outcome.kind, outcome.groups) == expected, (record, outcome)
        count("a group repeated", "between", outcome)
        if record is last or known.records[place + 1].name != record.name:
            continue
        following = known.records[place + 1]
        room = following.stop - following.start
        over = copy[:room].ljust(room, b"\xee")
        outcome = judge(known, patched(known.image, record.name, following.start, over))
        expected = (CORRUPT, 0) if following is not last else groups_class(known, following.group)
        assert (outcome.kind, outcome.groups) == expected, (record, outcome)
        count("a group repeated", "over the next", outcome)


# ---- damage of many bytes: blocks and files


@pytest.mark.parametrize("which", ["three segments", "two groups behind the mark, aligned", "all marked"])
def test_a_block_of_4096_bytes_written_astray_is_noticed_or_harmless(which: str) -> None:
    """Every block of every file over every other block (and unaligned, at each record) of every file."""
    known = log(which)
    blocks = [
        (name, at, content[at : at + 4_096])
        for name, content in known.image.items()
        for at in range(0, len(content), 4_096)
    ]
    places = [(name, at) for name, at, _ in blocks] + [(r.name, r.start) for r in known.records if r.start % 4_096]
    for source, at, block in [*blocks, ("zeros", 0, bytes(4_096)), ("ones", 0, b"\xff" * 4_096)]:
        for name, to in places:
            image = patched(known.image, name, to, block)
            if image == known.image:
                continue
            outcome = judge(known, image)
            count("4,096 bytes written astray", "marks" if name == "marks" else "a segment", outcome)
            if name == "marks":
                # A block that is no slot of ours spoils one slot; the other one is enough.
                assert outcome.kind == HEALTHY, (source, at, to, outcome)
            elif to == 0:
                assert outcome.kind in (CORRUPT, INVALID), (source, at, name, outcome)
            elif name != known.segments[-1]:
                assert outcome.kind == CORRUPT, (source, at, name, to, outcome)


@pytest.mark.parametrize(
    "which", ["three segments", "two groups behind the mark, aligned", "one group behind the mark"]
)
def test_a_group_record_written_astray_is_never_taken_for_one(which: str) -> None:
    known = log(which)
    last = known.records[-1]
    for record in known.records:
        copy = known.image[record.name][record.start : record.stop]
        for name in known.segments:
            ends = known.aligned(max(r.stop for r in known.in_file(name)))
            for to in [*(r.start for r in known.in_file(name)), ends, ends + 7, 0, HEADER // 2]:
                if (name, to) == (record.name, record.start):
                    continue
                outcome = judge(known, patched(known.image, name, to, copy))
                count("a group written astray", "any place", outcome)
                if name != known.segments[-1]:
                    damaged = to < HEADER // 2 or to >= HEADER
                    assert outcome.kind in ((CORRUPT, INVALID) if damaged else (HEALTHY,)), (record, name, to, outcome)
                elif to >= ends:
                    assert (outcome.kind, outcome.groups) == (TORN, last.group)


@pytest.mark.parametrize("run", [16, 64, 512, 4_096])
@pytest.mark.parametrize("which", ["one group behind the mark", "all marked"])
def test_a_run_of_zeros_anywhere_is_noticed_unless_it_reaches_past_the_mark(which: str, run: int) -> None:
    known = log(which)
    for name, content in known.image.items():
        for at in range(0, len(content), 16):
            hole = min(run, len(content) - at)
            image = patched(known.image, name, at, bytes(hole))
            if image == known.image:
                continue
            outcome = judge(known, image)
            what = "marks" if name == "marks" else "open segment" if name == known.segments[-1] else "sealed segment"
            count("a run of zeros", what, outcome)
            if what == "sealed segment":
                assert outcome.kind in (CORRUPT, INVALID), (at, outcome)
            elif what == "marks":
                both = at < SLOT and at + hole > HEADER
                assert outcome.kind == (CORRUPT if both else HEALTHY), (at, outcome)
            elif any(r.start < at + hole and at < r.stop and r.group <= known.marked for r in known.in_file(name)):
                assert outcome.kind in (CORRUPT, INVALID), (at, outcome)


@pytest.mark.parametrize("which", [*SWEPT, "three segments"])
def test_an_older_copy_of_a_file_put_back_is_damage_or_loses_what_no_mark_names(which: str) -> None:
    known = log(which)
    for group, life in enumerate(known.lives, 1):
        for name, content in life.items():
            if known.image.get(name) == content or name not in known.image:
                continue
            outcome = judge(known, {**known.image, name: content})
            count("an older copy put back", "marks" if name == "marks" else "a segment", outcome)
            if name == "marks":
                # The older marks are true, they only prove less.
                assert outcome == (HEALTHY, len(known.records), "")
            elif name != known.segments[-1] or group < known.marked:
                assert outcome.kind == CORRUPT, (group, name, outcome)
            else:
                # The zeros behind the older end are what was prepared: nothing is left to be kept.
                assert (outcome.kind, outcome.groups) == (HEALTHY if group == len(known.records) else SHORTER, group)


@pytest.mark.parametrize("which", [*SWEPT, "three segments"])
def test_a_file_that_is_missing_is_damage(which: str) -> None:
    known = log(which)
    for name in known.image:
        outcome = judge(known, {other: content for other, content in known.image.items() if other != name})
        assert outcome.kind == CORRUPT, (name, outcome)
        count("a file removed", "marks" if name == "marks" else "a segment", outcome)
    outcome = judge(known, {"marks": known.image["marks"]})
    assert outcome.kind == CORRUPT
    count("a file removed", "all segments", outcome)


def test_two_segments_swapped_are_damage() -> None:
    known = log("three segments")
    names = known.segments
    for one in names:
        for two in names:
            if one < two:
                outcome = judge(known, {**known.image, one: known.image[two], two: known.image[one]})
                assert outcome.kind == CORRUPT
                count("two segments swapped", "segments", outcome)


# ---- the same on a real directory, and by the reader that shares no code


def samples() -> Iterator[tuple[Known, Image, str]]:
    """Every 101st flip and cut of two logs, and some of everything else: (log, image, what)."""
    for which in ("one group behind the mark", "two groups behind the mark, aligned"):
        known = log(which)
        for name, content in known.image.items():
            spans = byte_classes(known, name)
            changed = dict(flips(content, 0))
            for span in spans:
                for offset in {span.start, span.stop - 1, *range(span.start, span.stop, 101)}:
                    yield known, {**known.image, name: changed[offset]}, span.what
            for length in range(0, len(content), 101):
                yield known, {**known.image, name: content[:length]}, "cut"
            missing = {other: content for other, content in known.image.items() if other != name}
            yield known, missing, "missing"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests open thousands of logs, and each opening syncs."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="tl-", dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def put(folder: Path, image: Image) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for name, content in image.items():
        (folder / name).write_bytes(content)


def files(folder: Path) -> Image:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_real_directory_comes_to_the_same(memory: Path) -> None:
    for known, image, what in samples():
        expected = judge(known, image)
        put(memory, image)
        disk = RealDisk(memory)
        refusal = ""
        try:
            store = Store(disk, known.settings, bytes)
        except (CorruptLog, InvalidHeader) as error:
            refusal = f"{type(error).__name__}: {error}"
        else:
            assert (store.log.group, bool(store.log.report.warnings)) == (expected.groups, expected.kind == TORN), what
            store.log.abandon()
        finally:
            disk.close()
        if expected.kind in (CORRUPT, INVALID):
            assert refusal == f"{expected.kind}: {expected.text}", what
            assert files(memory) == image
        else:
            assert not refusal, what


STRICTER = {"padding of the segment header", "padding between groups"}
"""What the independent reader proves to be zeros, and a start does not look at."""


def test_the_independent_reader_comes_to_the_same(memory: Path) -> None:
    verdicts = {HEALTHY: "whole", SHORTER: "whole", TORN: "torn", CORRUPT: "damaged", INVALID: "damaged"}
    for known, image, what in samples():
        expected = judge(known, image)
        put(memory, image)
        events, verdict = reader.read_log(memory)
        assert files(memory) == image
        said = "damaged" if verdict.kind == "newer" else verdict.kind
        assert said == ("damaged" if what in STRICTER else verdicts[expected.kind]), (what, expected, str(verdict))
        if said != "damaged":
            assert len(events) == 4 * expected.groups


# ---- what it came to


def test_table_of_what_the_damage_came_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a test: the figures of this run, for whoever reads its output."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for (damage, what, outcome), times in TABLE.items():
        rows[damage, what.partition(":")[0], outcome] += times
    with capsys.disabled():
        print(f"\ndamage sweep: {sum(rows.values()):,} damaged logs opened")
        for (damage, what, outcome), times in sorted(rows.items()):
            print(f"  {damage:32} {what:36} {outcome:14} {times:8,}")
