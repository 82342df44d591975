"""What waits for the next group when its client says HELLO anew is dropped: applied before that answer, or never (spec §6)."""

from __future__ import annotations

import msgpack
from support.golden import region
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.index import Index


def test_appends_in_the_backlog_of_an_older_incarnation_are_never_applied_and_hold_up_nobody() -> None:
    index = Index()
    broker = Broker(
        Identity(b"l" * 16, b"b" * 16, "0", 500),
        index,
        AppendLimits(),
        2_000,
        lambda _: [],
        lambda *_, **__: 0,
        dict,
        lambda: Verdict(True, True, "", 0, 0),
    )

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
