"""A real broker under 8 writer processes, killed in the midst of its checkpoints: a start has the index of the log (T-37)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.process import BrokerProcess, until
from tidelog import Client
from tidelog_broker.disk import RealDisk
from tidelog_broker.index_digest import Comparison, compare
from tidelog_broker.log import LogSettings

TESTS = Path(__file__).parents[1]
WRITERS = 8
KILLS = 8


class Load:
    """Writer processes that go on through every restart."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._counts = folder / "counts"
        self._counts.write_bytes(bytes(8 * WRITERS))
        self._errors = folder / "writers"
        with self._errors.open("wb") as errors:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "index.writing", endpoint, str(self._counts), str(slot)],
                    stdin=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, "PYTHONPATH": str(TESTS)},
                )
                for slot in range(WRITERS)
            ]

    def acknowledged(self) -> list[int]:
        """How many appends of each were, the first ones in a row."""
        raw = self._counts.read_bytes()
        return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]

    def end(self) -> None:
        """All are answered; raises AssertionError when one was not."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        assert [process.wait(60) for process in self._processes] == [0] * WRITERS, self._errors.read_text()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)
            assert process.stdin
            process.stdin.close()


@contextmanager
def load(folder: Path, endpoint: str) -> Iterator[Load]:
    writers = Load(folder, endpoint)
    try:
        yield writers
    finally:
        writers.kill()


def child_of(pid: int) -> int | None:
    """The process that makes a checkpoint for this broker now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(
            (int(child) for child in children if b"checkpoint" in Path(f"/proc/{child}/cmdline").read_bytes()), None
        )
    except OSError:
        return None


def compared(data: Path, place: Path) -> Comparison:
    """What a start would make of a directory, as it is at this moment."""
    for _ in range(20):
        try:
            shutil.copytree(data, place, ignore=shutil.ignore_patterns("*.tmp"))
            break
        except shutil.Error:
            shutil.rmtree(place)  # the child outlives its broker by a moment, and deletes what it has merged
    else:
        raise AssertionError("the directory does not come to rest")
    disk = RealDisk(place)
    try:
        return compare(disk, LogSettings())
    finally:
        disk.close()
        shutil.rmtree(place)


@pytest.mark.timeout(240)
def test_killed_at_any_moment_of_a_checkpoint_a_start_has_the_index_of_the_log(
    start_broker: Callable[..., BrokerProcess], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(20_261_121)
    broker = start_broker("--checkpoint-batches", "1024", "--checkpoint-seconds", "1")
    of_broker = of_child = 0
    used = []
    with load(folder, broker.endpoint) as writers:
        for number in range(KILLS):
            assert until(lambda: child_of(broker.pid) is not None, 30.0, 0.002), broker.stderr()
            child = child_of(broker.pid)
            # The one sleep that is meant: where in its work it dies is the dice's business.
            until(lambda: False, chance.uniform(0.0, 0.5), 0.01)
            if number % 4 == 3 and child is not None:
                try:
                    os.kill(child, signal.SIGKILL)
                    of_child += 1
                except ProcessLookupError:
                    pass  # it was done before
                continue
            broker.kill()
            of_broker += 1
            before = writers.acknowledged()
            found = compared(broker.data, folder / "copy")
            assert found.verdict == "healthy", found
            used.append(found.checkpoint_group)
            # What it had begun goes on beside the next broker, which must not mind.
            broker.start()
            with Client(broker.endpoint, timeout=20.0) as client:
                opened = client.info()["opened"]
                assert client.head() >= sum(before)
            assert opened["checkpoint_group"] + opened["groups_read"] == found.group
        writers.end()
        acknowledged = writers.acknowledged()
    with Client(broker.endpoint, timeout=30.0) as client:
        for slot, count in enumerate(acknowledged):
            numbers = sorted(int(event.payload) for event in client.read_category(f"w{slot}"))
            assert numbers == list(range(count))
        info = client.info()
    broker.kill()
    found = compared(broker.data, folder / "copy")
    assert found.verdict == "healthy", found
    assert used[-1] > 0
    with capsys.disabled():
        print(
            f"\n{of_broker} kills of a broker and {of_child} of its child during checkpoints under {WRITERS} writers, "
            f"{sum(acknowledged)} acks, {info['groups']} groups, {sum(bool(one) for one in used)} starts from a checkpoint"
        )
