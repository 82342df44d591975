"""A program that uses the client library, run as it is, with notes of what it asked and was told: python -m support.noted …

    NOTES PROGRAM ARGUMENTS…

The program is not changed and knows nothing of it: the calls of the library that concern sessions and cursors are wrapped. A row
is in the file before the call goes out, or before its answer is given to the program; a life of a program is one file, so
numbers begin anew in each. `at`, and `began` of a question, are the monotonic clock. Imports little: who is killed all the
time is started all the time.

    what      fields
    send      number, session null|[name, epoch], cursor null|[name, expected, position, lease],
              writes [[stream, [[id, digest] …]] …]        an append, or without writes a commit of a cursor
    ack       number, session null|[name, epoch, serial], places [[first position, last, first version, last] …], duplicate
    failed    number, error, unknown
    opened    session, epoch, last, resumed: false when it surely got a new epoch
    acquired  began, cursor, lease, position
    stands    began, cursor, position, holder, lease
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from typing import Any

from tidelog import Client, CursorInfo, Session
from tidelog.batch import unpack_columns
from tidelog.exchange import Call
from tidelog.link import Link
from tidelog.wire import APPEND, COMMIT_CURSOR, DUPLICATE_FLAG


class Noting:
    """The wrapped calls, and the file they are noted in."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = count(1)

    def _note(self, what: str, **fields: Any) -> None:
        data = json.dumps({"what": what, "at": time.monotonic_ns(), **fields}).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]

    def wrap(self) -> None:
        """From here on."""
        kinds: Any = Client
        for name in ("session", "acquire_cursor", "cursor"):
            setattr(kinds, name, self._wrapped(getattr(kinds, name), getattr(self, name)))
        link: Any = Link
        link._take_in = self._wrapped(link._take_in, self._take_in)

    @staticmethod
    def _wrapped(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
        return lambda client, *args, **kwargs: instead(original, client, *args, **kwargs)

    def _take_in(self, original: Callable[..., bool], link: Link, call: Call, now: float) -> bool:
        """Appends, and commits of cursors; asked again while there is no room."""
        if call.kind in (APPEND, COMMIT_CURSOR) and not hasattr(call, "noted"):
            self._send(call)
        return original(link, call, now)

    def _send(self, call: Call) -> None:
        number = next(self._numbers)
        session = None if call.session is None else [call.session.name, call.session.epoch]
        cursor, writes = (call.fields[:4], ()) if call.kind == COMMIT_CURSOR else call.fields[2:]
        rows = [[stream, events_of(region)] for stream, _, region in writes]
        self._note("send", number=number, session=session, cursor=cursor, writes=rows)
        wake = call.wake

        def noted() -> None:
            self._ended(number, call)
            wake()

        call.wake = noted  # type: ignore[method-assign]
        call.noted = True  # type: ignore[attr-defined]
        if call.waiters is None:
            call.waiters = []

    def _ended(self, number: int, call: Call) -> None:
        if call.error is not None:
            words = f"{type(call.error).__name__}: {call.error}"
            self._note("failed", number=number, error=words, unknown=call.error.maybe_applied)
        elif call.kind == COMMIT_CURSOR:
            self._note("ack", number=number, session=None, places=[], duplicate=False)
        else:
            places = [list(call.reply[at : at + 4]) for at in range(4, len(call.reply), 4)]
            duplicate = bool(call.reply[2] & DUPLICATE_FLAG)
            self._note("ack", number=number, session=call.fields[1], places=places, duplicate=duplicate)

    def session(self, original: Callable[..., Session], client: Client, *args: Any, **kwargs: Any) -> Session:
        opened = original(client, *args, **kwargs)
        resumed = len(args) > 1 or "resume" in kwargs
        self._note("opened", session=opened.name, epoch=opened.epoch, last=opened.last_serial, resumed=resumed)
        return opened

    def acquire_cursor(
        self, original: Callable[..., int | None], client: Client, name: str, **kwargs: Any
    ) -> int | None:
        began = time.monotonic_ns()
        position = original(client, name, **kwargs)
        lease = client._cursors.lease(name)
        self._note("acquired", began=began, cursor=name, lease=lease, position=position)
        return position

    def cursor(self, original: Callable[..., CursorInfo], client: Client, name: str, **kwargs: Any) -> CursorInfo:
        began = time.monotonic_ns()
        info = original(client, name, **kwargs)
        _, position, holder, lease = info
        self._note("stands", began=began, cursor=name, position=position, holder=holder, lease=lease)
        return info


def digest_of(kind: str, payload: bytes, metadata: bytes = b"") -> str:
    """A short name of an event's content."""
    return blake2b(b"\0".join((kind.encode(), metadata.hex().encode(), payload)), digest_size=8).hexdigest()


def events_of(region: bytes | None) -> list[list[str]]:
    """[id, digest] of each event of a region as it is sent and stored."""
    if region is None:
        return []
    return [
        [event_id.hex(), digest_of(kind, payload, metadata)]
        for kind, payload, metadata, event_id in unpack_columns(region).rows()
    ]


def main() -> None:
    _, notes, program, *arguments = sys.argv
    Noting(notes).wrap()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
