"""A process that appends until its standard input ends: python -m backup.load ENDPOINT STREAM COUNTS.

COUNTS is a file of 8 bytes: how many appends were acknowledged, so that others know what must be there.
"""

from __future__ import annotations

import os
import select
import sys
from hashlib import blake2b

from tidelog import Client, Event

EVENTS = 3


def payload(stream: str, number: int) -> bytes:
    """What the n-th event of a stream holds: 4 KiB that no other event has."""
    return blake2b(b"%s %d" % (stream.encode(), number), digest_size=64).digest() * 64


def main(endpoint: str, stream: str, counts: str) -> None:
    file = os.open(counts, os.O_WRONLY | os.O_CREAT, 0o600)
    acknowledged = 0
    with Client(endpoint, timeout=60.0) as client:
        while not select.select([0], [], [], 0)[0]:
            first = acknowledged * EVENTS
            client.append(stream, [Event("t", payload(stream, first + place)) for place in range(EVENTS)])
            acknowledged += 1
            os.pwrite(file, acknowledged.to_bytes(8, "little"), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
