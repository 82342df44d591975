"""The client's side of the conversation: what is in flight, what is sent again, and when a call ends. PURE.

It owns the table of calls and the life of a connection; it never opens, sleeps or asks the time: `now` (seconds, any
monotonic clock) is given. A driver (link.py; later an asyncio one) does what it asks:

    wants_socket(now) → open a new socket, then opened(now) → its incarnation
    take(now)         → one frame to send, or None; refused(now) when the socket would not take it
    receive(…)        → a message that came;  tick(now) → deadlines and retries, due at `timer(now)`

Why it is safe to send an append again: its events' ids are fixed when the call is made, and nothing is sent on a new
connection before its HELLO is answered, from when on the broker applies nothing that an older one had queued
(PROTOCOL.md §3). So at most one copy of a request is alive.
"""

from __future__ import annotations

from enum import Enum
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Final

from .errors import (
    ClientClosed,
    CursorMoved,
    DeadlineExceeded,
    HelloRequired,
    LeaseLost,
    OutcomeUnknown,
    ProtocolMismatch,
    SerialGap,
    SessionFenced,
    TidelogError,
    Unavailable,
    from_wire,
)
from .limits import IN_FLIGHT_MAX, MESSAGE_REQUESTS_MAX
from .wire import (
    APPEND,
    COMMIT_CURSOR,
    DURABLE_FLAG,
    HELLO,
    PING,
    PROTOCOL,
    WITHOUT_DEADLINE,
    WRITTEN,
    Hello,
    array_header,
    join_requests,
    pack,
    read_hello,
    read_replies,
)

if TYPE_CHECKING:
    from .producer import Producer

MESSAGE_BYTES_AIM: Final = 1 << 20
"""A message is closed beyond this; one larger request still travels alone."""
QUIET: Final = 0.25
"""Seconds without a word, while something is awaited, before a PING asks whether the broker still knows us."""
PATIENCE: Final = 2.0
"""Seconds for a PING's answer before a new connection, four times a HELLO's; doubled each time it was in vain."""
PATIENCE_MAX: Final = 16.0
UNATTENDED: Final = 0.6
"""Seconds without a step of the driver after which silence proves nothing: nobody was listening."""
RETRY_FIRST: Final = 0.05
RETRY_MAX: Final = 0.5


class State(Enum):
    """A connection's life."""

    IDLE = 0
    GREETING = 1
    READY = 2


READY: Final = State.READY
"""A name of its own: looking it up in the class costs as much as a call."""


class Call:
    """One request until it is settled. A driver's future inherits from it and overrides `wake`."""

    # Defaults stand in the class: most calls never have one of these set, and a call is made for every append.
    id = 0
    known_head: int | None = None
    sent = False
    carried = False
    """An earlier connection may have carried it to the broker: only a retry with the same ids settles that."""
    settled = False
    retries = 0
    reply: tuple[Any, ...] = ()
    bulk = b""
    error: TidelogError | None = None
    hello: Hello | None = None
    doubted: bytes | None = None
    waiters: Any = None
    why: TidelogError | None = None
    session: Producer | None = None
    serial = 0
    stubborn = False
    """Tried again for ever where an error may pass: nobody waits for it who could."""

    def __init__(self, kind: int, fields: tuple[Any, ...], deadline: float) -> None:
        self.kind = kind
        self.fields = fields
        self.deadline = deadline

    def wake(self) -> None:
        """Tell whoever waits that the call is settled."""

    def __lt__(self, other: Call) -> bool:
        return self.id < other.id


class Exchange:
    """The state machine. Its caller keeps two threads out of it at a time."""

    def __init__(self, client_id: bytes, endpoint: str) -> None:
        self.client_id = client_id
        self.endpoint = endpoint
        self.state = State.IDLE
        self.incarnation = 0
        self.hello: Hello | None = None
        self.head = 0
        self.table: dict[int, Call] = {}
        self.queue: list[Call] = []
        self.queue_bytes = 0
        self._packed: list[bytes] = []
        self._stale = False
        self.in_flight_max = IN_FLIGHT_MAX
        self.closed: TidelogError | None = None
        self.accepted: dict[tuple[bytes, int], int] = {}
        """Last position that was accepted, outside of sessions, and not flushed yet; by boot and generation."""
        self.unflushed: set[Producer] = set()
        """The sessions of which something is accepted and not known to be durable."""
        self._later: list[tuple[float, Call]] = []
        self._fresh: list[Call] = []
        self._next_id = 0
        self._next_deadline = inf
        self._greeting = b""
        self._greeting_id = 0
        self._greeted_at = inf
        self._heard = 0.0
        self._stepped = 0.0
        self._ping: Call | None = None
        self._pinged_at = inf
        self._losses = 0
        self._open_at = 0.0
        self._why: TidelogError | None = None

    # Calls

    def busy(self) -> bool:
        """Whether any call is unsettled."""
        return bool(self.table or self._later)

    def submit(self, call: Call, now: float) -> None:
        """Take a call. Raises ClientClosed; InvalidArgument's causes (ValueError, OverflowError) from packing."""
        if self.closed is not None:
            raise self.closed
        self._next_id = call.id = self._next_id + 1
        if not self.table:
            self._heard = now
        if call.deadline < self._next_deadline:
            self._next_deadline = call.deadline
        if call.session is not None and not call.serial:
            if not self._submit_next(call, call.session, now):
                return
        elif self.state is READY:
            self._enqueue(call, now)
        else:
            pack(call.fields)  # what can't be packed is refused here, where its caller still listens
        self.table[call.id] = call

    def _submit_next(self, call: Call, session: Producer, now: float) -> bool:
        """A session's next call, behind those before it: False when they wait for their next try, and it with them."""
        session.assign(call)
        held = [due for due, late in self._later if late.session is session] if self._later else None
        try:
            if held or self.state is not READY:
                pack(call.fields)
            else:
                self._enqueue(call, now)
        except BaseException:
            session.unassign(call)
            raise
        if held:
            heappush(self._later, (max(held), call))
            return False
        return True

    def send_in_order(self, calls: list[Call]) -> None:
        """Send these again, under new request ids and one behind the other: whatever is answered to the old ones is ignored."""
        for call in calls:
            self.table.pop(call.id, None)
        self._later = [row for row in self._later if row[1] not in calls]
        heapify(self._later)
        for call in calls:
            self._next_id = call.id = self._next_id + 1
            heappush(self._later, (0.0, call))

    def cancel(self, call: Call, error: TidelogError) -> None:
        """Settle a call with an error; a reply that comes later is ignored."""
        self._settle(call, error)

    def close(self, error: TidelogError) -> None:
        """Settle everything with `error` and refuse what comes."""
        self.closed = error
        self.lose(0.0, error)
        self.fail(error)

    def fail(self, error: TidelogError) -> None:
        """Settle every call with an error of this kind; those that were sent may have been applied."""
        for call in [*self.table.values(), *(late for _, late in self._later)]:
            own = type(error)(error.text, *error.facts, maybe_applied=call.kind in WRITTEN and call.sent)
            self._settle(call, own)
        self._later.clear()

    def _settle(self, call: Call, error: TidelogError | None) -> None:
        if not call.settled:
            call.error = error
            call.settled = True
            self._stale = True
        self.table.pop(call.id, None)
        if call.session is not None:
            call.session.ended(call)
        if call.waiters is not None:
            call.wake()

    def _enqueue(self, call: Call, now: float) -> None:
        """Pack the call as of now and queue it. Sent again, an append says which head it knew at first."""
        left = call.deadline - now
        wait_ms = 0 if left == inf else int(left * 1000) or 1
        if call.kind == APPEND:
            if call.sent:
                resend_head = call.known_head
            else:
                call.known_head = self.head
                resend_head = None
            packed = pack((APPEND, call.id, wait_ms, resend_head, *call.fields))
        elif call.kind in WITHOUT_DEADLINE:
            packed = pack((call.kind, call.id, *call.fields))
        else:
            packed = pack((call.kind, call.id, wait_ms, *call.fields))
        self.queue.append(call)
        self._packed.append(packed)
        self.queue_bytes += len(packed)

    # Connection

    def wants_socket(self, now: float) -> bool:
        """Whether a new socket is to be opened (the old one, if any, closed before)."""
        return self.state is State.IDLE and now >= self._open_at and self.busy() and self.closed is None

    def opened(self, now: float) -> int:
        """A new socket is there → its incarnation. HELLO will be the first frame on it, alone."""
        self.incarnation += 1
        self._next_id = self._greeting_id = self._next_id + 1
        self._greeting = join_requests(
            [pack((HELLO, self._greeting_id, "tidelog", PROTOCOL, self.client_id, self.incarnation))]
        )
        self._greeted_at = inf
        self.state = State.GREETING
        self._stepped = now
        return self.incarnation

    def _lost(self) -> bool:
        return self.state is State.IDLE

    def lose(self, now: float, why: TidelogError | None = None) -> None:
        """The connection is lost or in doubt: what is unanswered will be sent again on a new one."""
        if why is not None:
            self._why = why
        if self.state is State.IDLE:
            return
        self.state = State.IDLE
        for call in self.table.values():
            call.carried = call.carried or call.sent
        for _, call in self._later:
            call.carried = call.carried or call.sent
        self.queue.clear()
        self._packed.clear()
        self.queue_bytes = 0
        self._ping = None
        self._pinged_at = inf
        self._greeting = b""
        if self._losses:
            self._open_at = now + min(RETRY_FIRST * 2 ** min(self._losses - 1, 8), RETRY_MAX)
        self._losses += 1

    def take(self, now: float) -> bytes | None:
        """The next frame to send, or None. Its calls count as sent from here on, for an interrupt may follow."""
        if self.state is State.GREETING:
            if not self._greeting or self._greeted_at != inf:
                return None
            self._greeted_at = now
            return self._greeting
        if self._stale:
            self._drop_settled()
        queue, packed = self.queue, self._packed
        if not queue:
            return None
        count = len(queue)
        if count > MESSAGE_REQUESTS_MAX or self.queue_bytes > MESSAGE_BYTES_AIM:
            count = self._fitting()
        self.queue, self._packed = queue[count:], packed[count:]
        taken = queue[:count]
        frame = join_requests(packed[:count])
        self.queue_bytes -= len(frame) - len(array_header(count))
        self._fresh = fresh = [call for call in taken if not call.sent]
        for call in fresh:
            call.sent = True
        return frame

    def _drop_settled(self) -> None:
        """What was settled while it waited must not be sent: its caller was told that it is not in the log."""
        self._stale = False
        live = [row for row in zip(self.queue, self._packed, strict=True) if not row[0].settled]
        self.queue = [call for call, _ in live]
        self._packed = [packed for _, packed in live]
        self.queue_bytes = sum(map(len, self._packed))

    def _fitting(self) -> int:
        """How many of the queue fit into one message; at least one."""
        size = count = 0
        for packed in self._packed:
            size += len(packed)
            if count and (size > MESSAGE_BYTES_AIM or count == MESSAGE_REQUESTS_MAX):
                break
            count += 1
        return count

    def refused(self, now: float) -> None:
        """The socket did not take the last frame: with IMMEDIATE set, there is no connection behind it."""
        if self.state is State.GREETING:
            self._greeted_at = inf
        elif self.state is State.READY:
            for call in self._fresh:
                call.sent = False
            self.lose(now)

    def is_full(self) -> bool:
        """Whether as many calls are under way as the broker allows."""
        return len(self.table) + len(self._later) >= self.in_flight_max

    def oldest(self) -> Call | None:
        """A call whose end makes room."""
        return next(iter(self.table.values()), self._later[0][1] if self._later else None)

    @property
    def wants_writable(self) -> bool:
        """Whether HELLO waits for a connection."""
        return self.state is State.GREETING and self._greeted_at == inf

    # What comes

    def receive(self, frame: bytes, bulk: bytes, now: float, incarnation: int) -> None:
        """Take in one message; replies of an older incarnation are ignored."""
        if incarnation != self.incarnation or self.state is State.IDLE:
            return
        self._heard = now
        ping, self._ping = self._ping, None
        self._pinged_at = inf
        try:
            replies = read_replies(frame)
            table = self.table
            call: Call | None = None
            if bulk and replies:
                last = table.get(replies[-1][0])
                if last is not None:
                    last.bulk = bulk
            hello = self.hello
            for reply in replies:
                call = table.get(reply[0])
                if call is not None and reply[1] == 0:
                    call.reply = reply
                    call.hello = hello
                    call.settled = True
                    if call.session is not None:
                        # First of all: an interrupt on the way leaves the call in the table, and it is told again.
                        call.session.ended(call)
                    del table[reply[0]]
                    if call.waiters is not None:
                        call.wake()
                    continue
                if call is None:
                    self._stray(reply, ping, now)
                    hello = self.hello
                else:
                    self._refuse(call, reply, now)
                if self._lost():
                    return
            if call is not None:
                self._losses = 0
                if call.kind == APPEND and call.reply and call.reply[2] & DURABLE_FLAG and call.reply[-3] is not None:
                    self.note_head(call.reply[-3] + 1)
        except (ProtocolMismatch, TypeError, IndexError, ValueError) as error:
            self.lose(now, ProtocolMismatch(f"a reply can't be read: {error}"))

    def note_accepted(self, call: Call) -> None:
        """An append outside of sessions has ended; remember where, if it is not durable yet."""
        if call.error is None and not call.reply[2] & DURABLE_FLAG and call.hello is not None:
            key = call.hello.boot_id, call.reply[3]
            self.accepted[key] = max(self.accepted.get(key, 0), last_position(call.reply))

    def flushed(self, key: tuple[bytes, int], position: int) -> None:
        """What was accepted up to here is durable, or lost, and its caller knows."""
        if self.accepted.get(key, position + 1) <= position:
            del self.accepted[key]

    def under_way(self) -> list[Call]:
        """The appends that are not settled."""
        calls = [*self.table.values(), *(late for _, late in self._later)]
        return [call for call in calls if call.kind == APPEND and not call.settled]

    def note_head(self, head: int) -> None:
        """A head that some reply told; the greatest known goes with appends that are sent again."""
        if head > self.head:
            self.head = head

    def _stray(self, reply: tuple[Any, ...], ping: Call | None, now: float) -> None:
        """A reply to HELLO or PING, to nobody (settled meanwhile), or to a message that the broker could not read."""
        if reply[0] == self._greeting_id and self.state is State.GREETING:
            self._greeted(reply, now)
        elif ping is not None and reply[0] == ping.id and reply[1] == 0:
            self.note_head(reply[2])
        elif reply[1] == HelloRequired.code:
            self.lose(now)
        elif reply[0] is None:
            self.lose(now, _error(reply))

    def _greeted(self, reply: tuple[Any, ...], now: float) -> None:
        """HELLO is answered: everything unanswered goes out now, in the order of the calls."""
        if reply[1] != 0:
            error = _error(reply)
            self.lose(now, error)
            if isinstance(error, Unavailable):
                self._open_at = max(self._open_at, now + RETRY_FIRST)
            else:
                self.fail(error)
            return
        try:
            hello = read_hello(reply)
        except ProtocolMismatch as error:
            self.lose(now, error)
            self.fail(error)
            return
        if self.hello is not None and hello.log_id != self.hello.log_id:
            # What was sent to the one log must never be sent again to the other.
            self.lose(now)
            self.fail(ProtocolMismatch(f"{self.endpoint} serves another log than before", hello.protocol))
            return
        self.hello = hello
        self.in_flight_max = max(1, min(hello.limits.in_flight, IN_FLIGHT_MAX))
        self.note_head(hello.head)
        self.state = State.READY
        self._greeting = b""
        for call in list(self.table.values()):
            if call.settled:
                self._settle(call, call.error)
            else:
                self._enqueue(call, now)

    def _refuse(self, call: Call, reply: tuple[Any, ...], now: float) -> None:
        """An error reply: try again where that can settle it before the deadline, else hand it to the caller."""
        error = _error(reply)
        if isinstance(error, HelloRequired):
            self.lose(now)
            return
        if isinstance(error, Unavailable) and error.facts:
            if error.reason in ("starting", "stopping"):
                call.sent = call.carried
                self._retry(call, error, now)
                return
            if error.reason == "timeout":
                if call.deadline - now > RETRY_FIRST:
                    self._retry(call, error, now)
                else:
                    self._settle(call, DeadlineExceeded("the position did not come within the timeout"))
                return
        if isinstance(error, SerialGap) and call.session is not None:
            if call.session.stands_behind(call):
                # What becomes of an earlier one, whose answer may come later, tells what becomes of this one.
                self._retry(call, error, now)
                return
            ended = call.session.gap(call, error)
            if ended is not None:
                self._settle(call, ended)
            return
        if error.retryable and call.stubborn:
            self._retry(call, error, now)
            return
        if call.kind == COMMIT_CURSOR and call.carried and isinstance(error, CursorMoved | LeaseLost):
            error.maybe_applied = True  # by this very commit, whose answer was lost, and then by another's
        if call.carried and isinstance(error, SessionFenced):
            error.maybe_applied = True  # before the session was opened again
        if isinstance(error, OutcomeUnknown) and call.kind in WRITTEN:
            # A broker whose sync failed says this once and ends. One that lives and says it again about the same ids
            # has forgotten them: no retry can settle that.
            boot_id = self.hello.boot_id if self.hello is not None else b""
            if call.doubted != boot_id:
                call.doubted = boot_id
                call.carried = True
                self._retry(call, error, now)
                return
        self._settle(call, error)

    def _retry(self, call: Call, why: TidelogError, now: float) -> None:
        """Send the call again a little later, under a new request id; and all of its session that stand behind it."""
        call.why = why
        due = now + min(RETRY_FIRST * 2 ** min(call.retries, 8), RETRY_MAX)
        call.retries += 1
        behind = call.session.behind(call) if call.session is not None else ()
        for one in (call, *behind):
            if one is not call:
                one.carried = one.carried or one.sent  # its answer is ignored from here on
            if self.table.pop(one.id, None) is not None:
                heappush(self._later, (due, one))

    # Time

    def timer(self, now: float) -> float:
        """When tick() is due next."""
        due = self._next_deadline
        if self._later:
            due = min(due, self._later[0][0])
        if self.state is State.READY:
            if self.table:
                due = min(due, self._heard + QUIET if self._ping is None else self._pinged_at + self._patience())
        elif self.state is State.GREETING:
            due = min(due, self._greeted_at + self._patience() / 4)
        elif self.busy():
            due = min(due, max(self._open_at, now))
        return due

    def tick(self, now: float) -> None:
        """Deadlines, retries, PING, and the end of patience. Call it after what has arrived was received."""
        if now - self._stepped > UNATTENDED:
            self._heard = max(self._heard, now)
            if self._ping is not None:
                self._pinged_at = now
            if self._greeted_at != inf:
                self._greeted_at = now
        self._stepped = now
        if now >= self._next_deadline:
            self._expire(now)
        while self._later and self._later[0][0] <= now:
            call = heappop(self._later)[1]
            if not call.settled:
                self.submit(call, now)
        if self.state is State.READY and self.table:
            if self._ping is None:
                if now - self._heard >= QUIET:
                    self._next_id += 1
                    self._ping = Call(PING, (), inf)
                    self._ping.id = self._next_id
                    self._pinged_at = now
                    self._enqueue(self._ping, now)
            elif now - self._pinged_at >= self._patience():
                self.lose(now)
        elif self.state is State.GREETING and now - self._greeted_at >= self._patience() / 4:
            self.lose(now)

    def _patience(self) -> float:
        return float(min(PATIENCE * 2 ** min(self._losses, 8), PATIENCE_MAX))

    def _expire(self, now: float) -> None:
        """End the calls whose time is over, and find the next one's."""
        self._next_deadline = inf
        for call in [*self.table.values(), *(late for _, late in self._later)]:
            if call.settled:
                continue
            if now < call.deadline:
                self._next_deadline = min(self._next_deadline, call.deadline)
                continue
            maybe = call.kind in WRITTEN and call.sent
            if call.sent or call.why is not None:
                text = f"no reply from {self.endpoint} within the timeout"
            else:
                text = f"no broker answers at {self.endpoint}"
            why = call.why or self._why
            self._settle(call, DeadlineExceeded(f"{text} (last: {why})" if why else text, maybe_applied=maybe))


def last_position(reply: tuple[Any, ...]) -> int:
    """The last position that a reply to an append tells."""
    positions: list[int] = [position for position in reply[5::4] if position is not None]
    return max(positions)


def _error(reply: tuple[Any, ...]) -> TidelogError:
    """An error reply → the error; facts of a newer or broken broker don't stop it from being told."""
    text = reply[2] if len(reply) > 2 and type(reply[2]) is str else ""
    facts = reply[3] if len(reply) > 3 and type(reply[3]) is tuple else ()
    return from_wire(reply[1] if type(reply[1]) is int else -1, text, facts)


def closed_error() -> ClientClosed:
    """What calls of a closed client get."""
    return ClientClosed("the client is closed")
