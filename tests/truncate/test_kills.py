"""kill -9 of a real broker, again and again, under appends and truncations: what was acknowledged behind the last
acknowledged truncation is there, and what was truncated never comes back."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.independent import reader
from support.process import BrokerProcess, until
from tidelog import Client
from tidelog_broker.disk import RealDisk
from tidelog_broker.index_digest import compare
from tidelog_broker.log import LogSettings
from truncate.conftest import FLAGS
from truncate.killed import STREAMS

ROUNDS = 24
TESTS = Path(__file__).parents[1]


class Load:
    """The process of killed.py; what it was told."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.state = folder / "state"
        self.state.write_bytes(bytes(16))
        self._errors = folder / "load"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "truncate.killed", endpoint, str(self.state), "20261121"],
                stdin=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )

    def told(self) -> tuple[int, int]:
        """(appends acknowledged, the first position that is left)"""
        raw = self.state.read_bytes()
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(60) == 0, self._errors.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdin
        self._process.stdin.close()


@pytest.fixture
def load(start_broker: Callable[..., BrokerProcess], folder: Path) -> Iterator[tuple[BrokerProcess, Load]]:
    broker = start_broker(*FLAGS, "--checkpoint-batches", "1024", "--checkpoint-seconds", "1")
    made = Load(folder, broker.endpoint)
    yield broker, made
    made.kill()


def judge(data: Path, copy: Path, acknowledged: int, first: int) -> tuple[int, int]:
    """What a dead broker's directory holds, by the reader that shares no code and by the index → (head, first position)."""
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.tmp", "run"))
    events, verdict = reader.read_log(copy)
    assert verdict.kind in ("whole", "torn"), verdict
    rows = [(event.position, event.stream, event.version, event.payload) for event in events]
    begins = rows[0][0] if rows else None
    assert [row[0] for row in rows] == list(range(begins or 0, (begins or 0) + len(rows)))
    for position, stream, version, payload in rows:
        number = position // 2
        assert (stream, version) == (f"k/{number % STREAMS}", number // STREAMS * 2 + position % 2)
        assert int(payload.partition(b" ")[0]) == number
    disk = RealDisk(copy)
    found = compare(disk, LogSettings())
    disk.close()
    assert found.verdict == "healthy", found
    assert found.head >= 2 * acknowledged
    assert begins is None or begins <= max(first, found.head)
    shutil.rmtree(copy)
    return found.head, begins or 0


@pytest.mark.timeout(240)
def test_killed_at_any_moment_nothing_is_lost_and_nothing_comes_back(
    load: tuple[BrokerProcess, Load], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker, writer = load
    chance = random.Random(20_261_121)
    with_base = leftovers = 0
    removed = 0
    for number in range(ROUNDS):
        before, _ = writer.told()
        assert until(lambda before=before: writer.told()[0] > before + 60 or not writer.running, 60.0, 0.002)
        # The one sleep that is meant: where in its work it dies is the dice's business.
        until(lambda: False, chance.uniform(0.0, 0.15), 0.01)
        broker.kill()
        acknowledged, first = writer.told()
        names = sorted(path.name for path in broker.data.iterdir())
        bases = [name for name in names if name.startswith("base-")]
        with_base += bool(bases)
        leftovers += len(bases) > 1
        if number % 3 == 0:
            head, removed = judge(broker.data, folder / "copy", acknowledged, first)
            assert head >= 2 * acknowledged
        if number % 5 == 4:
            # What the dead broker had begun beside it may still write there.
            shutil.rmtree(broker.data / "index", ignore_errors=True)
        broker.start()
        with Client(broker.endpoint, timeout=30.0) as client:
            # What was under way when it died may have become durable, too: never less than what was told.
            assert client.head() >= 2 * acknowledged
            assert client.position_at(0) >= first
    writer.end()
    acknowledged, first = writer.told()
    with Client(broker.endpoint, timeout=30.0) as client:
        assert client.head() == 2 * acknowledged
        events = list(client.read_all())
        assert [event.position for event in events] == list(range(first, 2 * acknowledged))
        for event in events:
            number = event.position // 2
            assert (event.stream, event.version) == (
                f"k/{number % STREAMS}",
                number // STREAMS * 2 + event.position % 2,
            )
            assert int(event.payload.partition(b" ")[0]) == number
        for name in range(STREAMS):
            assert client.stream_info(f"k/{name}").last_version == 2 * len(range(name, acknowledged, STREAMS)) - 1
    assert broker.stop() == 0
    judge(broker.data, folder / "copy", acknowledged, first)
    assert with_base >= ROUNDS // 2
    with capsys.disabled():
        print(
            f"\n{ROUNDS} kills under appends and truncations: {acknowledged} appends acknowledged, the first position left is "
            f"{first} (in the files {removed}), {with_base} with a base, {leftovers} with an older one beside it"
        )
