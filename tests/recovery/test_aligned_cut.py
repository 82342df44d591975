"""With `align`, for disks whose interrupted block write leaves garbage, a start cuts and zeroes only from the next block on: the
last group's block holds what was acknowledged (DURABILITY.md)."""

from __future__ import annotations

from random import Random

import pytest
from support.builders import Writer, seeded_random
from support.cases import FIRST
from support.crashes import ALIGNED
from support.simdisk import Image, SimDisk
from tidelog_broker.core.recovery import Group
from tidelog_broker.log import Log


def opened(disk: SimDisk, start: int) -> tuple[Log, list[bytes]]:
    bodies: list[bytes] = []

    def replay(ordinal: int, group: Group) -> None:
        bodies.append(group.body)

    return Log.open(disk, ALIGNED, seeded_random(b"%d" % start), replay), bodies


@pytest.mark.parametrize("torn", [False, True])
def test_a_power_cut_in_recovery_never_takes_the_last_acknowledged_group(torn: bool) -> None:
    disk = SimDisk()
    writer = Writer()
    log, _ = opened(disk, 1)
    bodies = [writer.commit(log, [("s/1", [writer.payload(64)])]) for _ in range(3)]
    end = log.end
    image = disk.durable()
    if torn:
        content = bytearray(image[FIRST])
        content[end : end + 500] = b"torn" * 125
        image[FIRST] = bytes(content)
    disk = SimDisk(image)
    states: list[Image] = []

    def before(op: str, name: str) -> None:
        states.extend(disk.crash_states(Random(len(states)), 64, garbage=True))

    disk.before = before
    _, found = opened(disk, 2)
    assert found == bodies
    assert states
    for state in states:
        _, found = opened(SimDisk(state), 3)
        assert found == bodies
