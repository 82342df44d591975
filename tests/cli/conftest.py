"""The command as a process, as users meet it, on a broker that the tests of one file share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from support.command import COMMAND, Run
from support.process import BrokerProcess


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would tell the command something that a test did not."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TIDELOG_", "XDG_"))} | more


@pytest.fixture(scope="session")
def run() -> Run:
    """run(*arguments, input="", **environment) → the finished command, whatever its exit code."""

    def start(*arguments: str, input: str | bytes = "", **more: str) -> subprocess.CompletedProcess[str]:
        raw = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [*COMMAND, *arguments], input=raw, capture_output=True, timeout=60, env=environment(**more)
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return start


@pytest.fixture
def tidelog(run: Run, shared: BrokerProcess) -> Run:
    """The same, with the shared broker in TIDELOG_ENDPOINT."""

    def start(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, **{"TIDELOG_ENDPOINT": shared.endpoint, **more})

    return start


@pytest.fixture
def popen(shared: BrokerProcess) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A command that goes on; ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(TIDELOG_ENDPOINT=shared.endpoint),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def category() -> str:
    """A category that nobody else uses."""
    return f"c{uuid4().hex}"
