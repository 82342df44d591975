"""Checkpoints while appends go on: when one is due, and the process that makes it (child.py).

The loop freezes what is in memory, a child reads the same groups from the log and writes them as a run, the loop goes on with
that run and forgets what was frozen. Nothing is lost when any of this fails: the log is what counts, and the next one tries.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

from tidelog.errors import CorruptLog

from . import checkpoints
from .child import Child
from .config import Config
from .core.run import BadIndex
from .store import Store

RETRY_NS = 10_000_000_000
UNSAVED_TAILS_MAX = 2
"""Tails' worth of unsaved batches from which on the loop gives way."""
STOP_ROWS_MAX = 1 << 18
"""What can be saved inside a stop's deadline; more is left to the log."""


class Checkpointing:
    """At most one checkpoint at a time. One thread calls it."""

    def __init__(self, config: Config, store: Store) -> None:
        self._data = config.data
        self._store = store
        self._settings = config.index_settings
        self._period_ns = config.checkpoint_seconds * 1_000_000_000
        self._child = Child()
        self._group = self._removes = self._failures = 0
        self._due_ns = 0
        self._asked, self._answer = (0, 0), 0
        self._state = "none"
        self._report: dict[str, Any] = {}
        self._made_ns = 0

    def due(self, now_ns: int) -> bool:
        """True when there is enough behind the last one, or something and it is old."""
        store = self._store
        if self._child.running or store.log.read_only:
            return False
        if self._state != "failed" and self._removable():
            return True
        if store.log.group <= store.checkpoint_group and not self._removable():
            return False
        if self._due_ns == 0:
            self._due_ns = now_ns + self._period_ns
        if now_ns >= self._due_ns:
            return True
        return self._state != "failed" and len(store.index.tail.positions) >= self._settings.tail_batches

    @property
    def running(self) -> bool:
        """True while a process reads the files."""
        return self._child.running

    def lags(self) -> bool:
        """True while so much is unsaved that memory would grow without bound if appends did not wait for the child a little."""
        index = self._store.index
        if not index.frozen or not self._child.running:
            return False
        unsaved = sum(len(tail.positions) for tail in (*index.frozen, index.tail))
        return unsaved > UNSAVED_TAILS_MAX * self._settings.tail_batches

    def _removable(self) -> int:
        """The last segment that a truncation has emptied and no base tells of yet; 0 if there is none."""
        log, index = self._store.log, self._store.index
        if not index.first_position or log.to_remove:
            return 0
        # Looked up again only when something has moved: this is asked in every round.
        asked = index.first_position, log.segments()
        if asked != self._asked:
            self._asked, self._answer = asked, log.removable(index.first_position)
        return self._answer

    def begin(self, now_ns: int, mark: Callable[[], None]) -> bool:
        """Start one at the log point that is durable now; False if one is running, or if none can be. Raises FailStop."""
        store = self._store
        if self._child.running:
            return False
        self._due_ns = now_ns + self._period_ns
        self._removes = self._removable()
        if store.log.group <= store.checkpoint_group and not self._removes:
            self._state = "done"
            return True
        # Before it: a checkpoint that no mark reaches is in doubt (files.py).
        mark()
        self._group = store.log.group
        base = ["--base", str(self._removes)] if self._removes else []
        try:
            self._child.begin(
                "checkpoint", "--data", str(self._data), "--beside", "--until", str(self._group),
                "--id-window-events", str(self._settings.id_window_events),
                "--tail-batches", str(self._settings.tail_batches), *base,
            )  # fmt: skip
        except OSError as error:
            self._failed(f"no process for a checkpoint: {error}", now_ns)
            return False
        if store.index.tail.positions:
            store.index.freeze()
        self._state = "running"
        return True

    def poll(self, now_ns: int) -> None:
        """Go on with a checkpoint that has just been made."""
        ended = self._child.poll()
        if ended is None:
            return
        code, text = ended
        if code != 0:
            self._failed(text.strip()[-500:] or f"it ended with {code}", now_ns)
            return
        try:
            # The base first: the next child goes by it, and leaves out of its runs what it tells of.
            if self._removes:
                self._store.use_base()
            self._store.adopt(self._group)
        except (BadIndex, CorruptLog, OSError) as error:
            self._failed(str(error), now_ns)
            return
        self._state, self._report, self._made_ns = "done", {}, now_ns
        self._failures = 0

    def _failed(self, reason: str, now_ns: int) -> None:
        if self._state != "failed":
            print(
                f"tidelog: the index could not be saved, the next start takes longer: {reason}",
                file=sys.stderr,
                flush=True,
            )
        self._state, self._report = "failed", {"reason": reason}
        # Each try freezes a tail, so tries that go on failing become rare.
        self._due_ns = now_ns + min(RETRY_NS << min(self._failures, 10), max(self._period_ns, RETRY_NS))
        self._failures += 1

    def state(self) -> tuple[str, dict[str, Any]]:
        """("none" | "running" | "done" | "failed", facts: the group of the last one, or the reason of the failure)"""
        return self._state, {"group": self._store.checkpoint_group, **self._report}

    def age_seconds(self, now_ns: int) -> int | None:
        """How long ago the last one was made since the start."""
        return (now_ns - self._made_ns) // 1_000_000_000 if self._made_ns else None

    def stop(self) -> None:
        """End one that is running, and save what there is: nobody appends any more."""
        self._child.stop()
        store = self._store
        rows = sum(len(tail.positions) for tail in (*store.index.frozen, store.index.tail))
        if store.log.read_only or store.log.group <= store.checkpoint_group or rows > STOP_ROWS_MAX:
            return
        try:
            try:
                store.checkpoint(merge=False)  # that takes longer than a stop may
            except BadIndex as error:
                # Nothing is wrong with the log: it is closed as ever, and the next start reads it.
                checkpoints.forget(store.disk)
                raise OSError(errno.EIO, f"{error}; it was set aside") from error
        except OSError as error:
            print(
                f"tidelog: the index could not be saved, the next start takes longer: {error}",
                file=sys.stderr,
                flush=True,
            )
