"""A subscriber in a process of its own. Run as `worker.py JOB ENDPOINT OPTIONS`; OPTIONS is JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

from tidelog import CaughtUp, Checkpoint, Client, Event, Lagged


def say(*words: object) -> None:
    print(*words, flush=True)


def follow(client: Client, until: int, **options: Any) -> None:
    """Deliver until version or position `until`; says whether there was a hole, and where it ended."""
    place = 2 if options.get("stream") else 0
    expected = options.get("start") or 0
    with client.subscribe(markers=True, **options) as sub:
        try:
            for item in sub:
                if isinstance(item, CaughtUp):
                    say("caught-up", item.position)
                elif not isinstance(item, Checkpoint):
                    if item[place] != expected:
                        say("hole", expected, item[place])
                        return
                    expected = item[place] + 1
                    if expected == until:
                        break
        except Lagged as error:
            say("lagged", error.position, sub.position, expected)
            return
        say("done", sub.position)


def interrupts(client: Client, until: int, **options: Any) -> None:
    """Ctrl-C again and again; each time the same subscription is iterated on.

    The handler is Python's own but for where it may raise: only inside the block that catches it, or the interrupt that comes
    between two rounds would end this process, and that would say nothing about the subscription.
    """
    times = 0
    armed = False
    seen: list[int] = []
    caught_up: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    with client.subscribe(**options) as sub:
        say("begun")
        while not seen or seen[-1] < until - 1:
            try:
                armed = True
                for item in sub:
                    # Nothing between the iteration and these steps looks at signals, so nothing is lost here.
                    if item.__class__ is CaughtUp:
                        caught_up.append(len(seen))
                    elif item.__class__ is not Checkpoint:
                        seen.append(item[0])
                        if seen[-1] >= until - 1:
                            armed = False
                            break
            except KeyboardInterrupt:
                times += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lost = sorted(set(range(until)) - set(seen))[:10]
        say("done", json.dumps([times, len(seen), lost, seen == sorted(set(seen)), caught_up, sub.position]))


def one_interrupt(client: Client, **options: Any) -> None:
    """Ctrl-C while it waits: out of the loop, out of both blocks, and the process ends."""
    with client.subscribe(markers=True, **options) as sub:
        for item in sub:
            say("item", item[0])


def leave(client: Client, how: str) -> None:
    """Live subscriptions, and the end of the process without closing anything."""
    subs = [client.subscribe(), client.subscribe(stream="absent"), client.subscribe(category="c", start="end")]
    for sub in subs:
        threading.Thread(target=lambda sub=sub: list(sub), daemon=True).start()
    never = client.subscribe(markers=True)
    while not isinstance(next(never), CaughtUp):
        pass
    say("live")
    time.sleep(0.5)
    say("leaving")
    if how == "raise":
        raise RuntimeError("on purpose")
    if how == "exit":
        sys.exit(3)


def flood(client: Client, stream: str, window: int, size: int) -> None:
    """Appends without a pause until it is killed: there are always some under way."""
    waiting = deque(client.append_nowait(stream, Event("t", b"n" * size), timeout=60.0) for _ in range(window))
    say("flooding")
    while True:
        waiting.popleft().result()
        waiting.append(client.append_nowait(stream, Event("t", b"n" * size), timeout=60.0))


def fork(client: Client, **options: Any) -> None:
    """A forked child has no subscription, and its end takes nothing from the parent's."""
    sub = client.subscribe(markers=True, **options)
    while not isinstance(next(sub), CaughtUp):
        pass
    child = os.fork()
    if child == 0:
        try:
            next(sub)
        except BaseException as error:
            say("child", type(error).__name__)
        sub.close()
        del sub
        sys.exit(0)
    say("child-code", os.waitpid(child, 0)[1])
    say("ready")
    item = next(sub)
    say("parent", item[0])


if __name__ == "__main__":
    given = json.loads(sys.argv[3])
    main_client = Client(sys.argv[2], timeout=20.0)
    globals()[sys.argv[1]](main_client, **given)
    if sys.argv[1] != "leave":
        main_client.close()
        say("closed")
