"""Requests other than appends: bytes and arrays → checked values (PROTOCOL.md §§2-6). PURE."""

from __future__ import annotations

from typing import Any

from tidelog.batch import signature_of
from tidelog.errors import InvalidArgument
from tidelog.limits import INT_MAX, MESSAGE_REQUESTS_MAX, TYPES_FILTER_MAX, WAIT_FOR_MS_MAX

from .pages import CATEGORY, EVERYTHING, STREAM, Query
from .unpack import unpack

HELLO, PING, APPEND, READ, STREAM_INFO, LIST_STREAMS, HEAD, POSITION_AT, INFO, WAIT_DURABLE, HEALTH = range(1, 12)
READ_CHECKED, VERIFY, CHECKPOINT, TRUNCATE = 12, 13, 14, 15
OPEN_SESSION, COMMIT_CURSOR, LEASE, CURSOR_INFO, LIST_CURSORS = 16, 17, 18, 19, 20
WRITTEN = frozenset((TRUNCATE, OPEN_SESSION, COMMIT_CURSOR, LEASE))
"""Requests that are staged as appends are, in one order with them."""
KINDS_MAX = 31


def unpack_requests(frame: bytes) -> tuple[tuple[Any, ...], ...]:
    """The requests in a message. Raises InvalidArgument, whatever the bytes were."""
    try:
        requests = unpack(frame)
    except InvalidArgument:
        raise
    except Exception:
        raise InvalidArgument("a message is one msgpack array of requests") from None
    if type(requests) is not tuple or not 1 <= len(requests) <= MESSAGE_REQUESTS_MAX:
        raise InvalidArgument(f"a message is an array of 1 to {MESSAGE_REQUESTS_MAX} requests")
    for request in requests:
        if type(request) is not tuple or len(request) < 2 or type(request[0]) is not int:
            raise InvalidArgument("a request is an array [kind, request id, ...]")
        if type(request[1]) is not int or not 0 <= request[1] <= INT_MAX:
            raise InvalidArgument("a request id is an integer from 0 to 2^63-1")
    return requests


def parts(request: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The request's parts behind kind and id. Raises InvalidArgument unless there are `count`."""
    if len(request) != count + 2:
        raise InvalidArgument(f"this kind of request has {count + 2} parts, not {len(request)}")
    return request[2:]


def integer(value: Any, name: str, *, maximum: int = INT_MAX) -> int:
    """An integer from 0 to `maximum`. Raises InvalidArgument."""
    if type(value) is not int or not 0 <= value <= maximum:
        raise InvalidArgument(f"{name} is an integer from 0 to {maximum}")
    return value


def optional_integer(value: Any, name: str) -> int | None:
    return None if value is None else integer(value, name)


def text(value: Any, name: str) -> str:
    """A str. Raises InvalidArgument."""
    if type(value) is not str:
        raise InvalidArgument(f"{name} is a str")
    return value


def wait_ms(deadline: Any) -> int:
    """How long a request may wait for a position, in ms: its deadline, at most WAIT_FOR_MS_MAX."""
    return min(integer(deadline, "deadline") or WAIT_FOR_MS_MAX, WAIT_FOR_MS_MAX)


def query(request: tuple[Any, ...]) -> Query:
    """A READ request, checked. Raises InvalidArgument."""
    _, scope, name, start, stop, limit, backwards, types, _ = parts(request, 9)
    if scope not in (EVERYTHING, CATEGORY, STREAM) or type(scope) is not int:
        raise InvalidArgument("scope is 0 everything, 1 category or 2 stream")
    if types is not None and (
        type(types) is not tuple or len(types) > TYPES_FILTER_MAX or not set(map(type, types)) <= {str}
    ):
        raise InvalidArgument(f"types is nil or at most {TYPES_FILTER_MAX} type names")
    if type(backwards) is not bool:
        raise InvalidArgument("backwards is a bool")
    return Query(
        scope=scope,
        name=text(name, "name"),
        start=optional_integer(start, "start"),
        stop=optional_integer(stop, "stop"),
        limit=optional_integer(limit, "limit"),
        backwards=backwards,
        signature=signature_of(types) if types else 0,
    )
