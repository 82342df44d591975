"""The limits: a broker that commits nothing, clients that build nothing, and the disk alone.

What Tidelog reaches is only worth something beside what the same machine does in the same minute without it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgpack
import zmq
from tidelog.ids import random_ids
from tidelog.wire import APPEND, EVERYTHING, HELLO, PROTOCOL, READ, array_header, pack

REPLY = bytes(20)
"""As long as the broker's reply to one append."""
DRAIN_MESSAGES_MAX = 512
REPLY_S = 30
SYNC_BYTES = 4096
WRITE_BYTES = 1 << 20


class NoReply(Exception):
    """The other side did not answer."""


def serve_echo(endpoint: str) -> None:
    """A ROUTER that drains, counts, and answers each client with one message; ends with standard input."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.bind(endpoint)
        print("ready", flush=True)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        while sys.stdin.fileno() not in dict(poller.poll()):
            while _echo(socket):
                pass
    finally:
        context.destroy(linger=0)


def _echo(socket: zmq.Socket[bytes]) -> bool:
    """One round: all that waits, then one reply message to each client. True if there was anything."""
    receive = socket.recv
    counts: dict[bytes, int] = {}
    for _ in range(DRAIN_MESSAGES_MAX):
        try:
            identity = receive(zmq.NOBLOCK)
        except zmq.Again:
            break
        receive()
        counts[identity] = counts.get(identity, 0) + 1
    for identity, count in counts.items():
        socket.send(identity, zmq.SNDMORE)
        socket.send(REPLY * count)
    return bool(counts)


class BareClient:
    """One request a message, the frames made before, a window of them in flight."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, REPLY_S * 1000)
        self.socket.connect(endpoint)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def hello(self) -> None:
        """Greet a real broker."""
        self.socket.send(msgpack.packb([(HELLO, 0, "tidelog", PROTOCOL, os.urandom(16), 1)]))
        if msgpack.unpackb(self.socket.recv())[0][1] != 0:
            raise NoReply("HELLO was refused")

    def echo(self, frame: bytes, count: int, window: int) -> list[int]:
        """Send `count` frames → when each reply message came, in ns (with a window of 1: one a frame)."""
        send, receive, clock = self.socket.send, self.socket.recv, time.perf_counter_ns
        size = len(REPLY)
        times = [clock()]
        done = sent = 0
        while done < count:
            for _ in range(min(window - (sent - done), count - sent)):
                send(frame)
                sent += 1
            done += len(receive()) // size
            times.append(clock())
        return times

    def append(self, frames: list[bytes], window: int) -> None:
        """Send these appends to a real broker, one a message; all must succeed."""
        send, receive = self.socket.send, self.socket.recv
        done = sent = 0
        count = len(frames)
        while done < count:
            for _ in range(min(window - (sent - done), count - sent)):
                send(frames[sent])
                sent += 1
            replies = msgpack.unpackb(receive())
            if any(reply[1] for reply in replies):
                raise NoReply(f"an append was refused: {replies[0][2]}")
            done += len(replies)

    def pages(self, size: int) -> list[bytes]:
        """The log's first pages of stored bytes, until they are `size` bytes together or the log ends."""
        got: list[bytes] = []
        start = have = 0
        while have < size:
            self.socket.send(
                msgpack.packb([(READ, start + 1, 0, EVERYTHING, "", start, None, None, False, None, None)])
            )
            ((_, code, _, to, end, *_),) = msgpack.unpackb(self.socket.recv())
            if code:
                raise NoReply(f"a read was refused with code {code}")
            got.append(self.socket.recv())
            have += len(got[-1])
            start = to
            if to >= end:
                break
        return got


def append_frame(request_id: int, stream: str, events: int, payload: bytes, metadata: bytes) -> bytes:
    """A message with one append, as the client library would send it."""
    extra = [metadata] * events if metadata else None
    region = pack((random_ids(events), "measured", extra, [payload] * events))
    return array_header(1) + bytes(pack((APPEND, request_id, 5000, None, 0, None, None, ((stream, None, region),))))


def sync_times(folder: Path, count: int) -> list[int]:
    """ns of each data-sync behind a write of 4 kB into a file that was zeroed before."""
    path = folder / "sync-limit"
    data = os.urandom(SYNC_BYTES)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(descriptor, bytes(count * SYNC_BYTES), 0)
        os.fsync(descriptor)
        times = []
        for number in range(count):
            begin = time.perf_counter_ns()
            os.pwrite(descriptor, data, number * SYNC_BYTES)
            os.fdatasync(descriptor)
            times.append(time.perf_counter_ns() - begin)
        return times
    finally:
        os.close(descriptor)
        path.unlink()


def write_rate(folder: Path, size: int) -> float:
    """Bytes a second when writing a file of `size` in sequence, synced at its end."""
    path = folder / "write-limit"
    data = os.urandom(WRITE_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        begin = time.perf_counter_ns()
        for offset in range(0, size, WRITE_BYTES):
            os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)
        return size * 1e9 / (time.perf_counter_ns() - begin)
    finally:
        os.close(descriptor)
        path.unlink()
