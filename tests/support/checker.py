"""What a broker promised (spec §6), judged from histories (support/histories.py) and its log: one function for each rule.

`judge` looks at everything with every rule, so that the verdict names each rule that is broken, and only those: a rule says
nothing about what is another's business. More rules (sessions, cursors) are more entries in RULES.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, pairwise

from support import cut_rules
from support.histories import Append, History, Part, Stored, Subscription, lives, slot
from support.view import View

FAULTS_MAX = 5
"""Of one rule: the first few tell the story."""
ANSWER_NS = 10_000_000_000


class Rule(Enum):
    """Each promise, in a sentence."""

    SOME_ACK = "a run proves something: an append was acknowledged"
    SAW_SOMETHING = "a run proves something: every subscriber saw an event"
    POSITIONS = "positions are 0, 1, 2 …, from the first one left"
    VERSIONS = "the versions of each stream are 0, 1, 2 …"
    CLOCK = "recorded_at is one value for an append and never goes back"
    READERS_AGREE = "the client library and the independent reader find the same log, whole"
    STREAMS_AGREE = "each stream read alone is its part of the log"
    ONCE = "no event stands in the log twice"
    NOT_INVENTED = "every event of the log was appended by somebody"
    CONTENT = "an event holds what was appended, in the stream it was appended to"
    ACK_THERE = "what was acknowledged is in the log"
    ACK_PLACE = "and at the places that were told"
    DEFINITE_ABSENT = "what was refused for good is not in the log"
    WHOLE = "an append is in the log whole, side by side and in order, or not at all"
    EXPECTED = "an append stands behind the version that it expected"
    REPEAT = "a repeat of what was acknowledged is a duplicate with the same places"
    CLIENT_ORDER = "what a client sent one after the other stands in that order"
    REAL_TIME = "what was sent after somebody knew of an event stands behind it"
    SEEN_KEPT = "what anyone has seen is in the log for ever, unchanged"
    SEEN_ORDER = "a subscriber sees each event once, in order"
    SEEN_DENSE = "a subscriber or a read leaves out no event of its range"
    SEEN_ALL = "a subscriber that lives to the end has seen everything"
    FRESH = "a head that was asked for covers what was known before it was asked"
    CUT_HELD = "what was truncated is gone for ever, and the first position left never goes back"
    CUT_ONLY = "nothing is gone but what a truncation that was sent reaches"
    CUT_EDGE = "a truncation is answered with the beginning of the append that its position falls in"
    LAST_VERSIONS = "the last version and position of a stream stay known, whatever was truncated"
    BACKUP = "a backup, or an export, is the log up to where it ends, with all that was known when it began"
    ANSWERED = "when the faults are over, everyone is answered within 10 s"


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken promise: which, and how it shows."""

    rule: Rule
    text: str

    def __str__(self) -> str:
        return f"{self.rule.name}: {self.text} (the promise: {self.rule.value})"


@dataclass(slots=True)
class Verdict:
    """The broken promises, and how much was looked at."""

    faults: list[Fault] = field(default_factory=list)
    events: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    repeats: int = 0
    seen: int = 0
    reads: int = 0
    truncations: int = 0

    @property
    def broken(self) -> set[Rule]:
        return {fault.rule for fault in self.faults}


Check = Callable[[History, View], Iterator[str]]


# ---- the run


def some_ack(history: History, view: View) -> Iterator[str]:
    if not any(append.acks for append in history.appends):
        yield f"none of {len(history.appends)} appends was acknowledged"


def saw_something(history: History, view: View) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for subscription in history.subscriptions:
        seen[slot(subscription.client)] += len(subscription.seen)
    yield from (f"{name} saw nothing" for name, count in seen.items() if not count)


# ---- the log alone


def positions(history: History, view: View) -> Iterator[str]:
    for place, event in enumerate(history.log, history.first):
        if event.position != place:
            yield f"position {event.position} stands where {place} was due"
            return


def versions(history: History, view: View) -> Iterator[str]:
    """Where nobody was told of removed events, some of the stream's may have been among them."""
    due: dict[str, tuple[int, int]] = {}
    holes, stop = 0, 0
    for event in view.whole:
        holes, stop = holes + event.position - stop, event.position + 1
        version, holes_then = due.get(event.stream, (0, 0))
        if not version <= event.version <= version + holes - holes_then:
            yield f"version {event.version} of {event.stream} stands where {version} was due"
        due[event.stream] = (event.version + 1, holes)


def clock(history: History, view: View) -> Iterator[str]:
    for one, two in pairwise(history.log):
        if one.recorded_at > two.recorded_at:
            yield f"position {two.position} was recorded at {two.recorded_at}, the one before at {one.recorded_at}"
    for append in history.appends:
        if len({event.recorded_at for event in view.events(append) if event.position >= history.first}) > 1:
            yield f"the events of {append.name} were recorded at different times"


def readers_agree(history: History, view: View) -> Iterator[str]:
    if history.proof_verdict != "whole":
        yield f"the independent reader says: {history.proof_verdict or 'nothing'}"
    if history.first != history.proof_first:
        yield f"the broker's first position left is {history.first}, the independent reader's {history.proof_first}"
    proof = [event for event in history.proof if event.position >= history.first]
    if len(history.log) != len(proof):
        yield f"the client library finds {len(history.log)} events, the independent reader {len(proof)}"
    for one, two in zip(history.log, proof, strict=False):
        if one != two:
            yield f"the client library finds {one}, the independent reader {two}"


def streams_agree(history: History, view: View) -> Iterator[str]:
    by_stream: defaultdict[str, list[Stored]] = defaultdict(list)
    for event in history.log:
        by_stream[event.stream].append(event)
    for name in by_stream.keys() | history.streams.keys():
        alone, there = history.streams.get(name, []), by_stream[name]
        if alone != there:
            yield f"stream {name} read alone has {len(alone)} events, of the log {len(there)} are its, or they differ"


def once(history: History, view: View) -> Iterator[str]:
    for event in view.whole:
        if view.by_id[event.id] is not event:
            yield f"event {event.id} stands at {view.by_id[event.id].position} and at {event.position}"


def not_invented(history: History, view: View) -> Iterator[str]:
    for event in view.whole:
        if event.id not in view.owners:
            yield f"event {event.id} at position {event.position} was never appended"


# ---- appends


def content(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        for part in append.parts:
            for event_id, digest in part.events:
                event = view.by_id.get(event_id)
                if event is not None and (event.stream, event.digest) != (part.stream, digest):
                    yield f"event {event_id} of {append.name} is {event}, not {digest} in {part.stream}"


def ack_there(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        there = len(view.events(append))
        if append.acks and there < len(append.ids):
            yield f"{append.name} was acknowledged, but of its {len(append.ids)} events {there} are in the log"


def ack_place(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        if append.acks and len(view.events(append)) == len(append.ids):
            stands = places(append, view)
            if append.acks[0].places != stands:
                yield f"{append.name} was told {append.acks[0].places}, but stands at {stands}"


def places(append: Append, view: View) -> list[list[int]]:
    """Where the parts of an append that is in the log stand, as an answer tells it."""
    ends = [(view.by_id[part.events[0][0]], view.by_id[part.events[-1][0]]) for part in append.parts]
    return [[one.position, last.position, one.version, last.version] for one, last in ends]


def definite_absent(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        there = view.events(append)
        if append.refused and there:
            yield f"{append.name} was refused ({append.tries[0].error}), but stands at position {there[0].position}"


def whole(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        there = view.events(append)
        if not there or append.refused:
            continue
        # What a truncation took away with nobody having seen all of it says nothing; how it cuts is another rule's business.
        begins = there[0].position
        if len(there) < len(append.ids) and not append.acks and (not history.first or begins > history.first):
            yield f"{append.name} has no known outcome, and of its {len(append.ids)} events {len(there)} are in the log"
        for one, two in pairwise(there):
            if two.position != one.position + 1 and two.position >= history.first:
                yield f"{append.name} is torn apart: position {two.position} follows {one.position}"
                break


def expected(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        for part in append.parts:
            first = view.by_id.get(part.events[0][0])
            if first is not None and not _met(part, first.version):
                yield f"{append.name} expected {part.expected} of {part.stream}, and got version {first.version}"


def _met(part: Part, version: int) -> bool:
    if isinstance(part.expected, int):
        return version == part.expected + 1
    return {"any": True, "none": version == 0, "exists": version > 0}[part.expected]


NOT_LOOKED_AT = {"DeadlineExceeded", "ConnectionLost", "Unavailable", "Overloaded", "OutcomeUnknown", "ClientClosed"}
"""With these an answer says nothing about the append itself."""


def repeat(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        known: list[list[int]] | None = None
        for one in append.tries:
            if one.ended == "ack":
                if known is not None and (one.places != known or not one.duplicate):
                    yield f"a repeat of {append.name} was told {one.places}, duplicate {one.duplicate}, not {known}"
                known = known or one.places
            elif known is not None and one.ended is not None and one.error.partition(":")[0] not in NOT_LOOKED_AT:
                yield f"{append.name} was acknowledged at {known}, its repeat answered with {one.error}"


def client_order(history: History, view: View) -> Iterator[str]:
    behind: dict[str, tuple[int, str]] = {}
    for append in sorted(history.appends, key=lambda append: append.number):
        there = view.events(append)
        # One that was sent once more behind an open outcome may stand where the second call put it.
        if not there or len(append.tries) > 1:
            continue
        last, name = behind.get(append.client, (-1, ""))
        if there[0].position <= last:
            yield f"{append.name} stands at {there[0].position}, {name}, sent before it, at {last}"
        behind[append.client] = (max(last, there[-1].position), append.name)


def real_time(history: History, view: View) -> Iterator[str]:
    for append in history.appends:
        there = view.events(append)
        known = view.known_before(append.tries[0].sent_at)
        if there and min(event.position for event in there) <= known:
            yield f"{append.name} stands at {there[0].position}, but somebody knew of {known} before it was sent"


# ---- subscribers and reads


def seen_kept(history: History, view: View) -> Iterator[str]:
    for name, event in _everything_seen(history):
        there = view.by_position.get(event.position)
        if there is None or there[:5] != event[:5]:
            yield f"{name} saw {event[:5]}, and the log has {there[:5] if there else 'nothing'} there"
    for read in history.reads:
        if read.head > view.head:
            yield f"{read.client} was told head {read.head}, and the log ends at {view.head}"


def _everything_seen(history: History) -> Iterator[tuple[str, Stored]]:
    for subscription in history.subscriptions:
        yield from ((subscription.client, event) for event in subscription.seen)
    for read in history.reads:
        yield from ((read.client, event) for event in read.events)


def seen_order(history: History, view: View) -> Iterator[str]:
    for name, _, events in _ranges(history, view):
        for one, two in pairwise(events):
            if two.position <= one.position:
                yield f"{name} saw position {two.position} behind {one.position}"


def seen_dense(history: History, view: View) -> Iterator[str]:
    for name, wanted, events in _ranges(history, view):
        seen = {event.position for event in events}
        for event in wanted:
            if event.position not in seen:
                yield f"{name} saw {events[0].position} … {events[-1].position}, but not {event.position}"
                break
    behind: dict[str, int] = {}
    for subscription in _by_life(history):
        name = slot(subscription.client)
        due = behind.get(name, subscription.start)
        asked = subscription.start if subscription.instead is None else subscription.instead
        if asked > due:
            yield f"{subscription.client} begins at {asked}, what it had before ended before {due}"
        behind[name] = max(due, subscription.seen[-1].position + 1 if subscription.seen else 0)


def _ranges(history: History, view: View) -> Iterator[tuple[str, list[Stored], list[Stored]]]:
    """(who, what the log has from the first that it should see to the last that it saw, what it saw)."""
    rows = [(one.client, one.scope, one.start, one.seen) for one in history.subscriptions]
    rows += [(one.client, one.scope, one.events[0].position, one.events) for one in history.reads
             if one.scope is not None and one.events]  # fmt: skip
    for name, scope, start, events in rows:
        if events:
            wanted = view.wanted(scope)
            first = bisect_left(wanted, start, key=lambda event: event.position)
            last = max(event.position for event in events)
            stop = bisect_left(wanted, last + 1, key=lambda event: event.position)
            yield name, wanted[first:stop], events


def _by_life(history: History) -> list[Subscription]:
    order = {name: place for place, name in enumerate(lives(history.clients))}
    return sorted(history.subscriptions, key=lambda one: order[one.client])


def seen_all(history: History, view: View) -> Iterator[str]:
    for one in {one.client: one for one in history.subscriptions}.values():
        wanted = view.wanted(one.scope)
        last = one.seen[-1].position if one.seen else one.start - 1
        # Of what was truncated last of all it may not have been told yet.
        if one.client in history.ended and wanted and wanted[-1].position > max(last, history.first - 1):
            yield f"{one.client} ends behind position {last}, the last one in its scope is {wanted[-1].position}"


def fresh(history: History, view: View) -> Iterator[str]:
    for read in history.reads:
        known = view.known_before(read.began)
        if read.scope is None and read.head <= known:
            yield f"{read.client} was told head {read.head}, though position {known} was known before it asked"


# ---- the end


def answered(history: History, view: View) -> Iterator[str]:
    calm = history.calm_at
    if calm is None:
        return
    for append in history.appends:
        one = append.tries[-1]
        if append.client in history.killed:
            continue
        if one.ended is None:
            yield f"{append.name} was never answered"
        elif one.ended_at > max(calm, one.sent_at) + ANSWER_NS:
            yield f"{append.name} was answered {(one.ended_at - max(calm, one.sent_at)) / 1e9:.1f} s after the faults"
    for cut in history.cuts:
        late = cut.ended_at > max(calm, cut.sent_at) + ANSWER_NS
        if cut.client not in history.killed and (late or not cut.ended_at):
            yield f"truncation {cut.number} of {cut.client} was answered late or never"
    writers = {append.client for append in history.appends}
    probed = {append.client for append in history.appends if append.probe and append.tries[0].sent_at > calm
              and append.acks}  # fmt: skip
    for name in sorted(writers - probed - history.killed):
        yield f"{name} lives, and no append that it sent behind the faults was acknowledged"
    yield from _seen_in_time(history, view, calm)
    for name in sorted(set(history.clients) - history.killed - history.ended):
        yield f"{name} did not end when it was told to"


def _seen_in_time(history: History, view: View, calm: int) -> Iterator[str]:
    """Subscribers have everything within the same time behind the last acknowledgement."""
    acks = [(one.ended_at, place[1]) for append in history.appends for one in append.acks for place in one.places]
    if not acks:
        return
    due = max(calm, max(at for at, _ in acks)) + ANSWER_NS
    for one in history.subscriptions:
        if one.client in history.ended and one.seen_at and one.seen_at[-1] > due:
            yield f"{one.client} saw its last event {(one.seen_at[-1] - due + ANSWER_NS) / 1e9:.1f} s after the last answer"


RULES: dict[Rule, Check] = {
    Rule.SOME_ACK: some_ack,
    Rule.SAW_SOMETHING: saw_something,
    Rule.POSITIONS: positions,
    Rule.VERSIONS: versions,
    Rule.CLOCK: clock,
    Rule.READERS_AGREE: readers_agree,
    Rule.STREAMS_AGREE: streams_agree,
    Rule.ONCE: once,
    Rule.NOT_INVENTED: not_invented,
    Rule.CONTENT: content,
    Rule.ACK_THERE: ack_there,
    Rule.ACK_PLACE: ack_place,
    Rule.DEFINITE_ABSENT: definite_absent,
    Rule.WHOLE: whole,
    Rule.EXPECTED: expected,
    Rule.REPEAT: repeat,
    Rule.CLIENT_ORDER: client_order,
    Rule.REAL_TIME: real_time,
    Rule.SEEN_KEPT: seen_kept,
    Rule.SEEN_ORDER: seen_order,
    Rule.SEEN_DENSE: seen_dense,
    Rule.SEEN_ALL: seen_all,
    Rule.FRESH: fresh,
    Rule.CUT_HELD: cut_rules.held,
    Rule.CUT_ONLY: cut_rules.only,
    Rule.CUT_EDGE: cut_rules.edge,
    Rule.LAST_VERSIONS: cut_rules.last_versions,
    Rule.BACKUP: cut_rules.backup,
    Rule.ANSWERED: answered,
}


def judge(history: History, rules: Mapping[Rule, Check] = RULES) -> Verdict:
    """Every rule over the whole history; no faults is the claim."""
    view = View(history)
    verdict = Verdict(events=len(history.log))
    for rule, check in rules.items():
        verdict.faults += [Fault(rule, text) for text in islice(check(history, view), FAULTS_MAX)]
    for append in history.appends:
        verdict.acknowledged += bool(append.acks)
        verdict.refused += append.refused
        open_outcome = not append.acks and not append.refused
        verdict.unknown += open_outcome
        verdict.unknown_stored += open_outcome and bool(view.events(append))
        verdict.repeats += len(append.tries) - 1
    verdict.seen = sum(len(one.seen) for one in history.subscriptions)
    verdict.reads = len(history.reads)
    verdict.truncations = sum(cut.first is not None for cut in history.cuts)
    return verdict
