"""A large log made by a real broker, then killed and started again: what `scripts/large_log` runs and prints."""

from __future__ import annotations

import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from support.process import BrokerProcess
from tidelog import Client, Event

PAYLOAD, METADATA = b"p" * 256, b"m" * 32
IN_FLIGHT = 512
EVENTS_STREAMS_PER_APPEND = 10_000_000, 1_000_000, 10
"""Unless something else is asked for."""
START_S = 900.0


def main(events: int, streams: int, per_append: int, place: str) -> None:
    """Fill, kill, start with the saved index, kill, start without it; each line says what was measured."""
    with tempfile.TemporaryDirectory(prefix="tl-large-", dir=place or None) as folder:
        broker = BrokerProcess(Path(folder))
        broker.start()
        _fill(broker, events, streams, per_append)
        with Client(broker.endpoint, timeout=60) as client:
            _checkpoint(client)
        _append_some(broker, streams)  # a tail behind the checkpoint
        print(f"memory of the broker at most: {_memory(broker.pid)} MiB", flush=True)
        size = sum(path.stat().st_size for path in broker.data.iterdir() if path.is_file())
        index = sum(path.stat().st_size for path in (broker.data / "index").iterdir())
        print(
            f"log {size / 1e9:.2f} GB, index {index / 1e9:.3f} GB in {len(list((broker.data / 'index').iterdir()))} files"
        )
        broker.kill()
        _restart(broker, "with the checkpoint")
        broker.kill()
        _digests(broker)
        shutil.rmtree(broker.data / "index")
        _restart(broker, "without an index")
        print(f"memory of the broker behind that: {_memory(broker.pid)} MiB at most", flush=True)
        print(f"stopped: {broker.stop(60)}")
        _restart(broker, "behind a clean stop")
        broker.stop(60)


def _fill(broker: BrokerProcess, events: int, streams: int, per_append: int) -> None:
    batch = [Event("large", PAYLOAD, METADATA)] * per_append
    numbers = random.Random(1)
    began = time.monotonic()
    with Client(broker.endpoint, timeout=120) as client:
        waiting: deque[Any] = deque()
        done = 0
        for number in range(events // per_append):
            # Each stream once, then any: there are as many as was asked for.
            stream = number if number < streams else numbers.randrange(streams)
            waiting.append(client.append_nowait(f"large/{stream:08d}", batch))
            while len(waiting) >= IN_FLIGHT:
                waiting.popleft().result(120)
            done += per_append
            if done % (events // 10) == 0:
                info = client.info()
                print(
                    f"{done:,} events, {info['streams']:,} streams, {info['runs']} runs, {_memory(broker.pid)} MiB at most, "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
        while waiting:
            waiting.popleft().result(120)


def _append_some(broker: BrokerProcess, streams: int) -> None:
    with Client(broker.endpoint, timeout=60) as client:
        waiting = [
            client.append_nowait(f"large/{number:08d}", [Event("large", PAYLOAD)])
            for number in range(0, streams, max(1, streams // 1000))
        ]
        for future in waiting:
            future.result(60)


def _checkpoint(client: Client) -> None:
    began = time.monotonic()
    state, facts = client.checkpoint(begin=True)
    while state == "running" or client.info()["tail_batches"]:
        if time.monotonic() - began > 600:
            raise AssertionError(f"no checkpoint: {state} {facts}")
        time.sleep(0.2)
        state, facts = client.checkpoint(begin=state != "running")
    print(f"checkpoint of group {facts['group']}: waited {time.monotonic() - began:.1f} s", flush=True)


def _restart(broker: BrokerProcess, how: str) -> None:
    began = time.monotonic()
    broker.start(ready=False)
    process = broker._process
    assert process is not None
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    assert readable, "the broker did not start"
    process.stdout.readline()
    ready = time.monotonic() - began
    with Client(broker.endpoint, timeout=60) as client:
        client.append("large/restarted", Event("restarted"))
        acked = time.monotonic() - began
        opened = client.info()["opened"]
    speed = opened["bytes_read"] / ready / 1e9
    print(
        f"start {how}: ready after {ready:.2f} s, first ack after {acked:.2f} s, {speed:.2f} GB/s, {opened}", flush=True
    )


def _digests(broker: BrokerProcess) -> None:
    command = [sys.executable, "-m", "tidelog_broker", "verify", "--index", "--data", str(broker.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_800, check=False)
    print(f"verify --index: exit {done.returncode}: {(done.stdout + done.stderr).strip()}", flush=True)


def _memory(pid: int) -> int:
    """The most that a process has had in memory, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    return 0


if __name__ == "__main__":
    events, streams, per_append = [*map(int, sys.argv[1:4]), *EVENTS_STREAMS_PER_APPEND[len(sys.argv[1:4]) :]]
    main(events, streams, per_append, "".join(sys.argv[4:5]))
