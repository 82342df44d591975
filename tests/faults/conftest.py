"""Brokers that a test starts itself, as often and in whatever way it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.process import BrokerProcess


@pytest.fixture
def new_broker(folder: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """new_broker(NAME=value …) → a broker that is not started; the names are settings. Ended with the test."""
    made: list[BrokerProcess] = []

    def make(**settings: object) -> BrokerProcess:
        place = folder / f"new{len(made)}"
        place.mkdir()
        environment = {f"TIDELOG_{name.upper()}": str(value) for name, value in settings.items()}
        made.append(BrokerProcess(place, environment=environment))
        return made[-1]

    yield make
    for broker in made:
        broker.close()
