"""A backup file of format 1 that never changes again: of tests/golden/v1, made when the format was."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import blake2b
from pathlib import Path

from backup.plain import MADE_AT, unpack
from support.independent import reader
from tidelog_broker.backup import read_backup
from tidelog_broker.cli_backup import opened
from tidelog_broker.restore import Joined, restore
from tidelog_broker.snapshot import take, write_backup

FROZEN = Path(__file__).with_name("v1.backup")
DIGEST = "4558f932a4bdfb483663323703a5cf2b"
GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_file_is_frozen() -> None:
    data = FROZEN.read_bytes()
    assert blake2b(data, digest_size=16).hexdigest() == DIGEST
    assert unpack(data).pack() == data


def test_it_is_still_restored(tmp_path: Path) -> None:
    with opened(FROZEN.parent) as folder:
        file = folder.open(FROZEN.name)
        joined = Joined([read_backup(file)])
        restore(joined, joined.judged(), tmp_path / "new", os.urandom, opened)
        file.close()
    events, verdict = reader.read_log(tmp_path / "new")
    rows = [json.loads(line) for line in (GOLDEN / "v1.jsonl").read_text().splitlines()]
    assert str(verdict) == "whole"
    assert [event.position for event in events] == list(range(len(rows)))
    assert [(event.stream, event.version) for event in events] == [(row["stream"], row["version"]) for row in rows]


def test_the_same_log_still_makes_the_same_file(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "log")
    with opened(tmp_path) as folder, opened(tmp_path / "log") as log:
        plain = unpack(FROZEN.read_bytes())
        log_id, group = plain.fields[:2]
        assert isinstance(log_id, bytes)
        assert isinstance(group, int)
        snapshot = take(log, lambda: (log_id, group), MADE_AT)
        write_backup(folder, "b", snapshot)
        snapshot.close()
    assert (tmp_path / "b").read_bytes() == FROZEN.read_bytes()
