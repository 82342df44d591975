"""Coverage-guided fuzzing of the decoders: python -m fuzz [target or "all"] [seconds] [seed]; see scripts/fuzz.

Inputs that reach a new edge in the decoder's own lines are mutated on; at the end the smallest set that reaches all of
them is kept as the corpus. Exit code 1 when a target broke a promise: each finding is made small and written to a temporary
folder; it belongs into tests/fuzz/found/ once it is understood, where it is run for ever.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from fuzz.edges import Edge, Edges
from fuzz.mutate import mutated
from fuzz.seeds import CORPUS, starting_points
from fuzz.targets import TARGETS, Target

BYTES_MAX = 4_096
HANG_S = 10.0
KEPT_FILES_MAX, KEPT_BYTES_MAX = 58, 28_000
"""Of the corpus, per target: under 60 files and under 300 kB in all."""
FINDINGS = Path(tempfile.gettempdir()) / "tidelog-fuzz"
FINDINGS_MAX = 20


class Hang(BaseException):
    """One input took too long."""


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"an input took over {HANG_S} s")


class Fuzzer:
    """One target's run; `hang_s` 0 watches for no hang (it takes the process's alarm clock)."""

    def __init__(self, target: Target, seed: int, hang_s: float = 0.0) -> None:
        self.target = target
        self.hang_s = hang_s
        self.rng = Random(f"{target.name} {seed}")
        files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
        self.edges = Edges(path for path in files if path and path.endswith(target.files))
        self.reached: set[Edge] = set()
        self.pool: list[bytes] = []
        self.executions = 0
        self.findings: dict[str, bytes] = {}

    def execute(self, data: bytes) -> set[Edge]:
        """The edges of one input; a broken promise becomes a finding."""
        self.executions += 1
        if self.hang_s:
            signal.setitimer(signal.ITIMER_REAL, self.hang_s)
        try:
            return self.edges.run(self.target.run, data)
        except (Exception, Hang) as error:
            self._found(data, error)
            return set()
        finally:
            if self.hang_s:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _found(self, data: bytes, error: BaseException) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        if what not in self.findings or len(data) < len(self.findings[what]):
            self.findings[what] = data

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for data in starting_points(self.target.name):
            self._take(data[:BYTES_MAX])
        while time.monotonic() < end and len(self.findings) < FINDINGS_MAX:
            # The young half of the pool is where the last new edges were.
            half = self.rng.random() < 0.5
            pool = self.pool[len(self.pool) // 2 :] if half else self.pool
            self._take(mutated(self.rng.choice(pool or [b""]), self.pool, self.rng, BYTES_MAX))

    def _take(self, data: bytes) -> None:
        met = self.execute(data)
        if not met <= self.reached:
            self.reached |= met
            self.pool.append(data)

    def minimal(self) -> list[bytes]:
        """A small set of inputs that reaches what all did, smallest first."""
        kept: list[bytes] = []
        reached: set[Edge] = set()
        size = 0
        for data in sorted(set(self.pool), key=len):
            met = self.edges.run(self.target.run, data)
            if not met <= reached and len(kept) < KEPT_FILES_MAX and size + len(data) <= KEPT_BYTES_MAX:
                reached |= met
                kept.append(data)
                size += len(data)
        return kept

    def smaller(self, what: str) -> bytes:
        """A finding with what it does not need taken away."""
        data = self.findings[what]
        step = max(len(data) // 2, 1)
        while step:
            at = 0
            while at < len(data):
                shorter = data[:at] + data[at + step :]
                self.findings.pop(what, None)
                self.execute(shorter)
                if what in self.findings:
                    data = shorter
                else:
                    at += step
            step //= 2
        self.findings[what] = data
        return data


def save(target: str, kept: list[bytes]) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    names = {hashlib.sha256(data).hexdigest()[:12]: data for data in kept}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    for name, data in names.items():
        (folder / name).write_bytes(data)


def main(arguments: list[str]) -> int:
    chosen = arguments[0] if arguments else "all"
    seconds = float(arguments[1]) if len(arguments) > 1 else 60.0
    seed = int(arguments[2]) if len(arguments) > 2 else Random().randrange(1 << 32)
    if chosen not in TARGETS and chosen != "all":
        print(f"there is no target {chosen}; there are: all {' '.join(TARGETS)}", file=sys.stderr)
        return 64
    signal.signal(signal.SIGALRM, _hang)
    names = list(TARGETS) if chosen == "all" else [chosen]
    total = findings = 0
    print(f"fuzzing {', '.join(names)}: {seconds:.0f} s in all, seed {seed}", flush=True)
    for name in names:
        fuzzer = Fuzzer(TARGETS[name], seed, HANG_S)
        began = time.monotonic()
        fuzzer.run(seconds / len(names))
        rate = fuzzer.executions / (time.monotonic() - began)
        kept = fuzzer.minimal()
        if not fuzzer.findings:
            save(name, kept)
        print(
            f"{name:10} {fuzzer.executions:9,} executions ({rate:,.0f}/s), {len(fuzzer.reached):5,} edges, corpus "
            f"{len(kept)} files {sum(map(len, kept)):,} bytes, {len(fuzzer.findings)} findings",
            flush=True,
        )
        for what in list(fuzzer.findings):
            data = fuzzer.smaller(what)
            FINDINGS.mkdir(exist_ok=True)
            path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"  {what}: {len(data)} bytes in {path}: {data[:60]!r}")
        fuzzer.edges.close()
        total += fuzzer.executions
        findings += len(fuzzer.findings)
    print(f"{total:,} executions, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
