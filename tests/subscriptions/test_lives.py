"""Subscriptions through everything that begins and ends: hand-over, kills, restarts, stop, close, Ctrl-C, fork, exit."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from subscriptions.helpers import Follower, Worker, Writer, small
from support.process import BrokerProcess, until
from tidelog import CaughtUp, Client, ClientClosed, DeadlineExceeded, Event

Follow = Callable[..., Follower]
Start = Callable[..., BrokerProcess]
SCOPES: list[dict[str, Any]] = [{}, {"category": "c"}, {"stream": "c/1"}]
SCOPE_NAMES = ["everything", "category", "stream"]
STREAMS = ["c/1", "c/2", "d/1", "plain"]


def expected_of(log: list[Any], start: int, stream: str | None = None, category: str | None = None) -> list[Any]:
    """What a subscription has to deliver, by the whole log."""
    if stream is not None:
        return [event for event in log if event.stream == stream and event.version >= start]
    chosen = [event for event in log if category is None or event.stream.startswith(category + "/")]
    return [event for event in chosen if event.position >= start]


def check(client: Client, followers: list[tuple[Follower, dict[str, Any]]], timeout: float = 15.0) -> list[Any]:
    """All have exactly what they should have, by the log as it is now."""
    log = list(client.read_all())
    assert [event.position for event in log] == list(range(len(log)))
    for follower, options in followers:
        expected = expected_of(log, **options)
        assert follower.wait(len(expected), timeout), (options, len(follower.events), len(expected), follower.error)
        assert follower.events == expected, options
        assert [type(item) for item in follower.items].count(CaughtUp) == 1
        if expected and options.get("stream") is None:
            assert expected[-1].position < follower.subscription.position <= len(log)
    return log


def test_twenty_subscribers_from_random_starts_have_no_gap_and_no_double_across_hand_over(
    broker: BrokerProcess, client: Client, follow: Follow
) -> None:
    """T-31: while two writers go on steadily; starts in history, near the head and beyond it."""
    dice = random.Random(31)
    for number in range(300):
        client.append(STREAMS[number % 4], small(1 + number % 4))
    writers = [Writer(broker.endpoint, STREAMS, 0.002, 4), Writer(broker.endpoint, STREAMS[::-1], 0.003)]
    clients = [client, *(Client(broker.endpoint, timeout=10.0) for _ in range(3))]
    followers: list[tuple[Follower, dict[str, Any]]] = []
    try:
        for writer in writers:
            writer.start()
        for number in range(20):
            options: dict[str, Any] = dict(SCOPES[number % 3])
            head = client.head()
            if "stream" in options:
                head = client.stream_info("c/1").last_version + 1
            options["start"] = dice.choice([dice.randrange(head), head - dice.randrange(10), head + dice.randrange(60)])
            followers.append((follow(clients[number % 4], markers=True, checkpoint_events=50, **options), options))
            time.sleep(dice.random() * 0.2)
        for writer in writers:
            writer.end()
        check(client, followers)
    finally:
        for follower, _ in followers:
            follower.end()
        for other in clients[1:]:
            other.close()


def test_hand_over_under_a_writer_is_gapless_a_hundred_times(broker: BrokerProcess, client: Client) -> None:
    """T-31: each begins at the head of its moment and has to meet the next 20 events."""
    writer = Writer(broker.endpoint, ["c/1"], 0.0)
    writer.start()
    try:
        for number in range(100):
            options = SCOPES[number % 3]
            with client.subscribe(start="end", **options) as sub:
                begun = sub.position
                timer = threading.Timer(10, sub.stop)
                timer.start()
                got = [event.position for event, _ in zip(sub, range(20), strict=False)]
                timer.cancel()
            assert got == list(range(begun, begun + 20))
    finally:
        writer.end()


def test_broker_killed_and_restarted_under_twenty_subscribers_and_writers_leaves_no_gap(
    broker: BrokerProcess, client: Client, follow: Follow
) -> None:
    """T-52: four rounds; also one that is down for longer than the silence a subscriber bears."""
    client.append("c/1", small(50))
    clients = [client, *(Client(broker.endpoint, timeout=20.0) for _ in range(3))]
    followers: list[tuple[Follower, dict[str, Any]]] = []
    for number in range(20):
        options = {**SCOPES[number % 3], "start": number}
        followers.append((follow(clients[number % 4], markers=True, **options), options))
    absent = follow(client, stream="later/1", markers=True)
    writers = [Writer(broker.endpoint, STREAMS, 0.002, 4), Writer(broker.endpoint, STREAMS[::-1], 0.003)]
    for writer in writers:
        writer.start()
    try:
        for pause in (0.0, 0.3, 1.8, 0.0):
            have = len(followers[0][0].items)
            assert until(lambda h=have: len(followers[0][0].items) > h + 50, 15.0), "nothing came after the restart"
            broker.kill()
            time.sleep(pause)
            broker.start()
        time.sleep(0.5)
        for writer in writers:
            writer.end()
        log = check(client, followers)
        written = {(event.stream, event.version) for event in log}
        assert all(place in written for writer in writers for place in writer.acknowledged)
        assert [writer.unsettled for writer in writers] == [0, 0]
        client.append("later/1", small(2))
        assert absent.wait(2)
        assert absent.versions == [0, 1]
    finally:
        for follower, _ in followers:
            follower.end()
        for other in clients[1:]:
            other.close()


def test_broker_stopped_cleanly_and_restarted_leaves_no_gap(
    broker: BrokerProcess, client: Client, follow: Follow
) -> None:
    """T-52, T-22: live subscribers do not hold up the stop, and go on after the start."""
    followers = [(follow(client, markers=True, **scope), {**scope, "start": 0}) for scope in SCOPES]
    for _ in range(3):
        client.append("c/1", small(5))
        assert followers[0][0].wait(5)
        assert broker.stop() == 0
        broker.start()
        client.append("c/1", small(5))
    check(client, followers)


def test_subscribers_find_the_publishing_socket_where_a_restarted_broker_put_it(
    start_broker: Start, follow: Follow
) -> None:
    """T-52: over tcp it has another port after each start; heartbeats tell by their absence."""
    broker = start_broker("--heartbeat-ms", "200")
    broker.kill()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker.endpoint = f"tcp://127.0.0.1:{port}"
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("c/1", small(5))
        followers = [follow(client, markers=True, **scope) for scope in [*SCOPES, {"stream": "absent/1"}]]
        for follower in followers[:3]:
            assert follower.wait(5)
        publishing = client._hello().endpoints[0][1]
        broker.kill()
        with socket.socket() as taken:
            # So that the old port is certainly not given again.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", int(publishing.rpartition(":")[2])))
            broker.start()
            client.append("c/1", small(5))
            for follower in followers[:3]:
                assert follower.wait(10)
            assert client._hello().endpoints[0][1] != publishing
            for follower in followers:
                assert until(lambda f=follower: f.subscription._sub_endpoint == client._hello().endpoints[0][1], 5.0)
            client.append("absent/1", small(2))
            client.append("c/1", small(5))
            for follower in followers[:3]:
                assert follower.wait(15)
                assert [event.version for event in follower.events if event.stream == "c/1"] == list(range(15))
            assert followers[3].wait(2)


def test_a_subscription_made_while_the_broker_is_away_says_so_and_one_that_lives_waits(
    broker: BrokerProcess, client: Client, follow: Follow
) -> None:
    follower = follow(client)
    client.append("c/1", small(1))
    assert follower.wait(1)
    broker.kill()
    with Client(broker.endpoint, timeout=0.3) as other, pytest.raises(DeadlineExceeded):
        other.subscribe()
    assert follower.error is None
    broker.start()
    client.append("c/1", small(1))
    assert follower.wait(2)


# Stop and close


@pytest.mark.parametrize("scope", [*SCOPES, {"stream": "absent"}], ids=[*SCOPE_NAMES, "absent"])
@pytest.mark.parametrize("away", [False, True], ids=["broker there", "broker killed"])
def test_stop_from_another_thread_ends_the_iteration_at_once_and_keeps_the_position(
    broker: BrokerProcess, client: Client, scope: dict[str, Any], away: bool
) -> None:
    client.append("c/1", small(5))
    follower = Follower(client.subscribe(markers=True, **scope))
    assert until(lambda: follower.caught_up)
    position = 0 if scope.get("stream") == "absent" else 5
    if away:
        broker.kill()
        time.sleep(0.1)
    begun = time.monotonic()
    follower.end()
    assert time.monotonic() - begun < 1.0
    assert follower.error is None
    assert follower.subscription.position == position
    assert list(follower.subscription) == []


def test_stop_while_a_page_is_awaited_from_a_broker_that_does_not_answer(broker: BrokerProcess, client: Client) -> None:
    client.append("c/1", small(4_000, payload=b"x" * 1_000))
    sub = client.subscribe()
    broker.signal(signal.SIGSTOP)
    follower = Follower(sub)
    time.sleep(0.2)
    begun = time.monotonic()
    follower.end()
    assert time.monotonic() - begun < 1.0
    broker.signal(signal.SIGCONT)
    assert follower.positions == list(range(len(follower.events)))
    assert sub.position == len(follower.events)


def test_stop_at_any_moment_under_a_writer_ends_every_time_with_the_position_of_what_was_given(
    broker: BrokerProcess, client: Client
) -> None:
    client.append("c/1", small(500))
    writer = Writer(broker.endpoint, ["c/1"], 0.0)
    dice = random.Random(9)
    writer.start()
    try:
        for number in range(150):
            follower = Follower(client.subscribe(**SCOPES[number % 3]))
            time.sleep(dice.random() * 0.008)
            begun = time.monotonic()
            follower.end()
            assert time.monotonic() - begun < 1.0
            assert follower.error is None
            assert follower.positions == list(range(len(follower.events)))
            assert follower.subscription.position == len(follower.events)
    finally:
        writer.end()


def test_stop_inside_the_loop_keeps_what_was_not_delivered_for_the_next_subscription(client: Client) -> None:
    client.append("c/1", small(300))
    got = []
    with client.subscribe(stream="c/1") as sub:
        for event in sub:
            got.append(event.version)
            if len(got) == 100:
                sub.stop()
    with client.subscribe(stream="c/1", start=sub.position) as sub:
        got += [next(sub).version for _ in range(200)]
    assert got == list(range(300))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "under a writer"])
def test_close_of_the_client_ends_its_subscriptions_and_nothing_hangs(
    broker: BrokerProcess, client: Client, busy: bool
) -> None:
    writer = Writer(broker.endpoint, ["c/1"], 0.0)
    if busy:
        writer.start()
    for _ in range(10):
        other = Client(broker.endpoint)
        followers = [Follower(other.subscribe(**scope)) for scope in [*SCOPES, {"stream": "absent"}]]
        time.sleep(0.05)
        begun = time.monotonic()
        other.close()
        for follower in followers:
            follower.thread.join(3)
            assert not follower.thread.is_alive()
            assert follower.error is None or isinstance(follower.error, ClientClosed), follower.error
            assert follower.versions == list(range(len(follower.events)))
            follower.subscription.close()
        assert time.monotonic() - begun < 2.0
        with pytest.raises(ClientClosed):
            other.subscribe()
    if busy:
        writer.end()


def test_close_races_with_subscribe_and_leaves_no_thread_and_no_descriptor(broker: BrokerProcess) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def life() -> None:
        other = Client(broker.endpoint)
        other.head()
        outcome: list[BaseException] = []

        def many() -> None:
            try:
                for _ in range(1_000):
                    other.subscribe()
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=many, daemon=True)
        thread.start()
        time.sleep(0.01)
        other.close()
        thread.join(5)
        assert not thread.is_alive()
        assert [type(error) for error in outcome] == [ClientClosed], outcome

    life()
    gc.collect()
    before = descriptors()
    for _ in range(10):
        life()
    gc.collect()
    assert until(lambda: descriptors() <= before + 3, 5.0), (before, descriptors())


def test_a_thousand_subscriptions_that_end_leave_nothing_behind(broker: BrokerProcess, client: Client) -> None:
    client.append("c/1", small(3))
    for scope in SCOPES:
        with client.subscribe(**scope) as sub:
            next(sub)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1_000):
        with client.subscribe(markers=True, **SCOPES[number % 3]) as sub:
            assert [next(sub).position for _ in range(3)] == [0, 1, 2]
            if number % 10 == 0:
                client.append(f"n/{number}", Event("t"))
    for _ in range(10):
        sub = client.subscribe(start="end")
        client.append("c/1", Event("t"))
        assert next(sub).stream == "c/1"
        del sub  # without close
    gc.collect()
    assert until(lambda: len(os.listdir("/proc/self/fd")) <= before + 3, 5.0)
    assert until(lambda: client.info()["topics"] == 0, 5.0), client.info()["topics"]


def test_two_subscriptions_of_one_client_in_two_threads_beside_appends_in_a_third(
    client: Client, follow: Follow
) -> None:
    first, second = follow(client, category="c"), follow(client)
    for number in range(1_000):
        client.append(STREAMS[number % 4], small(1 + number % 3))
    log = list(client.read_all())
    for follower, expected in ((first, expected_of(log, 0, category="c")), (second, log)):
        assert follower.wait(len(expected))
        assert follower.events == expected


# Processes


def test_ctrl_c_while_waiting_leaves_the_loop_and_the_process_ends(
    broker: BrokerProcess, worker: Callable[..., Worker]
) -> None:
    for scope in SCOPES:
        subscriber = worker("one_interrupt", broker.endpoint, **scope)
        assert subscriber.saw("item")
        time.sleep(0.1)
        subscriber.signal(signal.SIGINT)
        assert subscriber.wait(3) != 0
        assert "KeyboardInterrupt" in subscriber.stderr()
        assert subscriber.stderr().count("Traceback") == 1, subscriber.stderr()


@pytest.mark.parametrize("markers", [False, True], ids=["events only", "with markers"])
@pytest.mark.parametrize("scope", [{}, {"category": "c"}], ids=["everything", "category"])
def test_ctrl_c_again_and_again_loses_and_doubles_nothing_for_who_iterates_on(
    broker: BrokerProcess, client: Client, worker: Callable[..., Worker], markers: bool, scope: dict[str, Any]
) -> None:
    """Interrupts during history and live, at random moments; the same subscription goes on."""
    client.append("c/1", small(2_000))
    for _ in range(4):
        client.append("c/1", small(2_000, payload=b"x" * 900))
    end = 16_000
    subscriber = worker(
        "interrupts", broker.endpoint, until=end, markers=markers, checkpoint_events=3, checkpoint_idle=0.01, **scope
    )
    assert subscriber.saw("begun")
    dice = random.Random(5)
    written = 10_000
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline and subscriber.process.poll() is None:
        subscriber.signal(signal.SIGINT)
        if written < end - 100:
            client.append("c/1", small(20))
            written += 20
        time.sleep(dice.random() * 0.006)
    while written < end:
        client.append("c/1", small(20))
        written += 20
    assert subscriber.saw("done", 20.0), subscriber.stderr()
    times, count, lost, in_order, caught_up, position = json.loads(subscriber.lines()[1].partition(" ")[2])
    assert times > 50
    assert (lost, in_order, count) == ([], True, end), (times, lost, count)
    assert position == end
    assert len(caught_up) == (1 if markers else 0)
    assert all(place >= 10_000 for place in caught_up), caught_up


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 1), ("exit", 3)])
@pytest.mark.parametrize("away", [False, True], ids=["broker there", "broker killed"])
def test_a_process_with_live_subscriptions_ends_when_it_wants_to(
    broker: BrokerProcess, client: Client, worker: Callable[..., Worker], how: str, code: int, away: bool
) -> None:
    client.append("c/1", small(10))
    leaver = worker("leave", broker.endpoint, how=how)
    assert leaver.saw("live"), leaver.stderr()
    if away:
        broker.kill()
    assert leaver.saw("leaving"), leaver.stderr()
    assert leaver.wait(5) == code, leaver.stderr()
    errors = leaver.stderr()
    assert errors.count("Traceback") == (1 if how == "raise" else 0), errors
    assert "Exception ignored" not in errors


def test_a_forked_child_has_no_subscription_and_its_end_harms_none(
    broker: BrokerProcess, client: Client, worker: Callable[..., Worker]
) -> None:
    parent = worker("fork", broker.endpoint, stream="c/1")
    assert parent.saw("ready", 10.0), (parent.lines(), parent.stderr())
    client.append("c/1", small(1))
    assert parent.wait(10) == 0, parent.stderr()
    assert parent.lines() == ["child UsedAfterFork", "child-code 0", "ready", "parent 0", "closed"]
