"""One broker for a module: tests use streams of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support.process import BrokerProcess
from tidelog import Client


@pytest.fixture(scope="module")
def shared() -> Iterator[BrokerProcess]:
    place = Path(tempfile.mkdtemp(prefix="tl-"))
    broker = BrokerProcess(place)
    broker.start()
    yield broker
    broker.close()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def client(shared: BrokerProcess) -> Iterator[Client]:
    with Client(shared.endpoint, timeout=20.0) as client:
        yield client


@pytest.fixture
def stream() -> str:
    """A name that nobody else uses."""
    return f"s{uuid4().hex}/1"
