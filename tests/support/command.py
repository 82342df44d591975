"""What the tests of the command line share beside their fixtures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Protocol

COMMAND = [sys.executable, "-m", "tidelog_broker"]


class Run(Protocol):
    """Runs the command to its end."""

    def __call__(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]: ...


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The objects that a command printed with --json; it must have succeeded."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a command ended with; its exit code must be this one."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("tidelog: ")
    assert done.stderr.count("\n") == 1
    return done.stderr
