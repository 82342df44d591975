"""A log with a folder of backups, and the command as a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from backup.plain import Place
from support.command import COMMAND, Run


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def run() -> Run:
    """run(*arguments, input="", **environment) → the finished command, whatever its exit code."""

    def start(*arguments: str, input: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("TIDELOG_", "XDG_"))}
        return subprocess.run(
            [*COMMAND, *arguments], input=input, capture_output=True, text=True, timeout=100, env=ours | more
        )

    return start
