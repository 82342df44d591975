"""What the index costs: appends to many streams beside appends to few, and appends while a checkpoint is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidelog import Client, Event, Write

from .processes import rate, resident_mb
from .report import Row, Sample, Target, percentile

if TYPE_CHECKING:
    from .workloads import Bench, Job

STREAMS = 1_000_000
WRITES = 1_000
CLIENTS, WINDOW = 16, 16
UNSAVED = 300_000
"""Batches that a measured checkpoint has to save."""
NEVER = ("--checkpoint-batches", "4000000", "--checkpoint-seconds", "86400")
SECONDS = 6
"""How long appends are timed: longer than a checkpoint takes."""


def streams(bench: Bench) -> list[Row]:
    """W3 with 90 % of the appends on a tenth of many streams, beside W3 with as many streams as clients."""
    count, many = bench.size(8_000), bench.size(STREAMS)
    with bench.broker() as (endpoint, _, process):
        bench.progress(f"makes {many:,} streams")
        with Client(endpoint, timeout=60) as client:
            for first in range(0, many, WRITES):
                last = min(first + WRITES, many)
                client.append_many([Write(f"bench/{number}", [Event("made")]) for number in range(first, last)])

        def jobs(**more: object) -> list[Job]:
            return [
                bench.job("append", endpoint, stream="bench", window=WINDOW, count=count, seed=number, **more)
                for number in range(CLIENTS)
            ]

        def sample() -> Sample:
            few = rate(bench.processes.work(jobs(streams=CLIENTS)))
            value = rate(bench.processes.work(jobs(streams=many, skewed=True)))
            return Sample(value, few, {"resident MB": resident_mb(process.pid)})

        samples = bench.repeated("streams", sample)
    what = f"W3 with 90 % of appends on a tenth of {many:,} streams"
    return [Row("streams", what, "events/s", f"W3 with {CLIENTS} streams", samples, Target(0.9, False))]


def checkpoint(bench: Bench) -> list[Row]:
    """p99 of one append in flight while the index is saved, beside their p99 next to a process as busy and as nice."""
    unsaved = bench.size(UNSAVED)
    with bench.broker(*NEVER) as (endpoint, _, _):

        def latencies(beside: str) -> tuple[list[int], float]:
            """Those of the time that the other needed, and that time in seconds."""
            jobs = [bench.job("append_for", endpoint, seconds=SECONDS), bench.job(beside, endpoint, seconds=SECONDS)]
            appended, other = bench.processes.work(jobs)
            within = range(other["begin"], other["end"])
            found = [took for at, took in zip(appended["times"], appended["latencies"], strict=True) if at in within]
            return found, len(within) / 1e9

        def sample() -> Sample:
            bench.load(endpoint, unsaved, window=256, streams=10_000)
            stranger, _ = latencies("stranger")
            saving, seconds = latencies("save")
            more = {"saved in s": seconds, "p50 µs": percentile(saving, 50) / 1000, "appends": float(len(saving))}
            return Sample(percentile(saving, 99) / 1000, percentile(stranger, 99) / 1000, more)

        samples = bench.repeated("checkpoint", sample)
    what = f"1 in flight while {unsaved:,} batches are saved, p99"
    return [Row("checkpoint", what, "µs", "beside a stranger", samples, Target(2.0, True))]
