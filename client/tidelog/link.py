"""The client's socket and who works it: the caller itself, without a thread hop. Drives exchange.py over a DEALER.

Whoever waits for a reply *leads*: it sends, polls and receives, and settles everybody's calls. Others who wait
meanwhile *follow*, asleep on a lock of their own; a leader that leaves wakes one of them to take over. Calls that
nobody waits for (append_nowait) are kept alive by the keeper, a daemon thread that leads for an instant every few
milliseconds while there is something to keep, and is parked otherwise.

Two rules hold it together. The mutex guards the exchange and the roles, and is held only around pure code. The socket
belongs to the leader. A KeyboardInterrupt anywhere between taking and sending, or receiving and settling, puts the
connection in doubt: it is given up, and a new incarnation sends what is unanswered.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import ceil, inf
from threading import Lock, Thread, get_ident
from time import monotonic, sleep
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

import zmq

from .errors import ClientClosed, DeadlineExceeded, InvalidArgument, ProtocolMismatch, TidelogError, UsedAfterFork
from .exchange import READY, Call, Exchange, State, closed_error
from .wire import WRITTEN

# As plain integers: pyzmq's enum flags cost 350 ns each time they are combined.
NOBLOCK: Final = int(zmq.NOBLOCK)
POLLIN: Final = int(zmq.POLLIN)
RCVMORE: Final = int(zmq.RCVMORE)
POLLIN_POLLOUT: Final = int(zmq.POLLIN | zmq.POLLOUT)
POLL_MS_MAX: Final = 250
FLUSH_REQUESTS: Final = 32
QUIET_PUSH: Final = 0.0002
"""Seconds without a push or a message after which an unattended call is sent at once."""
FLUSH_BYTES: Final = 256 << 10
KEEPER_TICK: Final = 0.004
KEEPER_TICK_MAX: Final = 0.064
CLOSE_WAIT: Final = 1.0

T = TypeVar("T")


class Wakeup:
    """A file descriptor that a poll can wait on and any thread can set."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._mutex = Lock()  # so that nobody writes to a number that has become another file's

    def set(self) -> None:
        """Make the descriptor readable."""
        with self._mutex:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        with self._mutex:
            try:
                if self.fd >= 0:
                    os.eventfd_read(self.fd)
            except BlockingIOError:  # it was not set
                pass

    def close(self) -> None:
        """Give the descriptor back."""
        with self._mutex:
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)


class Future(Call, Generic[T]):
    """A call under way. Any thread may ask it; it goes on by itself until its own deadline."""

    def __init__(
        self, link: Link, kind: int, fields: tuple[Any, ...], deadline: float, shape: Callable[[Future[T]], T]
    ) -> None:
        self.kind = kind
        self.fields = fields
        self.deadline = deadline
        self._link = link
        self._shape = shape

    def result(self, timeout: float | None = None) -> T:
        """The answer; `timeout` in seconds is how long to wait here, None until the call's own deadline.

        Raises what the call ended with; DeadlineExceeded when `timeout` passes first, and then the call stays alive.
        """
        if not self.settled:
            self._link.wait(self, timeout)
        if self.error is not None:
            raise self.error
        try:
            return self._shape(self)
        except (IndexError, TypeError, ValueError) as error:
            raise ProtocolMismatch(f"the reply is not what was asked for: {error}") from None

    def exception(self, timeout: float | None = None) -> TidelogError | None:
        """The error that the call ended with, or None; waits like `result`."""
        if not self.settled:
            self._link.wait(self, timeout)
        return self.error

    def done(self) -> bool:
        """Whether the call has ended, one way or the other."""
        return self.settled

    def wake(self) -> None:
        for follower in self.waiters:
            follower.wake()


class Watched(Future[T]):
    """A call whose end somebody must know of though nobody waits for it: `enders` are told, under the mutex."""

    def __init__(
        self,
        link: Link,
        kind: int,
        fields: tuple[Any, ...],
        deadline: float,
        shape: Callable[[Future[T]], T],
        enders: list[Callable[[Call], None]],
        undo: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(link, kind, fields, deadline, shape)
        self.waiters = []
        self.undo = undo
        """What is to be done when it could not even be submitted."""
        self._enders = enders

    def wake(self) -> None:
        for ended in self._enders:
            ended(self)
        super().wake()


class _Follower:
    """A thread that waits while another leads."""

    __slots__ = ("awake", "lock")

    def __init__(self) -> None:
        self.lock = Lock()
        self.lock.acquire()
        self.awake = False

    def wake(self) -> None:
        """Under the mutex."""
        if not self.awake:
            self.awake = True
            self.lock.release()


_links: WeakSet[Link] = WeakSet()


def _mark_forked() -> None:
    """In a forked child: every link belongs to the parent. Asking for the pid at each call would cost more than packing."""
    for link in list(_links):
        link.forked = True


os.register_at_fork(after_in_child=_mark_forked)


class Link:
    """One client's connection; safe for threads. `forked` is true in a child of the process that made it."""

    def __init__(self, endpoint: str, client_id: bytes) -> None:
        self.endpoint = endpoint
        self.exchange = Exchange(client_id, endpoint)
        self.context: zmq.Context[Any] = zmq.Context()
        self.forked = False
        _links.add(self)
        self._mutex = Lock()
        self._leader = 0
        self._followers: dict[_Follower, None] = {}
        self._asleep = False
        self._steps = 0
        self._busy_at = 0.0
        self._socket: Any = None
        self._incarnation = 0
        self._wakeup = Wakeup()
        self._watched: list[Any] = [(self._wakeup.fd, POLLIN)]
        self._keeper: Thread | None = None
        self._keeping = False
        self._park = Lock()
        self._park.acquire()

    # Calls

    def submit(self, call: Call, now: float, push: bool = False) -> None:
        """Take a call; with `push` it is sent at once, else by whoever leads next.

        Waits while as many are in flight as the broker allows. Raises ClientClosed, UsedAfterFork, InvalidArgument.
        """
        while not self._take_in(call, now):
            self._wait_for_room(call)
            now = monotonic()
        if push:
            self.push()

    def submit_unattended(self, call: Call, now: float) -> None:
        """Take a call that nobody may ever wait for: buffered while others are in flight, and kept by the keeper."""
        while not self._take_in(call, now):
            self._wait_for_room(call)
            now = monotonic()
        exchange = self.exchange
        # Whoever has just received goes on to send several: they travel together once he waits again. Whoever has been
        # quiet sends at once.
        if (
            now - self._busy_at > QUIET_PUSH
            or len(exchange.queue) >= FLUSH_REQUESTS
            or exchange.queue_bytes >= FLUSH_BYTES
        ):
            self.push()
            self._busy_at = now
        if not self._keeping:
            self._unpark()

    def _take_in(self, call: Call, now: float) -> bool:
        if self.forked:
            raise UsedAfterFork("this client belongs to the parent process; make one in this process")
        exchange = self.exchange
        try:
            with self._mutex:
                if exchange.is_full():
                    return False
                exchange.submit(call, now)
                if self._asleep:
                    self._asleep = False
                    self._wakeup.set()
        except (ValueError, OverflowError, TypeError) as error:
            if isinstance(error, TidelogError):
                raise
            raise InvalidArgument(f"this can't be sent: {error}") from None
        return True

    def _wait_for_room(self, call: Call) -> None:
        with self._mutex:
            oldest = self.exchange.oldest()
        if oldest is not None:
            self._wait_until(oldest, call.deadline)
            if not oldest.settled and monotonic() >= call.deadline:
                raise DeadlineExceeded(f"{self.endpoint} leaves too many calls unanswered to take another")

    def wait(self, call: Call, timeout: float | None = None) -> None:
        """Wait until the call is settled. Raises DeadlineExceeded after `timeout` seconds; the call stays alive."""
        if self.forked:
            raise UsedAfterFork("this client belongs to the parent process; make one in this process")
        self._wait_until(call, inf if timeout is None else monotonic() + timeout)
        if not call.settled:
            raise DeadlineExceeded("no reply yet; the call goes on", maybe_applied=call.kind in WRITTEN and call.sent)

    def cancel(self, call: Call, error: TidelogError) -> None:
        """Settle a call with an error, from any thread."""
        with self._mutex:
            self.exchange.cancel(call, error)
            if self._asleep:
                self._asleep = False
                self._wakeup.set()

    def locked(self, work: Callable[[], T]) -> T:
        """Do something with the exchange that no other thread may see half done. Raises UsedAfterFork."""
        if self.forked:
            raise UsedAfterFork("this client belongs to the parent process; make one in this process")
        with self._mutex:
            return work()

    def push(self) -> None:
        """Send what is queued, unless somebody leads: then that one does."""
        lead = False
        try:
            lead = self._lead()
            if lead:
                self._flush_or_doubt()
        finally:
            if lead:
                self._leave()

    # Roles

    def _lead(self) -> bool:
        """Become the leader if nobody is, or if an interrupt once kept this thread from leaving."""
        with self._mutex:
            if self._leader and self._leader != get_ident():
                return False
            self._leader = get_ident()
            return True

    def _leave(self) -> None:
        try:
            self._pass_on()
        except BaseException:  # an interrupt on the way in: the role must not stay with a thread that has gone
            self._pass_on()
            raise

    def _pass_on(self) -> None:
        with self._mutex:
            if self._leader == get_ident():
                self._leader = 0
            if not self._leader:
                for follower in self._followers:
                    if not follower.awake:
                        follower.wake()
                        break

    def _wait_until(self, call: Call, until: float) -> None:
        """Lead or follow until the call is settled or the time is over."""
        try:
            while not call.settled:
                if self._leader and self._leader != get_ident():
                    self._follow(call, until)
                else:
                    self._lead_until(call, until)
                if monotonic() >= until:
                    return
        finally:
            # One that was woken to lead may leave without having led; then the next has to be woken.
            if not self._leader and self._followers:
                self._pass_on()

    def _lead_until(self, call: Call, until: float) -> None:
        lead = False
        try:
            lead = self._lead()
            while lead and not call.settled:
                self._step(until)
                if monotonic() >= until:
                    return
        finally:
            if lead:
                self._leave()

    def _follow(self, call: Call, until: float) -> None:
        """Sleep until the call is settled, the leader leaves, or the time is over."""
        follower = _Follower()
        try:
            with self._mutex:
                if not self._leader or call.settled:
                    return
                if call.waiters is None:
                    call.waiters = []
                call.waiters.append(follower)
                self._followers[follower] = None
            left = until - monotonic()
            follower.lock.acquire(timeout=min(max(left, 0.0), 3600.0))
        finally:
            with self._mutex:
                self._followers.pop(follower, None)
                if call.waiters is not None and follower in call.waiters:
                    call.waiters.remove(follower)

    # The leader's work

    def _flush_or_doubt(self) -> None:
        try:
            self._flush()
        except BaseException:
            with self._mutex:
                self.exchange.lose(monotonic())
            raise

    def _flush(self) -> None:
        """Open a socket if one is wanted and send all that is queued."""
        exchange = self.exchange
        while True:
            with self._mutex:
                now = monotonic()
                if exchange.closed is not None:
                    raise closed_error()
                if exchange.state is State.IDLE:
                    if not exchange.wants_socket(now):
                        return
                    self._open()
                    self._incarnation = exchange.opened(now)
                frame = exchange.take(now)
            if frame is None:
                return
            try:
                self._socket.send(frame, NOBLOCK)
                if not exchange.queue:
                    return
            except zmq.Again:
                with self._mutex:
                    exchange.refused(monotonic())
                    if exchange.state is not State.IDLE:
                        return

    def _open(self) -> None:
        """A new socket per incarnation: replies to the old one can't reach it."""
        if self._socket is not None:
            self._socket.close(0)
        self._socket = None
        socket = self.context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.LINGER, 0)
            # No bound here: the exchange bounds what is in flight, and so a full socket always means a lost peer.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise InvalidArgument(f"can't connect to {self.endpoint}: {error}") from None
        self._socket = socket
        self._watched = [(self._wakeup.fd, POLLIN), (socket, POLLIN)]

    def _step(self, until: float) -> None:
        """Send what is queued, wait for one message (not beyond `until`), take it in, look at the clock."""
        exchange = self.exchange
        # Looked at without the mutex: what comes in behind this look makes the poll below return at once.
        if exchange.queue or exchange.state is not READY:
            self._flush_or_doubt()
        with self._mutex:
            now = monotonic()
            due = min(until, exchange.timer(now))
            if exchange.queue and exchange.state is READY:
                due = now
            self._asleep = True
            writable = exchange.wants_writable
            socket = self._socket if exchange.state is not State.IDLE else None
        wait_ms = POLL_MS_MAX
        if due - now < POLL_MS_MAX / 1000:
            wait_ms = max(ceil((due - now) * 1000), 0)
        if socket is None:
            items = self._watched[:1]
        elif writable:
            items = [*self._watched[:1], (socket, POLLIN_POLLOUT)]
        else:
            items = self._watched
        try:
            ready = zmq.zmq_poll(items, wait_ms)
        finally:
            self._asleep = False
        try:
            for which, events in ready:
                if which is not socket:
                    self._wakeup.clear()
                elif events & POLLIN:
                    self._receive(socket)
            self._steps += 1
            self._busy_at = now = monotonic()
            if now >= due or not ready:
                with self._mutex:
                    exchange.tick(now)
        except BaseException:
            with self._mutex:
                exchange.lose(monotonic())
            raise

    def _receive(self, socket: Any) -> None:
        """Take in one message: a frame of replies, perhaps one of stored bytes; more are not of our protocol."""
        try:
            frame = socket.recv(NOBLOCK)
            bulk = b""
            if socket.getsockopt(RCVMORE):
                bulk = socket.recv(NOBLOCK)
                while socket.getsockopt(RCVMORE):
                    socket.recv(NOBLOCK)
        except zmq.Again:
            return
        with self._mutex:
            self.exchange.receive(frame, bulk, monotonic(), self._incarnation)

    # The keeper

    def _unpark(self) -> None:
        with self._mutex:
            if self._keeping or self.exchange.closed is not None:
                return
            self._keeping = True
            if self._keeper is None:
                self._keeper = Thread(target=self._keep, name="tidelog-keeper", daemon=True)
                self._keeper.start()
            else:
                self._park.release()

    def _keep(self) -> None:
        """The keeper's life: a short step every tick in which nobody else made one.

        While others do, it looks ever less often: waking up for nothing costs the threads that work.
        """
        tick = KEEPER_TICK
        while True:
            steps = self._steps
            sleep(tick)
            with self._mutex:
                if self.exchange.closed is not None:
                    return
                self._keeping = self.exchange.busy()
            if not self._keeping:
                self._park.acquire()
                tick = KEEPER_TICK
            elif steps == self._steps:
                self._keep_once()
                tick = KEEPER_TICK
            else:
                tick = min(2 * tick, KEEPER_TICK_MAX)

    def _keep_once(self) -> None:
        lead = False
        try:
            lead = self._lead()
            while lead:
                steps_before = len(self.exchange.table)
                self._step(0.0)
                if len(self.exchange.table) >= steps_before:
                    break
            if lead:
                self._flush_or_doubt()
        except (ClientClosed, InvalidArgument, zmq.ZMQError):
            # The client was closed in between, or its endpoint is refused: whoever waits is told the same.
            pass
        finally:
            if lead:
                self._leave()

    # The end

    def close(self) -> None:
        """Settle every call with ClientClosed and give the socket back. Does nothing in a forked child."""
        if self.forked:
            return
        with self._mutex:
            if self.exchange.closed is not None:
                return
            self.exchange.close(closed_error())
            self._wakeup.set()
            if self._keeper is not None and not self._keeping:
                self._park.release()
        patience = monotonic() + CLOSE_WAIT
        while not self._lead() and monotonic() < patience:
            sleep(0.0005)
        try:
            if self._socket is not None:
                self._socket.close(0)
            self._socket = None
            self.context.destroy(linger=0)
        finally:
            self._leave()
            self._wakeup.close()
