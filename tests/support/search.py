"""The search for crash states over several processes: python -m support.search [STATES] [SEED], as scripts/crash_states does.

The workloads are dealt out in chunks; each process remembers what it has seen, and its new states come back as 64-bit keys.
Chunks are counted in their order, so the figures of a run follow from the seed and the target alone.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from support.crashes import Counterexample, Explorer
from support.seen import Seen
from support.workloads import CORE, OPERATIONS, SHORT_WORKLOADS, Workload, run_workload, workloads
from tidelog_broker.core import merging

CHUNK = 16
WORKERS_MAX = 16
AHEAD = 3
"""Chunks that wait for each worker."""
PROGRESS_S = 10.0
LIMIT_MAX = 1_000


@dataclass(slots=True)
class Totals:
    """What was searched so far."""

    distinct: int = 0
    looked_at: int = 0
    continued: int = 0
    resumed: int = 0
    workloads: int = 0
    seconds: float = 0.0
    workers: int = 0

    @property
    def short_complete(self) -> bool:
        return self.workloads >= SHORT_WORKLOADS

    def __str__(self) -> str:
        run = f"all {SHORT_WORKLOADS} run" if self.short_complete else f"{self.workloads} of {SHORT_WORKLOADS} run"
        return (
            f"{self.distinct} distinct crash states of {self.looked_at} looked at, {self.continued} gone on from, "
            f"{self.resumed} recovered from a checkpoint; "
            f"{self.workloads} workloads; sequences of up to 2 of {len(OPERATIONS)} operations and of 3 of {len(CORE)}: "
            f"{run}; {self.seconds:.1f} s in {self.workers} processes"
        )


Result = tuple[bytes, int, int, int, int]
"""(new keys, looked at, gone on from, recovered from a checkpoint, workloads) of a chunk."""

_explorer: Explorer | None = None


def run_chunk(chunk: list[Workload]) -> Result:
    """In a worker: run some workloads with all that this process has seen. Raises Counterexample."""
    global _explorer
    if _explorer is None:
        _explorer = Explorer(limit=LIMIT_MAX)
        merging.FAN = 2  # logs are so small here that runs would never be merged
    explorer = _explorer
    before = explorer.looked_at, len(explorer.continued), explorer.resumed
    for workload in chunk:
        run_workload(explorer, workload)
    keys, explorer.fresh = array("Q", explorer.fresh), []
    now = explorer.looked_at, len(explorer.continued), explorer.resumed
    looked_at, continued, resumed = (after - first for after, first in zip(now, before, strict=True))
    return keys.tobytes(), looked_at, continued, resumed, len(chunk)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def search(target: int, seed: int, *, whole: bool = True, told: Callable[[Totals], object] | None = None) -> Totals:
    """Search until `target` distinct states were seen, and with `whole` at least all short workloads.

    `told` is called every ten seconds. Raises Counterexample.
    """
    totals = Totals(workers=min(WORKERS_MAX, len(os.sched_getaffinity(0))))
    union = Seen()
    chunks = _chunks(seed)
    started = time.monotonic()
    due = started + PROGRESS_S
    # A fresh process each: nothing of this one's threads, patches and memory.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(totals.workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        running: deque[Future[Result]] = deque()
        try:
            while totals.distinct < target or (whole and not totals.short_complete):
                while len(running) < AHEAD * totals.workers:
                    running.append(pool.submit(run_chunk, next(chunks)))
                fresh, looked_at, continued, resumed, count = running.popleft().result()
                for key in array("Q", fresh):
                    union.put(key)
                totals.distinct = len(union)
                totals.looked_at += looked_at
                totals.continued += continued
                totals.resumed += resumed
                totals.workloads += count
                totals.seconds = time.monotonic() - started
                if told is not None and time.monotonic() > due:
                    due = time.monotonic() + PROGRESS_S
                    told(totals)
        finally:
            pool.shutdown(cancel_futures=True)
    return totals


def _chunks(seed: int) -> Iterator[list[Workload]]:
    endless = workloads(seed)
    while True:
        yield list(itertools.islice(endless, CHUNK))


def main() -> int:
    target, seed = (int(text.replace("_", "")) for text in sys.argv[1:3])
    try:
        totals = search(target, seed, told=lambda totals: print(totals, flush=True))
    except Counterexample as error:
        print(f"seed {seed}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    print(f"{totals}; no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
