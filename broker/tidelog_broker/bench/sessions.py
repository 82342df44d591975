"""What a session costs, and what "accepted" saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .processes import rate
from .report import Row, Sample, Target, percentile

if TYPE_CHECKING:
    from .workloads import Bench, Job


def sessions(bench: Bench) -> list[Row]:
    """W2 and W3 with a session for each client, beside themselves without."""
    return [_flow(bench, "W2", 1, 64, 100_000), _flow(bench, "W3", 16, 16, 8_000)]


def _flow(bench: Bench, of: str, clients: int, window: int, count: int) -> Row:
    count = bench.size(count)
    with bench.broker() as (endpoint, _, _):

        def jobs(**more: object) -> list[Job]:
            return [
                bench.job("append", endpoint, stream=f"bench/{number}", window=window, count=count, **more)
                for number in range(clients)
            ]

        def sample() -> Sample:
            without = rate(bench.processes.work(jobs()))
            named = [{**job, "session": job["stream"]} for job in jobs()]
            return Sample(rate(bench.processes.work(named)), without, {})

        samples = bench.repeated(f"sessions {of}", sample)
    return Row("sessions", f"{of} in sessions", "events/s", f"{of} without", samples, Target(0.9, False))


def accepted(bench: Bench) -> list[Row]:
    """W1, answered before the sync."""
    with bench.echo_server() as echo, bench.broker() as (endpoint, _, _):

        def sample() -> Sample:
            (limit,) = bench.processes.work([bench.job("echo", echo, count=bench.size(3_000))])
            job = bench.job("append_one", endpoint, count=bench.size(3_000), durability="accepted")
            (result,) = bench.processes.work([job])
            times = result["latencies"]
            more = {"p99": percentile(times, 99) / 1000}
            return Sample(percentile(times, 50) / 1000, percentile(limit["latencies"], 50) / 1000, more)

        samples = bench.repeated("accepted", sample)
    return [Row("accepted", "W1 with durability accepted, p50", "µs", "echo", samples, Target(1.5, True))]
