"""Finding a position by its time: bisection over batch headers, whatever the batches hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.raw_client import event, pack_region
from machines.loop import Loop
from support.simdisk import SimDisk
from tidelog.batch import HEADER_BYTES
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.log import LogSettings

APPENDS = 64
PROBES_MAX = 7
"""Bisection of 64 batches looks at no more."""


@contextmanager
def reads_counted(disk: SimDisk) -> Iterator[list[int]]:
    """[calls, bytes] of the reads inside the block, filled in at its end."""
    counted: list[int] = []
    calls, size = disk.reads, disk.read_bytes
    yield counted
    counted += [disk.reads - calls, disk.read_bytes - size]


def test_position_at_reads_a_few_batch_headers_and_at_most_two_batches() -> None:
    disk = SimDisk()
    loop = Loop(disk, LogSettings(zero_step=1 << 20), AppendLimits(), b"times")
    for number in range(APPENDS):
        loop.broker.begin(1_000 * (number + 1))
        region = pack_region([event("t", bytes(30_000)), event("t", bytes(30_000))])
        loop.send([3, number + 1, 0, None, 0, None, None, [[f"s/{number % 3}", None, region]]])
        loop.commit()
    for when, position in ((0, 0), (1_000, 0), (1_001, 2), (32_000, 62), (32_500, 64), (64_000, 126), (64_001, 128)):
        with reads_counted(disk) as counted:
            assert loop.ask(8, 0, when)[0][2] == position
        calls, size = counted
        assert 0 < calls <= PROBES_MAX + 2
        # All headers, but for the two whole batches that decide.
        assert size <= PROBES_MAX * HEADER_BYTES + 2 * 61_000
