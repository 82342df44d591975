"""The client's sessions against the broker's own loop, in one thread, in a time of their own, over a link that breaks.

Real: `Session`, `Producer`, `Exchange`, `Client.flush` on one side; `Server`'s loop, core, log and recovery on the other.
Made here: sockets (frames that are late, lost with their connection, or arrive from a dead one), the disk (full, or failing a
sync), the thread that syncs, and the clock. A `World` takes one random step at a time; whoever waits for a call takes steps
until it is settled.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakSet

import pytest
import zmq
from support.builders import seeded_random
from support.simdisk import Fault, SimDisk
from tidelog.appending import Appends
from tidelog.batch import Batch
from tidelog.consuming import Consumes
from tidelog.cursors import HeldCursors
from tidelog.errors import DeadlineExceeded, InvalidArgument, StorageFull, TidelogError
from tidelog.exchange import Call, Exchange, State
from tidelog.ids import IdPool
from tidelog.wire import WRITTEN
from tidelog_broker import server as serving
from tidelog_broker.config import Config, load_config
from tidelog_broker.core.staged import SealedGroup
from tidelog_broker.log import FailStop, LogSettings, Place
from tidelog_broker.server import Server
from tidelog_broker.store import Store

T = TypeVar("T")
SETTINGS = LogSettings(
    segment_bytes=1 << 20, group_bytes_max=64 << 10, zero_step=4 << 10, prepare_ahead=4 << 10, mark_groups=8
)
STEPS_MAX = 60_000
"""A wait that takes more has hung."""
CLOCKED = ("tidelog.appending", "tidelog.calls", "tidelog.consuming", "tidelog.session")


@cache
def _config() -> Config:
    return load_config("/nowhere", ("ipc:///nowhere",), {}, None, {})


class Router:
    """The broker's request socket: takes what connections bring, refuses what goes to those that are gone."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._parts: deque[bytes] = deque()
        self._to: Connection | None = None
        self._out: list[bytes] = []

    def bring(self, identity: bytes, frame: bytes) -> None:
        self._parts += (identity, frame)

    def set(self, *_: Any) -> None:
        """Options mean nothing here."""

    def getsockopt(self, option: int) -> int:
        return int(zmq.POLLIN) if option == zmq.EVENTS and self._parts else 0

    def recv(self, flags: int = 0) -> bytes:
        return self._parts.popleft()

    def send(self, data: bytes, flags: int = 0, copy: bool = True) -> None:
        if self._to is None:
            self._to = self._life.world.reachable(data)
            if self._to is None:
                raise zmq.ZMQError(errno.EHOSTUNREACH)
            return
        self._out.append(bytes(data))
        if not flags & zmq.SNDMORE:
            self._to.to_client.append(self._out)
            self._to, self._out = None, []


class Publisher:
    """The publishing socket: nobody subscribes."""

    def set(self, *_: Any) -> None:
        """Options mean nothing here."""

    def getsockopt(self, option: int) -> int:
        return 0

    def send(self, data: bytes, flags: int = 0, copy: bool = True) -> None:
        """Dropped."""


class Syncing:
    """The sync thread, ended when the world says so."""

    def __init__(self, log: Any) -> None:
        self.running = self.ended = False
        self._log = log
        self._group: SealedGroup | None = None

    def begin(self, group: SealedGroup) -> None:
        self.running, self.ended, self._group = True, False, group

    def settle(self) -> None:
        """What is under way may be read before its end: nothing here depends on it."""

    def end(self) -> Place:
        group, self._group = self._group, None
        assert group is not None
        self.running = self.ended = False
        return self._log.commit(group.parts, len(group.staged), group.next_position)  # type: ignore[no-any-return]


class Life:
    """One broker on the world's disk, its loop's turns taken one by one."""

    def __init__(self, world: World) -> None:
        self.world = world
        store = Store(world.disk, SETTINGS, seeded_random(world.random.randbytes(8)))
        self.router = Router(self)
        sockets = iter((self.router, Publisher()))
        context = SimpleNamespace(socket=lambda kind: next(sockets))
        self.server = Server(_config(), store, context)  # type: ignore[arg-type]
        self.sync = Syncing(store.log)
        self.server._sync = self.sync  # type: ignore[assignment]

    def turn(self) -> None:
        """What the loop does between two waits. Raises FailStop."""
        server, broker = self.server, self.server.broker
        server._drain()
        server._commit_or_begin()
        if not self.sync.running:
            server._answer_later()
            now_ns = int(self.world.now * 1e9)
            if broker.waiting and min(row.deadline_ns for row in broker.waiting) <= now_ns:
                broker.wake(now_ns)
            log = server.store.log
            if log.full or log.wants_preparing:
                while log.prepare():
                    pass
        server._send_replies()

    def close(self) -> None:
        os.close(self.server.wake_fd)


class Connection:
    """A client's socket and what is on its way in both directions."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.identity = b""
        self.to_broker: deque[bytes] = deque()
        self.to_client: deque[list[bytes]] = deque()
        self.closed = False

    def renew(self, identity: bytes) -> None:
        """The broker behind it is another: what was under way is gone."""
        self.identity = identity
        self.to_broker.clear()
        self.to_client.clear()


class SimLink:
    """`Link` without threads and sockets. Who waits lets the world go on."""

    forked = False

    def __init__(self, world: World, client_id: bytes) -> None:
        self.world = world
        self.exchange = Exchange(client_id, "sim://")
        self.connection: Connection | None = None
        self._incarnation = 0

    def submit(self, call: Call, now: float, push: bool = False) -> None:
        try:
            self.exchange.submit(call, self.world.now)
        except (ValueError, OverflowError, TypeError) as error:
            if isinstance(error, TidelogError):
                raise
            raise InvalidArgument(f"this can't be sent: {error}") from None

    submit_unattended = submit

    def wait(self, call: Call, timeout: float | None = None) -> None:
        until = float("inf") if timeout is None else self.world.now + timeout
        for _ in range(STEPS_MAX):
            if call.settled:
                return
            if self.world.now >= until:
                raise DeadlineExceeded(
                    "no reply yet; the call goes on", maybe_applied=call.kind in WRITTEN and call.sent
                )
            self.world.step()
        raise AssertionError(f"the call hangs: {call.fields!r}")

    def locked(self, work: Callable[[], T]) -> T:
        return work()

    def cancel(self, call: Call, error: TidelogError) -> None:
        self.exchange.cancel(call, error)

    def step(self) -> None:
        """What a leader does once: send all that is due, take in one message, look at the clock."""
        exchange, world = self.exchange, self.world
        for _ in range(1_000):
            if exchange.state is State.IDLE:
                if not exchange.wants_socket(world.now):
                    break
                if self.connection is not None:
                    self.connection.closed = True
                self.connection = world.connect()
                self._incarnation = exchange.opened(world.now)
            frame = exchange.take(world.now)
            if frame is None:
                break
            assert self.connection is not None
            if world.life is None:
                exchange.refused(world.now)
                if exchange.state is not State.IDLE:
                    break
            else:
                self.connection.to_broker.append(frame)
        if self.connection is not None and self.connection.to_client:
            parts = self.connection.to_client.popleft()
            exchange.receive(parts[0], b"".join(parts[1:]), world.now, self._incarnation)
        exchange.tick(world.now)

    def break_off(self) -> None:
        """The connection is in doubt, as after an interrupt."""
        self.exchange.lose(self.world.now)


class SimClient(Appends, Consumes):
    """`Client` over a SimLink."""

    def __init__(self, world: World, timeout: float) -> None:
        self.endpoint = "sim://"
        self.timeout = timeout
        self._link = SimLink(world, world.random.randbytes(16))  # type: ignore[assignment]
        self._ids = IdPool()
        self._subscriptions = WeakSet()
        self._cursors = HeldCursors()

    @property
    def link(self) -> SimLink:
        return self._link  # type: ignore[return-value]


class World:
    """The disk, at most one broker, its clients. `faults`: what may go wrong at a step, by name, with its chance."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.disk = SimDisk()
        self.disk.fault = self._fault
        self.life: Life | None = None
        self.clients: list[SimClient] = []
        self.faults: dict[str, float] = {}
        self.happened: list[str] = []
        self._connections: list[Connection] = []
        self._full = False
        self._fail_sync = False

    def client(self, timeout: float = 5.0) -> SimClient:
        made = SimClient(self, timeout)
        self.clients.append(made)
        return made

    # -- links

    def connect(self) -> Connection:
        made = Connection(len(self._connections))
        made.renew(self._identity(made))
        self._connections.append(made)
        return made

    def _identity(self, connection: Connection) -> bytes:
        return b"%d/%d" % (connection.number, self.random.getrandbits(40))

    def reachable(self, identity: bytes) -> Connection | None:
        for connection in self._connections:
            if connection.identity == identity and not connection.closed:
                return connection
        return None

    def _deliver(self, life: Life) -> None:
        """Some of what is under way arrives: of one connection in its order, of a dead one too, later or never."""
        for connection in self._connections:
            while connection.to_broker and self.random.random() < 0.7:
                life.router.bring(connection.identity, connection.to_broker.popleft())
        self._connections = [row for row in self._connections if not row.closed or row.to_broker]

    # -- the broker

    def start(self) -> None:
        """A broker, unless there is no room for it."""
        try:
            self.life = Life(self)
        except StorageFull:
            self.life = None

    def kill(self) -> None:
        """SIGKILL: what was not written to the disk is gone, and what was under way."""
        if self.life is not None:
            self.life.close()
            self.life = None
        self._connections = [row for row in self._connections if not row.closed]
        for connection in self._connections:
            connection.renew(self._identity(connection))
            if self.random.random() < 0.3:
                connection.to_client.clear()

    def close(self) -> None:
        self.faults = {}
        self.kill()

    def stop(self) -> None:
        """A clean stop: what has arrived is answered."""
        assert self.life is not None
        try:
            self.life.server.stop_requested.set()
            self.life.server._stop()
        except FailStop:
            pass
        self._replies_get_there()
        self.kill()

    def _replies_get_there(self) -> None:
        """A process that ends lets its sockets linger: what it said last mostly arrives."""
        for client in self.clients:
            connection = client.link.connection
            while (
                connection is not None and not connection.closed and connection.to_client and self.random.random() < 0.8
            ):
                parts = connection.to_client.popleft()
                client.link.exchange.receive(parts[0], b"".join(parts[1:]), self.now, client.link._incarnation)

    def _fault(self, op: str, name: str) -> Fault | None:
        if self._full and op == "write" and name != "marks" and not name.endswith(".tmp"):
            return Fault(errno.ENOSPC, short=0)
        if self._fail_sync and op == "datasync" and name != "marks":
            return Fault(reached=self.random.choice((0.0, 1.0)), sizes=True)
        return None

    # -- time

    def step(self) -> None:
        """Time passes, and something happens."""
        chance = self.random.random
        self.now += self.random.choice((0.0005, 0.002, 0.01))
        for name, share in self.faults.items():
            if chance() < share:
                getattr(self, f"_{name}")()
        if self.life is None:
            if not self.faults or chance() < 0.02:
                self.start()
        else:
            self._turn(self.life)
        for client in self.clients:
            if chance() < 0.8:
                client.link.step()

    def _turn(self, life: Life) -> None:
        self._deliver(life)
        if life.sync.running and self.random.random() < 0.4:
            life.sync.ended = True
        try:
            life.turn()
        except FailStop:
            self.happened.append("failed sync")
            self._replies_get_there()
            self._fail_sync = False
            self.kill()

    # -- faults, by name

    def _broken_link(self) -> None:
        if self.clients:
            self.happened.append("broken link")
            self.random.choice(self.clients).link.break_off()

    def _killed(self) -> None:
        if self.life is not None:
            self.happened.append("killed")
            self.kill()

    def _stopped(self) -> None:
        if self.life is not None:
            self.happened.append("stopped")
            self.stop()

    def _full_disk(self) -> None:
        self.happened.append("full disk")
        self._full = not self._full

    def _failed_sync(self) -> None:
        self._fail_sync = True

    def _silence(self) -> None:
        """Nobody runs for a while."""
        self.now += self.random.choice((0.3, 3.0))

    def calm(self) -> None:
        """No more faults."""
        self.faults = {}
        self._full = self._fail_sync = False

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    # -- the truth

    def log(self) -> list[Batch]:
        """All event batches that are durable, in order."""
        disk = self.disk
        faults, disk.fault = disk.fault, None
        if self.life is not None:
            self.kill()
        store = Store(disk, SETTINGS, seeded_random(b"the end"))
        batches = [store.batch(number) for number in range(store.index.first_number, store.index.stop)]
        store.log.close()
        disk.fault = faults
        return batches


@contextmanager
def worlds() -> Iterator[Callable[[int], World]]:
    """While this is in force, worlds can be made; the newest one's clock is the clients' and the brokers'."""
    made: list[World] = []

    def now() -> float:
        return made[-1].now

    def make(seed: int) -> World:
        if made:
            made[-1].close()
        made.append(World(seed))
        return made[-1]

    clock = SimpleNamespace(
        time_ns=time.time_ns, monotonic_ns=lambda: int(now() * 1e9), monotonic=now, sleep=lambda seconds: None
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in CLOCKED:
            patch.setattr(f"{module}.monotonic", now)
        patch.setattr(serving, "time", clock)
        yield make
        if made:
            made[-1].close()
