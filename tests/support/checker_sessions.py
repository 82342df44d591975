"""What a broker promised of sessions, cursors and leases (spec §5, §10), judged from notes (support/noted.py) and the records of
its log (support/session_facts.py): one function for each rule.

As in support/checker.py, whose rules are about events and go on beside these, `judge_sessions` looks with every rule, and a rule
says nothing about what is another's business. The log has to hold everything since it began: nothing was truncated.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

from support.session_facts import Fact, Leased, Moved, Opened, Stored

FAULTS_MAX = 5
"""Of one rule: the first few tell the story."""


class SessionRule(Enum):
    """Each promise, in a sentence."""

    SERIALS = "the serials of a session in the log are 1, 2, 3 …"
    EPOCHS = "the epochs of a session are 1, 2, 3 …"
    FENCED = "an append stands in the epoch that is in force: nothing of an older one behind a newer opening"
    OPENED = "who opens a session is told exactly how many of its appends are in the log"
    ONCE = "no event of an append stands in the log twice"
    ACKED = "an acknowledged append is in the log, whole, at the places and with the serial that were told"
    REFUSED = "what was refused or not applied is not in the log"
    IN_SESSION = "an append is stored in the session and epoch that it was sent in"
    ORDER = "what a holder appended in a session stands in the order of its calls"
    ATOMIC = "an append and the cursor that it carries are in the log both or neither"
    COMMITTED = "an acknowledged commit of a cursor is in the log"
    ASKED = "a cursor is committed by nobody but who asked for it"
    COMPARED = "a cursor moves only from where its mover believed it to stand"
    UNDER_LEASE = "a cursor moves only under the lease in force, never by who lost it"
    LEASES = "the number of a lease rises by one with each taking, and with nothing else"
    STANDS = "where a cursor is told to stand a record says so, and none that was acknowledged before the question is left out"


class SessionFault(NamedTuple):
    """A broken promise: which, and how it shows."""

    rule: SessionRule
    text: str

    def __str__(self) -> str:
        return f"{self.rule.name}: {self.text} (the promise: {self.rule.value})"


@dataclass(slots=True)
class Call:
    """An append in a session or with a cursor, or without parts the commit of a cursor, as its client knows it."""

    client: str
    number: int
    session: tuple[str, int] | None
    cursor: tuple[str, int | bool | None, int, int | None] | None
    parts: list[tuple[str, list[tuple[str, str]]]]
    ended: Literal["ack", "refused", "unknown"] | None = None
    ended_at: int = 0
    told: tuple[str, int, int] | None = None
    places: list[list[int]] = field(default_factory=list)
    error: str = ""

    @property
    def name(self) -> str:
        return f"call {self.number} of {self.client}"

    @property
    def ids(self) -> list[str]:
        return [event_id for _, events in self.parts for event_id, _ in events]


class Opening(NamedTuple):
    """A session that was opened, as its client was told. With `resumed` its epoch may have been in force before."""

    client: str
    session: str
    epoch: int
    last: int
    resumed: bool


class Stand(NamedTuple):
    """Where a cursor stood, as a client was told. `holder`: None nobody, "" somebody."""

    client: str
    began: int
    cursor: str
    position: int | None
    holder: str | None
    lease: int


@dataclass(slots=True)
class SessionHistory:
    """The log's records, and everything that clients noted."""

    facts: list[Fact] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    stands: list[Stand] = field(default_factory=list)

    def add(self, client: str, rows: list[dict[str, Any]]) -> None:
        """The notes of one life of a program."""
        calls: dict[int, Call] = {}
        for row in rows:
            what = row["what"]
            if what == "send":
                session = None if row["session"] is None else (row["session"][0], row["session"][1])
                cursor = None if row["cursor"] is None else tuple(row["cursor"])
                parts = [
                    (stream, [(event_id, digest) for event_id, digest in events]) for stream, events in row["writes"]
                ]
                calls[row["number"]] = Call(client, row["number"], session, cursor, parts)
            elif what in ("ack", "failed"):
                self._ended(calls[row["number"]], row)
            elif what == "opened":
                self.openings.append(Opening(client, row["session"], row["epoch"], row["last"], row["resumed"]))
            else:
                holder = "" if what == "acquired" else row["holder"]
                self.stands.append(Stand(client, row["began"], row["cursor"], row["position"], holder, row["lease"]))
        self.calls += calls.values()

    @staticmethod
    def _ended(call: Call, row: dict[str, Any]) -> None:
        call.ended_at = row["at"]
        if row["what"] == "ack":
            call.ended, call.places = "ack", row["places"]
            call.told = None if row["session"] is None else tuple(row["session"])
        else:
            call.ended, call.error = "unknown" if row["unknown"] else "refused", row["error"]


class State(NamedTuple):
    """A cursor between two records; `fact` is the place of the one that made it so, -1 before the first."""

    position: int | None = None
    holder: str | None = None
    lease: int = 0
    fact: int = -1


class SessionView:
    """A history from above: which record is whose, and how each cursor went."""

    def __init__(self, history: SessionHistory) -> None:
        self.stored = [(place, fact) for place, fact in enumerate(history.facts) if isinstance(fact, Stored)]
        self.place_of: dict[str, int] = {}
        for place, fact in self.stored:
            for part in fact.parts:
                for event_id, _ in part.events:
                    self.place_of.setdefault(event_id, place)
        self.owners = {event_id: call for call in history.calls for event_id in call.ids}
        self.cursors: defaultdict[str, list[State]] = defaultdict(lambda: [State()])
        for place, record in enumerate(history.facts):
            moved = record.moved if isinstance(record, Stored) else record
            if isinstance(moved, Moved):
                self.cursors[moved.cursor].append(State(moved.position, moved.holder, moved.lease, place))
            elif isinstance(moved, Leased):
                position = self.cursors[moved.cursor][-1].position
                self.cursors[moved.cursor].append(State(position, moved.holder, moved.lease, place))

    def found(self, history: SessionHistory, call: Call) -> Stored | None:
        """The record of an append, by any of its events."""
        places = [self.place_of[event_id] for event_id in call.ids if event_id in self.place_of]
        fact = history.facts[places[0]] if places else None
        assert fact is None or isinstance(fact, Stored)
        return fact

    def call_of(self, fact: Stored) -> Call | None:
        """Who appended this, if he noted it."""
        return self.owners.get(fact.parts[0].events[0][0])

    def moves(self, history: SessionHistory) -> Iterator[tuple[State, Moved, Stored | None]]:
        """Every move: the cursor before it, the record, the append that carries it."""
        for name, states in self.cursors.items():
            for before, after in pairwise(states):
                record = history.facts[after.fact]
                moved = record.moved if isinstance(record, Stored) else record
                if isinstance(moved, Moved):
                    assert moved.cursor == name
                    yield before, moved, record if isinstance(record, Stored) else None


# ---- sessions


def serials(history: SessionHistory, view: SessionView) -> Iterator[str]:
    last: defaultdict[str, int] = defaultdict(int)
    for _, fact in view.stored:
        if fact.session is not None:
            name, _, serial = fact.session
            if serial != last[name] + 1:
                yield f"serial {serial} of session {name} stands where {last[name] + 1} was due"
            last[name] = max(last[name], serial)


def epochs(history: SessionHistory, view: SessionView) -> Iterator[str]:
    last: defaultdict[str, int] = defaultdict(int)
    for fact in history.facts:
        if isinstance(fact, Opened):
            if fact.epoch != last[fact.session] + 1:
                yield f"epoch {fact.epoch} of session {fact.session} stands where {last[fact.session] + 1} was due"
            last[fact.session] = fact.epoch
    for opening in history.openings:
        if opening.epoch > last[opening.session]:
            yield f"{opening.client} was told epoch {opening.epoch} of session {opening.session}, the log has none"


def fenced(history: SessionHistory, view: SessionView) -> Iterator[str]:
    in_force: dict[str, int] = {}
    for fact in history.facts:
        if isinstance(fact, Opened):
            in_force[fact.session] = fact.epoch
        elif isinstance(fact, Stored) and fact.session is not None:
            name, epoch, serial = fact.session
            if epoch != in_force.get(name):
                yield f"serial {serial} of session {name} stands in epoch {epoch}, {in_force.get(name)} is in force"


def opened(history: SessionHistory, view: SessionView) -> Iterator[str]:
    # At each epoch's record: the newest serial before it; at the next one's: what a resumed session may be told at most.
    newest: defaultdict[str, int] = defaultdict(int)
    bounds: defaultdict[str, list[int]] = defaultdict(list)
    for fact in history.facts:
        if isinstance(fact, Opened):
            bounds[fact.session].append(newest[fact.session])
        elif isinstance(fact, Stored) and fact.session is not None:
            newest[fact.session[0]] = fact.session[2]
    for one in history.openings:
        known = [*bounds[one.session], newest[one.session]]
        if one.epoch < len(known):
            least, most = known[one.epoch - 1], known[one.epoch]
            if not least <= one.last <= (most if one.resumed else least):
                yield f"{one.client} was told last serial {one.last} with epoch {one.epoch}, the log has {least}"


def once(history: SessionHistory, view: SessionView) -> Iterator[str]:
    seen: set[str] = set()
    for place, fact in view.stored:
        for event_id in [event_id for part in fact.parts for event_id, _ in part.events]:
            if event_id in seen:
                yield f"event {event_id} of {fact.session} stands in records {view.place_of[event_id]} and {place}"
            seen.add(event_id)


def acked(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for call in history.calls:
        if call.ended != "ack" or not call.parts:
            continue
        fact = view.found(history, call)
        if fact is None:
            yield f"{call.name} was acknowledged as {call.told}, and is not in the log"
            continue
        there = [(part.stream, part.events) for part in fact.parts]
        if there != [(stream, events) for stream, events in call.parts if events]:
            yield f"{call.name} was acknowledged, and the log has {there}"
        ends = [
            [part.position, part.position + len(part.events) - 1, part.version, part.version + len(part.events) - 1]
            for part in fact.parts
        ]
        places = [row for row in call.places if row[0] is not None]
        if places and places != ends:  # of what is repeated late the places may be forgotten
            yield f"{call.name} was told {places}, and stands at {ends}"
        if call.told is not None and (fact.session is None or fact.session[2] != call.told[2]):
            yield f"{call.name} was told {call.told}, and the log has {fact.session}"


def refused(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for call in history.calls:
        if call.ended == "refused" and view.found(history, call) is not None:
            yield f"{call.name} was refused ({call.error}), and is in the log"


def in_session(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for call in history.calls:
        fact = view.found(history, call)
        if fact is not None and (fact.session and fact.session[:2]) != call.session:
            yield f"{call.name} was sent in {call.session}, and stands in {fact.session}"


def order(history: SessionHistory, view: SessionView) -> Iterator[str]:
    newest: dict[tuple[str, tuple[str, int]], int] = {}
    for call in sorted(history.calls, key=lambda call: call.number):
        fact = view.found(history, call)
        if fact is not None and call.session is not None:
            place, key = view.place_of[fact.parts[0].events[0][0]], (call.client, call.session)
            if place < newest.get(key, -1):
                yield f"{call.name} stands before what was appended in {call.session} before it"
            newest[key] = max(place, newest.get(key, -1))


# ---- cursors


def atomic(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for call in history.calls:
        fact = view.found(history, call)
        if fact is None:
            continue
        wanted = None if call.cursor is None else (call.cursor[0], call.cursor[2])
        carried = None if fact.moved is None else fact.moved[:2]
        if wanted != carried:
            yield f"{call.name} was sent with {wanted}, and carries {carried}"


def committed(history: SessionHistory, view: SessionView) -> Iterator[str]:
    there = {(moved.cursor, moved.position) for _, moved, carrier in view.moves(history) if carrier is None}
    for call in history.calls:
        if not call.parts and call.cursor is not None and call.ended == "ack":
            move = (call.cursor[0], call.cursor[2])
            if move not in there:
                yield f"{call.name} committed {move}, and the log has no such record"


def asked(history: SessionHistory, view: SessionView) -> Iterator[str]:
    wanted = {(call.cursor[0], call.cursor[2]) for call in history.calls if call.cursor is not None and not call.parts}
    for _, moved, carrier in view.moves(history):
        if carrier is None and (moved.cursor, moved.position) not in wanted:
            yield f"cursor {moved.cursor} was committed at {moved.position}, and nobody asked for that"


def compared(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for before, moved, carrier in view.moves(history):
        believed = _believed(history, view, moved, carrier)
        if believed and not any(row[1] is True or row[1] == before.position for row in believed):
            yield f"cursor {moved.cursor} moved from {before.position} to {moved.position}, its mover believed {believed}"


def under_lease(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for before, moved, carrier in view.moves(history):
        if moved[2:] != before[1:3]:
            yield f"the record of {moved.cursor} at {moved.position} names {moved[2:]}, in force is {before[1:3]}"
        believed = _believed(history, view, moved, carrier)
        if believed and not any(row[3] == before.lease or (row[3] is None and not before.holder) for row in believed):
            yield f"cursor {moved.cursor} moved to {moved.position} by {believed}, in force is lease {before.lease}"


def _believed(
    history: SessionHistory, view: SessionView, moved: Moved, carrier: Stored | None
) -> list[tuple[str, int | bool | None, int, int | None]]:
    """What those who may have sent this move said of the cursor; of an append it is known who."""
    if carrier is not None:
        call = view.call_of(carrier)
        return [] if call is None or call.cursor is None else [call.cursor]
    return [
        call.cursor
        for call in history.calls
        if call.cursor is not None and not call.parts and (call.cursor[0], call.cursor[2]) == moved[:2]
    ]


def leases(history: SessionHistory, view: SessionView) -> Iterator[str]:
    for name, states in view.cursors.items():
        for before, after in pairwise(states):
            record = history.facts[after.fact]
            if isinstance(record, Leased):
                due = before.lease + 1 if record.holder else before.lease
                if record.lease != due:
                    yield f"lease {record.lease} of {name} stands where {due} was due"


def stands(history: SessionHistory, view: SessionView) -> Iterator[str]:
    commits: dict[tuple[str, int], int] = {}
    for place, fact in enumerate(history.facts):
        if isinstance(fact, Moved):
            commits.setdefault(fact[:2], place)
    acknowledged: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for call in history.calls:
        if call.cursor is not None and call.ended == "ack":
            place = min((view.place_of.get(event_id, -1) for event_id in call.ids), default=-1)
            if not call.parts:
                place = commits.get((call.cursor[0], call.cursor[2]), -1)
            acknowledged[call.cursor[0]].append((call.ended_at, place))
    for rows in acknowledged.values():
        rows.sort()
    for one in history.stands:
        states = view.cursors[one.cursor]
        rows = acknowledged[one.cursor][: bisect_left(acknowledged[one.cursor], (one.began, -1))]
        known = max((place for _, place in rows), default=-1)
        # The state that the newest record known before the question made, and all behind it.
        first = max(bisect_right(states, known, key=lambda state: state.fact) - 1, 0)
        if not any(_says(state, one) for state in states[first:]):
            yield f"{one.client} was told {one[2:]} when record {known} was known, and no record behind that says so"


def _says(state: State, one: Stand) -> bool:
    holder = "" if one.holder == "" and state.holder else state.holder
    return (state.position, holder, state.lease) == (one.position, one.holder, one.lease)


SESSION_RULES: dict[SessionRule, Callable[[SessionHistory, SessionView], Iterator[str]]] = {
    SessionRule.SERIALS: serials,
    SessionRule.EPOCHS: epochs,
    SessionRule.FENCED: fenced,
    SessionRule.OPENED: opened,
    SessionRule.ONCE: once,
    SessionRule.ACKED: acked,
    SessionRule.REFUSED: refused,
    SessionRule.IN_SESSION: in_session,
    SessionRule.ORDER: order,
    SessionRule.ATOMIC: atomic,
    SessionRule.COMMITTED: committed,
    SessionRule.ASKED: asked,
    SessionRule.COMPARED: compared,
    SessionRule.UNDER_LEASE: under_lease,
    SessionRule.LEASES: leases,
    SessionRule.STANDS: stands,
}


def judge_sessions(history: SessionHistory) -> list[SessionFault]:
    """Every rule over the whole history; no faults is the claim."""
    view = SessionView(history)
    return [
        SessionFault(rule, text)
        for rule, check in SESSION_RULES.items()
        for text in islice(check(history, view), FAULTS_MAX)
    ]
