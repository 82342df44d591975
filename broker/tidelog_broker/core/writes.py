"""The writes of an append request: their shape and limits, checked (spec §3). PURE.

Looks at nothing but the request; per event only C code runs.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from tidelog.batch import check_type, id_splitter, type_signature
from tidelog.errors import AppendTooLarge, EventTooLarge, InvalidArgument
from tidelog.limits import (
    APPEND_BYTES_MAX,
    APPEND_EVENTS_MAX,
    EVENT_BYTES_MAX,
    EVENT_FIXED_BYTES,
    ID_WINDOW_EVENTS,
    INT_MAX,
)

from .names import check_name
from .unpack import unpack

Planned = tuple[str, bool | int | None, bytes | None, int, int]
"""A checked write: (stream, expected version, region, count of events, signature)."""

_join = b"".join
_TYPES_KNOWN_MAX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLimits:
    """Settings for new requests; bytes are event sizes."""

    event_bytes_max: int = EVENT_BYTES_MAX
    append_events_max: int = APPEND_EVENTS_MAX
    append_bytes_max: int = APPEND_BYTES_MAX
    id_window_events: int = ID_WINDOW_EVENTS


class WriteChecks:
    """The checks under given limits; remembers the types it has seen."""

    def __init__(self, limits: AppendLimits) -> None:
        self.limits = limits
        self.types: dict[str, tuple[int, int]] = {}
        """Type → (its bytes, its signature)."""

    def plan(self, writes: Any, streams: Container[str]) -> tuple[list[Planned], tuple[bytes, ...]]:
        """The writes, their shape and limits checked, and the ids of all their events."""
        plan: list[Planned] = []
        count = size = 0
        ids = b""
        for write in writes:
            if type(write) is not tuple or len(write) != 3:
                raise InvalidArgument("a write is [stream, expected version, events]")
            stream, expected, region = write
            if type(stream) is not str or stream not in streams:
                check_name(stream, "stream")
            if type(expected) is int:
                if not 0 <= expected <= INT_MAX:
                    raise InvalidArgument("an expected version is at least 0 and below 2^63")
            elif expected is not None and type(expected) is not bool:
                raise InvalidArgument("an expected version is nil, false, true or an integer")
            if region is None:
                plan.append((stream, expected, None, 0, 0))
                continue
            if type(region) is not bytes:
                raise InvalidArgument("the events of a write are bin, or nil")
            events, event_bytes, signature, event_ids = self._events(region)
            plan.append((stream, expected, region, events, signature))
            count += events
            size += event_bytes
            ids = ids + event_ids if ids else event_ids
        if not count:
            raise InvalidArgument("an append has at least one event")
        if len(plan) > 1 and len({row[0] for row in plan}) != len(plan):
            raise InvalidArgument("a stream stands at most once in an append")
        limits = self.limits
        if count > limits.append_events_max:
            raise AppendTooLarge(
                f"{count} events in an append, the limit is {limits.append_events_max}", count, limits.append_events_max
            )
        if size > limits.append_bytes_max:
            raise AppendTooLarge(
                f"{size} bytes of events in an append, the limit is {limits.append_bytes_max}",
                size,
                limits.append_bytes_max,
            )
        return plan, (ids,) if count == 1 else id_splitter(count).unpack(ids)

    def _events(self, region: bytes) -> tuple[int, int, int, bytes]:
        """Check a region's events → (count, sum of event sizes, signature, ids). Per event only C code runs."""
        try:
            ids, types, metadata, payloads = unpack(region)
            count = len(payloads)
            if type(ids) is not bytes or len(ids) != 16 * count or type(payloads) is not tuple or not count:
                raise InvalidArgument("ids are 16 bytes an event, payloads an array")
            # join takes nothing but bytes here, so it checks every type and sums in one call. Sums stand in for the
            # largest sizes: only where they are too much, each event is measured.
            total = len(_join(payloads)) if count != 1 else len(_bytes(payloads[0]))
            if metadata is not None:
                if type(metadata) is not tuple or len(metadata) != count:
                    raise InvalidArgument("metadata is nil or one bin an event")
                total += len(_join(metadata))
            largest = total
            if type(types) is str:
                size, signature = self.types.get(types) or self._learn_type(types)
                total += size * count
                largest += size
            else:
                if type(types) is not tuple or len(types) != count or set(map(type, types)) != {str}:
                    raise InvalidArgument("types are one str, or one an event")
                known = {name: self.types.get(name) or self._learn_type(name) for name in set(types)}
                total += sum([known[name][0] for name in types])
                largest = total
                signature = 0
                for _, bit in known.values():
                    signature |= bit
        except InvalidArgument:
            raise
        except Exception:
            # Hostile bytes end here whatever msgpack made of them; their repr is never logged.
            raise InvalidArgument("the events of a write are not four columns (FORMAT.md 3.1)") from None
        if largest + EVENT_FIXED_BYTES > self.limits.event_bytes_max:
            self._check_each(types, metadata, payloads)
        return count, total + EVENT_FIXED_BYTES * count, signature, ids

    def _learn_type(self, name: str) -> tuple[int, int]:
        """(bytes, signature) of a type not seen lately. Raises InvalidArgument."""
        known = check_type(name), type_signature(name)
        if len(self.types) >= _TYPES_KNOWN_MAX:
            self.types.clear()
        self.types[name] = known
        return known

    def _check_each(self, types: Any, metadata: Any, payloads: tuple[bytes, ...]) -> None:
        for place, payload in enumerate(payloads):
            name = types if type(types) is str else types[place]
            size = EVENT_FIXED_BYTES + len(name.encode()) + len(payload) + (len(metadata[place]) if metadata else 0)
            if size > self.limits.event_bytes_max:
                limit = self.limits.event_bytes_max
                raise EventTooLarge(f"event {place} has {size} bytes, the limit is {limit}", size, limit)


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise InvalidArgument("a payload is bin")
    return value
