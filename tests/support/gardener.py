"""A process that truncates now and then and notes down what it was told: python -m support.gardener ENDPOINT NOTES SEED

Mostly far behind the head, so that subscribers go on undisturbed and much of the log is there to be judged; sometimes right up
to it. Between two truncations it reads from a place that may be gone. It ends when its standard input does; the rows are those of
support/histories.py.
"""

from __future__ import annotations

import random
import sys
import threading
import time

from support.writer import PATIENCE_S, Notes, sighting, until_told
from tidelog import Client, TidelogError, Truncated

PAUSE_S = 0.3
NEAR = 300
"""Positions that are mostly left in front of the head."""


class Gardener:
    """One life of it."""

    def __init__(self, client: Client, notes: Notes, seed: int) -> None:
        self._client = client
        self._notes = notes
        self._random = random.Random(seed)
        self._first = 0
        self._number = 0

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            self._look()
            self._cut()
            over.wait(self._random.uniform(0.0, PAUSE_S))
        self._look()
        self._notes.note("end")

    def _look(self) -> None:
        """A few events from the first position on that may be left, or from before it."""
        start = self._random.choice([0, max(0, self._first - 1), self._first])
        began = time.monotonic_ns()
        try:
            found = [sighting(event) for event in self._client.read_all(start, limit=3)]
            self._notes.note("read", began=began, scope="", events=found)
        except Truncated as error:
            self._first = error.first_available
            self._notes.note("truncated", began=began, start=start, first=error.first_available)
        except TidelogError as error:
            if not error.retryable:
                raise

    def _cut(self) -> None:
        try:
            head = self._client.head()
        except TidelogError as error:
            if not error.retryable:
                raise
            return
        if self._random.random() < 0.02:
            position = max(0, head - self._random.choice([0, 1, 3, 40]))
        else:
            room = max(0, head - NEAR - self._first)
            position = self._first + int(room * self._random.random() ** 4)
        self._number += 1
        self._notes.note("cut", number=self._number, position=position)
        try:
            self._first = self._client.truncate_before(position)
            self._notes.note("cut_ack", number=self._number, first=self._first)
        except TidelogError as error:
            self._notes.note(
                "cut_failed", number=self._number, error=f"{type(error).__name__}: {error}", unknown=error.retryable
            )


def main() -> None:
    endpoint, path, seed = sys.argv[1:]
    over = until_told()
    with Client(endpoint, timeout=PATIENCE_S) as client:
        Gardener(client, Notes(path), int(seed)).run(over)


if __name__ == "__main__":
    main()
