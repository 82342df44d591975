"""Client: the broker from ordinary, synchronous code. Safe for threads; not for forks."""

from __future__ import annotations

import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import zmq

from .appending import Appends
from .calls import first, seconds, whole
from .consuming import Consumes
from .cursors import HeldCursors
from .errors import ClientClosed, DeadlineExceeded, InvalidArgument, ProtocolMismatch, UsedAfterFork
from .ids import IdPool
from .limits import INT_MAX
from .link import Link
from .messages import Health
from .wire import CHECKPOINT, HEALTH, INFO, TRUNCATE, VERIFY, choose_endpoints, join_requests, pack, read_replies

if TYPE_CHECKING:
    from .subscription import Subscription


class Client(Appends, Consumes):
    """A connection to one broker.

    `endpoint` is the broker's request endpoint (`ipc://…` or `tcp://host:port`), all that needs to be known; `timeout`
    the default deadline of a call in seconds, with all retries inside it. Connects with the first call. One client may
    be used by many threads; in a forked child every call raises UsedAfterFork.

    Every call may raise DeadlineExceeded (of an append with `maybe_applied` telling whether it was sent), ClientClosed,
    ProtocolMismatch, NotPermitted, Overloaded and Unavailable beside what its own text names.
    """

    def __init__(self, endpoint: str, timeout: float = 5.0) -> None:
        if not isinstance(endpoint, str) or "://" not in endpoint:
            raise InvalidArgument("an endpoint looks like ipc:///path or tcp://host:port")
        self.endpoint = endpoint
        self.timeout = seconds(timeout)
        self._link = Link(endpoint, os.urandom(16))
        self._ids = IdPool()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._cursors = HeldCursors()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """End it: calls under way get ClientClosed, subscriptions end. Quick, and harmless when repeated."""
        for subscription in list(self._subscriptions):
            subscription.close()
        self._link.close()

    # The broker

    def verify(self, *, begin: bool = False, timeout: float | None = None) -> tuple[str, dict[str, Any] | None]:
        """The broker's check of its whole log while it runs: ("none" | "running" | "done" | "failed", report or None).

        `begin` starts one unless it is running. The report is that of `tidelog verify --json`.
        """
        reply = self._call(VERIFY, (begin,), whole, timeout).result()
        return reply[2], reply[3]

    def truncate_before(self, position: int, *, timeout: float | None = None) -> int:
        """Remove what lies before a position, rounded down to where an append begins → the first position that is left.

        Going back does nothing. Raises InvalidArgument behind the head.
        """
        if type(position) is not int or not 0 <= position <= INT_MAX:
            raise InvalidArgument("a position is an integer from 0 to 2^63-1")
        return self._call(TRUNCATE, (position,), first, timeout).result()

    def checkpoint(self, *, begin: bool = False, timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """The saving of the broker's index: ("none" | "running" | "done" | "failed", facts); `begin` starts one unless one runs.

        The facts hold the log point's `group`, or the `reason` of a failure.
        """
        reply = self._call(CHECKPOINT, (begin,), whole, timeout).result()
        return reply[2], reply[3]

    def info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Figures about the broker, for people; names may be added."""
        return self._call(INFO, (), first, timeout).result()  # type: ignore[return-value]

    def health(self, timeout: float | None = None) -> Health:
        """How the broker is, asked on the socket that answers while a disk hangs. Raises DeadlineExceeded."""
        if self._link.forked:
            raise UsedAfterFork("this client belongs to the parent process; make one in this process")
        if self._link.exchange.closed is not None:
            raise ClientClosed("the client is closed")
        until = monotonic() + (self.timeout if timeout is None else seconds(timeout))
        hello = self._link.exchange.hello
        if hello is None and self.endpoint.startswith("ipc://"):
            # Whoever asks for health may be unable to get an answer to HELLO: the disk may hang.
            endpoint = self.endpoint + ".health"
        else:
            hello = hello or self._hello(until - monotonic())
            endpoint = choose_endpoints(self.endpoint, hello.endpoints)[2]
        with self._link.context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint)
            socket.send(join_requests([pack((HEALTH, 1))]))
            while (left := until - monotonic()) > 0:
                if socket.poll(int(left * 1000) + 1):
                    reply = read_replies(socket.recv())[0]
                    if reply[1] != 0 or len(reply) < 7:
                        raise ProtocolMismatch("the answer to HEALTH can't be read")
                    return Health(*reply[2:8])
        raise DeadlineExceeded(f"no answer from {endpoint}")
