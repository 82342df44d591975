"""The loop: drain what waits, one write and one sync, answer, publish.

Owns the request and publishing sockets; with health.py the only importer of zmq. No thread hop in an append: the group is
what arrived while the last sync ran, there is no timer. Stop and health have a thread of their own (health.py), for this
one may hang in a sync.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import zmq
from tidelog.errors import CorruptLog, OutcomeUnknown, StorageFull, TidelogError

from . import checkpoints
from .checkpointing import Checkpointing
from .config import Config
from .core.base import KeptWrite
from .core.broker import Broker, Identity, Request
from .core.pages import Extent
from .core.peers import Peer
from .core.requests import READ_CHECKED
from .core.run import BadIndex
from .core.staged import SealedGroup
from .endpoints import Endpoint
from .log import FailStop, Place
from .store import Store
from .syncing import SyncThread
from .version import VERSION
from .vitals import Vitals

# As plain integers: combining pyzmq's enum flags costs 350 ns each time, three times a reply.
NOBLOCK = int(zmq.NOBLOCK)
MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
POLLIN = int(zmq.POLLIN)
DRAIN_MESSAGES_MAX = 512
GROUP_SOFT_BYTES = 4 << 20
"""The drain ends here; what still waits is the next group's."""
LINGER_NS = 5_000_000
"""A group for whose sync nobody waits is made durable after this, so that not each accepted append costs a sync."""
SYNC_POLL_NS = 250_000_000
SLOW_SYNC_NS = 2_000_000
"""Where a sync takes longer, it is worth a thread; else the hand-over costs the next requests more than the sync does."""
LATER_MAX = 4_096
"""Requests other than appends taken in and not answered yet: beyond, what comes waits in its socket."""
ANSWERS_MAX = 256
ANSWER_BYTES_MAX = 4 << 20
"""Reads answered between two groups: they must not hold up appends."""
FULL_RETRY_MS = 1_000
LAG_PAUSE_S = 0.005
STOP_DRAIN_NS = 3_000_000_000
"""What is still unread then is left to the next broker: senders that never pause must not keep this one (health.py has
the deadline)."""
LEASE_GRACE_NS = 5_000_000_000
LEASE_ASK_NS = 1_000_000_000
"""A holder is not looked for more often: what it is sent for that waits until it reads."""
COPY_BYTES_MAX = 16 << 10
"""Larger replies are handed to ZeroMQ without a copy."""


class Server:
    """A broker with its sockets. `run` returns after a clean stop; raises FailStop."""

    def __init__(self, config: Config, store: Store, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.store = store
        self.failure: FailStop | None = None
        self.stop_requested = threading.Event()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._config = config
        self._sync = SyncThread(store.log, self.wake_fd)
        self.vitals = Vitals(config, store, self.stop_requested)
        self._checkpointing = Checkpointing(config, store)
        identity = Identity(store.log.log_id, os.urandom(16), VERSION, config.heartbeat_ms)
        self.broker = Broker(
            identity,
            store.index,
            config.append_limits,
            store.log.body_bytes_max,
            self._stored,
            self.vitals.recorded_at,
            lambda: self.vitals.info(self.broker, self._checkpointing),
            self.vitals.verdict,
            self.vitals.verify,
            store.known,
            self._checkpoint,
            self._is_gone,
            self._finish,
        )
        self.broker.read_only = store.log.read_only
        self._requests = self._socket(context, zmq.ROUTER)
        self._requests.set(zmq.ROUTER_MANDATORY, 1)
        self._publish = self._socket(context, zmq.XPUB)
        # Every subscription is told, for a heartbeat is due at each; of the ends only a topic's last (not VERBOSER).
        self._publish.set(zmq.XPUB_VERBOSE, 1)
        self._poller = zmq.Poller()
        for waitable in (self._requests, self._publish, self.wake_fd):
            self._poller.register(waitable, zmq.POLLIN)
        self._pack = msgpack.Packer().pack  # packb makes a Packer with a buffer of 256 KiB each time
        self._asked_ns: dict[bytes, int] = {}
        self._lingers_until_ns = 0
        self._next_heartbeat_ns = 0
        self._next_retry_ns = 0
        self._prepare = threading.Event()
        self._preparer = threading.Thread(target=self._prepare_loop, name="tidelog-prepare", daemon=True)

    def _socket(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.set(zmq.LINGER, 200)
        socket.set(zmq.MAXMSGSIZE, self._config.message_bytes_max)
        socket.set(zmq.RCVHWM, self._config.queue_messages_max)
        socket.set(zmq.SNDHWM, self._config.queue_messages_max)
        socket.set(zmq.BACKLOG, 1024)
        return socket

    def bind(self, endpoints: list[Endpoint]) -> None:
        """Bind every endpoint and its sibling for publishing; sets what HELLO tells. Raises zmq.ZMQError."""
        for endpoint in endpoints:
            endpoint.bind(self._requests, self._publish)
        self.broker.endpoints = [[row.request, row.publish, row.health] for row in endpoints]

    # -- the loop

    def run(self) -> None:
        """Serve until `stop_requested`. Raises FailStop when the disk broke a promise."""
        if not self.store.log.read_only:
            self._preparer.start()
            self._prepare.set()
        try:
            self._serve()
        except BadIndex as error:
            try:
                checkpoints.forget(self.store.disk)
            except OSError as why:
                raise FailStop(f"the saved index is damaged ({error}), delete the folder index/: {why}") from error
            raise FailStop(
                f"the saved index is damaged ({error}); it was set aside, a start makes a new one"
            ) from error

    def _serve(self) -> None:
        broker = self.broker
        while True:
            worked = self._drain()
            self._commit_or_begin()
            if not self._sync.running:
                self._answer_later()
                self._tick()
            self._send_replies()
            if self.failure:
                raise self.failure
            if self._checkpointing.lags():
                time.sleep(LAG_PAUSE_S)
            if self.stop_requested.is_set():
                break
            if self._sync.running or not (worked or broker.later or broker.backlog):
                self._wait()
            else:
                self._subscriptions()  # without a pause there is no poll that would tell of a new subscriber
        self._stop()

    def _commit_or_begin(self) -> None:
        """Make what is staged durable: here and now, or, when somebody was told "accepted" and the disk is slow, beside the loop.

        Whoever wants anything else waits for the group that is under way, and for no other but his own.
        """
        broker = self.broker
        if self._sync.running:
            if not (self._sync.ended or broker.later or broker.backlog or self.stop_requested.is_set()):
                return
            self._end_sync()
            self._answer_later()
            self._tick()
        if not broker.appender.parts:
            return
        if broker.appender.accepted and not (broker.later or broker.backlog or self.stop_requested.is_set()):
            self._send_replies()
            if self._lingers(time.monotonic_ns()):
                return
            if self.vitals.last_sync_ns > SLOW_SYNC_NS:
                self._begin_sync()
            else:
                self._commit()
        else:
            self._lingers_until_ns = 0
            self._commit()

    def _lingers(self, now_ns: int) -> bool:
        """Whether the staged group may wait for more: nobody waits for its sync, and it is young and small."""
        self._lingers_until_ns = self._lingers_until_ns or now_ns + LINGER_NS
        if (
            now_ns < self._lingers_until_ns
            and not self.broker.touched
            and self.broker.appender.bytes < GROUP_SOFT_BYTES
        ):
            return True
        self._lingers_until_ns = 0
        return False

    def _drain(self) -> bool:
        """Take in what waits; True if anything did."""
        receive, take, appender = self._requests.recv, self.broker.take, self.broker.appender
        worked = False
        later = self.broker.later
        self.broker.begin(time.time_ns() // 1000)
        for _ in range(DRAIN_MESSAGES_MAX):
            # Before the first message too: what is taken in each round must not be more than what is answered.
            if self.broker.backlog or len(later) >= LATER_MAX or not _has_message(self._requests):
                break
            worked = True
            identity = receive(NOBLOCK)
            frame = receive()
            if self._requests.getsockopt(zmq.RCVMORE):
                self._drop_rest()
                frame = b""
            take(identity, frame)
            if appender.bytes >= GROUP_SOFT_BYTES:
                break
        return worked

    def _drop_rest(self) -> None:
        """A request message has one frame; one of more is taken as none that can be read."""
        while self._requests.getsockopt(zmq.RCVMORE):
            self._requests.recv()

    def _commit(self) -> None:
        """Make the staged group durable, then visible: data-sync → index and head → replies and publish."""
        group, published = self._seal()
        self._commit_with(lambda: self.store.log.commit(group.parts, len(group.staged), group.next_position), published)

    def _begin_sync(self) -> None:
        """The same, but the loop goes on meanwhile, and `_end_sync` does the rest."""
        group, self._published = self._seal()
        self.broker.set_aside()
        self.vitals.group_begins()
        self._sync.begin(group)

    def _end_sync(self) -> None:
        self._commit_with(self._sync.end, self._published)

    def _finish(self) -> None:
        """Nothing is under way behind this."""
        if self._sync.running:
            self._end_sync()

    def _seal(self) -> tuple[SealedGroup, list[tuple[bytes, bytes]]]:
        """The staged group, and what will be published of it."""
        broker = self.broker
        group = broker.appender.seal()
        published: list[tuple[bytes, bytes]] = []
        if broker.topics.subscribed:
            published.extend(broker.topics.messages(self.store.index, group.staged, group.parts, broker.generation))
        return group, published

    def _commit_with(self, written: Callable[[], Place], published: list[tuple[bytes, bytes]]) -> None:
        """What follows once the sealed group is `written`, or is not."""
        broker, log = self.broker, self.store.log
        self.vitals.group_begins()
        try:
            place = written()
        except StorageFull as error:
            broker.failed(error)
            return
        except FailStop as error:
            broker.failed(OutcomeUnknown(f"the disk failed: {error}"))
            self._send_replies()
            raise
        finally:
            self.vitals.group_ended()
        broker.committed(*place)
        self._send_replies()
        for topic, body in published:
            self._publish_one(topic, body)
        if broker.waiting:
            broker.wake(time.monotonic_ns())
        if log.wants_preparing and not log.full:
            self._prepare.set()

    # -- sending

    def _send_replies(self) -> None:
        """One message to each client that has replies; what shares the fate of a group that is pending stays."""
        touched = self.broker.touched
        if self.broker.appender.is_pending:
            self.broker.touched = still = []
            for peer in touched:
                if peer.ready:
                    ready, peer.ready = peer.ready, []
                    self._send(peer, ready)
                if peer.fated:
                    still.append(peer)
            return
        for peer in touched:
            replies = peer.fated + peer.ready if peer.ready else peer.fated
            self._send(peer, replies)
            peer.fated = []
            peer.ready = []
        touched.clear()

    def _send(self, peer: Peer, replies: list[Request], stored: bytes | None = None) -> None:
        """A peer that is gone, or lets its replies pile up, is forgotten: it has to say HELLO again and ask again."""
        try:
            self._requests.send(peer.identity, MORE)
            self._requests.send(self._pack(replies), NOBLOCK if stored is None else MORE)
            if stored is not None:
                self._requests.send(stored, NOBLOCK, copy=len(stored) < COPY_BYTES_MAX)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.broker.peers.forget(peer)

    def _publish_one(self, topic: bytes, body: bytes) -> None:
        """Only a hint: at the high-water mark XPUB drops by itself."""
        self._publish.send(topic, zmq.SNDMORE)
        self._publish.send(body, 0, copy=len(body) < COPY_BYTES_MAX)

    # -- everything but appends

    def _answer_later(self) -> None:
        later = self.broker.later
        if not later:
            return
        now_ns = time.monotonic_ns()
        sent = 0
        # Who has an append in the backlog, or in the group that is being collected, has its reads behind it.
        held = {peer.identity for peer, _ in self.broker.backlog}
        for _ in range(min(ANSWERS_MAX, len(later))):
            peer, request = later.popleft()
            if peer.fated or peer.identity in held:
                later.append((peer, request))
                continue
            answer = self.broker.answer(peer, request, now_ns)
            if answer is None:
                continue
            sent += self._send_answer(peer, *answer, checked=request[0] == READ_CHECKED)
            if sent >= ANSWER_BYTES_MAX:
                break

    def _send_answer(self, peer: Peer, reply: Request, extents: list[Extent] | None, checked: bool) -> int:
        """Send one reply, with stored bytes in a frame of their own if it brings any; returns how many.

        The bytes travel as they are and the client checks them; only `checked` makes the broker look.
        """
        if extents is None:
            self.broker.say(peer, reply)
            return 0
        try:
            if checked:
                stored, between = self.store.checked(extents)
                if between is not None:
                    self.vitals.rotten(between)
            else:
                pieces = list(self.store.read(extents))
                stored = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except TidelogError as error:
            if isinstance(error, CorruptLog):
                self.vitals.rotten(error)
            self.broker.say(peer, (reply[0], error.code, error.text, error.facts))
            return ANSWER_BYTES_MAX
        self._send(peer, [reply], stored)
        # A checked page costs as much as many others: it ends this turn.
        return ANSWER_BYTES_MAX if checked else len(stored)

    # -- time

    def _tick(self) -> None:
        """What is due by the clock: heartbeat, the idle mark, requests that waited too long, another try to find room."""
        now_ns = time.monotonic_ns()
        log = self.store.log
        if now_ns >= self._next_heartbeat_ns:
            self._subscriptions()
            self._heartbeat(now_ns)
        if self.broker.waiting and min(row.deadline_ns for row in self.broker.waiting) <= now_ns:
            self.broker.wake(now_ns)
        if log.unmarked and now_ns >= self._mark_due_ns():
            self._mark()
        self.store.index.tidy()
        if self._checkpointing.due(now_ns):
            self._checkpointing.begin(now_ns, self._mark)
        if log.to_remove and not (self.vitals.verification.running or self._checkpointing.running):
            self.vitals.syncing(log.remove_one)
        if log.full and now_ns >= self._next_retry_ns:
            self._next_retry_ns = now_ns + FULL_RETRY_MS * 1_000_000
            self._prepare.set()

    def _mark(self) -> None:
        """The last group gets its mark."""
        if self.store.log.unmarked:
            self.vitals.syncing(self.store.log.mark)

    def _mark_due_ns(self) -> int:
        """When the last group gets its mark if no other comes before."""
        return self.vitals.last_commit_ns + self._config.idle_mark_ms * 1_000_000

    def _heartbeat(self, now_ns: int) -> None:
        self._next_heartbeat_ns = now_ns + self._config.heartbeat_ms * 1_000_000
        topic, body = self.broker.topics.heartbeat(
            self.store.index.head, self.broker.generation, stopping=self.broker.stopping
        )
        self._publish_one(topic, body)
        self.vitals.verified()
        self._checkpointing.poll(now_ns)

    def _subscriptions(self) -> None:
        """Take in who subscribed to what; a new subscriber to heartbeats gets one at once."""
        due = False
        for _ in range(DRAIN_MESSAGES_MAX):
            if not _has_message(self._publish):
                break
            due |= self.broker.topics.note(self._publish.recv(NOBLOCK))
        if due:
            self._heartbeat(time.monotonic_ns())

    def _wait(self) -> None:
        """Sleep until a message, a wake-up, or what is due next."""
        now_ns = time.monotonic_ns()
        due_ns = self._next_heartbeat_ns
        if self.broker.waiting:
            due_ns = min(due_ns, min(row.deadline_ns for row in self.broker.waiting))
        if self.store.log.unmarked:
            due_ns = min(due_ns, self._mark_due_ns())
        if self._lingers_until_ns:
            due_ns = min(due_ns, self._lingers_until_ns)
        if self._sync.running:
            due_ns = now_ns + SYNC_POLL_NS  # what is due waits for it, and its end wakes us
        ready = dict(self._poller.poll(max(1, (due_ns - now_ns) // 1_000_000)))
        if self._publish in ready:
            self._subscriptions()
        if self.wake_fd in ready:
            os.eventfd_read(self.wake_fd)

    # -- preparing space, off the append path

    def _prepare_loop(self) -> None:
        """Short calls that release the interpreter lock: zeros ahead, then the spare."""
        try:
            while True:
                self._prepare.wait()
                self._prepare.clear()
                while self.store.log.prepare():
                    pass
        except FailStop as error:
            self.failure = error
            os.eventfd_write(self.wake_fd, 1)

    # -- stopping

    def request_stop(self) -> None:
        """Ask the loop to stop; from any thread."""
        self.stop_requested.set()
        os.eventfd_write(self.wake_fd, 1)

    def _stop(self) -> None:
        """Not ready first, then what is queued is answered, subscribers are told, the log is closed."""
        self.broker.stopping = True
        self._finish()
        until_ns = time.monotonic_ns() + STOP_DRAIN_NS
        while time.monotonic_ns() < until_ns:
            worked = self._drain()
            if self.broker.appender.parts:
                self._commit()
            self.broker.wake(time.monotonic_ns())
            self._answer_later()
            self._send_replies()
            if not worked and not self.broker.later and not self.broker.backlog:
                break
        self._subscriptions()
        self._heartbeat(time.monotonic_ns())
        self.vitals.verification.stop()
        self._mark()
        self.vitals.syncing(self._checkpointing.stop)
        self.vitals.syncing(self.store.log.close)

    def close_sockets(self) -> None:
        self._requests.close()
        self._publish.close()

    def _stored(self, number: int) -> tuple[KeptWrite, ...]:
        """A stored append, to compare a repeat with. Raises CorruptLog."""
        self._sync.settle()
        return self.vitals.stored(number)

    # -- leases

    def _is_gone(self, holder: str) -> bool:
        """Whether whoever holds a lease has no connection any more: nothing can be sent to it."""
        peers = self.broker.peers
        try:
            client = bytes.fromhex(holder)
        except ValueError:
            return True  # no client of ours
        peer = peers.of_client(client)
        if peer is None:
            # Behind a restart everyone is given time to come back.
            return peers.has_greeted(client) or time.monotonic_ns() - self.vitals.started_ns > LEASE_GRACE_NS
        now_ns = time.monotonic_ns()
        if now_ns - self._asked_ns.get(client, 0) > LEASE_ASK_NS:
            self._asked_ns = {known: at for known, at in self._asked_ns.items() if now_ns - at < LEASE_ASK_NS}
            self._asked_ns[client] = now_ns
            self._send(peer, [])
        return not peer.alive

    def _checkpoint(self, begin: bool) -> tuple[str, dict[str, Any]]:
        """CHECKPOINT: begin one at the log point that is durable now, or tell how the last one ended."""
        now_ns = time.monotonic_ns()
        self._checkpointing.poll(now_ns)
        if begin and not self.store.log.read_only:
            self._checkpointing.begin(now_ns, self._mark)
        return self._checkpointing.state()


def _has_message(socket: zmq.Socket[bytes]) -> bool:
    """True if a recv would not wait; a fourth of the price of a recv that raises Again."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & POLLIN)
