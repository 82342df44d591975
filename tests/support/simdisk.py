"""A disk in memory that can lose power: page cache, durable image, and every state a crash may leave between them.

Owns: what is in the cache, what is on the platter, what is under way. Promises the contract of `tidelog_broker.disk`
(tests/support/test_disks.py runs the same tests against this and the real one). The model, and what it assumes:

- A write changes the cache; until its file is synced, each 512-byte sector of it may be on the platter or not, in any
  order; the sector that was being written keeps the bytes that the write does not change, and of those it does, a
  part before or behind some cut is new. With `garbage` the interrupted 4,096-byte block holds anything, what stood
  there before is gone too (disks for --align 4096).
- A file's new size may be durable without its data (zeros are read), and data without the size: it is not seen.
- A truncate is done or undone, on its own.
- Directory operations that no sync of the folder covers are done or not, each on its own; a rename whose file's creation
  did not arrive leaves neither name, and what it replaced is gone too. That is more than ext4 and XFS do, whose journals
  keep the order; the log is held to it all the same. `ordered_names` is such a journal: they arrive in order or not at all.
- A failed sync: part of the data went to the platter, the pages count as clean, the next sync says OK and writes
  nothing (fsyncgate) until a page is written again. `drop_cache` shows what the platter holds; the size in the
  kernel's inode may outlive that (`keep_size`), and so may every page of the files named in `sticky`.
- A kill leaves everything as it is: go on with the same SimDisk, or with `clone()`.
"""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import product
from random import Random

from support.inode import Fault, Inode
from support.tears import contents

__all__ = ["Fault", "Image", "PowerCut", "SimDisk", "SimFile"]

Image = dict[str, bytes]
"""Names → contents; "folder/" → b"" for a folder."""


ALL_SELECTIONS_MAX = 4
"""Up to so many pending operations in a folder, every selection of them is a state."""


class PowerCut(BaseException):
    """The machine is gone. No Exception: nobody may handle it."""


NameOp = tuple[str, str, str, Inode]
"""(operation, name, new name, the file it is about; a folder has an empty one)"""


class SimFile:
    """An open file of a SimDisk."""

    __slots__ = ("_closed", "_disk", "_writable", "inode", "name")

    def __init__(self, disk: SimDisk, name: str, inode: Inode, writable: bool) -> None:
        self.name = name
        self.inode = inode
        self._disk = disk
        self._writable = writable
        self._closed = False

    def _check(self, writing: bool = False) -> None:
        if self._closed or (writing and not self._writable):
            raise OSError(errnos.EBADF, os.strerror(errnos.EBADF), self.name)

    def size(self) -> int:
        self._check()
        return len(self.inode.cache)

    def read(self, offset: int, count: int) -> bytes:
        self._check()
        disk = self._disk
        disk.reads += 1
        if disk.dead:
            raise PowerCut
        if disk.fault is not None:
            fault = disk.fault("read", self.name)
            if fault is not None:
                raise OSError(fault.errno, os.strerror(fault.errno), self.name)
        data = bytes(self.inode.cache[offset : offset + count])
        disk.read_bytes += len(data)
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self._check(True)
        data = bytes(data)
        disk = self._disk
        fault = disk.begin("write", self.name, offset, data)
        if fault is not None:
            taken = data[: fault.short]
            if taken:
                self.inode.write(offset, taken)
            if fault.errno:
                raise OSError(fault.errno, os.strerror(fault.errno), self.name)
            return len(taken)
        if data:
            self.inode.write(offset, data)
        if disk.cut_at is not None:
            disk.end()
        return len(data)

    def datasync(self) -> None:
        self._sync("datasync")

    def sync(self) -> None:
        self._sync("sync")

    def _sync(self, op: str) -> None:
        self._check()
        disk = self._disk
        fault = disk.begin(op, self.name, 0, b"")
        if fault is not None:
            self.inode.fail_sync(fault)
            raise OSError(fault.errno, os.strerror(fault.errno), self.name)
        self.inode.sync()
        if disk.cut_at is not None:
            disk.end()

    def truncate(self, size: int) -> None:
        self._check(True)
        disk = self._disk
        disk.begin_or_raise("truncate", self.name, size)
        if size != len(self.inode.cache):  # else nothing reaches the platter, whatever that holds
            self.inode.truncate(size)
        if disk.cut_at is not None:
            disk.end()

    def drop_cache(self) -> None:
        self._check()
        disk = self._disk
        if disk.dead:
            raise PowerCut
        if self.inode is not disk.sticky_inode(self.name):
            self.inode.drop(disk.keep_size)

    def close(self) -> None:
        self._closed = True


class SimDisk:
    """One directory in memory.

    `before(op, name)` is called before every operation that changes something: the place to look at crash states.
    `fault(op, name)` may return a Fault for a call. `cut_at`: the power goes in the n-th changing call from now.
    """

    def __init__(
        self,
        image: Image | None = None,
        *,
        keep_size: bool = False,
        sticky: Sequence[str] = (),
        ordered_names: bool = False,
    ) -> None:
        self.keep_size = keep_size
        self.sticky = sticky
        self.ordered_names = ordered_names
        self.before: Callable[[str, str], None] | None = None
        self.fault: Callable[[str, str], Fault | None] | None = None
        self.cut_at: int | None = None
        self.dead = False
        self.trace: list[tuple[str, str, int, int]] | None = None
        self.reads = self.read_bytes = self.calls = 0
        self._inodes = 0
        self._files: dict[str, Inode] = {}
        self._folders: set[str] = set()
        for name, content in (image or {}).items():
            if name.endswith("/"):
                self._folders.add(name[:-1])
            else:
                self._inodes += 1
                self._files[name] = Inode(self._inodes, content)
        self._durable_files = dict(self._files)
        self._durable_folders = set(self._folders)
        self._pending: dict[str, list[NameOp]] = {}

    # ---- the calls of Disk ----

    def names(self, folder: str = "") -> list[str]:
        if self.dead:
            raise PowerCut
        if folder:
            head = folder + "/"
            return sorted(name[len(head) :] for name in self._files if name.startswith(head))
        return sorted([name for name in self._files if "/" not in name] + list(self._folders))

    def create(self, name: str) -> SimFile:
        self.begin_or_raise("create", name)
        folder = self._folder_of(name)
        if name in self._files or name in self._folders:
            raise FileExistsError(errnos.EEXIST, os.strerror(errnos.EEXIST), name)
        self._inodes += 1
        inode = Inode(self._inodes)
        self._files[name] = inode
        self._pending.setdefault(folder, []).append(("create", name, "", inode))
        if self.cut_at is not None:
            self.end()
        return SimFile(self, name, inode, True)

    def open(self, name: str, *, writable: bool = False) -> SimFile:
        if self.dead:
            raise PowerCut
        if self.fault is not None:
            fault = self.fault("open", name)
            if fault is not None:
                raise OSError(fault.errno, os.strerror(fault.errno), name)
        return SimFile(self, name, self._find(name), writable)

    def rename(self, old: str, new: str) -> None:
        self.begin_or_raise("rename", old)
        folder = self._folder_of(new)
        if folder != self._folder_of(old):
            raise NotImplementedError("a rename between folders")
        inode = self._files[new] = self._find(old)
        if old != new:
            del self._files[old]
        self._pending.setdefault(folder, []).append(("rename", old, new, inode))
        if self.cut_at is not None:
            self.end()

    def unlink(self, name: str) -> None:
        self.begin_or_raise("unlink", name)
        inode = self._find(name)
        del self._files[name]
        self._pending.setdefault(self._folder_of(name), []).append(("unlink", name, "", inode))
        if self.cut_at is not None:
            self.end()

    def make_folder(self, name: str) -> None:
        self.begin_or_raise("make_folder", name)
        if name in self._folders or name in self._files:
            raise FileExistsError(errnos.EEXIST, os.strerror(errnos.EEXIST), name)
        self._folders.add(name)
        self._pending.setdefault("", []).append(("make_folder", name, "", Inode(0)))
        if self.cut_at is not None:
            self.end()

    def sync_folder(self, folder: str = "") -> None:
        # A directory's failed sync keeps what is pending: the journal has it, or the file system is read-only.
        self.begin_or_raise("sync_folder", folder)
        if folder and folder not in self._folders:
            raise FileNotFoundError(errnos.ENOENT, os.strerror(errnos.ENOENT), folder)
        pending = self._pending.pop(folder, None)
        if pending:
            _replay(pending, self._durable_files, self._durable_folders)
        if self.cut_at is not None:
            self.end()

    def lock(self) -> None:
        """There is only one process."""

    def close(self) -> None:
        """Nothing to let go of."""

    def sticky_inode(self, name: str) -> Inode | None:
        """The file of this name, if its pages outlive `drop_cache`."""
        return self._files.get(name) if name in self.sticky else None

    def _find(self, name: str) -> Inode:
        inode = self._files.get(name)
        if inode is None:
            raise FileNotFoundError(errnos.ENOENT, os.strerror(errnos.ENOENT), name)
        return inode

    def _folder_of(self, name: str) -> str:
        folder, slash, _ = name.rpartition("/")
        if slash and folder not in self._folders:
            raise FileNotFoundError(errnos.ENOENT, os.strerror(errnos.ENOENT), name)
        return folder

    # ---- faults and power ----

    def begin(self, op: str, name: str, offset: int, data: bytes) -> Fault | None:
        """Before a changing call: look, count, fail, or lose power halfway through a write."""
        if self.dead:
            raise PowerCut
        if self.before is not None:
            self.before(op, name)
        self.calls += 1
        if self.trace is not None:
            self.trace.append((op, name, offset, len(data)))
        return self.fault(op, name) if self.fault is not None else None

    def begin_or_raise(self, op: str, name: str, offset: int = 0) -> None:
        fault = self.begin(op, name, offset, b"")
        if fault is not None:
            raise OSError(fault.errno, os.strerror(fault.errno), name)

    def end(self) -> None:
        """Behind a changing call's effect in the cache: the cut that was planned for this one."""
        assert self.cut_at is not None
        self.cut_at -= 1
        if self.cut_at <= 0:
            self.dead = True
            raise PowerCut

    # ---- states ----

    def clone(self) -> SimDisk:
        """The same cache and platter, no hooks: what a killed process leaves behind."""
        other = SimDisk(keep_size=self.keep_size, sticky=self.sticky, ordered_names=self.ordered_names)
        copies: dict[int, Inode] = {}

        def copy(inode: Inode) -> Inode:
            twin = copies.get(inode.number)
            if twin is None:
                twin = copies[inode.number] = inode.clone()
            return twin

        other._inodes = self._inodes
        other._files = {name: copy(inode) for name, inode in self._files.items()}
        other._folders = set(self._folders)
        other._durable_files = {name: copy(inode) for name, inode in self._durable_files.items()}
        other._durable_folders = set(self._durable_folders)
        other._pending = {
            folder: [(op, a, b, copy(inode)) for op, a, b, inode in pending]
            for folder, pending in self._pending.items()
        }
        return other

    def image(self) -> Image:
        """What a reader of the cache sees."""
        return {
            **{folder + "/": b"" for folder in self._folders},
            **{name: bytes(inode.cache) for name, inode in self._files.items()},
        }

    def durable(self) -> Image:
        """The worst that a power cut can leave: nothing pending has arrived."""
        return {
            **{folder + "/": b"" for folder in self._durable_folders},
            **{name: inode.platter for name, inode in self._durable_files.items()},
        }

    def is_synced(self, *, apart: Sequence[str] = ("quarantine",)) -> bool:
        """True when nothing is under way: what the kernel was told to make durable is, as far as it knows.

        The folders `apart` apart: a copy in quarantine that a kill interrupted is made again under another name.
        """
        pending = [folder for folder in self._pending if folder not in apart]
        return not pending and not any(
            inode.pending
            for name, inode in self._files.items()
            if not name.startswith(tuple(f"{one}/" for one in apart))
        )

    def is_faithful(self) -> bool:
        """True when the cache shows what the platter holds, or will."""
        return not any(inode.lost for inode in self._files.values())

    def digest(self) -> bytes:
        """Of cache, platter and all that is pending, quarantine apart: equal digests behave alike."""
        hasher = blake2b(digest_size=16)
        for name, inode in sorted(self._files.items()):
            if not name.startswith("quarantine"):
                hasher.update(b"%s\0%d\0" % (name.encode(), len(inode.cache)))
                hasher.update(inode.cache)
                if inode.pending or inode.lost:
                    hasher.update(b"P%d%d" % (len(inode.platter), inode.lost))
                    hasher.update(inode.platter)
                    for offset, data in inode.pending:
                        hasher.update(b"%d,%d\0" % (offset, len(data)))
                        hasher.update(data)
        for folder, pending in sorted(self._pending.items()):
            if folder != "quarantine":
                hasher.update(repr([(op, a, b) for op, a, b, _ in pending]).encode())
        return hasher.digest()

    def crash_states(self, rng: Random, limit: int, *, garbage: bool = False) -> Iterator[Image]:
        """What a power cut may leave, at most `limit` images (the same one may come twice).

        First each thing that is under way varies alone, the rest all done and all undone; then random mixtures.
        """
        namespaces = self._namespaces()
        inodes: dict[int, Inode] = {}
        for files, _ in namespaces:
            for inode in files.values():
                if inode.pending:
                    inodes[inode.number] = inode
        variants = {
            number: contents(inode.platter, inode.pending, rng, limit, garbage) for number, inode in inodes.items()
        }

        def build(space: int, choice: dict[int, bytes]) -> Image:
            files, folders = namespaces[space]
            image = {folder + "/": b"" for folder in folders}
            for name, inode in files.items():
                image[name] = choice.get(inode.number, inode.platter)
            return image

        combinations = len(namespaces)
        for options in variants.values():
            combinations *= len(options)
        if combinations <= limit:
            for space in range(len(namespaces)):
                for choice in product(*variants.values()):
                    yield build(space, dict(zip(variants, choice, strict=True)))
            return
        undone = {number: options[0] for number, options in variants.items()}
        done = {number: options[1] for number, options in variants.items()}
        singles = [(space, base) for space in range(len(namespaces)) for base in (undone, done)]
        for number, options in variants.items():
            for content in options:
                for base in (undone, done) if len(variants) > 1 else (done,):
                    singles.append((len(namespaces) - 1, {**base, number: content}))
        ends, rest = singles[: 2 * len(namespaces)], singles[2 * len(namespaces) :]
        if len(singles) > limit:
            rest = rng.sample(rest, max(0, min(len(rest), limit - len(ends))))
        for space, choice_ in ends + rest:
            yield build(space, choice_)
        mixtures = max(0, limit - len(singles)) if len(variants) > 1 or len(namespaces) > 1 else 0
        for _ in range(mixtures):
            mixed = {number: rng.choice(options) for number, options in variants.items()}
            yield build(rng.randrange(len(namespaces)), mixed)

    def _namespaces(self) -> list[tuple[dict[str, Inode], set[str]]]:
        """Every selection of each folder's pending operations: nothing done first, all done last."""
        spaces = []
        selections = {folder: self._selections(pending) for folder, pending in self._pending.items()}
        for chosen in product(*selections.values()):
            files, made = dict(self._durable_files), set(self._durable_folders)
            for folder, ops in sorted(zip(selections, chosen, strict=True)):
                if not folder or folder in made:
                    _replay(ops, files, made)
            files = {name: inode for name, inode in files.items() if "/" not in name or name.split("/")[0] in made}
            spaces.append((files, made))
        return spaces

    def _selections(self, pending: list[NameOp]) -> list[list[NameOp]]:
        prefixes = [pending[:length] for length in range(len(pending) + 1)]
        if self.ordered_names or len(pending) < 2:
            return prefixes
        middle: list[list[NameOp]] = []
        if len(pending) <= ALL_SELECTIONS_MAX:
            for bits in product((False, True), repeat=len(pending)):
                middle.append([op for op, done in zip(pending, bits, strict=True) if done])
        else:
            middle += prefixes + [[op] for op in pending]
            middle += [pending[:skipped] + pending[skipped + 1 :] for skipped in range(len(pending))]
        return [[], *(ops for ops in middle if 0 < len(ops) < len(pending)), pending]


def _replay(ops: list[NameOp], files: dict[str, Inode], folders: set[str]) -> None:
    """What some of the operations, in their order, make of the names."""
    there = {id(inode) for inode in files.values()}
    for op, name, new, inode in ops:
        if op == "make_folder":
            folders.add(name)
            continue
        if op == "create":
            there.add(id(inode))
            files[name] = inode
            continue
        if files.get(name) is inode:
            del files[name]
        if op == "rename":
            if id(inode) in there:
                files[new] = inode
            else:
                files.pop(new, None)  # the name leads to a file that never came to be
