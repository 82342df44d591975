"""Kills at random under load (T-10): what was acknowledged is there, what was seen stays, the rest is whole or absent."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import writer
from support.checker import judge, lines
from support.process import BrokerProcess, until
from tidelog import Client

ROUNDS = int(os.environ.get("TIDELOG_KILL_ROUNDS", "30"))
SEED = int(os.environ.get("TIDELOG_KILL_SEED", "0")) or random.randrange(1, 1 << 32)
READER = Path(__file__).parents[2] / "scripts" / "read_log.py"

SETTINGS: list[dict[str, str]] = [
    {},
    {"TIDELOG_STRICT": "1"},
    {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_ZERO_STEP": "65536"},
    {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_ALIGN": "4096", "TIDELOG_PREPARE_AHEAD": "4096"},
    {"TIDELOG_GROUP_BYTES_MAX": str(1 << 20), "TIDELOG_MARK_GROUPS": "1", "TIDELOG_SEGMENT_BYTES": str(2 << 20)},
    {"TIDELOG_ZERO_STEP": "4096", "TIDELOG_IDLE_MARK_MS": "1"},
]


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A writer or subscriber; it ends itself when its standard input does."""
    command = [sys.executable, writer.__file__, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stderr):
            if pipe is not None:
                pipe.close()


def end(child: subprocess.Popen[bytes], patience: float) -> None:
    """Tell it to end, and wait until it did."""
    assert child.stdin
    child.stdin.close()
    code = child.wait(patience)
    assert child.stderr
    assert code == 0, child.stderr.read().decode()


@pytest.mark.timeout(60 + 8 * ROUNDS)
def test_every_acknowledged_append_survives_kills_at_random_and_subscribers_see_nothing_that_vanishes(
    new_broker: Callable[..., BrokerProcess], folder: Path
) -> None:
    """T-10: 4 writer processes, 2 subscriber processes, and settings that change from start to start."""
    chance = random.Random(SEED)
    broker = new_broker()
    writers = [folder / f"writer{i}" for i in range(4)]
    subscribers = {folder / "everything": "", folder / "category": "shared"}
    broker.start()
    with (
        process("append", broker.endpoint, str(writers[0]), "w0", str(SEED)) as w0,
        process("append", broker.endpoint, str(writers[1]), "w1", str(SEED + 1)) as w1,
        process("append", broker.endpoint, str(writers[2]), "w2", str(SEED + 2)) as w2,
        process("append", broker.endpoint, str(writers[3]), "w3", str(SEED + 3)) as w3,
        process("subscribe", broker.endpoint, str(folder / "everything"), "") as s0,
        process("subscribe", broker.endpoint, str(folder / "category"), "shared") as s1,
    ):
        assert until(lambda: all(path.exists() for path in writers), 20)
        for _ in range(ROUNDS):
            # The one sleep that is meant: how long this life lasts is the dice's business.
            time.sleep(chance.uniform(0.02, 1.2))
            broker.kill()
            broker._environment = chance.choice(SETTINGS)
            if chance.random() < 0.3:
                # Killed while it starts: in recovery, or before it.
                broker.start(ready=False)
                time.sleep(chance.uniform(0.0, 0.4))
                broker.kill()
            broker.start()
        for child in (w0, w1, w2, w3):
            end(child, 60)
        with Client(broker.endpoint, timeout=30.0) as client:
            log = list(client.read_all())
            last = {path: [e for e in log if e.stream.startswith(name)][-1] for path, name in subscribers.items()}
            for path, event in last.items():
                assert until(
                    lambda path=path, event=event: f'"position": {event.position},' in path.read_text()[-100_000:], 30
                ), f"seed {SEED}: {path.name} does not come to position {event.position}"
            for child in (s0, s1):
                end(child, 20)
        assert broker.stop() == 0
    verdict = judge(log, writers, subscribers)
    assert not verdict.faults, f"seed {SEED}: {verdict.faults}"
    assert verdict.acknowledged > 20 * ROUNDS, verdict
    assert verdict.seen > verdict.events
    assert any(row["what"] == "ack" for path in writers for row in lines(path)[-50:])
    proof = subprocess.run([sys.executable, READER, broker.data], capture_output=True, timeout=120)
    assert proof.returncode == 0, proof.stderr.decode()
    assert len(proof.stdout.splitlines()) >= len(log)
