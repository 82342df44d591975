"""The backup file: its bytes as FORMAT.md has them, and every way in which it is refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from backup.plain import (
    FIRST,
    GROUP,
    LOG_ID,
    MADE_AT,
    OFFSET,
    OPEN,
    ORDINAL,
    POSITION,
    SINCE,
    SMALL,
    TAG,
    Place,
    Plain,
    truncate,
    unpack,
)
from support.command import Run, refusal
from tidelog.errors import CorruptLog, InvalidHeader
from tidelog_broker.backup import Backup, Contents, judged
from tidelog_broker.disk import RealDisk, RealFile
from tidelog_broker.restore import Joined
from tidelog_broker.snapshot import take


def judge(backup: Backup) -> Contents:
    return Joined([backup]).judged()


def test_the_file_is_as_the_format_has_it(place: Place) -> None:
    place.append(60)
    contents = place.backup("b")
    data = (place.path / "b").read_bytes()
    plain = unpack(data)
    assert plain.pack() == data
    names = sorted(path.name for path in place.data.iterdir() if path.name != "marks")
    assert [name for name, _ in plain.parts] == names[: len(plain.parts)]
    for name, held in plain.parts[:-1]:
        assert (place.data / name).read_bytes() == held
    name, held = plain.parts[-1]
    assert (place.data / name).read_bytes()[: len(held)] == held
    assert held.endswith(place.bodies[-1])
    last = len(plain.parts)
    assert plain.fields[:TAG] == (place.log.log_id, 60, last, len(held), 240)
    assert plain.fields[FIRST:] == (1, last + 1, MADE_AT, bytes(32))
    assert (contents.segments, contents.groups, contents.batches, contents.events) == (last, 60, 120, 240)
    assert contents.digest == place.digest(60)
    assert (place.path / "b").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("align", [1, 512])
def test_a_backup_at_every_group_holds_just_the_groups_up_to_it(tmp_path: Path, align: int) -> None:
    place = Place(tmp_path, replace(SMALL, align=align))
    place.append(40)
    assert place.log.segments() > 2
    for group in range(41):
        contents = place.backup(f"b{group}", group=group)
        assert (contents.group, contents.head, contents.digest) == (group, 4 * group, place.digest(group))
        assert judge(place.read(f"b{group}")) == contents
    place.close()


def test_a_file_that_spans_many_pieces_is_read_back_as_it_was(tmp_path: Path) -> None:
    place = Place(tmp_path, replace(SMALL, segment_bytes=16 << 20, group_bytes_max=4 << 20))
    place.append(4, 1 << 19)
    place.backup("b")
    assert unpack((tmp_path / "b").read_bytes()).pack() == (tmp_path / "b").read_bytes()
    part = place.read("b").parts[0]
    held = (place.data / part.name).read_bytes()[: part.length]
    assert part.length > 5 << 20
    for offset, count in [(0, 10), ((1 << 20) - 3, 7), (1 << 20, 1 << 20), (part.length - 5, 50), (part.length, 9)]:
        assert part.read(offset, count) == held[offset : offset + count]
    place.close()


def test_every_flipped_bit_is_refused(place: Place) -> None:
    """T-61: the library at every byte, which checks before anything is written."""
    place.append(3)
    place.backup("b")
    path = place.path / "b"
    good = path.read_bytes()
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for at in range(len(good)):
            file.seek(at)
            file.write(bytes([good[at] ^ 1 << at % 8]))
            with pytest.raises((CorruptLog, InvalidHeader)):
                place.read("b")
            refused += 1
            file.seek(at)
            file.write(good[at : at + 1])
    judge(place.read("b"))
    print(f"{refused} flipped bytes refused")


def test_every_cut_and_every_lengthening_is_refused(place: Place) -> None:
    place.append(3)
    place.backup("b")
    good = (place.path / "b").read_bytes()
    for length in range(len(good)):
        with pytest.raises((CorruptLog, InvalidHeader)):
            place.write("c", good[:length])
    for more in (b"\0", good[-1:], good):
        with pytest.raises(CorruptLog):
            place.write("c", good + more)
        # The same by one who knows the format: its length and its digest are right.
        end = good[:-40] + struct.pack("<Q", len(good) + len(more))
        with pytest.raises(CorruptLog, match="its end is not where it should be"):
            place.write("c", end + blake2b(end, digest_size=32).digest() + more)


def test_a_flipped_byte_and_a_cut_are_65_and_write_nothing(place: Place, run: Run) -> None:
    """T-61 as an operator meets it."""
    place.append(3)
    place.backup("b")
    good = (place.path / "b").read_bytes()
    before = sorted(place.path.iterdir())
    for at in (0, 8, 50, 140, 200, 5_000, len(good) - 40, len(good) - 1):
        (place.path / "b").write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        refusal(run("restore", str(place.path / "b"), str(place.path / "new")), 65)
        assert sorted(place.path.iterdir()) == before
    (place.path / "b").write_bytes(good[:-1])
    assert "ends" in refusal(run("restore", str(place.path / "b"), str(place.path / "new")), 65)
    assert sorted(place.path.iterdir()) == before


def changed(held: bytes, at: int) -> bytes:
    """With one bit flipped."""
    return held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :]


LIES: dict[str, Any] = {
    "another group": lambda plain: plain.field(GROUP, 29),
    "another head": lambda plain: plain.field(POSITION, 119),
    "another tag": lambda plain: plain.field(TAG, b"\1" * 8),
    "another log": lambda plain: plain.field(LOG_ID, b"\1" * 16),
    "another offset": lambda plain: plain.field(OFFSET, 4_097),
    "another segment": lambda plain: plain.field(ORDINAL, 1),
    "another open segment": lambda plain: plain.field(OPEN, 9),
    "no first segment": lambda plain: plain.field(FIRST, 0),
    "an older backup that is not given": lambda plain: plain.field(SINCE, b"\1" * 32),
    "segments missing at the beginning": lambda plain: replace(plain, parts=plain.parts[1:]),
    "a segment missing": lambda plain: replace(plain, parts=(plain.parts[0], *plain.parts[2:])),
    "segments swapped": lambda plain: replace(plain, parts=(plain.parts[1], plain.parts[0], *plain.parts[2:])),
    "a segment twice": lambda plain: replace(plain, parts=(plain.parts[0], *plain.parts)),
    "no segment": lambda plain: replace(plain, parts=()),
    "a name that leads out": lambda plain: replace(plain, parts=(("../x", plain.parts[0][1]), *plain.parts[1:])),
    "another file": lambda plain: replace(plain, parts=(*plain.parts, ("marks", bytes(8_192)))),
    "a changed group": lambda plain: replace(
        plain, parts=((plain.parts[0][0], changed(plain.parts[0][1], 4_300)), *plain.parts[1:])
    ),
    "a changed header": lambda plain: replace(
        plain, parts=((plain.parts[0][0], changed(plain.parts[0][1], 60)), *plain.parts[1:])
    ),
    "no seal": lambda plain: replace(
        plain, parts=((plain.parts[0][0], plain.parts[0][1][:-64]), *plain.parts[1:])
    ),
    "a shorter last segment": lambda plain: replace(
        plain, parts=(*plain.parts[:-1], (plain.parts[-1][0], plain.parts[-1][1][:-1]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_with_right_checksums_is_refused_when_it_holds_no_whole_log(place: Place, lie: str) -> None:
    place.append(30)
    place.backup("b")
    plain: Plain = unpack((place.path / "b").read_bytes())
    assert len(plain.parts) > 2
    backup = place.write("c", LIES[lie](plain).pack())
    with pytest.raises((CorruptLog, InvalidHeader)):
        judge(backup)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_base_and_what_comes_behind_it_are_a_whole_log(place: Place, left: int) -> None:
    """While a truncation deletes segments, and when it has; an older backup is needed only for what is still there."""
    place.append(60)
    place.backup("b0", group=40)
    group = truncate(place, 2)
    for name in sorted(path.name for path in place.data.glob("0*"))[: 2 - left]:
        (place.data / name).unlink()
    contents = place.backup("b")
    plain = unpack((place.path / "b").read_bytes())
    assert [name for name, _ in plain.parts][:2] == [f"base-{group:020d}", f"0000000003-{4 * group:020d}"]
    assert plain.fields[FIRST] == 3
    assert (contents.first_position, contents.groups, contents.group) == (4 * group, 60 - group, 60)
    assert judge(place.read("b")) == contents
    place.backup("b1", place.read("b0"))
    joined = Joined([place.read("b1"), place.read("b0")])
    assert [part.name for part in joined.parts] == [name for name, _ in plain.parts]
    assert joined.judged() == contents
    for at in range(len(plain.parts[0][1])):
        base = plain.parts[0]
        lie = replace(plain, parts=((base[0], changed(base[1], at)), *plain.parts[1:]))
        with pytest.raises((CorruptLog, InvalidHeader)):
            judge(place.write("c", lie.pack()))


def test_a_truncation_beyond_the_group_that_was_asked_for_makes_it_ask_again(place: Place) -> None:
    place.append(60)
    truncate(place, 3)
    answers = iter([5, 60])
    snapshot = take(place.disk, lambda: (place.log.log_id, next(answers)), MADE_AT)
    snapshot.close()
    assert snapshot.header.group == 60


def test_a_newer_format_and_what_is_no_backup_are_named(place: Place) -> None:
    place.append(1)
    place.backup("b")
    good = (place.path / "b").read_bytes()
    with pytest.raises(InvalidHeader, match="version 2 is newer"):
        place.write("c", good[:8] + b"\2\0" + good[10:])
    for other in (b"", b"no", b"no backup at all", bytes(100), (place.data / "marks").read_bytes()):
        with pytest.raises((InvalidHeader, CorruptLog)) as caught:
            place.write("c", other)
        assert "magic" in str(caught.value) or not other


def test_a_damaged_log_is_not_backed_up_and_the_place_is_named(place: Place) -> None:
    place.append(30)
    segment = min(path for path in place.data.iterdir() if path.name != "marks")
    segment.write_bytes(changed(segment.read_bytes(), 4_300))
    with pytest.raises(CorruptLog, match="offset 4096") as caught:
        place.backup("b")
    assert caught.value.segment == segment.name
    assert not list(place.path.glob("b*"))
    last = place.data / sorted(path.name for path in place.data.glob("0*"))[-1]
    last.write_bytes(changed(last.read_bytes(), 4_200))
    with pytest.raises(CorruptLog, match="group 30 was durable"):
        place.backup("b")


def test_files_that_vanish_while_they_are_opened_are_asked_for_again(place: Place) -> None:
    """As a truncation deletes them: the listing is old when the files are opened."""
    place.append(30)
    real = place.disk
    gone = 2

    class Vanishing(RealDisk):
        def names(self, folder: str = "") -> list[str]:
            nonlocal gone
            gone -= 1
            return [*super().names(folder), *(["0000000099-00000000000000000999"] if gone >= 0 else [])]

    place.disk = Vanishing(place.data)
    assert place.backup("b").group == 30
    assert gone == -1
    real.close()


def test_judging_does_not_trust_what_the_disk_gives_back(place: Place) -> None:
    """The backup is read back before it gets its name."""
    place.append(3)

    class Lying(RealDisk):
        def create(self, name: str) -> RealFile:
            file = super().create(name)
            return LyingFile(file.name, file.fd)

    class LyingFile(RealFile):
        def read(self, offset: int, count: int) -> bytes:
            data = super().read(offset, count)
            return changed(data, 4_300) if len(data) > 4_300 else data

    folder = Lying(place.path)
    with pytest.raises(CorruptLog, match="checksum of a piece of 0000000001"):
        place.backup("b", folder=folder)
    folder.close()
    assert not list(place.path.glob("b*"))


def test_a_backup_without_segments_is_judged_by_its_numbers(place: Place) -> None:
    """Of a log without events: there is nothing to copy, and a lie about it is still seen."""
    contents = place.backup("b")
    backup = place.read("b")
    assert (contents.group, contents.head, backup.parts) == (0, 0, [])
    for number, value in ((GROUP, 3), (POSITION, 7), (TAG, b"\1" * 8), (FIRST, 2), (OPEN, 0)):
        lie = place.write("c", unpack((place.path / "b").read_bytes()).field(number, value).pack())
        with pytest.raises(CorruptLog):
            judged(lie.header, lie.parts, lie.name)
