"""Programs that tests start as processes and kill: python -m sessions.client_programs NAME ENDPOINT ARGUMENTS…"""

from __future__ import annotations

import sys
from collections.abc import Callable
from uuid import UUID, uuid5

from tidelog import Client, CursorMoved, Event, LeaseLost
from tidelog.errors import SessionFenced

SPACE = UUID(int=7)
PATIENCE_S = 60.0


def count(endpoint: str, until: str, resume: str) -> None:
    """Append 1 … `until` in a session, number k as serial k, many ahead, every third only accepted at first."""
    with Client(endpoint, timeout=PATIENCE_S) as client:
        session = client.session("counter", resume=resume == "resume")
        print(session.last_serial, flush=True)
        numbers = range(session.last_serial + 1, int(until) + 1)
        futures = [
            session.append_nowait(
                "counted", Event("n", b"%d" % number, id=uuid5(SPACE, str(number))),
                durability="accepted" if number % 3 == 0 else "durable",
            )
            for number in numbers
        ]  # fmt: skip
        for future in futures:
            future.result()
        client.flush()


def move(endpoint: str, until: str) -> None:
    """Carry events from "in" to "out" by a leased cursor, as whoever holds it; say each number that was carried."""
    with Client(endpoint, timeout=PATIENCE_S) as client:
        while True:
            try:
                with client.subscribe("in", cursor="mover", lease=True) as sub:
                    print("holds", flush=True)
                    if sub.position >= int(until):
                        return
                    for event in sub:
                        client.append("out", Event("n", event.payload), cursor=sub.cursor)
                        print(event.payload.decode(), flush=True)
                        if sub.position >= int(until):
                            return
            except (CursorMoved, LeaseLost) as error:
                print(type(error).__name__, flush=True)


def hold(endpoint: str, cursor: str) -> None:
    """Take a lease and sit on it."""
    with Client(endpoint, timeout=PATIENCE_S) as client:
        print(client.acquire_cursor(cursor), flush=True)
        sys.stdin.read()


PROGRAMS: dict[str, Callable[..., None]] = {"count": count, "move": move, "hold": hold}

if __name__ == "__main__":
    try:
        PROGRAMS[sys.argv[1]](*sys.argv[2:])
    except SessionFenced:
        sys.exit(3)
