"""msgpack from strangers → tuples, ints, strs and bytes. PURE.

No maps: a map of one passes for an array of one wherever it is unpacked. A large input is watched while it is unpacked: nested
or endless arrays would otherwise grow 30-fold in memory. Callers catch Exception: msgpack raises a dozen kinds.
"""

from __future__ import annotations

from typing import Any

import msgpack
from tidelog.errors import InvalidArgument
from tidelog.limits import APPEND_EVENTS_CEILING, MESSAGE_REQUESTS_MAX

SMALL_BYTES = 64 << 10
"""Up to here what an input can grow to harms nobody, and it is not watched."""

ELEMENTS_MAX = 4 * APPEND_EVENTS_CEILING + 64 * MESSAGE_REQUESTS_MAX
"""Elements of all arrays in a large input: more than any request that could be accepted has."""

_unpack = msgpack.unpackb


def unpack(data: bytes) -> Any:
    """The value in `data`. Raises InvalidArgument, or whatever msgpack raises."""
    if len(data) <= SMALL_BYTES:
        return _unpack(data, use_list=False, object_pairs_hook=_no_maps)
    room = ELEMENTS_MAX

    def count(array: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal room
        room -= len(array)
        if room < 0:
            raise InvalidArgument("too many elements")
        return array

    return _unpack(
        data, use_list=False, list_hook=count, object_pairs_hook=_no_maps, max_array_len=APPEND_EVENTS_CEILING
    )


def _no_maps(pairs: Any) -> Any:
    raise InvalidArgument("requests hold no maps")
