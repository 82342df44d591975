"""A real broker process, started, killed and stopped by its pid."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

START_S = 30.0


class BrokerProcess:
    """`tidelog serve` on a directory of its own. `endpoint` is known before the start."""

    def __init__(self, folder: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.endpoint = f"ipc://{folder}/s/broker"
        self.flags = flags
        self.errors = folder / "stderr"
        self.ready_line = ""
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "tidelog_broker", "serve", "--data", str(self.data), "--bind", self.endpoint, *self.flags
        ]  # fmt: skip

    def start(self, *, ready: bool = True, wrapper: tuple[str, ...] = ()) -> None:
        """Start it; with `ready`, return once it says that it answers."""
        with self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*wrapper, *self.command()],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if readable else b""
        self.ready_line = line.decode().strip()
        if not line.startswith(b"ready "):
            raise AssertionError(f"the broker did not start: {self.stderr()}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self._process is not None
        self._process.kill()
        self._end()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 10.0) -> int:
        assert self._process is not None
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._end()
        return code

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.running:
            self.signal(signal.SIGCONT)
            self.kill()

    def stderr(self) -> str:
        return self.errors.read_text() if self.errors.exists() else ""


def until(condition: object, timeout: float = 10.0, every: float = 0.01) -> bool:
    """Poll a callable until it is true; False when the time is over."""
    assert callable(condition)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every)
    return bool(condition())
