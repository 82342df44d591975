"""Names of streams, sessions and cursors: one rule for all (spec §2). PURE."""

from __future__ import annotations

import re

from tidelog.errors import InvalidArgument
from tidelog.limits import STREAM_BYTES_MAX

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(name: object, of: str) -> bytes:
    """The UTF-8 bytes of a name. Raises InvalidArgument."""
    if type(name) is not str:
        raise InvalidArgument(f"a {of} name is a str")
    data = name.encode()
    if not 1 <= len(data) <= STREAM_BYTES_MAX:
        raise InvalidArgument(f"a {of} name has 1 to {STREAM_BYTES_MAX} bytes, this one {len(data)}")
    if _CONTROL_CHARACTER.search(name):
        raise InvalidArgument(f"a {of} name has no control characters")
    return data


def is_name(value: object) -> bool:
    """Whether a value that was read is such a name."""
    try:
        check_name(value, "")
    except (InvalidArgument, UnicodeEncodeError):
        return False
    return True
