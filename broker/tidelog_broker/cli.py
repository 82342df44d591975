"""The command line."""

import os
import sys

import click

from .config import load_config


@click.group()
def main() -> None:
    """Tidelog."""


@main.command()
@click.option("--data")
@click.option("--bind", multiple=True)
def serve(data: str | None, bind: tuple[str, ...]) -> None:
    """Run a broker."""
    from .serve import serve as run

    sys.exit(run(load_config(data, bind, {}, None, os.environ)))
