"""`tidelog bench`: Tidelog measured beside its limits. docs/PERFORMANCE.md tells what the figures mean.

Nothing is imported here but click, so that the command line may name this command without paying for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

EXIT_USAGE, EXIT_IO = 64, 74


@click.command(name="bench")
@click.argument("workloads", nargs=-1)
@click.option("--repeat", type=click.IntRange(1, 100), help="How often each is measured; 5, or 1 with --quick.")
@click.option("--quick", is_flag=True, help="Small counts: whether it runs, not how fast.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Where the logs lie meanwhile; here if not given."
)
def command(workloads: tuple[str, ...], repeat: int | None, quick: bool, as_json: bool, data: Path | None) -> None:
    """Measure WORKLOADS (W1 … W7, memory; all if none is named) beside their limits on this machine."""
    sys.exit(run(workloads, repeat, quick=quick, as_json=as_json, data=data))


def main(argv: Sequence[str]) -> None:
    """The command with these arguments; ends by SystemExit."""
    command.main(args=list(argv), prog_name="tidelog bench")


def run(
    workloads: Sequence[str] = (),
    repeat: int | None = None,
    *,
    quick: bool = False,
    as_json: bool = False,
    data: Path | None = None,
) -> int:
    """Measure and print → the exit code. Logs lie in a new directory under `data`, which goes with the run."""
    from .run import measure

    return measure(workloads, repeat or (1 if quick else 5), quick=quick, as_json=as_json, data=data or Path.cwd())
