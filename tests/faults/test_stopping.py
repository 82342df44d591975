"""Stopping (T-22): not ready first, what is queued is answered, subscribers are told, exit 0 in time; else 74 in time."""

from __future__ import annotations

import signal
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest
import zmq
from e2e.raw_client import RawClient, Refused, event
from support.process import BrokerProcess, until
from support.strace import Attached
from tidelog import Client, DeadlineExceeded, Event

BODY = struct.Struct("<16s4QII")
STOPPING = 2


def end(broker: BrokerProcess, number: int = signal.SIGTERM) -> float:
    """Send the signal; when."""
    broker.signal(number)
    return time.monotonic()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_broker_with_live_subscribers_ends_with_0_and_tells_them(broker: BrokerProcess, number: int) -> None:
    """T-22"""
    with ExitStack() as stack:
        raw = stack.enter_context(closing(RawClient(broker.endpoint)))
        subs = [stack.enter_context(closing(raw.subscribe(*args))) for args in ((), (1, "c"), (2, "c/1"))]
        for sub in subs:
            assert sub.poll(5_000)
        raw.append(("c/1", None, [event("a", b"1")]))
        asked = end(broker, number)
        assert broker.wait(5) == 0
        assert time.monotonic() - asked < 2
        for sub in subs:
            told = []
            while sub.poll(500):
                topic, body = sub.recv_multipart()
                told.append((topic[:1], BODY.unpack_from(body)[5] & STOPPING))
            assert told[-1] == (b"H", STOPPING)
            assert [flag for topic, flag in told if topic != b"H"] == [0]
        assert broker.stderr() == ""


def test_not_ready_first_then_the_queue_is_answered_and_the_broker_ends_with_0(broker: BrokerProcess) -> None:
    """T-22: a slow disk keeps the stop long enough to look at it."""
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(RawClient(broker.endpoint))) for _ in range(6)]
        client = stack.enter_context(Client(broker.endpoint, timeout=5.0))
        client.append("s", Event("a"))
        assert client.health().ready
        with Attached(broker, "fdatasync:delay_enter=700000"):
            raws[0].send_append(raws[0].prepare(("gate", None, [event("a", b"")])))
            assert until(lambda: client.health().sync_us > 0)
            for number, raw in enumerate(raws[1:4]):
                raw.send_append(raw.prepare((f"q/{number}", None, [event("a", b"")])))
            raws[4].start_call(4, 0, 2, "q/1", None, None, None, False, None, None)
            raws[5].start_call(7, 60_000, 10**6)
            asked = end(broker)
            # Before the queue is answered, somebody who asks for health already learns that we are leaving.
            assert until(lambda: not client.health().ready, 1)
            health = client.health()
            assert (health.live, health.reason) == (True, "stopping")
            assert all(raw.receive(0) is None for raw in raws[1:])
            for raw in raws[:4]:
                message = raw.receive(10)
                assert message
                assert message[0][0][1] == 0
            page = raws[4].receive(10)
            assert page
            assert page[0][0][1] == 0
            waiting = raws[5].receive(10)
            assert waiting
            assert waiting[0][0][1] == 10
            assert waiting[0][0][3] == ["stopping"]
            assert broker.wait(10) == 0
            assert time.monotonic() - asked < 5
    assert broker.stderr() == ""
    broker.start()
    with Client(broker.endpoint, timeout=10.0) as client:
        assert client.head() == 5


def test_a_stop_under_writers_that_never_pause_ends_with_0_inside_its_deadline(broker: BrokerProcess) -> None:
    """T-22: whoever keeps on sending does not keep the broker; what was acknowledged is there."""
    over = threading.Event()
    acknowledged: list[int] = []

    def write(number: int) -> None:
        with closing(RawClient(broker.endpoint)) as raw:
            assert raw.socket
            while not over.is_set():
                if raw.socket.poll(10, zmq.POLLOUT):
                    raw.send_append(raw.prepare((f"s/{number}", None, [event("a", b"")])))
                while (message := raw.receive(0)) is not None:
                    acknowledged.extend(reply[4] for reply in message[0] if reply[1] == 0)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    # As slow as a disk may be: 512 groups of these would take far longer than the deadline.
    with Attached(broker, "fdatasync:delay_enter=20000"):
        for thread in threads:
            thread.start()
        assert until(lambda: len(acknowledged) > 200, 20)
        asked = end(broker)
        try:
            assert broker.wait(8) == 0, broker.stderr()
            assert time.monotonic() - asked < 5
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
    assert broker.stderr() == ""
    broker.start()
    with Client(broker.endpoint, timeout=10.0) as client:
        assert set(acknowledged) <= {found.position for found in client.read_all()}


def test_a_stop_while_a_sync_hangs_ends_with_74_in_about_5_seconds_and_one_line(broker: BrokerProcess) -> None:
    """T-22: a hanging disk can't keep the process, and nobody is told a lie."""
    with Client(broker.endpoint, timeout=2.0) as client:
        client.append("s", Event("a", b"kept"))
        with Attached(broker, "fdatasync:delay_enter=60000000:when=1") as held:
            call = client.append_nowait("s", Event("a", b"?"))
            assert until(lambda: client.health().sync_us > 0)
            asked = end(broker)
            assert until(lambda: client.health().reason == "stopping", 1)
            end(broker)  # a second signal changes nothing
            assert until(lambda: "stopping took too long" in broker.stderr(), 8)
            assert 3 < time.monotonic() - asked < 6
            # The process has ended; a tracer that still delays its call hides that from its parent.
            held.release()
            assert broker.wait(1) == 74
            with pytest.raises(DeadlineExceeded) as failed:
                call.result()
            assert failed.value.maybe_applied
    (line,) = broker.stderr().strip().splitlines()
    assert "sync" in line
    assert "unknown" in line
    broker.start()
    with Client(broker.endpoint, timeout=10.0) as client:
        assert next(iter(client.read_stream("s"))).payload == b"kept"


def test_a_client_goes_on_by_itself_over_a_clean_restart(broker: BrokerProcess) -> None:
    """T-22: what the stopping broker no longer took is sent to the next one, once."""
    with Client(broker.endpoint, timeout=30.0) as client:
        calls = []
        for life in range(3):
            calls += [client.append_nowait("s", Event("a", b"%d" % i)) for i in range(life * 500, life * 500 + 500)]
            assert broker.stop() == 0
            broker.start()
        assert [call.result().first_version for call in calls] == list(range(1_500))
        assert [found.payload for found in client.read_stream("s")] == [b"%d" % i for i in range(1_500)]


def test_a_stopped_broker_leaves_a_log_that_ends_behind_its_last_group(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    """Spec §6.3: a clean stop cuts the file to its end."""
    broker = new_broker()
    broker.start()
    with closing(RawClient(broker.endpoint)) as raw:
        raw.append(("s", None, [event("a", b"x")]))
        with pytest.raises(Refused):
            raw.append(("s", 9, [event("a", b"x")]))
    assert broker.stop() == 0
    (segment,) = broker.data.glob("0*-*")
    data = segment.read_bytes()
    assert len(data) - len(data.rstrip(b"\0")) < 4  # a CRC may end in zeros
    assert sorted(path.name for path in broker.data.iterdir() if path.name not in ("run", "index")) == [
        segment.name,
        "marks",
    ]
