"""A machine that treats the log as its users and the world do, and compares it with a list behind every step.

Requests come (new ones, repeats, conflicts), groups are committed, space is prepared, marks are written; the disk has no room,
fails to sync, loses power, the process is killed, also inside recovery. Behind each step every read must show exactly what is
durable, and every reply must be the one that the list gives.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from e2e.raw_client import Event, New
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machines.loop import APPENDED_FIELDS, Loop
from machines.model import OK, Answer, Request, Row, State, Write
from support.builders import seeded_random
from support.crashes import ALIGNED, SMALL, STRICT
from support.simdisk import Fault, PowerCut, SimDisk
from tidelog.errors import OutcomeUnknown, StorageFull, TidelogError, WrongExpectedVersion
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.recovery import Group
from tidelog_broker.log import FailStop, Log, LogSettings

STREAMS = ["a/1", "a/2", "b/1", "plain", "ü/ß"]
CATEGORIES = ["a", "b", "ü", "none"]
SMALL_WINDOW = 8
OPENINGS_MAX = 4
CRASH_STATES = 24
ROLL_APPENDS_MAX = 12
READS_PER_STEP = 3
ALL = 1 << 20


class Trouble(NamedTuple):
    """What goes wrong in a step: "room", "short", "sync", "power" or "kill", at the `nth` call that it can meet; of a write,
    `part` bytes are taken."""

    kind: str
    nth: int
    part: int


class Pending(NamedTuple):
    """A request that is not answered yet."""

    number: int
    request: Request
    resend: bool


words = st.sampled_from(["any", "any", "any", "none", "exists", "right", "stale"])
writes_of = st.lists(
    st.tuples(st.sampled_from(STREAMS), words, st.integers(0, 3), st.sampled_from([0, 3, 90, 700])),
    min_size=1, max_size=3, unique_by=lambda row: row[0],
)  # fmt: skip
parts = st.one_of(st.integers(0, 2_000), st.just(ALL))
troubles = st.one_of(
    st.none(),
    st.none(),
    st.builds(Trouble, st.sampled_from(["room", "short", "sync", "power", "kill"]), st.integers(1, 6), parts),
)
seeds = st.integers(0, 2**16)


class LogMachine(RuleBasedStateMachine):
    """`durable` is the list; `pending` what was asked since the last commit; `sent` all that was ever asked."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.durable = State()
        self.pending: list[Pending] = []
        self.sent: list[Request] = []
        self.numbers = 0
        self.starts = 0
        self.steps = 0
        self.now = 1_700_000_000_000_000
        self.generation = 0
        self.lied = False
        self.loop: Loop

    @initialize(settings=st.sampled_from([SMALL, STRICT, ALIGNED]), window=st.sampled_from([SMALL_WINDOW, 65_536]))
    def create(self, settings: LogSettings, window: int) -> None:
        self.settings = settings
        self.window = window
        self._open()

    # -- requests

    @rule(rows=writes_of, tick=st.integers(-5, 50))
    def append(self, rows: list[tuple[str, str, int, int]], tick: int) -> None:
        """A new append over one to three streams."""
        ahead = self._ahead()
        writes = []
        for place, (stream, word, count, size) in enumerate(rows):
            version = ahead.next_versions.get(stream, 0)
            expected = {"any": None, "none": False, "exists": True, "right": version - 1 if version else False}.get(
                word, version + 3
            )
            events = tuple(self._event(size) for _ in range(max(count, not place)))
            writes.append(Write(stream, expected, events))
        self._send(Request(tuple(writes), self.durable.head), tick=tick)

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 50), resend=st.booleans())
    def repeat(self, index: int, resend: bool) -> None:
        """Ask for the same again: answered, refused, lost or still pending before."""
        self._send(self.sent[-1 - index % len(self.sent)], resend=resend)

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 50), how=st.sampled_from(["more", "less", "other bytes", "other stream", "assertion"]))
    def repeat_changed(self, index: int, how: str) -> None:
        """Some ids of an earlier append, and something is different."""
        old = self.sent[-1 - index % len(self.sent)]
        first, *rest = old.writes
        if how == "more":
            first = first._replace(events=(*first.events, self._event(3)))
        elif how == "less":
            first, rest = first._replace(events=first.events[:1]), []
        elif how == "other bytes":
            first = first._replace(events=(first.events[0]._replace(metadata=b"!"), *first.events[1:]))
        elif how == "other stream":
            first = first._replace(stream=next(n for n in STREAMS if n not in {write.stream for write in old.writes}))
        else:
            rest = [write._replace(expected=None) for write in rest if write.events]
        self._send(Request((first, *rest), old.head), resend=True)

    @rule(wrong=st.sampled_from([[], [["a/1", None, None]], [["a/1", None, b"\x90"]], [["", None, None]], None]))
    def ask_for_nonsense(self, wrong: Any) -> None:
        """Refused at once, and nothing is left of it."""
        self.numbers += 1
        staged = len(self.loop.appender.staged)
        self.loop.send([3, self.numbers, 0, None, 0, None, None, wrong])
        if not self.loop.broker.backlog:
            assert len(self.loop.appender.staged) == staged
        self.pending.append(Pending(self.numbers, Request((), 0), False))

    def _event(self, size: int) -> New:
        self.numbers += 1
        digest = blake2b(b"%d" % self.numbers, digest_size=32).digest()
        return New("tuv"[digest[0] % 3], (digest * (size // 32 + 1))[:size], digest[:2] * (digest[1] % 2), digest[16:])

    def _send(self, request: Request, *, resend: bool = False, tick: int = 1) -> None:
        self.numbers += 1
        self.now += tick
        self.pending.append(Pending(self.numbers, request, resend))
        if request not in self.sent:
            self.sent.append(request)
        self.loop.broker.begin(self.now)
        self.loop.send(request.message(self.numbers, resend=resend))

    def _ahead(self) -> State:
        """The log as it will be if all that is pending gets through."""
        state = self.durable.copy()
        for row in self.pending:
            if row.request.writes and state.judge(row.request, self._begins, row.resend).flags == OK:
                state.take(row.request)
        return state

    @property
    def _begins(self) -> int:
        return self.loop.appender.window.begins

    # -- the log's own steps

    @rule(trouble=troubles, seed=seeds)
    def commit(self, trouble: Trouble | None, seed: int) -> None:
        """Groups until nothing is pending, the first one with trouble."""
        rng = Random(seed)
        for _ in range(len(self.pending) + 1):
            if not self.pending:
                return
            if not self._commit_group(trouble, rng):
                return
            trouble = None
            self.now += 1
            self.loop.broker.begin(self.now)
        assert not self.pending, "the backlog does not end"

    @rule(trouble=troubles, seed=seeds)
    def roll(self, trouble: Trouble | None, seed: int) -> None:
        """Appends until the next segment is open."""
        rng, segments = Random(seed), self.loop.log.segments()
        for _ in range(ROLL_APPENDS_MAX):
            self._send(Request((Write("a/1", None, tuple(self._event(700) for _ in range(7))),), self.durable.head))
            alive = self._commit_group(trouble, rng)
            if not alive or (self.loop.log.segments() > segments and not self.pending):
                return
            trouble = trouble if rng.random() < 0.5 else None
            self.loop.broker.begin(self.now)
        assert self.loop.log.segments() > segments

    @rule(trouble=troubles, seed=seeds)
    def prepare(self, trouble: Trouble | None, seed: int) -> None:
        self._step(lambda: [None for _ in range(20) if self.loop.log.prepare()], trouble, Random(seed))

    @rule(trouble=troubles, seed=seeds)
    def mark(self, trouble: Trouble | None, seed: int) -> None:
        self._step(self.loop.log.mark, trouble, Random(seed))

    @rule(power=st.booleans(), seed=seeds)
    def crash(self, power: bool, seed: int) -> None:
        """What was asked and not committed is gone without an answer."""
        self._restart([self.durable], Random(seed), power=power)

    @rule(trouble=troubles, seed=seeds)
    def stop(self, trouble: Trouble | None, seed: int) -> None:
        """A clean stop with the queue left to the next broker; nothing is cut at the start behind it."""
        if not self._step(self.loop.log.close, trouble, Random(seed)):
            return
        assert self.disk.is_synced(), "a clean stop left something unsynced"
        begins = self._begins
        self.pending.clear()
        self.disk = self.disk.clone()
        self._open()
        assert not self.loop.log.report.cut_bytes
        assert self._begins == begins, "the window of known ids is not the same after a restart"
        self._compare([self.durable])

    def _step(self, action: Callable[[], object], trouble: Trouble | None, rng: Random) -> bool:
        """A step that changes no event; False when the process ended."""
        how = self._attempt(action, trouble)
        if how:
            self._restart([self.durable], rng, power=how == "power" or (how == "failed" and rng.random() < 0.3))
        return not how

    def _attempt(self, action: Callable[[], object], trouble: Trouble | None) -> str:
        """Run it with trouble: "" when the process lives, else how it ended."""
        disk = self.disk
        if trouble is not None and trouble.kind in ("power", "kill"):
            disk.cut_at = trouble.nth
        elif trouble is not None:
            disk.fault = fault_of(trouble)
        try:
            action()
        except FailStop:
            self.lied = True
            return "failed"
        except PowerCut:
            assert trouble is not None
            return trouble.kind
        finally:
            disk.fault, disk.cut_at, disk.dead = None, None, False
        return ""

    def _commit_group(self, trouble: Trouble | None, rng: Random) -> bool:
        """Commit what is staged and judge every reply; False when the process ended."""
        loop, begins = self.loop, self._begins
        count = len(self.pending) - len(loop.broker.backlog)
        group, self.pending = self.pending[:count], self.pending[count:]
        state = self.durable.copy()
        due: list[tuple[Pending, Answer, Answer]] = []
        for row in group:
            if not row.request.writes:
                due.append((row, INVALID, INVALID))
                continue
            alone = self.durable.judge(row.request, begins, row.resend)
            answer = state.judge(row.request, begins, row.resend)
            if answer.flags == OK:
                state.take(row.request)
            due.append((row, answer, alone))
        replies: dict[int, Any] = {}
        groups = loop.log.group
        how = self._attempt(lambda: replies.update(loop.commit()), trouble)
        if how == "failed":
            replies = loop.replies()
        if how in ("", "failed"):
            assert replies.keys() == {row.number for row in group}
        if how:
            if how == "failed":
                for row, answer, alone in due:
                    self._judge_failure(row, replies[row.number], answer, alone, OutcomeUnknown)
            self._restart([self.durable, state], rng, power=how == "power" or (how == "failed" and rng.random() < 0.3))
            return False
        if state.head > self.durable.head and loop.log.group == groups:
            for row, answer, alone in due:
                self._judge_failure(row, replies[row.number], answer, alone, StorageFull)
            self.generation += 1
            self._never_comes_back(rng)
            return True
        for row, answer, _ in due:
            self._judge(row, replies[row.number], answer)
        self.durable = state
        return True

    def _never_comes_back(self, rng: Random) -> None:
        """A group was refused for want of room: none of it is there after a power cut, whatever of it reached the disk."""
        for image in self.disk.crash_states(rng, CRASH_STATES, garbage=self.settings.align > 1):
            after = Loop(SimDisk(image), self.settings, AppendLimits(), b"after a power cut")
            assert rows_of(after.read()) == self.durable.rows, "what was refused is in the log"

    def _judge(self, row: Pending, reply: Any, answer: Answer) -> None:
        assert reply[1] == answer.code, (reply, answer, row)
        if answer.code == 0:
            assert reply[2:APPENDED_FIELDS] == (answer.flags, self.generation), (reply, answer)
            assert reply[APPENDED_FIELDS:] == answer.rest, (reply, answer, row)
        elif answer.code == WrongExpectedVersion.code:
            assert reply[3][:3] == answer.rest, (reply, answer)

    def _judge_failure(
        self, row: Pending, reply: Any, answer: Answer, alone: Answer, error: type[TidelogError]
    ) -> None:
        """The group failed: whatever was decided on it failed too; a refusal for other reasons may stand."""
        if reply[1] == error.code and answer is not INVALID:
            return
        assert answer.flags != OK, f"{reply} is about a group that failed"
        if answer.code == alone.code == WrongExpectedVersion.code:
            # Perhaps of another of its streams; but that it is refused, and what it is told, is so without the group.
            stream, _, actual = answer.rest
            version = self.durable.next_versions.get(stream, 0)
            assert actual == (version - 1 if version else None), f"{reply} was decided on a group that failed"
        else:
            assert answer == alone, f"{reply} was decided on a group that failed"
        self._judge(row, reply, answer)

    # -- starting

    def _open(self) -> None:
        self.starts += 1
        self.loop = Loop(
            self.disk, self.settings, AppendLimits(id_window_events=self.window), b"start %d" % self.starts
        )
        self.generation = 0

    def _restart(self, candidates: list[State], rng: Random, *, power: bool) -> None:
        """The process is gone, or the machine: what is there now is one of `candidates`, and stays."""
        begins = self._begins
        self.pending.clear()
        for opening in range(OPENINGS_MAX):
            if power:
                states = list(self.disk.crash_states(rng, CRASH_STATES, garbage=self.settings.align > 1))
                self.disk = SimDisk(rng.choice(states))
                self.lied = False
            else:
                self.disk = self.disk.clone()
                self.disk.keep_size = self.lied and rng.random() < 0.5
            trouble = None
            if opening < OPENINGS_MAX - 1 and rng.random() < 0.3:
                kind = rng.choice(["room", "sync", "power", "kill"])
                trouble = Trouble(kind, rng.randrange(1, 8), rng.randrange(2_000))
            try:
                how = self._attempt(self._open, trouble)
            except StorageFull:
                assert trouble is not None
                how = "failed"
            if not how:
                break
            power = how == "power"
        self._compare(candidates)
        if self.durable is candidates[0]:
            assert self._begins == begins, "the window of known ids is not the same after a restart"

    def _compare(self, candidates: list[State]) -> None:
        found = rows_of(self.loop.read())
        for state in candidates:
            if found == state.rows:
                self.durable = state
                return
        heads = [state.head for state in candidates]
        raise AssertionError(f"the log holds {len(found)} events, and should hold exactly one of {heads}")

    # -- what always holds

    @invariant()
    def every_read_shows_what_is_durable(self) -> None:
        loop, durable = self.loop, self.durable
        self.steps += 1
        rng = Random(self.steps)
        pages = loop.pages(0, "", None, None, None, False)
        edges = {placed.first_position for placed in durable.appends} | {durable.head}
        assert all(page.stop in edges for page in pages), "a page ends inside an append"
        events = [event for page in pages for event in page.events]
        assert rows_of(events) == durable.rows
        assert loop.ask(7, 0, None)[0][2:] == (durable.head, 0)
        for _ in range(READS_PER_STEP):
            scope = rng.randrange(3)
            name = ("", rng.choice(CATEGORIES), rng.choice(STREAMS))[scope]
            start, stop, limit = (rng.choice([None, rng.randrange(durable.head + 3)]) for _ in range(3))
            backwards = rng.random() < 0.5
            read = loop.read(scope, name, start, stop, limit, backwards)
            wanted = durable.read(scope, name, start, stop, limit, backwards)
            assert [(e.position, e.stream, e.version, e.id) for e in read] == [
                (row.position, row.stream, row.version, row.id) for row in wanted
            ], (scope, name, start, stop, limit, backwards)
        times = [event.recorded_at for event in events]
        assert all(one <= other for one, other in pairwise(times)), "the time went back"
        when = self.now - rng.randrange(60)
        assert loop.ask(8, 0, when)[0][2] == sum(time < when for time in times)

    @invariant()
    def streams_are_told_as_they_are(self) -> None:
        rows = []
        for name in sorted(self.durable.next_versions, key=str.encode):
            last = max(row.position for row in self.durable.rows if row.stream == name)
            rows.append((name, self.durable.next_versions[name] - 1, last, False))
        assert self.loop.ask(6, 0, "", None, 1_000)[0][2:] == (False, rows)
        for row in rows:
            assert self.loop.ask(5, 0, row[0], None)[0][2:6] == (0, *row[1:])

    @invariant()
    def the_newest_ids_are_known(self) -> None:
        assert self._begins <= self.durable.known_from(self.window)

    def teardown(self) -> None:
        """The same appends with the same times make the same batches, however they were grouped and interrupted."""
        if not hasattr(self, "loop") or self.loop.log.head != self.durable.head:
            return  # a step has failed, and its own message says more
        times = [event.recorded_at for event in self.loop.read()]
        # Ids are forgotten as early as can be: what this log took a second time must be taken a second time there.
        disk = SimDisk()
        other = Loop(disk, LogSettings(), AppendLimits(id_window_events=1), b"another log")
        for number, placed in enumerate(self.durable.appends):
            other.broker.begin(times[placed.first_position])
            other.send(placed.request.message(number, resend=False))
            other.commit()
        assert bodies(disk) == bodies(self.disk)


INVALID = Answer(1, 0, ())


def rows_of(events: list[Event]) -> list[Row]:
    return [Row(e.position, e.stream, e.version, e.type, e.id, e.payload, e.metadata) for e in events]


def fault_of(trouble: Trouble) -> Callable[[str, str], Fault | None]:
    """The nth write finds no room or is short, the nth sync of whatever kind fails; once."""
    calls = 0
    if trouble.kind == "sync":
        fault = Fault(reached=(trouble.part % 3) / 2)
    else:
        fault = Fault(errno.ENOSPC if trouble.kind == "room" else 0, short=trouble.part)

    def decide(op: str, name: str) -> Fault | None:
        nonlocal calls
        if op not in (("datasync", "sync", "sync_folder") if trouble.kind == "sync" else ("write",)):
            return None
        calls += 1
        return fault if calls == trouble.nth else None

    return decide


def bodies(disk: Any) -> bytes:
    """All batches of a log, one behind the other."""
    found: list[bytes] = []

    def replay(ordinal: int, group: Group) -> None:
        found.append(group.body)

    Log.open(disk.clone(), LogSettings(), seeded_random(b"bodies"), replay)
    return b"".join(found)
