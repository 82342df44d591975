"""One process of a client, from its start to its end or kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
NOTES = "NOTES"
"""Stands for the file of a life's notes among its arguments."""


class Life:
    """One life of a client; its name says whose, and which."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.notes = folder / name
        self._errors = folder / f"{name}.stderr"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(str(self.notes) if word == NOTES else word for word in arguments)],
                stdin=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdin
        self.process.stdin.close()

    def tell(self) -> None:
        """Tell it to end."""
        assert self.process.stdin
        self.process.stdin.close()

    def ended(self, timeout: float) -> str:
        """Wait for its end; what went wrong, or nothing."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not end in {timeout:.0f} s: {self._errors.read_text()}"
        return "" if code == 0 else f"{self.name} ended with {code}: {self._errors.read_text()}"
