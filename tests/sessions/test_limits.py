"""Each limit of sessions and cursors: one below it, at it, one beyond; and requests of a wrong shape, which change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sessions.memory import Memory
from support.golden import region
from tidelog.errors import InvalidArgument, Overloaded, SessionFenced
from tidelog.limits import INT_MAX, STREAM_BYTES_MAX
from tidelog_broker.core.cursors import Cursor
from tidelog_broker.core.sessions import SessionImage, Sessions

ID = b"i" * 16
NAMES = {
    "of 254 bytes": "n" * 254,
    "of 255 bytes": "n" * 255,
    "of 255 bytes in 128 characters": "é" * 127 + "n",
    "of 1 byte": "n",
}
NO_NAMES: dict[str, Any] = {
    "of 256 bytes": "n" * 256,
    "of 256 bytes in 128 characters": "é" * 128,
    "empty": "",
    "with a NUL": "a\0b",
    "with a control character": "a\x85",
    "of bytes": b"n",
    "a number": 7,
    "nil": None,
    "an array": ("n",),
}
NO_NUMBERS: dict[str, Any] = {
    "-1": -1,
    "2^63": INT_MAX + 1,
    "2^64": 1 << 64,
    "true": True,
    "1.0": 1.0,
    "a str": "1",
    "an array": (1,),
}


def writes(number: int = 1) -> tuple[Any, ...]:
    return (("a", None, region(number, ["t"], [b""], [b"x"])),)


def opened() -> Memory:
    memory = Memory()
    assert memory.open("s", None).rest == (1, 0)
    memory.commit()
    return memory


def refused(memory: Memory, answer: Any, code: int = InvalidArgument.code) -> None:
    """With this error, and nothing is staged."""
    assert answer.code == code
    appender = memory.appender
    sessions = appender.sessions
    assert not [*appender.parts, *sessions.steps, *sessions.opened, *appender.cursors.steps]


# -- how many


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_so_many_sessions_are_opened_and_no_more(limit: int) -> None:
    memory = Memory(sessions_max=limit)
    for number in range(limit):
        assert memory.open(f"s{number}", None).code == 0
    for durable in (False, True):
        assert memory.open("one more", None).code == Overloaded.code
        assert memory.open("one more", 0).code == Overloaded.code
        # Those that are there go on, and an epoch that never was is told as such.
        assert memory.open("s0", None).code == 0
        assert memory.open("s0", 0).code == 0
        assert memory.open("one more", 1).code == SessionFenced.code
        if not durable:
            memory.commit()
    memory.commit()
    assert len(memory.known.sessions.by_name) == limit


def test_sessions_that_were_rolled_back_take_no_room() -> None:
    memory = Memory(sessions_max=2)
    memory.open("s0", None)
    memory.commit()
    for number in range(1, 5):
        assert memory.open(f"s{number}", None).code == 0
        assert memory.open("one more", None).code == Overloaded.code
        memory.appender.rollback()
    assert sorted(memory.known.sessions.by_name) == ["s0"]


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("how", ["commit", "append", "lease"])
def test_so_many_cursors_are_kept_and_no_more(limit: int, how: str) -> None:
    memory = Memory(cursors_max=limit)
    ids = iter(range(1, 100))

    def use(name: str) -> int:
        if how == "commit":
            return memory.commit_cursor(name, True, 1, None, ID).code
        if how == "append":
            return memory.append(None, (name, True, 1, None), writes(next(ids))).code
        return memory.lease(name, 0, None).code

    for number in range(limit):
        assert use(f"c{number}") == 0
    for durable in (False, True):
        assert use("one more") == Overloaded.code
        assert memory.lease("one more", 2, None).rest == (0, None)
        assert use("c0") == 0
        if not durable:
            memory.commit()
    memory.appender.rollback()
    memory = Memory(cursors_max=1)
    use("c0")
    memory.appender.rollback()
    assert use("c1") == 0


# -- names


@pytest.mark.parametrize("what", NAMES)
def test_names_up_to_255_bytes_are_taken(what: str) -> None:
    name = NAMES[what]
    assert len(name.encode()) <= STREAM_BYTES_MAX
    memory = Memory()
    assert memory.open(name, None).code == 0
    assert memory.append((name, 1, 1), (name, None, 1, None), writes()).code == 0
    assert memory.lease(name, 0, None).code == 0
    assert memory.commit_cursor(name, 1, 2, 1, ID).code == 0
    memory.commit()
    assert memory.batch(0).session == (name, 1, 1)
    assert memory.known.cursors.rows() == [(name, Cursor(2, "me", 1, ID))]


@pytest.mark.parametrize("what", NO_NAMES)
def test_names_of_another_kind_are_refused(what: str) -> None:
    name = NO_NAMES[what]
    memory = opened()
    refused(memory, memory.open(name, None))
    refused(memory, memory.open(name, 0))
    refused(memory, memory.append((name, 1, 1), None, writes()))
    refused(memory, memory.append(None, (name, None, 1, None), writes()))
    refused(memory, memory.commit_cursor(name, None, 1, None, ID))
    for kind in (0, 1, 2):
        refused(memory, memory.lease(name, kind, None))


# -- numbers


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_numbers_from_0_to_2_to_63_are_taken_and_no_others(what: str) -> None:
    number = NO_NUMBERS[what]
    memory = opened()
    refused(memory, memory.open("s", number))
    refused(memory, memory.append(("s", number, 1), None, writes()))
    refused(memory, memory.append(("s", 1, number), None, writes()))
    for cursor in [("c", None, number, None), ("c", None, 1, number), ("c", number, 1, None)]:
        if cursor[1] is not True:
            refused(memory, memory.append(None, cursor, writes()))
            refused(memory, memory.commit_cursor(*cursor, ID))
    refused(memory, memory.lease("c", number, None))


def test_serials_begin_with_1_and_the_greatest_is_2_to_63_less_1() -> None:
    memory = opened()
    refused(memory, memory.append(("s", 1, 0), None, writes()))
    gap = memory.append(("s", 1, INT_MAX), None, writes())
    assert (gap.code, gap.rest) == (15, (0,))
    fenced = memory.append(("s", INT_MAX, 1), None, writes())
    assert (fenced.code, fenced.rest) == (14, (1,))
    assert memory.append(("s", 1, 2), None, writes()).code == 15
    assert memory.append(("s", 1, 1), None, writes()).code == 0


def test_the_last_epoch_is_2_to_63_less_1() -> None:
    memory = Memory()
    for name, epoch in (("a", INT_MAX - 1), ("b", INT_MAX)):
        sessions = Sessions(9, [SessionImage(name, epoch, 0, b"")])
        memory.appender.sessions.by_name.update(sessions.by_name)
    assert memory.open("a", None).rest == (INT_MAX, 0)
    assert memory.open("a", None).code == InvalidArgument.code
    assert memory.open("b", None).code == InvalidArgument.code
    assert memory.open("b", INT_MAX).rest == (INT_MAX, 0)


def test_the_last_lease_is_2_to_63_less_1() -> None:
    """One more would be written into a log that no start takes."""
    memory = Memory()
    memory.known.cursors.by_name["c"] = Cursor(None, "", INT_MAX - 1, b"")
    assert memory.lease("c", 0, None).rest == (INT_MAX, None)
    assert memory.lease("c", 2, None).rest == (INT_MAX, None)
    memory.commit()
    refused(memory, memory.lease("c", 0, None))


def test_cursors_stand_from_0_to_2_to_63_less_1() -> None:
    memory = Memory()
    for expected, position in ((None, 0), (0, INT_MAX), (INT_MAX, 0)):
        assert memory.commit_cursor("c", expected, position, None, ID).rest == (position,)
        assert memory.append(None, ("d", expected, position, None), writes(memory.now)).code == 0


# -- shapes


@pytest.mark.parametrize(
    "session", [(), ("s",), ("s", 1), ("s", 1, 1, 1), "s11", 7, True, {"s": 1}, (("s", 1), 1, 1), b"s11"]
)
def test_a_session_of_another_shape_is_refused(session: Any) -> None:
    memory = opened()
    refused(memory, memory.append(session, None, writes()))


@pytest.mark.parametrize(
    "cursor",
    [
        (), ("c",), ("c", None, 1), ("c", None, 1, None, ID, 1), "cnil", 7, True, ("c", False, 1, None), ("c", "x", 1, None),
        ("c", None, None, None), ("c", None, 1, None, ID[1:]), ("c", None, 1, None, None), ("c", None, 1, None, "i" * 16),
    ],
)  # fmt: skip
def test_a_cursor_of_another_shape_is_refused(cursor: Any) -> None:
    memory = opened()
    refused(memory, memory.append(None, cursor, writes()))
    if type(cursor) is tuple and len(cursor) == 5:
        refused(memory, memory.commit_cursor(*cursor))


@pytest.mark.parametrize("what", [3, -1, None, "0", False, True, 0.0, 1.0, 2.0, (0,)])
def test_a_lease_is_asked_for_with_0_1_or_2(what: Any) -> None:
    memory = Memory()
    memory.lease("c", 0, None)
    memory.commit()
    refused(memory, memory.lease("c", what, 1))


@pytest.mark.parametrize("durability", [2, -1, True, None, "1", 1.0])
def test_there_are_two_durabilities(durability: Any) -> None:
    memory = opened()
    refused(memory, memory.append(("s", 1, 1), None, writes(), durability))


LENGTHS: list[tuple[Any, ...]] = [
    (16, 7, 0, "s"), (16, 7, 0, "s", None, 1), (17, 7, 0, "c", None, 1, None), (17, 7, 0, "c", None, 1, None, ID, 1),
    (18, 7, 0, "c", 0), (18, 7, 0, "c", 0, None, 1), (3, 7, 0, None, 0, None), (3, 7, 0, None, 0, None, None),
    (3, 7, 0, None, 0, None, None, writes(), 1),
]  # fmt: skip


@pytest.mark.parametrize("request_", LENGTHS)
def test_requests_with_a_part_more_or_less_are_refused(request_: tuple[Any, ...]) -> None:
    memory = opened()
    appender = memory.appender
    ask: dict[int, Callable[[], tuple[tuple[Any, ...], bool]]] = {
        3: lambda: appender.admit(request_, 1, 0),
        16: lambda: appender.open_session(request_, 1),
        17: lambda: appender.commit_cursor(request_, 1),
        18: lambda: appender.lease(request_, 1, "me", gone=False),
    }
    refused(memory, memory.answer(ask[request_[0]]))
