"""Sessions, cursors and leases over the wire without the library (docs/PROTOCOL.md §§5, 5.1, 5.2)."""

from __future__ import annotations

from typing import Any

import pytest
from e2e.raw_client import New, RawClient, Refused, pack_region

Writes = list[list[Any]]


def open_session(raw: RawClient, name: str, resume: int | None = None) -> tuple[int, int]:
    """(epoch, last serial)"""
    epoch, last = raw.call(16, 0, name, resume)[0]
    return epoch, last


def writes_of(stream: str, events: list[New], expected: Any = None) -> Writes:
    return [[stream, expected, pack_region(events)]]


def append(
    raw: RawClient, session: tuple[str, int, int] | None, writes: Writes, *, accepted: bool = False, cursor: Any = None
) -> list[Any]:
    """`flags, generation, places …` of the reply."""
    return raw.call(3, 0, None, int(accepted), session, cursor, writes)[0]


def refused(code: int, raw: RawClient, kind: int, *fields: Any) -> list[Any]:
    """The facts of the refusal with this code."""
    with pytest.raises(Refused) as caught:
        raw.call(kind, 0, *fields)
    assert caught.value.code == code
    return caught.value.facts
