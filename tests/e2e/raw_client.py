"""A Tidelog client of pyzmq and msgpack alone, written from docs/PROTOCOL.md (and FORMAT.md §3) without the library.

One object belongs to one thread. Whoever gets `Lost` calls `reconnect` and sends again with `resend`.
"""

import os
import random
import struct
import time
import zlib
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

EVERYTHING, CATEGORY, STREAM = 0, 1, 2
ANY, NO_STREAM, EXISTS = None, False, True
TRUNCATED, STREAM_NOT_FOUND, UNAVAILABLE, PROTOCOL_MISMATCH, HELLO_REQUIRED = 7, 6, 10, 13, 24
BATCH = struct.Struct("<4B5I4Q")
PUBLISHED = struct.Struct("<16s4QII")
PAGES_MAX = 100_000

New = namedtuple("New", "type payload metadata id")
Event = namedtuple("Event", "position stream version type id recorded_at payload metadata deleted")
Append = namedtuple("Append", "writes head")  # as first sent: to send again takes the same bytes and the head of then
# A place of `places`: first and last position, first and last version; None for a write without events.
Appended = namedtuple("Appended", "duplicate durable generation places")
Page = namedtuple("Page", "events start stop end head")


class Refused(Exception):
    """An error reply."""

    def __init__(self, code: int, text: str, facts: list[Any]) -> None:
        super().__init__(f"{code}: {text} {facts}")
        self.code, self.facts = code, facts


class Lost(Exception):
    """No reply, or the broker behind the socket does not know this connection."""


def event(kind: str, payload: bytes, metadata: bytes = b"") -> New:
    return New(kind, payload, metadata, os.urandom(16))


def pack_region(events: list[New]) -> bytes:
    types, metadata = [new.type for new in events], [new.metadata for new in events]
    one_type, some_metadata = types[0] if len(set(types)) == 1 else types, metadata if any(metadata) else None
    packed: bytes = msgpack.packb(
        [b"".join(new.id for new in events), one_type, some_metadata, [new.payload for new in events]]
    )
    return packed


def decode(stored: bytes) -> Iterator[Event]:
    """The events in stored bytes: batches, with control batches, group headers and padding between them."""
    at = 0
    while at < len(stored):
        if stored[at] == 0x54:
            at += 64
        elif stored[at] == 0:
            at += len(stored) - at - len(stored[at:].lstrip(b"\0"))
        elif stored[at] in (0x42, 0x43):
            length = int.from_bytes(stored[at + 4 : at + 8], "little")
            batch, at = stored[at : at + length], at + length
            assert length == len(batch) >= BATCH.size + 4, "a batch is cut"
            assert zlib.crc32(batch[:-4]) == int.from_bytes(batch[-4:], "little"), "CRC of a batch"
            if batch[0] == 0x43:
                continue
            _, flags, name_len, layout, _, _, _, n, region_len, position, version, recorded_at, _ = BATCH.unpack_from(
                batch
            )
            assert layout == 1, "another layout"
            name = batch[BATCH.size : BATCH.size + name_len].decode()
            ids, types, metadata, payloads = msgpack.unpackb(batch[-4 - region_len : -4])
            types, metadata = [types] * n if isinstance(types, str) else types, metadata or [b""] * n
            for i in range(n):
                row = (types[i], ids[16 * i : 16 * i + 16], recorded_at, payloads[i], metadata[i], bool(flags & 1))
                yield Event(position + i, name, version + i, *row)
        else:
            raise AssertionError(f"unknown record {stored[at]:#x} at {at}")


def cut(stored: bytes, scope: int, start: int, stop: int, types: list[str] | None = None) -> list[Event]:
    """The events in [start, stop), of these types: whole batches travel, and a filter is only a hint."""
    inside = (e for e in decode(stored) if start <= (e.version if scope == STREAM else e.position) < stop)
    return [e for e in inside if types is None or e.type in types]


def dealer(endpoint: str, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    if kind == zmq.DEALER:
        socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


class RawClient:
    def __init__(self, endpoint: str, timeout: float = 20.0) -> None:
        self.endpoint, self.timeout = endpoint, timeout
        self.client_id, self.incarnation, self.request_id = os.urandom(16), 0, 0
        self.head = 0
        self.log_id: bytes | None = None
        self.socket: zmq.Socket[bytes] | None = None
        self.reconnect()

    def close(self) -> None:
        if self.socket:
            self.socket.close(0)
            self.socket = None

    def reconnect(self) -> None:
        """A new socket and a higher incarnation, until a broker answers or the client's patience ends."""
        deadline = time.monotonic() + self.timeout
        while True:
            self.close()
            self.socket, self.incarnation = dealer(self.endpoint), self.incarnation + 1
            try:
                return self.hello()
            except (Lost, Refused) as error:
                if time.monotonic() > deadline or (isinstance(error, Refused) and error.code != UNAVAILABLE):
                    raise
                self.socket.poll(50)  # nothing is to come; only not to hurry

    def hello(self) -> None:
        reply, _ = self.call(1, "tidelog", 1, self.client_id, self.incarnation, patience=2.0)
        protocol, log_id, self.boot_id, self.generation, self.head, self.first_available = reply[:6]
        self.limits, endpoints, heartbeat, self.version = reply[6:10]
        assert protocol == 1
        assert self.log_id in (None, log_id), "another log"
        self.log_id, self.heartbeat = log_id, heartbeat / 1000
        transport = self.endpoint.partition(":")[0]
        rows = [row for row in endpoints if row[0] == self.endpoint]
        rows += [row for row in endpoints if row[0].partition(":")[0] == transport]
        self.publishing = rows[0][1]

    def send(self, frames: list[bytes], patience: float = 2.0) -> None:
        assert self.socket
        if not self.socket.poll(int(patience * 1000), zmq.POLLOUT):
            raise Lost("no connection")
        self.socket.send_multipart(frames, zmq.NOBLOCK)

    def receive(self, patience: float) -> tuple[list[list[Any]], bytes] | None:
        """One reply message: its replies, and the stored bytes that belong to the last of them."""
        assert self.socket
        if not self.socket.poll(int(max(patience, 0) * 1000)):
            return None
        frames = self.socket.recv_multipart()
        assert len(frames) <= 2
        return msgpack.unpackb(frames[0]), frames[1] if len(frames) == 2 else b""

    def start_call(self, kind: int, *fields: Any) -> int:
        self.request_id += 1
        self.send([msgpack.packb([[kind, self.request_id, *fields]])])
        return self.request_id

    def call(self, kind: int, *fields: Any, patience: float | None = None) -> tuple[list[Any], bytes]:
        """The reply behind its code, and the stored bytes. Asks with a PING when nothing comes for a while."""
        request_id = self.start_call(kind, *fields)
        deadline = time.monotonic() + (self.timeout if patience is None else patience)
        ping_id, silent_until = None, time.monotonic() + 2
        while time.monotonic() < deadline:
            message = self.receive(min(deadline, silent_until) - time.monotonic())
            if message is None and time.monotonic() >= silent_until:
                if ping_id is not None or kind == 1:
                    break
                ping_id, silent_until = self.start_call(2), time.monotonic() + 2
                continue
            replies, stored = message or ([], b"")
            for reply in replies:
                if reply[0] in (request_id, ping_id) and reply[1] == HELLO_REQUIRED:
                    raise Lost("another broker behind the socket")
                if reply[0] == ping_id:
                    ping_id, silent_until = None, time.monotonic() + 2
                if reply[0] == request_id and reply[1]:
                    raise Refused(*reply[1:4])
                if reply[0] == request_id:
                    return reply[2:], stored if reply is replies[-1] else b""
        raise Lost(f"no reply to request kind {kind}")

    def ping(self) -> int:
        return int(self.call(2)[0][0])

    def prepare(self, *writes: tuple[str, Any, list[New]]) -> Append:
        packed = [[stream, expected, pack_region(events) if events else None] for stream, expected, events in writes]
        return Append(packed, self.head)

    def append(self, *writes: tuple[str, Any, list[New]]) -> Appended:
        return self._append(self.prepare(*writes), None)

    def send_append(self, append: Append) -> None:
        """Send it and wait for nothing, as when the connection breaks before the reply."""
        self.start_call(3, 0, None, 0, None, None, append.writes)

    def resend(self, append: Append) -> Appended:
        return self._append(append, append.head)

    def _append(self, append: Append, resend_head: int | None) -> Appended:
        reply, _ = self.call(3, int(self.timeout * 1000), resend_head, 0, None, None, append.writes)
        flags, generation, *numbers = reply
        rows = [tuple(numbers[at : at + 4]) for at in range(0, len(numbers), 4)]
        # "four numbers per write, nil for a write without events": read as four nils
        places = [None if row[0] is None else row for row in rows]
        self.head = max([self.head, *(row[1] + 1 for row in places if row)])
        return Appended(bool(flags & 1), bool(flags & 2), generation, places)

    def read(self, scope: int = EVERYTHING, name: str = "", **options: Any) -> list[Event]:
        """The events of the range in their order, or from the last to the first when backwards."""
        limit, found = options.get("limit"), []
        for page in self.pages(scope, name, **options):
            found += page.events[::-1] if options.get("backwards") else page.events
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    def pages(
        self, scope: int, name: str, start: int | None = None, stop: int | None = None, limit: int | None = None,
        backwards: bool = False, types: list[str] | None = None, wait_for: int | None = None,
    ) -> Iterator[Page]:  # fmt: skip
        for number in range(PAGES_MAX):
            fields = (scope, name, start, stop, limit, backwards, types, wait_for)
            try:
                reply, stored = self.call(4, int(self.timeout * 1000), *fields)
            except Refused as error:
                if backwards and number and error.code == TRUNCATED:
                    return
                raise
            page = Page(cut(stored, scope, reply[0], reply[1], types), *reply[:4])
            self.head = max(self.head, page.head)
            yield page
            if backwards:
                if page.start == page.stop or page.start <= (start or 0):
                    return
                stop = page.start
            else:
                if page.stop >= (page.end if stop is None else min(stop, page.end)):
                    return
                assert page.stop > page.start, "a page without progress"
                start = page.stop
        raise AssertionError("reading does not end")

    def stream_info(self, stream: str) -> list[Any]:
        """First available version, last version, last position, deleted, batches."""
        return self.call(5, 0, stream, None)[0]

    def list_streams(self, prefix: str = "", after: str | None = None, limit: int = 1000) -> list[Any]:
        """More, and rows of name, last version, last position, deleted."""
        return self.call(6, 0, prefix, after, limit)[0]

    def read_head(self) -> int:
        self.head = self.call(7, 0, None)[0][0]
        return self.head

    def subscribe(self, scope: int = EVERYTHING, name: str = "") -> zmq.Socket[bytes]:
        socket = dealer(self.publishing, zmq.SUB)
        topics = {EVERYTHING: b"A", CATEGORY: b"C" + name.encode() + b"\0", STREAM: b"S" + name.encode() + b"\0"}
        socket.setsockopt(zmq.SUBSCRIBE, topics[scope])
        socket.setsockopt(zmq.SUBSCRIBE, b"H")  # behind the topic: its first message shows that both are in force
        return socket

    def follow(self, scope: int = EVERYTHING, name: str = "", start: int = 0, seconds: float = 60.0) -> Iterator[Event]:
        """Every event from `start` on, once, as it comes, over restarts of the broker; ends after so many seconds."""
        deadline, wanted, covered = time.monotonic() + seconds, start, 0
        sub: zmq.Socket[bytes] | None = None
        try:
            while time.monotonic() < deadline:
                try:
                    if sub is None:
                        sub, in_force = self.subscribe(scope, name), False
                    if not sub.poll(int(max(3 * self.heartbeat, 0.5) * 1000)):
                        raise Lost("no heartbeat")
                    topic, body = sub.recv_multipart()
                    log_id, first, behind, head, _, flags, _ = PUBLISHED.unpack_from(body)
                    assert log_id == self.log_id, "another log"
                    if topic == b"H":
                        if in_force and (head <= covered or sub.poll(int(random.random() * self.heartbeat * 1000))):
                            continue
                        in_force = True
                    elif behind <= wanted:
                        covered = max(covered, head)
                        continue
                    elif first <= wanted and flags & 1:
                        yield from cut(body[PUBLISHED.size :], scope, wanted, behind)
                        wanted, covered = behind, max(covered, head)
                        continue
                    for page in self.pages(scope, name, wanted):
                        yield from page.events
                        wanted, covered = max(wanted, page.stop), max(covered, page.head)
                except (Lost, Refused) as error:
                    code = error.code if isinstance(error, Refused) else UNAVAILABLE
                    if code == STREAM_NOT_FOUND:  # not yet
                        continue
                    if code != UNAVAILABLE:
                        raise
                    if sub:
                        sub.close(0)
                    sub = None
                    self.reconnect()
        finally:
            if sub:
                sub.close(0)
