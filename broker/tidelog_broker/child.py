"""A command of this package in a process of its own, for work that would hold the interpreter lock too long.

The child takes no lock and touches no socket. At most one at a time; one thread calls it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO

from . import checkpoints

PR_SET_PDEATHSIG = 1
PARENT = "TIDELOG_CHILD_OF"


def end_with_parent() -> None:
    """Called by a child: when the broker that started it is killed, it must not write beside the next one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # Killed before that: whoever is the parent now is another.
    if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
        os._exit(1)
    checkpoints.beside(os.getpid())


class Child:
    """A process that is running, or has ended and was not asked for yet."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def running(self) -> bool:
        """True from `begin` until `poll` or `wait` told how it ended."""
        return self._process is not None

    def begin(self, *arguments: str) -> None:
        """Start `tidelog ARGUMENTS`. Raises OSError when no process can be had."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the child has ended)
        try:
            self._process = subprocess.Popen(
                # -P: nothing is imported from whatever directory the broker was started in.
                [sys.executable, "-P", "-m", "tidelog_broker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, PARENT: str(os.getpid())},
            )
        except OSError:
            self._output.close()
            raise

    def poll(self) -> tuple[int, str] | None:
        """(exit code, what it printed) of one that has just ended; None otherwise."""
        if self._process is None or self._process.poll() is None:
            return None
        assert self._output is not None
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.close()
        code, self._process = self._process.returncode, None
        return code, text

    def stop(self) -> None:
        """End one that is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass  # it hangs in a read of its own, and is in nobody's way
