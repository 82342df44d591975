"""Read your writes from another process (`wait_for`), and positions by time (spec §9)."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import msgpack
import pytest
from e2e.raw_client import RawClient, Refused, event
from support.process import BrokerProcess, until
from tidelog import Client, DeadlineExceeded, Event, InvalidArgument, StreamNotFound


def test_a_read_that_waits_for_a_position_is_answered_once_it_is_durable_and_not_before(
    shared: BrokerProcess, client: Client, stream: str
) -> None:
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(RawClient(shared.endpoint))) for _ in range(4)]
        head = client.head()
        raws[0].start_call(4, 20_000, 2, stream, None, None, None, False, None, head)
        raws[1].start_call(7, 20_000, head)
        raws[2].start_call(5, 20_000, stream, head)
        raws[3].start_call(7, 20_000, head + 1)
        assert all(raw.receive(0.1) is None for raw in raws)
        client.append(stream, Event("a", b"awaited"))
        page = raws[0].receive(5)
        assert page
        assert page[0][0][1:] == [0, 0, 1, 1, head + 1, 1]
        assert b"awaited" in page[1]
        told = raws[1].receive(5)
        assert told
        assert told[0][0][1:3] == [0, head + 1]
        info = raws[2].receive(5)
        assert info
        assert info[0][0][1:] == [0, 0, 0, head, False, 1]
        assert raws[3].receive(0.1) is None
        client.append(stream, Event("a"))
        assert raws[3].receive(5)


def test_a_position_that_is_there_is_not_waited_for(client: Client, stream: str) -> None:
    done = client.append(stream, Event("a"))
    asked = time.monotonic()
    assert len(list(client.read_stream(stream, wait_for=done.last_position))) == 1
    assert client.head(wait_for=0) > 0
    assert client.stream_info(stream, wait_for=done.last_position).last_version == 0
    assert time.monotonic() - asked < 1


def test_waiting_ends_with_the_deadline(shared: BrokerProcess, client: Client, stream: str) -> None:
    head = client.head()
    for call in (
        lambda: client.head(wait_for=head, timeout=0.3),
        lambda: list(client.read_all(wait_for=head + 10, timeout=0.3)),
        lambda: client.stream_info(stream, wait_for=2**63 - 1, timeout=0.3),
    ):
        asked = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            call()
        assert 0.25 < time.monotonic() - asked < 2
    with closing(RawClient(shared.endpoint)) as raw:
        asked = time.monotonic()
        with pytest.raises(Refused) as refused:
            raw.call(7, 200, head)
        assert (refused.value.code, refused.value.facts) == (10, ["timeout"])
        assert 0.15 < time.monotonic() - asked < 2


def test_an_unknown_stream_is_told_only_once_the_position_is_there(client: Client, stream: str) -> None:
    head = client.head()
    timer = threading.Timer(0.3, lambda: client.append(stream + "other", Event("a")))
    asked = time.monotonic()
    timer.start()
    with pytest.raises(StreamNotFound):
        client.stream_info(stream, wait_for=head)
    timer.join()
    assert time.monotonic() - asked >= 0.25


def test_writes_of_another_client_are_read_at_once_by_waiting_for_their_position(
    shared: BrokerProcess, client: Client, stream: str
) -> None:
    """Read your writes, a hundred times."""
    with Client(shared.endpoint, timeout=20.0) as other:
        for i in range(100):
            call = client.append_nowait(stream, Event("a", b"%d" % i))
            found = list(other.read_stream(stream, start=i, wait_for=call.result().last_position))
            assert [recorded.payload for recorded in found] == [b"%d" % i]


def test_who_waits_for_more_positions_than_the_broker_remembers_is_refused_and_others_are_served(
    broker: BrokerProcess,
) -> None:
    """Every queue has a limit: 16,384 waiting requests."""
    with closing(RawClient(broker.endpoint)) as raw, Client(broker.endpoint, timeout=20.0) as client:
        codes: list[int] = []
        for message in range(17):
            raw.send([msgpack.packb([[7, message * 1_024 + i + 10, 25_000, 5] for i in range(1_024)])])

        def collected() -> bool:
            while (message := raw.receive(0.01)) is not None:
                codes.extend(reply[1] for reply in message[0])
            return len(codes) >= 1_024

        assert until(collected)
        assert set(codes) <= {9, 10}
        assert len(codes) == 1_024
        client.append("s", [Event("a") for _ in range(6)])
        assert until(lambda: collected() and len(codes) == 17 * 1_024)
        assert codes.count(0) == 16_384


def test_waiting_requests_of_a_client_that_has_gone_are_forgotten(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        for _ in range(3):
            with closing(RawClient(broker.endpoint)) as raw:
                raw.start_call(7, 30_000, 0)
                raw.start_call(4, 30_000, 0, "", None, None, None, False, None, 0)
                raw.reconnect()
                raw.start_call(7, 30_000, 0)
        client.append("s", Event("a"))
        with closing(RawClient(broker.endpoint)) as raw:
            raw.append(("s", None, [event("a", b"")]))
        assert client.head() == 2


def test_position_at_is_the_first_event_recorded_at_or_after_a_time(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        assert client.position_at(0) == 0
        assert client.position_at(2**63 - 1) == 0
        for i in range(40):
            client.append(f"s/{i % 3}", [Event("a", bytes(10 if i % 7 else 50_000)) for _ in range(1 + i % 4)])
        for restarted in (False, True):
            if restarted:
                broker.kill()
                broker.start()
            everything = list(client.read_all())
            times = sorted({recorded.recorded_at for recorded in everything})
            assert times == sorted(times)
            for at in times:
                for when in (at - 1, at, at + 1):
                    first = next((e.position for e in everything if e.recorded_at >= when), len(everything))
                    assert client.position_at(when) == first
            assert client.position_at(0) == 0
            assert client.position_at(times[-1] + 1) == len(everything)
            moment = datetime.fromtimestamp(times[5] / 1e6, UTC)
            exact = round(moment.timestamp() * 1e6)
            assert client.position_at(moment) == next(e.position for e in everything if e.recorded_at >= exact)
        for wrong in (-1, 2**63, "now", 1.5):
            with pytest.raises(InvalidArgument):
                client.position_at(wrong)  # type: ignore[arg-type]


def test_times_never_go_back_and_are_microseconds_of_now(client: Client, stream: str) -> None:
    before = time.time_ns() // 1000
    for _ in range(50):
        client.append(stream, Event("a"))
    after = time.time_ns() // 1000
    times = [recorded.recorded_at for recorded in client.read_stream(stream)]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= after + 1_000
