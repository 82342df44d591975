"""Ctrl-C and a reader that goes away: quiet, and with the exit code that shells expect."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

from support.command import Run
from support.process import BrokerProcess

Popen = Callable[..., "subprocess.Popen[bytes]"]


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_ctrl_c_ends_tail_quietly(tidelog: Run, popen: Popen, category: str) -> None:
    tidelog("append", f"{category}/1", "t")
    tail = popen("tail", f"{category}/1", "--start", "first")
    assert tail.stdout is not None
    assert tail.stdout.readline()
    assert interrupt(tail) == (130, b"")


def test_ctrl_c_ends_append_quietly(popen: Popen, category: str) -> None:
    feed = popen("append", "-", "--json")
    assert feed.stdin is not None
    assert feed.stdout is not None
    feed.stdin.write(json.dumps({"stream": f"{category}/1", "type": "t"}).encode() + b"\n")
    feed.stdin.flush()
    assert feed.stdout.readline()
    assert interrupt(feed) == (130, b"")


def test_ctrl_c_stops_a_broker_cleanly(broker: BrokerProcess) -> None:
    broker.signal(signal.SIGINT)
    assert broker.wait() == 0
    assert broker.stderr() == ""


def test_a_reader_that_goes_away_ends_read_quietly(tidelog: Run, popen: Popen, category: str) -> None:
    line = json.dumps({"stream": f"{category}/1", "type": "t", "payload": "x" * 1_000}) + "\n"
    tidelog("append", "-", input=line * 2_000)
    read = popen("read", f"{category}/1")
    assert read.stdout is not None
    assert read.stderr is not None
    assert read.stdout.readline()
    read.stdout.close()
    assert read.wait(20) == 141
    assert read.stderr.read() == b""


def test_a_reader_that_goes_away_ends_tail_quietly(tidelog: Run, popen: Popen, category: str) -> None:
    tidelog("append", f"{category}/1", "t")
    tail = popen("tail", f"{category}/1", "--start", "first")
    assert tail.stdout is not None
    assert tail.stderr is not None
    assert tail.stdout.readline()
    tail.stdout.close()
    tidelog("append", f"{category}/1", "t")
    assert tail.wait(20) == 141
    assert tail.stderr.read() == b""
