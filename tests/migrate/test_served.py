"""A migrated log in use: a real broker serves it, clients read it in every way and go on with it."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from migrate.any_log import logs
from migrate.seed import Appends, Given, Seed, Wanted, grown, large
from support.process import BrokerProcess
from tidelog import Client, DuplicateEventId, Event, Recorded, StreamNotFound, WrongExpectedVersion
from tidelog_broker.migrate import migrate


def served(folder: Path, seed: Seed) -> BrokerProcess:
    """A running broker on the migrated log."""
    source = folder / "events.db"
    source.write_bytes(seed.bytes)
    broker = BrokerProcess(folder)
    migrate(source, broker.data)
    broker.start()
    return broker


def same(event: Recorded) -> Wanted:
    return Wanted(
        event.position,
        event.stream,
        event.version,
        event.type,
        event.metadata,
        event.payload,
        event.id,
        event.recorded_at,
    )


def check_reads(client: Client, seed: Seed) -> None:
    """Every way to read gives the source's events."""
    wanted = seed.events()
    assert client.head() == len(wanted)
    assert list(map(same, client.read_all())) == wanted
    assert list(map(same, client.read_all(backwards=True))) == wanted[::-1]
    streams: defaultdict[str, list[Wanted]] = defaultdict(list)
    for event in wanted:
        streams[event.stream].append(event)
    assert [(row.stream, row.last_version) for row in client.list_streams()] == [
        (name, len(streams[name]) - 1) for name in sorted(streams)
    ]
    for name, expected in streams.items():
        assert list(map(same, client.read_stream(name))) == expected
        assert list(map(same, client.read_stream(name, backwards=True))) == expected[::-1]
        assert list(map(same, client.read_stream(name, 1, 3))) == expected[1:3]
        assert list(map(same, client.read_stream(UUID(name), limit=2, backwards=True))) == expected[:-3:-1]
    for start in range(0, len(wanted), max(1, len(wanted) // 7)):
        assert list(map(same, client.read_all(start, start + 5))) == wanted[start : start + 5]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_migrated_log_is_read_subscribed_to_and_appended_to(folder: Path, version: int) -> None:
    seed = large(version, events=3_000, streams=8)
    broker = served(folder, seed)
    try:
        with Client(broker.endpoint, timeout=20.0) as client:
            check_reads(client, seed)
            last = seed.events()[-1]
            with client.subscribe(start=0) as everything, client.subscribe(last.stream) as one:
                with pytest.raises(WrongExpectedVersion):
                    client.append(last.stream, Event("more"), last.version - 1)
                done = client.append(last.stream, Event("more"), last.version)
                assert (done.first_position, done.first_version) == (len(seed.events()), last.version + 1)
                assert [same(next(everything)) for _ in seed.events()] == seed.events()
                assert next(everything).type == "more"
                mine = [event for event in seed.events() if event.stream == last.stream]
                assert [same(next(one)) for _ in mine] == mine
                assert next(one).type == "more"
            assert next(iter(client.read_all(len(seed.events())))).recorded_at > last.recorded_at
            # The newest ids are known, as they are behind any restart.
            with pytest.raises(DuplicateEventId):
                client.append(last.stream, Event("again", id=last.id))
        broker.kill()
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            assert client.head() == len(seed.events()) + 1
        assert broker.stop() == 0
        assert broker.stderr() == ""
    finally:
        broker.close()


def test_a_log_whose_event_ids_stand_twice_is_served(folder: Path) -> None:
    """EventfoldDB did not forbid it; what is there is kept, and a broker knows the id all the same."""
    one, two = b"1" * 16, b"2" * 16
    ids = [b"i" * 16, b"j" * 16]
    seed = Seed(2)
    for number in range(400):
        seed.append(0, [Given(one, ids[number % 2]), Given(two, ids[0]), Given(one, ids[1])])
    broker = served(folder, seed)
    try:
        for _ in range(2):
            with Client(broker.endpoint, timeout=20.0) as client:
                check_reads(client, seed)
                with pytest.raises(DuplicateEventId):
                    client.append("s", Event("t", id=UUID(bytes=ids[0])))
                with pytest.raises(StreamNotFound):
                    list(client.read_stream("s"))
            broker.kill()
            broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            client.append("s", Event("t"))
    finally:
        broker.close()


@given(logs())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_log_comes_out_of_a_broker_as_it_went_into_the_file(appends: Appends) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tl-"))
    seed = grown(3, appends)
    broker = served(folder, seed)
    try:
        with Client(broker.endpoint, timeout=20.0) as client:
            check_reads(client, seed)
    finally:
        broker.close()
        shutil.rmtree(folder)
