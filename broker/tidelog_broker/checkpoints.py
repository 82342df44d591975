"""The folder `index/`: runs and the checkpoints that name them. A cache: whoever deletes it costs a start time, and nothing else.

Owns its files. A run is durable before the checkpoint that names it, a checkpoint appears whole or not at all, the two newest
stay with the runs that they name. Whatever is wrong in here is BadIndex, and the log is read instead.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from tidelog.errors import CorruptLog, TidelogError

from .core.base import HEADER_BYTES, Base, BaseReader, KeptAppend, base_name
from .core.base import write_base as pack_base
from .core.checkpoint import Checkpoint, RunName
from .core.run import BadIndex, Put, Run
from .disk import Disk, File

FOLDER = "index"
KEPT = 2
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d{20})\Z")
_RUN = re.compile(r"run-\d{20}-\d{20}\Z")
_UNFINISHED = ".tmp"
_whose = ""
"""What this process puts into the names of its unfinished files: a child of a broker that was killed may live for a moment beside
the child of the next."""
_WRITE_BYTES = 1 << 20


class RunFile(Run):
    """A run and its open file."""

    def __init__(self, disk: Disk, name: str, log_id: bytes) -> None:
        """Raises BadIndex."""
        try:
            self._file: File = disk.open(f"{FOLDER}/{name}")
        except OSError as error:
            raise BadIndex(f"{name}: {error.strerror}") from None
        try:
            super().__init__(name, self._bytes, self._file.size(), log_id)
        except BaseException:
            self._file.close()
            raise

    def _bytes(self, offset: int, count: int) -> bytes:
        try:
            return self._file.read(offset, count)
        except OSError as error:
            raise BadIndex(f"{self.name} can't be read: {error}") from error

    def close(self) -> None:
        self._file.close()


def beside(process: int) -> None:
    """From here on this process (0: the broker itself) writes beside others: its unfinished files are named by its number."""
    global _whose
    _whose = f".{process}" if process else ""


def temporary(name: str) -> str:
    """What a file is called until it is whole."""
    return f"{name}{_whose}{_UNFINISHED}"


def read(disk: Disk, name: str) -> Checkpoint:
    """A checkpoint file. Raises BadIndex."""
    try:
        file = disk.open(f"{FOLDER}/{name}")
        try:
            return Checkpoint.unpack(file.read(0, file.size()), name)
        finally:
            file.close()
    except OSError as error:
        raise BadIndex(f"{name}: {error.strerror}") from None


def write_base(disk: Disk, base: Base, kept: Iterable[KeptAppend], rows: Iterable[tuple[str, list[Any]]]) -> None:
    """A new base beside the segments, read back and durable when this returns.

    Raises OSError, also when the device does not give back what was written, and what making its rows raises.
    """
    name = base_name(base.group)
    unfinished = temporary(name)
    if unfinished in disk.names():
        disk.unlink(unfinished)
    file = disk.create(unfinished)
    try:
        writer = _Buffered(file, HEADER_BYTES)
        header = pack_base(base, kept, rows, writer.put)
        writer.flush()
        if file.write(0, header) != len(header):
            raise OSError(errno.ENOSPC, "no room for the base")
        file.sync()
        # Asked of the device before it has its name: what it replaces goes next.
        file.drop_cache()
        try:
            reader = BaseReader(name, file.read, file.size())
            for _ in chain(reader.kept(), reader.rows()):
                pass
        except CorruptLog as error:
            raise OSError(errno.EIO, f"the device does not give back what was written: {error}") from error
    finally:
        file.close()
    disk.rename(unfinished, name)
    disk.sync_folder()


class _Buffered:
    """Writes in large pieces, one behind the other."""

    def __init__(self, file: File, at: int = 0) -> None:
        self._file = file
        self._at = at
        self._held: list[bytes] = []
        self._size = 0

    def put(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Raises OSError."""
        data = b"".join(self._held)
        if data and self._file.write(self._at, data) != len(data):
            raise OSError(errno.ENOSPC, "no room for the index")
        self._at += len(data)
        self._held, self._size = [], 0


def size(disk: Disk, checkpoint: Checkpoint) -> int:
    """The bytes of a checkpoint's file; 0 if it is gone."""
    try:
        file = disk.open(f"{FOLDER}/{name_of(checkpoint.group)}")
    except OSError:
        return 0
    try:
        return file.size()
    finally:
        file.close()


def name_of(group: int) -> str:
    """The file name of the checkpoint at a group."""
    return f"checkpoint-{group:020d}"


def good(disk: Disk) -> Iterator[tuple[str, Checkpoint]]:
    """The checkpoints that are whole, the newest first; none where the folder can't be read."""
    try:
        names = _names(disk)
    except OSError:
        return
    for name in sorted(names, reverse=True):
        if CHECKPOINT_NAME.match(name):
            try:
                yield name, read(disk, name)
            except BadIndex:
                continue


def _names(disk: Disk) -> list[str]:
    return disk.names(FOLDER)


def open_runs(disk: Disk, checkpoint: Checkpoint, known: dict[str, RunFile]) -> list[RunFile]:
    """The runs that a checkpoint names, those in `known` as they are; they must join. Raises BadIndex."""
    runs: list[RunFile] = []
    opened: list[RunFile] = []
    try:
        for row in checkpoint.runs:
            run = known.get(row.name)
            if run is None or (run.size, run.trailer) != (row.size, row.trailer):
                run = RunFile(disk, row.name, checkpoint.log_id)
                opened.append(run)
            runs.append(run)
            if (run.size, run.trailer) != (row.size, row.trailer):
                raise BadIndex(f"{row.name} is another than the one that checkpoint {checkpoint.group} names")
        firsts, stops = [run.first for run in runs], [run.stop for run in runs]
        if firsts[1:] != stops[:-1] or (stops[-1] if stops else 0) != checkpoint.number:
            raise BadIndex(f"the runs of checkpoint {checkpoint.group} do not join")
    except BaseException:
        for run in opened:
            run.close()
        raise
    return runs


def write_run(disk: Disk, first: int, stop: int, log_id: bytes, write: Callable[[Put], bytes]) -> RunFile:
    """A new run, durable under its name when this returns. Raises OSError."""
    name = f"run-{first:020d}-{stop:020d}"

    def fill(file: File) -> None:
        writer = _Buffered(file)
        write(writer.put)
        writer.flush()

    _make(disk, name, fill)
    try:
        return RunFile(disk, name, log_id)
    except BadIndex as error:
        raise OSError(errno.EIO, str(error)) from error


def write(disk: Disk, checkpoint: Checkpoint) -> None:
    """A new checkpoint, durable when this returns. Raises OSError."""
    data = checkpoint.pack()

    def fill(file: File) -> None:
        if file.write(0, data) != len(data):
            raise OSError(errno.ENOSPC, "no room for the index")

    _make(disk, name_of(checkpoint.group), fill)


def _make(disk: Disk, name: str, fill: Callable[[File], None]) -> None:
    """A file that is durable before it has its name. Raises OSError, and leaves nothing that takes room away from the log."""
    try:
        disk.make_folder(FOLDER)
        disk.sync_folder()
    except FileExistsError:
        pass
    unfinished = f"{FOLDER}/{temporary(name)}"
    try:
        file = disk.create(unfinished)
    except FileExistsError:
        disk.unlink(unfinished)
        file = disk.create(unfinished)
    try:
        try:
            fill(file)
            file.sync()
        finally:
            file.close()
        disk.rename(unfinished, f"{FOLDER}/{name}")
    except (OSError, BadIndex, TidelogError):
        try:
            disk.unlink(unfinished)
        except OSError:
            pass  # swept with the next checkpoint
        raise
    disk.sync_folder(FOLDER)


def sweep(disk: Disk, log_id: bytes) -> None:
    """Delete what no longer counts: checkpoints but the two newest good ones of this log, and runs that those don't name.

    Raises OSError.
    """
    names = _names(disk)
    kept = [(name, checkpoint) for name, checkpoint in good(disk) if checkpoint.log_id == log_id][:KEPT]
    wanted = {name for name, _ in kept} | {row.name for _, checkpoint in kept for row in checkpoint.runs}
    for name in sorted(names):
        # Checkpoints sort before runs: none is left that names a run which is gone.
        ours = CHECKPOINT_NAME.match(name) or _RUN.match(name) or name.endswith(_UNFINISHED)
        if ours and name not in wanted:
            disk.unlink(f"{FOLDER}/{name}")


def forget(disk: Disk) -> None:
    """Set every checkpoint aside: the next start reads the log. Raises OSError."""
    forgotten = False
    for name in _names(disk):
        if CHECKPOINT_NAME.match(name):
            disk.unlink(f"{FOLDER}/{name}")
            forgotten = True
    if forgotten:
        disk.sync_folder(FOLDER)


def run_name(run: RunFile) -> RunName:
    """How a checkpoint names a run."""
    return RunName(run.name, run.size, run.trailer)
