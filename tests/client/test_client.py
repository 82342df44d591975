"""The client against a real broker: threads, interrupts, forks, restarts, the end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from itertools import chain
from pathlib import Path

import pytest
from support.process import BrokerProcess, until
from tidelog import (
    CaughtUp,
    Checkpoint,
    Client,
    ClientClosed,
    DeadlineExceeded,
    Event,
    Lagged,
    Recorded,
    StreamNotFound,
    UsedAfterFork,
    Write,
)


def test_missing_broker_is_told_in_time_and_nothing_was_applied(folder: Path) -> None:
    began = time.monotonic()
    with Client(f"ipc://{folder}/none", timeout=0.3) as client, pytest.raises(DeadlineExceeded) as over:
        client.append("s", Event("t"))
    assert not over.value.maybe_applied
    assert str(folder) in over.value.text
    assert 0.25 < time.monotonic() - began < 2


def test_client_finds_a_broker_that_starts_later(folder: Path) -> None:
    (folder / "b").mkdir()
    broker = BrokerProcess(folder / "b")
    try:
        with Client(broker.endpoint, timeout=20) as client:
            call = client.append_nowait("s", Event("t"))
            broker.start()
            assert call.result().first_position == 0
    finally:
        broker.close()


def test_append_nowait_is_answered_though_nobody_polls(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        calls = [client.append_nowait("s", Event("t", b"%d" % n)) for n in range(100)]
        assert until(lambda: all(call.done() for call in calls))
        assert [call.result().first_version for call in calls] == list(range(100))


def test_append_nowait_waits_at_the_bound_and_loses_nothing(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=60) as client:
        calls = [client.append_nowait("s", Event("t")) for _ in range(10_000)]
        assert [call.result().first_position for call in calls] == list(range(10_000))


def test_result_that_times_out_leaves_the_call_alive(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=30) as client:
        client.head()
        broker.signal(signal.SIGSTOP)
        call = client.append_nowait("s", Event("t"))
        with pytest.raises(DeadlineExceeded):
            call.result(timeout=0.1)
        assert not call.done()
        broker.signal(signal.SIGCONT)
        assert call.result().first_position == 0


def test_threads_share_a_client_and_each_keeps_its_order(broker: BrokerProcess) -> None:
    places: list[list[int]] = [[] for _ in range(12)]
    with Client(broker.endpoint, timeout=60) as client:

        def write(index: int) -> None:
            for n in range(50):
                places[index].append(client.append(f"s/{index}", Event("t", b"%d" % n)).first_position)

        threads = [threading.Thread(target=write, args=(index,)) for index in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(chain(*places)) == list(range(600))
        assert all(mine == sorted(mine) for mine in places)


def test_reads_are_exact_in_both_directions(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        name = uuid.uuid4()
        client.append(name, [Event("even" if n % 2 == 0 else "odd", bytes(20_000)) for n in range(60)])
        for n in range(200):
            client.append(f"c/{n % 3}", Event("even" if n % 2 == 0 else "odd", b"%d" % n))
        everything = list(client.read_all())
        assert [e.position for e in everything] == list(range(260))
        for start, stop, limit, types in [
            (None, None, None, None),
            (5, 250, None, None),
            (50, 70, 13, "odd"),
            (None, None, 7, "even"),
            (260, None, 5, None),
        ]:
            want = [e for e in everything[start:stop] if types is None or e.type == types]
            assert list(client.read_all(start, stop, limit, types=types)) == want[:limit]
            assert list(client.read_all(start, stop, limit, True, types)) == want[::-1][:limit]
        assert [e.version for e in client.read_stream(name, 3, 6)] == [3, 4, 5]
        assert [e.stream for e in client.read_category("c", limit=3)] == ["c/0", "c/1", "c/2"]
        assert [row.stream for row in client.list_streams("c/")] == ["c/0", "c/1", "c/2"]
        assert client.stream_info(name).last_version == 59
        assert list(client.read_all(limit=0)) == list(client.read_all(start=2**63 - 1)) == []
        with pytest.raises(StreamNotFound):
            client.read_stream("never")
        assert list(client.read_category("never")) == []


def test_append_many_answers_each_write(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        client.append("a", Event("t"))
        first, second, third = client.append_many(
            [Write("b", [Event("t"), Event("t")]), Write("a", [], 0), Write("c", Event("t"))]
        )
        assert (first.first_position, first.last_position) == (1, 2)
        assert [each for each in second[:4] if each is not None] == []
        assert third.first_position == 3
        assert client.wait_durable(third) == 4


def test_interrupts_at_any_time_leave_the_client_usable(broker: BrokerProcess) -> None:
    script = f"""
import os, random, signal, threading, time
from tidelog import Client, Event
client = Client({broker.endpoint!r}, timeout=20)
def interrupt():
    for _ in range(80):
        time.sleep(0.002 + random.random() * 0.02)
        os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=interrupt)
other = []
def write():
    while thread.is_alive():
        other.append(client.append("other", Event("t")).first_position)
armed = False
def raise_inside(number, frame):
    # Python's own handler but for where it raises: an interrupt between two rounds would end this script.
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, raise_inside)
thread.start()
beside = threading.Thread(target=write)
beside.start()
caught = 0
over = False
while not over:
    try:
        armed = True
        over = not (beside.is_alive() or thread.is_alive())
        for call in [client.append_nowait("mine", Event("t")) for _ in range(20)]:
            call.result()
        list(client.read_stream("mine", limit=5))
        armed = False
    except KeyboardInterrupt:
        caught += 1
assert caught > 10, caught
head = client.head()
assert client.append("mine", Event("t")).first_position == head
assert [e.position for e in client.read_all()] == list(range(head + 1))
client.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_forked_child_is_told_and_the_parent_goes_on(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        client.append("s", Event("t"))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                client.append("s", Event("t"))
            except UsedAfterFork:
                client.close()
                code = 0
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.head() == 1


def test_close_is_quick_and_ends_calls_subscriptions_and_threads(broker: BrokerProcess) -> None:
    client = Client(broker.endpoint, timeout=30)
    sub = client.subscribe(start="end")
    ended: list[str] = []
    iterating = threading.Thread(target=lambda: ended.extend(map(repr, sub)))
    iterating.start()
    broker.signal(signal.SIGSTOP)
    call = client.append_nowait("s", Event("t"))

    def blocked() -> None:
        try:
            client.append("s", Event("t"))
        except ClientClosed:
            ended.append("closed")

    waiting = [threading.Thread(target=blocked) for _ in range(3)]
    for thread in waiting:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    client.close()
    for thread in [*waiting, iterating]:
        thread.join(5)
    assert time.monotonic() - began < 1.5
    assert ended == ["closed"] * 3
    assert isinstance(call.exception(), ClientClosed)
    with pytest.raises(ClientClosed):
        client.head()


def test_forgotten_client_leaves_no_thread_behind(broker: BrokerProcess) -> None:
    client = Client(broker.endpoint)
    client.append_nowait("s", Event("t")).result()
    del client
    gc.collect()
    assert until(lambda: all(thread.name != "tidelog-keeper" for thread in threading.enumerate()))


def test_health_answers_before_and_after_the_first_call(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        assert client.health().live
        client.append("s", Event("t"))
        assert client.health().ready


def test_wait_for_ends_with_the_deadline(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        client.append("s", Event("t"))
        assert client.head(wait_for=0) == 1
        with pytest.raises(DeadlineExceeded):
            client.read_all(wait_for=5, timeout=0.2)


def test_subscription_gives_history_one_caught_up_then_live_with_checkpoints(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        for n in range(30):
            client.append("c/1", Event("t", b"%d" % n))
        with client.subscribe(category="c", markers=True, checkpoint_events=10, checkpoint_idle=0.3) as sub:
            history = [next(sub) for _ in range(31)]
            assert [e.position for e in history[:30]] == list(range(30))
            assert history[30] == CaughtUp(30)
            client.append("c/2", [Event("t") for _ in range(25)])
            live = [next(sub) for _ in range(27)]
            assert [at for at, each in enumerate(live) if isinstance(each, Checkpoint)] == [10, 21]
            assert live[10] == Checkpoint(40)
            assert next(sub) == Checkpoint(55)
            assert sub.position == 55


def test_subscription_to_an_unknown_stream_is_caught_up_and_gets_version_0(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client, client.subscribe(stream="later", markers=True) as sub:
        assert next(sub) == CaughtUp(0)
        client.append("other", Event("t"))
        client.append("later", [Event("a"), Event("b")])
        assert [next(sub).type, next(sub).type] == ["a", "b"]
        assert sub.position == 2


def test_subscription_from_beyond_the_head_gets_nothing_below_its_start(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client, client.subscribe(start=10, markers=True) as sub:
        assert next(sub) == CaughtUp(10)
        client.append("s", [Event("t") for _ in range(8)])
        client.append("s", [Event("t") for _ in range(8)])
        assert [next(sub).position for _ in range(6)] == list(range(10, 16))


def test_position_moves_over_filtered_events(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client, client.subscribe(types="wanted", markers=True, checkpoint_idle=0.2) as sub:
        assert isinstance(next(sub), CaughtUp)
        client.append("s", [Event("other"), Event("wanted"), Event("other")])
        seen = next(each for each in sub if isinstance(each, Recorded))
        assert (seen.position, sub.position) == (1, 2)
        while (marker := next(sub)).position != 3:
            assert isinstance(marker, Checkpoint)


def test_slow_subscriber_follows_by_reading_or_is_told(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=60) as client:
        follower, strict = client.subscribe(start="end"), client.subscribe("s", start="end", on_lag="raise")
        client.append("s", Event("t"))
        assert next(follower).position == next(strict).position == 0
        client.append("s", Event("t"))
        assert next(follower).position == next(strict).position == 1
        for _ in range(200):
            for call in [client.append_nowait("s", Event("t", bytes(20_000))) for _ in range(40)]:
                call.result()
        assert [next(follower).position for _ in range(8_000)] == list(range(2, 8_002))
        with pytest.raises(Lagged) as lagged:
            deque(strict, 0)
        assert lagged.value.position == strict.position


def test_subscriptions_and_writers_survive_kill_and_restart(broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=60) as client:
        got: list[int] = []
        sub = client.subscribe(category="c")
        thread = threading.Thread(target=lambda: got.extend(e.position for e in sub))
        thread.start()
        acked = []
        for round_ in range(3):
            calls = [client.append_nowait(f"c/{n}", Event("t")) for n in range(300)]
            if round_ < 2:
                broker.kill()
                broker.start()
            acked += [call.result().first_position for call in calls]
        assert sorted(acked) == list(range(900))
        assert until(lambda: len(got) == 900)
        sub.stop()
        thread.join(5)
        assert got == list(range(900))


def test_stop_from_another_thread_ends_the_iteration(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        sub = client.subscribe()
        threading.Timer(0.1, sub.stop).start()
        assert list(sub) == []


def test_import_needs_no_zmq_until_a_client_is_made() -> None:
    script = "import sys, tidelog; assert 'zmq' not in sys.modules; tidelog.Client; assert 'zmq' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
