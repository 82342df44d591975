"""While a group's data-sync is held back nobody is told anything that rests on it; and when it then fails, nobody ever is (T-58).

By events alone: the broker is whole, in a thread, and its syncs are let go one by one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from errno import EIO
from pathlib import Path

import msgpack
import pytest
from e2e.raw_client import NO_STREAM, RawClient, event
from support.fault_phases import LastWordClient, health
from support.faults import Plan
from support.process import until
from support.thread_broker import BROKER, ThreadBroker, brokers_in_threads
from tidelog.errors import DuplicateEventId, OutcomeUnknown, WrongExpectedVersion

EXIT_IO = 74
PATIENCE_S = 20.0


@pytest.fixture
def place() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="tl-", dir=memory if os.access(memory, os.W_OK) else None))
    (path / "data").mkdir()
    with brokers_in_threads():
        yield path
    shutil.rmtree(path, ignore_errors=True)


class Syncs:
    """The data-syncs of groups from now on: each waits until it is let go."""

    def __init__(self, broker: ThreadBroker, count: int, *, fails: int = 0) -> None:
        self.gates = [threading.Event() for _ in range(count)]
        self.plans = [Plan("datasync", n + 1, thread=BROKER, hang=gate) for n, gate in enumerate(self.gates)]
        failing = [Plan("datasync", fails, EIO, thread=BROKER)] if fails else []
        broker.disk.plans = [*self.plans, *failing]

    def running(self, number: int) -> None:
        """Wait until the sync of this number (from 1) has begun."""
        assert until(lambda: self.plans[number - 1].calls >= number, PATIENCE_S, 0.001), f"sync {number} never begins"

    def go(self, number: int) -> None:
        self.gates[number - 1].set()

    def close(self) -> None:
        for gate in self.gates:
            gate.set()


@pytest.mark.parametrize("fails", [False, True], ids=["the sync succeeds", "the sync fails"])
def test_an_original_its_retry_and_refusals_because_of_it_are_told_with_its_sync_or_never(
    place: Path, fails: bool
) -> None:
    """T-58: a group whose sync is held back; one message is one drain, so these are one group."""
    broker = ThreadBroker(place / "data", place)
    with ExitStack() as stack:
        raw = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        other = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        first = event("a", b"1")
        original = raw.prepare(("t", NO_STREAM, [first])).writes
        writes = [
            original,
            original,
            raw.prepare(("t", NO_STREAM, [event("a", b"conflict")])).writes,
            raw.prepare(("u", None, [first._replace(payload=b"overlap")])).writes,
        ]
        syncs = stack.enter_context(closing(Syncs(broker, 1, fails=1 if fails else 0)))
        raw.send([msgpack.packb([[3, 50 + i, 0, None, 0, None, None, row] for i, row in enumerate(writes)])])
        syncs.running(1)
        other.start_call(4, 5_000, 0, "", 0, None, None, False, None, None)
        assert until(lambda: "data-sync" in health(broker)[2], PATIENCE_S)
        assert health(broker)[3] == 0
        assert raw.receive(0.1) is None
        assert other.receive(0) is None
        syncs.go(1)
        codes: dict[int, int] = {}
        while len(codes) < len(writes):
            message = raw.receive(PATIENCE_S)
            assert message, f"only {codes} were told anything"
            codes.update({reply[0] - 50: reply[1] for reply in message[0]})
        if fails:
            assert codes == dict.fromkeys(range(4), OutcomeUnknown.code)
            assert broker.wait() == EXIT_IO
        else:
            assert codes == {0: 0, 1: 0, 2: WrongExpectedVersion.code, 3: DuplicateEventId.code}
            message = other.receive(PATIENCE_S)
            assert message
            assert message[0][0][1] == 0
            assert broker.stop() == 0


def test_all_callers_of_a_failed_group_are_told_unknown_and_nothing_of_it_is_published(place: Path) -> None:
    """T-12"""
    broker = ThreadBroker(place / "data", place)
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(LastWordClient(broker.endpoint))) for _ in range(6)]
        gate = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        everything = stack.enter_context(closing(gate.subscribe()))
        assert everything.poll(int(PATIENCE_S * 1000))
        assert everything.recv_multipart()[0] == b"H"
        syncs = stack.enter_context(closing(Syncs(broker, 2, fails=2)))
        gate.send_append(gate.prepare(("gate", None, [event("a", b"gate")])))
        syncs.running(1)
        for number, raw in enumerate(raws):
            raw.send_append(raw.prepare((f"t/{number}", None, [event("a", b"lost?")])))
        time.sleep(0.1)  # only so that they are one group; any number of them is judged
        syncs.go(1)
        told = gate.receive(PATIENCE_S)
        assert told
        assert told[0][0][1] == 0
        syncs.running(2)
        assert broker.server
        sealed = broker.server.broker.appender.sealed
        assert sealed
        callers = len(sealed.staged)  # whoever came later is told nothing at all
        assert 1 <= callers <= 6
        syncs.go(2)
        assert broker.wait() == EXIT_IO
        answers = [raw.receive(0.2) for raw in raws]
        assert [answer[0][0][1] for answer in answers if answer] == [OutcomeUnknown.code] * callers
        published: list[bytes] = []
        while everything.poll(200):
            topic, body = everything.recv_multipart()
            published += [body] if topic == b"A" else []
        assert len(published) == 1
        assert b"gate" in published[0]
    again = ThreadBroker(place / "data", place)
    with closing(RawClient(again.endpoint)) as reader:
        found = reader.read()
        assert found[0].payload == b"gate"
        assert [row.position for row in found] == list(range(len(found)))
        assert len(found) in (1, 1 + callers)
    assert again.stop() == 0


def test_a_read_is_answered_behind_the_sync_that_is_running_and_that_of_its_own_drain_whoever_goes_on_writing(
    place: Path,
) -> None:
    """Spec §9: writers that never pause can't hold a read up."""
    broker = ThreadBroker(place / "data", place)
    with ExitStack() as stack:
        writer = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        reader = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        syncs = stack.enter_context(closing(Syncs(broker, 500)))

        def write(number: int) -> None:
            writer.send_append(writer.prepare(("s", None, [event("a", b"%d" % number)])))

        assert broker.server
        later = broker.server.broker.later
        write(0)
        syncs.running(1)
        reader.start_call(4, 5_000, 0, "", 0, None, None, False, None, None)
        number = 1
        while not later:  # until the read was taken in, with the append whose sync is running
            write(number)
            syncs.go(number)
            number += 1
            syncs.running(number)
        write(number)
        syncs.go(number)
        syncs.running(number + 1)
        message = reader.receive(PATIENCE_S)
        assert message, "the read waits for a sync that began behind it"
        assert message[0][0][1] == 0
        syncs.close()
        assert broker.stop() == 0
