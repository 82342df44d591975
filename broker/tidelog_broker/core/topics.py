"""What is published for a committed group (PROTOCOL.md §8). PURE.

Publishing is a hint: a message that nobody subscribed to is not made, one over PUBLISH_BYTES_MAX carries only its range.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tidelog.limits import PUBLISH_BYTES_MAX

from .index import Index, Staged, category_of

BODY = struct.Struct("<16sQQQQII")
HAS_BYTES, STOPPING = 1, 2
EVERYTHING, HEARTBEAT = b"A", b"H"
TOPICS_MAX = 65_536
"""Topics remembered; a subscriber of one more still follows, by heartbeats and reads."""


class Topics:
    """The topics that somebody subscribes to, and the messages for them."""

    def __init__(self, log_id: bytes) -> None:
        self.subscribed: set[bytes] = set()
        self._log_id = log_id

    def note(self, message: bytes) -> bool:
        """Take in a subscription message of the XPUB socket; True when a heartbeat is due at once."""
        topic = message[1:]
        if message[:1] == b"\x00":
            self.subscribed.discard(topic)
        elif len(self.subscribed) < TOPICS_MAX and len(topic) <= 257:
            self.subscribed.add(topic)
            return topic == HEARTBEAT
        return False

    def heartbeat(self, head: int, generation: int, *, stopping: bool) -> tuple[bytes, bytes]:
        """The (topic, body) of a heartbeat."""
        return HEARTBEAT, BODY.pack(self._log_id, head, head, head, generation, STOPPING if stopping else 0, 0)

    def messages(
        self, index: Index, staged: list[Staged], parts: list[bytes], generation: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """(topic, body) of each message for a group, made before the index takes it in."""
        if EVERYTHING in self.subscribed:
            head = index.head + sum(row[1] for row in staged)
            yield EVERYTHING, self._body(index.head, head, head, generation, parts)
        if len(self.subscribed) > (EVERYTHING in self.subscribed) + (HEARTBEAT in self.subscribed):
            yield from self._per_append(index, staged, parts, generation)

    def _per_append(
        self, index: Index, staged: list[Staged], parts: list[bytes], generation: int
    ) -> Iterator[tuple[bytes, bytes]]:
        position = index.head
        ends: dict[str, int] = {}
        place = 0
        while place < len(staged):
            stop = place + 1
            while stop < len(staged) and not staged[stop][5]:
                stop += 1
            in_category: dict[str, list[bytes]] = {}
            reach: dict[str, int] = {}
            behind = position + sum(row[1] for row in staged[place:stop])
            for at in range(place, stop):
                stream, events, version = staged[at][:3]
                position += events
                stored = parts[3 * at : 3 * at + 3]
                topic = b"S" + stream.encode() + b"\0"
                if topic in self.subscribed:
                    yield topic, self._body(version, version + events, behind, generation, stored)
                category = category_of(stream)
                if category is not None and b"C" + category.encode() + b"\0" in self.subscribed:
                    in_category.setdefault(category, []).extend(stored)
                    reach[category] = position
            for category, stored in in_category.items():
                known = index.find_category(category)
                since = ends.get(category, known.end if known else 0)
                yield (
                    b"C" + category.encode() + b"\0",
                    self._body(since, reach[category], behind, generation, stored),
                )
            ends.update(reach)
            place = stop

    def _body(self, since: int, to: int, head: int, generation: int, parts: list[bytes]) -> bytes:
        fits = sum(map(len, parts)) <= PUBLISH_BYTES_MAX
        body = BODY.pack(self._log_id, since, to, head, generation, HAS_BYTES if fits else 0, 0)
        return b"".join([body, *parts]) if fits else body
