"""What is done to a log while its crash states are looked at: single operations, and the sequences of them.

Each operation takes a World and leaves it with an open log, unless a call failed that ends the process; those of truncation
are in support/removals.py, those that make something else of a log in support/copies.py. `workloads` has the sequences: all of
up to two operations, all of three of CORE, and then seeded ones of three to six for ever.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from support import copies, removals
from support.appends import appends, control, large, roll, small, streams
from support.crashes import ALIGNED, SEGMENT_DIGIT, SMALL, STRICT, Counterexample, Explorer, Operation, World
from support.removals import crash, save
from support.simdisk import Fault, SimDisk
from tidelog.errors import StorageFull
from tidelog_broker.checkpoints import FOLDER as INDEX
from tidelog_broker.core.format import pack_group_header
from tidelog_broker.log import FailStop, LogSettings


def _prepare(world: World) -> None:
    world.stop_on_failure(world.log.prepare)
    world.look("after prepare")


def _prepare_all(world: World) -> None:
    while world.log.prepare():
        pass
    world.look("after prepare")


def _mark(world: World) -> None:
    world.stop_on_failure(world.log.mark)
    world.look("after mark")


def _checkpoint(world: World) -> bool:
    """As a broker has it made: its mark first, then a reader of its own for what is durable; False when there was no room."""
    made = True
    if world.log.group and world.stop_on_failure(world.log.mark):
        made = save(world)
    world.look("after the checkpoint")
    return made


def _checkpoint_fails(world: World) -> None:
    """A call for the index fails: it is a cache, the broker goes on, and the next attempt succeeds."""
    op = world.rng.choice(["sync", "sync_folder", "write", "rename", "create", "unlink"])
    reached, number = world.rng.choice([0.0, 0.5, 1.0]), world.rng.choice([errno.EIO, errno.ENOSPC])
    world.fail(op, Fault(number, reached=reached), nth=world.rng.randrange(1, 3), name=INDEX)
    _checkpoint(world)
    world.disk.fault = None
    small(world)
    assert _checkpoint(world)


def _checkpoint_killed(world: World) -> None:
    """The process that makes it is killed at some call, the broker goes on."""
    if world.log.group:
        world.log.mark()  # the broker's own call: it does not go on when it is killed in there
        crash(world, world.rng.randrange(1, 12), lambda: save(world))
        world.look("after a killed checkpoint")


def _enospc(world: World) -> None:
    world.fail("write", Fault(errno.ENOSPC), name=SEGMENT_DIGIT)
    large(world)


def _enospc_midway(world: World) -> None:
    world.fail("write", Fault(errno.ENOSPC, short=700), name=SEGMENT_DIGIT)
    large(world)


def _short(world: World) -> None:
    world.fail("write", Fault(0, short=700), name=SEGMENT_DIGIT)
    large(world)


def _short_by_zeros(world: World) -> None:
    """The write lacks only bytes that are zero already: the whole group stands there, and the answer is StorageFull."""
    appends, short = _ends_in_zero(world)
    world.fail("write", Fault(0, short=short), name=SEGMENT_DIGIT)
    world.commit(*appends)


def _ends_in_zero(world: World) -> tuple[list[list[tuple[str, list[bytes]]]], int]:
    """An append whose record ends in a zero byte, and the length of the record without it. Its space is prepared."""
    while world.log.prepare():
        pass
    while True:
        appends = [[("s/1", [world.writer.payload(600)])]]
        body = world.writer.stage(*appends).body
        if not body[-1]:
            return appends, 64 + len(body) - 1


def _short_by_zeros_and_failed_sync(world: World) -> None:
    """… and the rollback's sync fails: the truncate is in the cache alone."""
    appends, short = _ends_in_zero(world)
    writes = 0
    fault = Fault(reached=world.rng.choice([0.0, 1.0, 1.0]), sizes=False)

    def decide(op: str, name: str) -> Fault | None:
        nonlocal writes
        if op == "write" and name.startswith(SEGMENT_DIGIT):
            writes += 1
            return Fault(0, short=short) if writes == 1 else None
        return fault if op == "sync" and writes else None

    world.disk.fault = decide
    if not world.commit(*appends):
        world.restart(world.rng.random() < 0.3)


def _forger(world: World) -> None:
    """Payloads that hold group headers for just the place where they will stand, right in all but the tag."""
    log = world.log

    def appends(offset: int) -> list[list[tuple[str, list[bytes]]]]:
        heads = []
        for ahead in (1, 2, 3):
            key = b"no segment's key"
            heads.append(
                pack_group_header(key, b"", log.group + ahead, log._header.ordinal, offset, log.head, 1, bytes(8))
            )
            offset += len(heads[-1]) + 700
        return [[("f/1", [b"".join(head.ljust(700 + len(head), b"f") for head in heads)])]]

    at = world.writer.stage(*appends(0)).body.find(b"TLGR")
    world.commit(*appends(log.end + 64 + at))


def _short_roll(world: World) -> None:
    world.fail("write", Fault(0, short=40), nth=world.rng.randrange(1, 4), name=SEGMENT_DIGIT)
    _roll_or_full(world)


def _roll_or_full(world: World) -> None:
    for _ in range(3):
        if not world.commit([("b/1", [world.writer.payload(3_000), world.writer.payload(3_000)])]):
            world.restart(world.rng.random() < 0.5)


def _short_and_failed_sync(world: World) -> None:
    """A rollback whose sync fails."""
    writes = 0
    reached = world.rng.choice([0.0, 0.5, 1.0])

    def decide(op: str, name: str) -> Fault | None:
        nonlocal writes
        if op == "write" and name.startswith(SEGMENT_DIGIT):
            writes += 1
            return Fault(0, short=1_000) if writes == 1 else None
        return Fault(reached=reached) if op == "sync" and writes else None

    world.disk.fault = decide
    if not world.commit([("s/1", [world.writer.payload(1_500)])]):
        world.restart(world.rng.random() < 0.3)


def _failed_sync(reached: float, power: bool, size: int = 900) -> Operation:
    def run(world: World) -> None:
        while world.log.prepare():
            pass
        world.fail("datasync", Fault(reached=reached), name=SEGMENT_DIGIT)
        if not world.commit([("s/1", [world.writer.payload(size)])]):
            world.restart(power)

    return run


def _failed_mark(world: World) -> None:
    world.fail("datasync", world.rng.choice([Fault(), Fault(reached=1.0), Fault(reached=0.5, torn=True)]), name="marks")
    if not world.stop_on_failure(world.log.mark):
        world.restart(world.rng.random() < 0.3)


def _failed_anything(world: World) -> None:
    """The n-th sync of a roll fails, whatever it is of."""
    op = world.rng.choice(["sync", "datasync", "sync_folder"])
    world.fail(op, Fault(reached=world.rng.choice([0.0, 0.5, 1.0])), nth=world.rng.randrange(1, 5))
    _roll_or_full(world)


def _stop(world: World) -> None:
    world.log.close()
    world.start()


def _kill(world: World) -> None:
    world.restart(power=False)


def _power(world: World) -> None:
    """The power goes at some call of a commit."""
    operation = world.rng.choice([appends, roll])
    crash(world, world.rng.randrange(1, 4), lambda: operation(world))
    world.restart(power=True)


def _crash_in_recovery(world: World) -> None:
    """The power goes at some call of a commit, and then the power or the process at some call of recovery."""
    crash(world, world.rng.randrange(1, 4), lambda: large(world))
    states = list(world.disk.crash_states(world.rng, 16, garbage=world.settings.align > 1))
    world.disk = SimDisk(world.rng.choice(states))
    crash(world, world.rng.randrange(1, 16), world.start)
    world.restart(power=world.rng.random() < 0.5)


def _kill_midway(world: World) -> None:
    """A kill at some call of a commit: the cache stays."""

    def commits() -> None:
        large(world)
        roll(world)

    crash(world, world.rng.randrange(1, 6), commits)
    world.restart(power=False)


def _failed_open(world: World) -> None:
    """A call of recovery fails; then it is tried again."""
    op = world.rng.choice(["sync", "sync_folder", "write", "rename", "truncate", "create"])
    fault = Fault(world.rng.choice([errno.EIO, errno.ENOSPC]), reached=world.rng.choice([0.0, 0.5, 1.0]))
    if op != "write":
        fault.errno = errno.EIO
    world.disk.before = None
    world.disk = world.disk.clone()
    world.fail(op, fault, nth=world.rng.randrange(1, 4))
    for _ in range(2):
        try:
            world.start()
            break
        except (FailStop, StorageFull):
            world.failed = True
            world.disk.fault = None
            world.look("after a failed Log.open")
            if world.rng.random() < 0.3:
                world.disk = SimDisk(world.rng.choice(list(world.disk.crash_states(world.rng, 16))))


OPERATIONS: dict[str, Operation] = {
    "small": small,
    "large": large,
    "streams": streams,
    "appends": appends,
    "control": control,
    "roll": roll,
    "prepare": _prepare,
    "prepare all": _prepare_all,
    "mark": _mark,
    "checkpoint": _checkpoint,
    "checkpoint fails": _checkpoint_fails,
    "checkpoint is killed": _checkpoint_killed,
    "no room": _enospc,
    "short": _short,
    "short, sync fails": _short_and_failed_sync,
    "sync fails, nothing written": _failed_sync(0.0, False),
    "sync fails, all written": _failed_sync(1.0, False),
    "sync fails, power cut": _failed_sync(0.5, True),
    "sync fails, large": _failed_sync(0.0, False, 6_000),
    "sync fails, half of large written": _failed_sync(0.5, False, 6_000),
    "mark fails": _failed_mark,
    "short by zeros": _short_by_zeros,
    "short by zeros, sync fails": _short_by_zeros_and_failed_sync,
    "forger": _forger,
    "stop": _stop,
    "kill": _kill,
    "kill midway": _kill_midway,
    "power cut": _power,
    "open fails": _failed_open,
    "no room midway": _enospc_midway,
    "short, rolling": _short_roll,
    "a sync fails": _failed_anything,
    "crash in recovery": _crash_in_recovery,
    "truncate": removals.truncate,
    "truncate all": removals.truncate_all,
    "truncate fails": removals.truncate_fails,
    "remove": removals.remove,
    "remove begins": removals.remove_begins,
    "remove beside appends": removals.remove_beside_appends,
    "remove fails": removals.remove_fails,
    "remove, child killed": removals.remove_child_killed,
    "remove killed": removals.remove_killed,
    "remove beside a backup": copies.backup_beside_removal,
    "backup": copies.backup,
    "backup since": copies.backup_since,
    "backup fails": copies.backup_fails,
    "migrate": copies.migrate,
}
CORE = [
    "small",
    "streams",
    "control",
    "roll",
    "prepare",
    "mark",
    "checkpoint",
    "no room midway",
    "short, sync fails",
    "sync fails, nothing written",
    "sync fails, all written",
    "sync fails, half of large written",
    "stop",
    "crash in recovery",
    "truncate",
    "remove",
]
"""Of these, all sequences of three are run: one of each kind of thing that happens to a log and its files."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Operations in their order; the states from operation number `first` on are looked at (-1: those of creation too).

    At most `limit` states at a point: where there are more, each single deviation and then chance decide.
    """

    seed: int
    settings: LogSettings
    operations: tuple[str, ...]
    first: int
    limit: int = 24


def short_workloads(seed: int, settings: LogSettings = SMALL) -> Iterator[Workload]:
    """All sequences of up to two operations and all of three of CORE; what comes before the last one was looked at before."""
    for its_settings in (settings, ALIGNED, STRICT):
        yield Workload(seed, its_settings, (), -1, 1_000)
    names = list(OPERATIONS)
    for length, alphabet, limit in ((1, names, 200), (2, names, 20), (3, CORE, 12)):
        for sequence in itertools.product(alphabet, repeat=length):
            seed += 1
            yield Workload(seed, settings, sequence, length - 1, limit)
    for its_settings in (ALIGNED, STRICT):
        for pair in itertools.product(CORE, repeat=2):
            seed += 1
            yield Workload(seed, its_settings, pair, 1, 16)


SHORT_WORKLOADS = 3 + len(OPERATIONS) + len(OPERATIONS) ** 2 + len(CORE) ** 3 + 2 * len(CORE) ** 2


def workloads(seed: int, settings: LogSettings = SMALL) -> Iterator[Workload]:
    """The short ones, then seeded ones of three to six operations, for ever."""
    yield from short_workloads(seed, settings)
    rng = Random(seed)
    names = list(OPERATIONS)
    for number in itertools.count(SHORT_WORKLOADS):
        its_settings = rng.choice([SMALL, SMALL, SMALL, STRICT, ALIGNED])
        length = rng.choice([3, 3, 4, 5, 6])
        first = 2 if its_settings is SMALL else 1
        yield Workload(seed + number, its_settings, tuple(rng.choices(names, k=length)), first)


def explore(explorer: Explorer, seed: int, settings: LogSettings = SMALL) -> None:
    """Workloads until the explorer has enough. Raises Counterexample."""
    for workload in workloads(seed, settings):
        if explorer.done:
            return
        run_workload(explorer, workload)


def run_workload(explorer: Explorer, workload: Workload) -> None:
    """Raises Counterexample."""
    seed, settings = workload.seed, workload.settings
    explorer.rng = Random(seed)
    explorer.workloads += 1
    world = World(explorer, settings, seed)
    limit, explorer.limit = explorer.limit, min(explorer.limit, workload.limit)
    try:
        world.run([(name, OPERATIONS[name]) for name in workload.operations], workload.first)
    except Counterexample as error:
        error.add_note(f"seed {seed}, settings {settings}")
        raise
    except Exception as error:
        raise Counterexample(f"{type(error).__name__}: {error}\n  workload {world.done}, seed {seed}") from error
    finally:
        explorer.limit = limit
