"""The pipeline of docs/examples/pipeline under kills of everything: python -m support.pipeline [ROUNDS] [SEED]

Owns a round: a broker that can be told where to die, one ingest, two transforms (one is the stand-by), one count, each a process
that runs its program as the docs show it (support/noted.py only writes down what it asks and is told). While the lines of a
small file go through, the dice kill any of them, stop one and let it go on when another has its work, break the lease, stop the
broker in order, kill it while it starts. When the last total is there, everything ends, and the log is judged: each stage's
output is exactly what its input gives, and what was noted keeps the rules of support/checker_sessions.py. Every round has its own
dice, from the seed and its number.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from support.checker_sessions import SessionHistory, judge_sessions
from support.histories_campaign import Failed, MortalBroker
from support.killer import Point
from support.noted import digest_of
from support.process import until
from support.session_facts import Fact, Stored, read_facts
from tidelog import Client, StreamNotFound, TidelogError

TESTS = Path(__file__).parents[1]
PROGRAMS = TESTS.parent / "docs" / "examples" / "pipeline"
ROLES = {"ingest": "ingest", "transform a": "transform", "transform b": "transform", "count": "count"}
"""Who runs which program."""
STAGES = ["lines/1", "words/1", "totals/1"]
ROUNDS_AT_ONCE = 4
"""Much of a round is waiting: for a sync, for a start, for a lease."""
WORDS = ["a", "log", "is", "a", "river", "of", "facts", "and", "nobody", "steps", "twice", "into", "the", "same", "one"]
POINTS = [Point.GROUP_SYNC, Point.GROUP_SYNC, Point.GROUP_SYNCED, Point.GROUP_TORN, Point.NONE]
PATIENCE_S = 60.0
"""A round that does not come through in this time is stuck."""


class Program:
    """One life of one of the four."""

    def __init__(self, folder: Path, who: str, number: int, endpoint: str) -> None:
        self.who = who
        self.name = f"{who}.{number}"
        self.notes = folder / self.name
        self._errors = folder / f"{self.name}.stderr"
        arguments = [endpoint, str(folder / "input")] if who == "ingest" else [endpoint]
        script = str(PROGRAMS / f"{ROLES[who]}.py")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.noted", str(self.notes), script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )

    @property
    def code(self) -> int | None:
        """How it ended; None while it lives."""
        return self._process.poll()

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def signal(self, number: int) -> None:
        if self.code is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait(10)

    def trouble(self) -> str:
        """Why it is not as it should be, or nothing: ended only by us, at the end of the input, or fenced."""
        if self.code in (None, -signal.SIGKILL) or (self.who == "ingest" and self.code == 0):
            return ""
        if self.who == "ingest" and "another ingest has taken over" in self.said:
            return ""
        return f"{self.name} ended with {self.code}: {self.said[-2000:]}"


@dataclass(slots=True)
class Report:
    """What happened in all rounds."""

    seed: int
    rounds: int = 0
    lines: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        verdict = f"{len(self.faults)} FAULTS" if self.faults else "no fault"
        return f"seed {self.seed}: {self.rounds} rounds, {self.lines} lines, {self.seconds:.0f} s: {verdict}; {done}"


class Round:
    """One input on its way."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self.done: Counter[str] = Counter()
        self.lines: list[str] = []
        self._broker = MortalBroker(folder)
        self._broker.settings({"TIDELOG_HEARTBEAT_MS": "50"})
        self._client = Client(self._broker.endpoint, timeout=5.0)
        self._living: dict[str, Program] = {}
        self._paused: list[Program] = []
        self._programs: list[Program] = []

    def run(self) -> list[str]:
        """Everything; the faults that were found."""
        choices: list[Callable[[], None]] = [
            *[self._kill_a_program] * 5, *[self._kill_the_broker] * 3, self._stop_the_broker, *[self._overtake] * 2,
            self._checkpoint,
        ]  # fmt: skip
        self._broker.start()
        for _ in range(self._chance.randint(1, 4)):
            self._more_lines(self._chance.randint(5, 20))
            if self._chance.random() < 0.7 or not self._programs:
                self._revive()
            self._wait_for_progress()
            self._go_on()
            self._chance.choice(choices)()
        self._go_on()
        self._revive()
        if self.done["kills of transform"] and self.done["kills of the broker"] and self._chance.random() < 0.9:
            # Behind a restart a lease is kept for a time for a holder who may come back; an operator knows better.
            self._client.break_lease("transform")
        self._wait_for_the_end()
        return self._end()

    def _more_lines(self, count: int) -> None:
        """The input grows, so ingest has to be run again."""
        fresh = [" ".join(self._chance.choices(WORDS, k=self._chance.randrange(8))) for _ in range(count)]
        with (self._folder / "input").open("a") as file:
            file.write("".join(f"{line}\n" for line in fresh))
        self.lines += fresh

    # -- faults

    def _wait_for_progress(self) -> None:
        """Until a stage came to some place, but not for long: it may be waiting for somebody who is dead."""
        stage, least = self._chance.choice(STAGES), self._chance.randint(0, len(self.lines))
        until(lambda: self._reached(stage) >= least or self._reached(STAGES[-1]) == len(self.lines), 0.4, 0.01)
        time.sleep(self._chance.uniform(0.0, 0.02))

    def _reached(self, stage: str) -> int:
        """How many events a stage's stream has."""
        try:
            return self._client.stream_info(stage).last_version + 1
        except StreamNotFound:
            return 0

    def _kill_a_program(self) -> None:
        victims = [program for program in self._living.values() if program.code is None]
        if victims:
            victim = self._chance.choice(victims)
            victim.end()
            self.done[f"kills of {ROLES[victim.who]}"] += 1

    def _kill_the_broker(self) -> None:
        order, point = self._broker.order, self._chance.choice(POINTS)
        if point != Point.NONE:
            order.give(point, self._chance.randrange(3))
            until(lambda: not self._broker.running, 0.3, 0.002)
        if self._broker.running:
            self._broker.kill()
        elif self._broker.wait(10.0) != -signal.SIGKILL:
            raise Failed(f"the broker ended by itself: {self._broker.stderr()[-2000:]}")
        order.give(Point.NONE)
        self.done["kills of the broker"] += 1
        if self._chance.random() < 0.3:
            self._kill_a_program()
        if self._chance.random() < 0.25:
            self._broker.start(ready=False)
            time.sleep(self._chance.uniform(0.0, 0.3))
            self._broker.kill()
            self.done["kills of the broker"] += 1
        self._broker.start()

    def _stop_the_broker(self) -> None:
        code = self._broker.stop(20.0)
        if code:
            raise Failed(f"the broker stopped with {code}: {self._broker.stderr()[-2000:]}")
        self._broker.start()
        self.done["stops of the broker"] += 1

    def _overtake(self) -> None:
        """Somebody else does its work, and it knows nothing of that when it goes on."""
        who = self._chance.choice(list(ROLES))
        if who == "ingest":
            self._begin_an_ingest()
        victim = self._living.get(who)
        if victim is not None and victim.code is None:
            victim.signal(signal.SIGSTOP)
            self._paused.append(victim)
            self._start(who)
            if ROLES[who] == "transform":
                self._client.break_lease("transform")
            self.done[f"overtakings of {ROLES[who]}"] += 1

    def _begin_an_ingest(self) -> None:
        """One that has more to do than it may have under way, and has just opened its session."""
        self._more_lines(self._chance.randint(70, 100))
        self._start("ingest")
        notes = self._living["ingest"].notes
        until(lambda: notes.exists() and notes.stat().st_size > 0, 1.0, 0.001)

    def _go_on(self) -> None:
        for program in self._paused:
            program.signal(signal.SIGCONT)
        self._paused.clear()

    def _checkpoint(self) -> None:
        self._client.checkpoint(begin=True)
        self.done["checkpoints"] += 1

    # -- programs

    def _revive(self) -> None:
        """Start again who was killed, and ingest when it has done what there was, or was fenced."""
        for who in ROLES:
            program = self._living.get(who)
            if program is None or program.code is not None:
                self._start(who)

    def _start(self, who: str) -> None:
        number = sum(program.who == who for program in self._programs)
        self._living[who] = Program(self._folder, who, number, self._broker.endpoint)
        self._programs.append(self._living[who])

    def _wait_for_the_end(self) -> None:
        """Until all is through, and every ingest knows it."""

        def over() -> bool:
            if any(self._troubles()):
                return True
            if any(program.code is None for program in self._programs if program.who == "ingest"):
                return False
            if self._reached(STAGES[0]) < len(self.lines):
                self._start("ingest")  # the last one was at the end of the file when that grew, or was fenced
            return self._reached(STAGES[-1]) >= len(self.lines)

        if not until(over, PATIENCE_S, 0.01):
            reached = {stage: self._reached(stage) for stage in STAGES}
            said = {program.name: (program.code, program.said[-1000:]) for program in self._programs}
            raise Failed(f"stuck: {reached} of {len(self.lines)}; {said}; {list(self._client.cursors())}")

    def _troubles(self) -> list[str]:
        return [trouble for program in self._programs if (trouble := program.trouble())]

    # -- the end

    def _end(self) -> list[str]:
        troubles = self._troubles()
        for program in self._programs:
            program.end()
        self._client.close()
        code = self._broker.stop(20.0)
        if code:
            troubles.append(f"the broker stopped with {code}: {self._broker.stderr()[-2000:]}")
        self.done["times begun again"] += sum(program.said.count("begin again") for program in self._programs)
        facts = read_facts(self._broker.data)
        history = SessionHistory(facts)
        for program in self._programs:
            if program.notes.exists():
                history.add(program.name, whole_rows(program.notes))
        self.done["appends"] += len(history.calls)
        return [*troubles, *outputs_wrong(self.lines, facts), *map(str, judge_sessions(history))]

    def close(self) -> None:
        """End whatever still runs."""
        for program in self._programs:
            program.end()
        self._client.close()
        self._broker.close()


def outputs_wrong(lines: list[str], facts: list[Fact]) -> list[str]:
    """Where the streams of the three stages are not what the input gives: lost, doubled, swapped, changed."""
    numbers = list(accumulate(len(line.split()) for line in lines))
    wanted = {
        "lines/1": [digest_of("line", line.encode()) for line in lines],
        "words/1": [digest_of("words", json.dumps(line.split()).encode()) for line in lines],
        "totals/1": [digest_of("total", json.dumps([n, words]).encode()) for n, words in enumerate(numbers, 1)],
    }
    found: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for fact in facts:
        for part in fact.parts if isinstance(fact, Stored) else ():
            found.setdefault(part.stream, []).extend(digest for _, digest in part.events)
    return [
        f"{stream} has {len(digests)} events, the input gives {len(wanted.get(stream, []))}, and they differ"
        for stream, digests in found.items()
        if digests != wanted.get(stream)
    ]


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The notes of a life; the last one may have been cut by its end."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def one_round(number: int, seed: int, base: Path) -> tuple[Counter[str], int, list[str]]:
    """(what was done, how many lines, faults) of a round; its files stay in `base` when it has a fault."""
    folder = base / str(number)
    folder.mkdir()
    one = Round(folder, random.Random(f"{seed} {number}"))
    try:
        faults = one.run()
    except (Failed, AssertionError, TidelogError, OSError) as error:
        faults = [f"{type(error).__name__}: {error}"]
    finally:
        one.close()
    if not faults:
        shutil.rmtree(folder)
    return one.done, len(one.lines), [f"round {number}: {fault}" for fault in faults]


def campaign(rounds: int, seed: int, base: Path, say: Callable[[str], None]) -> Report:
    """So many rounds, a few at once; no more begin behind a fault."""
    report = Report(seed)
    begun = time.monotonic()

    def run(number: int) -> tuple[Counter[str], int, list[str]] | None:
        return None if report.faults else one_round(number, seed, base)

    with ThreadPoolExecutor(ROUNDS_AT_ONCE) as pool:
        for result in pool.map(run, range(1, rounds + 1)):
            if result is not None:
                done, lines, faults = result
                report.rounds += 1
                report.done += done
                report.lines += lines
                report.faults += faults
                report.seconds = time.monotonic() - begun
                if report.rounds % 100 == 0:
                    say(str(report))
    return report


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1, 1 << 32)
    base = Path(tempfile.mkdtemp(prefix="tl-"))
    print(f"{rounds} rounds with seed {seed}", flush=True)
    report = campaign(rounds, seed, base, lambda text: print(text, flush=True))
    print(report)
    for fault in report.faults:
        print(fault)
    if report.faults:
        print(f"the files of these rounds are in {base}")
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
