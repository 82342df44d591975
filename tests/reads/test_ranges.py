"""Reads and their ranges (spec §9): edges, order, both directions, wrong numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from e2e.raw_client import RawClient, Refused
from support.process import BrokerProcess
from tidelog import Client, Event, InvalidArgument, Recorded, StreamNotFound, Write

LARGEST = 2**63 - 1
Read = Callable[..., list[Recorded]]


def fill(client: Client, stream: str, count: int) -> int:
    """Append `count` events one by one; the first position."""
    rows = [client.append_nowait(stream, Event("a", b"%d" % i)) for i in range(count)]
    return rows[0].result().first_position if [row.result() for row in rows] else 0


def payloads(events: Any) -> list[bytes]:
    return [found.payload for found in events]


def test_a_stream_that_never_existed_is_not_found_and_a_category_without_events_is_empty(
    client: Client, stream: str
) -> None:
    """T-27"""
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"start": 0},
        {"start": LARGEST},
        {"limit": 0},
        {"backwards": True},
        {"types": ["a"]},
        {"types": []},
    )
    for options in cases:
        with pytest.raises(StreamNotFound) as missing:
            client.read_stream(stream, **options)
        assert missing.value.stream == stream
        assert list(client.read_category(stream.partition("/")[0], **options)) == []
    with pytest.raises(StreamNotFound):
        client.stream_info(stream)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_range_at_or_beyond_the_end_and_a_limit_of_0_are_empty(client: Client, stream: str, backwards: bool) -> None:
    """T-27"""
    first = fill(client, stream, 5)
    head = client.head()
    category = stream.partition("/")[0]
    reads: tuple[tuple[int, int, Read], ...] = (
        (0, 5, lambda **options: list(client.read_stream(stream, **options))),
        (first, head, lambda **options: list(client.read_all(**options))),
        (first, head, lambda **options: list(client.read_category(category, **options))),
    )
    for start, end, read in reads:

        def empty(read: Read = read, **options: Any) -> bool:
            return not read(backwards=backwards, **options)

        assert empty(start=end)
        assert empty(start=end + 1)
        assert empty(start=LARGEST)
        assert empty(start=end, stop=LARGEST)
        assert empty(limit=0)
        assert empty(start=start, limit=0)
        assert empty(start=start, stop=start)
        assert empty(start=start + 2, stop=start + 1)
        assert empty(stop=0)
        assert len(read(start=start, stop=LARGEST, limit=LARGEST, backwards=backwards)) == 5
        assert len(read(start=start + 4, backwards=backwards)) == 1


@pytest.mark.parametrize("number", [-1, 2**63, 2**64, 2**200, 1.5, "1"])
@pytest.mark.parametrize("name", ["start", "stop", "limit", "wait_for"])
def test_a_number_below_0_or_from_2_63_on_is_refused_by_library_and_broker(
    shared: BrokerProcess, client: Client, stream: str, name: str, number: Any
) -> None:
    """T-27"""
    fill(client, stream, 1)
    reads: tuple[Read, ...] = (
        lambda **options: list(client.read_stream(stream, **options)),
        lambda **options: list(client.read_all(**options)),
        lambda **options: list(client.read_category("c", **options)),
    )
    for read in reads:
        with pytest.raises(InvalidArgument):
            read(**{name: number})
    if isinstance(number, int) and number >= 2**64:
        return  # msgpack has no such integer
    for scope, target in ((0, ""), (1, "c"), (2, stream)):
        row: dict[str, Any] = {
            "start": None,
            "stop": None,
            "limit": None,
            "backwards": False,
            "types": None,
            "wait_for": None,
        }
        row[name] = number
        with closing(RawClient(shared.endpoint)) as raw:
            with pytest.raises(Refused) as refused:
                raw.call(4, 0, scope, target, *row.values())
            assert refused.value.code == 1


def test_interleaved_streams_come_in_position_order_and_each_alone(client: Client, stream: str) -> None:
    """T-51"""
    a, b, c = (f"{stream}{name}" for name in "ABC")
    first = client.head()
    for number, name in enumerate((a, b, a, c, b)):
        client.append(name, [Event("e", b"%d" % number), Event("f", b"%d" % number)])
    everything = list(client.read_all(first))
    assert [found.stream for found in everything] == [name for name in (a, b, a, c, b) for _ in "ef"]
    assert [found.position for found in everything] == list(range(first, first + 10))
    for name, numbers in ((a, b"0022"), (b, b"1144"), (c, b"33")):
        own = list(client.read_stream(name))
        assert [found.payload for found in own] == [bytes([number]) for number in numbers]
        assert [found.version for found in own] == list(range(len(numbers)))
        assert own == [found for found in everything if found.stream == name]
        assert list(client.read_stream(name, backwards=True)) == own[::-1]
    assert list(client.read_all(first, backwards=True)) == everything[::-1]
    category = stream.partition("/")[0]
    assert list(client.read_category(category)) == everything
    assert list(client.read_category(category, backwards=True)) == everything[::-1]


def model(
    events: list[Recorded], unit: int, start: int | None, stop: int | None, limit: int | None, backwards: bool,
    types: list[str] | None,
) -> list[Recorded]:  # fmt: skip
    """Spec §9 against a plain list."""
    found = [
        event for event in events
        if (start is None or event[unit] >= start) and (stop is None or event[unit] < stop)
        and (types is None or event.type in types)
    ]  # fmt: skip
    if backwards:
        found.reverse()
    return found if limit is None else found[:limit]


def test_random_reads_of_random_appends_are_what_a_plain_list_says(start_broker: Any) -> None:
    """T-27, T-51: pages end at every kind of place, for there are large appends, many small ones, and whole-log appends."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    broker = start_broker(environment={"TIDELOG_SEGMENT_BYTES": str(1 << 20)})
    with Client(broker.endpoint, timeout=20.0) as client:
        names = ["a/1", "a/2", "b/1", "plain"]
        for round_ in range(2):
            for _ in range(250):
                chosen = chance.sample(names, chance.randint(1, 4))
                size = chance.choice([0, 1, 100, 3_000, 60_000] if chance.random() < 0.2 else [0, 10, 200])
                client.append_many(
                    [
                        Write(name, [Event(chance.choice("xyz"), bytes(size)) for _ in range(chance.randint(1, 5))])
                        for name in chosen
                    ]
                )
            client.append_many([Write(name, [Event("x", bytes(60_000)) for _ in range(8)]) for name in names])
            everything = list(client.read_all())
            assert [event.position for event in everything] == list(range(client.head()))
            for _ in range(250):
                scope = chance.choice(["all", "a", "b", *names, "none"])
                own = [
                    event for event in everything
                    if scope in ("all", event.stream) or (scope in "ab" and event.stream.startswith(scope + "/"))
                ]  # fmt: skip
                unit = 2 if scope in names else 0
                top = max((event[unit] for event in own), default=0) + 3
                start = chance.choice([None, chance.randrange(top)])
                stop = chance.choice([None, chance.randrange(top), max(0, top - chance.randrange(6))])
                limit = chance.choice([None, None, 0, 1, 7, 300, LARGEST])
                types = chance.choice([None, None, ["x"], ["y", "z"], ["missing"], []])
                backwards = chance.random() < 0.5
                expected = model(own, unit, start, stop, limit, backwards, types)
                if scope in names:
                    found = list(client.read_stream(scope, start, stop, limit, backwards, types=types))
                else:
                    category = None if scope == "all" else scope
                    found = list(client.read_all(start, stop, limit, backwards, types, category))
                assert found == expected, (seed, scope, start, stop, limit, types, backwards)
            if round_ == 0:
                broker.kill()
                broker.start()


def test_an_append_larger_than_a_page_comes_whole_and_once(shared: BrokerProcess, client: Client, stream: str) -> None:
    """Spec §9: a page holds whole appends, at most 1 MiB or one larger append."""
    client.append(stream, Event("a", b"before"))
    client.append(stream, [Event("a", bytes([i]) * 60_000) for i in range(100)])
    client.append(stream, Event("a", b"behind"))
    expected = [b"before", *(bytes([i]) * 60_000 for i in range(100)), b"behind"]
    assert payloads(client.read_stream(stream)) == expected
    assert payloads(client.read_stream(stream, backwards=True)) == expected[::-1]
    assert payloads(client.read_stream(stream, start=50, stop=52)) == expected[50:52]
    with closing(RawClient(shared.endpoint)) as raw:
        pages = [(page.start, page.stop, len(page.events)) for page in raw.pages(2, stream)]
        # No page ends inside an append.
        assert {stop for _, stop, _ in pages} <= {1, 101, 102}
        assert sum(count for _, _, count in pages) == 102
