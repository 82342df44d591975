"""One process of a workload: `python -m tidelog_broker.bench.worker JOB`, JOB a JSON object {"do": name, …}.

It prepares, prints `ready`, waits for a line on standard input, works, and prints one JSON object. The end of standard
input before that line ends it: nobody is left to measure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .bare import BareClient, append_frame, serve_echo

Job = dict[str, Any]
Result = dict[str, Any]
CALL_S = 60.0
WARM_UP = 20
"""One part in so many of the work is done before the clock starts."""


def wait_for_go() -> None:
    """The barrier: everybody is ready before anybody begins."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit(1)


def span(begin: int, end: int, count: int) -> Result:
    return {"begin": begin, "end": end, "count": count}


@contextmanager
def bare(job: Job) -> Iterator[BareClient]:
    client = BareClient(job["endpoint"])
    try:
        yield client
    finally:
        client.close()


# Bare clients


def echo(job: Job) -> Result:
    frame = append_frame(1, job["stream"], job["events"], bytes(job["payload"]), bytes(job["metadata"]))
    with bare(job) as client:
        client.echo(frame, job["count"] // WARM_UP + 1, job["window"])
        wait_for_go()
        times = client.echo(frame, job["count"], job["window"])
    result = span(times[0], times[-1], job["count"])
    if job["window"] == 1:
        result["latencies"] = [after - before for before, after in zip(times, times[1:], strict=False)]
    return result


def bare_append(job: Job) -> Result:
    """The broker alone: its client costs next to nothing."""
    frames = [
        append_frame(number + 1, job["stream"], job["events"], bytes(job["payload"]), bytes(job["metadata"]))
        for number in range(job["count"])
    ]
    warm = job["count"] // WARM_UP + 1
    with bare(job) as client:
        client.hello()
        client.append(frames[:warm], job["window"])
        wait_for_go()
        begin = time.perf_counter_ns()
        client.append(frames[warm:], job["window"])
        return span(begin, time.perf_counter_ns(), job["count"] - warm)


def _main() -> None:
    job: Job = json.loads(sys.argv[1])
    if job["do"] == "serve_echo":
        serve_echo(job["endpoint"])
        return
    print(json.dumps(JOBS[job["do"]](job)), flush=True)


JOBS: dict[str, Callable[[Job], Result]] = {"echo": echo, "bare_append": bare_append}

if __name__ == "__main__":
    _main()
