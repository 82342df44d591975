"""Every crash state of a workload, recovered by the real Log and judged.

Owns the model of what was promised and the search; the operations are those of support/workloads.py. A `World` runs them
on a SimDisk and knows which groups are committed and which one, at most, is in flight; an `Explorer` looks before every call that
changes the disk at each state a power cut or a kill may leave there: Log.open must give back all that is committed and
the group in flight whole or not at all, then take one more group, survive the worst power cut, and close.

Once a checkpoint was made or the log was truncated, it is opened as a broker opens it, with its index (support/opened.py).

A state is counted once (blake2b over names and contents, the contents of quarantine apart), and what is tried in it follows
from the workload and the state alone, so that the count is the same however the workloads are shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from random import Random

from support.builders import TIME, Asked, Staged, Writer, control_batch
from support.opened import NOTHING, Alone, Counterexample, Opened, Point, chain, open_log
from support.seen import Seen
from support.simdisk import Fault, Image, SimDisk
from tidelog.errors import StorageFull
from tidelog_broker.checkpoints import FOLDER as INDEX
from tidelog_broker.core.format import TRUNCATE_LOG
from tidelog_broker.log import FailStop, Log, LogSettings

__all__ = [
    "ALIGNED", "NOTHING", "SEGMENT_DIGIT", "SMALL", "STRICT", "Counterexample", "Explorer", "Operation", "Point", "World",
    "chain",
]  # fmt: skip

SMALL = LogSettings(
    segment_bytes=16_384, group_bytes_max=8_192, zero_step=4_096, prepare_ahead=8_192, mark_groups=3, mark_bytes=1 << 20
)
STRICT = LogSettings(
    segment_bytes=16_384, group_bytes_max=8_192, zero_step=4_096, prepare_ahead=4_096, mark_groups=3, strict=True
)
ALIGNED = LogSettings(
    segment_bytes=28_672, group_bytes_max=8_192, zero_step=8_192, prepare_ahead=8_192, mark_groups=2, align=4_096
)
SEGMENT_DIGIT = "0"
NESTED_STATES = 10
"""States looked at before each call of a recovery that is crashed in turn."""
KILLS: list[tuple[bool, tuple[str, ...]]] = [(False, ()), (True, ()), (False, ("marks",))]
"""(keep_size, sticky) of the cache that a kill leaves; the first unless a sync has failed, they are all alike then."""


class Explorer:
    """The search over all workloads: what was seen, what it recovered to.

    At most `limit` states at a point; inside the recovery of one in `nested_one_in` new states it crashes again.
    `stop_syncs`: a clean stop that leaves anything unsynced is wrong, though nothing be lost by it.
    """

    def __init__(
        self, *, limit: int = 24, nested_one_in: int = 24, target: int = 1 << 62, stop_syncs: bool = True
    ) -> None:
        self.limit = limit
        self.nested_one_in = nested_one_in
        self.target = target
        self.stop_syncs = stop_syncs
        self.looked_at = 0
        self.resumed = 0
        """States that were recovered from a checkpoint and what came behind it."""
        self.seen = Seen()
        self.fresh: list[int] = []
        """Keys of the states seen since somebody emptied this."""
        self.continued: set[int] = set()
        self.alone: dict[bytes, Alone] = {}
        """What logs say without their saved indexes (support/opened.py)."""
        self.workloads = 0
        self.rng = Random(0)
        self._outcomes: list[bytes | str] = [NOTHING]
        self._numbers: dict[bytes | str, int] = {}

    @property
    def distinct(self) -> int:
        return len(self.seen)

    @property
    def done(self) -> bool:
        return self.distinct >= self.target

    def look(self, world: World, call: str) -> None:
        """Judge every state that a power cut or a kill may leave now."""
        disk, allowed = world.disk, world.allowed()
        if not (disk.is_synced() and disk.is_faithful()):
            for keep_size, sticky in KILLS if world.failed else KILLS[:1]:
                clone = disk.clone()
                clone.keep_size, clone.sticky = keep_size, sticky
                key = short(b"kill%d%d" % (keep_size, len(sticky)) + clone.digest())
                self.looked_at += 1
                outcome = self.known(key)
                if outcome is None:
                    outcome = self.learn(key, self.recover(clone, world))
                self.judge(outcome, allowed, world, call + ", kill")
        digests: dict[bytes, bytes] = {}
        for image in disk.crash_states(self.rng, self.limit, garbage=world.settings.align > 1):
            self.look_at_image(image, world, allowed, call, digests)

    def known(self, key: int) -> bytes | str | None:
        """What a state recovered to, if it was seen."""
        number = self.seen.get(key)
        return self._outcomes[number] if number else None

    def learn(self, key: int, outcome: bytes | str) -> bytes | str:
        number = self._numbers.get(outcome)
        if number is None:
            number = self._numbers[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        self.seen.put(key, number)
        self.fresh.append(key)
        return outcome

    def look_at_image(
        self, image: Image, world: World, allowed: set[bytes], call: str, digests: dict[bytes, bytes], nested: int = 1
    ) -> None:
        key = image_key(image, digests)
        self.looked_at += 1
        outcome = self.known(key)
        if outcome is None:
            outcome = self.learn(key, self.recover(SimDisk(image), world))
            if nested and self.nested_one_in and key % self.nested_one_in == 0:
                self.crash_inside_recovery(image, world, allowed, call, Random(key))
        self.judge(outcome, allowed, world, call, image)

    def crash_inside_recovery(self, image: Image, world: World, allowed: set[bytes], call: str, rng: Random) -> None:
        """The power goes again, before each call that recovery makes."""
        disk = SimDisk(image)

        def before(op: str, name: str) -> None:
            where = f"{call}, recovery: before {op} {name}"
            digests: dict[bytes, bytes] = {}
            for state in disk.crash_states(rng, NESTED_STATES):
                self.look_at_image(state, world, allowed, where, digests, nested=0)

        disk.before = before
        try:
            open_log(disk, world, b"nested")
        except Counterexample:
            raise
        except Exception as error:
            self.judge(f"{type(error).__name__}: {error}", allowed, world, call, image)

    def recover(self, disk: SimDisk, world: World) -> bytes | str:
        """Open, commit one more, lose power at its worst, close and reopen: the prefix found, or what went wrong."""
        try:
            opened = open_log(disk, world, b"recovery")
            self.resumed += opened.log.report.since > 0
            point = world.points.get(opened.held)
            if point is None:
                return "a mixture that never was a log"
            wrong = opened.differs(point)
            if wrong:
                return wrong
            key = short(disk.digest())
            if key in self.continued:
                return opened.held
            self.continued.add(key)
            return self.go_on(disk, opened, point, world) or opened.held
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def go_on(self, disk: SimDisk, opened: Opened, point: Point, world: World) -> str:
        faithful = disk.is_faithful()
        log = opened.log
        writer = point.writer(serial=1_000)
        body = writer.commit(log, [("after", [writer.payload(64), writer.payload(64)])])
        more = chain(opened.held, body)
        there = replace(point, groups=point.groups + 1, position=point.position + 2)
        cut = SimDisk(disk.durable())
        again = open_log(cut, world, b"power cut")
        if again.held != more or again.differs(there):
            return "after recovery and one more group, a power cut lost something"
        if again.log.report.cut_bytes and faithful:
            return "what recovery cut off is still there"
        log.close()
        if self.stop_syncs and not disk.is_synced(apart=("quarantine", INDEX)):
            return "a clean stop left something unsynced"
        again = open_log(disk, world, b"reopened")
        if again.held != more or again.differs(there) or again.log.report.cut_bytes:
            return "after recovery, one more group and a clean stop, reopening gave something else"
        return ""

    def judge(
        self, outcome: bytes | str, allowed: set[bytes], world: World, call: str, image: Image | None = None
    ) -> None:
        if isinstance(outcome, bytes) and outcome in allowed:
            return
        if isinstance(outcome, bytes):
            groups = world.points[outcome].groups if outcome in world.points else "unknown"
            outcome = f"recovered {groups} groups; committed {world.points[world.committed].groups}, in flight: " + (
                "1" if len(allowed) > 1 else "0"
            )
        sizes = {name: len(data) for name, data in (image or {}).items()}
        raise Counterexample(f"{outcome}\n  workload {' → '.join(world.done)}\n  at {call}\n  files {sizes}")


def short(data: bytes) -> int:
    """64 bits of digest: among ten million states, two share one with a probability of 10⁻⁶."""
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def image_key(image: Image, digests: dict[bytes, bytes]) -> int:
    """Of names and contents, the contents of quarantine apart; `digests` remembers contents within one look."""
    hasher = blake2b(digest_size=8)
    for name in sorted(image):
        hasher.update(name.encode() + b"\0")
        if not name.startswith("quarantine"):
            content = image[name]
            digest = digests.get(content)
            if digest is None:
                digest = digests[content] = blake2b(content, digest_size=16).digest()
            hasher.update(digest)
    return int.from_bytes(hasher.digest())


class World:
    """A log on a SimDisk, and what its users were promised."""

    def __init__(self, explorer: Explorer, settings: LogSettings, seed: int) -> None:
        self.explorer = explorer
        self.settings = settings
        self.rng = Random(seed)
        self.seed = seed
        self.disk = SimDisk()
        self.writer = Writer()
        self.points: dict[bytes, Point] = {NOTHING: Point()}
        self.names = [NOTHING]
        """Of the committed prefixes, by their number of groups."""
        self.committed = NOTHING
        self.in_flight: bytes | None = None
        self.failed = False
        self.armed = False
        self.truncated = False
        """True once a truncation was written: only a log that is opened with its index honours it."""
        self.starts = 0
        self.done: list[str] = []
        self.log: Log

    @property
    def point(self) -> Point:
        """Where the log stands."""
        return self.points[self.committed]

    def wrong(self, text: str) -> Counterexample:
        """What no state of the log shows, but something that was made of it."""
        return Counterexample(f"{text}\n  workload {' → '.join(self.done)}")

    def allowed(self) -> set[bytes]:
        return {self.committed} if self.in_flight is None else {self.committed, self.in_flight}

    def _before(self, op: str, name: str) -> None:
        if self.armed:
            self.explorer.look(self, f"before {op} {name}")

    def look(self, what: str) -> None:
        if self.armed:
            self.explorer.look(self, what)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """What only leads to the point of an operation is not looked at: it is another operation's point."""
        armed, self.armed = self.armed, False
        try:
            yield
        finally:
            self.armed = armed

    def start(self) -> None:
        """Open the log; what it holds from here on was seen and may never go."""
        self.disk.before = self._before
        self.starts += 1
        opened = open_log(self.disk, self, b"start %d" % self.starts)
        self.log, held = opened.log, opened.held
        self.disk.fault = None
        self.explorer.judge(held, self.allowed(), self, "after Log.open")
        point = self.points[held]
        if wrong := opened.differs(point):
            raise self.wrong(wrong)
        if held == self.in_flight:
            self.names.append(held)
        self.committed, self.in_flight = held, None
        serial = self.writer.serial
        self.writer = point.writer(serial)
        self.look("after Log.open")

    def restart(self, power: bool) -> None:
        """The process is gone, or the machine is; then start."""
        if power:
            states = list(self.disk.crash_states(self.rng, 16, garbage=self.settings.align > 1))
            self.disk = SimDisk(self.rng.choice(states))
        else:
            self.disk.fault = None
            self.disk.before = None
            self.disk = self.disk.clone()
            if self.failed:
                self.disk.keep_size, self.disk.sticky = self.rng.choice(KILLS)
        self.start()

    def commit(self, *appends: Asked, first: int = 0) -> bool:
        """Commit a group, with a truncation when `first` is behind the one that is; False when the process would have ended."""
        first = max(first, self.point.first)
        group = self.writer.stage(*appends)
        if first > self.point.first:
            self.truncated = True
            truncation = control_batch(TRUNCATE_LOG, [first], recorded_at=TIME + group.first_position)
            group.parts.insert(self.rng.choice([0, len(group.parts)]), truncation)
            group.batches += 1
        if not group.batches:
            return True
        self.promise(group, first)
        try:
            self.log.commit(group.parts, group.batches, group.next_position)
        except StorageFull:
            self.in_flight = None
            self.look("after StorageFull")
            return True
        except FailStop:
            self.failed = True
            self.disk.fault = None
            self.look("after FailStop")
            return False
        self.acknowledge(group)
        return True

    def promise(self, group: Staged, first: int = 0) -> None:
        """The group is about to be written: it may be found or not."""
        self.in_flight = chain(self.committed, group.body)
        self.points[self.in_flight] = Point(
            self.point.groups + 1, group.next_position, group.versions, group.sessions, group.cursors, first, group.body
        )

    def acknowledge(self, group: Staged) -> None:
        assert self.in_flight is not None
        self.committed, self.in_flight = self.in_flight, None
        self.names.append(self.committed)
        self.writer.accept(group)
        self.look("after the acknowledgement")

    def stop_on_failure(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except FailStop:
            self.failed = True
            self.disk.fault = None
            self.look("after FailStop")
            return False
        return True

    def fail(self, op: str, fault: Fault, nth: int = 1, name: str = "") -> None:
        """The nth call of `op` (on names that begin so) fails, once."""
        calls = 0

        def decide(its_op: str, its_name: str) -> Fault | None:
            nonlocal calls
            if its_op != op or not its_name.startswith(name):
                return None
            calls += 1
            return fault if calls == nth else None

        self.disk.fault = decide

    def run(self, workload: Sequence[tuple[str, Operation]], armed_from: int) -> None:
        """The named operations in order; states are looked at from the one numbered `armed_from` on (-1: and creation)."""
        self.armed = armed_from < 0
        self.done = ["create"]
        self.start()
        for index, (name, operation) in enumerate(workload):
            self.armed = index >= armed_from
            self.done.append(name)
            operation(self)
            self.disk.fault = None


Operation = Callable[[World], object]
