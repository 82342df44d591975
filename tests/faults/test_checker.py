"""The judge of T-10 sees every kind of broken promise: one that never says no would prove nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.checker import judge
from support.writer import payload_of
from tidelog import Recorded


def recorded(position: int, stream: str, version: int, number: int) -> Recorded:
    event_id = bytes([number]) * 16
    return Recorded(
        position, stream, version, "a", payload_of(event_id), event_id[:3], UUID(bytes=event_id), 1_000 + position
    )


def ids(*numbers: int) -> list[str]:
    return [(bytes([number]) * 16).hex() for number in numbers]


@dataclass
class World:
    """Three acknowledged appends, one refused, one unknown and stored, one unknown and absent; and a subscriber."""

    log: list[Recorded] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = [
            recorded(0, "s", 0, 1), recorded(1, "s", 1, 2), recorded(2, "t", 0, 3), recorded(3, "s", 2, 4),
            recorded(4, "t", 1, 5), recorded(5, "s", 3, 6), recorded(6, "s", 4, 7),
        ]  # fmt: skip
        self.notes = [
            {"what": "send", "number": 1, "at": 10, "writes": [["s", ids(1, 2)]]},
            {"what": "ack", "number": 1, "at": 20, "places": [[0, 1, 0, 1]]},
            {"what": "send", "number": 2, "at": 30, "writes": [["t", ids(3)], ["s", ids(4)]]},
            {"what": "ack", "number": 2, "at": 40, "places": [[2, 2, 0, 0], [3, 3, 2, 2]]},
            {"what": "send", "number": 3, "at": 50, "writes": [["t", ids(5)]]},
            {"what": "ack", "number": 3, "at": 60, "places": [[4, 4, 1, 1]]},
            {"what": "send", "number": 4, "at": 70, "writes": [["s", ids(8)]]},
            {"what": "refused", "number": 4, "at": 80},
            {"what": "send", "number": 5, "at": 90, "writes": [["s", ids(6, 7)]]},
            {"what": "unknown", "number": 5, "at": 95},
            {"what": "send", "number": 6, "at": 99, "writes": [["s", ids(9, 10)]]},
        ]
        self.seen = [
            {"what": "seen", "position": event.position, "stream": event.stream, "version": event.version,
             "id": event.id.hex, "whole": True}
            for event in self.log
        ]  # fmt: skip

    def judged(self, folder: Path) -> list[str]:
        for name, rows in (("writer", self.notes), ("subscriber", self.seen)):
            (folder / name).write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        return judge(self.log, [folder / "writer"], {folder / "subscriber": ""}).faults


def renumber(world: World) -> None:
    """Make positions and versions gapless again, so that only the one fault is left."""
    versions: dict[str, int] = {}
    for place, event in enumerate(world.log):
        version = versions.get(event.stream, -1) + 1
        versions[event.stream] = version
        world.log[place] = Recorded(place, event.stream, version, *event[3:])


def lose(world: World) -> None:
    del world.log[4]
    renumber(world)


def lose_half(world: World) -> None:
    del world.log[6], world.seen[6]


def store_refused(world: World) -> None:
    world.log.append(recorded(7, "s", 5, 8))


def store_half_of_an_unknown(world: World) -> None:
    world.log.append(recorded(7, "s", 5, 9))


def store_twice(world: World) -> None:
    world.log.append(recorded(7, "t", 2, 5))


def store_a_stranger(world: World) -> None:
    world.log.append(recorded(7, "s", 5, 200))


def split_an_append(world: World) -> None:
    world.log[1], world.log[2] = world.log[2], world.log[1]
    renumber(world)


def skip_a_position(world: World) -> None:
    world.log[6] = recorded(7, "s", 4, 7)


def skip_a_version(world: World) -> None:
    world.log[6] = recorded(6, "s", 5, 7)


def change_content(world: World) -> None:
    world.log[6] = Recorded(6, "s", 4, "a", b"other", *world.log[6][5:])


def tell_another_place(world: World) -> None:
    world.notes[5]["places"] = [[5, 5, 1, 1]]


def answer_out_of_order(world: World) -> None:
    # The first append was answered before the second was sent, yet it stands behind it.
    world.log = [*world.log[2:4], *world.log[:2], *world.log[4:]]
    renumber(world)
    world.notes[1]["places"], world.notes[3]["places"] = [[2, 3, 1, 2]], [[0, 0, 0, 0], [1, 1, 0, 0]]


def see_what_vanished(world: World) -> None:
    world.seen.append({**world.seen[0], "position": 7})


def see_twice(world: World) -> None:
    world.seen.insert(3, world.seen[2])


def see_another(world: World) -> None:
    world.seen[3] = {**world.seen[3], "id": ids(77)[0]}


def miss(world: World) -> None:
    del world.seen[3]


def miss_the_end(world: World) -> None:
    del world.seen[6]


def test_a_log_that_keeps_every_promise_has_no_faults(tmp_path: Path) -> None:
    assert World().judged(tmp_path) == []


@pytest.mark.parametrize(
    "breaks",
    [
        lose, lose_half, store_refused, store_half_of_an_unknown, store_twice, store_a_stranger, split_an_append,
        skip_a_position, skip_a_version, change_content, tell_another_place, answer_out_of_order, see_what_vanished,
        see_twice, see_another, miss, miss_the_end,
    ],
)  # fmt: skip
def test_a_broken_promise_is_told(tmp_path: Path, breaks: Callable[[World], None]) -> None:
    """T-10"""
    world = World()
    breaks(world)
    assert world.judged(tmp_path)
