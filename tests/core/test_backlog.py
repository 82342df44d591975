"""Appends that wait for the next group: in the order in which they were sent, and dropped with the incarnation that sent them."""

from __future__ import annotations

import msgpack
from support.golden import region
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.index import Index


def small_groups() -> tuple[Broker, Index]:
    """A broker whose groups hold three small events, and its index."""
    index = Index()
    verdict = Verdict(True, True, "", 0, 0)
    identity = Identity(b"l" * 16, b"b" * 16, "0", 500)
    return Broker(
        identity, index, AppendLimits(), 2_000, lambda _: [], lambda *_, **__: 0, dict, lambda: verdict
    ), index


def test_appends_in_the_backlog_of_an_older_incarnation_are_never_applied_and_hold_up_nobody() -> None:
    broker, index = small_groups()

    def rows(first: int, count: int) -> bytes:
        ids = range(first, first + count)
        packed: bytes = msgpack.packb(
            [(3, n, 0, None, 0, None, None, [("s", None, region(n, ["t"], [b""], [b"x" * 600]))]) for n in ids]
        )
        return packed

    broker.begin(1)
    broker.take(b"other", msgpack.packb([(1, 1, "tidelog", 1, b"d" * 16, 1)]))
    broker.take(b"old", msgpack.packb([(1, 1, "tidelog", 1, b"c" * 16, 1)]))
    broker.take(b"old", rows(100, 6))
    staged = broker.appender.position
    assert 0 < staged < 6
    assert len(broker.backlog) == 6 - staged
    broker.take(b"other", rows(200, 1))
    broker.take(b"new", msgpack.packb([(1, 2, "tidelog", 1, b"c" * 16, 2)]))
    broker.committed(1, 4_096)
    assert index.head == staged  # what HELLO's answer stands behind
    broker.begin(2)
    assert not broker.backlog
    broker.committed(1, 8_192)
    assert index.head == staged + 1  # the other client's, and none that the older incarnation had queued
    other = broker.peers.find(b"other")
    assert other is not None
    assert [(reply[0], reply[4]) for reply in other.fated] == [(200, staged)]


def test_a_small_append_behind_a_large_one_that_waits_for_the_next_group_waits_too() -> None:
    broker, _ = small_groups()

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
