"""Faults of a real file system and real system calls under a real broker: a device without room, power cuts, signals, hangs.

The rest of what can be had for real: test_full_disk.py (tmpfs, RLIMIT_FSIZE), test_failed_sync.py (errors of system calls).
"""

from __future__ import annotations

import array
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.process import BrokerProcess, until
from support.strace import Attached, need_strace
from tidelog import Client, Event, TidelogError

EXIT_IO = 74
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
SMALL = {"segment_bytes": 1 << 20, "zero_step": 65_536, "prepare_ahead": 65_536}
COMMAND_S = 60


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=COMMAND_S)


class Device:
    """A file system in a file, which lies on a tmpfs that can be filled: then it has room and its device has none."""

    def __init__(self, place: Path, kind: str) -> None:
        self.store = place / "store"
        self.image = self.store / "image"
        self.ballast = self.store / "ballast"
        self.kind = kind

    def make(self) -> str:
        """An error's text, or nothing."""
        self.store.mkdir()
        for program in (f"mkfs.{self.kind}", "mount", "umount"):
            if shutil.which(program) is None:
                return f"{program} is not installed"
        made = run("mount", "-t", "tmpfs", "-o", "size=64m", "tidelog-test", self.store)
        if made.returncode:
            return made.stderr.strip()
        with self.image.open("wb") as file:
            file.truncate(512 << 20)
        options = ["-E", "lazy_itable_init=1"] if self.kind == "ext4" else []
        return run(f"mkfs.{self.kind}", "-q", *options, self.image).stderr.strip()

    def mount(self, at: Path) -> str:
        at.mkdir(mode=0o700, exist_ok=True)
        mounted = run("mount", "-o", "loop", self.image, at)
        return mounted.stderr.strip() if mounted.returncode else ""

    def fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4_096):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass  # full

    def give_back(self) -> None:
        self.ballast.unlink()


@contextmanager
def device(broker: BrokerProcess, kind: str) -> Iterator[Device]:
    made = Device(broker.data.parent, kind)
    try:
        problem = made.make() or made.mount(broker.data)
        if problem:
            pytest.skip(f"a file system in a file can't be made here: {problem}")
        yield made
    finally:
        broker.close()
        for place in (broker.data, made.store):
            for _ in range(20):
                if not os.path.ismount(place) or run("umount", place).returncode == 0:
                    break


def read(broker: BrokerProcess) -> list[bytes]:
    with Client(broker.endpoint, timeout=20.0) as client:
        return [found.payload for found in client.read_all()]


def append_until_it_ends(broker: BrokerProcess, kept: list[bytes], size: int, most: int) -> None:
    """Appends until the broker has ended; what was acknowledged is added to `kept`, what was not may be there."""
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(most):
            payload = b"%08d" % len(kept) + os.urandom(size)
            try:
                client.append("s", Event("a", payload), timeout=1.0)
            except TidelogError as error:
                assert error.maybe_applied, number  # noqa: PT017  (the loop ends here)
                return
            kept.append(payload)
    raise AssertionError("the device never failed")


def after(broker: BrokerProcess, kept: list[bytes]) -> None:
    """The next start has every acknowledged event at its position, at most one more, and goes on."""
    broker.start()
    found = read(broker)
    assert found[: len(kept)] == kept
    assert len(found) <= len(kept) + 1
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"on"))
    assert broker.stop() == 0
    broker.start()
    assert read(broker) == [*found, b"on"]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_when_the_device_behind_the_file_system_has_no_room_the_sync_fails_and_all_that_was_acknowledged_stays(
    new_broker: Callable[..., BrokerProcess], kind: str
) -> None:
    """T-12, spec §6.5: the write was taken, its sync says EIO: a loop file on a full tmpfs."""
    broker = new_broker(**SMALL)
    kept: list[bytes] = []
    with device(broker, kind) as disk:
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            for number in range(10):
                client.append("s", Event("a", payload := b"%d" % number))
                kept.append(payload)
        disk.fill()
        append_until_it_ends(broker, kept, 30_000, 2_000)
        assert broker.wait() == EXIT_IO
        assert len(broker.stderr().strip().splitlines()) == 1, broker.stderr()
        assert run("umount", broker.data).returncode == 0
        disk.give_back()
        problem = disk.mount(broker.data)
        assert not problem
        after(broker, kept)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts_of_a_real_file_system_lose_nothing_that_was_acknowledged(
    new_broker: Callable[..., BrokerProcess], kind: str
) -> None:
    """Spec §6: the file system is shut down without a word to its journal, mounted again, the log opened: three times."""
    broker = new_broker(**SMALL)
    kept: list[bytes] = []
    with device(broker, kind) as disk:
        for life in range(3):
            broker.start()
            found = read(broker)
            assert found[: len(kept)] == kept
            kept = found
            with Client(broker.endpoint, timeout=20.0) as client:
                for number in range(40):
                    client.append("s", Event("a", payload := b"%d.%d" % (life, number) + os.urandom(9_000)))
                    kept.append(payload)
            folder = os.open(broker.data, os.O_RDONLY)
            try:
                fcntl.ioctl(folder, FS_IOC_SHUTDOWN, array.array("I", [NO_LOG_FLUSH]))
            finally:
                os.close(folder)
            # The idle mark or this append, whichever comes first, is refused by what is left of the file system.
            with Client(broker.endpoint, timeout=1.0) as client, pytest.raises(TidelogError):
                client.append("s", Event("a", b"too late"))
            assert broker.wait() == EXIT_IO
            assert run("umount", broker.data).returncode == 0
            problem = disk.mount(broker.data)
            assert not problem
        after(broker, kept)


def test_calls_that_signals_interrupt_are_made_again_and_nobody_notices(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    """EINTR of each second call, from start to stop: Python repeats it (PEP 475); no sync that reached the disk has failed."""
    broker = new_broker(**SMALL)
    calls = "pwrite64,fdatasync,fsync,ftruncate"
    for life in range(2):
        broker.start(
            wrapper=(need_strace(), "-D", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                     f"inject={calls}:error=EINTR:when=1+2")
        )  # fmt: skip
        with Client(broker.endpoint, timeout=20.0) as client:
            for number in range(25):
                client.append("s", Event("a", b"%d.%d" % (life, number) + bytes(60_000)))
            assert client.info()["segments"] >= 2
        assert broker.stop() == 0
        assert broker.stderr() == ""
    broker.start()
    assert [payload.rstrip(b"\0") for payload in read(broker)] == [
        b"%d.%d" % (life, n) for life in (0, 1) for n in range(25)
    ]


def test_a_stop_whose_own_sync_hangs_ends_with_74_names_it_and_loses_nothing(
    new_broker: Callable[..., BrokerProcess],
) -> None:
    """Spec §9, T-22: everything was answered; only the clean end is missing."""
    broker = new_broker(idle_mark_ms=3_600_000)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s", Event("a", b"kept"))
        with Attached(broker, "fsync:delay_enter=60000000:when=1") as held:
            broker.signal(signal.SIGTERM)
            assert until(lambda: client.health().reason == "stopping", 10)
            assert until(lambda: "stopping took too long" in broker.stderr(), 30)
            # The process has ended; a tracer that still delays its call hides that from its parent.
            held.release()
            assert broker.wait() == EXIT_IO
    (line,) = broker.stderr().strip().splitlines()
    assert "data-sync has been running" in line
    broker.start()
    assert read(broker) == [b"kept"]
