"""`tidelog verify`, `repair`, `checkpoint`, `truncate`: what a log holds, whether it is whole, and what can be done about it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import cli_text as text
from .child import end_with_parent
from .cli_shared import EXIT_IO, EXIT_TAKEN, EXIT_UNREACHABLE, EXIT_USAGE, Refused, connected, put

if TYPE_CHECKING:
    from .disk import RealDisk
    from .store import IndexSettings
    from .verify import Survey

POLL_S = 0.1
Reported = TypeVar("Reported")


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
        raise Refused(f"{error}: ask that broker, without --data", EXIT_TAKEN) from None
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
@click.option(
    "--index", "of_index", is_flag=True, help="Compare the saved index with the one that the log makes; needs --data."
)
@click.option("--beside", is_flag=True, hidden=True)
@click.option("--until", type=click.IntRange(0, 2**63 - 1), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(
    data: str | None,
    endpoint: str | None,
    timeout: float | None,
    of_index: bool,
    beside: bool,
    until: int | None,
    as_json: bool,
) -> int:
    """Read a whole log, check every byte that counts, change nothing.

    Exit code 0: healthy; 1: a torn tail that a start would cut; 65: damaged. With --index: 0 the saved index is the log's,
    65 it is not.
    """
    if of_index:
        return _verify_index(data, as_json)
    if data is None:
        found = ask(endpoint, timeout)
    else:
        if beside:
            os.nice(10)  # the child of a running broker, which has the lock
            end_with_parent()
        with opened(data, alone=not beside) as disk:
            found = look(disk, until).as_dict()
    put(text.as_json(found) if as_json else text.survey(found))
    from .verify import EXIT_CODES

    return EXIT_CODES[found["verdict"]]


def _verify_index(data: str | None, as_json: bool) -> int:
    """Raises Refused."""
    if data is None:
        raise click.UsageError("--index needs --data: only the index of a broker that does not run can be looked at.")
    from .files import LogSettings
    from .index_digest import compare

    with opened(data, alone=True) as disk:
        found = compare(disk, LogSettings()).as_dict()
    put(text.as_json(found) if as_json else text.comparison(found))
    from .verify import EXIT_CODES

    return EXIT_CODES[found["verdict"]]


def ask(endpoint: str | None, timeout: float | None) -> dict[str, Any]:
    """The running broker's own check, from its beginning to its end. Raises Refused."""
    with connected(endpoint, 5.0) as client:
        late = "the check goes on; ask again later, it will be told then"
        state, report = _awaited(lambda begin: client.verify(begin=begin), _until(timeout), late)
    if state != "done" or report is None:
        raise Refused(f"the broker could not check its log: {(report or {}).get('reason', state)}", EXIT_IO)
    return report


def _until(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _awaited(ask: Callable[[bool], tuple[str, Reported]], until: float, late: str) -> tuple[str, Reported]:
    """Have the broker begin something, and how that ended. Raises Refused, saying `late`, when it takes too long."""
    state, report = ask(True)
    while state == "running":
        if time.monotonic() > until:
            raise Refused(late, EXIT_UNREACHABLE)
        time.sleep(POLL_S)
        state, report = ask(False)
    return state, report


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


@click.command()
@click.option("--data", metavar="DIR", help="A log on which no broker runs; else a running broker is asked.")
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option("--timeout", type=click.FloatRange(0, 1e9), metavar="SECONDS", help="End waiting for the broker.")
@click.option("--beside", is_flag=True, hidden=True)
@click.option("--until", type=click.IntRange(0, 2**63 - 1), hidden=True)
@click.option("--id-window-events", type=click.IntRange(1), hidden=True)
@click.option("--tail-batches", type=click.IntRange(1), hidden=True)
@click.option("--base", type=click.IntRange(1), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def checkpoint(
    data: str | None,
    endpoint: str | None,
    timeout: float | None,
    beside: bool,
    until: int | None,
    id_window_events: int | None,
    tail_batches: int | None,
    base: int | None,
    as_json: bool,
) -> int:
    """Save the index now, so that the next start reads only what comes behind it. Appends go on meanwhile."""
    if data is None:
        facts = _checkpoint_of(endpoint, timeout)
    else:
        facts = _checkpoint_in(data, until if beside else None, id_window_events, tail_batches, base)
    put(text.as_json(facts) if as_json else f"the index is saved as of group {facts['group']}")
    return 0


def _checkpoint_of(endpoint: str | None, timeout: float | None) -> dict[str, Any]:
    """Have the running broker save what it holds now. Raises Refused."""
    until = _until(timeout)
    with connected(endpoint, 5.0) as client:
        wanted = client.info()["groups"]
        while True:
            late = "the checkpoint is still being made"
            state, facts = _awaited(lambda begin: client.checkpoint(begin=begin), until, late)
            if state != "done":
                raise Refused(f"the broker could not save its index: {facts.get('reason', state)}", EXIT_IO)
            if facts["group"] >= wanted:
                return facts
            # One had begun before we asked, and has less.


def _checkpoint_in(
    data: str, until: int | None, id_window_events: int | None, tail_batches: int | None, base: int | None
) -> dict[str, Any]:
    """Of a log on which no broker runs; or, with `until`, beside the broker whose child this is."""
    from . import checkpoints
    from .core.run import BadIndex
    from .store import IndexSettings

    defaults = IndexSettings()
    settings = IndexSettings(
        id_window_events=id_window_events or defaults.id_window_events,
        tail_batches=tail_batches or defaults.tail_batches,
    )
    if until is not None:
        os.nice(10)
        end_with_parent()
    with opened(data, alone=until is None) as disk:
        try:
            return _saved(disk, settings, until, base)
        except BadIndex:
            # A part that only merging reads is damaged: all of it comes from the log again.
            checkpoints.forget(disk)
            return _saved(disk, settings, until, base)


def _saved(disk: RealDisk, settings: IndexSettings, until: int | None, base: int | None) -> dict[str, Any]:
    """Raises BadIndex, CorruptLog, InvalidHeader, OSError, FailStop, StorageFull."""
    from .files import LogSettings
    from .store import Store

    if until is not None:
        store = Store.behind_checkpoint(disk, LogSettings(), settings, until)
        store.checkpoint()
        if base is not None:
            store.write_base(base)
    else:
        store = Store(disk, LogSettings(), os.urandom, settings)
        store.log.mark()
        store.checkpoint()
        store.log.close()
    return {"group": store.checkpoint_group, "head": store.index.head}


@click.command()
@click.argument("position", type=click.IntRange(0, 2**63 - 1))
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def truncate(position: int, endpoint: str | None, as_json: bool) -> int:
    """Remove everything before POSITION, rounded down to where an append begins. This can't be undone.

    Stream versions go on as if nothing had happened. Segments that hold nothing else are deleted from disk.
    """
    with connected(endpoint, 5.0) as client:
        first = client.truncate_before(position)
    put(text.as_json({"first_available": first}) if as_json else f"the log begins with position {first} now")
    return 0
