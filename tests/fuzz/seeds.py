"""Where fuzzing begins: real records, cut out of the golden logs, and real messages of every kind."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgpack
from fuzz.targets import HELLO_FIELDS, TARGETS
from migrate.seed import Given, Seed
from support.builders import control_batch, event_batch
from support.golden import region
from tidelog.wire import PUBLISHED
from tidelog_broker.core.base import Base, KeptAppend, KeptWrite, write_base

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
GOLDEN = FOLDER.parent / "golden"
HEADER = 4_096


def segments() -> list[bytes]:
    """The golden segment files."""
    return [path.read_bytes() for path in sorted(GOLDEN.glob("v1*/0*"))]


def batches() -> Iterator[bytes]:
    """The stored batches of the golden logs, control batches too."""
    for content in segments():
        at = HEADER
        while content[at : at + 4] == b"TLGR":
            stop = at + 64 + int.from_bytes(content[at + 4 : at + 8], "little")
            at += 64
            while at < stop:
                length = int.from_bytes(content[at + 4 : at + 8], "little")
                yield content[at : at + length]
                at += length


def regions() -> list[bytes]:
    """Events regions of many shapes."""
    stored = [one for one in batches() if one[:1] == b"B"]
    return [
        *(one[-4 - int.from_bytes(one[20:24], "little") : -4] for one in stored),
        region(1, ["t"], [b""], [b"payload"]),
        region(1, ["t", "placed"], [b"m", b""], [b"", b"x"]),
        region(1, ["µ"] * 3, [b"m"] * 3, [b"", b"x", bytes(1_100)]),
    ]


def requests() -> list[bytes]:
    """One message of each kind, and some of several."""
    events = region(1 << 70, ["t", "placed"], [b"", b"m"], [b"payload", b""])
    rows: list[list[Any]] = [
        [1, 1, "tidelog", 1, bytes(16), 1_000_000],
        [2, 1],
        [3, 1, 0, None, 0, None, None, [["s", None, events]]],
        [
            3,
            1,
            9,
            0,
            0,
            None,
            None,
            [["s", False, events], ["t/1", 3, None], ["u", True, region(99, ["t"], [b""], [b"x"])]],
        ],
        [4, 1, 0, 0, "", None, None, 10, False, ["a"], None],
        [4, 1, 0, 2, "good", 0, 5, None, True, None, None],
        [4, 1, 5, 1, "t", 0, None, 3, False, None, 4],
        [5, 1, 0, "good", None],
        [6, 1, 0, "g", None, 10],
        [7, 1, 0, None],
        [8, 1, 0, 17],
        [9, 1],
        [10, 1, 0, b"b" * 16, 0, 0],
        [11, 1],
        [12, 1, 0, 0, "", None, None, 10, False, None, None],
        [13, 1, 0, False],
        [15, 1, 0, 3],
        [16, 1, 0, "p", None],
        [16, 1, 0, "p", 1],
        [3, 1, 0, None, 1, ["p", 1, 1], None, [["s", None, region(7, ["t"], [b""], [b"x"])]]],
        [3, 1, 0, None, 0, ["p", 1, 2], ["c", None, 3, None], [["s", None, region(8, ["t"], [b""], [b"x"])]]],
        [17, 1, 0, "c", True, 4, 1, b"i" * 16],
        [18, 1, 0, "c", 0, None],
        [18, 1, 0, "c", 1, 1],
        [18, 1, 0, "c", 2, None],
        [19, 1, 0, "c"],
        [20, 1, 0, "", None, 10],
    ]
    return [msgpack.packb([row]) for row in rows] + [
        msgpack.packb(rows[1:4]),
        msgpack.packb(rows[6:]),
        msgpack.packb(rows[17:]),
    ]


def replies() -> list[bytes]:
    """Answers to HELLO and to the calls that the target has in flight, good and bad."""
    rows: list[list[Any]] = [
        [4, 0, *HELLO_FIELDS],
        [1, 0, 2, 0, 5, 5, 0, 0],
        [2, 0, 0, 5, 5, 5, 1],
        [3, 0, 3, 0, None, None, None, None],
        [1, 4, "wrong version", ["s", 3, 4, False]],
        [1, 10, "starting", ["starting"]],
        [2, 10, "timeout", ["timeout"]],
        [3, 20, "nobody knows", []],
        [2, 24, "say HELLO", []],
        [None, 1, "unreadable", []],
        [3, 99, "newer", [1, 2, 3]],
        [2, 22, "damaged", ["1", 4_096]],
    ]
    return [msgpack.packb([row]) for row in rows] + [msgpack.packb(rows[1:4]), msgpack.packb(rows[4:8])]


def groups() -> list[bytes]:
    """Group records of sessions, cursors and leases; their headers are made right by the target."""
    opening, lease = control_batch(1, ["p", 1]), control_batch(3, ["c", "me", 1])
    first = event_batch("a", 0, 0, [b"x"], session=("p", 1, 1))
    pair = [
        event_batch("a", 1, 1, [b"x"], index=0, count=3, session=("p", 2, 2)),
        event_batch("b", 0, 2, [b"x", b"y"], index=1, count=3, session=("p", 2, 2)),
        control_batch(2, ["c", 3, "me", 1, b"i" * 16], index=2, count=3),
    ]
    logs = [
        [[opening, first, lease], [control_batch(1, ["p", 2]), *pair], [control_batch(3, ["c", None, 1])]],
        [[opening], [first], [control_batch(2, ["c", 3, None, 0])], [control_batch(4, [1])]],
    ]
    return [b"".join(_groups(log)) for log in logs]


def _groups(log: list[list[bytes]]) -> Iterator[bytes]:
    position = 0
    for batches in log:
        body = b"".join(batches)
        yield struct.pack("<4sIQQQQI20x", b"TLGR", len(body), 0, 0, 0, position, len(batches)) + body
        position += sum(int.from_bytes(batch[16:20], "little") for batch in batches)


def bases() -> list[bytes]:
    """The golden base, one that tells of sessions and cursors, and one that tells of nothing."""
    empty: list[bytes] = []
    made = Base(
        log_id=bytes(16), group=1, tag=bytes(8), ordinal=1, head=1, number=1, first_position=1, recorded_at=1, window_events=1,
        window_begins=0, window_young_begins=0,
    )  # fmt: skip
    head = write_base(made, (), (), empty.append)
    told: list[bytes] = []
    write = KeptWrite("a", 0, 0, 1, b"d" * 16)
    rows: list[tuple[str, list[Any]]] = [
        ("sessions", ["p", 2, 1, bytes(8)]),
        ("cursors", ["c", 3, "me", 1, b"i" * 16]),
        ("cursors", ["d", None, None, 2, b""]),
    ]
    of_sessions = write_base(replace(made, told=1), [KeptAppend(0, b"", (write,))], rows, told.append)
    golden = FOLDER.parent / "truncate" / "golden"
    return [
        of_sessions + b"".join(told),
        *(path.read_bytes() for path in sorted(golden.glob("base-*"))),
        head + b"".join(empty),
    ]


def eventfold_logs() -> list[bytes]:
    """One of each format: streams that are mixed in an append, one that is torn."""
    one, two = (Given(bytes([number]) * 16, bytes([number, 1]) * 8, b"placed", b"m", b"payload") for number in (1, 2))
    more = Given(one.stream, b"3" * 16, "µ".encode(), b"", b"")
    logs = []
    for version in (1, 2, 3):
        seed = Seed(version).append(5, [one, two]).append(4, [more])
        logs += [seed.bytes, seed.bytes[:-7]]
    return logs


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    """What is mutated at first; deterministic."""
    stored = list(batches())
    if target == "group":
        return tuple(bytes([how]) + content[HEADER:] for content in segments() for how in (2, 3))
    if target == "batch":
        return tuple(bytes([how]) + one for one in stored for how in (0, 1))
    if target == "segment":
        return tuple(bytes([how]) + content[:128] for content in segments() for how in (4, 5, 7))
    if target == "mark":
        files = [path.read_bytes() for path in sorted(GOLDEN.glob("v1*/marks"))]
        return tuple(bytes([how]) + marks[at : at + 112] for marks in files for at in (0, HEADER) for how in (0, 1))
    if target == "page":
        heads = [b"\1\0\0\0", b"\3\0\0\0", b"\1\2\4\0", b"\1\0\0\1"]
        return tuple(head + content[HEADER:] for content in segments() for head in heads)
    if target == "published":
        body = PUBLISHED.pack(bytes(16), 0, 9, 9, 0, 1, 0)
        return tuple(bytes([1]) + body + content[HEADER + 64 :] for content in segments())
    if target == "reply":
        return tuple(bytes([how]) + one for one in replies() for how in (0, 1, 3))
    if target == "request":
        return tuple(requests())
    if target == "broker":
        return tuple(bytes([how]) + one for one in requests() for how in (0, 1))
    if target == "base":
        return tuple(bytes([how]) + one for one in bases() for how in (0, 1))
    if target == "known":
        return tuple(bytes([how]) + one for one in groups() for how in (2, 3, 7))
    if target == "eventfold":
        return tuple(bytes([how]) + one for one in eventfold_logs() for how in (0, 1))
    assert target == "events"
    return tuple(regions())


def corpus(target: str) -> list[bytes]:
    """The inputs kept under corpus/, each of which reached lines that no other did."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def found(target: str) -> list[bytes]:
    """The smallest cases of bugs that fuzzing found, kept for ever: files <target>-<digest> of found/."""
    return [path.read_bytes() for path in sorted((FOLDER / "found").glob(f"{target}-*"))]


def starting_points(target: str) -> list[bytes]:
    """Seeds and corpus, in a fixed order."""
    assert target in TARGETS
    points = [*seeds(target), *corpus(target)]
    Random(0).shuffle(points)
    return points
