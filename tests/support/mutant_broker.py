"""A real broker with a fault planted in it, and a disk that can be told to hold or to fail:

    python -m support.mutant_broker MUTANT CONTROLS serve …       MUTANT "" plants nothing

CONTROLS is a folder. While it holds a file `hold-datasync`, a data-sync of a segment by the main thread waits (`held` appears
there) for at most a minute; in the same way `hold-sync`. `fail-datasync` and `fail-write` make the calls fail that begin
while they are there, with EIO and ENOSPC. Promises: without these files and without a mutant it is the broker that users run.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.mutants import Piece, mutate
from support.process import BrokerProcess
from tidelog_broker.cli import main
from tidelog_broker.core.appender import Appender
from tidelog_broker.core.replay import _Replay
from tidelog_broker.core.staged import Staging
from tidelog_broker.disk import RealFile
from tidelog_broker.log import Log
from tidelog_broker.server import Server

HOLD_S = 60.0
TESTS = Path(__file__).resolve().parent.parent

_WRITTEN = "place = written()"
_STORAGE_FULL = "broker.failed(error)\n        return"
_TOTAL = "total = sum(row[2] is not None for row in plan)"
_PUT = "self.put(name, region, count, signature, first, now, index, total, session)"
_REPEAT = "return (request_id, 0, DUPLICATE_FLAG | DURABLE_FLAG, generation, *places), "

BROKER_MUTANTS: dict[str, list[Piece]] = {
    "an append is acknowledged before the sync": [
        (
            Server,
            "_commit_with",
            _WRITTEN,
            "group, broker.appender.sealed = broker.appender.sealed, None\n"
            "        self._send_replies()\n"
            "        broker.appender.sealed = group\n"
            f"        {_WRITTEN}",
        ),
    ],
    "a group is published before the sync": [
        (Server, "_commit_with", _WRITTEN, f"[self._publish_one(*row) for row in published]\n        {_WRITTEN}"),
    ],
    "index and head advance before the sync": [
        (
            Server,
            "_commit_with",
            _WRITTEN,
            f"broker.committed(log._header.ordinal, log.end + 64)\n        {_WRITTEN}",
        ),
        (Server, "_commit_with", "broker.committed(*place)", "pass"),
    ],
    "a group whose sync failed is acknowledged": [
        (
            Server,
            "_commit_with",
            'broker.failed(OutcomeUnknown(f"the disk failed: {error}"))',
            "broker.appender.sealed = None",
        ),
    ],
    "a duplicate of a pending append does not share its fate": [
        (Appender, "_again", f"{_REPEAT}pending", f"{_REPEAT}False"),
    ],
    "a refusal because of a pending append does not share its fate": [
        (Appender, "_next_version", "shares_fate=pending is not None", "shares_fate=False"),
    ],
    "a rollback is answered before its sync": [
        (Log, "_write", "self._file.sync()", "pass"),
        (
            Server,
            "_commit_with",
            _STORAGE_FULL,
            "broker.failed(error)\n        self._send_replies()\n        log._file.sync()\n        return",
        ),
    ],
    "known ids are not restored at start": [
        (_Replay, "run", "window.restore(ids, first_position)", "pass"),
    ],
    "the third batch of an append is dropped": [
        (Appender, "_stage", _TOTAL, f"total = min(2, {_TOTAL.removeprefix('total = ')})"),
        (Appender, "_stage", _PUT, f"index < 2 and {_PUT}"),
    ],
    "versions of the group being staged are forgotten": [
        (Appender, "_next_version", "pending = self.versions.get(name)", "pending = None"),
    ],
    "ids of a refused group stay known": [
        (Staging, "rollback", "self.window.rollback(self.appends)", "pass"),
        (Staging, "rollback", "self.window.rollback(self.sealed.appends)", "pass"),
    ],
}


class MutantBroker(BrokerProcess):
    """A broker with one of BROKER_MUTANTS ("" for none), and its controls."""

    def __init__(self, folder: Path, mutant: str) -> None:
        super().__init__(folder, environment={"PYTHONPATH": str(TESTS)})
        self.controls = folder / "controls"
        self.controls.mkdir()
        self._mutant = mutant

    def command(self) -> list[str]:
        serve = super().command()[3:]
        return [sys.executable, "-m", "support.mutant_broker", self._mutant, str(self.controls), *serve]

    def set(self, *names: str) -> None:
        """Make these controls hold from now on."""
        for name in names:
            (self.controls / name).touch()

    def unset(self, *names: str) -> None:
        for name in names:
            (self.controls / name).unlink()

    @property
    def is_held(self) -> bool:
        """True once a call waits, or has waited."""
        return (self.controls / "held").exists()


def _obey(controls: Path, operation: str, error: int) -> None:
    """Let a call of RealFile do what the controls say, if the main thread makes it on a segment."""
    hold, fail, held = (controls / name for name in (f"hold-{operation}", f"fail-{operation}", "held"))
    original: Callable[..., Any] = getattr(RealFile, operation)

    def call(self: RealFile, *arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and self.name[0].isdigit():
            failing = fail.exists()
            until = time.monotonic() + HOLD_S
            while hold.exists() and time.monotonic() < until:
                held.touch()
                time.sleep(0.005)
            if failing:
                raise OSError(error, os.strerror(error), self.name)
        return original(self, *arguments)

    setattr(RealFile, operation, call)


if __name__ == "__main__":
    mutant, folder = sys.argv[1:3]
    for piece in BROKER_MUTANTS[mutant] if mutant else ():
        mutate(pytest.MonkeyPatch(), *piece)
    for operation, error in (("datasync", errno.EIO), ("sync", errno.EIO), ("write", errno.ENOSPC)):
        _obey(Path(folder), operation, error)
    sys.argv[1:] = sys.argv[3:]
    main()
