"""kill -9 again and again under load, and every round judged: python -m support.histories_campaign [CYCLES] [SEED]

Owns the processes of a round: one broker that can be told where to die (support/killer.py), four writers and two
subscribers (support/writer.py) and one who truncates (support/gardener.py), which are killed too and go on as new lives; and
backups, restores, exports and migrations beside them (support/upkeep.py). A cycle is the life of a broker in which at least
500 appends were acknowledged, ended by a kill. After 25 cycles the faults stop, everyone must be answered, and the checker
judges the log, read twice; the next round begins with a new log.
"""

from __future__ import annotations

import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from support.checker import judge
from support.histories import History, read_by_client, read_by_reader, rows_of
from support.kill_report import ACKS, NAMES, Report
from support.killer import Order, Point
from support.life import NOTES, Life
from support.process import BrokerProcess, until
from support.upkeep import Upkeep
from tidelog import Client
from tidelog_broker.core.format import SEGMENT_HEADER_BYTES, SEGMENT_NAME, SegmentHeader

TESTS = Path(__file__).parents[1]
WRITERS = 4
SCOPES = {"s0": "", "s1": "shared/"}
GARDENER = "g0"
DECK = (
    [Point.GROUP_SYNC] * 15
    + [Point.CUT_TORN, Point.GROUP_SYNCED, Point.MARK, Point.NONE] * 2
    + [Point.GROUP_TORN, Point.REMOVE]
)
"""How the 25 cycles of a round end; NONE is a kill from outside, whenever."""
RARE = {Point.CUT_TORN, Point.REMOVE}
RARE_S = 2.0
"""How long they may take to come; behind that the broker is killed where it is."""
SETTINGS: list[dict[str, str]] = [
    {},
    {"TIDELOG_STRICT": "1"},
    {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_ZERO_STEP": "65536"},
    {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_ALIGN": "4096", "TIDELOG_PREPARE_AHEAD": "4096"},
    {"TIDELOG_GROUP_BYTES_MAX": str(1 << 20), "TIDELOG_MARK_GROUPS": "1", "TIDELOG_SEGMENT_BYTES": str(2 << 20)},
    {"TIDELOG_ZERO_STEP": "4096", "TIDELOG_IDLE_MARK_MS": "1"},
    {"TIDELOG_CHECKPOINT_BATCHES": "1024", "TIDELOG_CHECKPOINT_SECONDS": "1"},
    {"TIDELOG_CHECKPOINT_BATCHES": "1024", "TIDELOG_CHECKPOINT_SECONDS": "1", "TIDELOG_STRICT": "1"},
    {"TIDELOG_CHECKPOINT_BATCHES": "1024", "TIDELOG_CHECKPOINT_SECONDS": "1", "TIDELOG_SEGMENT_BYTES": str(1 << 20)},
]
"""With the index saved every second, many kills fall into that, and starts go through what was saved."""
LARGE_EVERY = 4
"""Of so many rounds one has segments of the usual size, which are never full; in the others they are small, and deleted."""
SMALL = {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_HEARTBEAT_MS": "50"}


class MortalBroker(BrokerProcess):
    """A broker that dies where its order says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.order = Order(folder / "order")

    def command(self) -> list[str]:
        python, _, _, *serve = super().command()
        return [python, "-m", "support.killer", str(self.order.path), *serve]

    def settings(self, given: dict[str, str]) -> None:
        """For the next start."""
        self._environment = {**given, "PYTHONPATH": str(TESTS)}

    def ready_or_dead(self, timeout: float) -> bool:
        """Wait for either; True when it is ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        if readable and self._process.stdout.readline().startswith(b"ready "):
            return True
        self.wait(timeout)
        return False


class Failed(Exception):
    """The round could not go on."""


class Round:
    """One log and everyone around it."""

    def __init__(self, folder: Path, chance: random.Random, report: Report, small: bool) -> None:
        self._folder = folder
        self._sizes = SMALL if small else {}
        self._chance = chance
        self._report = report
        self._kills = report.kills
        self._counts = folder / "counts"
        self._counts.write_bytes(bytes(8 * WRITERS))
        self.broker = MortalBroker(folder)
        self.upkeep = Upkeep(folder, self.broker.endpoint, chance, report.upkeep)
        self._lives: dict[str, Life] = {}
        self._everyone: list[Life] = []
        self._starts: dict[str, int] = {}
        self._killed: set[str] = set()
        self._acks_before = 0
        self._calls = 0

    def begin(self) -> None:
        self._start()
        for number in range(WRITERS):
            self._bear(f"w{number}")
        for name in (*SCOPES, GARDENER):
            self._bear(name)

    def _bear(self, who: str) -> None:
        """The next life of a client."""
        number = sum(life.name.startswith(who + ".") for life in self._everyone)
        name = f"{who}.{number}"
        endpoint, seed = self.broker.endpoint, str(self._chance.randrange(1 << 32))
        if who in SCOPES:
            start = str(self._starts.get(who, 0))
            words = ["support.writer", "subscribe", endpoint, NOTES, SCOPES[who], start]
        elif who == GARDENER:
            words = ["support.gardener", endpoint, NOTES, seed]
        else:
            words = ["support.writer", "append", endpoint, NOTES, name, seed, str(self._counts), who[1:]]
        self._lives[who] = Life(self._folder, name, *words)
        self._everyone.append(self._lives[who])

    def _acks(self) -> int:
        raw = self._counts.read_bytes()
        return sum(int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8))

    # -- a cycle

    def cycle(self, point: Point) -> None:
        """Wait until there is enough to lose, kill, start."""
        half = self._chance.random() < 0.25
        self.upkeep.step()
        self._wait_for_acks(ACKS // 2)
        self.upkeep.step()
        if half:
            self._kill_a_client()
        self._wait_for_acks(ACKS)
        # The one sleep that is meant: where in its life the kill falls is the dice's business.
        time.sleep(self._chance.uniform(0.0, 0.08))
        self._kill_broker(point)
        self._report.checkpoints_cut += self._saving()
        self._report.removals_cut += removing(self.broker.data)
        self.upkeep.step()
        self._acks_before = self._acks()
        while self._chance.random() < 0.2:
            if self._start_and_die():
                return
        self._start()

    def _wait_for_acks(self, count: int) -> None:
        if not until(lambda: self._acks() - self._acks_before >= count, 60.0, 0.002):
            raise Failed(f"only {self._acks() - self._acks_before} acks in 60 s; broker: {self.broker.stderr()[-500:]}")

    def _kill_broker(self, point: Point) -> None:
        if point != Point.NONE:
            rare = point in RARE
            self.broker.order.give(point, 0 if rare else self._chance.randrange(3))
            with self._held() if rare else nullcontext():
                until(lambda: not self.broker.running, RARE_S if rare else 5.0, 0.002)
        if self.broker.running:
            self.broker.kill()
            self._kills[NAMES[Point.NONE]] += 1
            return
        code = self.broker.wait(10.0)
        if code != -9 or self.broker.order.died != point:
            raise Failed(f"the broker ended by itself with {code}: {self.broker.stderr()[-500:]}")
        self._kills[NAMES[point]] += 1

    @contextmanager
    def _held(self) -> Iterator[None]:
        """All writers but one wait: what is rare comes sooner, and costs fewer events that have to be judged."""
        held = [life for who, life in self._lives.items() if who.startswith("w")][1:]
        for life in held:
            life.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for life in held:
                life.process.send_signal(signal.SIGCONT)

    def _saving(self) -> bool:
        """Whether a process that saves the index of the broker that was just killed is still at it. It is left to itself."""
        wanted = str(self.broker.data).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if b"checkpoint" in words and wanted in words:
                return True
        return False

    def _start(self) -> None:
        self.broker.order.give(Point.NONE)
        self.broker.settings({**self._chance.choice(SETTINGS), **self._sizes})
        self.broker.start()
        self._calls = self.broker.order.calls
        with Client(self.broker.endpoint, timeout=30.0) as client:
            self._report.resumed += client.info()["opened"]["checkpoint_group"] > 0

    def _start_and_die(self) -> bool:
        """A start that is killed inside recovery; True when it was over before, and the broker runs."""
        self.broker.order.give(self._chance.choice([Point.CALL, Point.HALF]), self._chance.randrange(self._calls))
        self.broker.settings({**self._chance.choice(SETTINGS), **self._sizes})
        self.broker.start(ready=False)
        if self.broker.ready_or_dead(30.0):
            self.broker.order.give(Point.NONE)
            time.sleep(0.01)  # a call that is under way may have seen the order
            return self.broker.running
        if self.broker.order.died == Point.NONE:
            raise Failed(f"the broker ended by itself: {self.broker.stderr()[-500:]}")
        self._kills["in recovery"] += 1
        return False

    def _kill_a_client(self) -> None:
        who = self._chance.choice(list(self._lives))
        life = self._lives[who]
        life.kill()
        self._killed.add(life.name)
        self._kills["of clients"] += 1
        if who in SCOPES and life.notes.exists():
            self._starts[who] = reached(rows_of(life.notes), self._starts.get(who, 0))
        self._bear(who)

    # -- the end

    def end(self) -> History:
        """The faults are over: everyone ends, and the log is read twice."""
        history = History(calm_at=time.monotonic_ns(), killed=self._killed)
        troubles = []
        writers = [life for who, life in self._lives.items() if who not in SCOPES]
        subscribers = [life for who, life in self._lives.items() if who in SCOPES]
        for life in writers:
            life.tell()
        troubles += [life.ended(60.0) for life in writers]
        with Client(self.broker.endpoint, timeout=30.0) as client:
            read_by_client(history, client)
            for life in subscribers:
                scope = SCOPES[life.name.partition(".")[0]]
                last = max((event.position for event in history.log if event.stream.startswith(scope)), default=None)
                if last is not None:
                    until(lambda life=life, last=last: f'"event": [{last},' in tail(life.notes), 20.0)
                life.tell()
        troubles += [life.ended(20.0) for life in subscribers]
        self.upkeep.finish()
        code = self.broker.stop()
        troubles += [f"the broker stopped with {code}: {self.broker.stderr()[-500:]}"] if code else []
        until(lambda: not self._saving(), 20.0)
        troubles += self.upkeep.troubles
        history.copies = self.upkeep.copies
        self._report.removed += first_segment(self.broker.data) - 1
        if any(troubles):
            raise Failed("; ".join(filter(None, troubles)))
        read_by_reader(history, self.broker.data)
        for life in self._everyone:
            history.add(life.name, rows_of(life.notes) if life.notes.exists() else [])
        return history

    def close(self) -> None:
        """End whatever still runs."""
        for life in self._lives.values():
            if life.process.poll() is None:
                life.kill()
        self.upkeep.close()
        self.broker.close()


def reached(rows: list[dict[str, Any]], start: int) -> int:
    """Where a subscriber with these notes has to go on."""
    for row in reversed(rows):
        if row["what"] == "seen":
            return int(row["event"][0]) + 1
        if row["what"] == "subscribed":
            return int(row["start"])
    return start


def segments(data: Path) -> list[Path]:
    return sorted(path for path in data.iterdir() if SEGMENT_NAME.match(path.name))


def first_segment(data: Path) -> int:
    """The ordinal of the first that is there."""
    return int(segments(data)[0].name[:10])


def removing(data: Path) -> bool:
    """Whether a base is being written, or tells of a segment that is still there."""
    names = [path.name for path in data.iterdir() if path.name.startswith("base-")]
    bases = [name for name in names if not name.endswith(".tmp")]
    if len(names) > len(bases):
        return True
    path = segments(data)[0]
    with path.open("rb") as file:
        header = SegmentHeader.unpack(file.read(SEGMENT_HEADER_BYTES), path.name)
    return any(int(name[5:]) >= header.first_group for name in bases)


def tail(path: Path) -> str:
    """The last 64 KiB of a file."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return file.read().decode()


def campaign(cycles: int, seed: int, base: Path, say: Callable[[str], None]) -> Report:
    """So many cycles in rounds of 25; ends with the first round that has a fault, and leaves its files in `base`."""
    report = Report(seed)
    begun = time.monotonic()
    chance = random.Random(seed)
    number = 0
    while report.cycles < cycles and not report.faults:
        number += 1
        folder = base / str(number)
        folder.mkdir()
        one = Round(folder, chance, report, small=number % LARGE_EVERY > 0)
        try:
            one.begin()
            for point in chance.sample(DECK, len(DECK))[: cycles - report.cycles]:
                one.cycle(point)
                report.cycles += 1
            report.add(judge(one.end()))
        except (Failed, AssertionError) as error:
            report.faults.append(f"round {number}, cycle {report.cycles}: {error}")
        finally:
            one.close()
        report.seconds = time.monotonic() - begun
        if not report.faults:
            shutil.rmtree(folder)
        say(str(report))
    return report


def main() -> int:
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1, 1 << 32)
    base = Path(tempfile.mkdtemp(prefix="tl-"))
    print(f"{cycles} cycles with seed {seed}", flush=True)
    report = campaign(cycles, seed, base, lambda text: print(text, flush=True))
    for fault in report.faults:
        print(fault)
    if report.faults:
        print(f"the files of the last round are in {base}")
        return 1
    shutil.rmtree(base)
    if report.share_unsynced < 1 / 3:
        print("less than a third of the kills fell between write and sync: the campaign proves less than it should")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
