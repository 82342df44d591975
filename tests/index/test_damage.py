"""A damaged index is never served and never an error: the older checkpoint, then the log (T-37, spec §11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from struct import unpack_from

import msgpack
import pytest
from index.small_logs import SmallLog, answers, files_of, flipped, rebuilt, saved_log, started, tiny, without_index
from support.simdisk import Image, SimDisk
from tidelog_broker import checkpoints
from tidelog_broker.core.checkpoint import Checkpoint
from tidelog_broker.core.run import TRAILER_BYTES, BadIndex

STARTS = 1_500
"""Damaged copies of a file that a start is made with; of the rest only the decoder is asked."""


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with tiny():
        yield


@pytest.fixture(scope="module")
def log() -> SmallLog:
    return saved_log()


def served(image: Image) -> tuple[int, bool, tuple[str, str]]:
    """(checkpoint that a start used, whether damage came to light when everything was read, what is answered at last).

    Damage that shows later ends the broker with the checkpoints set aside: the next start is looked at then.
    """
    disk = SimDisk(image)
    store = started(disk)
    try:
        return store.log.report.since, False, answers(store)
    except BadIndex:
        checkpoints.forget(disk)
        again = started(SimDisk(disk.image()))
        return again.log.report.since, True, answers(again)


def damaged(data: bytes, count: int = 1 << 62) -> Iterator[bytes]:
    """The file with each byte flipped, and cut at every length; or about `count` of these, spread over all of it."""
    step = max(1, 2 * len(data) // count)
    for place in range(0, len(data), step):
        yield flipped(data, place)
    for length in range(0, len(data), step):
        yield data[:length]


def test_whatever_byte_of_the_newest_checkpoint_is_damaged_the_older_one_counts(log: SmallLog) -> None:
    image = log.image()
    right = rebuilt(image)
    older, newest = files_of(image, "checkpoint-")
    for data in damaged(image[newest]):
        with pytest.raises(BadIndex):
            Checkpoint.unpack(data, newest)
    for data in damaged(image[newest], STARTS):
        assert served({**image, newest: data}) == (int(older[-20:]), False, right)
    assert served(image) == (int(newest[-20:]), False, right)


def sweep_of_runs(image: Image, starts: int) -> Counter[tuple[int, bool]]:
    """How many damaged runs were started with from which group, and seen when."""
    right = rebuilt(image)
    outcomes: Counter[tuple[int, bool]] = Counter()
    for name in files_of(image, "run-"):
        for data in damaged(image[name], starts):
            since, late, found = served({**image, name: data})
            assert found == right, name
            outcomes[since, late] += 1
    return outcomes


def test_whatever_byte_of_a_run_is_damaged_nothing_wrong_is_answered(
    log: SmallLog, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = sweep_of_runs(log.image(), STARTS)
    with capsys.disabled():
        told = ", ".join(
            f"{count} {'seen when read' if late else f'started from group {since}'}"
            for (since, late), count in sorted(outcomes.items())
        )
        print(f"\n{outcomes.total()} damaged runs: {told}")
    # Some are seen at once and some later, or the sweep is blind.
    assert {late for _, late in outcomes} == {False, True}


def test_blocks_that_changed_places_in_a_run_are_noticed(log: SmallLog) -> None:
    image = log.image()
    right = rebuilt(image)
    swaps = 0
    for name in files_of(image, "run-"):
        data = image[name]
        blocks = blocks_of(data)
        for (one, length), (two, its_length) in combinations(blocks, 2):
            if length == its_length and data[one : one + length] != data[two : two + length]:
                swapped = bytearray(data)
                swapped[one : one + length], swapped[two : two + length] = (
                    data[two : two + length],
                    data[one : one + length],
                )
                assert served({**image, name: bytes(swapped)})[2] == right, (name, one, two)
                swaps += 1
    assert swaps > 20


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    """(offset, length) of the pieces and tables of a run, out of its directory."""
    length, offset = unpack_from("<I16xQ", data, len(data) - TRAILER_BYTES + 12)
    _, _, _, pieces, piece_lengths, _, tables, table_lengths, *_ = msgpack.unpackb(data[offset : offset + length - 4])
    found: list[tuple[int, int]] = []
    for offsets, lengths in ((pieces, piece_lengths), (tables, table_lengths)):
        count = len(offsets) // 8
        found += zip(unpack_from(f"<{count}Q", offsets), unpack_from(f"<{count}I", lengths), strict=True)
    return found


def test_without_a_checkpoint_that_can_be_used_the_whole_log_is_read(log: SmallLog) -> None:
    """Both damaged; both gone; the whole folder gone; a file or nothing but litter in its place."""
    image = log.image()
    right = rebuilt(image)
    names = files_of(image, "checkpoint-")
    without = without_index(image)
    cases: dict[str, Image] = {
        "both damaged": {**image, **{name: flipped(image[name], 50) for name in names}},
        "both gone": {name: data for name, data in image.items() if name not in names},
        "all gone": without,
        "runs gone": {name: data for name, data in image.items() if "/run-" not in name},
        "litter": {**without, "index/": b"", "index/checkpoint-7": b"x", f"index/run-{1:020d}-{2:020d}.tmp": b"y"},
    }
    for why, case in cases.items():
        assert served(case) == (0, False, right), why


def test_behind_a_rebuild_the_index_is_saved_again_and_the_next_start_uses_it(log: SmallLog) -> None:
    image = log.image()
    broken = {**image, **{name: flipped(image[name], 50) for name in files_of(image, "checkpoint-")}}
    disk = SimDisk(broken)
    first = started(disk)
    assert first.log.report.since == 0
    assert not first.log.report.warnings
    second = started(SimDisk(disk.image()))
    assert second.log.report.since == first.log.group
    assert answers(second) == answers(first)
    names = [name for name in disk.image() if name.startswith("index/checkpoint-")]
    assert len(names) == 1, "the damaged ones are swept"
