"""`tidelog bench --quick` runs and tells what it promises; how fast is no matter of tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.command import COMMAND


def test_every_workload_is_reported_beside_its_limit_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "--quick", "--json", "--data", str(tmp_path)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    facts, *rows = map(json.loads, done.stdout.splitlines())
    assert facts["machine"]["file system"]
    assert [row["workload"] for row in rows] == [
        "W1", "W2", "W3", "W4", "W4", "W5", "W6", "W6", "W6", "W6max", "W7", "W7", "memory"
    ]  # fmt: skip
    assert all(row["value"] > 0 for row in rows)
    assert all(row["limit_value"] > 0 and row["ratio"] > 0 for row in rows if row["limit"])
    assert [row["workload"] for row in rows if row["target"]] == ["W1", "W2", "W3", "W4", "W4", "W5", "memory"]
    assert not list(tmp_path.iterdir())


def test_a_workload_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "W9", "--data", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64
    assert "there is no workload W9" in done.stderr
