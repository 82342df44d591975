"""No room on disk (T-11): a definite StorageFull, reads go on, appends return with the room, nothing acknowledged is lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgpack
import pytest
from e2e.raw_client import RawClient, event
from support.fault_phases import LastWordClient
from support.independent import SCRIPT
from support.process import BrokerProcess, until
from support.strace import Attached
from tidelog import Client, Event, OutcomeUnknown, StorageFull, TidelogError, WrongExpectedVersion

EXIT_IO, EXIT_FULL = 74, 75

SMALL = {"zero_step": 65_536, "prepare_ahead": 65_536}


@pytest.fixture
def broker(new_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker without idle marks: its first sync from now on is the next group's."""
    made = new_broker(idle_mark_ms=3_600_000)
    made.start()
    return made


def segment(broker: BrokerProcess) -> Path:
    return max(broker.data.glob("0*-*"))


def end_of(broker: BrokerProcess) -> int:
    """Where the log ends in its open segment: behind it there are only zeros."""
    return len(segment(broker).read_bytes().rstrip(b"\0"))


def limit_file_size(broker: BrokerProcess, size: int) -> None:
    hard = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))


def whole(broker: BrokerProcess) -> None:
    """The independent reader finds nothing wrong with a log that was stopped."""
    proof = subprocess.run([sys.executable, SCRIPT, broker.data], capture_output=True, timeout=60)
    assert proof.returncode == 0, proof.stderr.decode()


def append_until_full(client: Client, payloads: list[bytes], size: int, most: int) -> int:
    """Append until there is no room; what was acknowledged is added to `payloads`. How many were."""
    before = len(payloads)
    for _ in range(most):
        payload = os.urandom(size)
        try:
            client.append("s", Event("a", payload))
        except StorageFull as error:
            assert error.retryable  # noqa: PT017  (the loop is left here)
            assert not error.maybe_applied  # noqa: PT017
            return len(payloads) - before
        payloads.append(payload)
    raise AssertionError("the disk never was full")


def appends_again(client: Client, payload: bytes) -> bool:
    try:
        client.append("s", Event("a", payload))
    except StorageFull:
        return False
    return True


def read(client: Client) -> list[bytes]:
    return [found.payload for found in client.read_stream("s")]


@pytest.mark.parametrize("ends", ["killed", "stopped"])
def test_when_room_runs_out_while_preparing_appends_are_refused_reads_go_on_and_room_brings_them_back(
    new_broker: Callable[..., BrokerProcess], ends: str
) -> None:
    """T-11 with RLIMIT_FSIZE"""
    broker = new_broker(**SMALL)
    broker.start()
    kept: list[bytes] = [b"first"]
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", kept[0]))
        for _ in range(2):
            limit_file_size(broker, segment(broker).stat().st_size + 10_000)
            append_until_full(client, kept, 7_000, 100)
            for _ in range(5):
                with pytest.raises(StorageFull):
                    client.append("s", Event("a", bytes(60_000)))
            assert read(client) == kept
            assert client.head() == len(kept)
            with pytest.raises(WrongExpectedVersion):
                client.append("s", Event("a"), 10**6)
            health = client.health()
            assert (health.live, health.ready, health.head) == (True, False, len(kept))
            assert "full" in health.reason
            limit_file_size(broker, -1)
            kept.append(b"room")
            assert until(lambda: appends_again(client, b"room"), 10)
            assert until(lambda: client.health().ready, 5)
        assert read(client) == kept
    if ends == "killed":
        broker.kill()
    else:
        assert broker.stop() == 0
        whole(broker)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert read(client) == kept
    assert "torn tail" not in broker.stderr()


@pytest.mark.parametrize("room", [0, 1, 63, 64, 100, 3_000])
def test_a_write_cut_short_inside_a_group_is_taken_back_and_told_to_all_its_callers(
    new_broker: Callable[..., BrokerProcess], room: int
) -> None:
    """T-11: the limit lies inside the space that was prepared, so the group's own write is short."""
    broker = new_broker(idle_mark_ms=3_600_000, **SMALL)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client, closing(RawClient(broker.endpoint)) as raw:
        for i in range(3):
            client.append("s", Event("a", b"%d" % i))
        end = end_of(broker)
        before = segment(broker).read_bytes()[:end]
        limit_file_size(broker, end + room)
        # One message is one group: an append, its retry, a conflict with it, an overlap with its ids.
        first = raw.prepare(("t", False, [event("a", bytes(5_000))])).writes
        writes = [first, first, raw.prepare(("t", False, [event("a", b"")])).writes]
        raw.send([msgpack.packb([[3, 70 + i, 0, None, 0, None, None, row] for i, row in enumerate(writes)])])
        codes: list[int] = []
        while len(codes) < 3:
            message = raw.receive(10)
            assert message
            codes += [reply[1] for reply in message[0]]
        assert codes == [8, 8, 8]
        assert segment(broker).stat().st_size <= end + room
        assert segment(broker).read_bytes().rstrip(b"\0") == before
        assert [stream.stream for stream in client.list_streams()] == ["s"]
        assert client.head() == 3
        limit_file_size(broker, -1)
        assert until(lambda: appends_again(client, b"3"), 10)
        # Neither ids nor versions of what was taken back are remembered.
        reply = raw.call(3, 0, 0, 0, None, None, first)[0]
        assert reply[0] & 1 == 0
        assert reply[2:] == [4, 4, 0, 0]
    broker.kill()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert read(client) == [b"0", b"1", b"2", b"3"]
        assert client.head() == 5


@pytest.mark.parametrize(
    "rule", ["pwrite64:error=ENOSPC:when=1", "pwrite64:error=EDQUOT:when=1", "pwrite64:retval=70:when=1"]
)
def test_one_write_without_room_refuses_its_group_and_the_next_group_is_written(
    broker: BrokerProcess, rule: str
) -> None:
    """T-11, spec §6.5"""
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"0"))
        assert until(lambda: segment(broker).stat().st_size >= 8 << 20)
        generation = client.append("s", Event("a", b"1")).generation
        with Attached(broker, rule):
            with pytest.raises(StorageFull):
                client.append("s", Event("a", b"refused"))
            done = client.append("s", Event("a", b"2"))
            assert done.first_version == 2
            assert done.generation > generation
        assert read(client) == [b"0", b"1", b"2"]
    assert broker.stop() == 0
    whole(broker)


def test_when_taking_back_fails_the_outcome_is_unknown_and_the_broker_ends_with_74(broker: BrokerProcess) -> None:
    """T-57, spec §6.5: only when the sync of the rollback succeeded is it StorageFull."""
    with closing(LastWordClient(broker.endpoint)) as raw:
        raw.append(("s", None, [event("a", b"0")]))
        with Attached(broker, "pwrite64:error=ENOSPC:when=1", "fsync:error=EIO:when=1"):
            raw.send_append(raw.prepare(("s", None, [event("a", b"1")])))
            told = raw.receive(10)
            assert told
            assert told[0][0][1] == OutcomeUnknown.code
            assert broker.wait() == EXIT_IO
    assert len(broker.stderr().strip().splitlines()) == 1
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert read(client) == [b"0"]


class Disk:
    """A small file system of its own, with a file that takes its room away."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.path = broker.data
        self.ballast = broker.data / "run" / "ballast"  # the one folder that is no part of the log
        self.ballast.parent.mkdir()

    def free(self) -> int:
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def leave(self, room: int) -> None:
        """Take all room but so many bytes."""
        with self.ballast.open("ab") as file:
            while self.free() > room:
                file.write(bytes(min(self.free() - room, 1 << 20)))
                file.flush()

    def give_back(self) -> None:
        self.ballast.unlink()


@contextmanager
def small_disk(broker: BrokerProcess, size: int) -> Iterator[Disk]:
    broker.data.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tidelog-test", broker.data], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(broker)
    finally:
        broker.close()
        subprocess.run(["umount", broker.data], check=True, timeout=20)


@pytest.mark.parametrize("ends", ["killed", "stopped"])
def test_a_full_file_system_refuses_appends_and_everything_acknowledged_outlives_it(
    new_broker: Callable[..., BrokerProcess], ends: str
) -> None:
    """T-11 with a small tmpfs: filled to the last block over several segments, twice."""
    broker = new_broker(segment_bytes=1 << 20, **SMALL)
    kept: list[bytes] = []
    with small_disk(broker, 6 << 20) as disk:
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            disk.leave(3 << 20)
            assert append_until_full(client, kept, 20_000, 400) > 50
            assert read(client) == kept
            assert client.info()["segments"] >= 2
            assert "full" in client.health().reason
            disk.give_back()
            kept.append(b"room")
            assert until(lambda: appends_again(client, b"room"), 10)
            assert until(lambda: client.health().ready, 5)
            append_until_full(client, kept, 20_000, 400)
            for size in (60_000, 10_000, 1_000, 1):
                try:
                    client.append("s", Event("a", payload := os.urandom(size)))
                    kept.append(payload)
                except StorageFull:
                    pass  # either answer is right, if it stays true
            assert read(client) == kept
        if ends == "killed":
            broker.kill()
        else:
            assert broker.stop() == 0
            whole(broker)
        # A start needs a step of zeros and new marks: without room it says so, changes nothing, and can be repeated.
        if disk.free():
            disk.leave(0)
        broker.start(ready=False)
        if until(lambda: not broker.running, 5):
            assert broker.wait() == EXIT_FULL, broker.stderr()
        else:
            broker.kill()
        disk.leave(0)
        disk.ballast.unlink()
        larger = subprocess.run(["mount", "-o", f"remount,size={9 << 20}", broker.data], capture_output=True)
        assert larger.returncode == 0
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            assert read(client) == kept
            client.append("s", Event("a", b"on"))


def test_a_start_without_room_ends_with_75_and_loses_nothing(new_broker: Callable[..., BrokerProcess]) -> None:
    """T-11, spec §16: full at start, of a new log and of one that is there."""
    broker = new_broker()
    with small_disk(broker, 12 << 20) as disk:
        for kept in ([], [b"kept"]):
            disk.leave(0)
            broker.start(ready=False)
            assert until(lambda: not broker.running, 10), (disk.free(), sorted(disk.path.iterdir()), broker.stderr())
            assert broker.wait() == EXIT_FULL, broker.stderr()
            assert len(broker.stderr().strip().splitlines()) == 1, broker.stderr()
            broker.errors.unlink()
            disk.give_back()
            broker.start()
            with Client(broker.endpoint, timeout=20.0) as client:
                assert [found.payload for found in client.read_all()] == kept
                client.append("s", Event("a", b"kept"))
            # A clean stop leaves no prepared space that the next start could live on.
            assert broker.stop() == 0


def spares(broker: BrokerProcess) -> list[str]:
    """Open descriptors of spares, unlinked ones too."""
    links = []
    for entry in Path(f"/proc/{broker.pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:
            pass  # closed meanwhile
    return [link for link in links if "spare" in link]


def test_while_the_next_segment_cannot_be_prepared_nothing_is_held_and_the_room_is_found_when_it_returns(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    """T-11: each vain try gives back its room and its descriptor, and a broker whose room is back is ready again."""
    broker = new_broker(segment_bytes=1 << 20, zero_step=65_536, prepare_ahead=1 << 20)
    with small_disk(broker, 6 << 20) as disk, Client(broker.endpoint, timeout=20.0) as client:
        broker.start()
        client.append("s", [Event("a", bytes(60_000)) for _ in range(7)])
        assert until(lambda: segment(broker).stat().st_size >= 1 << 20)
        # Everything up to this segment's end is prepared; only the spare finds no room.
        disk.leave(40_960)
        client.append("s", [Event("a", bytes(60_000)) for _ in range(3)])
        assert until(lambda: "full" in client.health().reason, 5)
        # Two more tries, a second apart: seen by the clock, for nothing may change.
        time.sleep(2.5)
        assert len(spares(broker)) <= 1
        assert disk.free() == 40_960
        disk.give_back()
        assert until(lambda: client.health().ready, 5), client.health()
        assert len(list(client.read_all())) == 10


def test_a_smaller_largest_group_holds_from_the_next_segment_on(new_broker: Callable[..., BrokerProcess]) -> None:
    """Spec §6.2: a group is at most what its own segment's header says, whatever segment was open at the start."""
    broker = new_broker(segment_bytes=1 << 20)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"0"))
    broker.kill()
    broker._environment["TIDELOG_GROUP_BYTES_MAX"] = str(1 << 20)
    broker.start()
    acknowledged = 1
    with Client(broker.endpoint, timeout=20.0) as client:
        for _ in range(20):
            client.append("s", Event("a", bytes(60_000)))
            acknowledged += 1
        try:
            client.append("s", [Event("a", bytes(60_000)) for _ in range(40)])
            acknowledged += 40
        except TidelogError as error:
            assert not error.maybe_applied  # noqa: PT017  (either answer is right, if it stays true)
    broker.kill()
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        assert client.head() == acknowledged
