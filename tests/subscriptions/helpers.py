"""Subscriptions at work: in a thread, behind a forwarder that loses messages, and in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zmq
from support.process import until
from tidelog import CaughtUp, Checkpoint, Client, DeadlineExceeded, Event

WORKER = Path(__file__).with_name("worker.py")
Message = tuple[bytes, bytes]
PATIENCE_S = 30.0
"""How long a test waits for what must come: no claim, only an end, on a machine that does other things too."""


def small(count: int, kind: str = "t", payload: bytes = b"") -> list[Event]:
    """`count` small events, each payload telling its number."""
    return [Event(kind, payload or str(number).encode()) for number in range(count)]


def fill(client: Client, stream: str, appends: int, payload: bytes = b"x", kind: str = "t") -> None:
    """That many appends of one event, pipelined, all durable on return."""
    futures = [client.append_nowait(stream, Event(kind, payload), timeout=30.0) for _ in range(appends)]
    for future in futures:
        future.result()


class Follower:
    """A subscription that a thread of its own iterates; everything it gave is in `items`."""

    def __init__(self, subscription: Any, pause: Callable[[], None] | None = None) -> None:
        self.subscription = subscription
        self.items: list[Any] = []
        self.error: BaseException | None = None
        self._pause = pause
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __repr__(self) -> str:
        """For the message of a failed assertion: how far it came, and why it ended if it did."""
        return f"<Follower: {len(self.events)} events, next {self.subscription.position}, error {self.error!r}>"

    def _run(self) -> None:
        try:
            for item in self.subscription:
                self.items.append(item)
                if self._pause is not None:
                    self._pause()
        except BaseException as error:
            self.error = error

    @property
    def events(self) -> list[Any]:
        return [item for item in self.items if not isinstance(item, CaughtUp | Checkpoint)]

    @property
    def markers(self) -> list[Any]:
        return [item for item in self.items if isinstance(item, CaughtUp | Checkpoint)]

    @property
    def positions(self) -> list[int]:
        return [event.position for event in self.events]

    @property
    def versions(self) -> list[int]:
        return [event.version for event in self.events]

    @property
    def caught_up(self) -> bool:
        return any(isinstance(item, CaughtUp) for item in self.items)

    def wait(self, events: int, timeout: float = PATIENCE_S) -> bool:
        """Whether it has given that many events before the time is over."""
        return until(lambda: self.error is not None or len(self.events) >= events, timeout) and self.error is None

    def end(self, timeout: float = PATIENCE_S) -> None:
        """Stop it; it must end by itself."""
        self.subscription.stop()
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the subscription did not stop"
        self.subscription.close()


class Writer(threading.Thread):
    """Appends to streams in turn until told to end; `acknowledged` holds (stream, first version) of each durable one."""

    def __init__(self, endpoint: str, streams: list[str], pace: float, batch: int = 1) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[tuple[str, int]] = []
        self.unsettled = 0
        self.error: BaseException | None = None
        self._endpoint, self._streams, self._pace, self._batch = endpoint, streams, pace, batch
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            with Client(self._endpoint, timeout=20.0) as client:
                number = 0
                while not self._ended.is_set():
                    stream = self._streams[number % len(self._streams)]
                    number += 1
                    try:
                        done = client.append(stream, small(1 + number % self._batch))
                        self.acknowledged.append((stream, done.first_version))
                    except DeadlineExceeded:
                        self.unsettled += 1
                    time.sleep(self._pace)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self._ended.set()
        self.join(30)
        assert not self.is_alive()
        assert self.error is None


class Forwarder:
    """Stands between a broker's publishing socket and one subscriber; `choose(topic, body)` says what goes on.

    It gives back the messages to send on instead: none (lost), the same, twice, or others that it had held back.
    """

    def __init__(self, folder: Path, upstream: str, choose: Callable[[bytes, bytes], Iterable[Message]]) -> None:
        self.endpoint = f"ipc://{folder}/forward"
        self.choose = choose
        self.seen: list[bytes] = []
        self._upstream = upstream
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._context: zmq.Context[Any] = zmq.Context()
        self._back = self._context.socket(zmq.XPUB)
        self._back.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._back.bind(self.endpoint)
        self._front = self._context.socket(zmq.XSUB)
        self._front.connect(upstream)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        while not self._ended:
            ready = dict(poller.poll(20))
            if self._back in ready:
                self._front.send(self._back.recv())
            if self._front in ready:
                topic, body = self._front.recv_multipart()
                self.seen.append(topic)
                for message in self.choose(topic, body):
                    self._back.send_multipart(message)
        self._front.close(0)
        self._back.close(0)
        self._context.term()

    def close(self) -> None:
        self._ended = True
        self._thread.join(5)


class Worker:
    """worker.py in a process of its own; it writes one line per thing that happens."""

    def __init__(self, folder: Path, job: str, endpoint: str, **options: Any) -> None:
        self._out = folder / f"out-{os.urandom(4).hex()}"
        self._err = self._out.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), job, endpoint, json.dumps(options)],
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def lines(self) -> list[str]:
        """The whole lines so far."""
        text = self._out.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def saw(self, word: str, timeout: float = PATIENCE_S) -> bool:
        """Whether a line that begins with the word comes in time."""
        return until(lambda: any(line.startswith(word) for line in self.lines()), timeout, 0.02)

    def stderr(self) -> str:
        return self._err.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Its exit code; a process that does not end fails the test."""
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
