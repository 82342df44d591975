"""kill -9 before every single call to the disk, in every phase of a broker's life (T-57), and at system calls by strace.

Each point is a broker process of its own, a client that lives through the kill, a restart, and the checker over what the client
was told and the log, read twice. Here the page cache survives; power cuts at each of these points are tests/recovery's, as is
the roll behind a group of control batches only, which nobody can make over the wire yet.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.checker import judge
from support.histories import History, digest_of, read_by_client, read_by_reader
from support.histories_campaign import MortalBroker
from support.killer import Point
from support.process import until
from support.strace import need_strace
from tidelog import Client, Event
from tidelog.link import Future

BASE = {"TIDELOG_SEGMENT_BYTES": str(1 << 20), "TIDELOG_ZERO_STEP": str(1 << 16), "TIDELOG_PREPARE_AHEAD": str(1 << 17),
        "TIDELOG_MARK_GROUPS": "1"}  # fmt: skip
HALF_FULL = 10
"""Appends of 60 KB behind which the next segment is prepared."""
POINTS_MAX = 100
"""No phase has so many calls."""
NEARLY_FULL = 17
"""Appends of 60 KB behind which the next one rolls."""
CALLS = {"pwrite64": (1, 2, 4, 7), "fdatasync": (1, 2, 4), "fsync": (1, 3, 6, 9), "renameat": (1, 2), "ftruncate": (1, 2),
         "unlinkat": (1,), "openat": (0, 2, 4, 6, 9)}  # fmt: skip
"""The n-th system calls that are sampled; of openat from the first one inside the directory on."""


class Caller:
    """A client that notes its appends, in rows of support/histories.py, and asks for the answers later."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self._client = Client(endpoint, timeout=60.0)
        self._open: list[tuple[int, Future[Any]]] = []
        self._numbers = count(1)

    def append(self, broker: MortalBroker, size: int, *, probe: bool = False) -> bool:
        """One append; False when the broker has died first."""
        number = next(self._numbers)
        name = f"{self.name} {number}".encode()
        event = Event("a", name.ljust(size, b"."), b"", UUID(bytes=name.ljust(16)[-16:]))
        assert event.id
        row = ["s/1", "any", [[event.id.hex, digest_of(event.type, event.payload, event.metadata)]]]
        self._note("send", number, writes=[row])
        if probe:
            self._note("probe", number)
        call = self._client.append_nowait("s/1", event)
        self._open.append((number, call))
        assert until(lambda: call.done() or not broker.running, 60.0, 0.002)
        self.settle(wait=False)
        return call.done()

    def settle(self, *, wait: bool) -> None:
        """Note what is answered; with `wait`, everything is."""
        while self._open and (wait or self._open[0][1].done()):
            number, call = self._open.pop(0)
            self._note("ack", number, places=[call.result()[:4]], duplicate=call.result().duplicate)

    def end(self) -> None:
        self._client.close()
        self._note("end", 0)

    def close(self) -> None:
        self._client.close()

    def _note(self, what: str, number: int, **fields: Any) -> None:
        self.rows.append({"what": what, "at": time.monotonic_ns(), "number": number, **fields})


@dataclass(frozen=True)
class Image:
    """A log directory to begin with, and what was told about it. `rows` are those of a client that was killed."""

    data: Path | None = None
    rows: tuple[dict[str, Any], ...] = ()


Life = Callable[[MortalBroker, Caller, Callable[[], None]], bool]
"""What a broker goes through: (broker, client, give the order) → whether it came through."""


def from_the_start(broker: MortalBroker, caller: Caller, order: Callable[[], None]) -> bool:
    """Creation or recovery, two groups with their marks, a clean stop: all with the order in force."""
    order()
    broker.start(ready=False)
    if not broker.ready_or_dead(60.0):
        return False
    return caller.append(broker, 100) and caller.append(broker, 5_000) and stopped(broker)


def behind_the_start(broker: MortalBroker, caller: Caller, order: Callable[[], None]) -> bool:
    """A group that rolls and one behind it, then a clean stop, with the order in force from the first group on."""
    broker.start()
    order()
    return caller.append(broker, 60_000) and caller.append(broker, 100) and stopped(broker)


def beside_the_preparing(broker: MortalBroker, caller: Caller, order: Callable[[], None]) -> bool:
    """A start behind which zeros and a spare are prepared, two groups, a clean stop."""
    (broker.data / "spare").unlink()  # the image's, so that the one to wait for is new
    order()
    broker.start(ready=False)
    assert until(lambda: (broker.data / "spare").exists() or not broker.running, 60.0)
    return caller.append(broker, 100) and caller.append(broker, 5_000) and stopped(broker)


def stopped(broker: MortalBroker) -> bool:
    """Stop it; whether it came to that."""
    if broker.running:
        broker.signal(signal.SIGTERM)
    code = broker.wait(30.0)
    assert code in (0, -signal.SIGKILL), broker.stderr()
    return code == 0


def lived_through(folder: Path, image: Image, life: Life, point: Point, skip: int) -> str:
    """One life that is killed at a point, and all that must hold behind it; the call it died at, "" when it came through."""
    broker = prepared(folder, image)
    with caller_of(broker) as caller:
        if life(broker, caller, lambda: broker.order.give(point, skip)):
            return ""
        code = broker.wait(10.0)
        assert code == -signal.SIGKILL, f"ended with {code}: {broker.stderr()}"
        assert broker.order.died == point
        died_at = broker.order.last_call
        goes_on(broker, caller, image, f"killed at {point.name} {skip}: {died_at}")
        return died_at


def goes_on(broker: MortalBroker, caller: Caller, image: Image, where: str) -> None:
    """Start again: everyone is answered, and the checker has nothing to say."""
    broker.order.give(Point.NONE)
    broker.start()
    history = History(calm_at=time.monotonic_ns(), killed={"image"})
    caller.settle(wait=True)
    assert caller.append(broker, 10, probe=True)
    caller.end()
    with Client(broker.endpoint, timeout=60.0) as client:
        read_by_client(history, client)
    assert stopped(broker)
    read_by_reader(history, broker.data)
    history.add("image", image.rows)
    history.add(caller.name, caller.rows)
    verdict = judge(history)
    assert not verdict.faults, f"{where}: " + "\n".join(map(str, verdict.faults))
    assert verdict.acknowledged >= 1


def prepared(folder: Path, image: Image) -> MortalBroker:
    """A broker that is not started, on a copy of the image."""
    folder.mkdir()
    broker = MortalBroker(folder)
    broker.settings(BASE)
    if image.data is not None:
        shutil.copytree(image.data, broker.data)
    return broker


@contextmanager
def caller_of(broker: MortalBroker) -> Iterator[Caller]:
    caller = Caller(broker.endpoint, "w")
    try:
        yield caller
    finally:
        caller.close()
        broker.close()


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    """Logs to begin with, made by a real broker that was killed."""
    place = Path(tempfile.mkdtemp(prefix="tl-"))
    made = {"nothing": Image()}
    for name, appends, point in (("torn", HALF_FULL, Point.GROUP_TORN), ("full", NEARLY_FULL, Point.GROUP_TORN)):
        broker = prepared(place / name, Image())
        broker.start()
        caller = Caller(broker.endpoint, "image")
        try:
            for _ in range(appends):
                assert caller.append(broker, 60_000)
            assert until((broker.data / "spare").exists, 20.0)
            broker.order.give(point)
            assert not caller.append(broker, 3_000)
        finally:
            caller.close()
            broker.close()
        made[name] = Image(broker.data, tuple(caller.rows))
    yield made
    shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path, image: Image, life: Life, point: Point) -> list[str]:
    """Die before each call in turn until a life comes through; two at a time. The calls, in order."""
    died_at: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, POINTS_MAX, 2):
            jobs = [
                pool.submit(lived_through, folder / f"{point.name}{skip}", image, life, point, skip)
                for skip in (first, first + 1)
            ]
            found = [job.result() for job in jobs]
            died_at += [name for name in found if name]
            if not all(found):
                return died_at
    raise AssertionError(f"still killed at call {POINTS_MAX}: {died_at[-5:]}")


def halves(folder: Path, image: Image, life: Life, died_at: Iterable[str]) -> int:
    """Die with half of each write done, too."""
    writes = [skip for skip, name in enumerate(died_at) if name.startswith("write ")]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(lived_through, folder / f"half{skip}", image, life, Point.HALF, skip) for skip in writes]
        return sum(bool(job.result()) for job in jobs)


PHASES: dict[str, tuple[str, Life, set[str]]] = {
    "creation, appends, stop": (
        "nothing",
        from_the_start,
        {"create marks.tmp", "rename marks.tmp", "create spare", "rename spare", "sync marks.tmp", "datasync marks", "truncate"},
    ),
    "recovery of a torn tail, appends, stop": (
        "torn",
        from_the_start,
        {"make_folder quarantine", "create quarantine/", "sync_folder quarantine", "truncate 0000000001", "unlink spare"},
    ),
    "roll": (
        "full",
        behind_the_start,
        {"write 0000000001", "truncate 0000000001", "rename spare", "sync spare", "write 0000000002", "write marks"},
    ),
}  # fmt: skip
"""What is swept: from which image, what is done, and calls that must be among those it died at, or the sweep is blind."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", PHASES)
def test_killed_before_any_call_and_inside_any_write_the_broker_loses_nothing_it_acknowledged(
    phase: str, images: dict[str, Image], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T-57, T-10"""
    name, life, named = PHASES[phase]
    died_at = sweep(folder, images[name], life, Point.CALL)
    missing = {call for call in named if not any(one.startswith(call) for one in died_at)}
    assert not missing, died_at
    torn = halves(folder, images[name], life, died_at)
    assert torn
    with capsys.disabled():
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(one.split()[0] for one in died_at).most_common())
        print(f"\nkilled at {len(died_at)} calls ({kinds}) and in {torn} half writes: {phase}")


@pytest.mark.timeout(300)
def test_killed_while_space_is_prepared_the_broker_loses_nothing_it_acknowledged(
    images: dict[str, Image], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T-57: before each call of the preparing thread: zeros in the open segment, and the spare."""
    died_at = sweep(folder, images["torn"], beside_the_preparing, Point.OTHER)
    assert {"create spare", "sync spare", "sync_folder "} <= set(died_at), died_at
    assert any(name.startswith("datasync 0000000001") for name in died_at), died_at
    with capsys.disabled():
        print(f"\nkilled at {len(died_at)} calls: preparing space")


@pytest.mark.timeout(600)
def test_killed_at_the_nth_system_call_the_broker_loses_nothing_it_acknowledged(
    images: dict[str, Image], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T-57, T-10: recovery, a roll and a clean stop, cut off by strace at the entry of a system call."""
    offset = opens_before_the_log(folder / "dry", images["full"])
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(cut_off, folder / f"{call}{number}", images["full"], call, number + offset * (call == "openat"))
            for call, numbers in CALLS.items()
            for number in numbers
        ]
        killed = Counter(job.result() for job in jobs)
    with capsys.disabled():
        print(f"\nkilled by strace: {', '.join(f'{n} {call}' for call, n in killed.items() if call)}")
    assert set(CALLS) <= set(killed), killed


def opens_before_the_log(folder: Path, image: Image) -> int:
    """How many files a start opens before those of the log: the interpreter's."""
    broker = prepared(folder, image)
    trace = folder / "trace"
    broker.start(wrapper=(need_strace(), "-D", "-f", "-o", str(trace), "-e", "trace=openat"))
    broker.kill()
    mine = re.compile(rf"^{broker.pid} +openat\(.*$", re.MULTILINE)
    # The tracer is no child of ours, and may write behind the kill.
    assert until(lambda: any('"0000000001-' in line for line in mine.findall(trace.read_text(errors="replace"))), 20.0)
    lines = mine.findall(trace.read_text(errors="replace"))
    return next(place for place, line in enumerate(lines, 1) if '"0000000001-' in line)


def cut_off(folder: Path, image: Image, call: str, number: int) -> str:
    """One life that strace kills at a system call; which, or "" when it came through."""
    broker = prepared(folder, image)
    rule = f"inject={call}:signal=KILL:when={number}"
    with caller_of(broker) as caller:
        broker.start(ready=False, wrapper=(need_strace(), "-D", "-f", "-o", str(folder / "trace"), "-e", rule))
        sizes = (60_000, 100)
        if broker.ready_or_dead(60.0) and all(caller.append(broker, size) for size in sizes) and stopped(broker):
            return ""
        code = broker.wait(10.0)
        assert code == -signal.SIGKILL, f"ended with {code}: {broker.stderr()}"
        goes_on(broker, caller, image, f"killed at {call} {number}")
        return call
