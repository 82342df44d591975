"""A log directory that is made beside its place and moved there when it is whole.

Owns TARGET.migrating: a note, and `log/`, which becomes TARGET by one rename. Promises: TARGET is not there (or stays the empty
directory that it was) until `finish` returns; a run that failed leaves nothing; one that was killed leaves TARGET.migrating,
which the next one recognizes by its note and begins anew.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from .disk import RealDisk

NOTE, LOG = "made-by-tidelog-migrate", "log"
NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class Unfit(Exception):
    """A source or a target that can't be used as such; nothing was changed."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Staging:
    """Use it in a `with`: fill `disk`, then `finish`."""

    def __init__(self, target: Path) -> None:
        """Raises Unfit when the target is there and no empty directory."""
        self.target = Path(os.path.realpath(target))
        if not self.target.parent.is_dir():
            raise Unfit(f"{target}: there is no directory {self.target.parent}")
        if self.target.exists() and not (self.target.is_dir() and not any(self.target.iterdir())):
            raise self._taken()
        self.path = self.target.with_name(self.target.name + ".migrating")

    def __enter__(self) -> Self:
        """Raises Unfit when TARGET.migrating is not a migration's, Locked when another migration works there, and OSError."""
        self._parent = RealDisk(self.target.parent)
        entered = False
        try:
            with uninterrupted():
                self._enter()
                entered = True
        except BaseException:
            if entered:
                self.disk.close()
                self._tidy()
            self._parent.close()
            raise
        return self

    def _enter(self) -> None:
        try:
            self._parent.make_folder(self.path.name)
        except FileExistsError:
            if self.path.is_symlink() or not self.path.is_dir():
                raise self._foreign() from None
        self._work = RealDisk(self.path)
        try:
            self._work.lock()
            names = self._work.names()
            if names and NOTE not in names:
                raise self._foreign()
        except BaseException:
            self._work.close()
            raise
        try:
            if not names:
                self._work.create(NOTE).close()
                self._work.sync_folder()
            self._delete_log()
            self._work.make_folder(LOG)
            self.disk = RealDisk(self.path / LOG)
        except BaseException:
            self._tidy()
            raise

    def finish(self) -> None:
        """The log, closed and so with every name and file of it synced, becomes the target; durable when this returns.

        Raises Unfit or OSError.
        """
        try:
            self._parent.rename(f"{self.path.name}/{LOG}", self.target.name)
        except OSError as error:
            if error.errno in NOT_EMPTY:
                raise self._taken() from error
            raise
        try:
            self._parent.sync_folder()
            self._work.sync_folder()
        except OSError as error:
            why = f"{self.target} is whole, but a power cut may take its name away: {error.strerror}"
            raise OSError(error.errno, why) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            self.disk.close()
            self._tidy()
            self._parent.close()

    def _tidy(self) -> None:
        """Whatever was not finished goes; what can't be deleted now is no log, and the next run deletes it."""
        try:
            self._delete_log()
            if NOTE in self._work.names():
                self._work.unlink(NOTE)
            self.path.rmdir()
        except OSError:
            pass
        self._work.close()

    def _delete_log(self) -> None:
        if LOG in self._work.names():
            shutil.rmtree(self.path / LOG)

    def _taken(self) -> Unfit:
        return Unfit(f"{self.target} must not exist, or be an empty directory: nothing is ever migrated into a log")

    def _foreign(self) -> Unfit:
        return Unfit(f"{self.path} is in the way and was not made by a migration: move it away")
