"""Faults planted in a real broker are noticed from outside: by what its clients see while a sync is held or fails, and
behind a kill. Each check finds nothing wrong with the broker that users run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgpack
import pytest
import zmq
from e2e.raw_client import NO_STREAM, Append, Appended, RawClient, Refused, event
from support.mutant_broker import BROKER_MUTANTS, MutantBroker
from support.mutants import CAUGHT
from support.process import until
from tidelog import Client

NOTHING_S, SOMETHING_S = 0.5, 20.0
"""How long a healthy broker is watched doing nothing wrong, and how long a mutant may take to do it."""
EXIT_IO = 74
OK, STORAGE_FULL, UNKNOWN = 0, 8, 20

Check = Callable[[MutantBroker, float], str]
"""(started broker, patience) → what was wrong with it, or ""."""


def nothing_is_seen_before_the_sync(broker: MutantBroker, patience: float) -> str:
    """One append, its data-sync held: no reply, nothing published, the head where it was; then all of it."""
    with ExitStack() as stack:
        raw = stack.enter_context(closing(RawClient(broker.endpoint)))
        everything = stack.enter_context(closing(raw.subscribe()))
        asking = stack.enter_context(Client(broker.endpoint))
        assert until(lambda: everything.poll(0) and everything.recv_multipart()[0] == b"H")
        broker.set("hold-datasync")
        raw.send_append(raw.prepare(("s/1", NO_STREAM, [event("a", b"x")])))
        assert until(lambda: broker.is_held)
        seen: list[str] = []

        def something() -> bool:
            if raw.receive(0):
                seen.append("acknowledged while the sync was held")
            while everything.poll(0):
                if everything.recv_multipart()[0] == b"A":
                    seen.append("published while the sync was held")
            if asking.health().head:
                seen.append("the head advanced while the sync was held")
            return bool(seen)

        until(something, patience)
        broker.unset("hold-datasync")
        if seen:
            return seen[0]
        assert [reply[1] for reply in receive(raw, 1)] == [OK]
        assert until(lambda: everything.poll(0) and everything.recv_multipart()[0] == b"A")
    return ""


def all_of_a_group_whose_sync_fails_learn_that_nobody_knows(broker: MutantBroker, patience: float) -> str:
    """An append, its retry and one that contradicts it are one group, and its sync fails: none is told yes or no."""
    with closing(RawClient(broker.endpoint)) as raw:
        keep_what_came(raw)
        broker.set("fail-datasync")
        original = raw.prepare(("s/1", NO_STREAM, [event("a", b"original")]))
        contradicting = raw.prepare(("s/1", NO_STREAM, [event("a", b"contradicts")]))
        send_together(raw, original, original, contradicting)
        codes = [reply[1] for reply in receive(raw, 3)]
        for name, code in zip(("the append", "its retry", "what contradicts it"), codes, strict=True):
            if code != UNKNOWN:
                return f"{name} was answered with code {code} though the sync failed"
        assert broker.wait() == EXIT_IO
    return ""


def storage_full_waits_for_the_rollback_to_be_durable(broker: MutantBroker, patience: float) -> str:
    """No room for an append, and the sync of its rollback held: no answer yet; then StorageFull."""
    with closing(RawClient(broker.endpoint)) as raw:
        broker.set("fail-write", "hold-sync")
        append = raw.prepare(("s/1", NO_STREAM, [event("a", b"x")]))
        raw.send_append(append)
        early = raw.receive(patience)
        broker.unset("fail-write", "hold-sync")
        if early:
            return f"answered with code {early[0][0][1]} before the rollback was synced"
        assert [reply[1] for reply in receive(raw, 1)] == [STORAGE_FULL]
    return ""


def storage_full_means_that_it_was_never_there(broker: MutantBroker, patience: float) -> str:
    """Refused for want of room, then sent again: it is taken, as if for the first time."""
    with closing(RawClient(broker.endpoint)) as raw:
        broker.set("fail-write")
        append = raw.prepare(("s/1", NO_STREAM, [event("a", b"x")]))
        raw.send_append(append)
        assert [reply[1] for reply in receive(raw, 1)] == [STORAGE_FULL]
        broker.unset("fail-write")
        try:
            if raw.resend(append).duplicate:
                return "called a duplicate after StorageFull"
        except Refused as error:
            return f"refused after StorageFull: {error}"
    return ""


def what_was_acknowledged_is_there_behind_a_kill(broker: MutantBroker, patience: float) -> str:
    """Appends of one and three streams, a race for one version; a kill between write and sync; all sent once more."""
    with closing(RawClient(broker.endpoint)) as one, closing(RawClient(broker.endpoint)) as two:
        kept: list[tuple[Append, Appended]] = []
        for number in range(6):
            writes = [(f"s/{stream}", None, [event("a", b"%d" % number)]) for stream in range(1 + number % 2 * 2)]
            append = one.prepare(*writes)
            kept.append((append, one.resend(append)))
        if wrong := compare(one, kept):
            return wrong
        send_together(one, *(one.prepare(("race", NO_STREAM, [event("a", b"race")])) for _ in range(2)))
        if [reply[1] for reply in receive(one, 2)].count(OK) != 1:
            return "of two appends that expect no stream, not exactly one was acknowledged"
        broker.set("hold-datasync")
        last = two.prepare(*((f"s/{stream}", None, [event("a", b"last")]) for stream in range(3)))
        two.send_append(last)
        assert until(lambda: broker.is_held)
        broker.kill()
        broker.unset("hold-datasync")
        broker.start()
        for raw in (one, two):
            raw.reconnect()
        two.resend(last)
        if not two.resend(last).duplicate:
            return "an append sent twice was stored twice"
        for append, before in kept:
            again = one.resend(append)
            if not again.duplicate or again.places != before.places:
                return "a known append was stored again behind a restart"
        return compare(one, kept)


def keep_what_came(raw: RawClient) -> None:
    """Replies must be readable behind the broker's end: a socket with ZMQ_IMMEDIATE drops them with the connection."""
    raw.close()
    raw.socket = zmq.Context.instance().socket(zmq.DEALER)
    raw.socket.setsockopt(zmq.LINGER, 0)
    raw.socket.connect(raw.endpoint)
    raw.incarnation += 1
    raw.hello()


def send_together(raw: RawClient, *appends: Append) -> None:
    """In one message, so that they are one group."""
    requests = [[3, 1_000 + i, 0, None, 0, None, None, append.writes] for i, append in enumerate(appends)]
    raw.send([msgpack.packb(requests)])


def receive(raw: RawClient, due: int) -> list[list[object]]:
    """So many replies, by their request ids."""
    replies: list[list[object]] = []
    while len(replies) < due and (message := raw.receive(SOMETHING_S)):
        replies += message[0]
    assert len(replies) == due
    return sorted(replies, key=lambda reply: reply[0])  # type: ignore[arg-type, return-value]


def compare(raw: RawClient, kept: list[tuple[Append, Appended]]) -> str:
    """The log against what was acknowledged."""
    log = {found.position: found for found in raw.read()}
    for append, appended in kept:
        for (stream, _, region), place in zip(append.writes, appended.places, strict=True):
            found = log.get(place[0])
            if found is None or found.stream != stream or found.version != place[2] or found.id not in region:
                return f"an acknowledged event of {stream} does not stand at position {place[0]}"
    return ""


CHECKS: dict[Check, list[str]] = {
    nothing_is_seen_before_the_sync: [
        "an append is acknowledged before the sync",
        "a group is published before the sync",
        "index and head advance before the sync",
    ],
    all_of_a_group_whose_sync_fails_learn_that_nobody_knows: [
        "a group whose sync failed is acknowledged",
        "a duplicate of a pending append does not share its fate",
        "a refusal because of a pending append does not share its fate",
    ],
    storage_full_waits_for_the_rollback_to_be_durable: [
        "a rollback is answered before its sync",
    ],
    storage_full_means_that_it_was_never_there: [
        "ids of a refused group stay known",
    ],
    what_was_acknowledged_is_there_behind_a_kill: [
        "known ids are not restored at start",
        "the third batch of an append is dropped",
        "versions of the group being staged are forgotten",
    ],
}


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[str], MutantBroker]]:
    """start(mutant) → a running broker, ended with the test."""
    started: list[MutantBroker] = []

    def start(mutant: str) -> MutantBroker:
        broker = MutantBroker(folder, mutant)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_real_broker_passes(start: Callable[[str], MutantBroker], check: Check) -> None:
    assert check(start(""), NOTHING_S) == ""


@pytest.mark.parametrize(
    ("check", "mutant"), [(check, mutant) for check, mutants in CHECKS.items() for mutant in mutants]
)
def test_fault_in_the_broker_is_seen_from_outside(
    start: Callable[[str], MutantBroker], check: Check, mutant: str
) -> None:
    wrong = check(start(mutant), SOMETHING_S)
    assert wrong
    CAUGHT[mutant] = f"{check.__name__}: {wrong}"


def test_every_planted_fault_has_its_check() -> None:
    assert sorted(itertools.chain(*CHECKS.values())) == sorted(BROKER_MUTANTS)
