"""A group on its way to the disk in a thread of its own, so that whoever asked for no more than "accepted" goes on meanwhile.

Only groups with such appends go this way, and only where syncs are slow: a durable append waits for the sync anyhow, and a
hand-over costs more than a fast sync. At most one group is under way (spec §6, invariant 1); the loop touches no file of the
log until it has ended.
"""

from __future__ import annotations

import os
import threading

from tidelog.errors import StorageFull

from .core.staged import SealedGroup
from .log import FailStop, Log, Place


class SyncThread:
    """One thread, begun with the first group. `wake_fd` is an eventfd that is set when a group has ended."""

    def __init__(self, log: Log, wake_fd: int) -> None:
        self.running = False
        """From `begin` to `end`."""
        self._log = log
        self._wake_fd = wake_fd
        self._group: SealedGroup | None = None
        self._result: Place | Exception | None = None
        # Plain locks: Semaphore and Event are Python, and cost ten microseconds a group.
        self._work = threading.Lock()
        self._work.acquire()
        self._busy = threading.Lock()
        """Held while the disk has the group."""
        self._thread: threading.Thread | None = None

    def begin(self, group: SealedGroup) -> None:
        """Write and sync this group."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tidelog-sync", daemon=True)
            self._thread.start()
        self.running = True
        self._group, self._result = group, None
        self._busy.acquire()
        self._work.release()

    @property
    def ended(self) -> bool:
        """Whether `end` would not wait."""
        return not self._busy.locked()

    def settle(self) -> None:
        """Wait until the disk is done with the group under way, if there is one; what became of it, `end` tells."""
        with self._busy:
            pass

    def end(self) -> Place:
        """Wait for the group under way; where its body lies. Raises what Log.commit raises."""
        self.settle()
        self.running = False
        if isinstance(self._result, Place):
            return self._result
        assert self._result is not None
        raise self._result

    def _run(self) -> None:
        while True:
            self._work.acquire()
            group = self._group
            assert group is not None
            try:
                self._result = self._log.commit(group.parts, len(group.staged), group.next_position)
            except (StorageFull, FailStop) as error:
                self._result = error
            except BaseException as error:
                # Whatever it is, nobody knows what became of the group.
                self._result = FailStop(f"writing a group: {type(error).__name__}: {error}")
            self._busy.release()
            os.eventfd_write(self._wake_fd, 1)
