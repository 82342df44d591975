"""Sessions of real clients and a real broker, kills included (spec §5; T-23 … T-26, T-59)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import msgpack
import pytest
from e2e.raw_client import RawClient, event
from sessions.client_process import ClientProcess
from sessions.raw_sessions import append, open_session, refused, writes_of
from support.histories_campaign import MortalBroker
from support.killer import Point
from support.process import BrokerProcess
from tidelog import NO_STREAM, Client, Event, NotApplied, SessionFenced, Write, WrongExpectedVersion
from tidelog.errors import DuplicateEventId

DUPLICATE_EVENT_ID, FENCED, GAP, REUSED, OUTCOME_UNKNOWN = 5, 14, 15, 16, 20
DUPLICATE, DURABLE = 1, 2
NUMBERS = 1_000
OTHERS = 1_000_000
OTHERS_EACH = 4_096


@pytest.fixture
def name() -> str:
    return f"p{uuid4().hex}"


def test_a_repeat_gets_the_same_places_at_once_after_a_restart_and_a_million_events_later(
    broker: BrokerProcess,
) -> None:
    """T-23"""
    with closing(RawClient(broker.endpoint)) as raw:
        epoch, last = open_session(raw, "p")
        assert (epoch, last) == (1, 0)
        request = writes_of("s", [event("t", b"%d" % number) for number in range(3)], False)
        flags, _, *places = append(raw, ("p", epoch, 1), request)
        assert (flags, places) == (DURABLE, [0, 2, 0, 2])
        published = raw.subscribe()
        assert published.poll(10_000)  # a heartbeat: the subscription is in force
        while published.poll(0):
            published.recv_multipart()

        def again() -> None:
            head = raw.read_head()
            flags, _, *places = append(raw, ("p", epoch, 1), request)
            assert (flags, places) == (DURABLE | DUPLICATE, [0, 2, 0, 2])
            assert raw.read_head() == head

        again()
        while published.poll(1_000):
            assert published.recv_multipart()[0] == b"H"
            break
        published.close(0)
        broker.stop()
        broker.start()
        raw.reconnect()
        again()
        for _ in range(-(-OTHERS // OTHERS_EACH)):
            region = msgpack.packb([os.urandom(16 * OTHERS_EACH), "t", None, [b""] * OTHERS_EACH])
            append(raw, None, [["other", None, region]])
        again()
        broker.kill()
        broker.start()
        raw.reconnect()
        again()
        assert open_session(raw, "p", 1) == (1, 1)


def test_known_ids_in_a_new_serial_are_refused_and_consume_nothing(
    client: Client, shared: BrokerProcess, name: str
) -> None:
    """T-24, in a session."""
    session = client.session(name)
    known, new = Event("t", b"k", id=uuid4()), Event("t", b"n", id=uuid4())
    session.append(f"{name}/1", known)
    head = client.head()
    other = Event("t", b"other bytes", id=known.id)
    for stream, events in ((1, [known, new]), (1, [new, known]), (2, [known]), (1, [other])):
        with pytest.raises(DuplicateEventId):
            session.append(f"{name}/{stream}", events)
    with pytest.raises(DuplicateEventId):
        session.append(f"{name}/1", known)  # a new serial is no repeat
    assert client.head() == head
    session.append(f"{name}/1", new)
    assert session.last_serial == 2
    with closing(RawClient(shared.endpoint)) as raw:
        assert open_session(raw, name, 0) == (1, 2)


def test_a_gap_a_stale_epoch_and_a_reused_serial_are_refused_and_change_nothing(
    shared: BrokerProcess, name: str
) -> None:
    """T-25"""
    with closing(RawClient(shared.endpoint)) as raw:
        assert refused(FENCED, raw, 16, name, 7) == [0]
        assert open_session(raw, name) == (1, 0)
        first = writes_of(f"{name}/1", [event("t", b"1")])
        append(raw, (name, 1, 1), first)

        def fails(code: int, session: tuple[str, int, int], writes: object) -> list[object]:
            return refused(code, raw, 3, None, 0, session, None, writes)

        second = writes_of(f"{name}/1", [event("t", b"2")])
        head = raw.read_head()
        assert fails(GAP, (name, 1, 3), second) == [1]
        assert fails(REUSED, (name, 1, 1), second) == [1]
        assert fails(REUSED, (name, 1, 1), [[f"{name}/2", *first[0][1:]]]) == [1]
        assert open_session(raw, name) == (2, 1)
        assert fails(FENCED, (name, 1, 2), second) == [2]
        assert fails(FENCED, (name, 1, 1), first) == [2]
        assert fails(FENCED, (name, 3, 2), second) == [2]
        assert fails(FENCED, ("nobody" + name, 1, 1), second) == [0]
        assert refused(FENCED, raw, 16, name, 1) == [2]
        assert open_session(raw, name, 0) == (2, 1)
        assert open_session(raw, name, 2) == (2, 1)
        assert raw.read_head() == head
        flags = append(raw, (name, 2, 1), first)[0]
        assert flags & DUPLICATE
        append(raw, (name, 2, 2), second)
        assert [found.payload for found in raw.read(2, f"{name}/1")] == [b"1", b"2"]


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_serials_come_once_each_in_order_whatever_is_killed(broker: BrokerProcess, seed: int) -> None:
    """T-25"""
    dice = random.Random(seed)
    lasts = [0]
    kills = 0
    while True:
        if not broker.running:
            broker.start()
        with ClientProcess("count", broker.endpoint, str(NUMBERS), dice.choice(("open", "resume"))) as counter:
            lasts.append(int(counter.line()))
            if kills < 8:
                kills += 1
                _pause(counter, dice.random() * 0.15)
                if dice.random() < 0.5:
                    broker.kill()
                    if dice.random() < 0.5:
                        broker.start()  # and the client lives through it
                        _pause(counter, dice.random() * 0.3)
                counter.kill()
                continue
            assert counter.wait() == 0
            break
    assert lasts == sorted(lasts)
    with Client(broker.endpoint, timeout=20.0) as client:
        assert [int(found.payload) for found in client.read_stream("counted")] == list(range(1, NUMBERS + 1))
        assert client.session("counter", resume=True).last_serial == NUMBERS


def _pause(process: ClientProcess, seconds: float) -> None:
    """Give it a while, or until it ends."""
    try:
        process.line(seconds)
    except TimeoutError:
        pass


@pytest.fixture
def mortal(folder: Path) -> Iterator[MortalBroker]:
    broker = MortalBroker(folder)
    broker.settings({})
    broker.start()
    yield broker
    broker.close()


def test_a_kill_between_sync_and_reply_is_answered_with_the_stored_places(mortal: MortalBroker) -> None:
    """T-26"""
    with Client(mortal.endpoint, timeout=60.0) as client:
        session = client.session("p")
        session.append("s", Event("t", b"1"))
        mortal.order.give(Point.GROUP_SYNCED)
        future = session.append_nowait("s", [Event("t", b"2"), Event("t", b"3")])
        mortal.wait(20.0)
        assert mortal.order.died == Point.GROUP_SYNCED
        mortal.order.give(Point.NONE)
        mortal.start()
        found = future.result()
        assert found[:5] == (1, 2, 1, 2, True)
        assert session.append("s", Event("t", b"4")).first_version == 3
        assert [row.payload for row in client.read_stream("s")] == [b"1", b"2", b"3", b"4"]


def test_threads_of_one_session_share_its_serials(client: Client, name: str) -> None:
    session = client.session(name)

    def work(thread: int) -> list[int]:
        places = []
        for number in range(50):
            event = Event("t", b"%d/%d" % (thread, number))
            places.append(session.append(f"{name}/{thread}", event).first_position)
        return places

    with ThreadPoolExecutor(8) as pool:
        for places in pool.map(work, range(8)):
            assert places == sorted(places)
    assert session.last_serial == 400
    for thread in range(8):
        payloads = [row.payload for row in client.read_stream(f"{name}/{thread}")]
        assert payloads == [b"%d/%d" % (thread, number) for number in range(50)]


def test_threads_of_one_session_of_which_some_are_refused_all_hear_the_truth(client: Client, name: str) -> None:
    session = client.session(name)
    client.append("taken", Event("t"))

    def work(thread: int) -> list[tuple[bytes, bool]]:
        told = []
        for number in range(40):
            token = b"%d/%d" % (thread, number)
            expected = NO_STREAM if number % 10 == 9 else None
            try:
                stream = "taken" if expected is not None else f"{name}/{thread}"
                if expected is None:
                    session.append(stream, Event("t", token))
                else:
                    session.append(stream, Event("t", token), expected)
                told.append((token, True))
            except (WrongExpectedVersion, NotApplied):
                told.append((token, False))
        return told

    with ThreadPoolExecutor(6) as pool:
        told = [row for rows in pool.map(work, range(6)) for row in rows]
    found = {row.payload for row in client.read_category(name)}
    assert found == {token for token, applied in told if applied}
    assert session.last_serial == len(found)


def test_append_many_takes_one_serial_and_all_or_nothing(client: Client, name: str) -> None:
    session = client.session(name)
    one, two, asserted = session.append_many(
        [
            Write(f"{name}/1", [Event("t"), Event("t")]),
            Write(f"{name}/2", Event("t")),
            Write(f"{name}/3", [], NO_STREAM),
        ]
    )
    assert (one.last_version, two.first_version) == (1, 0)
    assert asserted.first_position is None
    assert session.last_serial == 1
    with pytest.raises(WrongExpectedVersion):
        session.append_many([Write(f"{name}/1", Event("t")), Write(f"{name}/2", [], NO_STREAM)])
    assert session.last_serial == 1
    assert len(list(client.read_category(name))) == 3


def test_an_older_holder_is_fenced_for_good_and_resuming_does_not_fence(shared: BrokerProcess, name: str) -> None:
    with Client(shared.endpoint, timeout=20.0) as one, Client(shared.endpoint, timeout=20.0) as two:
        older = one.session(name)
        older.append(f"{name}/1", Event("t", b"1"))
        newer = two.session(name)
        assert (newer.epoch, newer.last_serial) == (older.epoch + 1, 1)
        futures = [older.append_nowait(f"{name}/1", Event("t", b"old")) for _ in range(5)]
        for future in futures:
            assert isinstance(future.exception(), SessionFenced)
        with pytest.raises(SessionFenced) as caught:
            older.append(f"{name}/1", Event("t", b"old"))
        assert caught.value.epoch == newer.epoch
        with pytest.raises(SessionFenced):
            one.session(name, resume=older.epoch)
        newer.append(f"{name}/1", Event("t", b"2"))
        assert two.session(name, resume=newer.epoch).last_serial == 2
        assert [row.payload for row in one.read_stream(f"{name}/1")] == [b"1", b"2"]


def test_a_repeat_that_arrives_late_from_a_dead_connection_changes_nothing(shared: BrokerProcess, name: str) -> None:
    """T-59: k and k+1 are cut off, k is refused when it is sent again, and the session goes on from k."""
    with closing(RawClient(shared.endpoint)) as raw, closing(RawClient(shared.endpoint)) as other:
        open_session(raw, name)
        append(other, None, writes_of(f"{name}/1", [event("t", b"there")]))
        refusable = writes_of(f"{name}/1", [event("t", b"k")], False)
        behind = writes_of(f"{name}/1", [event("t", b"k+1")])
        dead = raw.socket
        assert dead is not None
        raw.socket = None  # it stays open, and will speak once more
        raw.reconnect()
        assert refused(4, raw, 3, None, 0, (name, 1, 1), None, refusable)[0] == f"{name}/1"
        assert refused(GAP, raw, 3, None, 0, (name, 1, 2), None, behind) == [0]
        append(raw, (name, 1, 1), writes_of(f"{name}/2", [event("t", b"instead")]))
        rows = [(3, 900, 0, None, 0, (name, 1, 2), None, behind), (3, 901, 0, None, 0, (name, 1, 1), None, refusable)]
        dead.send(msgpack.packb(rows))
        assert not dead.poll(300)
        dead.close(0)
        append(raw, (name, 1, 2), writes_of(f"{name}/2", [event("t", b"next")]))
        assert [found.payload for found in raw.read(1, name)] == [b"there", b"instead", b"next"]


def test_a_name_of_a_session_is_checked_like_a_streams(client: Client) -> None:
    for bad in ("", "x" * 256, "a\nb"):
        with pytest.raises(ValueError):
            client.session(bad)
    assert client.session("é" * 127).last_serial == 0


def test_ids_given_by_the_caller_make_a_call_again_harmless(
    start_broker: Callable[..., BrokerProcess], name: str
) -> None:
    """What a process does that was killed: it opens the session, looks how far it came, and goes on."""
    broker = start_broker()
    ids = [UUID(int=1000 + number) for number in range(10)]
    for stop in (4, 10):
        with Client(broker.endpoint, timeout=20.0) as client:
            session = client.session(name)
            for number in range(session.last_serial, stop):
                session.append(f"{name}/1", Event("t", b"%d" % number, id=ids[number]))
        broker.kill()
        broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert [row.id for row in client.read_stream(f"{name}/1")] == ids
