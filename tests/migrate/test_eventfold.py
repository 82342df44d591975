"""The reader of EventfoldDB's files: every version whole, cut and damaged at every byte, each verdict by its name (T-54)."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migrate.any_log import logs
from migrate.seed import Appends, Given, Seed, Wanted, envelope, grown, header, record, small
from tidelog.errors import InvalidHeader
from tidelog.limits import APPEND_BYTES_CEILING, EVENT_BYTES_CEILING
from tidelog_broker.eventfold import EventfoldReader
from tidelog_broker.source import SourceRefused, Torn, Verdict

VERSIONS = pytest.mark.parametrize("version", [1, 2, 3])
STREAM = bytes(range(16))
EVENT = Given(STREAM, b"i" * 16)


def read(data: bytes) -> tuple[list[list[Wanted]], Torn | None]:
    """The events of each append, and the torn tail. Raises what the reader raises."""
    reader = EventfoldReader(lambda offset, count: data[offset : offset + count], len(data))
    found = []
    for append in reader.appends():
        found.append(
            [
                Wanted(append.first_position + i, stream, version, kind, metadata, payload, UUID(bytes=id_), append.recorded_at)
                for i, (stream, version, id_, kind, metadata, payload) in enumerate(append.events)
            ]
        )  # fmt: skip
    return found, reader.torn


def verdict(data: bytes) -> tuple[Verdict, int]:
    """Why a file is refused, and where."""
    with pytest.raises(SourceRefused) as caught:
        read(data)
    assert str(caught.value).startswith(f"{caught.value.verdict.value} at offset {caught.value.offset}: ")
    return caught.value.verdict, caught.value.offset


@VERSIONS
def test_a_whole_file_gives_every_event_with_its_place_in_its_append(version: int) -> None:
    seed = small(version)
    assert len(seed.wanted) == (6 if version == 1 else 3)
    assert read(seed.bytes) == (seed.wanted, None)


def test_times_are_those_of_each_first_record_in_microseconds_and_never_go_back() -> None:
    times = [events[0].recorded_at for events in read(small(3).bytes)[0]]
    assert times == [1_700_000_000_000_000, 1_700_000_000_000_000, 1_700_000_000_001_000]
    for version in (1, 2):
        assert {event.recorded_at for events in read(small(version).bytes)[0] for event in events} == {0}


@VERSIONS
def test_a_file_without_events_is_whole(version: int) -> None:
    assert read(header(version)) == ([], None)


@VERSIONS
def test_a_file_cut_at_any_byte_keeps_the_whole_appends_and_names_the_torn_one(version: int) -> None:
    seed = small(version)
    data = seed.bytes
    for size in range(8, len(data)):
        start = max([at for at in seed.starts if at <= size], default=8)
        number = seed.starts.index(start)
        torn = Torn(start, size - start) if size > start else None
        assert read(data[:size]) == (seed.wanted[:number], torn), size
    for size in range(8):
        with pytest.raises(InvalidHeader, match="magic"):
            read(data[:size])


@VERSIONS
def test_every_flipped_bit_of_a_whole_file_is_refused(version: int) -> None:
    data = small(version).bytes
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises((SourceRefused, InvalidHeader)):
                read(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@VERSIONS
@pytest.mark.parametrize("lost", [1, 9, 30, 70])
def test_a_flipped_bit_of_a_torn_file_is_refused_or_lies_in_what_is_left_out(version: int, lost: int) -> None:
    seed = small(version)
    data = seed.bytes[:-lost]
    expected = read(data)
    assert expected[1] is not None
    for at in range(8, len(data)):
        for bit in range(8):
            try:
                found = read(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            except SourceRefused:
                continue
            assert at >= expected[1].offset, at
            assert found == expected, at


@VERSIONS
def test_zeroed_runs_swapped_words_and_missing_bytes_are_refused(version: int) -> None:
    seed = small(version)
    data = seed.bytes
    for at in range(len(data) - 16):
        zeroed = data[:at] + bytes(16) + data[at + 16 :]
        swapped = data[:at] + data[at + 8 : at + 16] + data[at : at + 8] + data[at + 16 :]
        for wrong in (zeroed, swapped):
            if wrong != data:
                with pytest.raises((SourceRefused, InvalidHeader)):
                    read(wrong)
        try:
            found, torn = read(data[:at] + data[at + 16 :])
        except (SourceRefused, InvalidHeader):
            continue
        # Bytes that miss in the last append may look like its end that misses.
        assert at + 16 > seed.starts[-1]
        assert torn is not None
        assert found == seed.wanted[:-1]


@VERSIONS
def test_appends_left_out_repeated_or_exchanged_are_refused(version: int) -> None:
    seed = small(version)
    head, *parts = seed.parts
    for at in range(len(parts)):
        if at < len(parts) - 1:
            assert verdict(b"".join([head, *parts[:at], *parts[at + 1 :]])) == (Verdict.POSITION_GAP, seed.starts[at])
        again = b"".join([head, *parts[: at + 1], *parts[at:]])
        assert verdict(again) == (Verdict.REPEATED_POSITION, seed.starts[at] + len(parts[at]))
    for at, _ in enumerate(pairwise(parts)):
        exchanged = b"".join([head, *parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]])
        assert verdict(exchanged) == (Verdict.POSITION_GAP, seed.starts[at])


@VERSIONS
def test_what_is_not_the_beginning_of_an_append_is_refused_behind_the_last_one(version: int) -> None:
    data = small(version).bytes
    for tail in (bytes(4), bytes(500), b"\xff" * 20, b"EFDB\x01\0\0\0", b"garbage, and no record at all"):
        assert verdict(data + tail)[1] == len(data)


# Named verdicts


def lone(version: int, *records: bytes) -> bytes:
    """A file of records: one an append in format 1, else all in one."""
    return header(version) + (b"".join(records) if version == 1 else envelope(0, records))


def first(version: int) -> int:
    """The offset of the first record."""
    return 8 if version == 1 else 24


def test_a_file_of_something_else_or_of_a_newer_version_is_named() -> None:
    for data in (b"TideSeg\0\1\0", b"\0" * 100, b"SQLite format 3\0", b""):
        with pytest.raises(InvalidHeader, match="magic"):
            read(data)
    for number in (0, 4, 5, 2**32 - 1):
        with pytest.raises(InvalidHeader, match=f"version {number} "):
            read(header(number) + small(3).bytes[8:])


@pytest.mark.parametrize("version", [2, 3])
def test_an_empty_envelope_has_its_verdict(version: int) -> None:
    assert verdict(header(version) + envelope(0, [])) == (Verdict.EMPTY_ENVELOPE, 8)
    seed = small(version)
    behind = seed.bytes + envelope(seed.position, [])
    assert verdict(behind) == (Verdict.EMPTY_ENVELOPE, len(seed.bytes))


@VERSIONS
def test_positions_that_are_repeated_or_skipped_have_their_verdicts(version: int) -> None:
    at = first(version)
    ok = record(version, 0, 5, 0, EVENT)
    assert verdict(lone(version, ok, record(version, 0, 5, 1, EVENT))) == (Verdict.REPEATED_POSITION, at + len(ok))
    assert verdict(lone(version, ok, record(version, 2, 5, 1, EVENT))) == (Verdict.POSITION_GAP, at + len(ok))
    assert verdict(lone(version, record(version, 1, 5, 0, EVENT))) == (Verdict.POSITION_GAP, at)


@pytest.mark.parametrize("version", [2, 3])
def test_an_envelope_of_repeated_or_skipped_positions_has_its_verdict(version: int) -> None:
    seed = small(version)
    end = len(seed.bytes)
    for claimed, expected in ((0, Verdict.REPEATED_POSITION), (seed.position + 1, Verdict.POSITION_GAP)):
        wrong = envelope(claimed, [record(version, seed.position, 5, 4, EVENT)])
        assert verdict(seed.bytes + wrong) == (expected, end)


@VERSIONS
def test_stream_versions_that_are_repeated_or_skipped_have_their_verdicts(version: int) -> None:
    at = first(version)
    ok = record(version, 0, 5, 0, EVENT)
    assert verdict(lone(version, ok, record(version, 1, 5, 0, EVENT))) == (Verdict.REPEATED_VERSION, at + len(ok))
    assert verdict(lone(version, ok, record(version, 1, 5, 2, EVENT))) == (Verdict.VERSION_GAP, at + len(ok))
    assert verdict(lone(version, record(version, 0, 5, 1, EVENT))) == (Verdict.VERSION_GAP, at)


@VERSIONS
def test_types_that_tidelog_does_not_keep_are_refused_by_name(version: int) -> None:
    for kind, expected in (
        (b"", Verdict.WRONG_TYPE),
        (b"x" * 257, Verdict.WRONG_TYPE),
        (b"\xff", Verdict.WRONG_TYPE),
        (b"\xed\xa0\x80", Verdict.WRONG_TYPE),
        (b"$deleted", Verdict.RESERVED_TYPE),
    ):
        assert verdict(lone(version, record(version, 0, 5, 0, EVENT._replace(type=kind)))) == (expected, first(version))
    for kind in (b"x" * 256, b"a$", b"\n"):
        seed = grown(version, [(5, [EVENT._replace(type=kind)])])
        assert read(seed.bytes) == (seed.wanted, None)


@VERSIONS
def test_an_event_of_the_ceiling_is_taken_and_a_byte_more_is_refused(version: int) -> None:
    fits = EVENT._replace(payload=bytes(EVENT_BYTES_CEILING - 17 - 3), metadata=b"123")
    seed = grown(version, [(5, [fits])])
    assert read(seed.bytes) == (seed.wanted, None)
    over = lone(version, record(version, 0, 5, 0, fits._replace(metadata=b"1234")))
    assert verdict(over) == (Verdict.EVENT_TOO_LARGE, first(version))
    assert verdict(over + small(version).bytes) == (Verdict.EVENT_TOO_LARGE, first(version))


@pytest.mark.parametrize("version", [2, 3])
def test_an_append_of_the_ceilings_is_taken_and_one_event_or_byte_more_is_refused(version: int) -> None:
    many = [EVENT] * 65_536
    seed = grown(version, [(5, many)])
    assert read(seed.bytes) == (seed.wanted, None)
    assert verdict(grown(version, [(5, [*many, EVENT])]).bytes) == (Verdict.APPEND_TOO_LARGE, 8)
    wide = [EVENT._replace(payload=bytes(APPEND_BYTES_CEILING // 16 - 17))] * 16
    seed = grown(version, [(5, wide)])
    assert read(seed.bytes) == (seed.wanted, None)
    wide[3] = EVENT._replace(payload=bytes(len(wide[3].payload) + 1))
    assert verdict(grown(version, [(5, wide)]).bytes) == (Verdict.APPEND_TOO_LARGE, 8)


def test_a_time_that_does_not_fit_is_refused_by_name_and_only_the_first_of_an_append_counts() -> None:
    last = (2**63 - 1) // 1000
    assert read(lone(3, record(3, 0, last, 0, EVENT)))[0][0][0].recorded_at == last * 1000
    assert verdict(lone(3, record(3, 0, last + 1, 0, EVENT))) == (Verdict.WRONG_TIME, 24)
    assert len(read(lone(3, record(3, 0, 1, 0, EVENT), record(3, 1, 2**64 - 1, 1, EVENT)))[0]) == 1


@VERSIONS
@pytest.mark.parametrize("shift", [-1, 1, 1 << 16])
def test_parts_that_are_not_as_long_as_their_record_are_refused_whatever_its_checksum(version: int, shift: int) -> None:
    body = bytearray(record(version, 0, 5, 0, EVENT._replace(metadata=b"metadata")))
    for number in (52, 55, 67):  # the lengths of type, metadata and payload
        place = number + 8 * (version == 3)
        wrong = bytearray(body)
        wrong[place : place + 2] = ((wrong[place] + shift) % (1 << 16)).to_bytes(2, "little")
        if shift == 1 << 16:
            wrong[place : place + 4] = b"\xff" * 4
        wrong[-4:] = crc32(wrong[4:-4]).to_bytes(4, "little")
        assert verdict(lone(version, bytes(wrong))) == (Verdict.WRONG_LENGTH, first(version)), place


@pytest.mark.parametrize("version", [2, 3])
def test_a_count_that_is_too_large_or_too_small_is_refused(version: int) -> None:
    records = [record(version, number, 5, number, EVENT) for number in range(2)]
    for count in (1, 3, 70_000, 2**32 - 1):
        data = bytearray(lone(version, *records))
        data[12:16] = count.to_bytes(4, "little")
        data[-4:] = crc32(data[8:-8]).to_bytes(4, "little")
        expected = Verdict.WRONG_MAGIC if count == 1 else Verdict.WRONG_LENGTH
        assert verdict(bytes(data))[0] == expected


@VERSIONS
def test_the_beginning_of_a_record_that_would_not_follow_is_no_torn_tail(version: int) -> None:
    at = first(version)
    wrong = [
        (record(version, 1, 5, 0, EVENT), Verdict.POSITION_GAP),
        (record(version, 0, 5, 1, EVENT), Verdict.VERSION_GAP),
    ]
    for data, expected in wrong:
        fixed = 4 + 8 + 8 * (version == 3) + 16 + 8 + 16 + 2
        assert verdict(lone(version, data)[: at + fixed]) == (expected, at)
        assert verdict(lone(version, data)[: at + len(data) - 1]) == (expected, at)


@pytest.mark.parametrize("version", [2, 3])
def test_less_than_a_magic_is_torn_only_if_it_is_its_beginning(version: int) -> None:
    seed = small(version)
    data = seed.bytes
    for size in range(1, 4):
        assert read(data + b"EFBB"[:size]) == (seed.wanted, Torn(len(data), size))
        assert verdict(data + b"EFBX"[-size:]) == (Verdict.WRONG_MAGIC, len(data))
        cut = data[: -8 + size]
        assert read(cut)[1] == Torn(seed.starts[-1], len(cut) - seed.starts[-1])
        assert verdict(cut[:-1] + b"X") == (Verdict.WRONG_MAGIC, len(data) - 8)


@VERSIONS
def test_what_the_file_got_since_its_size_was_taken_is_not_read(version: int) -> None:
    seed = small(version)
    data = seed.bytes
    for size in (len(data), seed.starts[-1], len(data) - 3):
        reader = EventfoldReader(lambda offset, count: data[offset : offset + count], size)
        found, torn = read(data[:size])
        assert len(list(reader.appends())) == len(found)
        assert reader.torn == torn


@VERSIONS
def test_a_length_that_hides_whole_records_is_no_torn_tail(version: int) -> None:
    """Damage that looks like a torn record to the last byte, but for a record behind it."""
    kept = record(version, 0, 5, 0, EVENT)
    broken = bytearray(record(version, 1, 5, 1, EVENT._replace(payload=bytes(20))))
    lost = record(version, 2, 5, 2, EVENT)
    behind = record(version, 3, 5, 3, EVENT)
    payload_at = len(broken) - 4 - 20 - 4
    assert read(lone(version, kept, bytes(broken), lost, behind))[1] is None
    broken[:4] = (len(broken) - 4 + 5_000).to_bytes(4, "little")
    broken[payload_at : payload_at + 4] = (20 + 5_000).to_bytes(4, "little")
    wrong = lone(version, kept, bytes(broken), bytes(len(lost)), behind)
    assert verdict(wrong) == (Verdict.WHOLE_RECORD_BEHIND, first(version) + len(kept))


@VERSIONS
def test_a_torn_record_of_the_largest_size_is_judged_at_once(version: int) -> None:
    seed = small(version)
    for payload in (bytes(1 << 20), b"\x50\0\0\0\x06\0\0\0\0\0\0\0" * 80_000, b"\xff" * 1_000_000):
        event = EVENT._replace(payload=payload[: EVENT_BYTES_CEILING - 17])
        start = len(seed.bytes)
        torn = seed.bytes + Seed.append(_continued(seed), 5, [event]).parts[-1][:-9]
        assert read(torn) == (seed.wanted, Torn(start, len(torn) - start))


def _continued(seed: Seed) -> Seed:
    """Another file that goes on where this one ends."""
    other = Seed(seed.version)
    other.position, other.versions = seed.position, dict(seed.versions)
    return other


# Any log


@given(logs(), st.sampled_from([1, 2, 3]), st.integers(0, 400))
@settings(deadline=None)
def test_any_log_is_read_as_it_was_written_up_to_where_it_is_cut(appends: Appends, version: int, lost: int) -> None:
    seed = grown(version, appends)
    data = seed.bytes
    data = data[: max(8, len(data) - lost)]
    found, torn = read(data)
    assert found == seed.wanted[: len(found)]
    stops = [*seed.starts[1:], len(seed.bytes)]
    assert len(found) == sum(stop <= len(data) for stop in stops[: len(seed.starts)])
    end = stops[len(found) - 1] if found else 8
    assert torn == (Torn(end, len(data) - end) if len(data) > end else None)


@given(logs(), st.sampled_from([1, 2, 3]), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=9)), max_size=4))
@settings(deadline=None)
def test_any_damage_is_refused_or_leaves_a_part_of_the_log_as_it_was(
    appends: Appends, version: int, patches: list[tuple[int, bytes]]
) -> None:
    seed = grown(version, appends)
    data = seed.bytes
    for at, patch in patches:
        data = data[:at] + patch + data[at + len(patch) // 2 :]
    try:
        found, torn = read(data)
    except (SourceRefused, InvalidHeader):
        return
    assert found == seed.wanted[: len(found)]
    assert len(found) == len(seed.wanted) or torn or len(data) in seed.starts
