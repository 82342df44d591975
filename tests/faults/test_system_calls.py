"""What the broker asks of the kernel, and in which order (T-14), seen by strace."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from e2e.raw_client import RawClient
from support.process import BrokerProcess, until
from support.strace import Seen, need_strace, parse
from tidelog import Client, Event

TRACED = "openat,rename,renameat,renameat2,unlinkat,pwrite64,fdatasync,fsync,ftruncate,sendto,sendmsg,write,fadvise64"
SEGMENT = re.compile(r"/data/\d{10}-\d{20}>")
DIRECTORY = re.compile(r"^\d+<[^>]*/data>")


@pytest.fixture
def traced(new_broker: Callable[..., BrokerProcess]) -> Callable[..., BrokerProcess]:
    """Start a broker under strace from its first call on; the pid stays the broker's."""

    def start(**settings: object) -> BrokerProcess:
        broker = new_broker(**settings)
        again(broker)
        return broker

    return start


def again(broker: BrokerProcess) -> Path:
    output = broker.errors.with_name("trace")
    output.unlink(missing_ok=True)
    broker.start(wrapper=(need_strace(), "-D", "-f", "-y", "-o", str(output), "-e", f"trace={TRACED}"))
    return output


def trace_of(broker: BrokerProcess) -> list[Seen]:
    output = broker.errors.with_name("trace")
    # The tracer is no child of ours: it has written all when it says that the process has gone.
    gone = re.compile(rf"^{broker.pid} +\+\+\+", re.MULTILINE)  # strace pads a short pid
    assert until(lambda: gone.search(output.read_text(errors="replace")) is not None, 20)
    return parse(output)


def ends(seen: list[Seen], start: int, match: Callable[[Seen], bool]) -> int:
    """The place where the first matching call behind `start` has returned."""
    for place in range(start, len(seen)):
        if match(seen[place]) and seen[place].began:
            if seen[place].ended:
                return place
            thread, call = seen[place].thread, seen[place].call
            return next(at for at in range(place + 1, len(seen)) if (seen[at].thread, seen[at].call) == (thread, call))
    raise AssertionError("there is no such call")


def is_call(call: str, pattern: str) -> Callable[[Seen], bool]:
    return lambda one: one.call == call and re.search(pattern, one.text) is not None


def test_creation_syncs_each_file_before_the_directory_and_the_directory_before_and_behind_each_rename(
    traced: Callable[..., BrokerProcess],
) -> None:
    """T-14, spec §6.3 and §6.4: marks with both slots first, then the first segment out of a synced spare."""
    broker = traced()
    assert broker.stop() == 0
    seen = trace_of(broker)
    at = -1
    for what, call, pattern in [
        ("marks.tmp is made", "openat", r'"marks\.tmp", .*O_CREAT\|O_EXCL'),
        ("both slots are written", "pwrite64", r"marks\.tmp>.* 8192, 0\)"),
        ("it is synced", "fsync", r"marks\.tmp>"),
        ("its name is synced", "fsync", r"^\d+<[^>]*/data>"),
        ("it is renamed", "renameat", r'"marks\.tmp".*"marks"'),
        ("the rename is synced", "fsync", r"^\d+<[^>]*/data>"),
        ("the spare is made", "openat", r'"spare", .*O_CREAT\|O_EXCL'),
        ("it is zeroed", "pwrite64", r"/spare>"),
        ("it is synced", "fsync", r"/spare>"),
        ("its name is synced", "fsync", r"^\d+<[^>]*/data>"),
        ("the header is written", "pwrite64", r'/spare>, "TideSeg'),
        ("it is synced", "fsync", r"/spare>"),
        ("it is renamed", "renameat", r'"spare".*"0000000001-'),
        ("the rename is synced", "fsync", r"^\d+<[^>]*/data>"),
        ("a mark names it", "pwrite64", r"marks\.tmp>.* 8192, 0\)"),
        ("the mark is synced", "fsync", r"marks\.tmp>"),
    ]:
        try:
            at = ends(seen, at + 1, is_call(call, pattern))
        except AssertionError:
            raise AssertionError(f"not in this order: {what} ({call} {pattern})") from None
    # The parent's entry for the directory is durable too.
    assert any(is_call("fsync", rf"^\d+<{broker.data.parent}>")(one) for one in seen)


def test_an_acknowledgement_and_its_publication_leave_behind_the_sync_with_one_write_and_one_sync_a_group(
    traced: Callable[..., BrokerProcess],
) -> None:
    """T-14"""
    broker = traced(idle_mark_ms=3_600_000, heartbeat_ms=60_000)
    count = 20
    with (
        Client(broker.endpoint, timeout=30.0) as client,
        closing(RawClient(broker.endpoint, 30.0)) as raw,
        closing(raw.subscribe()) as everything,
    ):
        assert everything.poll(10_000)
        before = client.info()
        for i in range(count):
            client.append("s", Event("a", b"acknowledged %d" % i))
        after = client.info()
    assert after["groups"] - before["groups"] == count
    assert after["syncs"] - before["syncs"] == count
    broker.kill()
    seen = trace_of(broker)
    main = broker.pid
    writes = [
        place
        for place, one in enumerate(seen)
        if one.thread == main and one.call == "pwrite64" and one.began and '"TLGR' in one.text
    ]
    assert len(writes) == count
    syncs = [
        one for one in seen if one.thread == main and one.call == "fdatasync" and one.began and SEGMENT.search(one.text)
    ]
    assert len(syncs) == count
    for place, stop in zip(writes, [*writes[1:], len(seen)], strict=True):
        synced = ends(seen, place, lambda one: one.thread == main and one.call == "fdatasync")
        assert synced < stop
        between = [one for one in seen[place:synced] if is_to_a_socket(one)]
        assert not between, f"sent before the sync returned: {between}"
        sent = [one for one in seen[synced:stop] if is_to_a_socket(one)]
        assert len(sent) >= 2, "neither acknowledged nor published behind the sync"
        others = [one for one in seen[place:synced] if one.thread == main and one.call in ("pwrite64", "fdatasync")]
        assert sum(one.began for one in others) <= 2, "more than one write and one sync"


def is_to_a_socket(one: Seen) -> bool:
    return one.call in ("sendto", "sendmsg", "write") and one.began and bool(re.match(r"\d+<(UNIX|socket)", one.text))


def test_appends_that_wait_together_take_one_write_and_one_sync(traced: Callable[..., BrokerProcess]) -> None:
    """T-14: a hundred appends of eight connections, one group or few."""
    broker = traced(idle_mark_ms=3_600_000)
    clients = [Client(broker.endpoint, timeout=30.0) for _ in range(8)]
    try:
        for client in clients:
            client.head()
        before = clients[0].info()["groups"]
        broker.signal(signal.SIGSTOP)
        calls = []
        try:
            for client in clients:
                calls += [client.append_nowait("s", Event("a", b"%d" % i)) for i in range(12)]
                client._link.push()
        finally:
            broker.signal(signal.SIGCONT)
        assert sorted(call.result().first_position for call in calls) == list(range(96))
        groups = clients[0].info()["groups"] - before
    finally:
        for client in clients:
            client.close()
    broker.kill()
    seen = trace_of(broker)
    mine = [one for one in seen if one.thread == broker.pid and one.began]
    assert sum(one.call == "pwrite64" and '"TLGR' in one.text for one in mine) == groups
    assert sum(one.call == "fdatasync" and bool(SEGMENT.search(one.text)) for one in mine) == groups
    assert groups <= 24


def test_strict_writes_and_syncs_a_mark_before_every_acknowledgement(traced: Callable[..., BrokerProcess]) -> None:
    """T-14, spec §6.4"""
    broker = traced(strict=1)
    with Client(broker.endpoint, timeout=30.0) as client:
        for i in range(5):
            client.append("s", Event("a", b"%d" % i))
    broker.kill()
    seen = trace_of(broker)
    at = -1
    for _ in range(5):
        for call, pattern in [("pwrite64", '"TLGR'), ("fdatasync", SEGMENT.pattern), ("pwrite64", "TideMrk")]:
            at = ends(seen, at + 1, is_call(call, pattern))
        synced = ends(seen, at + 1, is_call("fdatasync", "/marks>"))
        assert not [one for one in seen[at:synced] if is_to_a_socket(one)]
        at = synced


def test_a_start_syncs_and_forgets_every_file_before_it_judges_and_writes_zeros_and_marks_before_it_serves(
    traced: Callable[..., BrokerProcess],
) -> None:
    """T-14, spec §8"""
    broker = traced()
    with Client(broker.endpoint, timeout=30.0) as client:
        client.append("s", Event("a"))
    broker.kill()
    again(broker)
    assert broker.stop() == 0
    seen = trace_of(broker)
    at = -1
    for call, pattern in [
        ("fsync", SEGMENT.pattern),
        ("fadvise64", SEGMENT.pattern + ".*DONTNEED"),
        ("fsync", r"/marks>"),
        ("fadvise64", r"/marks>.*DONTNEED"),
        ("fsync", DIRECTORY.pattern),
        ("ftruncate", SEGMENT.pattern),
        ("pwrite64", SEGMENT.pattern + r', "\\0\\0'),
        ("fsync", SEGMENT.pattern),
        ("fsync", DIRECTORY.pattern),
        ("pwrite64", r"marks\.tmp>"),
        ("fsync", r"marks\.tmp>"),
        ("renameat", r'"marks\.tmp"'),
        ("fsync", DIRECTORY.pattern),
        ("write", r'"ready '),
    ]:
        try:
            at = ends(seen, at + 1, is_call(call, pattern))
        except AssertionError:
            raise AssertionError(f"not in this order: {call} {pattern}") from None


def test_a_roll_seals_syncs_renames_and_marks_before_the_first_group_of_the_next_segment(
    traced: Callable[..., BrokerProcess],
) -> None:
    """T-14, spec §6.3"""
    broker = traced(segment_bytes=1 << 20)
    with Client(broker.endpoint, timeout=30.0) as client:
        for _ in range(30):
            client.append("s", Event("a", bytes(60_000)))
        assert client.info()["segments"] >= 2
    broker.kill()
    seen = trace_of(broker)
    main = [one for one in seen if one.thread == broker.pid]
    at = -1
    for call, pattern in [
        ("pwrite64", r'0000000001-\d+>, "TLSL'),
        ("ftruncate", r"0000000001-\d+>"),
        ("fsync", r"0000000001-\d+>"),
        ("pwrite64", r'/spare>, "TideSeg'),
        ("fsync", r"/spare>"),
        ("renameat", r'"spare".*"0000000002-'),
        ("fsync", DIRECTORY.pattern),
        ("pwrite64", r"/marks>.*TideMrk"),
        ("fdatasync", r"/marks>"),
        ("pwrite64", r'0000000002-\d+>, "TLGR'),
    ]:
        try:
            at = ends(main, at + 1, is_call(call, pattern))
        except AssertionError:
            raise AssertionError(f"not in this order: {call} {pattern}") from None
