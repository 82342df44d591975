"""Count: how many lines and words there were so far, in the stream totals/1: count.py ENDPOINT

The newest total is the state. It was appended together with the cursor, so the two always fit.
"""

import json
import sys
import time

from tidelog import Client, CursorMoved, Event, StreamNotFound, TidelogError


def newest(client: Client) -> tuple[int, int]:
    """The state as it was stored last: (lines, words)."""
    try:
        total = next(client.read_stream("totals/1", limit=1, backwards=True))
    except StreamNotFound:
        return 0, 0
    lines, words = json.loads(total.payload)
    return lines, words


def count(client: Client) -> None:
    """Go on where the cursor stands, for ever."""
    with client.subscribe(category="words", cursor="count") as inputs:
        # Behind the cursor's position: if somebody moves it meanwhile, our first append is refused.
        lines, words = newest(client)
        for line in inputs:
            lines, words = lines + 1, words + len(json.loads(line.payload))
            total = json.dumps([lines, words]).encode()
            client.append("totals/1", Event("total", total), cursor=inputs.cursor)


def main() -> None:
    (endpoint,) = sys.argv[1:]
    with Client(endpoint, timeout=30.0) as client:
        while True:
            try:
                count(client)
            except CursorMoved as error:
                print(f"begin again: {error}", file=sys.stderr)
            except TidelogError as error:
                if not (error.retryable or error.maybe_applied):
                    raise
                print(f"begin again: {error}", file=sys.stderr)
                time.sleep(0.2)


if __name__ == "__main__":
    main()
