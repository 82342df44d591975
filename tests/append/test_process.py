"""What the broker does for its own process: room for connections, and a thread that nothing may end."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import msgpack
import pytest
from e2e.raw_client import dealer
from support.process import BrokerProcess
from tidelog import Client

SOFT_LIMIT = 40


def limits_of(pid: int) -> list[str]:
    """Soft and hard limit of open files."""
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(row for row in rows if row.startswith("Max open files")).split()[3:5]


def test_the_broker_raises_its_limit_of_open_files_to_the_hard_one(folder: Path) -> None:
    """Each connection is a descriptor, and the soft limit of most shells is 1,024: here it is 40, and 100 clients come."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    broker = BrokerProcess(folder)
    try:
        broker.start(wrapper=("sh", "-c", f'ulimit -Sn {SOFT_LIMIT}; exec "$@"', "sh"))
        assert limits_of(broker.pid) == [str(hard)] * 2
        clients = [Client(broker.endpoint, timeout=30.0) for _ in range(100)]
        try:
            assert {client.head() for client in clients} == {0}
        finally:
            for client in clients:
                client.close()
    finally:
        broker.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_garbage_on_the_health_socket_ends_neither_answers_nor_the_stop(
    start_broker: Callable[..., BrokerProcess], number: signal.Signals
) -> None:
    """The thread that answers health also turns signals into a stop: questions of every shape, then a stop that works."""
    broker = start_broker()
    dice = Random(7)
    frames = [b"", b"\xc1", b"\x93" * 2_000, b"\xdd\xff\xff\xff\xff", msgpack.packb([[11, -1], [11, 2**63]]),
              msgpack.packb([[11, 1, [[[]]]]]), msgpack.packb([[True, 1]]), msgpack.packb({1: 2})]  # fmt: skip
    frames += [dice.randbytes(dice.randrange(64)) for _ in range(300)]
    with closing(dealer(broker.endpoint + ".health")) as socket:
        for frame in frames:
            socket.send(frame)
            socket.send_multipart([frame] * dice.randrange(2, 6))
        socket.send(msgpack.packb([[11, 77]]))
        for _ in range(3 * len(frames)):
            assert socket.poll(20_000), broker.stderr()
            if msgpack.unpackb(socket.recv(), strict_map_key=False)[0][:2] == [77, 0]:
                break
        else:
            raise AssertionError("the question behind the garbage was not answered")
    broker.signal(number)
    assert broker.wait(30.0) == 0, broker.stderr()
