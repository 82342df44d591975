"""Real faults in a real broker: strace makes a system call of its main thread fail, wait, or be seen.

Only the main thread is traced unless asked otherwise: it alone writes groups and marks, so that `when=1` behind `attach`
is the next group's call whatever the preparing thread does.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.process import BrokerProcess, until

SEEN = "poll,restart_syscall,pwrite64,fdatasync,fsync,ftruncate"
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)$")


def need_strace() -> str:
    """Its path; the test is skipped where it is missing or not permitted."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed, so no system call can be made to fail")
    probe = subprocess.run([path, "-o", "/dev/null", "true"], capture_output=True, timeout=30)
    if probe.returncode:
        pytest.skip(f"strace is not permitted here: {probe.stderr.decode().strip()}")
    return path


class Attached:
    """strace on a running broker with rules as in `fdatasync:error=EIO:when=1`. `release` lets the broker go."""

    def __init__(self, broker: BrokerProcess, *rules: str) -> None:
        self.output = broker.errors.with_name("strace")
        self.output.unlink(missing_ok=True)
        inject = [part for rule in rules for part in ("-e", f"inject={rule}")]
        self._tracer = subprocess.Popen(
            [need_strace(), "-o", str(self.output), "-e", f"trace={SEEN}", *inject, "-p", str(broker.pid)],
            stderr=subprocess.PIPE,
        )
        if not until(self._tracing, 20):
            self.release()
            assert self._tracer.stderr
            pytest.skip(f"strace could not attach: {self._tracer.stderr.read().decode().strip()}")

    def _tracing(self) -> bool:
        # The first traced call in the file shows that rules are in force; the heartbeat makes one within 500 ms.
        return self._tracer.poll() is not None or (self.output.exists() and self.output.stat().st_size > 0)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def calls(self, name: str) -> int:
        """How many such calls were seen so far."""
        return sum(line.startswith(name + "(") for line in self.output.read_text().splitlines())

    def release(self) -> None:
        """End the tracing; a call that was held back goes on."""
        if self._tracer.poll() is None:
            self._tracer.send_signal(signal.SIGTERM)
        try:
            self._tracer.wait(10)
        except subprocess.TimeoutExpired:
            self._tracer.kill()
            self._tracer.wait(10)


@dataclass(frozen=True, slots=True)
class Seen:
    """One moment of a traced call: `began` and `ended` are both true for a call that was not interrupted by others."""

    thread: int
    call: str
    text: str
    began: bool
    ended: bool


def parse(path: Path) -> list[Seen]:
    """The output of `strace -f -y`, in order."""
    seen = []
    for line in path.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match:
            thread, call, text = match.groups()
            resumed = " resumed>" in line.split("(")[0]
            seen.append(Seen(int(thread), call, text, not resumed, "<unfinished ...>" not in line))
    return seen
