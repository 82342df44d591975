"""One broker per log directory (T-13): the lock is the kernel's and goes with the process."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.process import BrokerProcess
from tidelog import Client, Event


def second(broker: BrokerProcess, folder: Path) -> BrokerProcess:
    """Another broker on the same directory, with sockets of its own."""
    place = folder / "second"
    place.mkdir(exist_ok=True)
    other = BrokerProcess(place)
    other.data = broker.data
    return other


def stored(data: Path) -> dict[str, bytes]:
    """Every file but marks, up to its last byte that is not zero: the first broker may prepare space and mark."""
    return {path.name: path.read_bytes().rstrip(b"\0") for path in data.iterdir() if path.name != "marks"}


def refused(other: BrokerProcess) -> str:
    started = time.monotonic()
    run = subprocess.run(other.command(), capture_output=True, timeout=20)
    assert run.returncode == 73, run.stderr.decode()
    assert time.monotonic() - started < 5
    assert run.stdout == b""
    return run.stderr.decode()


@pytest.mark.parametrize("way", ["the same path", "a symlink", "a path with dots"])
def test_a_second_broker_on_the_same_directory_ends_with_73_and_names_the_first_ones_pid(
    broker: BrokerProcess, folder: Path, way: str
) -> None:
    """T-13"""
    other = second(broker, folder)
    if way == "a symlink":
        other.data = folder / "link"
        other.data.symlink_to(broker.data, target_is_directory=True)
    elif way == "a path with dots":
        other.data = broker.data / ".." / "data"
    with Client(broker.endpoint, timeout=10.0) as client:
        client.append("s", Event("a"))
        before = stored(broker.data)
        text = refused(other)
        assert str(broker.pid) in text
        assert len(text.strip().splitlines()) == 1
        assert stored(broker.data) == before
        client.append("s", Event("b"))
        assert client.head() == 2


def test_a_second_broker_starts_once_the_first_was_killed(broker: BrokerProcess, folder: Path) -> None:
    """T-13"""
    other = second(broker, folder)
    with Client(broker.endpoint, timeout=10.0) as client:
        client.append("s", Event("a", b"kept"))
    refused(other)
    broker.kill()
    try:
        other.start()
        with Client(other.endpoint, timeout=10.0) as client:
            assert [event.payload for event in client.read_all()] == [b"kept"]
        assert broker.pid != other.pid
        broker.endpoint = f"ipc://{folder}/third/broker"
        assert str(other.pid) in refused(broker)
    finally:
        other.close()


def test_a_broker_that_is_stopped_by_a_signal_still_holds_its_log(broker: BrokerProcess, folder: Path) -> None:
    """T-13: SIGSTOP is no death."""
    broker.signal(signal.SIGSTOP)
    try:
        assert str(broker.pid) in refused(second(broker, folder))
    finally:
        broker.signal(signal.SIGCONT)


def test_a_second_broker_on_the_same_endpoint_ends_with_73_and_the_first_goes_on(
    broker: BrokerProcess, new_broker: Callable[..., BrokerProcess]
) -> None:
    """T-13: another directory, the same socket: a second bind of an ipc path would steal it."""
    other = new_broker()
    other.endpoint = broker.endpoint
    refused(other)
    with Client(broker.endpoint, timeout=10.0) as client:
        client.append("s", Event("a"))
        assert client.head() == 1
