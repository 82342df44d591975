"""Idempotent appends (spec §4): a repeat gets the original places, any other overlap is refused, nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import msgpack
import pytest
import zmq
from e2e.raw_client import RawClient, Refused, event
from support.process import BrokerProcess, until
from tidelog import NO_STREAM, Client, DuplicateEventId, Event, Write


def three() -> list[Event]:
    return [Event("a", b"%d" % i, b"m%d" % i, uuid4()) for i in range(3)]


def stored(data: Path) -> dict[str, bytes]:
    """Every segment up to its last byte that is not zero: more zeros may be prepared at any time."""
    return {path.name: path.read_bytes().rstrip(b"\0") for path in data.glob("0*-*")}


def published(socket: zmq.Socket[bytes], seconds: float = 0.0) -> list[bytes]:
    """What was published but heartbeats, until two heartbeats came and this time is over."""
    found, beats, end = [], 0, time.monotonic() + seconds
    while beats < 2 or time.monotonic() < end:
        assert socket.poll(10_000), "no heartbeat"
        topic, body = socket.recv_multipart()
        if topic == b"H":
            beats += 1
        else:
            found.append(body)
    return found


def test_a_repeated_append_gets_its_places_and_is_neither_written_nor_published(
    shared: BrokerProcess, client: Client, stream: str
) -> None:
    """T-23, at once"""
    events = three()
    first = client.append(stream, events, NO_STREAM)
    with closing(RawClient(shared.endpoint)) as raw, closing(raw.subscribe()) as everything:
        published(everything)
        before, syncs, head = stored(shared.data), client.info()["syncs"], client.head()
        for _ in range(3):
            again = client.append(stream, events, NO_STREAM)
            assert again[:4] == first[:4]
            assert (first.duplicate, again.duplicate, again.durability) == (False, True, "durable")
        assert client.head() == head
        assert client.info()["syncs"] == syncs
        assert stored(shared.data) == before
        assert published(everything) == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_repeated_append_gets_its_places_after_a_restart(broker: BrokerProcess, how: str) -> None:
    """T-23, after restart"""
    events, many = three(), [Write(f"many/{i}", three()) for i in range(5)]
    with Client(broker.endpoint, timeout=20.0) as client:
        first = client.append("s", events, NO_STREAM)
        rows = client.append_many(many)
        client.append("s", Event("later"))
    if how == "killed":
        broker.kill()
    else:
        assert broker.stop() == 0
    broker.start()
    before = stored(broker.data)
    with Client(broker.endpoint, timeout=20.0) as client, closing(RawClient(broker.endpoint)) as raw:
        with closing(raw.subscribe()) as everything:
            published(everything)
            again = client.append("s", events, NO_STREAM)
            assert again[:4] == first[:4]
            assert again.duplicate
            assert [row[:4] for row in client.append_many(many)] == [row[:4] for row in rows]
            assert client.head() == 3 + 15 + 1
            assert published(everything) == []
        assert stored(broker.data) == before


def test_an_append_is_known_until_as_many_events_as_the_window_holds_came_behind_it(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """T-23, spec §4: at least the newest 65,536 events; a resend from before the window has an unknown outcome."""
    broker = start_broker()
    with closing(RawClient(broker.endpoint)) as raw, Client(broker.endpoint, timeout=20.0) as client:
        old, lost = (raw.prepare((name, None, [event("a", b"1")])) for name in ("old", "lost"))
        first = raw._append(old, None)
        for _ in range(15):
            client.append("filler", [Event("f") for _ in range(4_096)])
        client.append("filler", [Event("f") for _ in range(4_095)])
        assert client.head() == 65_536
        again = raw.resend(old)
        assert again.duplicate
        assert again.places == first.places
        for restarted in (False, True):
            if restarted:
                broker.kill()
                broker.start()
                raw.reconnect()
            else:
                # The window may hold up to twice its size and one append; behind that it must have moved on.
                for _ in range(34):
                    client.append("filler", [Event("f") for _ in range(4_096)])
            head = client.head()
            with pytest.raises(Refused) as refused:
                raw.resend(lost)
            assert refused.value.code == 20
            assert client.head() == head


@pytest.mark.parametrize("durable_first", [True, False], ids=["durable", "in one group"])
def test_any_other_overlap_with_known_ids_is_refused_and_nothing_is_written(
    shared: BrokerProcess, stream: str, durable_first: bool
) -> None:
    """T-24: [known, new], [new, known], another stream, another payload, a part, another order, more streams."""
    a, b, new = event("a", b"1"), event("a", b"2"), event("a", b"3")
    other = stream + "b"
    overlaps = [
        [(stream, None, [a, new])],
        [(stream, None, [new, a])],
        [(stream, None, [a, b, new])],
        [(stream, None, [a])],
        [(stream, None, [b, a])],
        [(other, None, [a, b])],
        [(stream, None, [a, b._replace(payload=b"x")])],
        [(stream, None, [a, b._replace(metadata=b"x")])],
        [(stream, None, [a, b._replace(type="x")])],
        [(stream, None, [a, b]), (other, None, [new])],
        [(stream, None, [a]), (other, None, [b])],
        [(other, None, [new]), (stream, None, [a, b])],
    ]
    with closing(RawClient(shared.endpoint)) as raw:
        head = raw.read_head()
        original = raw.prepare((stream, None, [a, b]))
        if durable_first:
            raw._append(original, None)
        # One message is taken in one drain: without the append before it, all of them meet a group not yet durable.
        requests = [] if durable_first else [original]
        requests += [raw.prepare(*writes) for writes in overlaps]
        packed = [[3, 1_000 + i, 0, None, 0, None, None, request.writes] for i, request in enumerate(requests)]
        raw.send([msgpack.packb(packed)])
        replies: dict[int, list[object]] = {}
        assert until(lambda: _collect(raw, replies) == len(requests))
        if not durable_first:
            assert replies.pop(1_000)[1] == 0
        assert {reply[1] for reply in replies.values()} == {5}
        assert raw.read_head() == head + 2
        assert [found.payload for found in raw.read(2, stream)] == [b"1", b"2"]
        with pytest.raises(Refused):
            raw.stream_info(other)
        # What was refused stays usable: its new ids were not taken in.
        assert not raw.append((other, None, [new])).duplicate


def _collect(raw: RawClient, replies: dict[int, list[object]]) -> int:
    message = raw.receive(0.01)
    for reply in message[0] if message else []:
        replies[reply[0]] = reply
    return len(replies)


def test_two_known_appends_together_are_no_repeat(client: Client, stream: str) -> None:
    """T-24: all ids known, but not from one and the same append."""
    one, two = Event("a", b"1", id=uuid4()), Event("a", b"2", id=uuid4())
    client.append(stream, one)
    client.append(stream, two)
    for events in ([one, two], [two, one]):
        with pytest.raises(DuplicateEventId):
            client.append(stream, events)
    with pytest.raises(DuplicateEventId):
        client.append_many([Write(stream, [one]), Write(stream + "b", [two])])
    assert client.append(stream, one).duplicate
    assert client.stream_info(stream).last_version == 1


def test_a_repeat_may_assert_other_streams_than_the_original(client: Client, stream: str) -> None:
    """A write without events is no part of what is stored, so it does not make a repeat another append."""
    events = three()
    first = client.append(stream, events, NO_STREAM)
    rows = client.append_many([Write(stream, events, NO_STREAM), Write(stream + "b", [], NO_STREAM)])
    assert rows[0][:4] == first[:4]
    assert rows[0].duplicate
    assert set(rows[1][:4]) == {None}


def test_ids_of_a_refused_append_are_not_known(client: Client, stream: str) -> None:
    """T-24: a refusal leaves no id behind."""
    events = three()
    client.append(stream, Event("a"))
    with pytest.raises(Exception, match="expected"):
        client.append(stream, events, NO_STREAM)
    done = client.append(stream, events, 0)
    assert not done.duplicate
    assert [found.id for found in client.read_stream(stream, 1)] == [event.id for event in events]


def test_an_id_of_zeros_is_an_id_like_any_other(client: Client, stream: str) -> None:
    nothing = Event("a", id=UUID(int=0))
    first = client.append(stream, nothing)
    assert client.append(stream, nothing)[:4] == first[:4]
