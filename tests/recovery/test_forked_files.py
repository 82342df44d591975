"""Marks of one history beside the segments of another are damage, though the groups they name are there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.cases import FIRST, Case
from tidelog.errors import CorruptLog
from tidelog_broker.core.format import Mark


@pytest.mark.parametrize("put_back", [FIRST, "marks"])
def test_files_of_two_histories_of_one_log_are_damage(tmp_path: Path, put_back: str) -> None:
    one = Case(tmp_path / "one")
    one.open()
    one.commit([("s/1", [b"common"])])
    one.log.close()
    shutil.copytree(one.path, tmp_path / "two")
    two = Case(tmp_path / "two")
    two.starts = 50
    for case, payload in ((one, b"x"), (two, b"x" * 100)):
        case.open()
        case.writer = type(case.writer)(1, {"s/1": 1})
        case.commit([("s/1", [payload])])
        case.log.close()
    shutil.copy(two.path / put_back, one.path / put_back)
    one.refused(CorruptLog, "mark", "group 2")


def test_mark_with_another_first_position_of_the_open_segment_is_damage(tmp_path: Path) -> None:
    case = Case(tmp_path / "log")
    case.open()
    case.commit([("s/1", [b"x"])])
    case.log.close()
    content = bytearray(case.read("marks"))
    for at in (0, 4096):
        mark = Mark.unpack(bytes(content[at : at + 112]))
        assert mark is not None
        content[at : at + 112] = dataclasses.replace(mark, open_first_position=7).pack()
    (case.path / "marks").write_bytes(content)
    case.refused(CorruptLog, "first position 7")
