"""A process that appends and truncates until its standard input ends: python -m truncate.killed ENDPOINT STATE SEED

Its appends are numbered from 0, the number is the payload of each of their two events. In the file STATE stand two numbers of 8
bytes, each written behind the acknowledgement: how many appends in a row were acknowledged, and the greatest position that a
truncation was answered with. Broker deaths are lived through; a DeadlineExceeded ends it with an error.
"""

from __future__ import annotations

import os
import random
import select
import sys
from collections import deque
from itertools import count

from tidelog import Appended, Client, Event
from tidelog.link import Future

IN_FLIGHT = 8
PATIENCE_S = 60.0
STREAMS = 7


def main(endpoint: str, state: str, seed: str) -> None:
    file = os.open(state, os.O_RDWR | os.O_CREAT, 0o600)
    dice = random.Random(seed)
    with Client(endpoint, timeout=PATIENCE_S) as client:
        calls: deque[Future[Appended]] = deque()
        acknowledged = 0
        head = 0
        for number in count():
            events = [Event("n", b"%d " % number + bytes(dice.randrange(8_000))), Event("n", b"%d" % number)]
            calls.append(client.append_nowait(f"k/{number % STREAMS}", events))
            if len(calls) >= IN_FLIGHT:
                last = calls.popleft().result().last_position
                assert last is not None
                head = last + 1
                acknowledged += 1
                os.pwrite(file, acknowledged.to_bytes(8, "little"), 0)
            if dice.random() < 0.02 and head:
                first = client.truncate_before(max(0, head - dice.choice((0, 1, 3, 40, 300))))
                os.pwrite(file, first.to_bytes(8, "little"), 8)
            if select.select([0], [], [], 0)[0]:
                break
        for call in calls:
            call.result()
            acknowledged += 1
        os.pwrite(file, acknowledged.to_bytes(8, "little"), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
