"""The only caller of os.*: files of one log directory, by name.

Owns: the descriptors, the directory lock, what "synced" means. Promises: a write is one pwrite and may be short; errors
are OSError and pass through untouched, for only the log knows what each one means (spec §6.5), but those of a sync are all
EIO. The protocols `Disk` and `File` are the seam where tests put a simulated disk that can lose power
(tests/support/simdisk.py) or fail at the n-th call (tests/support/faults.py). Names are relative to the directory;
"quarantine/x" is the only folder used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class File(Protocol):
    """An open file. Offsets and sizes in bytes."""

    name: str

    def size(self) -> int: ...
    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes; fewer only at the end of the file."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """One pwrite; returns how many bytes it took, which may be fewer than given."""
        ...

    def datasync(self) -> None: ...
    def sync(self) -> None: ...
    def truncate(self, size: int) -> None: ...
    def drop_cache(self) -> None:
        """Forget cached pages that are clean, so that the next read comes from the device."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """One directory of files."""

    def names(self, folder: str = "") -> list[str]: ...
    def create(self, name: str) -> File:
        """A new empty file, read and write; FileExistsError if there is one."""
        ...

    def open(self, name: str, *, writable: bool = False) -> File:
        """An open file description of its own: a failed writeback is reported once to each (errseq)."""
        ...

    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def make_folder(self, name: str) -> None: ...
    def sync_folder(self, folder: str = "") -> None:
        """fsync of the directory: creations, renames and unlinks in it are durable behind this."""
        ...


LOCK_TRIES, LOCK_PAUSE_S = 100, 0.02
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def synced(sync: Callable[[int], None], descriptor: int) -> None:
    """Call a sync, any error of which is EIO: one that says "no room" lost what a write had taken. Raises OSError."""
    try:
        sync(descriptor)
    except OSError as error:
        raise OSError(errno.EIO, f"a sync failed: {error.strerror}") from error


class Locked(Exception):
    """Another process holds the directory; `pid` is its, or None when it could not be read."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"by process {pid}" if pid else "by another process"
        super().__init__(f"{path} is in use {who}")
        self.pid = pid


class RealFile:
    """A file by its descriptor."""

    __slots__ = ("fd", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        data = os.pread(self.fd, count, offset)
        while len(data) < count:
            more = os.pread(self.fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        return os.pwrite(self.fd, data, offset)

    def datasync(self) -> None:
        synced(os.fdatasync, self.fd)

    def sync(self) -> None:
        synced(os.fsync, self.fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def drop_cache(self) -> None:
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.fd)


class RealDisk:
    """The files of one real directory, which must exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def lock(self) -> None:
        """Take the directory for this process until it ends. Raises Locked.

        flock on the directory itself: a symlink leads to the same inode, and nothing is left behind by a kill.
        """
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
                if holder is not None and os.path.exists(f"/proc/{holder}"):
                    raise Locked(self.path, holder) from None
                # It was killed while a child of it was being started, which lets go as soon as it is another program.
                time.sleep(LOCK_PAUSE_S)
        raise Locked(self.path, None)

    def _holder(self) -> int | None:
        """The pid of the lock's holder, out of /proc/locks."""
        stat = os.fstat(self._directory)
        inode = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        try:
            rows = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return None
        for row in rows:
            parts = row.split()
            if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == inode and int(parts[4]) > 0:
                return int(parts[4])
        return None

    def names(self, folder: str = "") -> list[str]:
        if not folder:
            return sorted(os.listdir(self._directory))
        try:
            descriptor = os.open(folder, FOLDER, dir_fd=self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise OSError(error.errno, f"{folder} must be a directory, and no link to one: move it away") from error
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def create(self, name: str) -> RealFile:
        return RealFile(name, self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def open(self, name: str, *, writable: bool = False) -> RealFile:
        return RealFile(name, self._open(name, os.O_RDWR if writable else os.O_RDONLY))

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._directory)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._directory)

    def make_folder(self, name: str) -> None:
        os.mkdir(name, 0o700, dir_fd=self._directory)

    def sync_folder(self, folder: str = "") -> None:
        if not folder:
            synced(os.fsync, self._directory)
            return
        descriptor = os.open(folder, FOLDER, dir_fd=self._directory)
        try:
            synced(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    def room(self) -> tuple[int, int]:
        """(bytes that this user may still write, all bytes) of the file system."""
        found = os.fstatvfs(self._directory)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def modified(self, name: str) -> float:
        """When a file was last written, in seconds since the epoch."""
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mtime

    def close(self) -> None:
        os.close(self._directory)
