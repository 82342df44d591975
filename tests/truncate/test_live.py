"""Truncations while others append, read, follow, check and save: who is behind is told so, all others notice nothing (T-40)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.process import BrokerProcess, until
from tidelog import Client, Event, TidelogError, Truncated
from tidelog.subscription import Subscription
from truncate.conftest import FLAGS, Filled, cleared

PATIENCE_S = 60.0


class Writer(threading.Thread):
    """Appends until it is told to end: two categories in turn, numbered payloads."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.over = threading.Event()
        self.error: BaseException | None = None
        self._endpoint = endpoint

    def run(self) -> None:
        try:
            with Client(self._endpoint, timeout=PATIENCE_S) as client:
                while not self.over.is_set():
                    number = self.count
                    stream = f"{'even' if number % 2 == 0 else 'odd'}/{number % 5}"
                    client.append(stream, Event("t", b"%d " % number + bytes(3_000)))
                    self.count = number + 1
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.over.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def number_of(payload: bytes) -> int:
    return int(payload.partition(b" ")[0])


class Follower(threading.Thread):
    """A live subscriber, to everything or a category, that keeps the numbers it got."""

    def __init__(self, endpoint: str, category: str | None) -> None:
        super().__init__(daemon=True)
        self._client = Client(endpoint, timeout=PATIENCE_S)
        self.sub = self._client.subscribe(category=category)
        self.numbers: list[int] = []
        self.error: TidelogError | None = None

    def run(self) -> None:
        try:
            for event in self.sub:
                self.numbers.append(number_of(event.payload))
        except TidelogError as error:
            self.error = error

    def end(self) -> None:
        self.sub.stop()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        self.sub.close()
        self._client.close()


@pytest.mark.timeout(200)
def test_live_subscribers_appends_checkpoints_and_checks_go_on_while_segments_go(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    broker = start_broker(*FLAGS, "--checkpoint-batches", "1024", "--checkpoint-seconds", "1")
    writer = Writer(broker.endpoint)
    followers = {category: Follower(broker.endpoint, category) for category in (None, "even", "odd")}
    for follower in followers.values():
        follower.start()
    writer.start()
    firsts = [0]
    checks = 0
    with Client(broker.endpoint, timeout=PATIENCE_S) as client:
        state, report = client.verify(begin=True)
        for _ in range(6):
            began = writer.count
            assert until(lambda began=began: writer.count > began + 200 or writer.error, PATIENCE_S)
            wanted = min(follower.sub.position for follower in followers.values())
            firsts.append(client.truncate_before(wanted))
            state, report = client.verify()
            if state != "running":
                assert state == "done"
                assert report is not None
                assert report["verdict"] == "healthy", report
                checks += 1
                client.verify(begin=True)
            positions = [event.position for event in client.read_all(start=firsts[-1], limit=50)]
            assert positions == list(range(firsts[-1], firsts[-1] + len(positions)))
            with pytest.raises(Truncated):
                list(client.read_all(start=firsts[-1] - 1))
        writer.end()

        def checked() -> bool:
            nonlocal state, report
            state, report = client.verify()
            return state != "running"

        assert until(checked, PATIENCE_S)
        assert report is not None
        assert (state, report["verdict"]) == ("done", "healthy")
        assert firsts == sorted(firsts)
        assert firsts[-1] > 600
        head = client.head()
        assert head == writer.count
        for category, follower in followers.items():
            right = [number for number in range(head) if category is None or (number % 2 == 0) == (category == "even")]
            assert until(lambda right=right, follower=follower: len(follower.numbers) >= len(right), 20.0), (
                follower.error
            )
            follower.end()
            assert follower.error is None
            assert follower.numbers == right
        assert cleared(broker, client, firsts[-1]), broker.stderr()
        assert [event.position for event in client.read_all()] == list(range(firsts[-1], head))
    assert broker.stop() == 0
    assert broker.stderr() == ""


def drain(sub: Subscription, seen: list[int]) -> None:
    for event in sub:
        seen.append(event.position)


def test_a_subscriber_that_catches_up_below_it_is_told_and_one_at_the_head_goes_on(small: BrokerProcess) -> None:
    with Client(small.endpoint, timeout=30.0) as client:
        for number in range(100):
            client.append("big/1", [Event("t", b"%d " % number + bytes(25_000)) for _ in range(2)])
        head = client.head()
        behind = [client.subscribe(), client.subscribe(category="big"), client.subscribe(stream="big/1")]
        at_head = [client.subscribe(start="end"), client.subscribe(category="big", start="end")]
        positions = [[next(sub).position] for sub in behind]
        first = client.truncate_before(head - 3)
        assert first == head - 4
        assert cleared(small, client, first), small.stderr()
        for sub, seen in zip(behind, positions, strict=True):
            # What had been asked for ahead still comes, then the truncation is told, for ever.
            with pytest.raises(Truncated) as refused:
                drain(sub, seen)
            assert refused.value.first_available == first
            assert seen == list(range(len(seen)))
            assert sub.position == len(seen) < first
            with pytest.raises(Truncated):
                next(sub)
            sub.close()
        for start in (0, first - 1):
            with pytest.raises(Truncated) as refused:
                client.subscribe(start=start)
            assert refused.value.first_available == first
        fresh = client.subscribe()
        assert next(fresh).position == first
        fresh.close()
        client.append("big/1", Event("t", b"live"))
        for sub in at_head:
            assert next(sub).payload == b"live"
            sub.close()


def test_where_the_base_can_not_be_written_the_broker_goes_on_and_a_later_attempt_works(small: BrokerProcess) -> None:
    filled = Filled()
    with Client(small.endpoint, timeout=30.0) as client:
        filled.fill(client, 250)
        places = in_the_way(small.data)
        first = client.truncate_before(filled.starts[-1])
        assert until(lambda: "could not be saved" in small.stderr(), 30.0), small.stderr()
        segments = client.info()["segments"]
        filled.fill(client, 5)
        assert [event.position for event in client.read_all()] == list(range(first, len(filled.events)))
        assert (client.health().live, client.health().ready) == (True, True)
        assert client.info()["segments"] == segments > 1
        for place in places:
            place.rmdir()
        client.checkpoint(begin=True)
        assert cleared(small, client, first), small.stderr()
        assert client.checkpoint()[0] == "done"
        assert [event.position for event in client.read_all()] == list(range(first, len(filled.events)))
    small.kill()
    small.start()
    with Client(small.endpoint, timeout=30.0) as client:
        assert [event.position for event in client.read_all()] == list(range(first, len(filled.events)))


def in_the_way(data: Path) -> list[Path]:
    """Folders with the names that a base would be written under; a segment's header says which group it begins with."""
    made = []
    for path in sorted(data.glob("0*"))[1:]:
        with path.open("rb") as file:
            group = int.from_bytes(file.read(56)[48:], "little") - 1
        made.append(data / f"base-{group:020d}")
        made[-1].mkdir()
    return made
