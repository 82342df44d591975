"""One process of a workload: `python -m tidelog_broker.bench.worker JOB`, JOB a JSON object {"do": name, …}.

It prepares, prints `ready`, waits for a line on standard input, works, and prints one JSON object. The end of standard
input before that line ends it: nobody is left to measure.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from tidelog import Appended, Client, Event, Session
from tidelog.limits import INT_MAX
from tidelog.link import Future
from tidelog.wire import decode_page

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
        result["latencies"] = [after - before for before, after in pairwise(times)]
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


def decode(job: Job) -> Result:
    """The log's pages, fetched before, decoded from memory."""
    with bare(job) as client:
        client.hello()
        pages = client.pages(job["bytes"])
    wait_for_go()
    count = 0
    begin = time.perf_counter_ns()
    while count < job["count"]:
        for page in pages:
            count += len(decode_page(page, False, 0, INT_MAX))
    return span(begin, time.perf_counter_ns(), count)


def scan(job: Job) -> Result:
    """What a restart can't do without: this interpreter with the broker's modules, all bytes read, a CRC over them."""
    importlib.import_module("tidelog_broker.serve")
    wait_for_go()
    begin = time.perf_counter_ns()
    size = 0
    for path in sorted(Path(job["data"]).glob("0*")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                zlib.crc32(block)
                size += len(block)
    return {**span(begin, time.perf_counter_ns(), 1), "bytes": size}


# The client library


def append_one(job: Job) -> Result:
    """One append in flight, waited for."""
    payload, metadata = bytes(job["payload"]), bytes(job["metadata"])
    clock = time.perf_counter_ns
    latencies: list[int] = []
    with Client(job["endpoint"], timeout=CALL_S) as client:
        level = job.get("durability", "durable")
        for _ in range(job["count"] // WARM_UP + 1):
            client.append(job["stream"], Event("measured", payload, metadata), durability=level)
        wait_for_go()
        begin = last = clock()
        for _ in range(job["count"]):
            client.append(job["stream"], Event("measured", payload, metadata), durability=level)
            now = clock()
            latencies.append(now - last)
            last = now
    return {**span(begin, last, job["count"]), "latencies": latencies}


def append_for(job: Job) -> Result:
    """One append in flight for some seconds; when each was answered."""
    payload, metadata = bytes(job["payload"]), bytes(job["metadata"])
    clock = time.perf_counter_ns
    times: list[int] = []
    latencies: list[int] = []
    with Client(job["endpoint"], timeout=CALL_S) as client:
        client.append(job["stream"], Event("measured", payload, metadata))
        wait_for_go()
        begin = last = clock()
        while last < begin + job["seconds"] * 1_000_000_000:
            client.append(job["stream"], Event("measured", payload, metadata))
            now = clock()
            times.append(now)
            latencies.append(now - last)
            last = now
    return {**span(begin, last, len(times)), "times": times, "latencies": latencies}


def save(job: Job) -> Result:
    """A checkpoint, from asking for it until it is made."""
    with Client(job["endpoint"], timeout=CALL_S) as client:
        client.head()
        wait_for_go()
        begin = time.perf_counter_ns()
        state, _ = client.checkpoint(begin=True)
        while state == "running" and time.perf_counter_ns() < begin + job["seconds"] * 1_000_000_000:
            time.sleep(0.02)
            state, _ = client.checkpoint()
        return span(begin, time.perf_counter_ns(), 1)


def stranger(job: Job) -> Result:
    """A process that only computes, as nice as the broker's own."""
    os.nice(10)
    wait_for_go()
    begin = now = time.perf_counter_ns()
    block = bytes(1 << 16)
    while now < begin + job["seconds"] * 1_000_000_000:
        sum(map(zlib.crc32, [block] * 8))
        sum(range(2_000))
        now = time.perf_counter_ns()
    return span(begin, now, 1)


def append(job: Job) -> Result:
    """A sliding window of appends in flight; when it is full, the oldest is waited for."""
    if job.get("skewed"):
        # Nine of ten in a tenth of the streams; more names than are wanted at once would be memory of ours.
        many, draw = job["streams"], Random(job["seed"])
        drawn = [draw.randrange(many if draw.random() < 0.1 else many // 10) for _ in range(job["count"])]
        names = [f"{job['stream']}/{number}" for number in drawn]
    else:
        names = [f"{job['stream']}/{number}" for number in range(job.get("streams", 1))]
    with Client(job["endpoint"], timeout=CALL_S) as client:
        client.head()
        producer = client.session(job["session"]) if "session" in job else client
        _append(producer, names, job, job["count"] // WARM_UP + 1 if job.get("warm", True) else 0)
        wait_for_go()
        begin = time.perf_counter_ns()
        _append(producer, names, job, job["count"])
        return span(begin, time.perf_counter_ns(), job["count"])


def _append(producer: Client | Session, names: list[str], job: Job, count: int) -> None:
    payload, metadata = bytes(job["payload"]), bytes(job["metadata"])
    events, window, streams = job["events"], job["window"], len(names)
    pending: deque[Future[Appended]] = deque()
    for number in range(count):
        if len(pending) >= window:
            pending.popleft().result()
        made: Event | list[Event] = (
            Event("measured", payload, metadata)
            if events == 1
            else [Event("measured", payload, metadata) for _ in range(events)]
        )
        pending.append(producer.append_nowait(names[number % streams], made))
    while pending:
        pending.popleft().result()


def read(job: Job) -> Result:
    """Everything, event by event."""
    with Client(job["endpoint"], timeout=CALL_S) as client:
        client.head()
        wait_for_go()
        count = 0
        begin = time.perf_counter_ns()
        for _ in client.read_all():
            count += 1
        return span(begin, time.perf_counter_ns(), count)


def publish(job: Job) -> Result:
    """Appends at a steady rate; each payload begins with the time at which its append was called."""
    rest = bytes(job["payload"] - 8)
    clock = time.monotonic_ns
    step = 1_000_000_000 // job["rate"]
    pending: deque[Future[Appended]] = deque()
    with Client(job["endpoint"], timeout=CALL_S) as client:
        client.head()
        wait_for_go()
        begin = due = clock()
        for _ in range(job["count"]):
            due += step
            while (left := due - clock()) > 0:
                time.sleep(left / 1e9)
            event = Event("measured", clock().to_bytes(8, "little") + rest)
            if job["wait"]:
                client.append(job["stream"], event)
                continue
            pending.append(client.append_nowait(job["stream"], event))
            while pending[0].done():
                pending.popleft().result()
                if not pending:
                    break
        while pending:
            pending.popleft().result()
        return span(begin, clock(), job["count"])


def subscribe(job: Job) -> Result:
    """Follows everything: how old each event is when it is delivered, and how fast they come."""
    clock = time.monotonic_ns
    ages: list[int] = []
    seen, skip, count, timed = 0, job["skip"], job["count"], job["timed"]
    begin = 0
    with Client(job["endpoint"], timeout=CALL_S) as client, client.subscribe(start="end") as subscription:
        wait_for_go()
        for event in subscription:
            seen += 1
            if seen <= skip:
                begin = clock()
                continue
            if timed:
                ages.append(clock() - int.from_bytes(event.payload[:8], "little"))
            if seen == count:
                break
    return {**span(begin, clock(), count - skip), "latencies": ages}


def _main() -> None:
    job: Job = json.loads(sys.argv[1])
    if job["do"] == "serve_echo":
        serve_echo(job["endpoint"])
        return
    print(json.dumps(JOBS[job["do"]](job)), flush=True)


JOBS: dict[str, Callable[[Job], Result]] = {
    job.__name__: job
    for job in (
        echo,
        bare_append,
        decode,
        scan,
        append_one,
        append_for,
        append,
        read,
        publish,
        subscribe,
        save,
        stranger,
    )
}

if __name__ == "__main__":
    _main()
