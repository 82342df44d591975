"""The frozen bytes of format 1: readers read them for ever, the writer goes on making them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import pytest
from support.golden import SETTINGS, counting_random, replayed, write_golden_log
from tidelog.errors import InvalidHeader
from tidelog_broker.disk import RealDisk
from tidelog_broker.store import Store

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v1"
CONTROLS = ROOT / "tests" / "golden" / "v1-controls"
EXPECTED = ROOT / "tests" / "golden" / "v1.jsonl"
"""The events of both: control batches have none."""


FROZEN = {
    "v1/0000000001-00000000000000000000": "738e5c33f7ee0ed8c45d35835104ee8b",
    "v1/0000000002-00000000000000000005": "32e3abd32a3df55f9df02e98cd7d4222",
    "v1/0000000003-00000000000000000009": "aee57937779fa65fad94da10d55a9a2c",
    "v1/marks": "83134db40597f7e517ccfcf1aa923f46",
    "v1-controls/0000000001-00000000000000000000": "3239eccf4232d14811b4b5124f694158",
    "v1-controls/0000000002-00000000000000000005": "5cd79f9bb06f06ee3a0ba45c546bf6c5",
    "v1-controls/0000000003-00000000000000000009": "79f3d9a5f2eca2e393e5eff31c4e09fc",
    "v1-controls/marks": "9b413ea665e3920dad1c183acd0d7bd2",
    "v1.jsonl": "1bb23df9af2eaa2d01654f7097afa790",
}
"""blake2b, 16 bytes: the files never change again. A new version of the format gets files of its own."""


def test_the_golden_files_are_frozen() -> None:
    root = GOLDEN.parent
    found = {
        str(path.relative_to(root)): blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert {name: found.get(name) for name in FROZEN} == FROZEN


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The golden log, to be opened without touching it."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "log"))


@pytest.mark.parametrize("folder", [GOLDEN, CONTROLS])
def test_the_independent_reader_reads_the_golden_logs(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "read_log.py"), str(folder), "--json"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [
        json.loads(line) for line in EXPECTED.read_text().splitlines()
    ]


def test_the_broker_opens_the_golden_log(copied: Path) -> None:
    store = Store(RealDisk(copied), SETTINGS, counting_random())
    rows = [json.loads(line) for line in EXPECTED.read_text().splitlines()]
    assert store.index.head == len(rows)
    last = {row["stream"]: row["version"] + 1 for row in rows}
    assert replayed(store.index) == sorted(last.items())
    batches = [batch for number in range(store.index.stop) for batch in [store.batch(number)]]
    assert [(batch.stream, batch.first_version, batch.first_position) for batch in batches] == [
        (row["stream"], row["version"], row["position"])
        for row in rows
        if row["position"] in store.index.tail.positions
    ]


def test_the_broker_refuses_what_it_does_not_honour_yet_and_changes_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CONTROLS, tmp_path / "log"))
    with pytest.raises(InvalidHeader, match="newer Tidelog"):
        Store(RealDisk(folder), SETTINGS, counting_random())
    assert files(folder) == files(CONTROLS)


@pytest.mark.parametrize(("folder", "controls"), [(GOLDEN, False), (CONTROLS, True)])
def test_the_writer_still_makes_the_golden_bytes(tmp_path: Path, folder: Path, controls: bool) -> None:
    write_golden_log(RealDisk(tmp_path), controls=controls)
    assert files(tmp_path) == files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
