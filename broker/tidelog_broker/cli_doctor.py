"""`tidelog doctor`: one page of what an operator should know."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import cli_text as text
from .cli_log import opened
from .cli_shared import EXIT_CORRUPT, EXIT_FAILED, Refused, connected, put

if TYPE_CHECKING:
    from tidelog import Client

    from .directory import Directory
    from .disk import RealDisk
    from .doctor import Broker, Facts, Finding


@click.command()
@click.option("--data", metavar="DIR", help="A log on which no broker runs; else a running broker is asked.")
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option(
    "--timeout", type=click.FloatRange(0, 1e9), default=5.0, show_default=True, metavar="SECONDS",
    help="How long to wait for the broker's answers.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def doctor(data: str | None, endpoint: str | None, timeout: float, as_json: bool) -> int:
    """Print one page of what an operator should know: each line ok, look or act, and what to do.

    Changes nothing and reads no event; `tidelog verify` does that. Exit code 0: all is well; 1: something to look at.
    """
    from .doctor import OK, examine, worst

    if data is not None and endpoint is not None:
        raise click.UsageError("--data for a log on which no broker runs, or --endpoint for a running broker, not both")
    facts = _running(endpoint, timeout) if data is None else _stopped(data)
    findings = examine(facts)
    verdict = worst(findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        directory = asdict(facts.directory) if facts.directory else None
        put(
            text.as_json(
                {"verdict": verdict, "running": facts.broker is not None, "findings": rows, "directory": directory}
            )
        )
    else:
        put(page(findings))
    return 0 if verdict == OK else EXIT_FAILED


def page(findings: Sequence[Finding]) -> str:
    """A line each, what to do below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(text.printable(f"{finding.verdict:<4}  {finding.name:<{width}}  {finding.says}"))
        if finding.do:
            lines.append(text.printable(f"      {'':<{width}}  → {finding.do}"))
    return "\n".join(lines)


def _running(endpoint: str | None, timeout: float) -> Facts:
    """Of the broker, and of its directory where that can be looked at."""
    from tidelog.errors import TidelogError

    from .disk import RealDisk
    from .doctor import Facts

    with connected(endpoint, timeout) as client:
        broker = _ask(client)
    if broker.info is None:
        return Facts(broker=broker)
    where = Path(broker.info["data"])
    try:
        disk = RealDisk(where)
        try:
            directory = _look(disk)
        finally:
            disk.close()
        if directory.log_id != broker.info["log_id"]:
            return Facts(broker=broker, no_directory=f"{where} holds another log here")
        return _with_file_system(directory, broker)
    except (OSError, TidelogError) as error:
        return Facts(broker=broker, no_directory=f"{where} can't be looked at from here: {error}")


def _ask(client: Client) -> Broker:
    """Health first: it answers while a disk hangs, and then nothing else may."""
    from tidelog import errors

    from .doctor import Broker

    health = client.health()
    try:
        return Broker(health=health, info=client.info(), check=client.verify(), checkpoint=client.checkpoint())
    except (errors.DeadlineExceeded, errors.ConnectionLost, errors.Unavailable):
        return Broker(health=health)


def _stopped(data: str) -> Facts:
    """Of a directory; no broker may have it. Raises Refused."""
    from tidelog.errors import CorruptLog, InvalidHeader

    with opened(data, alone=True) as disk:
        try:
            return _with_file_system(_look(disk), None)
        except (InvalidHeader, CorruptLog) as error:
            raise Refused(f"{data}: {error}", EXIT_CORRUPT) from None


def _look(disk: RealDisk) -> Directory:
    from .directory import look

    return look(disk, time.time())


def _with_file_system(directory: Directory, broker: Broker | None) -> Facts:
    from .doctor import Facts
    from .serve import REMOTE_FILE_SYSTEMS, file_system

    kind = file_system(Path(directory.path))
    remote = kind.startswith(REMOTE_FILE_SYSTEMS)
    return Facts(broker=broker, directory=directory, file_system=kind, remote=remote)
