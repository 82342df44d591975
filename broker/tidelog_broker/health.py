"""Health and stop, in a thread and on a socket of their own: they answer while the loop hangs in a sync."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import msgpack
import zmq
from tidelog.errors import InvalidArgument, TidelogError

from .core import requests as wire
from .endpoints import Endpoint
from .server import Server

STOP_DEADLINE_S = 4.5
EXIT_IO = 74


class Health:
    """Answers HEALTH; turns signals into a stop, and ends the process when the stop does not come in time."""

    def __init__(self, server: Server, context: zmq.Context[zmq.Socket[bytes]], endpoints: list[Endpoint]) -> None:
        self._server = server
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.MAXMSGSIZE, 4_096)
        for endpoint in endpoints:
            endpoint.bind_health(self._socket)
        # Signals reach this thread as bytes: the main thread can't run a Python handler while a sync hangs.
        self._signals, sender = socket.socketpair()
        self._signals.setblocking(False)
        sender.setblocking(False)
        self._sender = sender
        self._done = threading.Event()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="tidelog-health", daemon=True)

    def start(self) -> None:
        """Install the signals and start the thread; call from the main thread."""
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._thread.start()

    def stop(self) -> None:
        """The loop has ended: no deadline any more."""
        self._done.set()
        self._sender.send(b"\0")
        self._thread.join(1.0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._signals, zmq.POLLIN)
        while not self._done.is_set():
            events = dict(poller.poll(200 if self._deadline else 1_000))
            if self._signals.fileno() in events:
                self._signalled(self._signals.recv(64))
            if self._socket in events:
                try:
                    self._answer()
                except (zmq.ZMQError, ValueError, TypeError) as error:
                    # This thread also turns signals into a stop: no question may end it.
                    print(f"tidelog: a health request could not be answered: {error}", file=sys.stderr, flush=True)
            if self._deadline and time.monotonic() > self._deadline:
                self._give_up()
        self._socket.close()

    def _signalled(self, numbers: bytes) -> None:
        if (signal.SIGTERM in numbers or signal.SIGINT in numbers) and not self._deadline:
            self._deadline = time.monotonic() + STOP_DEADLINE_S
            self._server.request_stop()

    def _give_up(self) -> None:
        hanging = self._server.vitals.sync_us() / 1e6
        why = f"a data-sync has been running for {hanging:.1f} s" if hanging else "requests are still being answered"
        print(f"tidelog: stopping took too long: {why}; unanswered appends have an unknown outcome", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_IO)

    def _answer(self) -> None:
        frames = self._socket.recv_multipart()
        if len(frames) != 2:
            return
        replies: list[tuple[Any, ...]] = []
        try:
            for request in wire.unpack_requests(frames[1]):
                if request[0] == wire.HEALTH:
                    replies.append((request[1], 0, *self._server.vitals.verdict()))
                else:
                    error = InvalidArgument("this socket answers only HEALTH")
                    replies.append((request[1], error.code, error.text, ()))
        except TidelogError as error:
            replies.append((None, error.code, error.text, error.facts))
        try:
            self._socket.send_multipart([frames[0], msgpack.packb(replies)], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # who asks and does not listen gets no answer
