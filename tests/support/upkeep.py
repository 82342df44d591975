"""What an operator does while brokers are killed: backups, restores, exports and migrations, as processes that are killed, too.

Owns those processes, one at a time, and the directory that they work in. `step` goes on with whatever has ended and returns at
once; `finish` waits for the last piece of work. Half of the kills fall before a call to the disk that the dice choose
(support/killer.py), half when `step` comes by the next time. What is not as promised is in `troubles`; what each backup and
each export holds goes to the checker as `copies`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from uuid import UUID

from migrate.found import events
from migrate.seed import Seed, large
from support.histories import Copy, Stored, copy_of, digest_of
from support.killer import Order, Point

TESTS = Path(__file__).parents[1]
LIMIT_S, TOO_LATE = 60.0, 124
FAILED_WELL = {1, 69}
"""How a backup or an export may end whose broker is killed, or that a truncation overtakes: refused, or nobody to be reached."""
MIGRATED_EVENTS = 2_000
PAUSE_STEPS = 16
KILLS_MAX = 3
"""Of one migration or restore, before it is left alone."""


@cache
def seed() -> Seed:
    """The log of another kind that is migrated again and again."""
    return large(3, MIGRATED_EVENTS, 20)


class Task:
    """One command of `tidelog` in a process."""

    def __init__(self, folder: Path, kill_at: int | None, *words: str) -> None:
        """It dies before its call to the disk of this number; None: it does not."""
        self.words = words
        self._order = Order(folder / "order")
        self._order.give(Point.NONE if kill_at is None else Point.HALF, kill_at or 0)
        self._late = False
        self._until = time.monotonic() + LIMIT_S
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.killer", str(self._order.path), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )

    def code(self) -> int | None:
        """How it ended; None while it runs. It has its time, and no more."""
        if self._process.poll() is None and time.monotonic() > self._until:
            self.kill()
            self._late = True
        return TOO_LATE if self._late else self._process.poll()

    def wait(self) -> None:
        """Its end, or that of its time."""
        while self.code() is None:
            time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    @property
    def killed(self) -> bool:
        return self.code() == -9

    def __str__(self) -> str:
        return f"tidelog {' '.join(self.words)} ended with {self.code()}: {self.output.read_text()[-500:]}"


def exported(line: bytes) -> Stored:
    """A line of `tidelog export`."""
    row = json.loads(line)
    payload, metadata = (
        b64decode(row[f"{name}_b64"]) if f"{name}_b64" in row else row[name].encode()
        for name in ("payload", "metadata")
    )
    digest = digest_of(row["type"], payload, metadata)
    return Stored(row["position"], row["stream"], row["version"], UUID(row["id"]).hex, digest, row["recorded_at"])


class Upkeep:
    """One round's work on its broker's log."""

    def __init__(self, folder: Path, endpoint: str, chance: random.Random, count: Counter[str]) -> None:
        self._folder = folder / "upkeep"
        self._folder.mkdir()
        self._endpoint = endpoint
        self._chance = chance
        self._count = count
        self._task: Task | None = None
        self._kill_next = False
        self._number = 0
        self._over = False
        self._older: Path | None = None
        self._script = self._work()
        self.copies: list[Copy] = []
        self.troubles: list[str] = []

    def step(self) -> None:
        """Go on, if there is anything to go on with; a process that is to be killed in passing is killed now."""
        if self._task is not None and self._kill_next and self._task.code() is None:
            self._task.kill()
        if self._task is None or self._task.code() is not None:
            self._task = next(self._script)

    def finish(self) -> None:
        """The last piece of work, to its end. The broker may be gone by now."""
        self._over = True
        for task in chain([self._task], self._script):
            if task is not None:
                self._task = task
                task.wait()

    def close(self) -> None:
        """End what still runs."""
        if self._task is not None and self._task.code() is None:
            self._task.kill()

    def _begin(self, mortal: bool, *words: str) -> Task:
        kill_at = None
        self._kill_next = mortal and self._chance.random() < 0.5
        if mortal and not self._kill_next:
            kill_at = int(2 ** self._chance.uniform(0.0, 6.0)) - 1
        return Task(self._folder, kill_at, *words)

    # -- the work

    def _work(self) -> Iterator[Task | None]:
        """A task to be waited for, or None: nothing at this step."""
        while not self._over:
            for _ in range(self._chance.randrange(4, PAUSE_STEPS)):
                yield None
            yield from self._chance.choices([self._backup, self._migration, self._export], [5, 3, 2])[0]()

    def _backup(self) -> Iterator[Task]:
        self._number += 1
        file = self._folder / f"backup{self._number}"
        since = ["--since", str(self._older)] if self._older and self._chance.random() < 0.5 else []
        began = time.monotonic_ns()
        mortal = self._chance.random() < 0.4
        task = self._begin(mortal, "backup", str(file), "--endpoint", self._endpoint, *since)
        yield task
        left = file.with_name(file.name + ".tmp")
        if task.killed and mortal:
            self._count["backups killed"] += 1
            left.unlink(missing_ok=True)
        elif task.code() in FAILED_WELL:
            self._count["backups failed"] += 1
            if file.exists() or left.exists():
                self.troubles.append(f"a failed backup left something: {task}")
        elif task.code() != 0 or not file.exists():
            self.troubles.append(str(task))
        if file.exists():
            self._count["backups whole"] += 1
            yield from self._restore(file, began, since)
            if not since:
                if self._older is not None:
                    self._older.unlink()
                self._older = file

    def _restore(self, file: Path, began: int, since: list[str]) -> Iterator[Task]:
        """Into a directory that is not there, until it is."""
        target = self._folder / f"log{self._number}"
        for tried in range(KILLS_MAX + 1):
            mortal = tried < KILLS_MAX and self._chance.random() < 0.3
            task = self._begin(mortal, "restore", str(file), str(target), *since)
            yield task
            if not (mortal and task.killed):
                break
            self._count["restores killed"] += 1
            shutil.rmtree(target.with_name(target.name + ".restoring"), ignore_errors=True)
            if target.exists():
                break
        if task.code() != 0 and not (target.exists() and task.killed):
            self.troubles.append(str(task))
            return
        self._count["restores"] += 1
        self.copies.append(copy_of(f"{file.name} {' '.join(since)}".strip(), began, target))
        shutil.rmtree(target)

    def _export(self) -> Iterator[Task]:
        """All events as lines; one that is killed or refused half way may say anything but that it is whole."""
        self._number += 1
        began = time.monotonic_ns()
        mortal = self._chance.random() < 0.3
        task = self._begin(mortal, "export", "--endpoint", self._endpoint)
        yield task
        if task.killed and mortal:
            self._count["exports killed"] += 1
        elif task.code() in FAILED_WELL:
            self._count["exports failed"] += 1
        elif task.code() != 0:
            self.troubles.append(str(task))
        elif found := [exported(line) for line in task.output.read_bytes().splitlines()]:
            self._count["exports whole"] += 1
            first, last = found[0].position, found[-1].position
            self.copies.append(Copy(f"export{self._number}", began, "whole", first, first, last + 1, found))

    def _migration(self) -> Iterator[Task]:
        """Until the target is there; in between it is not there at all."""
        self._number += 1
        source, target = self._folder / f"events{self._number}.db", self._folder / f"log{self._number}"
        source.write_bytes(seed().bytes)
        for tried in range(KILLS_MAX + 1):
            mortal = tried < KILLS_MAX and self._chance.random() < 0.7
            task = self._begin(mortal, "migrate", str(source), str(target))
            yield task
            self._count["migrations killed"] += mortal and task.killed
            if target.exists() and events(target) != seed().events():
                self.troubles.append(f"not all of what was migrated: {task}")
            if target.exists() or not (mortal and task.killed):
                break
        if not target.exists() or (task.code() != 0 and not task.killed):
            self.troubles.append(str(task))
            return
        if task.code() == 0 and target.with_name(target.name + ".migrating").exists():
            self.troubles.append(f"something is left: {task}")
        self._count["migrations"] += 1
        shutil.rmtree(target)
        source.unlink()
