"""Fixtures that every part of the tests shares."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support.process import BrokerProcess
from tidelog import Client


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: an ipc socket's has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="tl-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start_broker(folder: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """start_broker(*flags) → a running broker; every one is ended with the test."""
    started: list[BrokerProcess] = []

    def start(*flags: str, environment: dict[str, str] | None = None) -> BrokerProcess:
        place = folder / str(len(started))
        place.mkdir()
        broker = BrokerProcess(place, *flags, environment=environment)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.close()


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker with default settings."""
    return start_broker()


@pytest.fixture(scope="module")
def shared() -> Iterator[BrokerProcess]:
    """One broker for a module's tests, which use streams of their own and leave it running."""
    place = Path(tempfile.mkdtemp(prefix="tl-"))
    broker = BrokerProcess(place)
    broker.start()
    yield broker
    broker.close()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def client(shared: BrokerProcess) -> Iterator[Client]:
    """A client of the shared broker."""
    with Client(shared.endpoint, timeout=20.0) as client:
        yield client


@pytest.fixture
def stream() -> str:
    """A name that nobody else uses."""
    return f"s{uuid4().hex}/1"
