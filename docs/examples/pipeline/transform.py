"""Transform: each line becomes the list of its words, in the stream words/1: transform.py ENDPOINT

An output and the cursor behind its input are one append: both are in the log, or neither. The lease lets one process work at
a time; start a second one, and it takes over when the first is gone.
"""

import json
import sys
import time
from collections import deque

from tidelog import Appended, Client, CursorMoved, Event, Future, LeaseLost, Recorded, TidelogError

WINDOW = 64
"""So many appends may be under way."""


def transform(client: Client) -> None:
    """Go on where the cursor stands, for ever."""
    under_way: deque[Future[Appended]] = deque()
    with client.subscribe(category="lines", cursor="transform", lease=True, markers=True, checkpoint_idle=0.1) as lines:
        for item in lines:
            allowed = 0  # a marker: nothing comes at the moment, so see how everything ended
            if isinstance(item, Recorded):
                allowed = WINDOW
                words = json.dumps(item.payload.decode().split())
                under_way.append(client.append_nowait("words/1", Event("words", words.encode()), cursor=lines.cursor))
            while len(under_way) > allowed:
                under_way.popleft().result()


def main() -> None:
    (endpoint,) = sys.argv[1:]
    with Client(endpoint, timeout=30.0) as client:
        while True:
            try:
                transform(client)
            except (CursorMoved, LeaseLost) as error:
                # Another one works now. Wait for our turn, and go on where it came to.
                print(f"begin again: {error}", file=sys.stderr)
            except TidelogError as error:
                if not (error.retryable or error.maybe_applied):
                    raise
                print(f"begin again: {error}", file=sys.stderr)
                time.sleep(0.2)


if __name__ == "__main__":
    main()
