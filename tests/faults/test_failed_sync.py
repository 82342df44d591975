"""A data-sync that fails (T-12, T-58): nobody is told yes, nothing is published, exit 74, and the log stays one log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

import msgpack
import pytest
from e2e.raw_client import EXISTS, NO_STREAM, event
from support.fault_phases import LastWordClient
from support.process import BrokerProcess, until
from support.strace import Attached, need_strace
from tidelog import Client, DeadlineExceeded, Event, OutcomeUnknown, TidelogError
from tidelog_broker.core.format import BLOCK, MARK_BYTES, Mark

EXIT_IO = 74


@pytest.fixture
def broker(new_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker without idle marks: its first sync from now on is the next group's."""
    made = new_broker(idle_mark_ms=3_600_000)
    made.start()
    return made


def marked(broker: BrokerProcess) -> int:
    """The group that the newest mark names."""
    marks = (broker.data / "marks").read_bytes()
    return max(mark.group for at in (0, BLOCK) if (mark := Mark.unpack(marks[at : at + MARK_BYTES])))


def read_positions(broker: BrokerProcess) -> dict[int, tuple[str, bytes]]:
    with Client(broker.endpoint, timeout=20.0) as client:
        return {found.position: (found.stream, found.id.bytes) for found in client.read_all()}


def test_all_callers_of_the_group_are_told_unknown_nothing_is_published_and_the_broker_ends_with_74(
    broker: BrokerProcess,
) -> None:
    """T-12"""
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(LastWordClient(broker.endpoint))) for _ in range(6)]
        reader = stack.enter_context(closing(LastWordClient(broker.endpoint)))
        everything = stack.enter_context(closing(reader.subscribe()))
        raws[0].append(("s", NO_STREAM, [event("a", b"durable")]))
        assert until(lambda: everything.poll(0) and everything.recv_multipart()[0] == b"H")
        before = read_positions(broker)
        # The gate's write is held long enough for all six to wait behind it; the sync of their group then fails.
        # (Without a clock, but not with a disk's own error: test_held_sync.py.)
        with Attached(broker, "pwrite64:delay_enter=2000000:when=1", "fdatasync:error=EIO:when=2"):
            reader.send_append(reader.prepare(("gate", None, [event("a", b"gate")])))
            with Client(broker.endpoint) as asking:
                assert until(lambda: asking.health().sync_us > 0)
            appends = [raw.prepare((f"t/{i}", None, [event("a", b"lost?")])) for i, raw in enumerate(raws)]
            for raw, append in zip(raws, appends, strict=True):
                raw.send_append(append)
            gate = reader.receive(10)
            assert gate
            assert gate[0][0][1] == 0
            for raw in raws:
                told = raw.receive(10)
                assert told, "a caller of the failed group was told nothing"
                assert [reply[1] for reply in told[0]] == [20]
            assert broker.wait() == EXIT_IO
        assert "data-sync of group" in broker.stderr()
        assert len(broker.stderr().strip().splitlines()) == 1
        published = b""
        while everything.poll(300):
            topic, body = everything.recv_multipart()
            published += body if topic == b"A" else b""
        assert b"lost?" not in published
        broker.start()
        after = read_positions(broker)
        known = {**before, gate[0][0][4]: ("gate", after[gate[0][0][4]][1])}
        assert {position: after[position] for position in known} == known
        assert sorted(after) == list(range(len(after)))
        # Sent again with the same ids, each settles: it is there once, whichever way it went.
        for raw, append in zip(raws, appends, strict=True):
            raw.reconnect()
            first = raw.resend(append)
            again = raw.resend(append)
            assert again.duplicate
            assert again.places == first.places
        settled = read_positions(broker)
        assert {position: settled[position] for position in after} == after
        assert len({event_id for _, event_id in settled.values()}) == len(settled) == 2 + 6


@pytest.mark.parametrize("comes_back", [False, True], ids=["the broker stays away", "the broker comes back"])
def test_the_library_settles_an_append_whose_sync_failed_or_says_that_it_may_be_applied(
    broker: BrokerProcess, comes_back: bool
) -> None:
    """T-12"""
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"before"))
        with Attached(broker, "fdatasync:error=EIO:when=1"):
            patience = 20.0 if comes_back else 2.0
            calls = [client.append_nowait("s", Event("a", b"%d" % i), timeout=patience) for i in (1, 2)]
            told = []
            if not comes_back:
                for call in calls:
                    with pytest.raises((DeadlineExceeded, OutcomeUnknown)) as failed:
                        call.result()
                    told.append(failed.value.maybe_applied)
                # The second may not have been sent before the first one's sync failed: then it certainly is not applied.
                assert told[0]
            assert broker.wait() == EXIT_IO
        broker.start()
        if comes_back:
            rows = [call.result() for call in calls]
            assert [row.first_version for row in rows] == [1, 2]
            assert [found.payload for found in client.read_stream("s")] == [b"before", b"1", b"2"]
        else:
            found = [found.payload for found in client.read_stream("s")]
            assert found[0] == b"before"
            assert found[1:] in ([], [b"1"], [b"1", b"2"] if told[1] else [b"1"])


def test_no_position_ever_names_two_events_over_many_failing_syncs(broker: BrokerProcess) -> None:
    """T-12: read by somebody else before each failure, and again behind every restart."""
    known: dict[int, tuple[str, bytes]] = {}
    for life in range(5):
        with Client(broker.endpoint, timeout=20.0) as client, Attached(broker, f"fdatasync:error=EIO:when={life + 2}"):
            over = False
            for number in range(50):
                try:
                    client.append(f"life/{life}", Event("a", b"%d" % number), timeout=1.0)
                except TidelogError as error:
                    assert error.maybe_applied  # noqa: PT017  (which append fails is not known before)
                    over = True
                    break
            assert over
            assert broker.wait() == EXIT_IO
        broker.start()
        now = read_positions(broker)
        assert {position: now[position] for position in known} == known
        assert sorted(now) == list(range(len(now)))
        known = now
    assert len(known) >= 5


def test_neither_an_original_nor_its_retry_nor_a_refusal_because_of_it_is_confirmed_when_the_sync_fails(
    broker: BrokerProcess,
) -> None:
    """T-58: one message is one drain, so these are one group."""
    with closing(LastWordClient(broker.endpoint)) as raw:
        raw.append(("s", NO_STREAM, [event("a", b"0")]))
        first = event("a", b"1")
        original = raw.prepare(("t", NO_STREAM, [first])).writes
        writes = [
            original,
            original,
            raw.prepare(("t", NO_STREAM, [event("a", b"conflict")])).writes,
            raw.prepare(("u", None, [first._replace(payload=b"overlap")])).writes,
            raw.prepare(("s", None, []), ("t", EXISTS, [event("a", b"3")])).writes,
        ]
        with Attached(broker, "fdatasync:error=EIO:when=1"):
            raw.send([msgpack.packb([[3, 50 + i, 0, None, 0, None, None, row] for i, row in enumerate(writes)])])
            codes: dict[int, int] = {}
            while len(codes) < len(writes):
                message = raw.receive(10)
                assert message, f"only {codes} were told anything"
                codes.update({reply[0] - 50: reply[1] for reply in message[0]})
            assert codes == dict.fromkeys(range(5), 20)
            assert broker.wait() == EXIT_IO


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("fdatasync:error=EIO:when=2", {"idle_mark_ms": 1}),
        ("pwrite64:error=EIO:when=1", {"idle_mark_ms": 3_600_000}),
        ("pwrite64:error=EROFS:when=1", {"idle_mark_ms": 3_600_000}),
        ("pwrite64:error=EIO:when=2", {"idle_mark_ms": 1}),
        ("fdatasync:error=ENOSPC:when=1", {"idle_mark_ms": 3_600_000}),
        ("fdatasync:error=EIO:when=2", {"strict": 1}),
    ],
    ids=["sync of a mark", "EIO of a write", "EROFS of a write", "write of a mark", "ENOSPC of a sync", "strict mark"],
)
def test_every_other_broken_promise_of_the_disk_ends_the_broker_with_74_too(
    new_broker: Callable[..., BrokerProcess], rule: str, settings: dict[str, object]
) -> None:
    """T-12, spec §6.5"""
    broker = new_broker(**settings)
    broker.start()
    with Client(broker.endpoint, timeout=1.5) as client:
        client.append("s", Event("a", b"0"))
        acknowledged = [b"0"]
        # The mark of the append before, if there is one, is out of the way.
        assert settings.get("idle_mark_ms") == 3_600_000 or until(lambda: marked(broker) == 1)
        with Attached(broker, rule):
            try:
                client.append("s", Event("a", b"1"))
                acknowledged.append(b"1")
            except TidelogError as error:
                assert error.maybe_applied  # noqa: PT017  (a failing mark comes behind an append that succeeds)
            assert broker.wait() == EXIT_IO
    assert len(broker.stderr().strip().splitlines()) == 1, broker.stderr()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        found = [found.payload for found in client.read_stream("s")]
    assert found[: len(acknowledged)] == acknowledged
    assert found in ([b"0"], [b"0", b"1"])


def test_a_failed_sync_of_prepared_space_ends_the_broker_with_74(new_broker: Callable[..., BrokerProcess]) -> None:
    """T-12: whichever thread it is in."""
    broker = new_broker()
    broker.start(
        wrapper=(need_strace(), "-D", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
                 "inject=fdatasync:error=EIO:when=1")
    )  # fmt: skip
    assert broker.wait(20) == EXIT_IO
    assert len(broker.stderr().strip().splitlines()) == 1, broker.stderr()


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_failed_sync_while_starting_ends_with_74_and_the_next_start_serves_all(
    broker: BrokerProcess, error: str
) -> None:
    """T-12, spec §8: an error of any of recovery's syncs is 74, also one that speaks of room."""
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"kept"))
    broker.kill()
    for number in range(1, 40):
        wrapper = (need_strace(), "-D", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e",
                   f"inject=fsync:error={error}:when={number}")  # fmt: skip
        broker.start(ready=False, wrapper=wrapper)
        try:
            broker.wait_ready()
        except AssertionError:
            assert broker.wait() == EXIT_IO, broker.stderr()
            continue
        # All of its syncs succeeded: this start had fewer than `number`.
        with Client(broker.endpoint, timeout=20.0) as client:
            assert [found.payload for found in client.read_all()] == [b"kept"]
        break
    assert number > 5


def test_while_a_sync_hangs_health_tells_so_and_everybody_else_waits(broker: BrokerProcess) -> None:
    """Spec §9: health has its own thread and socket, answers while a disk hangs, and names a sync that takes over 1 s."""
    with Client(broker.endpoint, timeout=30.0) as client, Client(broker.endpoint, timeout=5.0) as stranger:
        client.append("s", Event("a"))
        assert client.health()[:4] == (True, True, "", 1)
        with Attached(broker, "fdatasync:delay_enter=60000000:when=1") as held:
            call = client.append_nowait("s", Event("a"), timeout=30.0)
            assert until(lambda: client.health().sync_us > 0)
            assert until(lambda: client.health().sync_us > 1_000_000)
            for _ in range(50):
                health = stranger.health()
            assert held.calls("fdatasync") <= 1  # all of them while this one hangs
            assert (health.live, health.ready, health.head) == (True, False, 1)
            assert "sync" in health.reason
            assert not call.done()
            with pytest.raises(DeadlineExceeded) as failed:
                stranger.head(timeout=0.3)
            assert not failed.value.maybe_applied
            with pytest.raises(DeadlineExceeded):
                list(client.read_all(timeout=0.3))
            held.release()
        assert call.result().first_position == 1
        assert client.health()[:4] == (True, True, "", 2)
