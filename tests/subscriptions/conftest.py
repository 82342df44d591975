"""Fixtures of the subscription tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from subscriptions.helpers import Follower, Forwarder, Worker
from support.process import BrokerProcess
from tidelog import Client


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.endpoint, timeout=10.0) as made:
        yield made


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    """follow(client, pause=None, **subscribe options) → a Follower; each must stop by itself at the end."""
    started: list[Follower] = []

    def start(client: Client, pause: Callable[[], None] | None = None, **options: Any) -> Follower:
        follower = Follower(client.subscribe(**options), pause)
        started.append(follower)
        return follower

    yield start
    for follower in started:
        follower.subscription.stop()
    for follower in started:
        follower.end()


@pytest.fixture
def worker(folder: Path) -> Iterator[Callable[..., Worker]]:
    """worker(job, endpoint, **options) → a Worker process; every one is ended with the test."""
    started: list[Worker] = []

    def start(job: str, endpoint: str, **options: Any) -> Worker:
        made = Worker(folder, job, endpoint, **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.close()


@pytest.fixture
def forwarder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Forwarder]]:
    """forwarder(broker, choose) → between the broker and every subscription made after it."""
    started: list[Forwarder] = []

    def start(broker: BrokerProcess, choose: Callable[[bytes, bytes], Any]) -> Forwarder:
        made = Forwarder(folder, broker.endpoint + ".pub", choose)
        started.append(made)
        monkeypatch.setattr(
            "tidelog.subscription.choose_endpoints",
            lambda own, rows: (own, made.endpoint, own + ".health"),
        )
        return made

    yield start
    for made in started:
        made.close()
