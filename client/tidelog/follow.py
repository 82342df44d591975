"""The rule by which a subscriber stays gapless though publishing may drop anything. PURE: no sockets, no clock.

`next` is the first position (for one stream: version) not yet taken. `covered` is the greatest head, a global
position, below which nothing of the topic is missing. PROTOCOL.md §8.
"""

from __future__ import annotations

from enum import Enum
from math import inf


class Verdict(Enum):
    """What to do with a published message."""

    TAKE = "its events from next on are the next ones"
    DROP = "all of it was taken before"
    READ = "something before it, or its bytes, must be read"


class Follow:
    """Where a subscriber stands.

    `live` from the moment at which what happened before the subscription came into force has been read: only from
    then on is a hole in the messages a loss.
    """

    def __init__(self, next: int, covered: int = 0) -> None:
        self.next = next
        self.covered = covered
        self.live = False
        self.lost = False
        self.read_at = inf
        self.beat_head = 0
        self._in_force = False

    def message(self, start: int, stop: int, head: int, has_bytes: bool) -> Verdict:
        """Judge a message that covers [start, stop). TAKE moves nothing yet: call `took` once its bytes are decoded."""
        if stop <= self.next:
            self.covered = max(self.covered, head)
            return Verdict.DROP
        if start <= self.next:
            return Verdict.TAKE if has_bytes else Verdict.READ
        if self.live:
            self.lost = True
        return Verdict.READ

    def took(self, stop: int, head: int) -> None:
        """The events up to `stop` have been taken; below `head` the topic has no others."""
        self.next = max(self.next, stop)
        self.covered = max(self.covered, head)
        if self.covered >= self.beat_head:
            self.read_at = inf

    def read(self, stop: int, end: int, head: int) -> bool:
        """A page up to `stop` has been taken, cut when the readable range ended at `end` → whether it was the last."""
        self.next = max(self.next, stop)
        if self.next < end:
            return False
        self.covered = max(self.covered, head)
        if self.covered >= self.beat_head:
            self.read_at = inf
        self.live = self.live or (self._in_force and self.covered >= self.beat_head)
        return True

    def heartbeat(self, head: int, now: float, spread: float) -> None:
        """A heartbeat tells the head. Not covered: a read is due within `spread` seconds; the first one: at once."""
        self.beat_head = max(self.beat_head, head)
        if not self._in_force:
            self._in_force = True
            self.live = self.covered >= self.beat_head
            spread = 0.0
        if self.covered < self.beat_head:
            self.read_at = min(self.read_at, now + spread)

    def silent(self, now: float) -> None:
        """No heartbeat for too long: whatever was published meanwhile has to be read, and is no lag of ours."""
        self.live = self._in_force = False
        self.read_at = now
