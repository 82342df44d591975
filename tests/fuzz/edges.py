"""Which lines of the decoders an input reached, one behind the other: sys.monitoring where there is one, else sys.settrace.

An edge is (file, line before, line). Only the files given are watched, so the harness and the libraries cost little.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

Edge = tuple[str, int, int]


class Edges:
    """Runs a function and collects the edges that it takes in some files."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = frozenset(files)
        self._met: set[Edge] = set()
        self._last = 0
        self._monitoring: Any = getattr(sys, "monitoring", None)
        if self._monitoring is not None:
            monitoring = self._monitoring
            monitoring.use_tool_id(monitoring.COVERAGE_ID, "tidelog-fuzz")
            monitoring.restart_events()  # what an earlier one switched off
            monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, self._on_line)

    def run(self, function: Callable[[bytes], None], data: bytes) -> set[Edge]:
        """The edges of one call; what it raises is not caught."""
        self._met = set()
        self._last = 0
        monitoring = self._monitoring
        if monitoring is not None:
            monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)
            try:
                function(data)
            finally:
                monitoring.set_events(monitoring.COVERAGE_ID, 0)
            return self._met
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            function(data)
        finally:
            sys.settrace(before)
        return self._met

    def close(self) -> None:
        if self._monitoring is not None:
            self._monitoring.free_tool_id(self._monitoring.COVERAGE_ID)

    def _on_line(self, code: CodeType, line: int) -> Any:
        if code.co_filename not in self._files:
            return self._monitoring.DISABLE
        self._met.add((code.co_filename, self._last, line))
        self._last = line
        return None

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        self._on_event(frame, "line", arg)
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            line = frame.f_lineno
            self._met.add((frame.f_code.co_filename, self._last, line))
            self._last = line
        return self._on_event
