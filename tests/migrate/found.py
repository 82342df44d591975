"""What stands in a target, read by a reader that shares no code with the broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from migrate.seed import Wanted
from support.independent import reader


def events(target: Path) -> list[Wanted]:
    """All events of a whole log."""
    found, verdict = reader.read_log(target)
    assert verdict.kind == "whole"
    return [_wanted(event) for event in found]


def _wanted(event: Any) -> Wanted:
    return Wanted(
        event.position, event.stream, event.version, event.type, event.metadata, event.payload, UUID(bytes=event.id),
        event.recorded_at,
    )  # fmt: skip


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
