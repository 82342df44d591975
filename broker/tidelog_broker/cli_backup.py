"""`tidelog backup` and `restore`, a log's files in one file and back; `export` and `import`, its events as lines of JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import cli_text as text
from .cli_shared import (
    EXIT_FAILED,
    EXIT_FULL,
    EXIT_IO,
    EXIT_TAKEN,
    EXIT_USAGE,
    Refused,
    client_options,
    connected,
    put,
)

if TYPE_CHECKING:
    from tidelog import Client

    from .backup import Backup, Contents
    from .disk import RealDisk

NUMBER = click.IntRange(0, 2**63 - 1)


@contextmanager
def told(what: str) -> Iterator[None]:
    """An error of the disk as a sentence and an exit code. Raises Refused."""
    from .opening import ROOM_ERRORS

    try:
        yield
    except FileExistsError:
        raise  # its caller knows what is in the way
    except OSError as error:
        wrong_name = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
        code = EXIT_FULL if error.errno in ROOM_ERRORS else EXIT_USAGE if wrong_name else EXIT_IO
        raise Refused(f"{what}: {error.strerror}", code) from None


@contextmanager
def opened(path: Path) -> Iterator[RealDisk]:
    """The files of a directory. Raises OSError."""
    from .disk import RealDisk

    disk = RealDisk(path)
    try:
        yield disk
    finally:
        disk.close()


@click.command()
@click.argument("file")
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option("--data", metavar="DIR", help="A log that no broker runs on, instead of a running broker's.")
@click.option("--since", metavar="OLDER", help="Leave out the segments that this older backup has whole.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def backup(file: str, endpoint: str | None, data: str | None, since: str | None, force: bool, as_json: bool) -> None:
    """Copy a log to FILE, up to what is durable now, and read FILE back. The broker goes on meanwhile.

    For a running broker: on its host, as its user.
    """
    from .snapshot import take, write_backup

    if endpoint is not None and data is not None:
        raise click.UsageError("a running broker (--endpoint) or a stopped one's log (--data), not both")
    target = Path(os.path.abspath(file))
    if os.path.lexists(target) and not force:
        raise Refused(f"{file} is there already: give it another name, or --force to replace it", EXIT_USAGE)
    with ExitStack() as stack:
        older = None if since is None else stack.enter_context(backups([since]))[0]
        disk, ask = stack.enter_context(running(endpoint) if data is None else stopped(data))
        with told("the log can't be read"):
            snapshot = take(disk, ask, time.time_ns() // 1000, older)
        stack.callback(snapshot.close)
        try:
            with told(file), opened(target.parent) as folder:
                contents, size = write_backup(folder, target.name, snapshot)
        except FileExistsError:
            raise Refused(
                f"{file}.tmp is there: another backup is being written, or one was interrupted; then delete it",
                EXIT_TAKEN,
            ) from None
    whole = not any(snapshot.header.since)
    report = {"file": file, "bytes": size, "log_id": snapshot.header.log_id.hex(), **facts(contents, whole)}
    put(text.as_json(report) if as_json else f"{text.printable(file)}: {size:,} bytes, {words(contents, whole)}")


@contextmanager
def running(endpoint: str | None) -> Iterator[tuple[RealDisk, Callable[[], tuple[bytes, int]]]]:
    """The directory of a running broker's log, and what asks it for the log's id and its last durable group. Raises Refused."""
    os.nice(10)
    with connected(endpoint, 5.0) as client, ExitStack() as stack:
        data = client.info()["data"]
        try:
            disk = stack.enter_context(opened(Path(data)))
            disk.names()
        except OSError as error:
            raise Refused(
                f"the broker's log is in {data}, which can't be read here ({error.strerror}): "
                "run this on the broker's host, as its user",
                EXIT_IO,
            ) from None

        def ask() -> tuple[bytes, int]:
            found = client.info()
            return bytes.fromhex(found["log_id"]), found["groups"]

        yield disk, ask


@contextmanager
def stopped(data: str) -> Iterator[tuple[RealDisk, Callable[[], tuple[bytes, int]]]]:
    """The same of a log that no broker runs on: judged as a start would, and locked. Raises Refused, CorruptLog."""
    from .disk import Locked
    from .files import LogFiles, LogSettings

    with ExitStack() as stack:
        with told(data):
            disk = stack.enter_context(opened(Path(data)))
        try:
            disk.lock()
        except Locked as error:
            raise Refused(f"{error}: leave --data out to ask that broker", EXIT_TAKEN) from None

        def ask() -> tuple[bytes, int]:
            log = LogFiles.inspect(disk, LogSettings(), lambda ordinal, group: None)
            log.abandon()
            if log.damage is not None:
                raise log.damage
            return log.log_id, log.group

        yield disk, ask


@contextmanager
def backups(files: Sequence[str]) -> Iterator[list[Backup]]:
    """Backup files, each read from end to end. Raises Refused, CorruptLog, InvalidHeader."""
    from .backup import read_backup

    with ExitStack() as stack:
        found = []
        for name in files:
            path = Path(os.path.abspath(name))
            with told(name):
                file = stack.enter_context(opened(path.parent)).open(path.name)
                stack.callback(file.close)
                found.append(read_backup(file))
        yield found


@click.command()
@click.argument("file")
@click.argument("directory", required=False)
@click.option(
    "--since", metavar="OLDER", multiple=True, help="A backup that FILE was made since; repeat it for a chain."
)
@click.option("--dry-run", is_flag=True, help="Only check what would be restored.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def restore(file: str, directory: str | None, since: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Make DIRECTORY the log that FILE is a backup of. It must not exist, or be empty.

    Everything is checked before anything is written. Exit code 65: FILE is damaged, or no backup.
    """
    from .restore import Joined
    from .restore import restore as write

    if directory is None and not dry_run:
        raise click.UsageError("say which DIRECTORY the log shall be in, or --dry-run")
    target = None if directory is None else Path(directory).resolve()
    if target is not None:
        check_target(target)
    with backups([file, *since]) as found:
        joined = Joined(found)
        with told(file):
            contents = joined.judged()
        if target is not None and not dry_run:
            try:
                with told(str(target)):
                    write(joined, contents, target, os.urandom, opened)
            except FileExistsError:
                raise Refused(
                    f"{target}.restoring is there: another restore is running, or one was interrupted; then delete it",
                    EXIT_TAKEN,
                ) from None
        log_id = joined.header.log_id.hex()
    done = target is not None and not dry_run
    report = {"file": file, "directory": str(target) if done else None, "log_id": log_id, **facts(contents, True)}
    where = text.printable(str(target)) if done else f"{text.printable(file)} can be restored"
    put(text.as_json(report) if as_json else f"{where}: {words(contents, True)}")


def check_target(target: Path) -> None:
    """Raises Refused unless a log can get this name."""
    with told(str(target)):
        if os.path.ismount(target):
            raise Refused(f"{target} is where a disk is mounted: restore into a directory below it", EXIT_USAGE)
        if not target.parent.is_dir():
            raise Refused(f"{target.parent} is not a directory", EXIT_USAGE)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Refused(
                f"{target} is not empty: restore into a directory that is, or that does not exist", EXIT_USAGE
            )


def facts(contents: Contents, whole: bool) -> dict[str, Any]:
    """What a backup holds; a part of a log has no digest that can be compared with another's."""
    names = ("group", "first_position", "head", "segments", "groups", "batches", "events")
    return {name: getattr(contents, name) for name in names} | {"digest": contents.digest if whole else None}


def words(contents: Contents, whole: bool) -> str:
    """The same for people."""
    events = f"positions {contents.first_position} to {contents.head - 1}" if contents.events else "no events"
    rest = f"digest {contents.digest}" if whole else "to be restored with the backup that it was made since"
    return f"{events}, up to group {contents.group}, {contents.segments:,} segments\n{rest}"


# Events as lines


@click.command()
@click.option("--stream", metavar="STREAM", help="Only this stream; --start and --stop are its versions.")
@click.option("--category", metavar="NAME", help="Only the streams NAME/….")
@click.option("--start", type=NUMBER, help="Position to begin with.")
@click.option("--stop", type=NUMBER, help="Position before which to end.  [default: what the log holds now]")
@client_options
def export(
    client: Client, stream: str | None, category: str | None, start: int | None, stop: int | None, as_json: bool
) -> None:
    """Print the events as `tidelog import` takes them: a JSON object a line, everything that an event has."""
    if stream is not None and category is not None:
        raise click.UsageError("a --stream or a --category, not both")
    if stream is not None:
        end = client.stream_info(stream).last_version + 1 if stop is None else stop
        events = client.read_stream(stream, start, end)
    else:
        events = client.read_all(start, client.head() if stop is None else stop, category=category)
    for event in events:
        put(text.event_json(event))


@click.command(name="import")
@click.argument("file", default="-")
@click.option("--any", "unchecked", is_flag=True, help="Append the events whatever versions they get.")
@client_options
def import_(client: Client, file: str, unchecked: bool, as_json: bool) -> int:
    """Append the events of FILE, or of standard input, that `tidelog export` printed.

    They keep their ids, and their versions: a stream that has other events refuses them. A repeat is written once, as long as
    the broker remembers the ids. Positions and times are given anew.
    """
    from .cli import explain, feed_lines
    from .cli_lines import Feed

    def tell(error: Exception) -> tuple[str, int]:
        from tidelog.errors import WrongExpectedVersion

        if not isinstance(error, WrongExpectedVersion):
            return explain(error)
        actual = "no event" if error.actual is None else f"version {error.actual}"
        return f"{error.stream} has {actual}, so these can't get their versions (--any: give them others)", EXIT_FAILED

    feed = Feed(client, exported=True, checked=not unchecked)
    if file == "-":
        return feed_lines(feed, sys.stdin.buffer.fileno(), as_json, tell)
    with told(file):
        source = open(file, "rb")  # noqa: SIM115 (closed below: errors of what follows are others')
    with source as lines:
        return feed_lines(feed, lines.fileno(), as_json, tell)
