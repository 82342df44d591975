"""What a migration reads: appends in order, their end, and why it may be refused. PURE: the words that the readers share.

A reader of an older version of Tidelog's own format is registered in `OLDER`; it is given the old directory's files and
only reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .disk import Disk


class Verdict(Enum):
    """Why a source is not taken."""

    WRONG_MAGIC = "wrong magic"
    WRONG_LENGTH = "wrong length"
    WRONG_CHECKSUM = "wrong checksum"
    WHOLE_RECORD_BEHIND = "a whole record behind a broken one"
    EMPTY_ENVELOPE = "empty envelope"
    REPEATED_POSITION = "repeated position"
    POSITION_GAP = "gap in the positions"
    REPEATED_VERSION = "repeated stream version"
    VERSION_GAP = "gap in the stream versions"
    EVENT_TOO_LARGE = "event too large"
    APPEND_TOO_LARGE = "append too large"
    WRONG_TYPE = "wrong event type"
    RESERVED_TYPE = "reserved event type"
    WRONG_TIME = "time out of range"


class SourceRefused(Exception):
    """The source can't be copied as it is: why, and at which offset."""

    def __init__(self, verdict: Verdict, offset: int, text: str) -> None:
        super().__init__(f"{verdict.value} at offset {offset}: {text}")
        self.verdict = verdict
        self.offset = offset


Event = tuple[str, int, bytes, str, bytes, bytes]
"""(stream, version, id, type, metadata, payload)"""


class Append(NamedTuple):
    """One append of a source, which stands there at `offset`; its events have the positions from `first_position` on."""

    offset: int
    first_position: int
    recorded_at: int
    events: list[Event]


class Torn(NamedTuple):
    """The beginning of an append that the file does not hold whole."""

    offset: int
    bytes: int


class Source(Protocol):
    """A log of another format or version. `torn` is known when `appends` has ended."""

    kind: str
    version: int
    has_times: bool
    torn: Torn | None

    def appends(self) -> Iterator[Append]:
        """The whole appends in order. Raises SourceRefused."""
        ...


OLDER: dict[int, Callable[[Disk], Source]] = {}
"""Version of Tidelog's own format → its reader. Version 1 is the first, so there is none yet."""
