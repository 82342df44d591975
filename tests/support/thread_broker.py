"""A whole broker in a thread of the test: `serve` itself, its sockets and its exit code, over a disk whose calls can fail.

Only what belongs to a process is replaced: signals (`stop` asks the loop directly), the collector's settings, standard error
(its lines are kept). A start takes milliseconds, so that every call of every phase can fail once in a test.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.faults import FaultyDisk, MortalDisk, Plan
from tidelog_broker import serve as serving
from tidelog_broker import server as loop
from tidelog_broker import vitals
from tidelog_broker.config import load_config
from tidelog_broker.endpoints import Endpoint
from tidelog_broker.health import Health
from tidelog_broker.log import FailStop
from tidelog_broker.server import Server

BROKER, PREPARER = "broker", "tidelog-prepare"
CRASHED = -1
PATIENCE_S = 20.0
SMALL = {
    "segment_bytes": 16_384,
    "group_bytes_max": 8_192,
    "zero_step": 4_096,
    "prepare_ahead": 4_096,
    "append_bytes_max": 6_000,
    "idle_mark_ms": 3_600_000,
}
_starting: list[ThreadBroker] = []


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the disk."""

    op: str
    name: str
    thread: str


@dataclass(slots=True)
class ServedDisk(FaultyDisk):
    """A faulty disk as `serve` uses it: with the lock, and with who called."""

    calls: list[Call] = field(default_factory=list)

    def due(self, op: str, name: str) -> Plan | None:
        if name.startswith("index"):
            return None  # a cache: what fails there costs nothing (tests/index), and is none of the log's calls
        self.calls.append(Call(op, name, threading.current_thread().name))
        # Not super(): a dataclass with slots is another class than the one this was defined in.
        return FaultyDisk.due(self, op, name)

    def lock(self) -> None:
        assert isinstance(self.disk, MortalDisk)
        self.disk.lock()


class EndingEvent(threading.Event):
    """What the preparing thread waits for; ends that thread when the broker is gone."""

    over = False

    def wait(self, timeout: float | None = None) -> bool:
        super().wait(timeout)
        if self.over:
            raise FailStop("the broker is gone")
        return True


class SeenServer(Server):
    """A server that its test can reach."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._prepare = EndingEvent()
        broker = _starting[-1]
        broker.server = self
        if not broker.prepares:
            self.store.log.prepare = lambda: False  # type: ignore[method-assign]

    def bind(self, endpoints: list[Endpoint]) -> None:
        super().bind(endpoints)
        _starting[-1].bound = endpoints

    def run(self) -> None:
        _starting[-1].ready.set()
        super().run()

    def let_go(self) -> None:
        """End the preparing thread and give back what a process would at its end."""
        assert isinstance(self._prepare, EndingEvent)
        self._prepare.over = True
        self._prepare.set()
        if self._preparer.ident is not None:
            self._preparer.join(PATIENCE_S)
        os.close(self.wake_fd)


@contextmanager
def brokers_in_threads() -> Iterator[None]:
    """While this is in force, `ThreadBroker` works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "RealDisk", lambda path: _starting[-1].disk)
        patch.setattr(serving, "Server", SeenServer)
        patch.setattr(serving, "_say", lambda text, code: _starting[-1].say(text, code))
        patch.setattr(serving, "print", lambda *_, **__: None, raising=False)
        patch.setattr(
            serving, "gc", SimpleNamespace(collect=lambda: 0, freeze=lambda: None, set_threshold=lambda *_: None)
        )
        patch.setattr(Health, "start", lambda health: health._thread.start())
        patch.setattr(loop, "FULL_RETRY_MS", 20)
        patch.setattr(vitals, "HANGING_SYNC_US", 30_000)
        before = os.umask(0o077)
        yield
        os.umask(before)


class ThreadBroker:
    """One life of a broker on a directory. `code`: its exit code once it ended, CRASHED if `serve` let an exception pass."""

    def __init__(
        self, data: Path, sockets: Path, plans: list[Plan] | None = None, *, prepares: bool = False, wait: bool = True,
        **numbers: int,
    ) -> None:  # fmt: skip
        self.endpoint = f"ipc://{sockets}/{os.urandom(6).hex()}"
        config = load_config(str(data), (self.endpoint,), {}, None, {})
        self._config = replace(config, numbers={**config.numbers, **SMALL, **numbers})
        self._mortal = MortalDisk(data)
        self.disk = ServedDisk(self._mortal, plans or [])
        self.prepares = prepares
        self.lines: list[str] = []
        self.crash = ""
        self.code: int | None = None
        self.server: SeenServer | None = None
        self.bound: list[Endpoint] = []
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=BROKER, daemon=True)
        _starting.append(self)
        self._thread.start()
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until it answers or has ended."""
        end = time.monotonic() + PATIENCE_S
        while not self.ready.wait(0.001):
            if not self._thread.is_alive():
                self.wait()
                return
            assert time.monotonic() < end, "the broker does not start"

    def _run(self) -> None:
        try:
            self.code = serving.serve(self._config)
        except BaseException:
            self.crash = traceback.format_exc()
            self.code = CRASHED

    def say(self, text: str, code: int) -> int:
        self.lines.append(text)
        return code

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> int:
        """As by SIGTERM; its exit code."""
        assert self.server is not None
        if self.running:
            self.server.request_stop()
        return self.wait()

    def wait(self) -> int:
        """Its exit code; what it left open is closed as by the end of a process."""
        self._thread.join(PATIENCE_S)
        assert self.code is not None, "the broker does not end"
        if self in _starting:
            _starting.remove(self)
            if self.server is not None:
                self.server.let_go()
            for row in self.bound:
                if row._lock >= 0:
                    os.close(row._lock)
            self._mortal.kill()
        return self.code

    @contextmanager
    def failing(self, *plans: Plan) -> Iterator[None]:
        """The faults are in force inside."""
        self.disk.plans = list(plans)
        try:
            yield
        finally:
            self.disk.plans = []
