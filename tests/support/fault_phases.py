"""What a broker does while a call fails: the phases of the fault matrix, and what was promised to whom meanwhile.

A `Phase` says which log it begins with, what is asked of the broker, and what each write of it is. `Promises` knows what was
acknowledged, refused and left open, and judges what a log holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import ENOSPC
from pathlib import Path

import msgpack
import zmq
from e2e.raw_client import Append, RawClient, dealer, event
from support.fault_rules import STARTS, Step
from support.faults import Plan
from support.process import until
from support.thread_broker import BROKER, PREPARER, Call, ThreadBroker
from tidelog.errors import OutcomeUnknown

HEALTH = 11
FIRST_PAGE = (4, 5_000, 0, "", 0, 2, None, False, None, None)
"""READ of everything in [0, 2)."""
FIRST_SEGMENT = "0000000001-"
ANSWER_S = 20.0
SMALL, ROLLING, LARGE = 100, 2_800, 5_000
"""Sizes of appends: there is space; it is the next segment's; it has to be prepared."""


@dataclass(slots=True)
class Promises:
    """Appends of two events each, in streams a and b; payloads are all different."""

    acked: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    unknown: list[tuple[bytes, bytes]] = field(default_factory=list)
    refused: list[tuple[bytes, bytes]] = field(default_factory=list)
    serial: int = 0

    def copy(self) -> Promises:
        return Promises(dict(self.acked), list(self.unknown), list(self.refused), self.serial)

    def next(self, size: int) -> tuple[bytes, bytes]:
        self.serial += 1
        return b"%06d" % self.serial, (b"%06d." % self.serial).ljust(size, b"x")

    def judge(self, found: list[tuple[int, str, bytes]]) -> None:
        """Positions are dense; all that was acknowledged is there, what was refused is not, the rest whole or not at all."""
        assert [position for position, _, _ in found] == list(range(len(found)))
        rows = {position: (stream, payload) for position, stream, payload in found}
        for position, row in self.acked.items():
            assert rows.get(position) == row, f"acknowledged at position {position}"
        others = {payload for position, (_, payload) in rows.items() if position not in self.acked}
        assert len(others) == len(rows) - len(self.acked), "twice"
        for pair in self.unknown:
            assert len(others & set(pair)) in (0, 2), "a part of an append"
        assert not others & {payload for pair in self.refused for payload in pair}, "refused, and there"
        assert others <= {payload for pair in self.unknown for payload in pair}, "nobody sent this"

    def settle(self, found: list[tuple[int, str, bytes]]) -> None:
        """What a start found holds for ever."""
        self.acked = {position: (stream, payload) for position, stream, payload in found}
        self.refused += [pair for pair in self.unknown if pair[0] not in {payload for _, _, payload in found}]
        self.unknown = []


class LastWordClient(RawClient):
    """Hears the last words of a broker that ends: with IMMEDIATE, libzmq drops what was not read when the connection goes."""

    def reconnect(self) -> None:
        self.close()
        self.socket, self.incarnation = zmq.Context.instance().socket(zmq.DEALER), self.incarnation + 1
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)
        self.hello()


class Caller:
    """One client of a broker; each call is answered or the broker's end is seen."""

    def __init__(self, broker: ThreadBroker, promises: Promises) -> None:
        self.broker = broker
        self.promises = promises
        self.raw = LastWordClient(broker.endpoint)

    def close(self) -> None:
        self.raw.close()

    def send(self, size: int = 100) -> tuple[Append, tuple[bytes, bytes]]:
        pair = self.promises.next(size)
        made = self.raw.prepare(("a", None, [event("t", pair[0])]), ("b", None, [event("t", pair[1])]))
        self.raw.send_append(made)
        return made, pair

    def answer(self, pair: tuple[bytes, bytes]) -> int | None:
        """The reply's code; None if the broker ended without a word. The promise is noted."""
        assert until(lambda: self.has_answer() or not self.broker.running, ANSWER_S, 0.001)
        message = self.raw.receive(0.2)
        if message is None:
            self.promises.unknown.append(pair)
            return None
        (reply,) = message[0]
        code = int(reply[1])
        if code == OutcomeUnknown.code:
            self.promises.unknown.append(pair)
        elif code:
            self.promises.refused.append(pair)
        else:
            self.promises.acked[reply[4]] = ("a", pair[0])
            self.promises.acked[reply[8]] = ("b", pair[1])
        return code

    def has_answer(self, patience_s: float = 0) -> bool:
        assert self.raw.socket is not None
        return bool(self.raw.socket.poll(int(patience_s * 1000)))

    def append(self, size: int = 100) -> int | None:
        return self.answer(self.send(size)[1])

    def again(self, made: Append, pair: tuple[bytes, bytes]) -> None:
        """What was definitely refused, asked for again: it is new, and done."""
        done = self.raw.resend(made)
        assert not done.duplicate
        if pair in self.promises.refused:
            self.promises.refused.remove(pair)
        for row, stream, payload in zip(done.places, "ab", pair, strict=True):
            assert row is not None
            self.promises.acked[row[0]] = (stream, payload)

    def found(self) -> list[tuple[int, str, bytes]]:
        return [(row.position, row.stream, row.payload) for row in self.raw.read()]


def health(broker: ThreadBroker) -> tuple[bool, bool, str, int, int]:
    """Asked on its own socket: live, ready, reason, head, µs of the running sync."""
    socket = dealer(broker.endpoint + ".health")
    try:
        assert socket.poll(5_000, zmq.POLLOUT)
        socket.send(msgpack.packb([[HEALTH, 1]]))
        assert socket.poll(5_000), "health does not answer"
        (reply,) = msgpack.unpackb(socket.recv())
        return tuple(reply[2:7])
    finally:
        socket.close(0)


# ---- logs to begin with


def live(data: Path, sockets: Path, promises: Promises, sizes: list[int], *plans: Plan) -> None:
    """One life of a broker that takes appends of these sizes and, if a plan does not end it, is killed."""
    broker = ThreadBroker(data, sockets)
    assert broker.code is None, (broker.lines, broker.crash)
    caller = Caller(broker, promises)
    for size in sizes:
        assert caller.append(size) == 0
    if plans:
        broker.disk.plans = list(plans)
        caller.append(ROLLING)
    else:
        # As a kill leaves it: the clean stop's truncate is the first call of its that changes anything.
        broker.disk.plans = [Plan("truncate", 1)]
        assert broker.stop() == 74
    broker.wait()
    caller.close()


def nothing(data: Path, sockets: Path, promises: Promises) -> None:
    """No log."""


def one_group(data: Path, sockets: Path, promises: Promises) -> None:
    live(data, sockets, promises, [100])


def nearly_full_segment(data: Path, sockets: Path, promises: Promises) -> None:
    live(data, sockets, promises, [100, 3_000, 3_000, 3_000])


def half_segment(data: Path, sockets: Path, promises: Promises) -> None:
    live(data, sockets, promises, [3_000, 3_000])


def four_segments(data: Path, sockets: Path, promises: Promises) -> None:
    live(data, sockets, promises, [3_000] * 12)


def torn(data: Path, sockets: Path, promises: Promises) -> None:
    """Two segments, bytes of a torn group, what an unfinished roll and start left over."""
    live(data, sockets, promises, [3_000] * 5)
    newest = max(data.glob("0*-*"))
    content = newest.read_bytes()
    end = len(content.rstrip(b"\0"))
    newest.write_bytes(content[: end + 20] + b"torn" * 50 + content[end + 220 :])
    for name in ("spare", "marks.tmp"):
        (data / name).write_bytes(b"left over" * 100)


def unfinished_roll(data: Path, sockets: Path, promises: Promises) -> None:
    nearly_full_segment(data, sockets, promises)
    live(data, sockets, promises, [], Plan("rename", 1, name="spare"))
    promises.unknown.clear()  # its group was never written


# ---- phases

Act = Callable[[ThreadBroker, Caller], int | None]
"""Asks something of a running broker; the code of an append that was under way."""


def idle(broker: ThreadBroker, caller: Caller) -> int | None:
    """An append that is acknowledged before the mark that follows it."""
    code = caller.append(100)
    assert code == 0
    assert until(lambda: not broker.running or Call("datasync", "marks", BROKER) in broker.disk.calls, 10, 0.001)
    return None


def wait_for_preparing(broker: ThreadBroker, caller: Caller) -> int | None:
    """A start sets the preparing thread going."""

    def over() -> bool:
        log = broker.server.store.log if broker.server else None
        return not broker.running or log is None or log.full or not log.wants_preparing or bool(_hanging(broker))

    assert until(over, 10, 0.001)
    return None


def _hanging(broker: ThreadBroker) -> list[Plan]:
    return [plan for plan in broker.disk.plans if plan.hang and plan.calls >= plan.nth and not plan.hang.is_set()]


def stop(broker: ThreadBroker, caller: Caller) -> int | None:
    assert broker.server is not None
    broker.server.request_stop()
    return None


def read_first_page(broker: ThreadBroker, caller: Caller) -> int | None:
    caller.raw.start_call(*FIRST_PAGE)
    message = caller.raw.receive(ANSWER_S)
    assert message is not None
    return int(message[0][0][1])


@dataclass(frozen=True, slots=True)
class Phase:
    """`append`: the size of the append that is under way, else `act`. `writes`: what each write into a segment is, in order.

    `fixed`: faults that belong to the phase (operation, n-th, errno, short, name). `ops`: only these; `only`: names with this.
    """

    name: str
    begin: Callable[[Path, Path, Promises], None]
    act: Act | None = None
    append: int = 0
    writes: tuple[str, ...] = ()
    thread: str = BROKER
    fixed: tuple[tuple[str, int, int, int, str], ...] = ()
    ops: frozenset[str] = frozenset()
    only: str = ""
    numbers: tuple[tuple[str, int], ...] = ()

    @property
    def starts(self) -> bool:
        return self.name in STARTS

    def ask(self, broker: ThreadBroker, caller: Caller) -> int | None:
        """The code of the append or read that was under way."""
        if self.append:
            return caller.append(self.append)
        return self.act(broker, caller) if self.act else None

    def plans(self) -> list[Plan]:
        return [Plan(op, nth, number, short=short, name=name) for op, nth, number, short, name in self.fixed]

    def steps(self, calls: list[Call]) -> list[tuple[int, Step]]:
        """Each call of this phase: (its number among the calls of its kind, what it is)."""
        writes = iter(self.writes)
        spare_written = False
        counts: dict[str, int] = {}
        steps = []
        for op, name, thread in ((call.op, call.name, call.thread) for call in calls):
            if thread != self.thread or self.only not in name:
                continue
            counts[op] = counts.get(op, 0) + 1
            target = "folder" if op in ("sync_folder", "names", "make_folder") else name.partition("/")[0]
            target = "marks" if name.startswith("marks") else target
            if op == "rename" and name == "spare":
                target = "segment"
            elif op == "write" and name == "spare":
                target = "header" if spare_written else "spare"
                spare_written = True
            elif name[:1] == "0":
                target = next(writes) if op == "write" and self.writes else "segment"
            if not self.ops or op in self.ops:
                steps.append((counts[op], Step(self.name, op, target)))
        assert next(writes, None) is None, "fewer writes than the phase should make"
        return steps


PHASES = [
    Phase("creation", nothing),
    Phase("recovery", torn),
    Phase("recovery of an unfinished roll", unfinished_roll),
    Phase("append", one_group, append=SMALL, writes=("group",)),
    Phase("append that prepares", one_group, append=LARGE, writes=("zeros", "group")),
    Phase("rollback", one_group, append=SMALL, writes=("group",), fixed=(("write", 1, 0, 70, "0"),),
          ops=frozenset({"truncate", "sync"})),
    Phase("roll", nearly_full_segment, append=ROLLING, writes=("seal", "group")),
    Phase("dropping a spare", nearly_full_segment, append=ROLLING, fixed=(("write", 1, ENOSPC, 0, "spare"),),
          ops=frozenset({"unlink"})),
    Phase("mark before the answer", one_group, append=SMALL, only="marks", numbers=(("mark_groups", 1),)),
    Phase("idle mark", one_group, idle, only="marks", numbers=(("idle_mark_ms", 1),)),
    Phase("preparing", half_segment, wait_for_preparing, writes=("zeros",), thread=PREPARER,
          numbers=(("prepare_ahead", 8_192),)),
    Phase("stop", one_group, stop),
    Phase("read", four_segments, read_first_page, only=FIRST_SEGMENT),
]  # fmt: skip
