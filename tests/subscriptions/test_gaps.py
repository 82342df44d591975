"""Publishing is only a hint: whatever is lost on the way, by loss, overflow or slowness, is read."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import zmq
from subscriptions.helpers import PATIENCE_S, Follower, Forwarder, Message, Worker, Writer, fill, small
from support.process import BrokerProcess, until
from tidelog import CaughtUp, Client, Event, Lagged, Write
from tidelog.pager import Pager
from tidelog.reading import Pages
from tidelog.wire import BYTES_FOLLOW, CATEGORY, EVERYTHING, PUBLISHED, STREAM, read_published

Follow = Callable[..., Follower]
SCOPES: list[dict[str, Any]] = [{}, {"category": "c"}, {"stream": "c/1"}]
SCOPE_NAMES = ["everything", "category", "stream"]
BEATS_UNTIL_READ = 4
"""The one that tells, the one that may come before the read, and two for a thread that is not awakened at once."""
SLOW_BEAT = ("--heartbeat-ms", "60000")
PROMPT = 20.0
ROUNDS_UNTIL_LIVE = 3


class Loss:
    """A choice for Forwarder: loses what is not a heartbeat while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.lost = 0

    def __call__(self, topic: bytes, body: bytes) -> Iterable[Message]:
        if self.on and topic != b"H":
            self.lost += 1
            return ()
        return ((topic, body),)


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_the_last_message_before_a_silence_is_lost_noticed_by_the_heartbeat_and_read(
    start_broker: Callable[..., BrokerProcess],
    forwarder: Callable[..., Forwarder],
    follow: Follow,
    scope: dict[str, Any],
) -> None:
    """T-53: within its interval, and the random part of another that spreads the reads: counted in heartbeats."""
    broker, loss = start_broker("--heartbeat-ms", "1000"), Loss()
    between = forwarder(broker, loss)
    with Client(broker.endpoint) as client:
        follower = follow(client, **scope)
        client.append("c/1", small(2))
        assert follower.wait(2)
        time.sleep(0.05)
        client.append("c/1", small(2))
        assert follower.wait(4)
        for round_ in range(2):
            have = len(follower.events)
            loss.on = True
            client.append("c/1", small(3))
            assert until(lambda r=round_: loss.lost > r, PATIENCE_S), "the message was to be lost"
            beats = between.seen.count(b"H")
            assert follower.wait(have + 3)
            assert between.seen.count(b"H") - beats <= BEATS_UNTIL_READ
            loss.on = False
            client.append("c/1", small(1))
            assert follower.wait(have + 4)
        assert follower.versions == list(range(len(follower.events)))


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_a_hole_is_read_when_the_next_message_shows_it_without_waiting_for_a_heartbeat(
    start_broker: Callable[..., BrokerProcess],
    forwarder: Callable[..., Forwarder],
    follow: Follow,
    scope: dict[str, Any],
) -> None:
    """T-53: heartbeats every 60 s; message 2 of 3 is lost."""
    broker, loss = start_broker(*SLOW_BEAT), Loss()
    forwarder(broker, loss)
    with Client(broker.endpoint) as client:
        follower = follow(client, **scope)
        client.append("c/1", small(1))
        assert follower.wait(1, PROMPT)
        client.append("c/1", small(1))
        assert follower.wait(2, PROMPT)
        loss.on = True
        client.append("c/1", small(4))
        assert until(lambda: loss.lost == 1, PATIENCE_S)
        loss.on = False
        client.append("c/1", small(1))
        assert follower.wait(7, PROMPT)
        assert follower.versions == list(range(7))


@pytest.mark.parametrize("on_lag", ["follow", "raise"])
def test_loss_is_lag_only_for_who_asks_and_tells_the_next_position(
    start_broker: Callable[..., BrokerProcess], forwarder: Callable[..., Forwarder], follow: Follow, on_lag: str
) -> None:
    """T-33: `on_lag="raise"`: neither history, hand-over nor messages over 64 KiB are a lag; a lost message is."""
    # Three heartbeats are the silence borne: on a machine that is busy for longer nobody is live, and nothing is a lag.
    broker, loss = start_broker("--heartbeat-ms", "1500"), Loss()
    between = forwarder(broker, loss)
    with Client(broker.endpoint) as client:
        client.append("c/1", small(100))
        follower = follow(client, stream="c/1", on_lag=on_lag)
        for number in range(20):
            client.append("c/1", Event("t", b"x" * (60_000 if number % 3 else 1)))
            client.append("c/1", [Event("t", b"x" * 40_000), Event("t", b"x" * 40_000)])
        assert follower.wait(160)
        beats = between.seen.count(b"H")
        assert until(lambda: between.seen.count(b"H") >= beats + 2, PATIENCE_S)
        client.append("c/1", small(1))
        assert follower.wait(161)
        loss.on = True
        client.append("c/1", small(1))
        assert until(lambda: loss.lost == 1, PATIENCE_S)
        if on_lag == "follow":
            assert follower.wait(162)
        else:
            assert until(lambda: follower.error is not None, PATIENCE_S)
            assert isinstance(follower.error, Lagged)
            assert follower.error.position == follower.subscription.position == 161
            assert len(follower.events) == 161
            with pytest.raises(Lagged):
                next(follower.subscription)
        assert follower.versions == list(range(len(follower.events)))


@pytest.mark.parametrize("scope", [*SCOPES, {"types": ["a"]}], ids=[*SCOPE_NAMES, "types"])
def test_messages_lost_doubled_and_late_at_random_cost_nothing(
    start_broker: Callable[..., BrokerProcess], forwarder: Callable[..., Forwarder], follow: Follow, scope: Any
) -> None:
    """T-53: also heartbeats, and runs of loss that are longer than the silence that a subscriber bears."""
    seed = random.Random(f"{scope}")
    held: list[Message] = []
    dark = False

    def choose(topic: bytes, body: bytes) -> Iterable[Message]:
        nonlocal held
        dice = seed.random()
        if dark or dice < 0.25:
            return ()
        if dice < 0.35:
            held.append((topic, body))
            return ()
        if dice < 0.45:
            return ((topic, body), (topic, body))
        if dice < 0.55:
            late, held = held, []
            return ((topic, body), *late)
        return ((topic, body),)

    broker = start_broker("--heartbeat-ms", "100")
    forwarder(broker, choose)
    with Client(broker.endpoint) as client:
        follower = follow(client, **scope)
        for number in range(400):
            client.append(f"c/{number % 3}", [Event("ab"[number % 2]), *small(number % 4, "b")])
            if number % 100 == 50:
                dark = True
                time.sleep(0.5)
                dark = False
            elif number % 5 == 0:
                time.sleep(0.004)
        expected = [
            event
            for event in client.read_all()
            if event.stream == scope.get("stream", event.stream) and event.type in scope.get("types", ["a", "b"])
        ]
        assert follower.wait(len(expected))
        assert follower.events == expected


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_appends_over_64_kib_come_promptly_though_their_messages_carry_only_the_range(
    start_broker: Callable[..., BrokerProcess], follow: Follow, scope: dict[str, Any]
) -> None:
    """§10: heartbeats every 60 s; 64 KiB less a little, just over, one page, several pages, among small ones."""
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint, timeout=20.0) as client:
        follower = follow(client, **scope)
        client.append("c/1", Event("t"))
        assert follower.wait(1, PROMPT)
        have = 1
        for sizes in ([65_000], [32_000] * 2, [33_000] * 2, [1], [60_000] * 17, [1], [60_000] * 130, [1], [1]):
            client.append("c/1", [Event("t", b"x" * size) for size in sizes])
            have += len(sizes)
            assert follower.wait(have, PROMPT), sizes
        assert follower.versions == list(range(have))
        assert follower.events == list(client.read_all())


# Slow and stopped subscribers


@pytest.mark.parametrize("scope", [{}, {"stream": "c/1"}], ids=["everything", "stream"])
def test_a_stopped_subscriber_goes_on_by_itself_without_loss(
    start_broker: Callable[..., BrokerProcess], worker: Callable[..., Worker], scope: dict[str, Any]
) -> None:
    """T-33: SIGSTOP while more than ten times what queues and socket buffers hold is written; twice."""
    broker = start_broker("--queue-messages-max", "16")
    with Client(broker.endpoint) as client:
        client.append("c/1", small(3))
        subscriber = worker("follow", broker.endpoint, until=2_004, **scope)
        assert subscriber.saw("caught-up")
        for _ in range(2):
            time.sleep(0.1)  # live by now; nothing depends on it
            subscriber.signal(signal.SIGSTOP)
            for _ in range(1_000):
                client.append("c/1", Event("t", b"x" * 8_000))
            subscriber.signal(signal.SIGCONT)
        client.append("c/1", Event("t"))
        assert subscriber.wait(60) == 0, subscriber.stderr()
        assert subscriber.lines()[1:] == ["done 2004", "closed"]


@pytest.mark.parametrize("seconds", [0.0, 2.5], ids=["shortly", "longer than the silence borne"])
@pytest.mark.parametrize("scope", [{}, {"stream": "c/1"}], ids=["everything", "stream"])
def test_a_stopped_subscriber_that_wants_to_know_gets_lagged_with_its_next_position(
    start_broker: Callable[..., BrokerProcess], worker: Callable[..., Worker], scope: dict[str, Any], seconds: float
) -> None:
    """T-33: and whoever subscribes from there misses nothing."""
    broker = start_broker("--queue-messages-max", "16")
    with Client(broker.endpoint) as client:
        client.append("c/1", small(3))
        subscriber = worker("follow", broker.endpoint, until=10**6, on_lag="raise", **scope)
        assert subscriber.saw("caught-up")
        written = 3
        for _ in range(ROUNDS_UNTIL_LIVE):
            time.sleep(0.7)  # more than a heartbeat: it is live by then, or in the next round
            subscriber.signal(signal.SIGSTOP)
            for _ in range(1_000):
                client.append("c/1", Event("t", b"x" * 8_000))
            written += 1_000
            time.sleep(seconds)
            subscriber.signal(signal.SIGCONT)
            if subscriber.saw("lagged", 10.0):
                break
        assert subscriber.saw("lagged"), (subscriber.lines(), subscriber.stderr())
        _, told, position, expected = subscriber.lines()[1].split()
        assert told == position == expected
        assert 3 <= int(told) < written
        with client.subscribe(start=int(told), **scope) as again:
            assert [next(again).position for _ in range(written - int(told))] == list(range(int(told), written))


def test_a_stopped_subscriber_delays_nobody(
    start_broker: Callable[..., BrokerProcess], worker: Callable[..., Worker], follow: Follow
) -> None:
    """T-33, T-56: its neighbour gets everything at once, and the writer's appends do not wait."""
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint) as client:
        subscriber = worker("follow", broker.endpoint, until=3_000)
        neighbour = follow(client)
        assert subscriber.saw("caught-up")
        subscriber.signal(signal.SIGSTOP)
        for number in range(3_000):
            client.append("c/1", Event("t", b"x" * 2_000))
            if number % 500 == 0:
                assert neighbour.wait(number + 1, PROMPT)
        assert neighbour.wait(3_000, PROMPT)
        subscriber.signal(signal.SIGCONT)
        # The last message may be among those that overflowed; with this heartbeat only another one tells, and that
        # one may find the queue still full.
        for _ in range(20):
            client.append("c/1", Event("t"))
            if subscriber.saw("done", 1.0):
                break
        assert subscriber.lines()[1] == "done 3000"


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_a_slow_consumer_gets_everything_once_though_its_buffers_overflow(
    client: Client, follow: Follow, scope: dict[str, Any]
) -> None:
    """T-33: it stops for seconds while three times what the buffers hold is published; then it dawdles."""
    gate = threading.Event()
    calls = 0

    def pause() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            gate.wait(30)
        if calls % 500 == 0:
            time.sleep(0.02)

    follower = follow(client, pause, **scope)
    client.append("c/1", Event("t"))
    client.append("c/1", Event("t"))
    assert follower.wait(2)
    for _ in range(6):
        fill(client, "c/1", 1_000, b"x" * 300)
        client.append("d/1", Event("t"))
    gate.set()
    expected = [event for event in client.read_all() if not scope or event.stream == "c/1"]
    assert follower.wait(len(expected))
    fill(client, "c/1", 100)
    assert follower.wait(len(expected) + 100)
    assert follower.versions[-100:] == list(range(6_002, 6_102))
    assert follower.events[: len(expected)] == expected


def test_a_slow_consumer_under_a_steady_writer_never_loses_or_doubles(
    broker: BrokerProcess, client: Client, follow: Follow
) -> None:
    """T-33: the consumer falls behind again and again, while appends of several sizes go on."""
    writer = Writer(broker.endpoint, ["c/1", "c/2", "d/1"], 0.0005, 5)
    dice = random.Random(1)
    slow = [
        follow(client, lambda: time.sleep(0.05) if dice.random() < 0.01 else None, **scope, start=0) for scope in SCOPES
    ]
    writer.start()
    time.sleep(2)
    writer.end()
    for follower, scope in zip(slow, SCOPES, strict=True):
        expected = [
            event
            for event in client.read_all()
            if event.stream.startswith(scope.get("category", "")) and event.stream == scope.get("stream", event.stream)
        ]
        assert follower.wait(len(expected), 30)
        assert follower.events == expected


def test_who_keeps_up_is_never_told_that_it_lags(broker: BrokerProcess, client: Client, follow: Follow) -> None:
    """T-33: groups of many appends to many streams and categories at once, from every start; no message is a hole.

    Each round waits for everybody, so that everybody keeps up however busy the machine is.
    """
    followers: list[tuple[Follower, dict[str, Any]]] = []
    dice = random.Random(2)
    for round_ in range(30):
        options = {**SCOPES[round_ % 3], "start": dice.randrange(50)}
        if round_ < 12:
            followers.append((follow(client, on_lag="raise", **options), options))
        futures = [
            client.append_nowait(dice.choice(["c/1", "c/2", "d/1", "plain"]), small(1 + dice.randrange(3)))
            for _ in range(60)
        ]
        client.append_many([Write("c/1", small(2)), Write("d/2", small(1)), Write("c/3", small(2))])
        for future in futures:
            future.result()
        log = list(client.read_all())
        for follower, options in followers:
            start = options["start"]
            if "stream" in options:
                expected = [event for event in log if event.stream == "c/1" and event.version >= start]
            else:
                prefix = "c/" if "category" in options else ""
                expected = [event for event in log if event.stream.startswith(prefix) and event.position >= start]
            assert follower.wait(len(expected)), (options, follower)
            assert follower.events == expected


@pytest.mark.parametrize("on_lag", ["follow", "raise"])
def test_a_broker_that_stands_still_for_longer_than_the_silence_borne_is_no_lag_and_no_loss(
    start_broker: Callable[..., BrokerProcess], follow: Follow, on_lag: str
) -> None:
    broker = start_broker("--heartbeat-ms", "100")
    with Client(broker.endpoint, timeout=20.0) as client:
        followers = [follow(client, on_lag=on_lag, **scope) for scope in SCOPES]
        client.append("c/1", small(3))
        for follower in followers:
            assert follower.wait(3)
        for round_ in range(2):
            broker.signal(signal.SIGSTOP)
            futures = [client.append_nowait("c/1", small(2)) for _ in range(50)]
            time.sleep(0.8)
            broker.signal(signal.SIGCONT)
            for future in futures:
                future.result()
            for follower in followers:
                assert follower.wait(3 + 100 * (round_ + 1)), follower.error
                assert follower.versions == list(range(len(follower.events)))


# Appends are whole


@pytest.mark.parametrize("way", ["live", "refill", "history"])
@pytest.mark.parametrize("size", [5, 400, 4_000])
def test_whoever_has_an_appends_first_event_has_them_all_without_the_broker(
    broker: BrokerProcess, client: Client, way: str, size: int
) -> None:
    """T-36: at the first event the broker is stopped; the rest, over three streams, must be there already."""
    writes = [Write(f"c/{number}", [Event("t", b"x" * 100)] * 1 + small(size)) for number in range(3)]
    if size == 4_000:
        writes = [Write("c/1", small(4_000))]
    expected = 4_000 if size == 4_000 else 3 * (1 + size)
    client.append("c/9", small(3))
    if way == "history":
        client.append("c/9", small(2_000))
        client.append_many(writes)
    received: list[Any] = []
    with client.subscribe(category="c", markers=True, checkpoint_events=10**6, checkpoint_idle=3600.0) as sub:
        timer = threading.Timer(60, sub.stop)  # who needs the broker would wait until then
        timer.start()
        if way != "history":
            while not isinstance(next(sub), CaughtUp):
                pass
            client.append("c/9", small(1))
            next(sub)
            if way == "refill":
                # The subscriber takes nothing meanwhile, and its buffers overflow: the append comes by a read.
                fill(client, "c/9", 3_000)
            client.append_many(writes)
        for event in sub:
            if event.stream != "c/9":
                broker.signal(signal.SIGSTOP)
                received.append(event)
                break
        try:
            while len(received) < expected:
                received.append(next(sub))
        finally:
            broker.signal(signal.SIGCONT)
            timer.cancel()
    first = received[0].position
    assert [event.position for event in received] == list(range(first, first + expected))


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_no_page_of_a_refill_ends_inside_an_append(client: Client, scope: dict[str, Any]) -> None:
    """T-36: appends over up to 400 streams and of up to 400 KB, so that pages would end inside them at every limit."""
    dice = random.Random(36)
    ends: set[int] = set()
    for number in range(60):
        streams = ["c/1", *(f"c/{stream}" for stream in range(2, dice.choice([3, 3, 30, 400])))]
        size = dice.choice([1, 1, 100, 400])
        rows = client.append_many([Write(name, small(1 + number % 2, payload=b"x" * size)) for name in streams])
        ends.add(rows[0 if "stream" in scope else -1].last_position)
        ends.add(client.append("c/1", [Event("t", b"x" * 40_000)] * dice.randrange(1, 10)).last_position)
    kind, name = (STREAM, "c/1") if "stream" in scope else (CATEGORY, "c") if scope else (EVERYTHING, "")
    pages = [page for page in Pager(client, Pages(kind, name)) if page]
    assert len(pages) > 5
    for page in pages:
        assert page[-1].position in ends


@pytest.mark.parametrize("size", [65_000, 66_000])
def test_a_message_over_64_kib_carries_only_its_range(client: Client, size: int) -> None:
    """§10: seen on the publishing socket itself."""
    hello = client._hello()
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.setsockopt(zmq.LINGER, 0)
        for topic in (b"A", b"Cc\0", b"Sc/1\0", b"H"):
            sub.setsockopt(zmq.SUBSCRIBE, topic)
        sub.connect(hello.endpoints[0][1])
        assert sub.poll(20_000), "the first heartbeat shows that the subscription is in force"
        sub.recv_multipart()
        client.append_many([Write("c/1", [Event("t", b"x" * (size // 2))] * 2), Write("d/1", small(1))])
        seen: dict[bytes, tuple[int, int, int, int, int]] = {}
        while len(seen) < 3:
            assert sub.poll(20_000)
            topic, body = sub.recv_multipart()
            if topic != b"H":
                told = read_published(body)
                seen[topic] = (told.start, told.stop, told.head, told.flags & BYTES_FOLLOW, len(body) - PUBLISHED.size)
    bytes_follow = size < 65_536
    for topic, stop in ((b"A", 3), (b"Cc\0", 2), (b"Sc/1\0", 2)):
        assert seen[topic][:4] == (0, stop, 3, bytes_follow)
        assert (seen[topic][4] > 0) == bytes_follow
