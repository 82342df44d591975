"""Many streams, many bytes (spec §9): listed in pages, read in pages, without the broker's memory growing with them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from e2e.raw_client import RawClient
from support.process import BrokerProcess
from tidelog import NO_STREAM, Client, Event, Write

STREAMS = 100_000


def peak_kib(pid: int) -> int:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1])


def name_of(number: int) -> str:
    """Some in categories, some not, some beyond ASCII: their order is that of their UTF-8 bytes."""
    return f"{('plain-', 'c/', 'ü/', '🌊/', 'd/x/')[number % 5]}{number * 7919 % STREAMS}"


def test_100_000_streams_are_listed_in_pages_sorted_with_right_versions(broker: BrokerProcess) -> None:
    """T-29, and the same after a kill."""
    names = [name_of(number) for number in range(STREAMS)]
    assert len(set(names)) == STREAMS
    with Client(broker.endpoint, timeout=60.0) as client:
        for at in range(0, STREAMS, 4_000):
            client.append_many([Write(name, [Event("a")], NO_STREAM) for name in names[at : at + 4_000]])
        for at in range(0, STREAMS, 10):
            client.append_nowait(names[at], [Event("a"), Event("b")])
        assert client.head(wait_for=STREAMS + STREAMS // 5 - 1) == STREAMS + STREAMS // 5
        for life in range(2):
            rows = list(client.list_streams())
            assert [row.stream for row in rows] == sorted(names, key=str.encode)
            listed = {row.stream: row for row in rows}
            for at in range(0, STREAMS, 997):
                row = listed[names[at]]
                assert (row.last_version, row.deleted) == (2 if at % 10 == 0 else 0, False)
                info = client.stream_info(names[at])
                assert (info.last_version, info.last_position) == (row.last_version, row.last_position)
            assert sum(row.last_version + 1 for row in rows) == client.head()
            assert max(row.last_position for row in rows) == client.head() - 1
            for prefix in ("c/", "ü/", "🌊/1", "d/x/99", "plain-9999", "c/7919", "zzz", "\U0010ffff"):
                expected = sorted((name for name in names if name.startswith(prefix)), key=str.encode)
                assert [row.stream for row in client.list_streams(prefix)] == expected
            assert client.info()["streams"] == STREAMS
            with closing(RawClient(broker.endpoint)) as raw:
                more, page = raw.list_streams()
                assert (more, len(page)) == (True, 1_000)
                more, page = raw.list_streams(limit=2**63 - 1)
                assert (more, len(page)) == (True, 1_000)
                after = listed[sorted(names, key=str.encode)[-1]].stream
                assert raw.list_streams(after=after) == [False, []]
            if life == 0:
                broker.kill()
                broker.start()


def test_a_log_larger_than_the_brokers_memory_is_read_whole_while_appends_go_on(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """T-28, small: 384 MiB of log, and a broker that never has 200 MiB."""
    broker = start_broker(environment={"TIDELOG_SEGMENT_BYTES": str(64 << 20)})
    over = threading.Event()
    appended = [0]
    written = hashlib.sha256()
    with Client(broker.endpoint, timeout=60.0) as client:
        for number in range(64):
            payloads = [bytes([number, i % 256]) * 32_000 for i in range(96)]
            for payload in payloads:
                written.update(payload)
            client.append(f"big/{number % 4}", [Event("a", payload) for payload in payloads])
        size = sum(path.stat().st_size for path in broker.data.glob("0*-*"))
        assert size > 370 << 20
        end = client.head()

        def write() -> None:
            with Client(broker.endpoint, timeout=30.0) as other:
                while not over.is_set():
                    other.append("meanwhile", Event("a"))
                    appended[0] += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            read, count = hashlib.sha256(), 0
            for recorded in client.read_all(stop=end, limit=2**63 - 1):
                assert recorded.position == count
                count += 1
                read.update(recorded.payload)
            assert (count, read.digest()) == (end, written.digest())
            for recorded in client.read_all(stop=end, limit=2**63 - 1, backwards=True):
                count -= 1
                assert recorded.position == count
            assert count == 0
            assert sum(1 for _ in client.read_category("big", types=["a"])) == end
        finally:
            over.set()
            thread.join(30)
        assert appended[0] > 50
        assert peak_kib(broker.pid) < 200 << 10
        broker.kill()
        broker.start()
        assert client.head() == end + appended[0]
        assert peak_kib(broker.pid) < 200 << 10
