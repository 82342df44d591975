"""`tidelog append -`: JSON lines on standard input."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from support.command import Run, refusal, rows
from support.process import BrokerProcess
from tidelog import Client
from tidelog_broker.cli_lines import WrongLine, parse_line


def lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in objects)


def test_lines_become_events_in_their_order(tidelog: Run, shared: BrokerProcess, category: str) -> None:
    given = [
        {"stream": f"{category}/{number // 7 % 3}", "type": "t", "payload": str(number)} for number in range(5_000)
    ]
    done = tidelog("append", "-", input=lines(*given))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5,000 events in 7"), "715 runs of neighbours, a few of them cut by a read"
    with Client(shared.endpoint) as client:
        assert [event.payload for event in client.read_category(category)] == [row["payload"].encode() for row in given]


def test_payloads_are_text_json_or_base64(tidelog: Run, category: str) -> None:
    event_id = str(uuid4())
    given: list[dict[str, Any]] = [
        {"payload": "text"}, {"payload": {"b": [1, None, "ä"]}}, {"payload": None}, {"payload_b64": "AP8="}, {},
        {"metadata": "m", "id": event_id}, {"metadata_b64": "/w=="},
    ]  # fmt: skip
    stream = f"{category}/1"
    assert (
        tidelog("append", "-", input=lines(*({"stream": stream, "type": "t", **row} for row in given))).returncode == 0
    )
    found = rows(tidelog("read", stream, "--json"))
    assert [row.get("payload", row.get("payload_b64")) for row in found] == [
        "text", '{"b":[1,null,"ä"]}', "null", "AP8=", "", "", ""
    ]  # fmt: skip
    assert (found[5]["metadata"], found[5]["id"], found[6]["metadata_b64"]) == ("m", event_id, "/w==")


def test_what_read_prints_append_takes(
    tidelog: Run, run: Run, start_broker: Callable[..., BrokerProcess], category: str
) -> None:
    given = [
        {"stream": f"{category}/{number % 3}", "type": f"t{number % 2}", "payload_b64": "/w=="} for number in range(9)
    ]
    tidelog("append", "-", input=lines(*given))
    printed = tidelog("read", "--category", category, "--json").stdout
    copy = start_broker()
    assert run("append", "-", input=printed, TIDELOG_ENDPOINT=copy.endpoint).returncode == 0
    again = run("read", "--json", TIDELOG_ENDPOINT=copy.endpoint)

    def facts(text: str) -> list[tuple[str, ...]]:
        keys = ("stream", "version", "type", "payload_b64", "id")
        return [tuple(row[key] for key in keys) for row in map(json.loads, text.splitlines())]

    assert facts(again.stdout) == facts(printed)


def test_json_output_is_a_line_for_each_append(tidelog: Run, category: str) -> None:
    given = [{"stream": f"{category}/{name}", "type": "t"} for name in "aab"]
    found = rows(tidelog("append", "-", "--json", input=lines(*given)))
    assert [(row["stream"], row["first_version"], row["last_version"]) for row in found] == [
        (f"{category}/a", 0, 1),
        (f"{category}/b", 0, 0),
    ]


def test_a_live_feed_is_not_held_back(popen: Callable[..., subprocess.Popen[bytes]], category: str) -> None:
    feed = popen("append", "-", "--json")
    assert feed.stdin is not None
    assert feed.stdout is not None
    for version in range(3):
        feed.stdin.write(lines({"stream": f"{category}/1", "type": "t"}).encode())
        feed.stdin.flush()
        assert select.select([feed.stdout], [], [], 20)[0], "no answer while the input stays open"
        assert json.loads(feed.stdout.readline())["last_version"] == version
    feed.stdin.close()
    assert feed.wait(20) == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "not JSON"),
        ('{"stream": "s"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"stream": "s", "type": "t", "payload": NaN}', "NaN"),
        ("\ufeff\xff", "not JSON"),
        ("[]", "object"),
        ('{"type": "t"}', "stream"),
        ('{"stream": "s"}', "type"),
        ('{"stream": 1, "type": "t"}', "stream"),
        ('{"stream": "s", "type": "t", "paylaod": ""}', "paylaod"),
        ('{"stream": "s", "type": "t", "payload": "", "payload_b64": ""}', "payload_b64"),
        ('{"stream": "s", "type": "t", "payload_b64": "ä"}', "payload"),
        ('{"stream": "s", "type": "t", "payload_b64": 7}', "payload"),
        ('{"stream": "s", "type": "t", "payload": "\\ud800"}', "payload"),
        ('{"stream": "s", "type": "t", "id": "7"}', "id"),
        ('{"stream": "s", "type": "t", "id": 7}', "id"),
    ],
)
def test_a_line_that_is_no_event_is_refused_by_reason(line: str, why: str) -> None:
    with pytest.raises(WrongLine, match=why):
        parse_line(line.encode("latin-1", "replace") if "\xff" in line else line.encode())


def test_a_wrong_line_is_named_and_nothing_behind_it_is_sent(tidelog: Run, category: str) -> None:
    good = {"stream": f"{category}/1", "type": "t"}
    done = tidelog("append", "-", input=lines(good, good) + "nonsense\n" + lines(good))
    why = refusal(done, 64)
    assert "line 3: not JSON" in why
    assert "2 events" in why
    assert len(rows(tidelog("read", f"{category}/1", "--json"))) == 2


def test_a_refused_line_is_named(tidelog: Run, category: str) -> None:
    good = {"stream": f"{category}/1", "type": "t"}
    large = {"stream": f"{category}/2", "type": "t", "payload": "x" * 70_000}
    why = refusal(tidelog("append", "-", input=lines(good, large)), 64)
    assert "line 2: " in why
    assert "1 events of other lines" in why


def test_a_line_without_end_is_refused_with_bounded_memory(tidelog: Run) -> None:
    assert "line 1: longer than" in refusal(tidelog("append", "-", input=b"x" * (17 << 20)), 64)


def test_no_input_appends_nothing(tidelog: Run) -> None:
    assert tidelog("append", "-", input="").stdout == "0 events in 0 appends\n"
    assert tidelog("append", "-", input="\n\n").stdout == "0 events in 0 appends\n"


def test_the_last_line_needs_no_line_end(tidelog: Run, category: str) -> None:
    text = lines({"stream": f"{category}/1", "type": "t"}).rstrip("\n")
    assert tidelog("append", "-", input=text).stdout.startswith("1 events in 1 appends")


def test_lower_limits_of_the_broker_are_kept(start_broker: Callable[..., BrokerProcess], run: Run) -> None:
    broker = start_broker("--append-events-max", "3", "--append-bytes-max", "200", "--event-bytes-max", "100")
    given = [{"stream": "s", "type": "t", "payload": "x" * 50} for _ in range(10)]
    done = run("append", "-", input=lines(*given), TIDELOG_ENDPOINT=broker.endpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 events in ")
