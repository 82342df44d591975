"""How the broker is: its syncs, damage that was found while it runs, and the figures that it tells people.

Asked by the loop, and by the thread that answers HEALTH while the loop hangs in a sync.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tidelog.errors import CorruptLog

from .checkpointing import Checkpointing
from .config import Config
from .core.base import KeptWrite
from .core.broker import Broker, Verdict
from .core.topics import EVERYTHING
from .store import Store
from .verifying import Verification
from .version import VERSION

HANGING_SYNC_US = 1_000_000


class Vitals:
    """Times in ns of the monotonic clock."""

    def __init__(self, config: Config, store: Store, stop_requested: threading.Event) -> None:
        self.started_ns = time.monotonic_ns()
        self.last_commit_ns = 0
        self.verification = Verification(config.data)
        self._config = config
        self._store = store
        self._stop_requested = stop_requested
        self._syncing_since_ns = 0
        self._slowest_sync_ns = self.last_sync_ns = 0
        self._rot = ""
        self._rots = self._rots_judged = 0

    # -- syncs

    def group_begins(self) -> None:
        """A group is on its way to the disk."""
        self._syncing_since_ns = self._syncing_since_ns or time.monotonic_ns()

    def group_ended(self) -> None:
        """It is there, or it failed."""
        self.last_commit_ns = time.monotonic_ns()
        self.last_sync_ns = self.last_commit_ns - self._syncing_since_ns
        self._slowest_sync_ns = max(self._slowest_sync_ns, self.last_sync_ns)
        self._syncing_since_ns = 0

    def syncing(self, work: Callable[[], object]) -> None:
        """Do what syncs outside of a group; health names it if it hangs."""
        self._syncing_since_ns = time.monotonic_ns()
        try:
            work()
        finally:
            self._syncing_since_ns = 0

    def sync_us(self) -> int:
        """How long the running data-sync has taken, in µs; 0 if none runs. From any thread."""
        since = self._syncing_since_ns
        return (time.monotonic_ns() - since) // 1000 if since else 0

    def verdict(self) -> Verdict:
        """How this broker is. From any thread."""
        syncing = self.sync_us()
        reason = ""
        if self._stop_requested.is_set():
            reason = "stopping"
        elif syncing > HANGING_SYNC_US:
            reason = f"a data-sync has been running for {syncing / 1e6:.1f} s"
        elif self._store.log.read_only:
            reason = f"read-only (--salvage): positions before {self._store.index.head} are served"
        elif self._store.log.full:
            reason = "storage full"
        return Verdict(True, not reason, reason, self._store.index.head, syncing, self._rot)

    # -- damage that is found while it runs

    def stored(self, number: int) -> tuple[KeptWrite, ...]:
        """A stored append, to compare a repeat with. Raises CorruptLog."""
        try:
            return self._store.original(number)
        except CorruptLog as error:
            self.rotten(error)
            raise

    def recorded_at(self, number: int, checked: bool = False) -> int:
        """The time of a batch. Raises CorruptLog."""
        try:
            return self._store.recorded_at(number, checked)
        except CorruptLog as error:
            self.rotten(error)
            raise

    def rotten(self, error: CorruptLog) -> None:
        """Say it once and remember it for health; nothing else stops."""
        self._rots += 1
        if not self._rot:
            self._rot = f"damage found: {error.text}"
            print(f"tidelog: {self._rot}; `tidelog verify` tells how much", file=sys.stderr, flush=True)

    def verify(self, begin: bool) -> tuple[str, dict[str, Any] | None]:
        """VERIFY: begin a check of the log as it is now, or tell how the last one ended."""
        self.verified()
        if begin and self.verification.begin(None if self._store.log.read_only else self._store.log.group):
            self._rots_judged = self._rots
        return self.verification.state()

    def verified(self) -> None:
        """Take a finished check into account: it is the last word on what reads had met when it began."""
        report = self.verification.poll()
        if report is None:
            return
        if report["damage"] is None:
            if self._rots == self._rots_judged:
                self._rot = ""
        else:
            self.rotten(CorruptLog(report["damage"]["proof"], report["damage"]["segment"], report["damage"]["offset"]))

    def info(self, broker: Broker, checkpointing: Checkpointing) -> dict[str, Any]:
        """Figures for people (INFO)."""
        index, log, known = self._store.index, self._store.log, self._store.known
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "data": str(self._config.data.absolute()),
            "log_id": log.log_id.hex(),
            "read_only": log.read_only,
            "strict": log.settings.strict,
            "align": log.settings.align,
            "first_position": index.first_position,
            "head": index.head,
            "groups": log.group,
            "segments": log.segments(),
            "streams": index.stream_count,
            "batches": index.stop - index.first_number,
            "syncs": log.syncs,
            "slowest_sync_us": self._slowest_sync_ns // 1000,
            "last_sync_us": self.last_sync_ns // 1000,
            "opened": {
                "checkpoint_group": log.report.since,
                "groups_read": log.report.groups,
                "bytes_read": log.report.bytes_read,
                "index_bytes_read": self._store.index_bytes_read,
            },
            "checkpoint_group": self._store.checkpoint_group,
            "checkpoint_age_seconds": checkpointing.age_seconds(time.monotonic_ns()),
            "runs": len(index.runs),
            "tail_batches": sum(len(tail.positions) for tail in (*index.frozen, index.tail)),
            "clients": len(broker.peers),
            "topics": len(broker.topics.subscribed),
            "everything_subscribed": EVERYTHING in broker.topics.subscribed,
            "refused": broker.refused,
            "known_ids": len(known.window.young) + len(known.window.old),
            "id_window_events": known.window.events,
            "id_window_begins": known.window.begins,
            "sessions": len(known.sessions.by_name),
            "cursors": len(known.cursors.by_name),
            "uptime_seconds": (time.monotonic_ns() - self.started_ns) // 1_000_000_000,
        }
