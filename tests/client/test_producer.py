"""Sessions over a link that breaks and a broker that dies (spec §5): whatever happens, the log and the answers agree.

Random schedules of appends, faults and waits; at the end the faults stop, everything settles, and the log is compared with what
every caller was told. TIDELOG_SESSION_WORLDS says how many of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import msgpack
import pytest
from client.producer_world import SimClient, World, worlds
from tidelog import Appended, Event, Write
from tidelog.batch import Batch
from tidelog.errors import (
    DeadlineExceeded,
    NotApplied,
    SerialGap,
    SerialReused,
    SessionFenced,
    StorageFull,
    TidelogError,
    WrongExpectedVersion,
)
from tidelog.messages import ANY, NO_STREAM
from tidelog.session import Session

SEEDS = int(os.environ.get("TIDELOG_SESSION_WORLDS", "100"))
STEPS = 60
LONG_STEPS, LONG_SEEDS = 400, 10
FAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "broken links": {"broken_link": 0.03},
    "kills": {"killed": 0.01, "broken_link": 0.01},
    "stops": {"stopped": 0.01},
    "a full disk": {"full_disk": 0.02},
    "failed syncs": {"failed_sync": 0.01},
    "everything": {
        "broken_link": 0.01, "killed": 0.004, "stopped": 0.003, "full_disk": 0.008, "failed_sync": 0.004, "silence": 0.02
    },
}  # fmt: skip


class Told(NamedTuple):
    """One append as its caller knows it: `future` while nobody waited, else the answer or the error."""

    token: bytes
    holder: int
    future: Any


class Caller:
    """Whoever uses a session, and remembers what he was told."""

    def __init__(self, world: World, client: SimClient, session: Session, number: int, told: list[Told]) -> None:
        self.world, self.client, self.session, self.number, self.told = world, client, session, number, told
        self.random = Random(world.random.random())
        self.kept: set[bytes] = set()
        """What must be in the log: it was answered, and a flush behind it went well."""
        self.given_up: set[bytes] = set()
        """What a flush raised for."""

    def act(self) -> None:
        """Do one thing."""
        failure = self.session._producer.failure
        if failure is not None and not isinstance(failure, SessionFenced):
            try:
                self.session = self.client.session("p", resume=self.session.epoch, timeout=60.0)
            except (DeadlineExceeded, StorageFull, SessionFenced):
                self.world.run(10)
        chance = self.random.random()
        if chance < 0.75:
            self._append()
        elif chance < 0.85:
            waiting = [row.future for row in self.told if row.holder == self.number and not row.future.done()]
            if waiting:
                self.random.choice(waiting).exception()
        elif chance < 0.9:
            self._flush(self.random.choice((0.01, 1.0, 20.0)))
        else:
            self.world.run(self.random.randrange(30))

    def _append(self) -> None:
        token = b"%d.%d" % (self.number, len(self.told))
        durability = self.random.choice(("durable", "durable", "accepted"))
        timeout = self.random.choice((0.02, 0.3, 5.0, 60.0))
        expected = NO_STREAM if self.random.random() < 0.08 else ANY
        first_writes = ("there", Event("t", token), expected)
        try:
            if self.random.random() < 0.9:
                future: Any = self.session.append_nowait(*first_writes, durability, timeout)  # type: ignore[arg-type]
            else:
                writes = [Write(*first_writes), Write("nothing", [], NO_STREAM)]
                future = self.session.append_many(writes, durability, timeout)  # type: ignore[arg-type]
        except TidelogError as error:
            future = Ended(error)
        if isinstance(future, list):
            future = Ended(None, future[0])
        self.told.append(Told(token, self.number, future))

    def _flush(self, timeout: float) -> None:
        mine = [row for row in self.told if row.holder == self.number]
        try:
            self.client.flush(timeout)
        except DeadlineExceeded:
            self.world.happened.append("flush: DeadlineExceeded")
            return
        except (NotApplied, SessionFenced, StorageFull) as error:
            self.world.happened.append(f"flush: {type(error).__name__}")
            self.given_up.update(row.token for row in mine)
            return
        assert all(row.future.done() for row in mine)
        self.kept.update({row.token for row in mine if row.future.exception() is None} - self.given_up)

    def settle(self) -> None:
        """Wait for everything."""
        for row in self.told:
            if row.holder == self.number:
                row.future.exception()
        self._flush(600.0)


class Ended:
    """An append whose caller waited."""

    def __init__(self, error: TidelogError | None, result: Appended | None = None) -> None:
        self._error, self._result = error, result

    def done(self) -> bool:
        return True

    def exception(self) -> TidelogError | None:
        return self._error

    def result(self) -> Appended:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


@pytest.fixture(scope="module")
def new_world() -> Iterator[Callable[[int], World]]:
    with worlds() as make:
        yield make


def tokens(batches: list[Batch]) -> list[tuple[bytes, int, tuple[str, int, int] | None]]:
    """(token, position, session) of every event."""
    return [
        (payload, batch.first_position + place, batch.session)
        for batch in batches
        for place, payload in enumerate(msgpack.unpackb(batch.region)[3])
    ]


def agree(log: list[Batch], callers: list[Caller], told: list[Told]) -> None:
    """The log holds what was told, and nothing that was denied."""
    rows = tokens(log)
    places = {token: place for token, place, _ in rows}
    assert len(places) == len(rows), "an append is in the log twice"
    for name in {row[2][0] for row in rows if row[2]}:
        steps = [row[2][1:] for row in rows if row[2] and row[2][0] == name]
        assert [serial for _, serial in steps] == list(range(1, len(steps) + 1))
        assert [epoch for epoch, _ in steps] == sorted(epoch for epoch, _ in steps)
    for caller in callers:
        assert caller.kept <= places.keys(), f"flushed and not in the log: {sorted(caller.kept - places.keys())}"
        mine = [row.token for row in told if row.holder == caller.number]
        found = [token for token, _, _ in rows if token in set(mine)]
        order = {token: number for number, token in enumerate(mine)}
        assert found == sorted(found, key=order.__getitem__), "not in the order of the calls"
    for token, holder, future in told:
        error = future.exception()
        assert not isinstance(error, SerialGap | SerialReused), (token, error)
        if error is None:
            appended = future.result()
            if appended.durability == "durable":
                assert places.get(token) == appended.first_position, (token, appended)
            else:
                owner = callers[holder]
                assert token in owner.kept | owner.given_up, (token, "was neither flushed nor refused")
        elif not error.maybe_applied:
            assert token not in places, (token, error)


def play(world: World, faults: dict[str, float], steps: int, holders: int = 1) -> tuple[list[Caller], list[Told]]:
    """Appends under faults, then calm."""
    world.start()
    client = world.client()
    client.append("there", Event("t", b"first"), timeout=60.0)
    told: list[Told] = []
    callers = [Caller(world, client, client.session("p", timeout=60.0), 0, told)]
    world.faults = faults
    for step in range(steps):
        if holders > len(callers) and step == steps * len(callers) // holders:
            client = world.client()
            try:
                session = client.session("p", timeout=60.0)
            except (DeadlineExceeded, StorageFull):
                continue
            callers.append(Caller(world, client, session, len(callers), told))
        world.random.choice(callers).act()
    world.calm()
    for caller in callers:
        caller.settle()
    return callers, told


def check(new_world: Callable[[int], World], kind: str, seeds: int, steps: int, holders: int = 1) -> None:
    for seed in range(seeds):
        world = new_world(seed)
        callers, told = play(world, FAULTS[kind], steps, holders)
        try:
            agree(world.log(), callers, told)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("kind", FAULTS)
def test_log_and_answers_agree_whatever_happens(new_world: Callable[[int], World], kind: str) -> None:
    check(new_world, kind, SEEDS, STEPS)
    check(new_world, kind, LONG_SEEDS, LONG_STEPS)


def test_an_older_holder_is_fenced_and_nothing_of_it_comes_behind_the_newer(new_world: Callable[[int], World]) -> None:
    check(new_world, "everything", SEEDS, STEPS, holders=3)


def test_a_refusal_ends_what_was_sent_behind_it_and_the_session_goes_on_from_there(
    new_world: Callable[[int], World],
) -> None:
    """T-50"""
    world = new_world(1)
    world.start()
    client = world.client()
    session = client.session("p")
    ok = session.append_nowait("s", Event("t", b"1"))
    refused = session.append_nowait("s", Event("t", b"2"), NO_STREAM)
    behind = [session.append_nowait("s", Event("t", b"%d" % number)) for number in (3, 4)]
    assert ok.result().first_version == 0
    assert isinstance(refused.exception(), WrongExpectedVersion)
    for future, serial in zip(behind, (3, 4), strict=True):
        error = future.exception()
        assert isinstance(error, NotApplied)
        assert error.serial == serial
    assert session.append("s", Event("t", b"5")).first_version == 1
    assert [row[0] for row in tokens(world.log())] == [b"1", b"5"]
    assert session.last_serial == 2


def test_old_copies_from_a_dead_connection_are_dropped_whenever_they_come(new_world: Callable[[int], World]) -> None:
    """T-59: k and k+1 are cut off, k is refused, its cause is gone, and then the dead connection speaks."""
    world = new_world(2)
    world.start()
    client, other = world.client(), world.client()
    session = client.session("p")
    other.append("s", Event("t", b"in the way"))
    refused = session.append_nowait("s", Event("t", b"k"), NO_STREAM)
    behind = session.append_nowait("s", Event("t", b"k+1"))
    client.link.step()
    dead = client.link.connection
    assert dead is not None
    frames = list(dead.to_broker)
    assert frames
    dead.to_broker.clear()
    client.link.break_off()
    assert isinstance(refused.exception(), WrongExpectedVersion)
    assert isinstance(behind.exception(), NotApplied)
    session.append("s2", Event("t", b"instead"))
    assert world.life is not None
    for frame in reversed(frames):
        world.life.router.bring(dead.identity, frame)
    session.append("s2", Event("t", b"next"))
    assert [row[0] for row in tokens(world.log())] == [b"in the way", b"instead", b"next"]


def test_a_call_in_doubt_holds_up_the_next_until_the_broker_has_told(new_world: Callable[[int], World]) -> None:
    world = new_world(3)
    world.start()
    client = world.client(timeout=30.0)
    session = client.session("p")
    session.append("s", Event("t", b"1"))
    doubtful = session.append_nowait("s", Event("t", b"2"), timeout=0.001)
    client.link.step()
    world.now += 1.0
    error = doubtful.exception()
    assert isinstance(error, DeadlineExceeded)
    assert error.maybe_applied
    world.faults = {"killed": 1.0}
    with pytest.raises(DeadlineExceeded) as caught:
        session.append("s", Event("t", b"3"), timeout=0.5)
    assert not caught.value.maybe_applied  # it was never sent
    world.calm()
    session.append("s", Event("t", b"4"))
    found = [row[0] for row in tokens(world.log())]
    assert [token for token in found if token != b"2"] == [b"1", b"4"]
    assert found == sorted(found)
