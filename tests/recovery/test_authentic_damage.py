"""Groups that look authentic and hold wrong batches: every checksum, tag and link made again with the log's own keys (T-7).

Such bytes were written by somebody who has the keys (a broken writer), so they are damage wherever they stand, never a
torn tail; a position or version that repeats or skips is named with what was expected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache

import pytest
from support.builders import event_batch
from support.damage import CORRUPT, HEALTHY, INVALID, PLAIN, Known, judge, make, parts_of, remade, resealed
from tidelog.batch import HEADER

GROUPS = 8
EVENTS_OF_A_GROUP = 4


@cache
def known() -> Known:
    return make("authentic", PLAIN, GROUPS, 1)


def changed(batch: bytes, field: int, value: int) -> bytes:
    """A batch with one field of its header changed (by its place in HEADER), its checksum made again."""
    fields = list(HEADER.unpack_from(batch))
    fields[field] = value
    return resealed(HEADER.pack(*fields) + batch[HEADER.size :])


KIND, FLAGS, NAME, LAYOUT, LENGTH, INDEX, COUNT, EVENTS, REGION, POSITION, VERSION = range(11)


def singles(group: int) -> list[bytes]:
    """The events of a group as four appends of one batch each, of equal length, each to a stream of its own."""
    position = EVENTS_OF_A_GROUP * (group - 1)
    return [event_batch(f"new/{group}{n}", 0, position + n, [b"same size"]) for n in range(EVENTS_OF_A_GROUP)]


def test_made_again_with_nothing_changed_it_is_the_same_log() -> None:
    assert remade(known(), {}) == known().image


@pytest.mark.parametrize("group", range(1, GROUPS + 1))
def test_batches_swapped_or_repeated_inside_a_group_are_named_with_what_was_expected(group: int) -> None:
    good = singles(group)
    first = EVENTS_OF_A_GROUP * (group - 1)
    for at in range(len(good) - 1):
        swapped = [*good[:at], good[at + 1], good[at], *good[at + 2 :]]
        outcome = judge(known(), remade(known(), {group: swapped}))
        assert outcome.kind == CORRUPT
        assert f"position {first + at + 1}, expected {first + at}" in outcome.text
    for at in range(len(good)):
        repeated = [*good[: at + 1], good[at], *good[at + 1 :]]
        outcome = judge(known(), remade(known(), {group: repeated}))
        assert outcome.kind == CORRUPT
        assert f"position {first + at}, expected {first + at + 1}" in outcome.text
    for at in range(len(good) - 1):
        dropped = [*good[:at], *good[at + 1 :]]
        outcome = judge(known(), remade(known(), {group: dropped}))
        assert outcome.kind == CORRUPT
        assert f"position {first + at + 1}, expected {first + at}" in outcome.text


def test_the_last_batch_of_a_group_dropped_shows_at_its_mark_or_at_the_next_group() -> None:
    for group in range(1, GROUPS):
        outcome = judge(known(), remade(known(), {group: singles(group)[:-1]}))
        assert outcome.kind == CORRUPT
        behind = EVENTS_OF_A_GROUP * group
        told = (f"before position {behind}, not here", f"begins at position {behind}, expected {behind - 1}")
        assert any(words in outcome.text for words in told), outcome.text


@pytest.mark.parametrize("group", range(1, GROUPS + 1))
def test_batches_of_an_append_of_several_streams_swapped_repeated_or_dropped_are_damage(group: int) -> None:
    parts = parts_of(known(), group)
    wrong = [[*parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]] for at in range(len(parts) - 1)]
    wrong += [[*parts[: at + 1], parts[at], *parts[at + 1 :]] for at in range(len(parts))]
    wrong += [[*parts[:at], *parts[at + 1 :]] for at in range(len(parts) - 1)]
    for body in wrong:
        outcome = judge(known(), remade(known(), {group: body}))
        assert outcome.kind == CORRUPT, outcome
        assert f"group {group}" in outcome.text
        assert "not whole" in outcome.text or "expected" in outcome.text
    for counted in (0, len(parts) - 1, len(parts) + 1, 0xFFFFFFFF):
        outcome = judge(known(), remade(known(), {}, {group: counted}))
        assert outcome.kind == CORRUPT
        assert f"holds {len(parts)} batches, its header says {counted}" in outcome.text


@pytest.mark.parametrize("group", [1, 3, GROUPS - 1, GROUPS])
def test_a_position_or_version_that_repeats_or_skips_is_named(group: int) -> None:
    parts = parts_of(known(), group)
    for at, part in enumerate(parts):
        fields = HEADER.unpack_from(part)
        for field, what in ((POSITION, "position"), (VERSION, "version")):
            right = fields[field]
            for value in {0, right - 1, right + 1, right + 1_000, (1 << 64) - 1} - {right, -1}:
                outcome = judge(
                    known(), remade(known(), {group: [*parts[:at], changed(part, field, value), *parts[at + 1 :]]})
                )
                assert outcome.kind == CORRUPT
                assert f"{what} {value}, expected {right}" in outcome.text


def wrong_headers(part: bytes) -> Iterator[tuple[str, bytes]]:
    fields = HEADER.unpack_from(part)
    for name, field, values in (
        ("kind", KIND, (0, 0x41, 0x43, 0x54)),
        ("flags", FLAGS, (1, 2, 3, 4, 128, 255)),
        ("name length", NAME, (0, fields[NAME] + 1, 255)),
        ("layout", LAYOUT, (0, 2, 255)),
        ("length", LENGTH, (0, 59, fields[LENGTH] - 1, fields[LENGTH] + 1, 1 << 24, 0xFFFFFFFF)),
        ("index", INDEX, (fields[INDEX] + 1, 0xFFFFFFFF)),
        ("count", COUNT, (0, fields[COUNT] + 1, 0xFFFFFFFF)),
        ("events", EVENTS, (0, fields[EVENTS] + 1, 65_537, 0xFFFFFFFF)),
        ("region", REGION, (fields[REGION] + 1_000, 0xFFFFFFFF)),
    ):
        for value in values:
            if value != fields[field]:
                yield f"{name} {value}", changed(part, field, value)


@pytest.mark.parametrize("group", [1, 5, GROUPS])
def test_a_wrong_field_of_a_batch_under_right_checksums_is_refused(group: int) -> None:
    """At the very end of the log one more event cannot be told from a right one: its batch counts it, nothing follows."""
    parts = parts_of(known(), group)
    for at, part in enumerate(parts):
        for what, wrong in wrong_headers(part):
            outcome = judge_or_more(remade(known(), {group: [*parts[:at], wrong, *parts[at + 1 :]]}))
            ends_the_log = group == GROUPS and at == len(parts) - 1
            if outcome == HEALTHY:
                assert ends_the_log or what.startswith("name length"), (group, at, what)
            else:
                assert outcome in (CORRUPT, INVALID), (group, at, what)


def judge_or_more(image: dict[str, bytes]) -> str:
    """As `judge`, for an image whose batches may differ from the known log's and still be taken."""
    try:
        return judge(known(), image).kind
    except AssertionError as error:
        if "is another" in str(error):
            return HEALTHY
        raise


@pytest.mark.parametrize("group", [1, 4, GROUPS])
def test_a_batch_with_a_wrong_checksum_under_a_right_group_is_damage(group: int) -> None:
    parts = parts_of(known(), group)
    for at, part in enumerate(parts):
        for offset in range(0, len(part), 7):
            wrong = part[:offset] + bytes([part[offset] ^ 0x10]) + part[offset + 1 :]
            outcome = judge(known(), remade(known(), {group: [*parts[:at], wrong, *parts[at + 1 :]]}))
            assert outcome.kind == CORRUPT
            assert f"group {group}" in outcome.text


def test_garbage_behind_the_batches_of_a_group_is_damage() -> None:
    parts = parts_of(known(), GROUPS)
    for junk in (b"\0", bytes(55), bytes(56), bytes(100), b"TLGR" + bytes(60), struct.pack("<Q", 1 << 63)):
        outcome = judge(known(), remade(known(), {GROUPS: [*parts, junk]}, {GROUPS: len(parts)}))
        assert outcome.kind == CORRUPT
