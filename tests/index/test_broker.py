"""A saved index as a broker meets it: damaged where only a later read looks, hindered, and large (T-37, T-38)."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.command import COMMAND
from support.process import BrokerProcess, until
from tidelog import Appended, Client, Event, Recorded, TidelogError
from tidelog.link import Future
from tidelog_broker.checkpoints import RunFile, read
from tidelog_broker.core.merging import FAN
from tidelog_broker.disk import RealDisk

FLAGS = ("--checkpoint-batches", "1024")
APPENDS = 2_600
Fact = tuple[int, str, int, bytes]


def fact(event: Recorded) -> Fact:
    return event.position, event.stream, event.version, event.payload


def saved(client: Client) -> dict[str, Any]:
    """Have a checkpoint made; what the broker says of it."""
    state, facts = client.checkpoint(begin=True)

    def ended() -> bool:
        nonlocal state, facts
        state, facts = client.checkpoint()
        return state != "running"

    assert until(ended, 60.0, 0.02)
    return {"state": state, **facts}


def fill(client: Client) -> list[Fact]:
    """Appends of one event each: many streams, and one so long that its batches fill blocks of their own."""
    calls: deque[tuple[str, bytes, Future[Appended]]] = deque()
    facts: list[Fact] = []

    def settle() -> None:
        stream, payload, call = calls.popleft()
        done = call.result()
        assert done.first_version is not None
        assert done.first_position is not None
        facts.append((done.first_position, stream, done.first_version, payload))

    for number in range(APPENDS):
        stream = "long/1" if number % 2 else f"c{number % 7}/{number % 600}"
        payload = b"%d" % number
        calls.append((stream, payload, client.append_nowait(stream, Event("t", payload))))
        if len(calls) >= 64:
            settle()
    while calls:
        settle()
    return facts


class Log:
    """A log with its index, stopped, and what it holds."""

    def __init__(self, broker: BrokerProcess, place: Path) -> None:
        self.broker = broker
        with Client(broker.endpoint, timeout=20.0) as client:
            self.facts = fill(client)
        assert broker.stop() == 0
        self._kept = place
        shutil.copytree(broker.data, place)

    def restore(self) -> None:
        shutil.rmtree(self.broker.data)
        shutil.copytree(self._kept, self.broker.data)

    def questions(self) -> dict[str, tuple[Callable[[Client], object], object]]:
        """name → (what is asked, the only right answer)"""
        facts = self.facts
        names = sorted({stream for _, stream, _, _ in facts})
        of_long = [row for row in facts if row[1] == "long/1"]
        some = names[::40]
        versions = {name: sum(row[1] == name for row in facts) - 1 for name in some}
        return {
            "all": (lambda client: [fact(event) for event in client.read_all()], facts),
            "stream": (lambda client: [fact(event) for event in client.read_stream("long/1", 3, 9)], of_long[3:9]),
            "category": (
                lambda client: [fact(event) for event in client.read_category("c3")],
                [row for row in facts if row[1].startswith("c3/")],
            ),
            "list": (lambda client: [row.stream for row in client.list_streams()], names),
            "versions": (lambda client: {name: client.stream_info(name).last_version for name in some}, versions),
        }


def ask(log: Log, question: Callable[[Client], object]) -> object:
    """The answer, or None when the broker ended with 74 instead; nothing else is allowed."""
    for _ in range(10):
        try:
            with Client(log.broker.endpoint, timeout=1.5) as client:
                return question(client)
        except TidelogError:
            # A busy machine may need longer.
            if until(lambda: not log.broker.running, 2.0):
                assert log.broker.wait() == 74, log.broker.stderr()
                return None
    raise AssertionError(f"no answer, and no end: {log.broker.stderr()}")


def places(data: Path) -> dict[str, tuple[Path, int]]:
    """A byte in each kind of block of the oldest run that the newest checkpoint names."""
    disk = RealDisk(data)
    newest = sorted(path.name for path in (data / "index").glob("checkpoint-*"))[-1]
    saved_at = read(disk, newest)
    run = RunFile(disk, saved_at.runs[0].name, saved_at.log_id)
    entry = run.find(b"slong/1")
    assert entry is not None
    assert run.blocks(entry) > 1
    path = data / "index" / run.name
    found = {
        "piece": run._offsets[0],
        "table": run._table_offsets[len(run._table_offsets) // 2],
        "postings": entry.at,
        "directory": run.size - 200,
    }
    run.close()
    disk.close()
    return {kind: (path, offset + 20) for kind, offset in found.items()}


@pytest.fixture(scope="module")
def log() -> Any:
    place = Path(tempfile.mkdtemp(prefix="tl-"))
    broker = BrokerProcess(place, *FLAGS)
    broker.start()
    yield Log(broker, place / "kept")
    broker.close()
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("kind", ["piece", "table", "postings", "directory"])
def test_a_damaged_run_is_never_served_and_the_next_start_has_all_again(log: Log, kind: str) -> None:
    ended = 0
    for name, (question, right) in log.questions().items():
        log.restore()
        path, offset = places(log.broker.data)[kind]
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x41
        path.write_bytes(data)
        log.broker.start()
        answer = ask(log, question)
        assert answer in (None, right), (kind, name)
        if answer is None:
            ended += 1
            log.broker.start()
            assert ask(log, question) == right, (kind, name)
        with Client(log.broker.endpoint, timeout=20.0) as client:
            done = client.append("long/1", Event("t", b"more"), expected_version=APPENDS // 2 - 1)
            assert done.first_version == APPENDS // 2
        assert log.broker.stop() in (0, 74), log.broker.stderr()
    assert ended or kind == "directory", "nobody looked at it"


def test_an_append_that_meets_damage_is_answered_right_after_a_restart(log: Log) -> None:
    """It needs a stream's version, which stands in the damaged block: no answer, then the right one, and never two copies."""
    log.restore()
    path, offset = places(log.broker.data)["table"]
    data = bytearray(path.read_bytes())
    for at in range(offset - 20, len(data) - 5_000, 3_000):
        data[at] ^= 0x41
    path.write_bytes(data)
    log.broker.start()
    names = sorted({stream for _, stream, _, _ in log.facts})
    sure = 0
    for _ in range(3):
        for name in names[sure:]:
            version = sum(row[1] == name for row in log.facts) - 1
            event = Event("t", b"x", id=UUID(bytes=name.ljust(16)[:16].encode()))
            done = ask(log, partial(Client.append, stream=name, events=event, expected_version=version))
            if done is None:
                log.broker.start()
                break
            sure += 1
        if sure > 20:
            break
    log.broker.close()
    assert "the saved index is damaged" in log.broker.stderr()


def test_merging_that_meets_damage_loses_nothing_but_the_saved_index(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """Nobody else reads the rows of a run that is so old."""
    broker = start_broker()
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(FAN - 1):
            client.append(f"s/{number}", Event("t", b"%d" % number))
            assert saved(client)["state"] == "done"
        broker.kill()
        path = sorted((broker.data / "index").glob("run-*"))[0]
        data = bytearray(path.read_bytes())
        data[20] ^= 0x41
        path.write_bytes(data)
        broker.start()
        assert client.info()["opened"]["checkpoint_group"] == FAN - 1
        client.append("s/more", Event("t", b"%d" % (FAN - 1)))
        assert saved(client)["state"] == "done"
        broker.kill()
        broker.start()
        assert client.info()["opened"]["checkpoint_group"] == FAN
        assert [int(event.payload) for event in client.read_all()] == list(range(FAN))


def test_where_the_index_can_not_be_written_the_broker_goes_on_and_saves_it_when_it_can(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    broker = start_broker(*FLAGS)
    (broker.data / "index").write_bytes(b"in the way")
    with Client(broker.endpoint, timeout=20.0) as client:
        facts = fill(client)
        found = saved(client)
        assert found["state"] == "failed"
        assert "Not a directory" in found["reason"]
        assert "the next start takes longer" in broker.stderr()
        health = client.health()
        assert (health.live, health.ready) == (True, True)
        assert [fact(event) for event in client.read_all()] == facts
        broker.kill()
        broker.start()
        assert client.info()["opened"]["checkpoint_group"] == 0
        (broker.data / "index").unlink()
        found = saved(client)
        assert found["state"] == "done"
        assert found["group"] == client.info()["groups"]
        assert [fact(event) for event in client.read_all()] == facts
    broker.kill()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert client.info()["opened"]["checkpoint_group"] == found["group"]


@pytest.mark.timeout(300)
def test_behind_a_million_events_a_start_reads_only_the_tail(
    start_broker: Callable[..., BrokerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    """T-38"""
    broker = start_broker(environment={"TIDELOG_PREPARE_AHEAD": str(1 << 20)})
    with Client(broker.endpoint, timeout=60.0) as client:
        calls: deque[Future[Appended]] = deque()

        def send(stream: str, events: list[Event]) -> None:
            calls.append(client.append_nowait(stream, events))
            if len(calls) >= 256:
                calls.popleft().result()

        for number in range(9_000):
            send(
                f"big/{number % 1_000}",
                [Event("t", b"payload") for _ in range(100)],
            )
        for number in range(100_000):
            send(f"small/{number % 10_000}", [Event("t", b"%d" % number)])
        while calls:
            calls.popleft().result()
        made = saved(client)
        assert made["state"] == "done"
        for number in range(1_000):
            send("tail/1", [Event("t", b"%d" % number)])
        while calls:
            calls.popleft().result()
        groups = client.info()["groups"]
    broker.kill()
    size = sum(path.stat().st_size for path in broker.data.glob("0*"))
    broker.start()
    with Client(broker.endpoint, timeout=60.0) as client:
        opened = client.info()["opened"]
        assert client.head() == 1_001_000
    assert opened["checkpoint_group"] == made["group"]
    assert opened["groups_read"] == groups - made["group"]
    # What was zeroed ahead of need is read, too.
    assert opened["bytes_read"] < size // 10
    broker.kill()
    told = subprocess.run(
        [*COMMAND, "verify", "--index", "--data", str(broker.data), "--json"], capture_output=True, timeout=120
    )
    report = json.loads(told.stdout)
    assert (told.returncode, report["verdict"], report["checkpoint_group"]) == (0, "healthy", made["group"])
    assert report["saved"] == report["rebuilt"]
    with capsys.disabled():
        print(f"\n1,001,000 events, a log of {size} bytes; behind the checkpoint {opened}; digest {report['saved']}")
