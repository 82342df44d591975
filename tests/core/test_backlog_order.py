"""Appends of one connection are admitted in the order in which they were sent: behind one that waits for the next group, all
wait, and those that would still fit, too."""

from __future__ import annotations

import msgpack
from support.golden import region
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.index import Index


def test_a_small_append_behind_a_large_one_that_waits_for_the_next_group_waits_too() -> None:
    broker = Broker(
        Identity(b"l" * 16, b"b" * 16, "0", 500),
        Index(),
        AppendLimits(),
        2_000,
        lambda _: [],
        lambda *_, **__: 0,
        dict,
        lambda: Verdict(True, True, "", 0, 0),
    )

    def take(first: int, *sizes: int) -> None:
        rows = [
            (3, first + n, 0, None, 0, None, None, [("s", None, region(first + n, ["t"], [b""], [b"x" * size]))])
            for n, size in enumerate(sizes)
        ]
        broker.take(b"id", msgpack.packb(rows))

    broker.begin(1)
    broker.take(b"id", msgpack.packb([(1, 1, "tidelog", 1, b"c" * 16, 1)]))
    take(10, 5)  # from here on its stream and type are known, and the short way is open
    broker.committed(1, 4_096)
    broker.begin(2)
    take(20, 1_200, 1_200, 5, 5)
    assert broker.appender.position == 2  # the second large one waits
    assert len(broker.backlog) == 3
    broker.committed(1, 8_192)
    broker.begin(3)
    peer = broker.peers.find(b"id")
    assert peer is not None
    assert [(reply[0], reply[4]) for reply in peer.fated] == [(10, 0), (20, 1), (21, 2), (22, 3), (23, 4)]
