"""Hostile messages (T-55): an error or silence for their sender, and nobody else notices anything."""

from __future__ import annotations

import random
import socket as plain
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from e2e.raw_client import RawClient, dealer, event
from support.process import BrokerProcess, until
from tidelog import Client, Event

RANDOM_MESSAGES = 100_000
SEED = random.randrange(1 << 32)


def resident_kib(pid: int) -> int:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1])


PATIENCE_S = 60.0
"""For what must happen, on a machine that is busy with other tests; nothing is said about how fast it is."""


@contextmanager
def bystander(broker: BrokerProcess) -> Iterator[list[int]]:
    """A good client that appends and reads all the while; yields the rounds it has done. Fails with it."""
    over = threading.Event()
    took: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Client(broker.endpoint, timeout=PATIENCE_S) as client:
                while not over.is_set():
                    done = client.append("good", Event("a", b"%d" % len(took)))
                    assert done.first_version == len(took)
                    last = next(iter(client.read_stream("good", backwards=True, limit=1)))
                    assert (last.version, last.payload) == (len(took), b"%d" % len(took))
                    took.append(done.first_position)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert until(lambda: len(took) > 3 or bool(failures), PATIENCE_S)
        yield took
        seen = len(took)
        assert until(lambda: len(took) > seen + 3 or bool(failures), PATIENCE_S), "the good client is no longer served"
    finally:
        over.set()
        thread.join(2 * PATIENCE_S)
    assert not failures, failures
    assert broker.running
    with Client(broker.endpoint, timeout=PATIENCE_S) as client:
        first = client.stream_info("good").first_version  # a message may have been a truncation, and a right one
        assert [found.payload for found in client.read_stream("good")] == [b"%d" % i for i in range(first, len(took))]


@pytest.fixture
def small(new_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    broker = new_broker()
    broker.start()
    return broker


SHAPES: dict[str, list[bytes]] = {
    "empty": [b""],
    "not msgpack": [b"\xc1"],
    "a map": [msgpack.packb([{"kind": 2, "id": 1}])],
    "a map inside": [msgpack.packb([[2, 1, {1: 2}]])],
    "an id as str": [msgpack.packb([[2, "1"]])],
    "an id of 2^63": [msgpack.packb([[2, 1 << 63]])],
    "a negative id": [msgpack.packb([[2, -1]])],
    "an id as bool": [msgpack.packb([[2, True]])],
    "a kind as bool": [msgpack.packb([[True, 1]])],
    "ext": [msgpack.packb([[2, 1, msgpack.ExtType(5, b"x")]])[:-1]],
    "a timestamp": [msgpack.packb(msgpack.Timestamp(1, 2))],
    "too many": [msgpack.packb([[2, 1]] * 1_025)],
    "none": [msgpack.packb([])],
    "trailing": [msgpack.packb([[2, 1]]) + b"\xc0"],
    "nested": [b"\x91" * 60_000 + b"\xc0"],
    "nested large": [b"\x91" * 5_000_000],
    "an array of 2^32-1": [b"\xdd\xff\xff\xff\xff"],
    "a bin of 2^32-1": [b"\x91\x93\x03\x01\xc6\xff\xff\xff\xff"],
    "many small arrays": [b"\xdd\x00\x20\x00\x00" + b"\x90" * (2 << 20)],
    "many nil": [b"\xdd\x00\xff\xff\xff" + b"\xc0" * 0xFFFFFF],
    "wrong utf-8": [b"\x91\x93\x02\x01\xa2\xff\xfe"],
    "two frames": [msgpack.packb([[2, 1]]), b""],
    "an empty frame first": [b"", msgpack.packb([[2, 1]])],
    "a thousand frames": [msgpack.packb([[2, 1]])] * 1_000,
}


@pytest.mark.parametrize("hello", [False, True], ids=["a stranger", "a client"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_that_cannot_be_read_costs_its_sender_one_error_and_the_connection_goes_on(
    shared: BrokerProcess, shape: str, hello: bool
) -> None:
    """T-55"""
    with closing(RawClient(shared.endpoint)) as raw:
        if not hello:
            raw.close()
            raw.socket = dealer(shared.endpoint)
        raw.send(SHAPES[shape])
        message = raw.receive(10)
        assert message, "no answer"
        ((request_id, code, text, facts),) = message[0]
        assert (request_id, code, facts) == (None, 1, [])
        assert isinstance(text, str)
        assert raw.receive(0.02) is None
        if hello:
            raw.ping()
        else:
            raw.send([msgpack.packb([[2, 3]])])
            again = raw.receive(10)
            assert again
            assert again[0][0][:2] == [3, 24]


def test_every_truncation_and_every_wrong_type_in_every_kind_of_request_is_answered(
    shared: BrokerProcess,
) -> None:
    """T-55: under its own id, and the next request is served."""
    wrong: list[Any] = [None, True, -1, 1 << 63, 1.5, "x", b"x", [], [[]], "x" * 300]
    with closing(RawClient(shared.endpoint)) as raw:
        good: dict[int, list[Any]] = {
            1: ["tidelog", 1, raw.client_id, 1],
            2: [],
            3: [0, None, 0, None, None, raw.prepare(("hostile", 10**9, [event("a", b"")])).writes],
            4: [0, 0, "", None, None, None, False, None, None],
            5: [0, "nobody", None],
            6: [0, "", None, 10],
            7: [0, None],
            8: [0, 0],
            9: [],
            10: [0, raw.boot_id, 0, 0],
            11: [],
            12: [0], 31: [], 32: [], 0: [], -1: [], 1 << 62: [],
        }  # fmt: skip
        sent = 0
        answered: list[int] = []
        for kind, fields in good.items():
            forms = [fields[:count] for count in range(len(fields) + 1)] + [[*fields, None]]
            forms += [[*fields[:place], bad, *fields[place + 1 :]] for place in range(len(fields)) for bad in wrong]
            if kind == 3:
                write = fields[-1][0]
                forms += [
                    [*fields[:-1], [[*write[:place], bad, *write[place + 1 :]]]] for place in range(3) for bad in wrong
                ]
                forms += [[*fields[:-1], [write[:count]]] for count in range(3)]
            for form in forms:
                # A wait for a position that never comes is a right request.
                if any(value == 1 << 62 for value in form):
                    continue
                sent += 1
                raw.send([msgpack.packb([[kind, sent, *form]])])
                message = raw.receive(10)
                assert message, f"no answer to {[kind, *form]}"
                answered += [reply[0] for reply in message[0]]
        assert answered == list(range(1, sent + 1))
        raw.ping()


def test_a_message_over_the_limit_costs_its_connection_and_no_memory(small: BrokerProcess) -> None:
    """T-55"""
    with bystander(small), closing(dealer(small.endpoint)) as giant:
        before = resident_kib(small.pid)
        giant.send(bytes(18 << 20))
        assert not giant.poll(1_000)
        assert resident_kib(small.pid) - before < 30 << 10
        giant.close(0)
        with closing(RawClient(small.endpoint)) as raw:
            raw.ping()


@pytest.mark.timeout(600)
def test_1e5_random_messages_leave_the_broker_alive_and_a_good_client_undisturbed(small: BrokerProcess) -> None:
    """T-55: noise, and good requests with some bytes changed, from strangers and from a client; SEED is in the message."""
    chance = random.Random(SEED)
    with (
        bystander(small) as took,
        closing(RawClient(small.endpoint)) as raw,
        closing(dealer(small.endpoint)) as stranger,
    ):
        assert raw.socket
        region = raw.prepare(("noise", None, [event("a", b"payload"), event("b", b"")])).writes
        seeds = [
            msgpack.packb([[2, 1], [7, 2, 0, None]]),
            msgpack.packb([[3, 1, 0, None, 0, None, None, region]]),
            msgpack.packb([[4, 1, 0, 0, "", None, None, 10, False, ["a"], None]]),
            msgpack.packb([[4, 1, 0, 2, "good", 0, 5, None, True, None, None]]),
            msgpack.packb([[5, 1, 0, "good", None], [6, 2, 0, "g", None, 10], [8, 3, 0, 17], [9, 4], [11, 5]]),
            msgpack.packb([[10, 1, 0, raw.boot_id, 0, 0]]),
        ]
        # Of two connections with one client id the older is dropped, so each has its own.
        hellos = [msgpack.packb([[1, 1, "tidelog", 1, chance.randbytes(16), 7]]) for _ in range(2)]
        head_before, rounds_before = resident_kib(small.pid), len(took)
        for number in range(RANDOM_MESSAGES):
            if chance.random() < 0.3:
                frame = chance.randbytes(chance.randrange(200))
            else:
                mutated = bytearray(chance.choice([*seeds, hellos[number % 2]]))
                for _ in range(chance.randint(1, 4)):
                    mutated[chance.randrange(len(mutated))] = chance.randrange(256)
                frame = bytes(mutated[: chance.randrange(len(mutated) + 1)] if chance.random() < 0.2 else mutated)
            sender = raw.socket if number % 2 else stranger
            frames = [frame] if chance.random() < 0.97 else [frame, chance.randbytes(5)]
            assert sender.poll(60_000, zmq.POLLOUT), f"seed {SEED}: the broker takes nothing any more"
            sender.send_multipart(frames)
            if number % 50 == 0:
                for socket in (raw.socket, stranger):
                    while socket.poll(0):
                        socket.recv_multipart()
        # All of it was read: what comes last on each connection is answered.
        for socket in (raw.socket, stranger):
            last = False
            socket.send(msgpack.packb([[2, 1 << 40]]))
            while not last:
                assert socket.poll(60_000), f"seed {SEED}: the broker did not read all of it"
                last = any(reply[0] == 1 << 40 for reply in msgpack.unpackb(socket.recv_multipart()[0]))
        assert resident_kib(small.pid) - head_before < 60 << 10
        # The good client was served while the noise went on, not only before and behind it.
        assert len(took) > rounds_before, f"seed {SEED}"
    assert small.stderr() == "", f"seed {SEED}: {small.stderr()}"
    assert small.stop(PATIENCE_S) == 0


def test_bytes_that_are_no_zmtp_cost_their_connection(small: BrokerProcess) -> None:
    """T-55: the socket itself, spoken to by something else."""
    path = small.endpoint.removeprefix("ipc://")
    with bystander(small):
        for suffix in ("", ".pub", ".health"):
            for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, random.Random(SEED).randbytes(5_000)):
                with plain.socket(plain.AF_UNIX) as raw:
                    raw.connect(path + suffix)
                    try:
                        raw.sendall(noise)
                    except BrokenPipeError:
                        pass  # it hung up while we spoke: that is allowed


@pytest.mark.parametrize(
    "sent", [b"", b"\xc1", msgpack.packb([[2, 1]]), msgpack.packb([[3, 1]]), bytes(5_000)], ids=range(5)
)
def test_the_health_socket_survives_what_is_no_question_about_health(small: BrokerProcess, sent: bytes) -> None:
    """T-55"""
    with closing(dealer(small.endpoint + ".health")) as socket:
        socket.send(sent)
        if socket.poll(300):
            assert msgpack.unpackb(socket.recv())[0][1] == 1
    with closing(dealer(small.endpoint + ".health")) as socket:
        socket.send(msgpack.packb([[11, 5]]))
        assert socket.poll(5_000)
        assert msgpack.unpackb(socket.recv())[0][:4] == [5, 0, True, True]


def xsub() -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
    return socket


def test_what_is_sent_to_the_publishing_socket_is_no_message(small: BrokerProcess) -> None:
    """T-55: XSUB can send; subscriptions of any length and bytes are taken or ignored."""
    with bystander(small), closing(xsub()) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(small.endpoint + ".pub")
        for topic in (b"", b"A", b"\0", b"S" * 300, bytes(100_000), b"\xff" * 10):
            for first in (b"\x01", b"\x00", b"\x02", b""):
                socket.send(first + topic)
        socket.send_multipart([b"\x01A", b"more", b"and more"])
        with closing(RawClient(small.endpoint)) as raw, closing(raw.subscribe()) as everything:
            assert everything.poll(5_000)


def zmtp(path: str) -> plain.socket:
    """A connection that has finished the handshake as a DEALER (ZMTP 3.0, NULL)."""
    raw = plain.socket(plain.AF_UNIX)
    raw.connect(path)
    raw.settimeout(10)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
    greeting = b""
    while len(greeting) < 64:
        greeting += raw.recv(64 - len(greeting))
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    raw.sendall(b"\x04" + bytes([len(body)]) + body)
    raw.recv(1_000)
    return raw


def test_a_message_that_never_ends_does_not_take_others_answers(small: BrokerProcess) -> None:
    """T-55: frames of one message that is never finished; also half a frame, and then silence."""
    path = small.endpoint.removeprefix("ipc://")
    with bystander(small), zmtp(path) as endless, zmtp(path) as half, zmtp(path) as huge:
        for _ in range(2_000):
            endless.sendall(b"\x01\x05hello")  # a short frame, more to follow
        half.sendall(b"\x02" + struct.pack(">Q", 1 << 20) + bytes(1_000))
        huge.sendall(b"\x02" + struct.pack(">Q", 1 << 62))
        with closing(RawClient(small.endpoint)) as raw:
            raw.ping()
