"""HELLO and incarnations (spec §6, PROTOCOL.md §3): at most one copy of a request is alive."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from typing import Any

import msgpack
import pytest
import zmq
from e2e.raw_client import RawClient, Refused, dealer, event
from support.process import BrokerProcess, until
from tidelog import NO_STREAM, Client, Event


def append_message(request_id: int, writes: Any, resend_head: int | None = None) -> bytes:
    packed: bytes = msgpack.packb([[3, request_id, 0, resend_head, 0, None, None, writes]])
    return packed


class Old:
    """A client whose connection is given up, but still there and able to deliver."""

    def __init__(self, endpoint: str) -> None:
        self.raw = RawClient(endpoint)
        assert self.raw.socket
        self.socket = self.raw.socket

    def __enter__(self) -> Old:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()
        self.socket.close(0)

    def renew(self) -> None:
        """A new connection with a higher incarnation; the old socket stays open."""
        self.raw.socket = None
        self.raw.reconnect()


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6, 7, 8, 9, 10])
def test_no_request_is_served_before_hello(shared: BrokerProcess, client: Client, stream: str, kind: int) -> None:
    head = client.head()
    with closing(RawClient(shared.endpoint)) as raw, closing(dealer(shared.endpoint)) as stranger:
        request = {
            2: [],
            3: [0, None, 0, None, None, raw.prepare((stream, None, [event("a", b"")])).writes],
            4: [0, 0, "", None, None, None, False, None, None],
            5: [0, stream, None],
            6: [0, "", None, 10],
            7: [0, None],
            8: [0, 0],
            9: [],
            10: [0, raw.boot_id, 0, 0],
        }[kind]
        stranger.send(msgpack.packb([[kind, 9, *request]]))
        assert stranger.poll(5_000)
        (reply,) = msgpack.unpackb(stranger.recv())
        assert reply[:2] == [9, 24]
        assert reply[3] == []
    assert client.head() == head


@pytest.mark.parametrize(
    "hello",
    [
        ["tidelog", 2, bytes(16), 1],
        ["tidelog", 0, bytes(16), 1],
        ["other", 1, bytes(16), 1],
        ["tidelog", 1, bytes(15), 1],
        ["tidelog", 1, "x" * 16, 1],
        ["tidelog", 1, bytes(16), 0],
        ["tidelog", 1, bytes(16), -1],
        ["tidelog", 1, bytes(16), 2**63],
        ["tidelog", 1, bytes(16)],
        ["tidelog"],
        [],
    ],
    ids=str,
)
def test_a_wrong_hello_is_refused_and_opens_nothing(shared: BrokerProcess, hello: list[Any]) -> None:
    with closing(dealer(shared.endpoint)) as stranger:
        stranger.send(msgpack.packb([[1, 1, *hello]]))
        assert stranger.poll(5_000)
        (reply,) = msgpack.unpackb(stranger.recv())
        assert reply[0] == 1
        assert reply[1] in (1, 13)
        stranger.send(msgpack.packb([[2, 2]]))
        assert stranger.poll(5_000)
        assert msgpack.unpackb(stranger.recv())[0][:2] == [2, 24]


def test_what_an_older_connection_sends_later_is_dropped_without_an_answer(
    shared: BrokerProcess, client: Client, stream: str
) -> None:
    """T-59"""
    with Old(shared.endpoint) as old:
        writes = old.raw.prepare((stream, None, [event("a", b"late")])).writes
        old.renew()
        head = client.head()
        old.socket.send(append_message(7, writes))
        old.socket.send(msgpack.packb([[2, 8]]))
        old.socket.send(b"not even a message")
        assert not old.socket.poll(500)
        assert client.head() == head
        assert old.raw.ping() == head


def test_an_append_refused_on_the_new_connection_is_never_applied_from_the_old_one(
    shared: BrokerProcess, client: Client, stream: str
) -> None:
    """T-59: k and k+1 in flight, cut off; k sent again and refused, the cause gone, then the old copies arrive."""
    client.append(stream, Event("a"), NO_STREAM)
    with Old(shared.endpoint) as old:
        k = old.raw.prepare((stream, 1, [event("a", b"k")]))
        after_k = old.raw.prepare((stream, None, [event("a", b"k+1")]))
        old.renew()
        with pytest.raises(Refused) as refused:
            old.raw.resend(k)
        assert refused.value.code == 4
        client.append(stream, Event("a", b"the cause goes"), 0)
        head = client.head()
        for number, late in enumerate((k, after_k)):
            old.socket.send(append_message(50 + number, late.writes))
        assert not old.socket.poll(500)
        assert client.head() == head
        assert not old.raw.resend(after_k).duplicate
        assert [found.payload for found in client.read_stream(stream)] == [b"", b"the cause goes", b"k+1"]


@pytest.mark.parametrize("count", [50, 3_000])
def test_queued_copies_of_an_older_incarnation_are_applied_before_the_new_hello_is_answered_or_never(
    shared: BrokerProcess, client: Client, stream: str, count: int
) -> None:
    """T-59: everything is sent again on the new connection, and stands in the log once, in order."""
    with Old(shared.endpoint) as old:
        old.socket.close(0)
        old.raw.socket = old.socket = zmq.Context.instance().socket(zmq.DEALER)
        old.socket.set(zmq.SNDHWM, 0)
        old.socket.set(zmq.LINGER, 0)
        old.socket.connect(shared.endpoint)
        old.raw.incarnation += 1
        old.raw.hello()
        old.raw.append((stream, None, [event("a", b"first")]))
        appends = [old.raw.prepare((stream, None, [event("a", b"%d" % i)])) for i in range(count)]
        newer = dealer(shared.endpoint)
        assert newer.poll(5_000, zmq.POLLOUT)
        shared.signal(signal.SIGSTOP)
        try:
            for number, append in enumerate(appends):
                old.socket.send(append_message(10_000 + number, append.writes))
            newer.send(msgpack.packb([[1, 1, "tidelog", 1, old.raw.client_id, old.raw.incarnation + 1]]))
        finally:
            shared.signal(signal.SIGCONT)
        with closing(newer):
            assert newer.poll(20_000)
            assert msgpack.unpackb(newer.recv())[0][:2] == [1, 0]
            behind_hello = client.head()
            versions = client.stream_info(stream).last_version
            # Whatever still comes from the old connection comes now, mixed with the repeats on the new one.
            for number, append in enumerate(appends):
                newer.send(append_message(20_000 + number, append.writes, append.head))
            replies: dict[int, list[Any]] = {}
            deadline = time.monotonic() + 30
            while len(replies) < count and time.monotonic() < deadline:
                if newer.poll(100):
                    for reply in msgpack.unpackb(newer.recv()):
                        replies[reply[0]] = reply
            assert len(replies) == count
            assert {reply[1] for reply in replies.values()} == {0}
            duplicates = [bool(replies[20_000 + i][2] & 1) for i in range(count)]
            # Exactly those that stood behind HELLO's answer were duplicates: nothing was applied between.
            assert duplicates == [i < versions for i in range(count)]
            assert client.head() == behind_hello + count - versions
        assert [found.payload for found in client.read_stream(stream)] == [
            b"first",
            *(b"%d" % i for i in range(count)),
        ]


def test_a_socket_that_reconnects_by_itself_to_a_restarted_broker_is_asked_for_hello(broker: BrokerProcess) -> None:
    """T-59: the queue of a dead connection goes to the new broker, which applies nothing of it."""
    with closing(RawClient(broker.endpoint)) as raw:
        stale = raw.prepare(("s", None, [event("a", b"stale")]))
        broker.kill()
        broker.start()
        assert raw.socket
        assert raw.socket.poll(10_000, zmq.POLLOUT)
        raw.socket.send(append_message(5, stale.writes))
        assert raw.socket.poll(5_000)
        assert msgpack.unpackb(raw.socket.recv())[0][:2] == [5, 24]
        raw.reconnect()
        assert raw.read_head() == 0
        assert not raw.resend(stale).duplicate
        assert raw.read_head() == 1


def test_a_second_hello_on_one_connection_goes_on_with_it(shared: BrokerProcess) -> None:
    with closing(RawClient(shared.endpoint)) as raw:
        raw.incarnation += 1
        raw.hello()
        raw.ping()
        with pytest.raises(Refused) as refused:
            raw.hello()
        assert refused.value.code == 13
        raw.ping()


def test_clients_do_not_push_each_other_out(shared: BrokerProcess) -> None:
    """Incarnations are counted per client id."""
    with closing(RawClient(shared.endpoint)) as one, closing(RawClient(shared.endpoint)) as two:
        for _ in range(3):
            two.reconnect()
        one.ping()
        two.ping()


def test_the_library_writes_each_append_once_though_it_changes_connections_under_a_stopped_broker(
    broker: BrokerProcess,
) -> None:
    """T-59: the broker stands still until the client gives its connection up; then it finds both copies."""
    with Client(broker.endpoint, timeout=40.0) as client:
        client.append("s", Event("a", b"first"))
        for _ in range(2):
            incarnation = client._link.exchange.incarnation
            broker.signal(signal.SIGSTOP)
            try:
                calls = [client.append_nowait("s", Event("a", b"%d" % i)) for i in range(300)]
                assert until(lambda was=incarnation: client._link.exchange.incarnation > was, 20)
            finally:
                broker.signal(signal.SIGCONT)
            rows = [call.result() for call in calls]
            assert [row.first_version for row in rows] == list(
                range(rows[0].first_version, rows[0].first_version + 300)
            )
        expected = [b"first", *(b"%d" % i for _ in range(2) for i in range(300))]
        assert [found.payload for found in client.read_stream("s")] == expected
        assert client.head() == 601
