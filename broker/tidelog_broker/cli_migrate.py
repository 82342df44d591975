"""`tidelog migrate`: a log of EventfoldDB, or of an older Tidelog, into a new log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import cli_text as text
from .cli_shared import EXIT_CORRUPT, EXIT_FULL, EXIT_IO, EXIT_TAKEN, EXIT_USAGE, Refused, put

if TYPE_CHECKING:
    from .migrate import Migrated


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def migrate(source: str, target: str, as_json: bool) -> None:
    """Copy SOURCE into a new log, the directory TARGET, which must not exist or be empty.

    SOURCE is a file of EventfoldDB (format 1, 2 or 3) or the directory of an older Tidelog. It is not changed; nothing may
    write to it meanwhile. Exit code 65: it is damaged, of an unknown kind or version, or holds what can't be kept.
    """
    from tidelog.errors import InvalidHeader, StorageFull

    from .disk import Locked
    from .log import FailStop
    from .migrate import migrate as run
    from .opening import ROOM_ERRORS
    from .source import SourceRefused
    from .staging import Unfit

    try:
        done = run(Path(source), Path(target))
    except SourceRefused as error:
        raise Refused(
            f"{source}: {error}. Nothing was migrated; a copy of the file cut at that offset would be, up to there",
            EXIT_CORRUPT,
        ) from error
    except InvalidHeader as error:
        raise Refused(f"{source}: {error}", EXIT_CORRUPT) from error
    except Unfit as error:
        raise Refused(str(error), EXIT_USAGE) from error
    except Locked as error:
        raise Refused(f"{error}: nothing may write to source or target while a log is migrated", EXIT_TAKEN) from error
    except StorageFull as error:
        raise Refused(f"no room for {target}; nothing was migrated", EXIT_FULL) from error
    except FailStop as error:
        raise Refused(f"the disk failed: {error}; nothing was migrated", EXIT_IO) from error
    except OSError as error:
        code = EXIT_FULL if error.errno in ROOM_ERRORS else EXIT_IO
        raise Refused(f"the migration failed: {error.strerror or error}", code) from error
    if done.torn is not None:
        left = f"torn tail: {done.torn.bytes} bytes at offset {done.torn.offset} of {source} are the beginning of an append"
        print(f"tidelog: warning: {text.printable(left)}; they were left out", file=sys.stderr, flush=True)
    put(text.as_json(done.as_dict()) if as_json else _lines(done))


def _lines(done: Migrated) -> str:
    """The report for people."""
    times = "kept" if done.has_times else f"0: format {done.version} has no times"
    rows = [
        f"migrated {done.source} ({done.kind}, format {done.version}) to {done.target}",
        f"{done.events:,} events, {done.appends:,} appends, {done.batches:,} batches, {done.streams:,} streams",
        f"recorded_at: {times}",
    ]
    if done.torn is not None:
        rows.append(f"left out: {done.torn.bytes} bytes at offset {done.torn.offset}, the beginning of an append")
    return "\n".join(map(text.printable, rows))
