"""Damage that is met while the broker runs: CorruptLog for that page, health degraded, nothing else stops (spec §8, §15)."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import COMMAND
from support.process import BrokerProcess, until
from tidelog import Client, CorruptLog, Event, InvalidArgument, OutcomeUnknown, Recorded, Unavailable
from tidelog.wire import READ_CHECKED

EVENTS = 6_000
PAYLOAD = b"p" * 1_000


@pytest.fixture
def rotten(new_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker with several segments."""
    broker = new_broker(segment_bytes=1 << 20)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        for at in range(0, EVENTS, 100):
            client.append(f"s/{at % 300}", [Event("t", b"%05d" % number + PAYLOAD) for number in range(at, at + 100)])
    return broker


def segments(broker: BrokerProcess) -> list[Path]:
    return sorted(broker.data.glob("0*"))


def change(path: Path, offset: int, data: bytes) -> None:
    """Bytes of the file that a running broker has open."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def batch_at(path: Path, number: int) -> int:
    """The offset of the number-th group's first batch."""
    data = path.read_bytes()
    at = 4_096
    for _ in range(number):
        at = data.find(b"TLGR", at + 64)
    return at + 64


ROT = {
    "sixteen zeros inside": lambda path: change(path, batch_at(path, 2) + 500, bytes(16)),
    "a flipped kind": lambda path: change(path, batch_at(path, 2), b"C"),
    "a whole batch zeroed": lambda path: change(
        path, batch_at(path, 2), bytes(batch_at(path, 3) - 64 - batch_at(path, 2))
    ),
    "another batch written over it": lambda path: change(
        path,
        batch_at(path, 2),
        path.read_bytes()[batch_at(path, 1) : batch_at(path, 1) + batch_at(path, 3) - 64 - batch_at(path, 2)],
    ),
}


@pytest.mark.parametrize("how", ROT)
def test_a_damaged_page_is_corrupt_log_and_everything_else_goes_on(rotten: BrokerProcess, how: str) -> None:
    with Client(rotten.endpoint, timeout=20.0) as client:
        assert client.health().degraded == ""
        second = segments(rotten)[1]
        before = batch_at(second, 2)
        ROT[how](second)
        read: list[Recorded] = []
        with pytest.raises(CorruptLog) as caught:
            read.extend(client.read_all())  # keeps what came before the error
        assert (caught.value.segment, caught.value.offset) == (second.name, before)
        assert [event.position for event in read] == list(range(len(read)))
        assert all(event.payload == b"%05d" % event.position + PAYLOAD for event in read)
        health = client.health()
        assert health.ready
        assert second.name in health.degraded
        # Other pages, appends, and streams that have nothing there.
        third = int(segments(rotten)[2].name[11:])
        assert [event.position for event in client.read_all(third)] == list(range(third, EVENTS))
        assert client.append("new/1", Event("t", b"x")).first_position == EVENTS
        assert next(client.read_stream("new/1")).payload == b"x"
        assert rotten.stderr().count("damage found") == 1
        # The broker's own check finds the same place.
        client.verify(begin=True)
        assert until(lambda: client.verify()[0] == "done", 60)
        report = client.verify()[1]
        assert report is not None
        assert report["verdict"] == "damaged"
        assert report["damage"]["segment"] == second.name
        assert report["damage"]["offset"] == before - 64
        assert second.name in client.health().degraded
    assert rotten.stop() == 0


def test_a_subscriber_gets_what_is_before_the_damage_and_then_corrupt_log(rotten: BrokerProcess) -> None:
    second = segments(rotten)[1]
    ROT["a whole batch zeroed"](second)
    with Client(rotten.endpoint, timeout=20.0) as client:
        read: list[Recorded] = []
        with client.subscribe() as sub, pytest.raises(CorruptLog):
            read.extend(sub)
        seen = [event.position for event in read]
        assert seen == list(range(len(seen)))
        assert 0 < len(seen) <= sub.position <= int(segments(rotten)[2].name[11:])
        with client.subscribe(start=int(segments(rotten)[2].name[11:])) as sub:
            assert next(sub).position == int(segments(rotten)[2].name[11:])


def test_a_check_of_a_healthy_running_log_finds_every_event_and_clears_what_had_passed(rotten: BrokerProcess) -> None:
    second = segments(rotten)[1]
    offset = batch_at(second, 2) + 500
    whole = second.read_bytes()[offset : offset + 1]
    change(second, offset, bytes([whole[0] ^ 1]))
    with Client(rotten.endpoint, timeout=20.0) as client:
        with pytest.raises(CorruptLog):
            list(client.read_all())
        assert client.health().degraded
        change(second, offset, whole)
        appended = [client.append_nowait("live/1", Event("t", b"x")) for _ in range(200)]
        client.verify(begin=True)
        assert until(lambda: client.verify()[0] == "done", 60)
        report = client.verify()[1]
        assert report is not None
        assert report["verdict"] == "healthy"
        assert EVENTS <= report["events"] <= EVENTS + 200
        assert client.health().degraded == ""
        assert all(call.result(20).first_position >= EVENTS for call in appended)
        assert client.verify()[0] == "done"


def test_a_repeat_of_an_append_whose_bytes_are_damaged_is_of_unknown_outcome_and_degrades(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    broker = new_broker()
    broker.start()
    with Client(broker.endpoint, timeout=2.0) as client:
        first = client.append("s/1", Event("t", PAYLOAD))
        event = next(client.read_stream("s/1"))
        change(segments(broker)[0], batch_at(segments(broker)[0], 0) + 300, b"\xff")
        with pytest.raises(OutcomeUnknown):
            client.append("s/1", Event("t", PAYLOAD, id=event.id))
        assert client.health().degraded
        assert client.head() == first.last_position + 1


def test_a_stop_does_not_wait_for_a_check_and_leaves_no_child(rotten: BrokerProcess) -> None:
    with Client(rotten.endpoint, timeout=20.0) as client:
        assert client.verify(begin=True)[0] == "running"
        children = Path(f"/proc/{rotten.pid}/task/{rotten.pid}/children").read_text().split()
        assert len(children) == 1
    assert rotten.stop() == 0
    assert until(lambda: not Path(f"/proc/{children[0]}").exists(), 20)


def test_a_backwards_read_of_a_damaged_page_skips_nothing_though_an_append_comes_between(
    rotten: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is asked for again by its range, not by the request: "the last one" is another one by then."""
    last = segments(rotten)[-1]
    data = last.read_bytes()
    change(last, len(data.rstrip(b"\0")) - 200, b"\xff\xff")
    with Client(rotten.endpoint, timeout=20.0) as client, Client(rotten.endpoint, timeout=20.0) as other:
        ask = client._link.submit

        def submit(call: Any, now: float, push: bool = False) -> None:
            if call.kind == READ_CHECKED:
                other.append("s/0", Event("t", b"between"))
            ask(call, now, push)

        monkeypatch.setattr(client._link, "submit", submit)
        with pytest.raises(CorruptLog) as caught:
            list(client.read_all(backwards=True, limit=1))
        assert caught.value.segment == last.name


def test_rot_of_a_group_header_keeps_no_event_from_anyone_and_is_remembered(rotten: BrokerProcess) -> None:
    second = segments(rotten)[1]
    change(second, batch_at(second, 2) - 64, b"\xff")
    with Client(rotten.endpoint, timeout=20.0) as client:
        assert [event.position for event in client.read_all()] == list(range(EVENTS))
        assert second.name in client.health().degraded
        with client.subscribe() as sub:
            assert [next(sub).position for _ in range(EVENTS)] == list(range(EVENTS))


def test_a_rotten_time_on_the_way_never_makes_position_at_answer_wrong(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    broker = new_broker()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        for _ in range(9):
            client.append("s/1", Event("t", PAYLOAD))
        times = [event.recorded_at for event in client.read_all()]
        first = segments(broker)[0]
        for number in range(9):
            offset = batch_at(first, number) + 40
            whole = first.read_bytes()[offset : offset + 8]
            for rotten in (bytes(8), b"\xff" * 7 + b"\x7f"):
                change(first, offset, rotten)
                for position, time in enumerate(times):
                    try:
                        assert client.position_at(time) == times.index(time), (number, position)
                    except CorruptLog:
                        assert client.health().degraded
            change(first, offset, whole)
        assert [client.position_at(time) for time in times] == [times.index(time) for time in times]


def test_two_batches_that_changed_places_are_found_though_a_filter_would_leave_one_out(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    broker = new_broker()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(6):
            client.append("s/1", Event("ab"[number % 2], PAYLOAD))
        first = segments(broker)[0]
        data = first.read_bytes()
        one, two, three = (batch_at(first, number) for number in (2, 3, 4))
        size = two - 64 - one
        assert three - 64 - two == size
        change(first, one, data[two : two + size])
        change(first, two, data[one : one + size])
        for types in (["a"], ["b"], ["a", "b"], None):
            with pytest.raises(CorruptLog):
                list(client.read_all(types=types))


def test_damage_that_is_found_while_a_check_runs_outlives_its_healthy_report(rotten: BrokerProcess) -> None:
    with Client(rotten.endpoint, timeout=20.0) as client:
        client.verify(begin=True)
        children = Path(f"/proc/{rotten.pid}/task/{rotten.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGSTOP)
        client.append("late/1", Event("t", PAYLOAD))
        last = segments(rotten)[-1]
        change(last, len(last.read_bytes().rstrip(b"\0")) - 300, b"\xff\xff")
        with pytest.raises(CorruptLog):
            list(client.read_stream("late/1"))
        assert client.health().degraded
        os.kill(int(children[0]), signal.SIGCONT)
        assert until(lambda: client.verify()[0] == "done", 60)
        report = client.verify()[1]
        assert report is not None
        assert report["verdict"] == "healthy"
        assert client.health().degraded


def test_a_check_that_can_not_be_started_or_whose_words_can_not_be_sent_harms_nobody(
    new_broker: Callable[..., BrokerProcess], folder: Path
) -> None:
    broker = new_broker()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s/1", Event("t", b"x"))
        quarantine = broker.data / "quarantine"
        quarantine.mkdir()
        Path(os.fsdecode(os.fsencode(quarantine) + b"/\xff\xfe")).write_bytes(b"?")
        client.verify(begin=True)
        assert until(lambda: client.verify()[0] == "done", 60)
        report = client.verify()[1]
        assert report is not None
        assert list(report["quarantine"]) == ["\\xff\\xfe"]
        soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (3, hard))
        state, report = client.verify(begin=True)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert state == "failed"
        assert report is not None
        assert "can't be started" in report["reason"]
        assert client.append("s/1", Event("t", b"x")).first_position == 1
    assert broker.stop() == 0


def test_a_check_runs_nothing_that_lies_in_the_brokers_directory(
    new_broker: Callable[..., BrokerProcess], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, planted = folder / "planted", folder / "cwd"
    planted.mkdir()
    for name in ("click", "msgpack", "json"):
        (planted / f"{name}.py").write_text(f"open({str(trap)!r}, 'w')")
    broker = new_broker()
    python, *rest = broker.command()
    monkeypatch.setattr(broker, "command", lambda: [python, "-P", *rest])
    monkeypatch.chdir(planted)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.verify(begin=True)
        assert until(lambda: client.verify()[0] in ("done", "failed"), 60)
        assert client.verify()[0] == "done"
    assert not trap.exists()


# -- --salvage


def test_salvage_serves_up_to_the_hole_refuses_appends_and_changes_not_a_byte(
    rotten: BrokerProcess, folder: Path
) -> None:
    rotten.kill()
    second = segments(rotten)[1]
    hole = int(second.name[11:]) + 200
    change(second, batch_at(second, 2) + 500, bytes(16))
    copy = folder / "copy"
    shutil.copytree(rotten.data, copy)
    rotten.start(ready=False)
    assert rotten.wait() == 65
    assert "CorruptLog" in rotten.stderr() or "is damaged" in rotten.stderr()
    rotten.flags = ("--salvage",)
    rotten.start()
    assert rotten.ready_line.endswith(f"head {hole}")
    with Client(rotten.endpoint, timeout=20.0) as client:
        assert [event.position for event in client.read_all()] == list(range(hole))
        client.verify(begin=True)
        assert until(lambda: client.verify()[0] == "done", 60)
        report = client.verify()[1]
        assert report is not None
        assert report["verdict"] == "damaged"
        health = client.health()
        assert (health.live, health.ready) == (True, False)
        assert "read-only" in health.reason
        with pytest.raises(Unavailable) as refused:
            client.append("s/1", Event("t", b"x"))
        assert refused.value.reason == "read-only"
        assert client.append_nowait("s/1", [Event("t", b"x")] * 2).exception(20) is not None
        with client.subscribe(start=hole - 1) as sub:
            assert next(sub).position == hole - 1
        with pytest.raises(InvalidArgument):
            client.append("s/1", [])
    assert rotten.stop() == 0
    for path in sorted(copy.rglob("*")):
        assert path.is_dir() or (rotten.data / path.relative_to(copy)).read_bytes() == path.read_bytes()
    assert {path.name for path in rotten.data.iterdir()} == {path.name for path in copy.iterdir()}


def test_salvage_of_a_directory_without_a_log_creates_nothing(new_broker: Callable[..., BrokerProcess]) -> None:
    broker = new_broker()
    broker.flags = ("--salvage",)
    broker.start(ready=False)
    assert broker.wait() in (65, 74)
    assert not broker.data.exists()


def test_a_check_is_not_possible_beside_a_broker_without_asking_it(rotten: BrokerProcess) -> None:
    """The directory belongs to the broker; its own child reads it without a lock."""
    done = subprocess.run([*COMMAND, "verify", "--data", str(rotten.data)], capture_output=True, timeout=60)
    assert done.returncode == 73
    assert str(rotten.pid) in done.stderr.decode()
    environment = {**os.environ, "TIDELOG_ENDPOINT": rotten.endpoint}
    done = subprocess.run([*COMMAND, "verify"], capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0
    assert b"6,000 events" in done.stdout
    rotten.signal(signal.SIGTERM)
    assert rotten.wait() == 0
    done = subprocess.run([*COMMAND, "verify", "--data", str(rotten.data)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.split(b":")[0]) == (0, b"healthy")
