"""The command as a process, in a directory of the test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command import COMMAND, Run


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("TIDELOG_", "XDG_"))}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(*arguments) → the finished command, whatever its exit code."""

    def start(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, **more
        )

    return start
