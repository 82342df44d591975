"""What a flood of requests may make the broker hold: the server's own loop, step by step, under connections that never pause."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from e2e.raw_client import RawClient, dealer, event
from support.process import BrokerProcess
from tidelog.limits import MESSAGE_REQUESTS_MAX
from tidelog_broker.config import load_config
from tidelog_broker.disk import RealDisk
from tidelog_broker.endpoints import parse_endpoint
from tidelog_broker.server import LATER_MAX, Server
from tidelog_broker.store import Store

ROUNDS = 60
SENT_PER_ROUND = 3
HELLO = msgpack.packb([[1, 0, "tidelog", 1, bytes(16), 1]])


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., tuple[Server, zmq.Socket[bytes]]]]:
    """serve(**settings) → a server whose loop the test runs itself, and a connection that said HELLO."""
    made: list[Any] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def start(**settings: int) -> tuple[Server, zmq.Socket[bytes]]:
        (folder / "log").mkdir()
        config = load_config(str(folder / "log"), (f"ipc://{folder}/s/broker",), settings, None, {})
        server = Server(config, Store(RealDisk(config.data), config.log_settings, lambda count: bytes(count)), context)
        endpoint = parse_endpoint(config.bind[0])
        endpoint.take()
        server.bind([endpoint])
        socket = dealer(endpoint.request)
        socket.set(zmq.SNDHWM, 4)
        made.extend([socket, server])
        assert socket.poll(5_000, zmq.POLLOUT)
        socket.send(HELLO)
        end = time.monotonic() + 10
        while not len(server.broker.peers) and time.monotonic() < end:
            server._drain()
        assert len(server.broker.peers) == 1
        return server, socket

    yield start
    for one in made:
        if isinstance(one, Server):
            one.close_sockets()
            one.store.log.abandon()
        else:
            one.close(0)
    context.term()


def flood(server: Server, socket: zmq.Socket[bytes], message: Callable[[], list[Any]], look: Callable[[], int]) -> int:
    """Rounds of the loop while more always waits → the most that `look` saw."""
    most = 0
    for _ in range(ROUNDS):
        for _ in range(SENT_PER_ROUND):
            if socket.poll(0, zmq.POLLOUT):
                socket.send(msgpack.packb(message()), zmq.NOBLOCK)
        assert server._requests.poll(10_000), "there was to be more"
        server._drain()
        most = max(most, look())
        if server.broker.appender.parts:
            server._commit()
        server._answer_later()
        server._send_replies()
        while socket.poll(0):
            socket.recv_multipart()
    return most


def test_a_flood_of_pings_waits_in_its_socket_and_not_in_the_broker(
    serve: Callable[..., tuple[Server, zmq.Socket[bytes]]],
) -> None:
    """T-56: more than LATER_MAX is held only for the message that went over it."""
    server, socket = serve(queue_messages_max=8)
    pings = [[2, number] for number in range(MESSAGE_REQUESTS_MAX)]
    most = flood(server, socket, lambda: pings, lambda: len(server.broker.later))
    assert LATER_MAX // 2 < most < LATER_MAX + MESSAGE_REQUESTS_MAX


def test_a_flood_of_appends_larger_than_groups_waits_in_its_socket_and_not_in_the_broker(
    serve: Callable[..., tuple[Server, zmq.Socket[bytes]]],
) -> None:
    """T-56: each message takes four groups; the next one is taken when all of it is admitted."""
    server, socket = serve(group_bytes_max=1 << 20, append_bytes_max=1 << 20, queue_messages_max=4)
    numbers = itertools.count(1)

    def append() -> list[Any]:
        number = next(numbers)
        region = msgpack.packb([number.to_bytes(16, "big"), "t", None, [bytes(60_000)]])
        return [3, number, 0, None, 0, None, None, [["s", None, region]]]

    most = flood(server, socket, lambda: [append() for _ in range(64)], lambda: len(server.broker.backlog))
    assert 0 < most < 64


def test_a_read_behind_an_append_that_waits_for_the_next_group_sees_it(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """Spec §6: one message with appends for several groups and a read behind each: every read sees what stood before it."""
    broker = start_broker("--group-bytes-max", str(1 << 20), "--append-bytes-max", str(1 << 20))
    with closing(RawClient(broker.endpoint)) as raw:
        requests: list[list[Any]] = []
        for number in range(6):
            writes = raw.prepare((f"s/{number}", None, [event("t", bytes(60_000)) for _ in range(12)])).writes
            requests.append([3, 100 + number, 0, None, 0, None, None, writes])
            requests.append([5, 200 + number, 0, f"s/{number}", None])
            requests.append([7, 300 + number, 0, None])
        before = raw.call(9)[0][0]["groups"]
        raw.send([msgpack.packb(requests)])
        replies: dict[int, list[Any]] = {}
        end = time.monotonic() + 30
        while len(replies) < len(requests) and time.monotonic() < end:
            message = raw.receive(1.0)
            replies.update({reply[0]: reply for reply in message[0]} if message else {})
        assert raw.call(9)[0][0]["groups"] - before >= 4, "they were to need several groups"
        for number in range(6):
            assert replies[100 + number][1] == 0
            assert replies[200 + number][1:4] == [0, 0, 11]
            assert replies[300 + number][2] >= 12 * (number + 1)
