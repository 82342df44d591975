"""The mark that names the new open segment stands before its first group (spec §6.3), whether or not a group waits for a mark: so
a lost segment is never taken for an unfinished roll."""

from __future__ import annotations

from pathlib import Path

from support.cases import TINY, Case
from tidelog.errors import CorruptLog
from tidelog_broker.core.format import Mark


def test_a_segment_that_is_lost_is_damage_though_the_last_mark_was_written_just_before_its_roll(tmp_path: Path) -> None:
    case = Case(tmp_path / "log", TINY)
    case.open()
    while case.log.segments() < 2:
        case.log.mark()  # as the idle broker does
        case.commit([("s/1", [b"x" * 1_000])])
    case.stop()
    marks = case.read("marks")
    found = [mark for place in (0, 4_096) if (mark := Mark.unpack(marks[place : place + 112]))]
    newest = max(found, key=lambda mark: mark.sequence)
    assert (newest.group, newest.open_ordinal) == (len(case.bodies) - 1, 2)
    (second,) = (path for path in case.path.iterdir() if path.name.startswith("0000000002-"))
    second.rename(tmp_path / "lost")
    case.refused(CorruptLog, "open segment 2", "missing")
