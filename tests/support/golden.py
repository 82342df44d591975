"""The log whose bytes are frozen under tests/golden/v1: made by the real rules from fixed requests, times and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
from tidelog.batch import pack_columns
from tidelog_broker.core.appender import Appender, AppendLimits
from tidelog_broker.core.format import pack_control
from tidelog_broker.core.index import Index
from tidelog_broker.disk import Disk
from tidelog_broker.log import LogSettings
from tidelog_broker.store import Store

SETTINGS = LogSettings(segment_bytes=6_144, group_bytes_max=1 << 20, zero_step=4_096, prepare_ahead=4_096)
START_US = 1_700_000_000_000_000


def counting_random() -> Callable[[int], bytes]:
    """Bytes that count calls: sixteen of 01, sixteen of 02, …"""
    calls = 0

    def random(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return bytes([calls]) * count

    return random


def region(first_id: int, types: list[str], metadata: list[bytes], payloads: list[bytes]) -> bytes:
    """An events region with ids that count from `first_id`."""
    ids = b"".join((first_id + place).to_bytes(16, "big") for place in range(len(payloads)))
    return pack_columns(ids, types, metadata, payloads)


def groups() -> list[list[list[tuple[str, Any, bytes | None]]]]:
    """The requests: groups of appends of writes (stream, expected version, events)."""
    one = region(1, ["placed"], [b""], [b"first"])
    three = region(2, ["placed", "paid", "placed"], [b"", b"m", b""], [b"a", b"", b"\x00\xff"])
    return [
        [[("orders/1", False, one)]],
        [[("orders/1", 0, three)], [("käse", None, region(5, ["µ"], [b"meta"], [b"B" * 300]))]],
        [
            [
                ("orders/2", False, region(6, ["placed"], [b""], [b"two streams"])),
                ("orders/1", 3, None),
                ("stock/9", None, region(7, ["taken", "taken"], [b"", b""], [b"x" * 500, b"y" * 500])),
            ]
        ],
        [[("orders/2", True, region(9, ["TLGR"], [b""], [b"TLGRTLSL" * 20]))]],
        [[("long/stream", None, region(10, ["t"] * 40, [b""] * 40, [b"%d" % n for n in range(40)]))]],
    ]


def write_golden_log(disk: Disk, *, controls: bool) -> None:
    """Make the log: five groups of events, with `controls` one of control batches, two rolls, a clean stop."""
    store = Store(disk, SETTINGS, counting_random())
    log = store.log
    appender = Appender(store.index, AppendLimits(), log.body_bytes_max, store.original)
    for number, group in enumerate(groups()):
        for request_id, writes in enumerate(group):
            packed = msgpack.packb((3, request_id, 0, None, 0, None, None, writes))
            appender.admit(msgpack.unpackb(packed, use_list=False), START_US + number, 0)
        place = log.commit(appender.parts, len(appender.staged), appender.position)
        appender.commit(*place)
        if controls and number == 1:
            batches = [
                b"".join(pack_control(1, ["session", 1], START_US)),
                b"".join(pack_control(2, ["cursor", 3, None, 0], START_US)),
                b"".join(pack_control(6, ["orders", 10**9, None, None, False], START_US)),
            ]
            log.commit(batches, len(batches), log.head)
    log.close()


def replayed(index: Index) -> list[tuple[str, int]]:
    """(stream, next version) of every stream: what an opened index must hold."""
    return sorted((name, stream.next_version) for name, (stream, _) in index.tail.streams.items())
