"""`tidelog export` and `tidelog import`: a log's events as lines of JSON, and back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from support.command import COMMAND, Run, refusal
from support.process import BrokerProcess
from tidelog import Client, Event, Recorded, Write
from tidelog_broker.cli_lines import WrongLine, parse_exported

KEPT = ("stream", "version", "type", "payload", "metadata", "id")


def kept(event: Recorded) -> tuple[Any, ...]:
    return tuple(getattr(event, name) for name in KEPT)


def events(broker: BrokerProcess) -> list[Recorded]:
    with Client(broker.endpoint, timeout=30.0) as client:
        return list(client.read_all())


@pytest.fixture
def source(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """Streams in turn, several in one append, text, JSON, bytes that are no text, and long ones."""
    broker = start_broker()
    with Client(broker.endpoint, timeout=30.0) as client:
        for number in range(40):
            payload = [b"text", b'{"a": 1}', bytes([255, 0, number]), "käse €".encode(), b""][number % 5]
            metadata = [b"", b"m", b"\xff"][number % 3]
            client.append(f"a/{number % 3}", Event(f"t{number % 2}", payload, metadata))
        client.append_many([Write("a/1", [Event("x"), Event("y")]), Write("b/1", Event("z", os.urandom(40_000)))])
        client.append("long", [Event("l", b"%d" % number) for number in range(700)])
        client.append("a/0", Event("last"))
    return broker


def test_what_is_exported_is_imported_as_the_same_events(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess], folder: Path, run: Run
) -> None:
    copy = start_broker()
    lines = run("export", "--endpoint", source.endpoint).stdout
    assert len(lines.splitlines()) == 744
    done = run("import", "--endpoint", copy.endpoint, input=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("744 events in ")
    assert [kept(event) for event in events(copy)] == [kept(event) for event in events(source)]
    # What was imported is exported as it was, but for the times.
    again = run("export", "--endpoint", copy.endpoint).stdout

    def timeless(text: str) -> list[dict[str, Any]]:
        return [{**json.loads(line), "recorded_at": 0} for line in text.splitlines()]

    assert timeless(again) == timeless(lines)
    (folder / "lines").write_text(lines)
    repeat = run("import", str(folder / "lines"), "--endpoint", copy.endpoint)
    assert "744 of them were there already" in repeat.stdout, repeat.stderr
    assert len(events(copy)) == 744


def test_export_and_import_can_be_joined_by_a_pipe(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess]
) -> None:
    copy = start_broker()
    with subprocess.Popen([*COMMAND, "export", "--endpoint", source.endpoint], stdout=subprocess.PIPE) as export:
        done = subprocess.run(
            [*COMMAND, "import", "--endpoint", copy.endpoint], stdin=export.stdout, capture_output=True, timeout=60
        )
        assert export.wait(20) == 0
    assert done.returncode == 0, done.stderr
    assert [kept(event) for event in events(copy)] == [kept(event) for event in events(source)]


def test_a_part_can_be_exported(source: BrokerProcess, run: Run) -> None:
    def exported(*arguments: str) -> list[dict[str, Any]]:
        done = run("export", "--endpoint", source.endpoint, *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    whole = exported()
    assert exported("--start", "10", "--stop", "20") == whole[10:20]
    assert exported("--category", "a") == [row for row in whole if row["stream"].startswith("a/")]
    assert exported("--stream", "a/1", "--start", "2") == [row for row in whole if row["stream"] == "a/1"][2:]
    assert refusal(run("export", "--endpoint", source.endpoint, "--stream", "nobody"), 1)
    assert "not both" in refusal(run("export", "--endpoint", source.endpoint, "--stream", "a", "--category", "a"), 64)


def test_an_import_in_two_steps_goes_on_where_the_first_ended(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess], run: Run
) -> None:
    copy = start_broker()
    lines = run("export", "--endpoint", source.endpoint).stdout.splitlines(keepends=True)
    for part in (lines[:30], lines[30:]):
        assert run("import", "--endpoint", copy.endpoint, input="".join(part)).returncode == 0
    assert [kept(event) for event in events(copy)] == [kept(event) for event in events(source)]


def test_a_stream_that_has_other_events_refuses_an_import(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess], run: Run
) -> None:
    copy = start_broker()
    with Client(copy.endpoint, timeout=20.0) as client:
        client.append("a/1", Event("of another life"))
    lines = run("export", "--endpoint", source.endpoint, "--stream", "a/1").stdout
    told = refusal(run("import", "--endpoint", copy.endpoint, input=lines), 1)
    assert "lines 1 to " in told
    assert "a/1 has version 0" in told
    assert len(events(copy)) == 1
    assert run("import", "--any", "--endpoint", copy.endpoint, input=lines).returncode == 0
    assert [event.version for event in events(copy)] == list(range(len(lines.splitlines()) + 1))


def test_a_hole_in_the_lines_is_refused(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess], run: Run
) -> None:
    copy = start_broker()
    lines = run("export", "--endpoint", source.endpoint, "--stream", "long").stdout.splitlines(keepends=True)
    told = refusal(run("import", "--endpoint", copy.endpoint, input="".join([*lines[:300], *lines[301:]])), 1)
    assert "lines 301 to " in told
    assert "long has version 299" in told
    assert len(events(copy)) == 300


def test_a_wrong_line_is_named_and_the_import_can_be_repeated_without_it(
    source: BrokerProcess, start_broker: Callable[..., BrokerProcess], run: Run
) -> None:
    """An append is never cut at the wrong line: the repeat would meet a part of itself."""
    copy = start_broker()
    lines = run("export", "--endpoint", source.endpoint, "--stream", "long").stdout.splitlines(keepends=True)
    told = refusal(run("import", "--endpoint", copy.endpoint, input="".join([*lines[:300], "{}\n", *lines[300:]])), 64)
    assert told.startswith("tidelog: line 301: ")
    assert len(events(copy)) == 256
    assert "256 of them were there already" in run("import", "--endpoint", copy.endpoint, input="".join(lines)).stdout
    assert len(events(copy)) == 700


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": None}, "version"),
        ({"version": -1}, "version"),
        ({"version": True}, "version"),
        ({"version": "1"}, "version"),
        ({"id": None}, "id"),
        ({"id": "x"}, "UUID"),
        ({"other": 1}, "other"),
        ({"payload_b64": "!"}, "payload"),
        ({"type": 3}, "type"),
    ],
)
def test_a_line_that_export_would_not_print_is_refused(change: dict[str, Any], word: str) -> None:
    row: dict[str, Any] = {"stream": "s", "version": 1, "type": "t", "id": str(uuid4())}
    stream, event, version = parse_exported(json.dumps(row).encode())
    assert (stream, event, version) == ("s", Event("t", id=UUID(row["id"])), 1)
    with pytest.raises(WrongLine, match=word):
        parse_exported(json.dumps(row | change).encode())


def test_an_import_from_a_file_that_is_not_there_is_a_wrong_argument(broker: BrokerProcess, run: Run) -> None:
    assert "No such file" in refusal(run("import", "/nowhere/lines", "--endpoint", broker.endpoint), 64)
