"""A check of the log while the broker runs, as far as the group that was durable when it began (child.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

from .child import Child


class Verification:
    """The last check: at most one at a time. One thread calls it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._child = Child()
        self._state = "none"
        self._report: dict[str, Any] | None = None

    def begin(self, group: int | None) -> bool:
        """Check everything up to this durable group (None: the whole log); False while one is running, or if none can be."""
        if self._child.running:
            return False
        until = [] if group is None else ["--until", str(group)]
        try:
            self._child.begin("verify", "--data", str(self._data), "--json", "--beside", *until)
        except OSError as error:
            self._state, self._report = "failed", {"reason": f"a check can't be started: {error}"}
            return False
        self._state, self._report = "running", None
        return True

    @property
    def running(self) -> bool:
        """True while one reads the files."""
        return self._child.running

    def poll(self) -> dict[str, Any] | None:
        """The report of a check that has just ended; None otherwise."""
        ended = self._child.poll()
        if ended is None:
            return None
        _, text = ended
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
        self._child.stop()
