"""What a client can rely on that knows only docs/PROTOCOL.md: the raw client against a real broker process."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgpack
import pytest
from e2e import raw_client as raw
from e2e.raw_client import CATEGORY, EVERYTHING, NO_STREAM, STREAM, RawClient, Refused, event

LONG = 60.0


@pytest.fixture
def client(broker: Any) -> Iterator[RawClient]:
    with closing(RawClient(broker.endpoint)) as client:
        yield client


def unique(category: str = "cart") -> str:
    return f"{category}{os.urandom(4).hex()}/1"


def first_error(client: RawClient) -> list[Any]:
    message = client.receive(10)
    assert message, "no reply at all"
    replies, stored = message
    assert not stored
    return replies[0]


def test_an_append_with_the_right_expected_version_succeeds_and_a_wrong_one_conflicts(client: RawClient) -> None:
    stream, start = unique(), client.read_head()
    done = client.append((stream, NO_STREAM, [event("a", b"1"), event("b", b"2")]))
    assert not done.duplicate
    assert done.durable
    assert done.places == [(start, start + 1, 0, 1)]
    assert client.append((stream, 1, [event("a", b"3")])).places == [(start + 2, start + 2, 2, 2)]
    for expected in (NO_STREAM, 0, 7):
        with pytest.raises(Refused) as refused:
            client.append((stream, expected, [event("a", b"4")]))
        assert (refused.value.code, refused.value.facts) == (4, [stream, expected, 2, False])
    with pytest.raises(Refused) as refused:
        client.append((unique(), raw.EXISTS, [event("a", b"4")]))
    assert refused.value.code == 4
    assert refused.value.facts[1:] == [True, None, False]
    assert client.read_head() == start + 3
    assert client.stream_info(stream)[:4] == [0, 2, start + 2, False]


def test_one_append_writes_several_streams_or_none(client: RawClient) -> None:
    one, two, three, start = unique(), unique(), unique(), client.read_head()
    done = client.append((one, NO_STREAM, [event("a", b"1")]), (two, NO_STREAM, []), (three, None, [event("a", b"2")]))
    assert done.places == [(start, start, 0, 0), None, (start + 1, start + 1, 0, 0)]
    with pytest.raises(Refused) as refused:
        client.append((two, NO_STREAM, [event("a", b"1")]), (one, NO_STREAM, []))
    assert refused.value.code == 4
    assert refused.value.facts[0] == one
    assert [e.stream for e in client.read(start=start)] == [one, three]
    with pytest.raises(Refused) as refused:
        client.read(STREAM, two)
    assert (refused.value.code, refused.value.facts) == (6, [two])
    prefix = one[:-2]
    more, rows = client.list_streams(prefix)
    assert (more, rows) == (False, [[one, 0, start, False]])


def test_a_resend_is_recognised_as_a_duplicate_before_the_expected_version_is_looked_at(client: RawClient) -> None:
    stream = unique()
    append = client.prepare((stream, NO_STREAM, [event("a", b"1"), event("a", b"2")]))
    first = client._append(append, None)
    client.append((stream, 1, [event("a", b"3")]))
    client.reconnect()
    again = client.resend(append)
    assert again.duplicate
    assert again.places == first.places
    assert len(client.read(STREAM, stream)) == 3


def test_an_id_that_is_known_with_other_bytes_is_refused(client: RawClient) -> None:
    stream, new = unique(), event("a", b"1")
    client.append((stream, NO_STREAM, [new]))
    for events in ([new._replace(payload=b"2")], [new, event("a", b"2")]):
        with pytest.raises(Refused) as refused:
            client.append((stream, None, events))
        assert refused.value.code == 5
    assert [e.payload for e in client.read(STREAM, stream)] == [b"1"]


def test_reading_everything_a_stream_and_a_category_forwards_and_backwards(client: RawClient) -> None:
    start = client.read_head()
    stream = unique()
    category = stream.partition("/")[0]
    sibling, other = f"{category}/2", unique("other")
    for i in range(10):
        client.append(*((name, i - 1 if i else NO_STREAM, [event("a", b"%d" % i)]) for name in (stream, other)))
        client.append((sibling, None, [event("b", b"%d" % i, b"meta")]))
    client.append((stream, None, [event("big", bytes(60_000)) for _ in range(30)]))  # takes more than one page or none

    everything = client.read(EVERYTHING, start=start)
    assert [e.position for e in everything] == list(range(start, start + 60))
    assert [e.metadata for e in everything if e.stream == sibling] == [b"meta"] * 10
    for scope, name, expected in [
        (STREAM, stream, [e for e in everything if e.stream == stream]),
        (STREAM, other, [e for e in everything if e.stream == other]),
        (CATEGORY, category, [e for e in everything if e.stream in (stream, sibling)]),
        (CATEGORY, unique(), []),
    ]:
        assert client.read(scope, name) == expected
        assert client.read(scope, name, backwards=True) == expected[::-1]
        for limit in (0, 1, 5):
            assert client.read(scope, name, limit=limit) == expected[:limit]
            assert client.read(scope, name, limit=limit, backwards=True) == expected[::-1][:limit]
    assert client.read(EVERYTHING, start=start, backwards=True) == everything[::-1]
    assert client.read(EVERYTHING, start=start + 3, stop=start + 6) == everything[3:6]
    assert client.read(EVERYTHING, start=start + 3, stop=start + 6, backwards=True) == everything[3:6][::-1]
    versions = [e for e in everything if e.stream == stream][2:9]
    assert client.read(STREAM, stream, start=2, stop=9) == versions
    assert client.read(STREAM, stream, start=2, stop=9, backwards=True) == versions[::-1]
    assert client.read(EVERYTHING, start=start + 1_000) == []


def test_a_types_filter_leaves_only_events_of_those_types(client: RawClient) -> None:
    stream, start = unique(), client.read_head()
    for kinds in (["a"], ["b"], ["a", "b", "c"], ["c"]):
        client.append((stream, None, [event(kind, b"") for kind in kinds]))
    for types, positions in [(["a"], [0, 2]), (["b", "c"], [1, 3, 4, 5]), (["none"], [])]:
        for scope, name, begin in [(STREAM, stream, 0), (EVERYTHING, "", start)]:
            for backwards in (False, True):
                found = client.read(scope, name, start=begin, types=types, backwards=backwards)
                assert [e.position - start for e in found] == (positions[::-1] if backwards else positions)


def test_a_read_waits_for_a_position_and_tells_when_it_does_not_come(broker: Any, client: RawClient) -> None:
    stream, start = unique(), client.read_head()

    def write() -> None:
        with closing(RawClient(broker.endpoint)) as other:
            other.append((stream, NO_STREAM, [event("a", b"1")]))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert [e.stream for e in client.read(start=start, wait_for=start)] == [stream]
    finally:
        thread.join(LONG)
    assert not thread.is_alive()
    with pytest.raises(Refused) as refused:
        client.call(7, 50, start + 1_000)
    assert (refused.value.code, refused.value.facts) == (10, ["timeout"])


@pytest.mark.parametrize("scope", [EVERYTHING, STREAM])
def test_live_following_across_a_broker_kill_and_restart_sees_every_position_once(broker: Any, scope: int) -> None:
    writer = RawClient(broker.endpoint, LONG)
    stream, start = unique(), writer.read_head()
    seen: list[raw.Event] = []
    failures: list[BaseException] = []
    enough = threading.Event()

    def follow() -> None:
        try:
            with closing(RawClient(broker.endpoint, LONG)) as follower:
                name, begin = (stream, 0) if scope == STREAM else ("", start)
                for found in follower.follow(scope, name, begin, LONG):
                    seen.append(found)
                    if len(seen) == 61:
                        enough.set()
                        return
        except BaseException as error:  # told to the test's own thread
            failures.append(error)
            enough.set()

    def seen_at_least(count: int) -> bool:
        deadline = time.monotonic() + LONG
        while len(seen) < count and not enough.is_set() and time.monotonic() < deadline:
            enough.wait(0.02)
        return len(seen) >= count

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        for i in range(30):
            writer.append((stream, None, [event("a", b"%d" % i)]))
        assert seen_at_least(10), failures
        in_flight = writer.prepare((stream, None, [event("a", b"30")]))
        writer.send_append(in_flight)
        broker.kill()
        broker.start()
        writer.reconnect()
        writer.resend(in_flight)
        for i in range(31, 61):
            writer.append((stream, None, [event("a", b"%d" % i)]))
        assert seen_at_least(61), (len(seen), failures)
    finally:
        thread.join(LONG)
        writer.close()
    assert not failures
    assert not thread.is_alive()
    assert [e.position for e in seen] == list(range(start, start + 61))
    assert [e.payload for e in seen] == [b"%d" % i for i in range(61)]


def test_after_a_restart_the_old_socket_is_told_to_say_hello(broker: Any, client: RawClient) -> None:
    generation, boot_id, log_id = client.generation, client.boot_id, client.log_id
    stream = unique()
    done = client.append((stream, NO_STREAM, [event("a", b"1")]))
    broker.kill()
    broker.start()
    with pytest.raises(raw.Lost):
        client.ping()
    client.reconnect()
    assert client.log_id == log_id
    assert client.boot_id != boot_id
    assert client.generation >= generation
    assert [e.position for e in client.read(STREAM, stream)] == [done.places[0][0]]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"not msgpack at all"],
        [msgpack.packb({"kind": 2})],
        [msgpack.packb(7)],
        [msgpack.packb([])],
        [msgpack.packb([[2, 1]] * 1025)],
        [msgpack.packb([[2, 1]])[:-1]],
        [msgpack.packb([[2, 1]]) + b"\0"],
        [b"\xdd\xff\xff\xff\xff"],
        [b"\x91" * 5_000],
        [msgpack.packb([[2, 1]]), b"a second frame"],
    ],
    ids=lambda frames: f"{len(frames)}-{frames[0][:6].hex()}",
)
def test_a_message_that_cannot_be_read_gets_one_error_and_the_broker_lives(
    client: RawClient, frames: list[bytes]
) -> None:
    client.send(frames)
    request_id, code, text, facts = first_error(client)
    assert request_id is None
    assert code == 1
    assert isinstance(text, str)
    assert facts == []
    client.ping()


@pytest.mark.parametrize(
    "fields",
    [
        (99,),
        (4, 0, 3, "", None, None, None, False, None, None),
        (4, 0, 0, "", -1, None, None, False, None, None),
        (4, 0),
        (3, 0, None, 0, None, None, []),
        (3, 0, None, 0, None, None, [["s", None, None]]),
        (3, 0, None, 0, None, None, [["", None, raw.pack_region([event("a", b"")])]]),
        (3, 0, None, 0, None, None, [["s", None, raw.pack_region([event("a", b"")])]] * 2),
        (3, 0, None, 0, None, None, [["s", None, b"\x94\xc4\x00"]]),
        (3, 0, None, 0, None, None, [["s", None, msgpack.packb([bytes(15), "a", None, [b""]])]]),
        (3, 0, None, 0, None, None, [["s", "any", raw.pack_region([event("a", b"")])]]),
    ],
    ids=str,
)
def test_a_wrong_request_gets_invalid_argument_under_its_own_id_and_writes_nothing(
    client: RawClient, fields: tuple[Any, ...]
) -> None:
    head = client.read_head()
    with pytest.raises(Refused) as refused:
        client.call(*fields)
    assert (refused.value.code, refused.value.facts) == (1, [])
    assert client.read_head() == head


def test_a_request_without_hello_gets_error_24(broker: Any, client: RawClient) -> None:
    client.close()
    client.socket = raw.dealer(broker.endpoint)
    client.send([msgpack.packb([[2, 7]])])
    request_id, code, _, facts = first_error(client)
    assert (request_id, code, facts) == (7, 24, [])
    client.socket.send(msgpack.packb([[7, 8, 0, None]]))
    assert first_error(client)[:2] == [8, 24]
    client.reconnect()
    client.ping()


def test_health_needs_no_hello(broker: Any, client: RawClient) -> None:
    client.close()
    client.socket = raw.dealer(broker.endpoint)
    client.send([msgpack.packb([[11, 7]])])
    request_id, code, live, ready, *_ = first_error(client)
    assert (request_id, code, live, ready) == (7, 0, True, True)


def test_an_incarnation_that_is_not_higher_is_refused(broker: Any, client: RawClient) -> None:
    client.reconnect()
    current = client.incarnation
    with closing(RawClient(broker.endpoint)) as other:
        for older in (current, current - 1):
            other.close()
            other.socket, other.client_id, other.incarnation = raw.dealer(broker.endpoint), client.client_id, older
            with pytest.raises(Refused) as refused:
                other.hello()
            assert (refused.value.code, refused.value.facts) == (13, [1])
        client.ping()  # and the refused ones did not push the living one out
        other.close()
        other.socket, other.incarnation = raw.dealer(broker.endpoint), current + 1
        other.hello()
        other.ping()
