"""A group cut inside an append (T-48, T-5): its appends are whole or absent, and what is cut is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.process import BrokerProcess
from tidelog import NO_STREAM, Client, Event, Write


def stored_batches(path: Path) -> list[int]:
    """Offsets of the last group's batches (FORMAT.md §2.2, §3), and its end."""
    data = path.read_bytes()
    group = data.rindex(b"TLGR")
    length = int.from_bytes(data[group + 4 : group + 8], "little")
    at, places = group + 64, []
    while at < group + 64 + length:
        places.append(at)
        at += int.from_bytes(data[at + 4 : at + 8], "little")
    return [*places, at]


@pytest.mark.parametrize("how", ["cut", "zeroed"])
@pytest.mark.parametrize("place", ["between the batches", "inside the first", "inside the second", "inside the header"])
def test_an_append_to_two_streams_torn_between_its_batches_is_not_there_at_all(
    new_broker: Callable[..., BrokerProcess], how: str, place: str
) -> None:
    """T-48: not covered by a mark, as after a power cut between write and sync."""
    broker = new_broker(idle_mark_ms=3_600_000)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("one", Event("a", b"before"))
        client.append_many([Write("one", [Event("a", b"1")]), Write("two", [Event("a", b"2"), Event("a", b"3")])])
    broker.kill()
    (segment,) = broker.data.glob("0*-*")
    first, second, end = stored_batches(segment)
    at = {
        "between the batches": second,
        "inside the first": first + 30,
        "inside the second": end - 2,
        "inside the header": first - 10,
    }[place]
    with segment.open("r+b") as file:
        if how == "cut":
            file.truncate(at)
        else:
            file.seek(at)
            file.write(bytes(end - at))
    broker.start()
    assert "torn tail" in broker.stderr()
    assert len(list((broker.data / "quarantine").iterdir())) == 1
    with Client(broker.endpoint, timeout=20.0) as client:
        assert [(found.stream, found.payload) for found in client.read_all()] == [("one", b"before")]
        assert [row.stream for row in client.list_streams()] == ["one"]
        assert client.append("two", Event("a", b"again"), NO_STREAM)[:4] == (1, 1, 0, 0)
