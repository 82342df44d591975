"""`tidelog verify` and `tidelog repair`: what a log holds, whether it is whole, and what can be done about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import cli_text as text
from .cli_shared import EXIT_IO, EXIT_TAKEN, EXIT_UNREACHABLE, EXIT_USAGE, Refused, connected, put

if TYPE_CHECKING:
    from .disk import RealDisk
    from .verify import Survey

POLL_S = 0.1


@contextmanager
def opened(data: str, *, alone: bool) -> Iterator[RealDisk]:
    """The files of a log directory; `alone`: no broker may have it. Raises Refused."""
    from .disk import Locked, RealDisk

    path = Path(data)
    try:
        disk = RealDisk(path)
    except OSError as error:
        raise Refused(f"{data}: {error.strerror}", EXIT_USAGE) from None
    try:
        if alone:
            disk.lock()
        yield disk
    except Locked as error:
        raise Refused(f"{error}: ask that broker with `tidelog verify`, without --data", EXIT_TAKEN) from None
    except OSError as error:
        raise Refused(f"{data}: {error.strerror}", EXIT_IO) from None
    finally:
        disk.close()


def look(disk: RealDisk, until: int | None = None) -> Survey:
    """The survey, for people who wait."""
    from .files import LogSettings
    from .verify import survey

    return survey(disk, LogSettings(), until)


@click.command()
@click.option(
    "--data", metavar="DIR", help="The log to look at, while no broker runs on it; else a running broker is asked."
)
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option("--timeout", type=click.FloatRange(0, 1e9), metavar="SECONDS", help="End waiting for the broker's check.")
@click.option("--beside", is_flag=True, hidden=True)
@click.option("--until", type=click.IntRange(0, 2**63 - 1), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(
    data: str | None, endpoint: str | None, timeout: float | None, beside: bool, until: int | None, as_json: bool
) -> int:
    """Read a whole log, check every byte that counts, change nothing.

    Exit code 0: healthy; 1: a torn tail that a start would cut; 65: damaged.
    """
    if data is None:
        found = ask(endpoint, timeout)
    else:
        if beside:
            os.nice(10)  # the child of a running broker, which has the lock
        with opened(data, alone=not beside) as disk:
            found = look(disk, until).as_dict()
    put(text.as_json(found) if as_json else text.survey(found))
    from .verify import EXIT_CODES

    return EXIT_CODES[found["verdict"]]


def ask(endpoint: str | None, timeout: float | None) -> dict[str, Any]:
    """The running broker's own check, from its beginning to its end. Raises Refused."""
    until = None if timeout is None else time.monotonic() + timeout
    with connected(endpoint, 5.0) as client:
        state, report = client.verify(begin=True)
        while state == "running":
            if until is not None and time.monotonic() > until:
                raise Refused("the check goes on; ask again later, it will be told then", EXIT_UNREACHABLE)
            time.sleep(POLL_S)
            state, report = client.verify()
    if state != "done" or report is None:
        raise Refused(f"the broker could not check its log: {(report or {}).get('reason', state)}", EXIT_IO)
    return report


@click.command()
@click.option("--data", metavar="DIR", required=True, help="The log; no broker may run on it.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and do nothing. Exit codes as of `tidelog verify`."
)
@click.option("--accept-loss", is_flag=True, help="End a damaged log at the hole; what is behind goes to quarantine/.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def repair(data: str, dry_run: bool, accept_loss: bool, as_json: bool) -> int:
    """Put a log into a state that a start takes. Whatever is cut is kept in its quarantine/.

    A torn tail is cut as a start would cut it. A damaged log is left alone, exit code 65, unless --accept-loss is given.
    """
    from .files import LogSettings
    from .repair import plan
    from .repair import repair as put_right
    from .verify import DAMAGED

    with opened(data, alone=True) as disk:
        found = look(disk)
        plans, done = plan(found), list[str]()
        if not dry_run and (found.verdict != DAMAGED or accept_loss):
            done = put_right(disk, LogSettings(), os.urandom, accept_loss=accept_loss)
            found, before = look(disk), found
            report = {**found.as_dict(), "before": before.as_dict()}
        else:
            report = found.as_dict()
    put(text.as_json({**report, "plan": plans, "done": done}) if as_json else text.repaired(report, plans, done))
    return found.exit_code
