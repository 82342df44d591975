"""A check of the log while the broker runs, in a process of its own: it would hold the interpreter lock for minutes otherwise.

The child reads as far as the group that was durable when it began, takes no lock, and touches no socket.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any


class Verification:
    """At most one at a time. One thread calls it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._child: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._state = "none"
        self._report: dict[str, Any] | None = None

    def begin(self, group: int) -> None:
        """Check everything up to this durable group; nothing happens while one is running."""
        if self._child is not None:
            return
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the child has ended)
        self._child = subprocess.Popen(
            [
                sys.executable, "-m", "tidelog_broker", "verify", "--data", str(self._data), "--json", "--until", str(group),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._state, self._report = "running", None

    def poll(self) -> dict[str, Any] | None:
        """The report of a check that has just ended; None otherwise."""
        if self._child is None or self._child.poll() is None:
            return None
        assert self._output is not None
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.close()
        self._child = None
        try:
            report = json.loads(text)
            self._state, self._report = "done", report
        except ValueError:
            self._state, self._report = "failed", {"reason": text.strip()[:500]}
            return None
        return self._report

    def state(self) -> tuple[str, dict[str, Any] | None]:
        """("none" | "running" | "done" | "failed", the last report, or the reason of the failure)"""
        return self._state, self._report

    def stop(self) -> None:
        """End one that is running."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(5)
