"""Ingest: the lines of a file into the stream lines/1, each once and in order: ingest.py ENDPOINT FILE

Line k is append k of the session "ingest", so the session itself tells how much of the file is in the log.
"""

import sys
import time
from collections import deque
from itertools import islice

from tidelog import Appended, Client, Event, Future, SessionFenced, TidelogError

WINDOW = 64
"""So many appends may be under way."""


def ingest(client: Client, path: str) -> None:
    """Append what is not in the log yet."""
    session = client.session("ingest")
    under_way: deque[Future[Appended]] = deque()
    with open(path, "rb") as lines:
        for line in islice(lines, session.last_serial, None):
            under_way.append(session.append_nowait("lines/1", Event("line", line.rstrip(b"\n"))))
            if len(under_way) == WINDOW:
                under_way.popleft().result()
    for appended in under_way:
        appended.result()


def main() -> None:
    endpoint, path = sys.argv[1:]
    with Client(endpoint, timeout=30.0) as client:
        while True:
            try:
                return ingest(client, path)
            except SessionFenced:
                # Whoever begins again here would fence the other, and be fenced by it, for ever.
                sys.exit("another ingest has taken over")
            except TidelogError as error:
                if not (error.retryable or error.maybe_applied):
                    raise
                print(f"begin again: {error}", file=sys.stderr)
                time.sleep(0.2)


if __name__ == "__main__":
    main()
