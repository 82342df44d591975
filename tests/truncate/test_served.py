"""A truncated log as clients of a real broker meet it, before and behind every kind of restart (T-40)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from support.command import COMMAND
from support.independent import reader
from support.process import BrokerProcess
from tidelog import (
    EXISTS,
    NO_STREAM,
    Appended,
    Client,
    DuplicateEventId,
    Event,
    InvalidArgument,
    Recorded,
    Truncated,
    WrongExpectedVersion,
)
from truncate.conftest import Filled, cleared, size

Row = tuple[int, str, int, bytes]


def row(event: Recorded) -> Row:
    return event.position, event.stream, event.version, event.payload


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def damage_checkpoints(data: Path) -> None:
    for path in (data / "index").glob("checkpoint-*"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)


RESTARTS: dict[str, Callable[[Path], object]] = {
    "with its checkpoint": lambda data: None,
    "with every checkpoint damaged": damage_checkpoints,
    "without index": lambda data: shutil.rmtree(data / "index", ignore_errors=True),
}


def judge(client: Client, filled: Filled, first: int) -> None:
    """Everything that a client can ask."""
    rows = [(position, *event) for position, event in enumerate(filled.events)]
    left = rows[first:]
    assert [row(event) for event in client.read_all()] == left
    assert [row(event) for event in client.read_all(backwards=True)] == left[::-1]
    assert [row(event) for event in client.read_all(start=first, limit=3)] == left[:3]
    assert client.head() == len(rows)
    for start in (0, first - 1):
        for read in (client.read_all, lambda start: client.read_category("c1", start)):
            with pytest.raises(Truncated) as refused:
                list(read(start=start))
            assert refused.value.first_available == first
    for category in ("c0", "c1", "once"):
        inside = [one for one in left if one[1].startswith(category + "/")]
        assert [row(event) for event in client.read_category(category)] == inside
        assert [row(event) for event in client.read_category(category, backwards=True)] == inside[::-1]
    streams: dict[str, list[Row]] = {}
    for one in rows:
        streams.setdefault(one[1], []).append(one)
    assert [(one.stream, one.last_version, one.last_position) for one in client.list_streams()] == [
        (name, len(mine) - 1, mine[-1][0]) for name, mine in sorted(streams.items())
    ]
    for name in ("once/0", "c1/1", sorted(streams)[-1]):
        mine = streams[name]
        kept = [one for one in mine if one[0] >= first]
        begins = len(mine) - len(kept)
        info = client.stream_info(name)
        assert (info.first_version, info.last_version, info.last_position) == (begins, len(mine) - 1, mine[-1][0])
        assert [row(event) for event in client.read_stream(name)] == kept
        assert [row(event) for event in client.read_stream(name, backwards=True)] == kept[::-1]
        if begins:
            with pytest.raises(Truncated) as refused:
                list(client.read_stream(name, begins - 1))
            assert refused.value.first_available == begins
        for expected in (NO_STREAM, len(mine), len(mine) - 2):
            with pytest.raises(WrongExpectedVersion) as wrong:
                client.append(name, Event("t", b"x"), expected_version=expected)
            assert wrong.value.actual == len(mine) - 1
    assert client.position_at(0) == first
    assert client.position_at(2**62) == len(rows)


def test_it_gives_room_back_and_all_else_is_as_it_was_behind_every_restart(small: BrokerProcess) -> None:
    filled = Filled()
    with Client(small.endpoint, timeout=30.0) as client:
        filled.fill(client, 500)
        before = size(small)
        inside = filled.starts[400] + 1
        done = command("truncate", str(inside), "--endpoint", small.endpoint, "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, {"first_available": inside - 1})
        first = inside - 1
        judge(client, filled, first)
        assert [client.truncate_before(position) for position in (inside, 0, first, inside - 30)] == [first] * 4
        with pytest.raises(InvalidArgument):
            client.truncate_before(client.head() + 1)
        assert cleared(small, client, first), small.stderr()
        assert size(small) < before // 2
        judge(client, filled, first)
        # Twice: the second base replaces the first one.
        filled.fill(client, 150)
        first = client.truncate_before(filled.starts[560])
        assert cleared(small, client, first), small.stderr()
        judge(client, filled, first)
    for how, spoil in RESTARTS.items():
        small.kill()
        spoil(small.data)
        small.start()
        with Client(small.endpoint, timeout=30.0) as client:
            opened = client.info()["opened"]
            assert (opened["checkpoint_group"] > 0) == (how == "with its checkpoint"), how
            judge(client, filled, first)
            for name in ("once/0", "c1/1"):
                version = client.stream_info(name).last_version
                done_append = client.append(name, Event("t", b"more"), expected_version=version)
                assert done_append.first_version == version + 1
                client.append(name, Event("t", b"more"), expected_version=EXISTS)
                filled.starts += [len(filled.events), len(filled.events) + 1]
                filled.events += [(name, version + 1, b"more"), (name, version + 2, b"more")]
            judge(client, filled, first)
    assert small.stop() == 0
    events, verdict = reader.read_log(small.data)
    assert str(verdict) == "whole"
    stored = [(one.position, one.stream, one.version, one.payload) for one in events]
    rows = [(position, *event) for position, event in enumerate(filled.events)]
    assert stored == rows[stored[0][0] :]
    assert stored[0][0] <= first
    for more in ((), ("--index",)):
        assert command("verify", "--data", str(small.data), *more).returncode == 0


def test_everything_may_go(small: BrokerProcess) -> None:
    filled = Filled()
    with Client(small.endpoint, timeout=30.0) as client:
        assert client.truncate_before(0) == 0
        filled.fill(client, 200)
        head = client.head()
        assert client.truncate_before(head) == head
        assert list(client.read_all()) == []
        assert list(client.read_category("c1")) == []
        assert list(client.read_stream("c1/1")) == []
        assert client.position_at(0) == head
    for spoil in RESTARTS.values():
        small.kill()
        spoil(small.data)
        small.start()
        with Client(small.endpoint, timeout=30.0) as client:
            assert client.head() == head
            assert list(client.read_all()) == []
            assert client.stream_info("c1/1").last_version > 0
            done = client.append("c1/1", Event("t"), expected_version=client.stream_info("c1/1").last_version)
            assert done.first_position == head
            head += 1
            assert client.truncate_before(head) == head


def test_a_repeat_of_what_is_gone_is_known_for_what_it_is(small: BrokerProcess) -> None:
    def same(client: Client, payload: bytes) -> Appended:
        events = [Event("t", payload, b"", UUID(int=7)), Event("t", b"second", b"", UUID(int=8))]
        return client.append("once/again", events, expected_version=NO_STREAM)

    filled = Filled()
    with Client(small.endpoint, timeout=30.0) as client:
        original = same(client, b"first")
        filled.fill(client, 250)
        first = client.truncate_before(client.head() - 20)
        assert cleared(small, client, first), small.stderr()
    for spoil in (None, *RESTARTS.values()):
        if spoil is not None:
            small.kill()
            spoil(small.data)
            small.start()
        with Client(small.endpoint, timeout=30.0) as client:
            head = client.head()
            again = same(client, b"first")
            assert again.duplicate
            assert again[:4] == original[:4]
            with pytest.raises(DuplicateEventId):
                same(client, b"other")
            assert client.head() == head


def test_a_backup_of_a_truncated_log_restores_to_the_same(small: BrokerProcess, folder: Path) -> None:
    filled = Filled()
    with Client(small.endpoint, timeout=30.0) as client:
        filled.fill(client, 250)
        first = client.truncate_before(filled.starts[180])
        assert cleared(small, client, first), small.stderr()
    made = command("backup", str(folder / "file"), "--endpoint", small.endpoint, "--json")
    assert made.returncode == 0, made.stderr
    assert small.stop() == 0
    shutil.rmtree(small.data)
    restored = command("restore", str(folder / "file"), str(small.data), "--json")
    assert restored.returncode == 0, restored.stderr
    assert json.loads(restored.stdout)["digest"] == json.loads(made.stdout)["digest"]
    small.start()
    with Client(small.endpoint, timeout=30.0) as client:
        judge(client, filled, first)
        filled.fill(client, 100)
        first = client.truncate_before(filled.starts[300])
        assert cleared(small, client, first), small.stderr()
        judge(client, filled, first)
