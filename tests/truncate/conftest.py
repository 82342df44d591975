"""A real broker with small segments, and a log to truncate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.process import BrokerProcess, until
from tidelog import Appended, Client, Event
from tidelog.link import Future

SEGMENT = 1 << 20
FLAGS = ("--segment-bytes", str(SEGMENT), "--zero-step", "65536", "--prepare-ahead", "131072")
PAD = 12_000
IN_FLIGHT = 32


@dataclass(slots=True)
class Filled:
    """What was acknowledged, in order: (stream, version, payload) by position, and where appends begin."""

    events: list[tuple[str, int, bytes]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def fill(self, client: Client, appends: int) -> None:
        """So many appends of two events: streams that go on, every tenth one that is never written again."""
        calls: deque[Future[Appended]] = deque()
        versions: dict[str, int] = {}
        for stream, _, _ in self.events:
            versions[stream] = versions.get(stream, 0) + 1
        for _ in range(appends):
            number = len(self.starts)
            stream = f"once/{number}" if number % 10 == 0 else f"c{number % 3}/{number % 7}"
            payloads = [b"%d " % number + bytes(PAD // 2), b"%d" % number]
            calls.append(client.append_nowait(stream, [Event("t", payload) for payload in payloads]))
            version = versions.get(stream, 0)
            versions[stream] = version + 2
            self.starts.append(len(self.events))
            self.events += [(stream, version + at, payload) for at, payload in enumerate(payloads)]
            if len(calls) >= IN_FLIGHT:
                calls.popleft().result()
        for call in calls:
            call.result()


@pytest.fixture
def small(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A broker whose segments are as small as they may be."""
    return start_broker(*FLAGS)


def cleared(broker: BrokerProcess, client: Client, first: int) -> bool:
    """Wait until all that a truncation emptied is gone from the disk."""

    def done() -> bool:
        names = sorted(path.name for path in broker.data.glob("0*"))
        bases = [path for path in broker.data.glob("base-*") if not path.name.endswith(".tmp")]
        return (len(names) == 1 or int(names[1][11:31]) > first) and len(bases) <= 1

    client.head()
    return until(done, 60.0, 0.02)


def size(broker: BrokerProcess) -> int:
    """Bytes of its segments."""
    return sum(path.stat().st_size for path in broker.data.glob("0*"))
