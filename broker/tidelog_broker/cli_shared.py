"""What the commands share: exit codes, how to reach a broker, how to print a line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .endpoints import default_endpoint

if TYPE_CHECKING:
    from tidelog import Client

EXIT_FAILED, EXIT_USAGE, EXIT_CORRUPT, EXIT_UNREACHABLE, EXIT_TAKEN, EXIT_IO, EXIT_UNSAFE = 1, 64, 65, 69, 73, 74, 78
EXIT_FULL = 75
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE


class Refused(Exception):
    """A command's own failure: what to say and the exit code."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


def client_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--endpoint, --timeout and --json; the command gets a client, and `as_json`."""

    def run(endpoint: str | None, timeout: float, **kwargs: Any) -> Any:
        with connected(endpoint, timeout) as client:
            return command(client, **kwargs)

    run = update_wrapper(run, command)
    run = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")(run)
    run = click.option(
        "--timeout", type=click.FloatRange(0, 1e9), default=5.0, show_default=True, metavar="SECONDS",
        help="How long to wait for an answer, retries included.",
    )(run)  # fmt: skip
    return click.option(
        "--endpoint", metavar="ENDPOINT",
        help="Where the broker is: ipc:///path or tcp://host:port.  [default: TIDELOG_ENDPOINT, else "
        "$XDG_RUNTIME_DIR/tidelog/broker, else run/broker under TIDELOG_DATA]",
    )(run)  # fmt: skip


@contextmanager
def connected(endpoint: str | None, timeout: float) -> Iterator[Client]:
    """A client of the broker that flags and environment name."""
    from tidelog import Client

    endpoint = endpoint or os.environ.get("TIDELOG_ENDPOINT")
    if not endpoint:
        data = os.environ.get("TIDELOG_DATA")
        if not data and not os.environ.get("XDG_RUNTIME_DIR"):
            raise click.UsageError("say where the broker is, with --endpoint or TIDELOG_ENDPOINT")
        endpoint = default_endpoint(Path(data or "."), os.environ)
    with Client(endpoint, timeout=timeout) as client:
        yield client


def put(line: str) -> None:
    """One line on standard output."""
    sys.stdout.write(line + "\n")
