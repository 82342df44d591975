"""The processes of a run: brokers, echo servers and workers, each ended by its pid, whatever happens."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

START_S = 60.0
WORK_S = 300.0


class WorkerFailed(Exception):
    """A process of the run ended, or said nothing for too long."""


class Process:
    """A child that talks in lines. Its own session, so that Ctrl-C reaches only us; `close` ends it."""

    def __init__(self, *arguments: str, errors: Path) -> None:
        self.errors = errors
        self._name = arguments[0]
        with errors.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, timeout: float) -> str:
        """The next line that it prints. Raises WorkerFailed."""
        output = self._process.stdout
        assert output is not None
        readable, _, _ = select.select([output], [], [], timeout)
        line = output.readline() if readable else b""
        if not line.endswith(b"\n"):
            what = "ended" if readable else f"said nothing for {timeout:.0f} s"
            said = self.errors.read_text(errors="replace").strip()[-2000:]
            raise WorkerFailed(f"{self._name} {what}: {said}")
        return line.decode().strip()

    def tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Processes:
    """All children of a run: a context manager that leaves none behind."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets
        self._alive: list[Process] = []
        self._names = 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __contains__(self, process: Process) -> bool:
        return process in self._alive

    def close(self) -> None:
        """End all of them; an impatient second Ctrl-C comes after the last."""
        interrupted = False
        while self._alive:
            try:
                self._alive[-1].close()
                self._alive.pop()
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt

    def end(self, process: Process) -> None:
        process.close()
        self._alive.remove(process)

    def start(self, *arguments: str) -> Process:
        process = Process(*arguments, errors=self._sockets / "stderr")
        self._alive.append(process)
        return process

    def endpoint(self) -> str:
        """A new one."""
        self._names += 1
        return f"ipc://{self._sockets}/{self._names}"

    def broker(self, data: Path, endpoint: str, *flags: str) -> Process:
        """A real broker, once it answers."""
        process = self.start("tidelog_broker", "serve", "--data", str(data), "--bind", endpoint, *flags)
        if not process.line(START_S).startswith("ready "):
            raise WorkerFailed("the broker did not start")
        return process

    def echo_server(self, endpoint: str) -> Process:
        process = self.worker({"do": "serve_echo", "endpoint": endpoint})
        process.line(START_S)
        return process

    def worker(self, job: dict[str, Any]) -> Process:
        return self.start("tidelog_broker.bench.worker", json.dumps(job))

    def work(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Start all, let them begin together when all are ready, and collect what they say."""
        begin = len(self._alive)
        try:
            workers = [self.worker(job) for job in jobs]
            for worker in workers:
                worker.line(START_S)
            for worker in workers:
                worker.tell("go")
            until = time.monotonic() + WORK_S
            return [json.loads(worker.line(max(until - time.monotonic(), 1.0))) for worker in workers]
        finally:
            while len(self._alive) > begin:
                self._alive.pop().close()


def rate(results: Sequence[dict[str, Any]]) -> float:
    """Things a second over all workers, from the first one's begin to the last one's end."""
    elapsed = max(row["end"] for row in results) - min(row["begin"] for row in results)
    return float(sum(row["count"] for row in results) * 1e9 / elapsed)


def resident_mb(pid: int) -> float:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise WorkerFailed(f"process {pid} tells no VmRSS")
