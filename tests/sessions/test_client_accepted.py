"""Appends that are answered before they are durable (spec §3; T-42).

Who waits for them learns the truth in time, and nobody sees them before.

The broker is whole, in a thread; its syncs are held back, let go or made to fail one by one.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import Plan
from support.process import until
from support.thread_broker import ThreadBroker, brokers_in_threads
from tidelog import NO_STREAM, Client, Event, Subscription, WrongExpectedVersion
from tidelog.errors import DeadlineExceeded, NotApplied, OutcomeUnknown, TidelogError
from tidelog_broker import server

SYNC = "tidelog-sync"
EXIT_IO = 74
SOON_S = 0.3
PATIENCE_S = 20.0


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(server, "SLOW_SYNC_NS", -1)  # as where syncs are slow
    monkeypatch.setattr(server, "LINGER_NS", 0)
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="tl-", dir=memory if os.access(memory, os.W_OK) else None))
    (path / "data").mkdir()
    with brokers_in_threads():
        yield path
    shutil.rmtree(path, ignore_errors=True)


class Life:
    """A broker that can be started again, and its clients, which find it behind the address that they know."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.broker = ThreadBroker(place / "data", place)
        self.clients: list[Client] = []
        self.gates: list[threading.Event] = []

    def client(self) -> Client:
        self.clients.append(Client(self.broker.endpoint, timeout=PATIENCE_S))
        return self.clients[-1]

    def held(self) -> threading.Event:
        """The next sync beside the loop waits for this."""
        self.gates.append(threading.Event())
        self.broker.disk.plans = [Plan("datasync", 1, hang=self.gates[-1], thread=SYNC)]
        return self.gates[-1]

    def fails(self, number: int = errno.EIO, op: str = "datasync") -> None:
        """The next such call of the thread that syncs fails."""
        self.broker.disk.plans = [Plan(op, 1, number, thread=SYNC)]

    def restart(self) -> None:
        assert not self.broker.running
        before = Path(self.broker.endpoint.removeprefix("ipc://"))
        self.broker = ThreadBroker(self.place / "data", self.place)
        before.unlink(missing_ok=True)
        before.symlink_to(self.broker.endpoint.removeprefix("ipc://"))

    def close(self) -> None:
        for gate in self.gates:
            gate.set()
        for client in self.clients:
            client.close()
        if self.broker.running:
            self.broker.stop()


@pytest.fixture
def life(place: Path) -> Iterator[Life]:
    made = Life(place)
    yield made
    made.close()


def seen(sub: Subscription, seconds: float) -> list[bytes]:
    """What a subscription gives within this time."""
    timer = threading.Timer(seconds, sub.stop)
    timer.start()
    found = [event.payload for event in sub]
    timer.join()
    return found


def test_an_accepted_append_is_seen_by_nobody_before_it_is_durable(life: Life) -> None:
    writer, reader = life.client(), life.client()
    writer.append("s", Event("t", b"1"))
    with reader.subscribe("s") as sub:
        assert next(sub).payload == b"1"
        gate = life.held()
        found = writer.append("s", Event("t", b"2"), durability="accepted")
        assert (found.first_version, found.durability) == (1, "accepted")
        assert seen(sub, SOON_S) == []
        for wait in (lambda: writer.wait_durable(found, SOON_S), lambda: writer.flush(SOON_S)):
            begun = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                wait()
            assert time.monotonic() - begun < PATIENCE_S / 2
        gate.set()
        assert writer.wait_durable(found) == 2
        writer.flush()
        assert [row.payload for row in reader.read_stream("s")] == [b"1", b"2"]


def test_accepted_appends_flow_while_a_sync_is_held_back_and_versions_count_on(life: Life) -> None:
    writer = life.client()
    gate = life.held()
    for number in range(50):
        found = writer.append("s", Event("t"), number - 1 if number else NO_STREAM, durability="accepted")
        assert found.first_version == number
    gate.set()
    writer.flush()
    assert len(list(writer.read_stream("s"))) == 50


def test_a_refusal_that_rests_on_what_is_not_durable_waits_for_it(life: Life) -> None:
    writer, other = life.client(), life.client()
    gate = life.held()
    writer.append("s", Event("t"), NO_STREAM, durability="accepted")
    refused = other.append_nowait("s", Event("t"), NO_STREAM)
    with pytest.raises(DeadlineExceeded):
        refused.result(SOON_S)
    gate.set()
    assert isinstance(refused.exception(), WrongExpectedVersion)


def test_a_failing_device_fails_whoever_waits_inside_his_timeout_and_shows_nothing(life: Life) -> None:
    """T-42"""
    writer, reader = life.client(), life.client()
    writer.append("s", Event("t", b"durable"))
    with reader.subscribe("s") as sub:
        assert next(sub).payload == b"durable"
        gate = threading.Event()
        life.gates.append(gate)
        life.broker.disk.plans = [
            Plan("datasync", 1, hang=gate, thread=SYNC), Plan("datasync", 1, errno.EIO, thread=SYNC)
        ]  # fmt: skip
        lost = writer.append("s", Event("t", b"lost"), durability="accepted")
        gate.set()
        for wait in (lambda: writer.wait_durable(lost, 1.0), lambda: writer.flush(1.0)):
            begun = time.monotonic()
            with pytest.raises((DeadlineExceeded, OutcomeUnknown)):
                wait()
            assert time.monotonic() - begun < PATIENCE_S / 2
        assert life.broker.wait() == EXIT_IO
        assert seen(sub, SOON_S) == []


def test_a_session_sends_again_what_was_accepted_and_lost(life: Life) -> None:
    client = life.client()
    session = client.session("p")
    session.append("s", Event("t", b"1"))
    life.fails()
    lost = session.append("s", Event("t", b"2"), durability="accepted")
    assert life.broker.wait() == EXIT_IO
    life.restart()
    client.flush()
    with pytest.raises(OutcomeUnknown):
        client.wait_durable(lost)
    session.append("s", Event("t", b"3"))
    assert [row.payload for row in client.read_stream("s")] == [b"1", b"2", b"3"]
    assert session.last_serial == 3


def test_a_full_disk_loses_no_accepted_append_of_a_session_unseen(life: Life) -> None:
    client = life.client()
    session = client.session("p")
    session.append("s", Event("t", b"1"))
    life.fails(errno.ENOSPC, "write")
    found = session.append("s", Event("t", b"2"), durability="accepted")
    assert found.durability == "accepted"
    assert until(lambda: not life.broker.server or life.broker.server.broker.generation == 1)
    with pytest.raises(OutcomeUnknown):
        client.wait_durable(found)
    third = session.append("s", Event("t", b"3"))
    client.flush()
    assert [row.payload for row in client.read_stream("s")] == [b"1", b"2", b"3"]
    assert third.generation == 1


def test_outside_of_sessions_flush_says_that_nobody_knows(life: Life) -> None:
    client = life.client()
    life.fails()
    client.append("s", Event("t"), durability="accepted")
    assert life.broker.wait() == EXIT_IO
    life.restart()
    with pytest.raises(OutcomeUnknown):
        client.flush()
    client.flush()  # it was said


def test_a_flush_that_ran_out_of_time_is_not_forgotten(life: Life) -> None:
    client = life.client()
    gate = life.held()
    client.append_many([("s", Event("t"), NO_STREAM), ("nothing", [], NO_STREAM)], durability="accepted")  # type: ignore[list-item]
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            client.flush(SOON_S)
    gate.set()
    client.flush()
    assert client.head() == 1


def test_flush_knows_of_a_session_that_nobody_keeps(life: Life) -> None:
    client = life.client()
    client.session("p")
    gate = life.held()
    client.session("p", resume=True).append("s", Event("t"), durability="accepted")
    with pytest.raises(DeadlineExceeded):
        client.flush(SOON_S)
    gate.set()
    client.flush()
    assert client.head() == 1


def test_wait_durable_with_another_boot_or_generation_is_never_a_yes(life: Life) -> None:
    client = life.client()
    found = client.append("s", Event("t"), durability="accepted")
    assert client.wait_durable(found) == 1
    client.append("s", Event("t"))
    for other in (
        found._replace(boot_id=os.urandom(16)),
        found._replace(generation=1),
        found._replace(last_position=2),
    ):
        with pytest.raises(OutcomeUnknown):
            client.wait_durable(other)
    assert life.broker.stop() == 0
    life.restart()
    with pytest.raises(OutcomeUnknown):
        client.wait_durable(found)


def test_reads_behind_a_durable_append_see_it_while_accepted_ones_flow(life: Life) -> None:
    writer, reader = life.client(), life.client()
    stop = threading.Event()
    failures: list[TidelogError] = []

    def flow() -> None:
        while not stop.is_set():
            try:
                writer.append("flood", Event("t", b"x" * 100), durability="accepted")
            except TidelogError as error:
                failures.append(error)

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        for number in range(100):
            found = reader.append("mine", Event("t", b"%d" % number))
            assert found.durability == "durable"
            assert reader.head() > found.last_position
            assert [row.version for row in reader.read_stream("mine", start=number)] == [number]
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not failures


@pytest.mark.parametrize("in_session", [False, True])
def test_a_clean_stop_makes_durable_what_was_accepted(life: Life, *, in_session: bool) -> None:
    client = life.client()
    append: Callable[..., object] = client.session("p").append if in_session else client.append
    for number in range(200):
        append("s", Event("t", b"%d" % number), durability="accepted")
    assert life.broker.stop() == 0
    life.restart()
    with life.client() as other:
        assert [int(row.payload) for row in other.read_stream("s")] == list(range(200))


def test_an_accepted_append_behind_one_that_fails_is_not_lost_unseen(life: Life) -> None:
    client = life.client()
    session = client.session("p")
    session.append("s", Event("t", b"1"))
    life.broker.disk.plans = [Plan("write", 1, errno.ENOSPC)]
    durable = session.append_nowait("s", Event("t", b"2"))
    accepted = session.append_nowait("s", Event("t", b"3"), durability="accepted")
    told = durable.exception(), accepted.exception()
    try:
        client.flush()
        lost = False
    except NotApplied:
        lost = True
    payloads = [row.payload for row in client.read_stream("s")]
    assert (b"2" in payloads) == (told[0] is None)
    assert (b"3" in payloads) == (told[1] is None and not lost)
