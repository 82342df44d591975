"""Groups of every kind, committed to a World (support/crashes.py): what other operations are made of."""

from __future__ import annotations

from support.builders import Sent
from support.crashes import World


def small(world: World) -> bool:
    return world.commit([("s/1", [world.writer.payload(64)])])


def large(world: World) -> None:
    world.commit([("s/1", [world.writer.payload(1_500), world.writer.payload(32)])])


def streams(world: World) -> None:
    p = world.writer.payload
    world.commit([("s/1", [p(64)]), ("s/2", [p(200), p(64)]), ("s/3", [p(64)])])


def appends(world: World) -> None:
    p = world.writer.payload
    sent = Sent("session", [("s/3", [p(600)]), ("s/1", [p(64)])])
    world.commit([("s/1", [p(64)])], [("s/2", [p(300)]), ("s/1", [p(64)])], "session", sent, [("s/3", [p(600)])])


def control(world: World) -> None:
    """A session is opened; or, if it was before, appends: its serials and its cursor go on."""
    if "session" in world.writer.sessions:
        world.commit(Sent("session", [("s/2", [world.writer.payload(64)])]))
    else:
        world.commit("session")


def big(world: World) -> None:
    world.commit([("b/1", [world.writer.payload(3_000), world.writer.payload(3_000)])])


def roll(world: World) -> None:
    ordinal = world.log._header.ordinal
    for _ in range(4):
        big(world)
        if world.log._header.ordinal != ordinal:
            return
    raise AssertionError("no roll")
