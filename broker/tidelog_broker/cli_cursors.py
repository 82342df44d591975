"""`tidelog cursors`: where consumers stand, and what an operator may do about it."""

from __future__ import annotations

import click

from . import cli_text as text
from .cli_shared import EXIT_USAGE, Refused, connected, put


@click.command()
@click.argument("name", default="", metavar="[PREFIX | NAME]")
@click.option(
    "--set", "position", type=click.IntRange(0, 2**63 - 1), help="Put the cursor NAME here, wherever it stands."
)
@click.option("--release", is_flag=True, help="Take the lease of the cursor NAME from whoever holds it.")
@click.option("--endpoint", metavar="ENDPOINT", help="The running broker.  [default: as for `tidelog read`]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a cursor.")
def cursors(name: str, position: int | None, release: bool, endpoint: str | None, as_json: bool) -> int:
    """List the cursors, those whose names begin with PREFIX, or change the one called NAME.

    A position is in the unit of what the consumer reads: a version for one stream, else a global position.
    """
    if (release or position is not None) and not name:
        raise Refused("say which cursor: tidelog cursors NAME --set POSITION", EXIT_USAGE)
    with connected(endpoint, 5.0) as client:
        if release:
            client.break_lease(name)
        if position is not None:
            client.set_cursor(name, position)
        found = [client.cursor(name)] if release or position is not None else client.cursors(name)
        for cursor in found:
            put(text.as_json(cursor._asdict()) if as_json else text.cursor_line(cursor))
    return 0
