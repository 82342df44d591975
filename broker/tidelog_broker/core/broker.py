"""What the broker answers, without any socket or file. PURE: takes messages and times, gives replies and extents.

An append goes: `take` → Appender.admit → (the server writes and syncs `appender.parts`) → `committed` → replies.
Everything else is kept until the group of its drain is durable and then answered by `answer`, so that a client that sent an
append and then a read on one connection reads its own write.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tidelog import limits
from tidelog.errors import (
    HelloRequired,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    StreamNotFound,
    TidelogError,
    Unavailable,
)

from . import requests as wire
from .appender import Appender, AppendLimits, GroupFull, StoredAppend
from .cursors import NEW as NEW_CURSOR
from .cursors import Cursor
from .index import Index, Stream
from .known import Known
from .pages import Extent, cut_page
from .peers import PROTOCOL, Peer, Peers
from .topics import Topics

Request = tuple[Any, ...]
WAITING_MAX = 16_384
"""Requests that wait for a position, over all clients."""


class Identity(NamedTuple):
    """Who this broker is, as HELLO tells it."""

    log_id: bytes
    boot_id: bytes
    version: str
    heartbeat_ms: int


class Verdict(NamedTuple):
    """What HEALTH answers; `sync_us`: µs that the running data-sync has taken, 0 if none runs; `degraded`: what is wrong though
    it is ready, or ""."""

    live: bool
    ready: bool
    reason: str
    head: int
    sync_us: int
    degraded: str = ""


class Waiting(NamedTuple):
    """A request that waits until head > position, at most until `deadline_ns`."""

    position: int
    deadline_ns: int
    peer: Peer
    request: Request


class RecordedAt(Protocol):
    """The time of a batch, from its header alone, or from the whole batch, checked."""

    def __call__(self, number: int, checked: bool = False) -> int: ...


class Broker:
    """The broker's state. One thread calls it; `endpoints`, `info`, `verdict` and `verify` are given by the server."""

    def __init__(
        self,
        identity: Identity,
        index: Index,
        append_limits: AppendLimits,
        body_bytes_max: int,
        stored: StoredAppend,
        recorded_at: RecordedAt,
        info: Callable[[], dict[str, Any]],
        verdict: Callable[[], Verdict],
        verify: Callable[[bool], tuple[str, dict[str, Any] | None]] = lambda begin: ("none", None),
        known: Known | None = None,
        checkpoint: Callable[[bool], tuple[str, dict[str, Any]]] = lambda begin: ("none", {}),
        is_gone: Callable[[str], bool] = lambda holder: True,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.identity = identity
        self.index = index
        self.appender = Appender(index, append_limits, body_bytes_max, stored, known)
        self.peers = Peers()
        self.topics = Topics(identity.log_id)
        self.generation = 0
        self.stopping = False
        self.read_only = False
        self.endpoints: list[list[str]] = []
        self.touched: list[Peer] = []
        self._aside: list[tuple[Peer, list[Request]]] = []
        self.later: deque[tuple[Peer, Request]] = deque()
        self.waiting: list[Waiting] = []
        self.backlog: deque[tuple[Peer, Request]] = deque()
        self.refused = 0
        self._recorded_at = recorded_at
        self._info = info
        self._verdict = verdict
        self._verify = verify
        self._checkpoint = checkpoint
        self._is_gone = is_gone
        self._finish = finish
        self._now = 0

    # -- taking messages

    def begin(self, now_us: int) -> None:
        """A new drain: appends admitted from here on are recorded at `now_us`, or at the last time if that is later."""
        self._now = max(now_us, self._now, self.index.recorded_at)
        while self.backlog:
            peer, request = self.backlog[0]
            if peer.alive and not self._admit(peer, request):
                break
            self.backlog.popleft()

    def take(self, identity: bytes, frame: bytes) -> None:
        """One message. Whatever it holds, it costs its sender an error and nobody else anything."""
        peer = self.peers.find(identity)
        if peer is None:
            if self.peers.is_retired(identity):
                return
            peer = Peer(identity)
        try:
            requests = wire.unpack_requests(frame)
        except TidelogError as error:
            self.say(peer, _refusal(None, error))
            return
        plain = self.appender.admit_plain
        for request in requests:
            kind = request[0]
            if kind == wire.APPEND and peer.alive:
                # The short way of most appends; behind one that waits for the next group, all wait.
                reply = None if self.backlog or self.read_only else plain(request, self._now, self.generation)
                if reply is None:
                    self._append(peer, request)
                else:
                    self._touch(peer)
                    (peer.fated if reply[2] else peer.ready).append(reply)
            elif kind in wire.WRITTEN and peer.alive:
                self._append(peer, request)
            elif kind == wire.HELLO:
                peer = self._hello(identity, request)
            elif kind == wire.HEALTH:
                self.later.append((peer, request))
            elif not peer.alive:
                self.say(peer, _refusal(request[1], HelloRequired("say HELLO first: this connection is not known")))
            elif 0 < kind <= wire.KINDS_MAX:
                self.later.append((peer, request))
            else:
                self.say(peer, _refusal(request[1], InvalidArgument(f"there is no request of kind {kind}")))

    def _append(self, peer: Peer, request: Request) -> None:
        """Admit one append, or keep it for the next group: behind one that waits, all wait."""
        if self.backlog or not self._admit(peer, request):
            self.backlog.append((peer, request))

    def _admit(self, peer: Peer, request: Request) -> bool:
        """Stage or refuse one append; False when the group is full."""
        staged = len(self.appender.parts)
        try:
            if self.read_only:
                raise Unavailable("this broker only reads: it was started with --salvage", "read-only")
            if request[0] == wire.APPEND:
                reply, fated = self.appender.admit(request, self._now, self.generation)
            else:
                reply, fated = self._write(peer, request)
        except GroupFull:
            return False
        except TidelogError as error:
            self.refused += 1
            reply, fated = _refusal(request[1], error), error.shares_fate
        if fated and self.appender.sealed is not None and len(self.appender.parts) == staged:
            # It may rest on the group that is under way, and must not share the next one's fate.
            self._finish()
            return self._admit(peer, request)
        self._touch(peer)
        (peer.fated if fated else peer.ready).append(reply)
        return True

    def _write(self, peer: Peer, request: Request) -> tuple[Request, bool]:
        """Stage a request other than an append that is written into the log."""
        appender, kind = self.appender, request[0]
        if kind == wire.TRUNCATE:
            return appender.truncate(request, self._now)
        if kind == wire.OPEN_SESSION:
            return appender.open_session(request, self._now)
        if kind == wire.COMMIT_CURSOR:
            return appender.commit_cursor(request, self._now)
        me = peer.client.hex()
        holder = appender.cursors.holder(request[3] if len(request) > 3 else None)
        gone = bool(holder) and holder != me and self._is_gone(holder)
        return appender.lease(request, self._now, me, gone=gone)

    def _hello(self, identity: bytes, request: Request) -> Peer:
        try:
            peer = self.peers.hello(identity, request)
        except TidelogError as error:
            peer = self.peers.find(identity) or Peer(identity)
            self.say(peer, _refusal(request[1], error))
            return peer
        appends, me, index = self.appender.limits, self.identity, self.index
        row = [
            appends.event_bytes_max, appends.append_events_max,
            min(appends.append_bytes_max, self.appender.body_bytes_max), limits.PAGE_BYTES_MAX,
            limits.IN_FLIGHT_MAX, appends.id_window_events,
        ]  # fmt: skip
        self.say(
            peer,
            (
                request[1], 0, PROTOCOL, me.log_id, me.boot_id, self.generation, index.head, index.first_position, row,
                self.endpoints, me.heartbeat_ms, me.version,
            ),
        )  # fmt: skip
        return peer

    def say(self, peer: Peer, reply: Request) -> None:
        """A reply that no group's fate decides."""
        self._touch(peer)
        peer.ready.append(reply)

    def _touch(self, peer: Peer) -> None:
        """It has replies from here on."""
        if not (peer.fated or peer.ready):
            self.touched.append(peer)

    # -- the group's end

    def set_aside(self) -> None:
        """The sealed group is under way while the next is collected: its replies wait for it, not for the next."""
        for peer in self.touched:
            if peer.fated:
                self._aside.append((peer, peer.fated))
                peer.fated = []
        self.touched = [peer for peer in self.touched if peer.ready]

    def committed(self, ordinal: int, offset: int) -> None:
        """The staged group is durable at this place."""
        self.appender.commit(ordinal, offset)
        for peer, replies in self._aside:
            self._touch(peer)
            peer.ready += replies
        self._aside.clear()

    def failed(self, error: TidelogError) -> None:
        """The staged group is not in the log (StorageFull) or nobody knows (OutcomeUnknown): its callers are told.

        So are those of the next one, if it is being collected already: it follows from this one.
        """
        self.appender.rollback()
        self.generation += 1
        for peer in self.touched:
            peer.ready += [_refusal(reply[0], error) for reply in peer.fated]
            peer.fated.clear()
        for peer, replies in self._aside:
            self._touch(peer)
            peer.ready += [_refusal(reply[0], error) for reply in replies]
        self._aside.clear()
        waiting, self.waiting = self.waiting, []
        for row in waiting:
            if row.request[0] == wire.WAIT_DURABLE:
                self.later.append((row.peer, row.request))
            else:
                self.waiting.append(row)

    # -- everything but appends

    def answer(self, peer: Peer, request: Request, now_ns: int) -> tuple[Request, list[Extent] | None] | None:
        """(reply, where the stored bytes lie that go with it, or None), or None when the request waits for a position."""
        try:
            return self._answer(peer, request, now_ns)
        except TidelogError as error:
            return _refusal(request[1], error), None

    def _answer(self, peer: Peer, request: Request, now_ns: int) -> tuple[Request, list[Extent] | None] | None:
        kind, request_id = request[:2]
        index = self.index
        if kind in (wire.READ, wire.READ_CHECKED):
            query = wire.query(request)
            if self._waits(peer, request, request[2], request[10], now_ns):
                return None
            page = cut_page(index, query)
            return (request_id, 0, page.start, page.stop, page.end, index.head, page.batches), page.extents
        if kind == wire.PING:
            return (request_id, 0, index.head), None
        if kind == wire.HEAD:
            deadline, wait_for = wire.parts(request, 2)
            if self._waits(peer, request, deadline, wait_for, now_ns):
                return None
            return (request_id, 0, index.head, index.first_position), None
        if kind == wire.STREAM_INFO:
            deadline, name, wait_for = wire.parts(request, 3)
            if self._waits(peer, request, deadline, wait_for, now_ns):
                return None
            stream = index.peek(wire.text(name, "stream"))
            if stream is None:
                raise StreamNotFound(f"there is no stream {name!r}", name)
            first = index.first_version(stream)
            return (request_id, 0, first, *_ends(stream), index.batches_of(stream)), None
        if kind == wire.LIST_STREAMS:
            return (request_id, 0, *self._list(request)), None
        if kind == wire.POSITION_AT:
            _, when = wire.parts(request, 2)
            return (request_id, 0, self._position_at(wire.integer(when, "time"))), None
        if kind == wire.INFO:
            return (request_id, 0, self._info()), None
        if kind == wire.WAIT_DURABLE:
            deadline, boot_id, generation, position = wire.parts(request, 4)
            wire.integer(position, "position")
            if boot_id != self.identity.boot_id or generation != self.generation or position >= self.appender.position:
                raise OutcomeUnknown("the append was accepted by another boot or generation of the broker")
            if self._waits(peer, request, deadline, position, now_ns):
                return None
            return (request_id, 0, index.head), None
        if kind == wire.HEALTH:
            return (request_id, 0, *self._verdict()), None
        if kind == wire.VERIFY:
            _, begin = wire.parts(request, 2)
            return (request_id, 0, *self._verify(begin is True)), None
        if kind == wire.CURSOR_INFO:
            _, name = wire.parts(request, 2)
            cursor = self.appender.cursors.by_name.get(wire.text(name, "cursor"), NEW_CURSOR)
            return (request_id, 0, *_shown(cursor)), None
        if kind == wire.LIST_CURSORS:
            return (request_id, 0, *self._list_cursors(request)), None
        if kind == wire.CHECKPOINT:
            _, begin = wire.parts(request, 2)
            return (request_id, 0, *self._checkpoint(begin is True)), None
        raise InvalidArgument(f"requests of kind {kind} are not built in this version")

    def _list(self, request: Request) -> tuple[bool, list[tuple[Any, ...]]]:
        _, prefix, after, limit = wire.parts(request, 4)
        count = min(wire.integer(limit, "limit"), limits.LIST_STREAMS_MAX) or limits.LIST_STREAMS_MAX
        start = None if after is None else wire.text(after, "after")
        more, streams = self.index.list_streams(wire.text(prefix, "prefix"), start, count)
        return more, [(stream.name, *_ends(stream)) for stream in streams]

    def _list_cursors(self, request: Request) -> tuple[bool, list[tuple[Any, ...]]]:
        _, prefix, after, limit = wire.parts(request, 4)
        count = min(wire.integer(limit, "limit"), limits.LIST_STREAMS_MAX) or limits.LIST_STREAMS_MAX
        begins = wire.text(prefix, "prefix")
        start = "" if after is None else wire.text(after, "after")
        cursors = self.appender.cursors.by_name
        names = sorted(name for name in cursors if name.startswith(begins) and name > start)
        return len(names) > count, [(name, *_shown(cursors[name])) for name in names[:count]]

    def _position_at(self, when: int) -> int:
        """Bisection over the batches' times, which never go back; each probe reads one header, and the two batches that decide
        are read whole: a damaged header on the way can't make the answer wrong. Raises CorruptLog."""
        index, time = self.index, self._recorded_at
        numbers = range(index.first_number, index.stop)
        at = bisect_left(numbers, when, key=time)
        if (at and time(numbers[at - 1], True) >= when) or (at < len(numbers) and time(numbers[at], True) < when):
            at = bisect_left(numbers, when, key=lambda number: time(number, True))
        return index.position_of(numbers.start + at)

    # -- waiting for a position

    def _waits(self, peer: Peer, request: Request, deadline: Any, position: Any, now_ns: int) -> bool:
        if position is None:
            wire.integer(deadline, "deadline")
            return False
        milliseconds = wire.wait_ms(deadline)
        if wire.integer(position, "wait_for") < self.index.head:
            return False
        if len(self.waiting) >= WAITING_MAX:
            raise Overloaded("too many requests wait for a position; ask again later, without wait_for")
        self.waiting.append(Waiting(position, now_ns + milliseconds * 1_000_000, peer, request))
        return True

    def wake(self, now_ns: int) -> None:
        """Move requests whose position is durable to `later`; answer those whose time is over."""
        still: list[Waiting] = []
        for row in self.waiting:
            if not row.peer.alive:
                continue
            if row.position < self.index.head:
                self.later.append((row.peer, row.request))
            elif row.deadline_ns <= now_ns or self.stopping:
                reason = "stopping" if self.stopping else "timeout"
                error = Unavailable(
                    f"position {row.position} is not durable yet, the head is {self.index.head}", reason
                )
                self.say(row.peer, _refusal(row.request[1], error))
            else:
                still.append(row)
        self.waiting = still


def _shown(cursor: Cursor) -> tuple[int | None, str | None, int]:
    """(position, holder, lease) as replies tell them."""
    return cursor.position, cursor.holder or None, cursor.lease


def _ends(stream: Stream) -> tuple[int, int, bool]:
    """(last version, last position, deleted)"""
    return stream.next_version - 1, stream.end - 1, stream.deleted


def _refusal(request_id: Any, error: TidelogError) -> Request:
    return request_id, error.code, error.text, error.facts
