"""Group commit (spec §6): many clients share one sync, one bad request costs only its sender, nothing is told early."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from e2e.raw_client import NO_STREAM, RawClient, event
from support.process import BrokerProcess, until
from support.strace import Attached
from tidelog import ANY, Client, Event, StreamNotFound

CLIENTS, APPENDS = 64, 200

NO_IDLE_MARKS = {"TIDELOG_IDLE_MARK_MS": "3600000"}
"""So that the first data-sync that is held back is a group's."""


def resident_kib(pid: int) -> int:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1])


def test_64_clients_share_syncs_and_each_keeps_its_order(broker: BrokerProcess) -> None:
    """T-19"""
    barrier = threading.Barrier(CLIENTS)

    def write(number: int) -> list[int]:
        with Client(broker.endpoint, timeout=60.0) as client:
            client.head()
            barrier.wait(60)
            return [client.append(f"c/{number}", Event("e", b"%d" % i)).first_position for i in range(APPENDS)]

    with Client(broker.endpoint, timeout=60.0) as client:
        syncs = client.info()["syncs"]
        with ThreadPoolExecutor(CLIENTS) as pool:
            positions = list(pool.map(write, range(CLIENTS)))
        syncs = client.info()["syncs"] - syncs
        assert sorted(position for row in positions for position in row) == list(range(CLIENTS * APPENDS))
        assert all(row == sorted(row) for row in positions)
        assert syncs < CLIENTS * APPENDS / 4
        found = defaultdict(list)
        for recorded in client.read_all():
            found[recorded.stream].append((recorded.position, recorded.version, recorded.payload))
        for number, row in enumerate(positions):
            assert found[f"c/{number}"] == [(position, i, b"%d" % i) for i, position in enumerate(row)]


def test_one_bad_request_among_good_ones_of_a_group_fails_alone_and_is_not_published(
    shared: BrokerProcess, stream: str
) -> None:
    """T-21: one message is one drain, so these are one group."""
    with closing(RawClient(shared.endpoint)) as raw, closing(raw.subscribe()) as everything:
        assert everything.poll(5_000)
        assert everything.recv_multipart()[0] == b"H"
        raw.append((stream, NO_STREAM, [event("a", b"first")]))
        head, info = raw.read_head(), raw.call(9)[0][0]
        good = [raw.prepare((stream, i, [event("a", b"%d" % i)])).writes for i in range(4)]
        bad: list[Any] = [
            raw.prepare((stream, 77, [event("a", b"bad version")])).writes,
            raw.prepare((stream, None, [event("a", b"bad size" + bytes(65_536))])).writes,
            [[stream, None, b"bad region"]],
            7,
        ]
        mixed = [writes for pair in zip(good, bad, strict=True) for writes in pair]
        raw.send([msgpack.packb([[3, 100 + i, 0, None, 0, None, None, writes] for i, writes in enumerate(mixed)])])
        replies: dict[int, list[Any]] = {}
        assert until(lambda: _collect(raw, replies) == len(mixed))
        assert [replies[100 + 2 * i][1] for i in range(4)] == [0] * 4
        assert [replies[100 + 2 * i][4] for i in range(4)] == [head + i for i in range(4)]
        assert [replies[101 + 2 * i][1] for i in range(4)] == [4, 2, 1, 1]
        after = raw.call(9)[0][0]
        assert after["syncs"] - info["syncs"] == 1
        assert after["groups"] - info["groups"] == 1
        assert raw.read_head() == head + 4
        published = b""
        deadline = time.monotonic() + 5
        while published.count(stream.encode()) < 5:
            assert time.monotonic() < deadline, published
            published += _published(everything)
        assert b"bad" not in published


def _published(socket: zmq.Socket[bytes]) -> bytes:
    if not socket.poll(100):
        return b""
    topic, body = socket.recv_multipart()
    return body if topic != b"H" else b""


def _collect(raw: RawClient, replies: dict[int, list[Any]], patience: float = 0.01) -> int:
    while (message := raw.receive(patience)) is not None:
        for reply in message[0]:
            replies[reply[0]] = reply
        patience = 0
    return len(replies)


def test_appends_of_different_connections_that_wait_together_share_one_sync(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """T-21: the bad one of another connection does not hurt the group either."""
    broker = start_broker(environment=NO_IDLE_MARKS)
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(RawClient(broker.endpoint))) for _ in range(8)]
        gate = stack.enter_context(closing(RawClient(broker.endpoint)))
        client = stack.enter_context(Client(broker.endpoint, timeout=20.0))
        before = gate.call(9)[0][0]["syncs"]
        with Attached(broker, "fdatasync:delay_enter=60000000:when=1") as held:
            gate.send_append(gate.prepare(("gate", None, [event("a", b"")])))
            assert until(lambda: client.health().sync_us > 0)
            for number, raw in enumerate(raws):
                raw.send_append(raw.prepare((f"s/{number}", 5 if number == 3 else None, [event("a", b"1")])))
            # Health is asked through the same threads of both processes: what was sent before waits in the broker by then.
            for _ in range(50):
                client.health()
            held.release()
        codes = []
        for raw in raws:
            message = raw.receive(20)
            assert message
            codes.append(message[0][0][1])
        assert codes == [0, 0, 0, 4, 0, 0, 0, 0]
        assert raws[0].read_head() == 8
        assert raws[0].call(9)[0][0]["syncs"] - before == 2


def test_while_a_sync_is_held_back_requests_wait_memory_stays_flat_and_then_all_are_answered(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """T-20: the queue is bounded by the sockets' high-water mark; beyond it the senders wait."""
    broker = start_broker(environment={"TIDELOG_QUEUE_MESSAGES_MAX": "16", **NO_IDLE_MARKS})
    payload = bytes(32 << 10)
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(RawClient(broker.endpoint, 60))) for _ in range(8)]
        for raw in raws:
            assert raw.socket
            raw.socket.set(zmq.SNDHWM, 4)
        client = stack.enter_context(Client(broker.endpoint, timeout=60.0))
        client.append("warm", [Event("a", payload) for _ in range(128)])
        sent = [0] * len(raws)

        def send_more(blocked: list[bool]) -> None:
            for number, raw in enumerate(raws):
                blocked[number] = False
                while sent[number] < 400 and not blocked[number]:
                    assert raw.socket
                    if raw.socket.poll(0, zmq.POLLOUT):
                        raw.send_append(raw.prepare((f"s/{number}", None, [event("a", payload)])))
                        sent[number] += 1
                    else:
                        blocked[number] = True

        with Attached(broker, "fdatasync:delay_enter=60000000:when=1") as held:
            future = client.append_nowait("held", Event("a"), timeout=60.0)
            assert until(lambda: client.health().sync_us > 0)
            blocked = [False] * len(raws)
            quiet_since = time.monotonic()
            before = list(sent)

            def settled() -> bool:
                nonlocal quiet_since, before
                send_more(blocked)
                if sent != before:
                    quiet_since, before = time.monotonic(), list(sent)
                return time.monotonic() - quiet_since > 0.5

            assert until(settled, 30)
            full = resident_kib(broker.pid)
            assert all(blocked), f"400 appends of 32 KiB went into a bounded queue: {sent}"
            started = time.monotonic()
            assert until(lambda: settled() and time.monotonic() - started > 1.0, 10)
            assert sent == before
            assert resident_kib(broker.pid) - full < 4 << 10
            assert full < 300 << 10
            assert not future.done()
            assert all(raw.receive(0) is None for raw in raws)
            held.release()
        assert future.result().first_position == 128
        answered = [0] * len(raws)
        end = time.monotonic() + 60
        while answered != sent and time.monotonic() < end:
            for number, raw in enumerate(raws):
                while (message := raw.receive(0.005)) is not None:
                    assert all(reply[1] == 0 for reply in message[0])
                    answered[number] += len(message[0])
        assert answered == sent
        assert client.head() == 129 + sum(sent)


def test_nothing_decided_on_a_group_is_told_before_its_sync_returned(broker: BrokerProcess) -> None:
    """T-58: an original, its retry, a conflict with it, an overlap with its ids, a read: all wait for the sync."""
    with ExitStack() as stack:
        names = ("original", "retry", "conflict", "overlap", "reader", "asking", "gate")
        raws = {name: stack.enter_context(closing(RawClient(broker.endpoint))) for name in names}
        client = stack.enter_context(Client(broker.endpoint, timeout=20.0))
        client.health()
        first = event("a", b"1")
        original = raws["original"].prepare(("s", NO_STREAM, [first]))
        overlap = raws["overlap"].prepare(("t", None, [first._replace(payload=b"2")]))
        conflict = raws["conflict"].prepare(("s", NO_STREAM, [event("a", b"3")]))
        with Attached(broker, "fdatasync:delay_enter=2500000") as held:
            # Behind the gate's sync all five are taken into one group, from five connections.
            raws["gate"].send_append(raws["gate"].prepare(("gate", None, [event("a", b"")])))
            assert until(lambda: client.health().sync_us > 0)
            raws["original"].send_append(original)
            time.sleep(0.05)  # only so that the original is the first; every order is right, but this one is told apart
            raws["retry"].start_call(3, 0, original.head, 0, None, None, original.writes)
            raws["conflict"].send_append(conflict)
            raws["overlap"].send_append(overlap)
            raws["reader"].start_call(4, 0, 2, "s", None, None, None, False, None, None)
            raws["asking"].start_call(5, 0, "s", None)
            assert raws["gate"].receive(10)
            began = time.monotonic()
            assert until(lambda: held.calls("fdatasync") >= 2 or client.health().sync_us > 0)
            replies: dict[str, Any] = {}
            while len(replies) < 6 and time.monotonic() < began + 20:
                for name in names[:-1]:
                    message = raws[name].receive(0.005)
                    if message is not None:
                        # No answer may come while the second sync is still running.
                        assert time.monotonic() - began > 1.0, f"{name} was answered before the sync: {message}"
                        replies[name] = message
        assert replies["original"][0][0][1:5] == [0, 2, replies["original"][0][0][3], 1]
        assert replies["retry"][0][0][1:3] == [0, 3]
        assert replies["retry"][0][0][4:] == replies["original"][0][0][4:]
        assert replies["conflict"][0][0][1] == 4
        assert replies["conflict"][0][0][3] == ["s", False, 0, False]
        assert replies["overlap"][0][0][1] == 5
        assert replies["reader"][0][0][1:6] == [0, 0, 1, 1, 2]
        assert replies["asking"][0][0][1:] == [0, 0, 0, 1, False, 1]
        assert [found.stream for found in client.read_all()] == ["gate", "s"]
        with pytest.raises(StreamNotFound):
            client.stream_info("t")


def test_appends_in_flight_are_answered_in_the_order_they_were_sent(client: Client, stream: str) -> None:
    """T-19: one client's pipelined appends keep their order."""
    calls = [client.append_nowait(stream, Event("e", b"%d" % i), ANY) for i in range(3_000)]
    rows = [call.result() for call in calls]
    assert [row.first_version for row in rows] == list(range(3_000))
    assert [row.first_position for row in rows] == sorted(row.first_position for row in rows)
    assert [found.payload for found in client.read_stream(stream)] == [b"%d" % i for i in range(3_000)]
