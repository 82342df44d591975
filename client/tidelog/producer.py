"""A session as its client sees it: which serials are under way, and what becomes of them. PURE (spec §5).

The broker takes serial n + 1 behind n and nothing else. So whoever sends many ahead needs three rules, and they are here:
a refusal ends what was sent behind it as not applied, and the session goes on from the refused serial; a call that is tried
again takes all that stand behind it along; and what the broker called accepted and lost, before it was durable, is
sent again from the serial that it does know. The exchange keeps two threads out of here, and asks at each of those moments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .errors import NotApplied, SerialGap, SessionFenced, TidelogError
from .exchange import Call, Exchange
from .wire import APPEND, DURABLE_FLAG

ACCEPTED_MAX = 512
"""So many appends may be accepted and not known to be durable; the next asks for durable, which tells of all before it."""


class InDoubt(Exception):
    """Nothing more can be sent before the broker has told where the session stands."""


class Producer:
    """One session of one client, its serials in the order in which they are submitted."""

    def __init__(self, exchange: Exchange, name: str, epoch: int, last: int) -> None:
        self.name = name
        self.epoch = epoch
        self.last = last
        """The newest serial that is known to be in the log."""
        self.next = last + 1
        self.calls: dict[int, Call] = {}
        """What is under way, by serial."""
        self.accepted: deque[Call] = deque()
        """Answered as accepted, and not known to be durable."""
        self.in_doubt = False
        """A call ended without anybody knowing whether it was applied: ask the broker before the next."""
        self.failure: TidelogError | None = None
        """Why nothing can be appended any more."""
        self.lost: TidelogError | None = None
        """What was accepted and lost for good, for whoever flushes next."""
        self.flush: Callable[[float], None]
        """Set by whoever owns it: make durable what was accepted, until a time."""
        self._exchange = exchange

    # -- asked by the exchange

    def assign(self, call: Call) -> None:
        """The call gets the next serial. Raises what ended the session, and InDoubt."""
        if self.failure is not None:
            raise again(self.failure)
        if self.in_doubt:
            raise InDoubt
        serial = call.serial = self.next
        level, _, cursor, writes = call.fields
        if level and len(self.accepted) + len(self.calls) >= ACCEPTED_MAX:
            level = 0
        call.fields = level, (self.name, self.epoch, serial), cursor, writes
        self.calls[serial] = call
        self.next = serial + 1

    def unassign(self, call: Call) -> None:
        """The newest serial was given to something that can't be sent."""
        del self.calls[call.serial]
        self.next = call.serial

    def doubt(self) -> None:
        """Nothing more is sent until `resolved`."""
        self.in_doubt = True

    def resolved(self, last: int) -> bool:
        """The broker says that `last` is the newest serial it has; False when something is under way again: ask once more."""
        if self.calls:
            return False
        self.confirm(last)
        self._give_up(self._behind_a_hole(last))
        self.last = max(self.last, last) if self.accepted else last
        self.in_doubt = False
        self.next = last + 1 + len(self.accepted)
        if self.accepted:
            self.send_again(list(self.accepted))
        return True

    def fenced(self, error: SessionFenced) -> None:
        """The session is another's now: what was accepted may be in the log or not, and stays so."""
        self.failure = error
        self.accepted.clear()
        self._exchange.unflushed.discard(self)

    def behind(self, call: Call) -> list[Call]:
        """What is under way behind a call."""
        return [later for serial, later in self.calls.items() if serial > call.serial]

    def stands_behind(self, call: Call) -> bool:
        """Whether an earlier one is still under way."""
        return any(serial < call.serial for serial in self.calls)

    def gap(self, call: Call, error: SerialGap) -> TidelogError | None:
        """The broker knows less than this call stands on: the error that ends it; None when all is sent again that is missing."""
        gone = self._behind_a_hole(error.last)
        lost = [done for done in self.accepted if done.serial > error.last and done not in gone]
        if gone:
            self._give_up(gone)
            self.in_doubt = True
        if lost:
            self.send_again(lost)
            return None
        if self.in_doubt:
            return not_applied(call.serial)
        return error

    def send_again(self, lost: list[Call]) -> None:
        """What was accepted and is not in the log any more, and behind it everything under way."""
        for done in lost:
            self.accepted.remove(done)
            _, session, cursor, writes = done.fields
            call = Resent(APPEND, (0, session, cursor, writes), float("inf"))
            call.session, call.serial = self, done.serial
            self.calls[done.serial] = call
        self.calls = dict(sorted(self.calls.items()))
        self._exchange.send_in_order(list(self.calls.values()))

    def ended(self, call: Call) -> None:
        """A call is settled."""
        serial, calls = call.serial, self.calls
        if calls.get(serial) is not call:
            return
        del calls[serial]
        error = call.error
        if error is None:
            if serial > self.last:
                self.last = serial
            if not call.reply[2] & DURABLE_FLAG:
                self.accepted.append(call)
                self._exchange.unflushed.add(self)
            elif self.accepted:
                self.confirm(serial)
        elif error.maybe_applied and not isinstance(error, SessionFenced):
            self.in_doubt = True
        else:
            self._refused(call, error)

    def under_way_again(self) -> list[Call]:
        """What was accepted and lost, and is under way once more."""
        return [call for call in self.calls.values() if isinstance(call, Resent)]

    def confirm(self, serial: int) -> None:
        """Everything up to this serial is durable."""
        while self.accepted and self.accepted[0].serial <= serial:
            self.accepted.popleft()
        if not self.accepted and self.lost is None and not self.under_way_again():
            self._exchange.unflushed.discard(self)

    def _behind_a_hole(self, last: int) -> list[Call]:
        """What was accepted and stands behind a call that ended in doubt, and that the broker does not have."""
        serial = last
        for place, done in enumerate(self.accepted):
            if done.serial <= last:
                continue
            while serial + 1 in self.calls:
                serial += 1
            if done.serial != serial + 1:
                return list(self.accepted)[place:]
            serial += 1
        return []

    def _give_up(self, gone: list[Call]) -> None:
        """What was accepted and never will be in the log: whoever flushes is told."""
        if gone:
            self.lost = self.lost or not_applied(gone[0].serial)
            self._exchange.unflushed.add(self)
            for done in gone:
                if done in self.accepted:
                    self.accepted.remove(done)

    def _refused(self, call: Call, error: TidelogError) -> None:
        later = self.behind(call)
        for other in later:
            del self.calls[other.serial]
        fenced = isinstance(error, SessionFenced)
        if fenced:
            self.failure = again(error)
        elif isinstance(call, Resent):
            text = f"what was accepted as serial {call.serial} was lost, and is refused now ({error}): open the session again"
            self.failure = NotApplied(text, call.serial)
        if not self.in_doubt:
            self.next = call.serial
        lost = [done for done in (call, *later) if isinstance(done, Resent)]
        # Accepted ones behind it: the group of both failed, and this one was told.
        self._give_up([*lost, *(done for done in self.accepted if done.serial > call.serial)])
        for other in later:
            own = SessionFenced(error.text, *error.facts, maybe_applied=other.carried) if fenced else None
            self._exchange.cancel(other, own or not_applied(other.serial))


class Resent(Call):
    """An accepted append that the broker lost and gets again; its caller was answered long ago."""

    stubborn = True

    def wake(self) -> None:
        for follower in self.waiters:
            follower.wake()


def again(error: TidelogError) -> TidelogError:
    """The same error for somebody else, whose call was not sent: one that is raised twice keeps both callers' frames."""
    return type(error)(error.text, *error.facts, maybe_applied=False)


def not_applied(serial: int) -> NotApplied:
    """The error of what was sent behind a refusal."""
    return NotApplied(f"serial {serial} was not applied: an append of the session before it was refused", serial)
