"""The workloads W1 to W7 and the broker's memory, each beside what the same machine does without Tidelog.

A pair of runs, the limit's and ours, is repeated; pairs lie close together in time, so that a busy neighbour slows both.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidelog import Client, Event

from . import index, sessions
from .bare import sync_times
from .processes import START_S, Process, Processes, WorkerFailed, rate, resident_mb
from .report import Row, Sample, Target, percentile

PAYLOAD = 256
METADATA = 32
SYNCS = 500
PUBLISH_RATE = 2_000
SKIPPED = 200
"""Events that a subscriber takes before it measures."""
DECODE_BYTES = 96 << 20
MEMORY_STREAMS = 10_000
MEMORY_TARGET_MB = 250.0
Job = dict[str, Any]


class Bench:
    """One run: its processes, its directory, how much and how often."""

    def __init__(
        self, processes: Processes, folder: Path, repeat: int, quick: bool, progress: Callable[[str], None]
    ) -> None:
        self.processes = processes
        self.folder = folder
        self.repeat = repeat
        self.quick = quick
        self.progress = progress

    def run(self, name: str) -> list[Row]:
        """The rows of one workload."""
        return WORKLOADS[name](self)

    # -- parts

    def size(self, full: int) -> int:
        """How many of something."""
        return max(full // 50, 20) if self.quick else full

    def repeated(self, what: str, sample: Callable[[], Sample]) -> list[Sample]:
        samples = []
        for number in range(self.repeat):
            self.progress(f"{what}  {number + 1} of {self.repeat}")
            samples.append(sample())
        return samples

    @contextmanager
    def broker(self, *flags: str) -> Iterator[tuple[str, Path, Process]]:
        """A broker with an empty log: (endpoint, data, process). The log goes with it."""
        data = self.folder / "log"
        endpoint = self.processes.endpoint()
        process = self.processes.broker(data, endpoint, *flags)
        try:
            yield endpoint, data, process
        finally:
            if process in self.processes:
                self.processes.end(process)
            shutil.rmtree(data, ignore_errors=True)

    @contextmanager
    def echo_server(self) -> Iterator[str]:
        endpoint = self.processes.endpoint()
        process = self.processes.echo_server(endpoint)
        try:
            yield endpoint
        finally:
            self.processes.end(process)

    def job(self, do: str, endpoint: str, **more: Any) -> Job:
        job: Job = {
            "do": do, "endpoint": endpoint, "stream": "bench/0", "events": 1, "payload": PAYLOAD, "metadata": 0, "window": 1
        }  # fmt: skip
        return {**job, **more}

    def sync_p50(self) -> float:
        """µs"""
        return percentile(sync_times(self.folder, 50 if self.quick else SYNCS), 50) / 1000

    def base_us(self, echo: str) -> float:
        """The limit of a single append: one echo and one sync, µs."""
        (result,) = self.processes.work([self.job("echo", echo, count=self.size(3_000))])
        return percentile(result["latencies"], 50) / 1000 + self.sync_p50()

    def load(self, endpoint: str, appends: int, **more: Any) -> float:
        """Fill a log, unmeasured; seconds that it took."""
        job = self.job("append", endpoint, count=appends, warm=False, **more)
        (result,) = self.processes.work([job])
        return float(result["end"] - result["begin"]) / 1e9

    # -- workloads

    def one(self) -> list[Row]:
        """One append in flight."""
        with self.echo_server() as echo, self.broker() as (endpoint, _, _):

            def sample() -> Sample:
                limit = self.base_us(echo)
                (result,) = self.processes.work([self.job("append_one", endpoint, count=self.size(3_000))])
                times = result["latencies"]
                return Sample(percentile(times, 50) / 1000, limit, {"p99": percentile(times, 99) / 1000})

            samples = self.repeated("W1", sample)
        return [Row("W1", "1 client with 1 in flight, p50", "µs", "echo + sync", samples, Target(1.5, True))]

    def pipelined(self) -> list[Row]:
        return [self._flow("W2", "1 client with 64 in flight", 1, 64, 1, 100_000, Target(0.30, False))]

    def many(self) -> list[Row]:
        return [self._flow("W3", "16 clients with 16 in flight each", 16, 16, 1, 8_000, Target(0.35, False))]

    def large(self) -> list[Row]:
        return [
            self._flow("W4", "100 events an append, 4 in flight", 1, 4, 100, 3_000, Target(0.08, False)),
            self._flow("W4", "100 events an append, 16 in flight", 1, 16, 100, 3_000, Target(0.12, False)),
        ]

    def bare(self) -> list[Row]:
        """The broker alone: the frames made before, one request a message. Not a promise to anybody; for profiles."""
        return [
            self._flow("bare", "bare client, 64 in flight", 1, 64, 1, 100_000, do="bare_append"),
            self._flow("bare", "16 bare clients, 16 in flight each", 16, 16, 1, 8_000, do="bare_append"),
            self._flow("bare", "bare client, 100 an append, 16 in flight", 1, 16, 100, 3_000, do="bare_append"),
        ]

    def _flow(
        self, name: str, what: str, clients: int, window: int, events: int, count: int,
        target: Target | None = None, do: str = "append",
    ) -> Row:  # fmt: skip
        """Appends a second against echoes a second at the same concurrency with frames of the same size."""
        count = self.size(count)
        with self.echo_server() as echo, self.broker() as (endpoint, _, _):

            def jobs(do: str, where: str, count: int) -> list[Job]:
                return [
                    self.job(do, where, stream=f"bench/{number}", events=events, window=window, count=count)
                    for number in range(clients)
                ]

            def sample() -> Sample:
                limit = rate(self.processes.work(jobs("echo", echo, 2 * count)))
                value = rate(self.processes.work(jobs(do, endpoint, count)))
                return Sample(value * events, limit * events, {"sync p50 µs": self.sync_p50()})

            samples = self.repeated(f"{name} {what}", sample)
        return Row(name, what, "events/s", "echo", samples, target)

    def read(self) -> list[Row]:
        """Everything that is there."""
        events = self.size(10_000) * 100
        with self.broker() as (endpoint, _, _):
            self.progress(f"W5 appends {events:,} events")
            self.load(endpoint, events // 100, events=100, window=16, metadata=METADATA)

            def sample() -> Sample:
                (limit,) = self.processes.work([self.job("decode", endpoint, bytes=DECODE_BYTES, count=events)])
                (result,) = self.processes.work([self.job("read", endpoint)])
                if result["count"] != events:
                    raise WorkerFailed(f"{result['count']} events were read, {events} had been appended")
                return Sample(rate([result]), rate([limit]), {})

            samples = self.repeated("W5", sample)
        return [Row("W5", f"read {events:,} events", "events/s", "decoding in memory", samples, Target(0.4, False))]

    def live(self) -> list[Row]:
        """From the call of append in one process to the event in another."""
        return [self._live(1), self._live(8), self._live(1, wait=False), self._live_max()]

    def _live(self, subscribers: int, *, wait: bool = True) -> Row:
        count = self.size(8_000) + SKIPPED
        whom = "1 subscriber" if subscribers == 1 else f"{subscribers} subscribers"
        what = f"live, {PUBLISH_RATE:,}/s to {whom}{'' if wait else ' by append_nowait'}, p50"
        with self.echo_server() as echo, self.broker() as (endpoint, _, _):

            def sample() -> Sample:
                limit = self.base_us(echo)
                jobs = [
                    self.job("subscribe", endpoint, count=count, skip=SKIPPED, timed=True) for _ in range(subscribers)
                ]
                jobs.append(self.job("publish", endpoint, count=count, rate=PUBLISH_RATE, wait=wait))
                *results, publisher = self.processes.work(jobs)
                ages = [age for result in results for age in result["latencies"]]
                extra = {"p99": percentile(ages, 99) / 1000, "appended/s": rate([publisher])}
                return Sample(percentile(ages, 50) / 1000, limit, extra)

            samples = self.repeated(f"W6 {what}", sample)
        return Row("W6", what, "µs", "echo + sync", samples)

    def _live_max(self) -> Row:
        count = self.size(100_000)
        with self.echo_server() as echo, self.broker() as (endpoint, _, _):

            def sample() -> Sample:
                limit = rate(self.processes.work([self.job("echo", echo, window=64, count=2 * count)]))
                subscriber = self.job("subscribe", endpoint, count=count, skip=1, timed=False)
                appender = self.job("append", endpoint, window=64, count=count, warm=False)
                result, appended = self.processes.work([subscriber, appender])
                return Sample(rate([result]), limit, {"appended/s": rate([appended])})

            samples = self.repeated("W6max", sample)
        return Row("W6max", "delivered to 1 subscriber, appending flat out", "events/s", "echo", samples)

    def restart(self) -> list[Row]:
        """Killed; how long until it acknowledges again."""
        return [self._restart(100, self.size(10_000)), self._restart(1, self.size(200_000))]

    def _restart(self, events: int, appends: int) -> Row:
        with self.broker() as (endpoint, data, first):
            broker = first
            self.progress(f"W7 appends {events * appends:,} events")
            self.load(endpoint, appends, events=events, window=64, metadata=METADATA, streams=1_000)

            def sample() -> Sample:
                nonlocal broker
                begin = time.perf_counter()
                worker = self.processes.worker({"do": "scan", "data": str(data)})
                worker.line(START_S)
                worker.tell("go")
                worker.line(START_S)
                limit = time.perf_counter() - begin
                self.processes.end(worker)
                broker.kill()
                self.processes.end(broker)
                begin = time.perf_counter()
                broker = self.processes.broker(data, endpoint)
                ready = time.perf_counter() - begin
                with Client(endpoint, timeout=START_S) as client:
                    client.append("restart", Event("measured"))
                took = time.perf_counter() - begin
                size = sum(path.stat().st_size for path in data.glob("0*"))
                return Sample(took, limit, {"ready s": ready, "MB": size / 1e6})

            try:
                samples = self.repeated(f"W7 {events} an append", sample)
            finally:
                if broker is not first and broker in self.processes:
                    self.processes.end(broker)
        what = f"restart after a kill, {events * appends:,} events, {events} an append"
        return Row("W7", what, "s", "start + read + CRC", samples)

    def memory(self) -> list[Row]:
        """Resident memory after 1 M appends of one event in 10,000 streams; once, for it hardly varies."""
        appends = self.size(1_000_000)
        with self.broker() as (endpoint, _, process):
            self.progress(f"memory appends {appends:,} events")
            empty = resident_mb(process.pid)
            self.load(endpoint, appends, window=256, metadata=METADATA, streams=MEMORY_STREAMS)
            sample = Sample(resident_mb(process.pid), 0.0, {"empty MB": empty})
        what = f"resident, {appends:,} events in {MEMORY_STREAMS:,} streams, 1 an append"
        return [Row("memory", what, "MB", "", [sample], Target(MEMORY_TARGET_MB, True))]


WORKLOADS: dict[str, Callable[[Bench], list[Row]]] = {
    "W1": Bench.one,
    "W2": Bench.pipelined,
    "W3": Bench.many,
    "W4": Bench.large,
    "W5": Bench.read,
    "W6": Bench.live,
    "W7": Bench.restart,
    "memory": Bench.memory,
    "bare": Bench.bare,
    "streams": index.streams,
    "checkpoint": index.checkpoint,
    "sessions": sessions.sessions,
    "accepted": sessions.accepted,
}
DEFAULT = [name for name in WORKLOADS if name not in ("bare", "streams", "checkpoint", "sessions", "accepted")]
