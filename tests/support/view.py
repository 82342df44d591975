"""What the rules of the checker ask of a history, made once: the log, and what is known of the part that was truncated.

Of removed events the log tells nothing any more. What anyone was told of them (a place in an answer, an event that was seen)
is kept as `past`, so that the rules hold for them, too: the first to tell of a position is believed, and whoever was told
something else has a fault by the rule that he is judged by.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from support.histories import Append, History, Stored, in_scope


class View:
    """A history from above."""

    def __init__(self, history: History) -> None:
        self.first = history.first
        self.head = history.log[-1].position + 1 if history.log else history.first
        past: dict[int, Stored] = {}
        for event in claims(history):
            if event.position < self.first:
                past.setdefault(event.position, event)
        self.whole = [*(past[position] for position in sorted(past)), *history.log]
        """In order; where nobody was told of a removed event there is a hole."""
        self.by_id: dict[str, Stored] = {}
        for event in [*history.log, *past.values()]:
            self.by_id.setdefault(event.id, event)
        self.by_position = {event.position: event for event in self.whole}
        self.owners = {event_id: append for append in history.appends for event_id in append.ids}
        self._scopes: dict[str, list[Stored]] = {}
        self.known_at, self.known = highest(knowledge(history))
        self._held_at, self._held = highest(truncations_told(history))
        self._reach_at, self._reach = highest([(cut.sent_at, cut.position) for cut in history.cuts])

    def events(self, append: Append) -> list[Stored]:
        """Those events of an append that are in the log or known to have been, in the order of the append."""
        return [self.by_id[event_id] for event_id in append.ids if event_id in self.by_id]

    def wanted(self, scope: str) -> list[Stored]:
        """The log as a subscriber of this scope should see it."""
        if scope not in self._scopes:
            self._scopes[scope] = [event for event in self.whole if in_scope(scope, event.stream)]
        return self._scopes[scope]

    def known_before(self, at: int) -> int:
        """The highest position that somebody knew of before this moment; -1 when nobody knew of any."""
        return _before(self.known_at, self.known, at, -1)

    def held_before(self, at: int) -> int:
        """The first position left, as far as anyone had been told before this moment."""
        return _before(self._held_at, self._held, at, 0)

    def reach_before(self, at: int) -> int:
        """The highest position that a truncation had been sent for before this moment."""
        return _before(self._reach_at, self._reach, at, 0)


def _before(moments: list[int], values: list[int], at: int, otherwise: int) -> int:
    place = bisect_left(moments, at)
    return values[place - 1] if place else otherwise


def highest(told: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Moments in order, and for each the highest value told by then."""
    moments: list[int] = []
    values: list[int] = []
    for at, value in sorted(told):
        if not values or value > values[-1]:
            moments.append(at)
            values.append(value)
    return moments, values


def knowledge(history: History) -> list[tuple[int, int]]:
    """(when, a position that somebody was told of)"""
    told = [(one.ended_at, place[1]) for append in history.appends for one in append.acks for place in one.places]
    for subscription in history.subscriptions:
        told += [(at, event.position) for at, event in zip(subscription.seen_at, subscription.seen, strict=True)]
    for read in history.reads:
        told += [(read.at, event.position) for event in read.events]
        told += [(read.at, read.head - 1)] if read.head else []
    return told


def truncations_told(history: History) -> list[tuple[int, int]]:
    """(when, the first position left) as somebody was told, by an answer to a truncation or by a refusal."""
    told = [(cut.ended_at, cut.first) for cut in history.cuts if cut.first is not None]
    return told + [(refusal.at, refusal.first) for refusal in history.refusals]


def claims(history: History) -> Iterator[Stored]:
    """Every event that anyone was told of, where it was told to stand; who saw most comes first."""
    yield from history.proof
    for subscription in history.subscriptions:
        yield from subscription.seen
    for read in history.reads:
        yield from read.events
    for append in history.appends:
        for one in append.acks[:1]:
            for part, (position, _, version, _) in zip(append.parts, one.places, strict=False):
                for place, (event_id, digest) in enumerate(part.events):
                    yield Stored(position + place, part.stream, version + place, event_id, digest)
