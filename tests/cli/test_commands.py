"""What the commands print, for people and as JSON, against a real broker."""

from __future__ import annotations

import subprocess
from uuid import uuid4

import pytest
from support.command import COMMAND, Run, refusal, rows
from support.process import BrokerProcess


def test_what_append_wrote_read_prints(tidelog: Run, category: str) -> None:
    stream, event_id = f"{category}/1", str(uuid4())
    [appended] = rows(tidelog("append", stream, "placed", "hällo", "--metadata", "m", "--id", event_id, "--json"))
    assert appended["stream"] == stream
    assert (appended["first_version"], appended["duplicate"], appended["durability"]) == (0, False, "durable")
    [event] = rows(tidelog("read", stream, "--json"))
    assert isinstance(event.pop("recorded_at"), int)
    assert event == {
        "position": appended["first_position"], "stream": stream, "version": 0, "type": "placed", "payload": "hällo",
        "metadata": "m", "id": event_id,
    }  # fmt: skip
    line = tidelog("read", stream).stdout
    assert f"{stream}@0  placed  hällo  [m]\n" in line


def test_a_repeat_with_the_same_id_says_that_it_was_there(tidelog: Run, category: str) -> None:
    command = ("append", f"{category}/1", "t", "x", "--id", str(uuid4()))
    first, again = tidelog(*command), tidelog(*command)
    assert again.stdout == first.stdout.rstrip("\n") + "  (it was there already)\n"
    [row] = rows(tidelog(*command, "--json"))
    assert row["duplicate"] is True


def test_expected_versions_are_kept(tidelog: Run, category: str) -> None:
    stream = f"{category}/1"
    assert "has no event" in refusal(tidelog("append", stream, "t", "--expected", "exists"), 1)
    assert tidelog("append", stream, "t", "--expected", "none").returncode == 0
    assert tidelog("append", stream, "t", "--expected", "0").returncode == 0
    assert tidelog("append", stream, "t", "--expected", "exists").returncode == 0
    assert tidelog("append", stream, "t", "--expected", "any").returncode == 0
    why = refusal(tidelog("append", stream, "t", "--expected", "1"), 1)
    assert f"{stream} has version 3" in why


@pytest.mark.parametrize("word", ["", "-1", "x", "1.5", "²", "NONE"])
def test_a_wrong_expected_version_is_refused_by_name(tidelog: Run, word: str) -> None:
    assert "--expected" in refusal(tidelog("append", "s", "t", "--expected", word), 64)


def test_ranges_limits_types_and_direction_reach_the_broker(tidelog: Run, category: str) -> None:
    for number in range(4):
        tidelog("append", f"{category}/{number % 2}", "odd" if number % 2 else "even", str(number))

    def payloads(*flags: str) -> list[str]:
        return [row["payload"] for row in rows(tidelog("read", *flags, "--json"))]

    assert payloads("--category", category) == ["0", "1", "2", "3"]
    assert payloads("--category", category, "--backwards", "--limit", "3") == ["3", "2", "1"]
    assert payloads("--category", category, "--type", "odd") == ["1", "3"]
    assert payloads("--category", category, "--type", "odd", "--type", "even") == ["0", "1", "2", "3"]
    assert payloads(f"{category}/1", "--start", "1") == ["3"]
    assert payloads(f"{category}/1", "--stop", "1") == ["1"]
    assert payloads("--backwards", "--limit", "1") == ["3"]


def test_tail_prints_history_then_what_comes_and_ends_after_n(tidelog: Run, category: str) -> None:
    for number in range(3):
        tidelog("append", f"{category}/1", "t", str(number))
    found = rows(tidelog("tail", "--category", category, "--start", "first", "-n", "2", "--json"))
    assert [row["payload"] for row in found] == ["0", "1"]
    found = rows(tidelog("tail", f"{category}/1", "--start", "2", "-n", "1", "--json"))
    assert [row["version"] for row in found] == [2]


def test_head_counts_events(tidelog: Run, category: str) -> None:
    before = int(tidelog("head").stdout)
    tidelog("append", f"{category}/1", "t")
    assert tidelog("head").stdout == f"{before + 1}\n"
    assert rows(tidelog("head", "--json")) == [{"head": before + 1}]


def test_streams_lists_those_with_the_prefix(tidelog: Run, category: str) -> None:
    for name in ("b", "a", "a"):
        tidelog("append", f"{category}/{name}", "t")
    found = rows(tidelog("streams", f"{category}/", "--json"))
    assert [(row["stream"], row["last_version"], row["deleted"]) for row in found] == [
        (f"{category}/a", 1, False),
        (f"{category}/b", 0, False),
    ]
    lines = tidelog("streams", f"{category}/").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["2", "1"]
    assert f"{category}/a" in lines[0]


def test_info_tells_of_the_broker_and_of_a_stream(tidelog: Run, shared: BrokerProcess, category: str) -> None:
    tidelog("append", f"{category}/1", "t")
    [figures] = rows(tidelog("info", "--json"))
    assert figures["pid"] == shared.pid
    assert f"{shared.pid}\n" in tidelog("info").stdout
    [figures] = rows(tidelog("info", f"{category}/1", "--json"))
    assert (figures["first_version"], figures["last_version"], figures["deleted"]) == (0, 0, False)
    assert f"{category}/1\n" in tidelog("info", f"{category}/1").stdout


def test_health_says_ready(tidelog: Run) -> None:
    assert tidelog("health").stdout.startswith("ready, head ")
    [row] = rows(tidelog("health", "--json"))
    assert (row["live"], row["ready"], row["reason"]) == (True, True, "")


def test_version_names_what_it_stands_on(run: Run) -> None:
    [row] = rows(run("version", "--json"))
    assert run("version").stdout == f"tidelog {row['version']}\n"
    assert {"protocol", "format", "python", "pyzmq", "libzmq", "msgpack"} < row.keys()


def test_an_unknown_stream_is_named(tidelog: Run, category: str) -> None:
    assert f"{category}/1" in refusal(tidelog("read", f"{category}/1"), 1)
    assert f"{category}/1" in refusal(tidelog("info", f"{category}/1"), 1)


def test_the_endpoint_is_flag_before_environment_before_runtime_directory(run: Run, shared: BrokerProcess) -> None:
    nowhere = "ipc:///nowhere/broker"
    assert run("head", "--endpoint", shared.endpoint, TIDELOG_ENDPOINT=nowhere).returncode == 0
    why = refusal(run("head", "--timeout", "0.2", XDG_RUNTIME_DIR="/nowhere"), 69)
    assert "ipc:///nowhere/tidelog/broker" in why
    why = refusal(run("head", "--timeout", "0.2", TIDELOG_DATA="/nowhere"), 69)
    assert "ipc:///nowhere/run/broker" in why
    assert "--endpoint" in refusal(run("head"), 64)


@pytest.mark.parametrize(
    "command",
    [("head",), ("health",), ("append", "s", "t"), ("append", "-"), ("read",), ("tail",), ("streams",), ("info",)],
)
def test_a_broker_that_is_not_there_is_exit_69_and_a_line_that_helps(run: Run, command: tuple[str, ...]) -> None:
    why = refusal(run(*command, "--endpoint", "ipc:///nowhere/broker", "--timeout", "0.2"), 69)
    assert "ipc:///nowhere/broker" in why
    assert "tidelog serve" in why


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--wrong",), "--wrong"),
        (("nothing",), "nothing"),
        (("head", "--wrong"), "--wrong"),
        (("serve", "--wrong"), "--wrong"),
        (("bench", "--wrong"), "--wrong"),
        (("read", "--type", "\udcff"), "UTF-8"),
        (("read", "--start", "x"), "--start"),
        (("read", "--start", "-1"), "--start"),
        (("read", "--limit", "9223372036854775808"), "--limit"),
        (("read", "s", "--category", "c"), "--category"),
        (("read", "--category", "a/b"), "category"),
        (("tail", "--start", "soon"), "--start"),
        (("tail", "-n", "0"), "-n"),
        (("head", "--timeout", "-1"), "--timeout"),
        (("head", "--endpoint", "nonsense"), "endpoint"),
        (("append",), "STREAM"),
        (("append", "s"), "TYPE"),
        (("append", "-", "--expected", "any"), "STREAM TYPE"),
        (("append", "s", "t", "--id", "7"), "--id"),
        (("append", "s", ""), "type"),
        (("append", "a\nb", "t"), "stream"),
    ],
)
def test_wrong_usage_is_exit_64_and_names_what_is_wrong(tidelog: Run, arguments: tuple[str, ...], name: str) -> None:
    assert name in refusal(tidelog(*arguments), 64)


def test_output_that_can_t_be_written_is_exit_74() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (74, "tidelog: input or output failed: No space left on device\n")


def test_nothing_that_others_wrote_reaches_the_terminal_as_a_control_character(tidelog: Run, category: str) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x7f\x9b"
    stream = f"{category}/\u202e"
    line = f'{{"stream": "{stream}", "type": "\\u001b[31m", "payload_b64": "G1szMW3/Cg==", "metadata": "\\u009b\\n"}}\n'
    assert tidelog("append", "-", input=line).returncode == 0
    assert tidelog("append", stream, "t", evil).returncode == 0
    for command in ("read", stream), ("streams", category), ("info", stream), ("read", f"{stream}{evil}"):
        for form in (), ("--json",):
            done = tidelog(*command, *form)
            assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr), command
