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

import msgpack


class Verification:
    """At most one at a time. One thread calls it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._child: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._state = "none"
        self._report: dict[str, Any] | None = None

    def begin(self, group: int | None) -> bool:
        """Check everything up to this durable group (None: the whole log); False while one is running, or if none can be."""
        if self._child is not None:
            return False
        until = [] if group is None else ["--until", str(group)]
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the child has ended)
            self._child = subprocess.Popen(
                # -P: nothing is imported from whatever directory the broker was started in.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "tidelog_broker",
                    "verify",
                    "--data",
                    str(self._data),
                    "--json",
                    "--beside",
                    *until,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._state, self._report = "failed", {"reason": f"a check can't be started: {error}"}
            return False
        self._state, self._report = "running", None
        return True

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
            msgpack.packb(report)
            self._state, self._report = ("done", report) if "damage" in report else ("failed", {"reason": text[:500]})
        except (ValueError, TypeError):
            self._state, self._report = "failed", {"reason": text.strip()[:500]}
        return self._report if self._state == "done" else None

    def state(self) -> tuple[str, dict[str, Any] | None]:
        """("none" | "running" | "done" | "failed", the last report, or the reason of the failure)"""
        return self._state, self._report

    def stop(self) -> None:
        """End one that is running."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            try:
                self._child.wait(0.2)
            except subprocess.TimeoutExpired:
                pass  # it hangs in a read of its own, and is in nobody's way
