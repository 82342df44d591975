"""A process that appends until its standard input ends: python -m index.writing ENDPOINT COUNTS SLOT

Its appends are numbered 0, 1, 2 …, the number is the payload, and they go to the streams `w<SLOT>/<number % 97>`. In the file
COUNTS, behind 8 bytes for each slot before, stands how many in a row were acknowledged. A broker that dies is waited for.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from itertools import count

from tidelog import Appended, Client, Event
from tidelog.link import Future

IN_FLIGHT = 32
PATIENCE_S = 60.0


def main() -> None:
    endpoint, counts, slot = sys.argv[1:4]
    file = os.open(counts, os.O_RDWR)
    with Client(endpoint, timeout=PATIENCE_S) as client:
        calls: deque[Future[Appended]] = deque()
        acknowledged = 0
        for number in count():
            calls.append(client.append_nowait(f"w{slot}/{number % 97}", Event("n", b"%d" % number)))
            if len(calls) >= IN_FLIGHT:
                calls.popleft().result()
                acknowledged += 1
                os.pwrite(file, acknowledged.to_bytes(8, "little"), 8 * int(slot))
            if not number % IN_FLIGHT and select.select([sys.stdin], [], [], 0)[0]:
                break
        for call in calls:
            call.result()
            acknowledged += 1
        os.pwrite(file, acknowledged.to_bytes(8, "little"), 8 * int(slot))


if __name__ == "__main__":
    main()
