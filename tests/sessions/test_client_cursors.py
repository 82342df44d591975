"""Cursors and leases of real clients (spec §10; T-62): one winner at a time, and an exact take-over."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from uuid import uuid4

import pytest
from e2e.raw_client import RawClient, event
from sessions.client_process import ClientProcess
from sessions.raw_sessions import append, refused, writes_of
from support.process import BrokerProcess, until
from tidelog import NO_STREAM, Client, CursorMoved, Event, LeaseLost, WrongExpectedVersion
from tidelog.errors import InvalidArgument

MOVED, LOST = 18, 19
NUMBERS = 300
TAKE_OVER_S = 20.0


@pytest.fixture
def name() -> str:
    return f"c{uuid4().hex}"


def test_a_cursor_moves_from_where_its_holder_believes_it_to_be(
    client: Client, shared: BrokerProcess, name: str
) -> None:
    assert client.cursor(name) == (name, None, None, 0)
    client.commit_cursor(name, 5)
    with Client(shared.endpoint, timeout=20.0) as other:
        assert other.cursor(name).position == 5
        other.commit_cursor(name, 9)
        with pytest.raises(CursorMoved) as caught:
            client.commit_cursor(name, 6)
        assert (caught.value.cursor, caught.value.expected, caught.value.actual) == (name, 5, 9)
        with pytest.raises(CursorMoved):
            client.commit_cursor(name, 6)  # still: only reading it again shows that one knows
        assert client.cursor(name).position == 9
        client.commit_cursor(name, 7)
        other.set_cursor(name, 1)
        other.commit_cursor(name, 2)
        assert [row.position for row in client.cursors(name)] == [2]


def test_a_cursor_that_was_never_read_can_not_be_moved(client: Client, name: str) -> None:
    with pytest.raises(InvalidArgument):
        client.commit_cursor(name, 1)


def test_an_append_moves_its_cursor_with_its_events_or_not_at_all(client: Client, name: str) -> None:
    client.cursor(name)
    client.append(f"{name}/1", Event("t", b"1"), NO_STREAM, cursor=(name, 3))
    with pytest.raises(WrongExpectedVersion):
        client.append(f"{name}/1", Event("t", b"2"), NO_STREAM, cursor=(name, 4))
    client.append(f"{name}/1", Event("t", b"2"), cursor=(name, 4))  # the same move, again
    assert client.cursor(name).position == 4
    client.set_cursor(name, 2)
    head = client.head()
    session = client.session(name)
    session.append(f"{name}/1", Event("t", b"3"), cursor=(name, 5))
    with pytest.raises(WrongExpectedVersion):
        session.append(f"{name}/1", Event("t", b"x"), NO_STREAM, cursor=(name, 6))
    session.append(f"{name}/1", Event("t", b"4"), cursor=(name, 6))
    assert client.head() == head + 2
    assert client.cursor(name).position == 6
    assert [row.payload for row in client.read_stream(f"{name}/1")] == [b"1", b"2", b"3", b"4"]


def test_of_moves_sent_ahead_a_refused_one_takes_those_behind_it_along(client: Client, name: str) -> None:
    client.cursor(name)
    session = client.session(name)
    client.append(f"{name}/1", Event("t", b"0"))
    futures = [
        session.append_nowait(f"{name}/1", Event("t"), NO_STREAM if number == 3 else number - 1, cursor=(name, number))
        for number in range(1, 7)
    ]
    assert [future.exception() is None for future in futures] == [True, True, False, False, False, False]
    session.append(f"{name}/1", Event("t"), 2, cursor=(name, 3))
    assert client.cursor(name).position == 3


def test_a_subscription_goes_on_where_its_cursor_was_committed(client: Client, name: str) -> None:
    client.append(f"{name}/1", [Event("t", b"%d" % number) for number in range(10)])
    with client.subscribe(f"{name}/1", cursor=name) as sub:
        assert [next(sub).version for _ in range(4)] == [0, 1, 2, 3]
        sub.commit()
        assert sub.cursor == (name, 4)
        next(sub)
    with client.subscribe(f"{name}/1", cursor=name) as sub:
        assert next(sub).version == 4
        client.append("elsewhere", Event("t"), cursor=sub.cursor)
    with client.subscribe(f"{name}/1", cursor=name, start=0) as sub:
        assert next(sub).version == 5


def test_only_the_holder_of_a_lease_moves_its_cursor(client: Client, shared: BrokerProcess, name: str) -> None:
    with Client(shared.endpoint, timeout=20.0) as other:
        assert client.acquire_cursor(name) is None
        assert client.acquire_cursor(name) is None
        client.commit_cursor(name, 3)
        info = other.cursor(name)
        assert (info.position, info.lease) == (3, 1)
        assert info.holder
        for attempt in (
            lambda: other.acquire_cursor(name),
            lambda: other.commit_cursor(name, 4),
            lambda: other.set_cursor(name, 4),
            lambda: other.append("x" + name, Event("t"), cursor=(name, 4)),
        ):
            with pytest.raises(LeaseLost):
                attempt()
        client.commit_cursor(name, 5)
        client.release_cursor(name)
        assert other.acquire_cursor(name) == 5
        with pytest.raises((LeaseLost, InvalidArgument)):
            client.commit_cursor(name, 6)
        client.break_lease(name)
        with pytest.raises(LeaseLost):
            other.commit_cursor(name, 6)
        assert client.acquire_cursor(name) == 5
        assert client.cursor(name).lease == 3
        assert client.cursor(name).position == 5
        assert not list(client.list_streams("x" + name))


def test_an_ended_lease_is_refused_whatever_is_said_of_the_position(shared: BrokerProcess, name: str) -> None:
    with closing(RawClient(shared.endpoint)) as one, closing(RawClient(shared.endpoint)) as two:
        assert one.call(18, 0, name, 0, None)[0] == [1, None]
        assert one.call(17, 0, name, None, 4, 1, b"i" * 16)[0] == [4]
        assert refused(LOST, two, 18, name, 0, None) == [name]
        assert two.call(18, 0, name, 2, None)[0] == [1, 4]  # broken
        assert two.call(18, 0, name, 0, None)[0] == [2, 4]
        for expected in (4, True, None):
            assert refused(LOST, one, 17, name, expected, 5, 1, b"j" * 16) == [name]
            assert refused(LOST, one, 17, name, expected, 5, None, b"j" * 16) == [name]
        cut = writes_of(f"{name}/1", [event("t", b"x")])
        assert refused(LOST, one, 3, None, 0, None, [name, 4, 5, 1], cut) == [name]
        assert one.call(18, 0, name, 1, 1)[0] == [2, 4]  # releasing what one does not have changes nothing
        assert refused(MOVED, two, 17, name, 3, 5, 2, b"k" * 16) == [name, 3, 4]
        append(two, None, cut, cursor=[name, 4, 5, 2])
        assert two.call(19, 0, name)[0][0] == 5


def test_two_movers_one_killed_again_and_again_carry_everything_once(broker: BrokerProcess) -> None:
    """T-62"""
    with Client(broker.endpoint, timeout=60.0) as client:
        client.append("in", [Event("n", b"%d" % number) for number in range(NUMBERS)])
        movers = [ClientProcess("move", broker.endpoint, str(NUMBERS)) for _ in range(2)]
        try:
            for _ in range(6):
                assert until(lambda: client.cursor("mover").holder is not None, TAKE_OVER_S)
                before = client.cursor("mover")
                victim = movers[before.lease % 2]
                time.sleep(0.05)  # somewhere in the middle of its work, or of its waiting
                victim.kill()
                movers[movers.index(victim)] = ClientProcess("move", broker.endpoint, str(NUMBERS))
            for mover in movers:
                assert mover.wait() == 0
        finally:
            for mover in movers:
                mover.kill()
        carried = [int(row.payload) for row in client.read_stream("out")]
        assert carried == list(range(NUMBERS))
        assert client.cursor("mover").position == NUMBERS


def test_a_killed_holder_is_followed_by_the_next_and_by_nobody_while_it_lives(
    client: Client, shared: BrokerProcess, name: str
) -> None:
    with ClientProcess("hold", shared.endpoint, name) as holder:
        assert holder.line() == "None"
        for _ in range(5):
            with pytest.raises(LeaseLost):
                client.acquire_cursor(name)
        holder.kill()
        assert until(lambda: _acquires(client, name), TAKE_OVER_S, 0.1)
        assert client.cursor(name).lease == 2


def test_a_restart_gives_a_holder_time_to_come_back(start_broker: Callable[..., BrokerProcess], name: str) -> None:
    broker = start_broker()
    with Client(broker.endpoint, timeout=20.0) as holder, Client(broker.endpoint, timeout=20.0) as other:
        holder.acquire_cursor(name)
        broker.kill()
        broker.start()
        with pytest.raises(LeaseLost):
            other.acquire_cursor(name)
        holder.commit_cursor(name, 1)
        with pytest.raises(LeaseLost):
            other.acquire_cursor(name)
        holder.close()
        assert until(lambda: _acquires(other, name), TAKE_OVER_S, 0.1)
        assert other.cursor(name).position == 1


def _acquires(client: Client, name: str) -> bool:
    try:
        client.acquire_cursor(name)
    except LeaseLost:
        return False
    return True


def test_cursors_and_their_leases_survive_kills(start_broker: Callable[..., BrokerProcess]) -> None:
    broker = start_broker()
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(20):
            client.cursor(f"c{number:02}")
            client.commit_cursor(f"c{number:02}", number)
        client.acquire_cursor("c07")
        before = list(client.cursors())
        broker.kill()
        broker.start()
        assert list(client.cursors()) == before
        assert [row.name for row in client.cursors("c1")] == [f"c1{number}" for number in range(10)]
