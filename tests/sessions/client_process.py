"""One of client_programs.py as a process: started, read line by line, killed by its pid."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from types import TracebackType

PATIENCE_S = 60.0


class ClientProcess:
    """Ended, whatever state it is in, at the end of the block."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sessions.client_programs", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        self._rest = b""

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def line(self, timeout: float = PATIENCE_S) -> str:
        """The next line that it prints; "" at its end. Raises TimeoutError."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                raise TimeoutError("the process says nothing")
            data = os.read(self._process.stdout.fileno(), 65_536)
            if not data:
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
