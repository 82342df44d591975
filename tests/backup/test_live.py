"""T-61: backups of a real broker under load, restored; killed, out of room, in the way of each other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backup.load import EVENTS, payload
from support.command import COMMAND, Run, refusal, rows
from support.process import BrokerProcess, until
from tidelog import Client, Event
from tidelog_broker.backup import Tally
from tidelog_broker.disk import RealDisk
from tidelog_broker.files import LogFiles, LogSettings

TESTS = Path(__file__).parents[1]
WRITERS = 4
SMALL = {"TIDELOG_SEGMENT_BYTES": "1048576", "TIDELOG_ZERO_STEP": "65536", "TIDELOG_PREPARE_AHEAD": "262144"}


class Load:
    """Processes that append to a broker, each to a stream of its own."""

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        self.streams = [f"load/{number}" for number in range(WRITERS)]
        self._counts = [folder / f"counts{number}" for number in range(WRITERS)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "backup.load", broker.endpoint, stream, str(counts)],
                stdin=subprocess.PIPE,
                cwd=TESTS,
            )
            for stream, counts in zip(self.streams, self._counts, strict=True)
        ]

    def acknowledged(self) -> dict[str, int]:
        """How many events of each stream are acknowledged by now."""
        return {
            stream: EVENTS * int.from_bytes(counts.read_bytes(), "little") if counts.exists() else 0
            for stream, counts in zip(self.streams, self._counts, strict=True)
        }

    def wait_for(self, more: int) -> None:
        """Until each has written so many more events, and all go on."""
        least = {stream: count + more for stream, count in self.acknowledged().items()}
        assert until(lambda: all(count >= least[stream] for stream, count in self.acknowledged().items()), 100), (
            self.acknowledged()
        )

    def stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            assert process.wait(60) == 0

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)


@contextmanager
def load(broker: BrokerProcess, folder: Path) -> Iterator[Load]:
    made = Load(broker, folder)
    try:
        yield made
    finally:
        made.kill()


def digest_of(data: Path, group: int) -> str:
    """Of a log's batches up to a group, read by itself."""
    disk, tally = RealDisk(data), Tally()
    log = LogFiles.inspect(disk, LogSettings(), lambda ordinal, group: tally.take(group), group)
    assert log.damage is None
    log.abandon()
    disk.close()
    return tally.digest().hex()


@contextmanager
def served(data: Path, place: Path) -> Iterator[Client]:
    """A broker on a restored log."""
    place.mkdir()
    broker = BrokerProcess(place)
    broker.data = data
    broker.start()
    try:
        with Client(broker.endpoint, timeout=30.0) as client:
            yield client
        assert broker.stop() == 0
    finally:
        broker.close()


def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it_began(
    start_broker: Callable[..., BrokerProcess], folder: Path, run: Run
) -> None:
    """T-61: with a chain of three, over several segments."""
    broker = start_broker(environment=SMALL)
    found = []
    with load(broker, folder) as writers:
        for number in range(3):
            writers.wait_for(90)
            before = writers.acknowledged()
            since = ["--since", str(folder / f"b{number - 1}")] if number else []
            done = run("backup", str(folder / f"b{number}"), "--endpoint", broker.endpoint, "--json", *since)
            after = writers.acknowledged()
            found.append((rows(done)[0], before))
            assert after != before, "the writers went on meanwhile"
        writers.wait_for(3)
        writers.stop()
    for number, (report, before) in enumerate(found):
        target = folder / f"new{number}"
        chain = [word for other in range(number) for word in ("--since", str(folder / f"b{other}"))]
        again = rows(run("restore", str(folder / f"b{number}"), str(target), *chain, "--json"))[0]
        assert (again["group"], again["head"], again["log_id"]) == (report["group"], report["head"], report["log_id"])
        assert again["digest"] == digest_of(target, report["group"]) == digest_of(broker.data, report["group"])
        assert report["digest"] in (again["digest"], None)
        verdict = rows(run("verify", "--data", str(target), "--json"))[0]
        assert (verdict["verdict"], verdict["head"]) == ("healthy", report["head"])
        with served(target, folder / f"x{number}") as client, Client(broker.endpoint, timeout=30.0) as original:
            assert client.head() == report["head"]
            events = list(client.read_all())
            assert events == list(original.read_all(stop=report["head"]))
            for stream, count in before.items():
                held = [event.payload for event in events if event.stream == stream]
                assert len(held) >= count
                assert held == [payload(stream, place) for place in range(len(held))]
            assert client.append("after", Event("t")).first_position == report["head"]
    assert found[-1][0]["events"] < found[-1][0]["head"], "the last one left segments out"
    print(f"{found[-1][0]['head']} events, {[report['bytes'] for report, _ in found]} bytes")


def fill(broker: BrokerProcess, appends: int) -> None:
    with Client(broker.endpoint, timeout=60.0) as client:
        for number in range(appends):
            client.append("s/1", [Event("t", payload("s/1", number * 20 + place)) for place in range(20)])


def test_a_stopped_log_is_backed_up_by_its_directory_and_torn_bytes_are_not(
    start_broker: Callable[..., BrokerProcess], folder: Path, run: Run
) -> None:
    broker = start_broker(environment={**SMALL, "TIDELOG_IDLE_MARK_MS": "3600000"})
    fill(broker, 20)
    data, file = str(broker.data), str(folder / "b")
    assert f"process {broker.pid}" in refusal(run("backup", file, "--data", data), 73)
    broker.kill()
    segment = max(broker.data.glob("0*"))
    whole = rows(run("backup", file, "--data", data, "--json"))[0]
    raw = segment.read_bytes()
    end = len(raw.rstrip(b"\0"))
    segment.write_bytes(raw[: end - 50] + bytes(50) + raw[end:])
    torn = rows(run("backup", file, "--data", data, "--json", "--force"))[0]
    assert (whole["group"], whole["head"], torn["group"], torn["head"]) == (20, 400, 19, 380)
    segment.write_bytes(raw[:5_000] + b"\0" * 8 + raw[5_008:])
    before = sorted(folder.iterdir())
    assert "is damaged" in refusal(run("backup", str(folder / "c"), "--data", data), 65)
    assert sorted(folder.iterdir()) == before
    assert rows(run("restore", file, "--dry-run", "--json"))[0]["head"] == 380


def test_a_damaged_log_of_a_running_broker_is_not_backed_up(
    start_broker: Callable[..., BrokerProcess], folder: Path, run: Run
) -> None:
    broker = start_broker(environment=SMALL)
    fill(broker, 20)
    segment = min(broker.data.glob("0*"))
    with segment.open("r+b") as file:
        file.seek(5_000)
        file.write(b"\xff\0\xff")
    told = refusal(run("backup", str(folder / "b"), "--endpoint", broker.endpoint), 65)
    assert segment.name in told
    assert "offset 4096" in told
    assert not list(folder.glob("b*"))


def test_an_empty_log_is_backed_up_and_restored(broker: BrokerProcess, folder: Path, run: Run) -> None:
    file = str(folder / "b")
    assert "no events" in run("backup", file, "--endpoint", broker.endpoint).stdout
    assert rows(run("restore", file, str(folder / "new"), "--json"))[0]["head"] == 0
    with served(folder / "new", folder / "x") as client:
        assert client.append("s", Event("t")).first_position == 0


def test_refusals_say_what_is_in_the_way(broker: BrokerProcess, folder: Path, run: Run) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("t"))
    file, new = folder / "b", folder / "new"
    at = ("--endpoint", broker.endpoint)
    assert run("backup", str(file), *at).returncode == 0
    assert "--force" in refusal(run("backup", str(file), *at), 64)
    assert run("backup", str(file), *at, "--force").returncode == 0
    (folder / "c.tmp").touch()
    assert "c.tmp is there" in refusal(run("backup", str(folder / "c"), *at), 73)
    assert refusal(run("backup", str(folder / "none" / "b"), *at), 64)
    assert "not both" in refusal(run("backup", str(folder / "d"), *at, "--data", str(broker.data)), 64)
    assert "No such file" in refusal(run("restore", str(folder / "none"), str(new)), 64)
    assert "DIRECTORY" in refusal(run("restore", str(file)), 64)
    assert "not empty" in refusal(run("restore", str(file), str(broker.data)), 64)
    assert "not empty" in refusal(run("restore", str(file), str(file)), 64)
    assert "not a directory" in refusal(run("restore", str(file), str(folder / "none" / "new")), 64)
    (folder / "new.restoring").mkdir()
    assert "new.restoring is there" in refusal(run("restore", str(file), str(new)), 73)
    (folder / "new.restoring").rmdir()
    new.mkdir()
    assert run("restore", str(file), str(new)).returncode == 0
    assert "not empty" in refusal(run("restore", str(file), str(new)), 64)
    assert "magic" in refusal(run("restore", str(new / "marks"), str(folder / "other")), 65)
    assert "magic" in refusal(run("backup", str(folder / "e"), *at, "--since", str(new / "marks")), 65)
    assert refusal(run("backup", str(folder / "e"), "--endpoint", f"ipc://{folder}/nobody"), 69)


@pytest.fixture
def large(start_broker: Callable[..., BrokerProcess], folder: Path, run: Run) -> BrokerProcess:
    """A broker whose log has 12 MB, and its backup."""
    broker = start_broker(environment=SMALL)
    fill(broker, 150)
    assert run("backup", str(folder / "b"), "--endpoint", broker.endpoint).returncode == 0
    return broker


def killed_at_random(arguments: list[str], cycles: int, judge: Callable[[], None]) -> int:
    """Run a command again and again, killed somewhere between its beginning and its end; how often it was killed in time."""
    begun = time.monotonic()
    assert subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=100).returncode == 0
    lasts = time.monotonic() - begun
    judge()
    dice, kills = random.Random(61), 0
    for _ in range(cycles):
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(lasts * (0.2 + dice.random()))
        except subprocess.TimeoutExpired:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        judge()
    return kills


def test_a_killed_backup_leaves_no_file_or_a_whole_one(large: BrokerProcess, folder: Path, run: Run) -> None:
    def judge() -> None:
        if (folder / "k").exists():
            assert rows(run("restore", str(folder / "k"), "--dry-run", "--json"))[0]["head"] == 3_000
        for name in ("k", "k.tmp"):
            (folder / name).unlink(missing_ok=True)

    kills = killed_at_random(["backup", str(folder / "k"), "--endpoint", large.endpoint], 12, judge)
    print(f"{kills} backups killed")


def test_a_killed_restore_leaves_no_log_or_a_whole_one(large: BrokerProcess, folder: Path, run: Run) -> None:
    def judge() -> None:
        if (folder / "new").exists():
            found = rows(run("verify", "--data", str(folder / "new"), "--json"))[0]
            assert (found["verdict"], found["head"]) == ("healthy", 3_000)
        for name in ("new", "new.restoring"):
            if (folder / name).exists():
                for path in (folder / name).iterdir():
                    path.unlink()
                (folder / name).rmdir()

    kills = killed_at_random(["restore", str(folder / "b"), str(folder / "new")], 12, judge)
    print(f"{kills} restores killed")


def test_without_room_a_backup_and_a_restore_end_with_75_and_leave_nothing(
    large: BrokerProcess, folder: Path, run: Run
) -> None:
    full = folder / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tidelog-test", full], capture_output=True, timeout=20
    )
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        assert "No space" in refusal(run("backup", str(full / "b"), "--endpoint", large.endpoint), 75)
        assert "No space" in refusal(run("restore", str(folder / "b"), str(full / "new")), 75)
        assert "mounted" in refusal(run("restore", str(folder / "b"), str(full)), 64)
        assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", full], check=True, timeout=20)


def test_a_backup_says_what_it_holds_in_words_and_in_json(broker: BrokerProcess, folder: Path, run: Run) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", [Event("t"), Event("t")])
        log_id = client.info()["log_id"]
    report = rows(run("backup", str(folder / "b"), "--endpoint", broker.endpoint, "--json"))[0]
    size = (folder / "b").stat().st_size
    assert report == {
        "file": str(folder / "b"), "bytes": size, "log_id": log_id, "group": 1, "first_position": 0, "head": 2,
        "segments": 1, "groups": 1, "batches": 1, "events": 2, "digest": digest_of(broker.data, 1),
    }  # fmt: skip
    told = run("restore", str(folder / "b"), str(folder / "new")).stdout
    assert told == f"{folder}/new: positions 0 to 1, up to group 1, 1 segments\ndigest {report['digest']}\n"
    assert json.loads(run("restore", str(folder / "b"), "--dry-run", "--json").stdout)["directory"] is None
