"""A broker that must not start says why in one line, with the exit code of spec §16, and changes nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Run, refusal
from support.process import BrokerProcess
from tidelog import Client, Event

Start = Callable[..., BrokerProcess]


def image(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_broker_on_the_same_directory_exits_73_and_names_the_pid(
    run: Run, broker: BrokerProcess, folder: Path
) -> None:
    other = f"ipc://{folder}/other"
    assert f"process {broker.pid}" in refusal(run("serve", "--data", str(broker.data), "--bind", other), 73)
    link = folder / "link"
    link.symlink_to(broker.data)
    assert f"process {broker.pid}" in refusal(run("serve", "--data", str(link), "--bind", other), 73)
    relative = os.path.relpath(broker.data)
    assert f"process {broker.pid}" in refusal(run("serve", "--data", relative, "--bind", other), 73)
    with Client(broker.endpoint) as client:
        assert client.append("s", Event("t")).first_position == 0


def test_a_broker_starts_where_the_first_was_killed(broker: BrokerProcess) -> None:
    with Client(broker.endpoint) as client:
        client.append("s", Event("t"))
    broker.kill()
    broker.start()
    assert broker.ready_line == f"ready {broker.endpoint} head 1"


def test_an_ipc_address_of_another_broker_exits_73_and_leaves_it_alone(
    run: Run, broker: BrokerProcess, folder: Path
) -> None:
    why = refusal(run("serve", "--data", str(folder / "d"), "--bind", broker.endpoint), 73)
    assert broker.endpoint in why
    with Client(broker.endpoint) as client:
        assert client.head() == 0


def test_a_tcp_port_in_use_exits_73(run: Run, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert address in refusal(run("serve", "--data", str(folder / "d"), "--bind", address), 73)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]", "192.0.2.1", "example.org"])
def test_tcp_beyond_this_host_exits_78(run: Run, folder: Path, host: str) -> None:
    for check in (), ("--check",):
        why = refusal(run("serve", "--data", str(folder / "d"), "--bind", f"tcp://{host}:7700", *check), 78)
        assert host in why
    assert not (folder / "d").exists()


def test_a_broker_listens_on_loopback_tcp(start_broker: Start, folder: Path) -> None:
    place = folder / "tcp"
    place.mkdir()
    broker = BrokerProcess(place)
    broker.endpoint = "tcp://127.0.0.1:*"
    broker.start()
    try:
        endpoint = broker.ready_line.split()[1]
        assert not endpoint.endswith("*")
        with Client(endpoint) as client:
            assert client.append("s", Event("t")).first_position == 0
    finally:
        broker.close()


def test_a_path_too_long_for_a_socket_is_refused_with_its_bound(run: Run, folder: Path) -> None:
    address = f"ipc://{folder}/{'x' * 110}"
    assert "107" in refusal(run("serve", "--data", str(folder / "d"), "--bind", address), 64)
    deep = folder / ("x" * 110)
    assert "107" in refusal(run("serve", "--data", str(deep)), 64)
    assert not deep.exists()


def test_a_directory_of_others_exits_65_and_stays_as_it_is(run: Run, folder: Path) -> None:
    data = folder / "d"
    data.mkdir()
    (data / "letter.txt").write_text("dear")
    why = refusal(run("serve", "--data", str(data), "--bind", f"ipc://{folder}/b"), 65)
    assert "letter.txt" in why
    assert image(data) == {"letter.txt": b"dear"}


def test_a_file_in_place_of_the_directory_is_named(run: Run, folder: Path) -> None:
    (folder / "d").write_text("dear")
    assert str(folder / "d") in refusal(run("serve", "--data", str(folder / "d"), "--bind", f"ipc://{folder}/b"), 74)


@pytest.mark.parametrize(("offset", "value", "word"), [(8, 2, "newer"), (0, 0, "magic"), (60, 1, "checksum")])
def test_a_segment_that_can_t_be_read_exits_65_and_stays_as_it_is(
    run: Run, broker: BrokerProcess, offset: int, value: int, word: str
) -> None:
    with Client(broker.endpoint) as client:
        client.append("s", Event("t", b"payload"))
    assert broker.stop() == 0
    segment = next(path for path in broker.data.iterdir() if path.name.startswith("0000000001-"))
    data = bytearray(segment.read_bytes())
    data[offset] = data[offset] + 1 & 0xFF if offset == 60 else value
    segment.write_bytes(data)
    before = image(broker.data)
    why = refusal(run("serve", "--data", str(broker.data), "--bind", broker.endpoint), 65)
    assert word in why
    assert image(broker.data) == before
