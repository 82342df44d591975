"""The command line: `tidelog COMMAND`.

Owns what the commands are called and the exit codes (spec §16); what they print is cli_text's, what `append -` reads
cli_lines', both without I/O. Every failure is one line on stderr that begins with "tidelog:" and says what to do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import cli_text as text
from .cli_backup import backup, export, import_, restore
from .cli_cursors import cursors
from .cli_doctor import doctor
from .cli_log import checkpoint, repair, truncate, verify
from .cli_migrate import migrate
from .cli_shared import (
    EXIT_BROKEN_PIPE,
    EXIT_CORRUPT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_IO,
    EXIT_UNREACHABLE,
    EXIT_UNSAFE,
    EXIT_USAGE,
    Refused,
    client_options,
    put,
)
from .config import FLAGS, NUMBERS, Config, WrongSetting, load_config
from .endpoints import UnsafeEndpoint, WrongEndpoint, default_endpoint, parse_endpoint
from .version import VERSION

if TYPE_CHECKING:
    from uuid import UUID

    from tidelog import Client, Recorded

    from .cli_lines import Feed

# From what went wrong to one line and an exit code


class Main(click.Group):
    """The group of all commands. Calling it runs the command line and ends the process."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of this file."""
        return list(self.commands)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            code = self._run(sys.argv[1:])
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read our output has gone; the interpreter's own flush at exit must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_BROKEN_PIPE
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = _say(f"input or output failed: {error.strerror}", EXIT_IO)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        sys.exit(code)

    def _run(self, arguments: list[str]) -> int:
        """Not `click.Command.main`, which answers interrupts and broken pipes in its own way."""
        from tidelog.errors import TidelogError

        try:
            with self.make_context("tidelog", arguments) as context:
                result = self.invoke(context)
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "tidelog"
            return _say(f"{error.format_message()} (see `{path} --help`)", EXIT_USAGE)
        except (WrongSetting, WrongEndpoint) as error:
            return _say(str(error), EXIT_USAGE)
        except UnicodeEncodeError as error:
            return _say(f"an argument is not UTF-8: {error.object}", EXIT_USAGE)
        except UnsafeEndpoint as error:
            return _say(str(error), EXIT_UNSAFE)
        except Refused as error:
            return _say(str(error), error.code)
        except TidelogError as error:
            return _say(*explain(error))
        return result if isinstance(result, int) else 0


def _say(why: str, code: int) -> int:
    print(f"tidelog: {text.printable(why)}", file=sys.stderr, flush=True)
    return code


def explain(error: Exception) -> tuple[str, int]:
    """A client's error as a sentence that says what to do, and the exit code."""
    from tidelog import errors

    why = str(error)
    if isinstance(error, errors.DeadlineExceeded) and error.maybe_applied:
        return f"{why}; what was sent may be in the log: read the stream before you repeat it", EXIT_UNREACHABLE
    if isinstance(error, errors.Unavailable) and error.reason == "read-only":
        return why, EXIT_FAILED
    if isinstance(error, errors.DeadlineExceeded | errors.ConnectionLost | errors.Unavailable):
        return f"{why}; is a broker running there? Start one with `tidelog serve`, or name another with --endpoint", (
            EXIT_UNREACHABLE
        )
    if isinstance(error, errors.CorruptLog | errors.InvalidHeader):
        return why, EXIT_CORRUPT
    if isinstance(error, errors.WrongExpectedVersion):
        actual = "no event" if error.actual is None else f"version {error.actual}"
        return f"{error.stream} has {actual}, not what --expected says; nothing was written", EXIT_FAILED
    if isinstance(error, errors.StreamNotFound):
        return f"there is no stream {error.stream!r}: `tidelog streams` lists those there are", EXIT_FAILED
    if isinstance(error, errors.Truncated):
        return f"{why}; read with --start {error.first_available}", EXIT_FAILED
    if isinstance(error, errors.StorageFull):
        return f"{why}; nothing was written: make room on the broker's disk", EXIT_FAILED
    if isinstance(error, errors.OutcomeUnknown):
        return f"{why}; what was sent may be in the log: read the stream before you repeat it", EXIT_FAILED
    return why, EXIT_USAGE if isinstance(error, errors.InvalidArgument) else EXIT_FAILED


def put_events(events: Iterable[Recorded], as_json: bool, live: bool = False) -> None:
    """Events, a line each; `live` ones are written at once."""
    row = text.event_json if as_json else text.event_line
    for event in events:
        put(row(event))
        if live:
            sys.stdout.flush()


@click.group(
    cls=Main, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Tidelog, a durable event log for many processes. `tidelog serve --data DIR` starts a broker."""


# The broker


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for each setting; their values are checked by config.py, like those of file and environment."""
    for name, words in reversed(FLAGS.items()):
        command = click.option(_flag(name), name, is_flag=True, help=words.capitalize() + ".")(command)
    for setting in reversed(NUMBERS):
        words = f"{setting.help.capitalize()}, {setting.minimum} to {setting.maximum}."
        command = click.option(
            _flag(setting.name),
            setting.name,
            metavar=setting.unit.upper(),
            help=f"{words}  [default: {setting.default}]",
        )(command)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@main.command(epilog="Every flag can also be given as TIDELOG_NAME in the environment, or as name in the TOML file.")
@click.option("--data", metavar="DIR", help="Where the log is; made if it is not there.")
@click.option("--bind", metavar="ENDPOINT", multiple=True, help="Where to listen; may be repeated.")
@click.option("--config", metavar="FILE", help="A TOML file of settings.")
@click.option("--check", is_flag=True, help="Check the settings and do nothing else.")
@settings_options
def serve(data: str | None, bind: tuple[str, ...], config: str | None, check: bool, **given: Any) -> int:
    """Run a broker until SIGTERM or Ctrl-C. Prints a line that begins with "ready" once it answers."""
    checked = load_config(data, bind, given, config, os.environ)
    check_endpoints(checked)
    if check:
        put("the settings are good")
        return 0
    from .serve import serve as run

    return run(checked)


def check_endpoints(config: Config) -> None:
    """Raises WrongSetting that names the setting, or UnsafeEndpoint."""
    for endpoint in config.bind or (default_endpoint(config.data, os.environ),):
        try:
            parse_endpoint(endpoint)
        except WrongEndpoint as error:
            raise WrongSetting(f"bind: {error}") from None


# Appending

EXPECTED = "any, none, exists or a version"


def parse_expected(word: str) -> Any:
    """--expected as the client's word for it. Raises click.UsageError."""
    from tidelog import ANY, EXISTS, NO_STREAM

    words: dict[str, Any] = {"any": ANY, "none": NO_STREAM, "exists": EXISTS}
    if word in words:
        return words[word]
    if not word.isascii() or not word.isdecimal():
        raise click.UsageError(f"--expected {word}: {EXPECTED}")
    return int(word)


def parse_id(word: str | None) -> UUID | None:
    """--id as a UUID. Raises click.UsageError."""
    from uuid import UUID

    try:
        return None if word is None else UUID(word)
    except ValueError:
        raise click.UsageError(f"--id {word}: not a UUID") from None


@main.command()
@click.argument("stream")
@click.argument("type", required=False)
@click.argument("payload", default="")
@click.option("--metadata", default="", help="Opaque text beside the payload.")
@click.option("--id", "event_id", metavar="UUID", help="The event's id; a repeat with the same id is written once.")
@click.option("--expected", metavar="VERSION", help=f"What the stream must be at: {EXPECTED}.  [default: any]")
@client_options
def append(
    client: Client, stream: str, type: str | None, payload: str, metadata: str, event_id: str | None,
    expected: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Append one event, or with - instead of STREAM the events of standard input, a JSON object a line.

    \b
    {"stream": "orders/17", "type": "placed", "payload": {"total": 4}}
    Keys: stream, type; payload (text, or any JSON value, stored as JSON text) or payload_b64;
    metadata or metadata_b64; id. What `tidelog read --json` prints can be read.
    """
    if type is None:
        if stream != "-" or metadata or event_id is not None or expected is not None:
            raise click.UsageError("append needs STREAM TYPE [PAYLOAD], or only - and JSON lines on standard input")
        from .cli_lines import Feed

        return feed_lines(Feed(client), sys.stdin.buffer.fileno(), as_json, explain)
    from tidelog import Event

    event = Event(type, os.fsencode(payload), os.fsencode(metadata), parse_id(event_id))
    appended = client.append(stream, event, parse_expected("any" if expected is None else expected))
    put(text.appended_json(stream, appended) if as_json else text.appended_line(stream, appended))
    return 0


def feed_lines(feed: Feed, descriptor: int, as_json: bool, tell: Callable[[Exception], tuple[str, int]]) -> int:
    """Lines to the log: batches of neighbours on one stream, many in flight, in the order of the lines. `tell`: as `explain`."""
    progress = Progress(0 if as_json and sys.stdout.isatty() else 2)
    try:
        for row in feed.run(descriptor):
            if as_json:
                put(text.appended_json(row.stream, row.appended))
                sys.stdout.flush()
            progress.show(feed.events)
    finally:
        progress.end(feed.events)
    if not as_json:
        put(text.feed_line(feed.events, feed.appends, feed.repeated, feed.last_position))
    if feed.failed is None:
        return 0
    why, code = tell(feed.failed.error) if feed.failed.error else (feed.failed.why, EXIT_USAGE)
    first, last = feed.failed.first, feed.failed.last
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    raise Refused(
        f"{lines}: {why}; {feed.events} events of other lines are in the log, and nothing behind line {feed.sent_line} was sent",
        code,
    )


class Progress:
    """A count that moves on a terminal's line; silent elsewhere. Descriptor 0 means: show nothing."""

    def __init__(self, descriptor: int) -> None:
        self._on = descriptor != 0 and os.isatty(descriptor)
        self._started = time.monotonic()
        self._next = self._started + 0.2

    def show(self, count: int) -> None:
        """Draw it, at most ten times a second."""
        now = time.monotonic()
        if self._on and now >= self._next:
            self._next = now + 0.1
            print(f"\r{count:,} events  {count / (now - self._started):,.0f}/s ", end="", file=sys.stderr, flush=True)

    def end(self, count: int) -> None:
        """Take it away."""
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# Reading

NUMBER = click.IntRange(0, 2**63 - 1)


def scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """[STREAM] | --category, and --type."""
    command = click.option("--type", "types", multiple=True, help="Only events of this type; may be repeated.")(command)
    command = click.option("--category", metavar="NAME", help="The streams NAME/… instead of one stream.")(command)
    return click.argument("stream", required=False)(command)


def check_scope(stream: str | None, category: str | None) -> None:
    if stream is not None and category is not None:
        raise click.UsageError("a STREAM or a --category, not both")


@main.command()
@scope_options
@click.option("--start", type=NUMBER, help="Version of the stream, else position, to begin with.")
@click.option("--stop", type=NUMBER, help="Version or position before which to end.")
@click.option("--limit", type=NUMBER, help="At most so many events, counted from the end with --backwards.")
@click.option("--backwards", is_flag=True, help="The same range, last event first.")
@client_options
def read(
    client: Client, stream: str | None, category: str | None, types: Sequence[str], start: int | None,
    stop: int | None, limit: int | None, backwards: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the events of STREAM, of a category, or of the whole log."""
    check_scope(stream, category)
    wanted = types or None
    if stream is not None:
        events = client.read_stream(stream, start, stop, limit, backwards, types=wanted)
    else:
        events = client.read_all(start, stop, limit, backwards, types=wanted, category=category)
    put_events(events, as_json)


@main.command()
@scope_options
@click.option(
    "--start", default="end", show_default=True, metavar="end|first|N",
    help="Only what comes, or everything first, or from this version of the stream (else position) on.",
)  # fmt: skip
@click.option("-n", "count", type=click.IntRange(1, 2**63 - 1), metavar="COUNT", help="End after so many events.")
@client_options
def tail(
    client: Client, stream: str | None, category: str | None, types: Sequence[str], start: str, count: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Follow STREAM, a category, or the whole log, until Ctrl-C."""
    from itertools import islice

    check_scope(stream, category)
    begin: Any = {"end": "end", "first": None}.get(start, start)
    if begin not in ("end", None):
        if not start.isascii() or not start.isdecimal():
            raise click.UsageError(f"--start {start}: end, first, or a number")
        begin = int(start)
    with client.subscribe(stream, category, begin, types or None) as subscription:
        put_events(islice(subscription, count), as_json, live=True)


# Asking


@main.command()
@client_options
def head(client: Client, as_json: bool) -> None:
    """Print the position that the next event will have."""
    position = client.head()
    put(text.as_json({"head": position}) if as_json else str(position))


@main.command()
@click.argument("prefix", default="")
@client_options
def streams(client: Client, prefix: str, as_json: bool) -> None:
    """List the streams, those whose names begin with PREFIX."""
    row = text.stream_json if as_json else text.stream_line
    for stream in client.list_streams(prefix):
        put(row(stream))


@main.command()
@click.argument("stream", required=False)
@client_options
def info(client: Client, stream: str | None, as_json: bool) -> None:
    """Print figures about STREAM, or about the broker."""
    figures = client.info() if stream is None else client.stream_info(stream)._asdict()
    put(text.as_json(figures) if as_json else text.figures(figures))


@main.command()
@client_options
def health(client: Client, as_json: bool) -> int:
    """Ask whether the broker is ready; exit code 0 if it is, 1 if not. Answers while a disk hangs."""
    found = client.health()
    put(text.as_json(found._asdict()) if as_json else text.health_line(found))
    return 0 if found.ready else EXIT_FAILED


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure this machine: [WORKLOADS…] [--repeat N] [--quick] [--json]."""
    from .bench import command

    with command.make_context("tidelog bench", list(arguments)) as context:
        command.invoke(context)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def version(as_json: bool) -> None:
    """Print the version of this program, and of what it stands on."""
    import platform

    import msgpack
    import zmq
    from tidelog.wire import PROTOCOL

    from .core.format import VERSION as FORMAT

    found = {
        "version": VERSION,
        "protocol": PROTOCOL,
        "format": FORMAT,
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "msgpack": ".".join(map(str, msgpack.version)),
    }
    put(text.as_json(found) if as_json else f"tidelog {VERSION}")


main.add_command(checkpoint)
main.add_command(cursors)
main.add_command(truncate)
main.add_command(verify)
main.add_command(repair)
main.add_command(doctor)
main.add_command(migrate)
for command in (backup, restore, export, import_):
    main.add_command(command)
