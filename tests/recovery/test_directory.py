"""What stands in a log's directory beside the log, and how many of its files are open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.golden import SETTINGS, counting_random
from tidelog.errors import InvalidHeader
from tidelog_broker import files
from tidelog_broker.core.format import pack_control
from tidelog_broker.disk import RealDisk
from tidelog_broker.log import Log


def test_a_strangers_file_is_never_deleted_and_no_log_is_made_beside_it(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tmp"
    thesis.write_text("years of work")
    with pytest.raises(InvalidHeader, match=r"thesis\.tmp"):
        Log.open(RealDisk(tmp_path), SETTINGS, os.urandom)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tmp"]


def test_a_strangers_file_that_came_later_is_left_alone(tmp_path: Path) -> None:
    Log.open(RealDisk(tmp_path), SETTINGS, os.urandom).close()
    (tmp_path / "notes.tmp").write_text("mine")
    Log.open(RealDisk(tmp_path), SETTINGS, os.urandom).close()
    assert (tmp_path / "notes.tmp").read_text() == "mine"


def test_a_log_of_many_segments_keeps_few_files_open_and_reads_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "OPEN_FILES_MAX", 3)
    log = Log.open(RealDisk(tmp_path), SETTINGS, counting_random())
    places = []
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        body = b"".join(pack_control(4, [number, "x" * 900], 0))
        places.append((log.commit([body], 1, 0), body))
    assert log.segments() > 10
    for place, body in [*places, *reversed(places)]:
        assert log.read(*place, len(body)) == body
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    log.close()
    again = Log.open(RealDisk(tmp_path), SETTINGS, counting_random())
    for place, body in places:
        assert again.read(*place, len(body)) == body
    again.commit([body], 1, 0)
    again.close()
