"""One file of a simulated disk: what is in the cache, what is on the platter, what is under way (support/simdisk.py)."""

from __future__ import annotations

import errno as errnos
from dataclasses import dataclass

from support.tears import PAGE, SECTOR, Op, apply


@dataclass(slots=True)
class Fault:
    """How a call fails: with `errno`, or (errno 0, a write only) by taking just `short` bytes.

    A write that fails takes `short` bytes into the cache first. A sync that fails leaves `reached` of what was
    pending on the platter: 0.0 nothing, 1.0 all, between: that part of the sectors, from the front (`torn`: of the bytes);
    truncates arrive only with `sizes` and when all does.
    """

    errno: int = errnos.EIO
    short: int = 0
    reached: float = 0.0
    sizes: bool = True
    torn: bool = False


class Inode:
    """A file's cache and platter. `pending`: operations in order that are not durable yet."""

    __slots__ = ("cache", "lost", "number", "pending", "platter")

    def __init__(self, number: int, content: bytes = b"") -> None:
        self.number = number
        self.cache = bytearray(content)
        self.platter = content
        self.pending: list[Op] = []
        self.lost = False
        """True once the cache may hold clean pages that the platter does not."""

    def clone(self) -> Inode:
        other = Inode.__new__(Inode)
        other.number, other.cache, other.platter = self.number, bytearray(self.cache), self.platter
        other.pending, other.lost = list(self.pending), self.lost
        return other

    def write(self, offset: int, data: bytes) -> None:
        cache = self.cache
        size, stop = len(cache), offset + len(data)
        if offset > size:
            cache.extend(bytes(offset - size))
        cache[offset:stop] = data
        if self.lost:
            # A page that is written again goes to the platter whole, with what the cache holds around the new bytes.
            start = offset // PAGE * PAGE
            end = -(-stop // PAGE) * PAGE
            page = bytes(cache[start:end])
            data = page.ljust(min(end, max(len(self.platter), len(cache))) - start, b"\0")
            offset = start
        self.pending.append((offset, data))

    def truncate(self, size: int) -> None:
        if size < len(self.cache):
            del self.cache[size:]
        else:
            self.cache.extend(bytes(size - len(self.cache)))
        self.pending.append((size, b""))

    def sync(self) -> None:
        if self.pending:
            self.platter = apply(self.platter, self.pending) if self.lost else bytes(self.cache)
            self.pending = []
            self.lost = self.lost and self.cache != self.platter

    def fail_sync(self, fault: Fault) -> None:
        """Part of the data arrives, all of it counts as clean."""
        if not self.pending:
            return
        if fault.reached >= 1:
            kept = [op for op in self.pending if op[1] or fault.sizes]
        else:
            kept = []
            for offset, data in self.pending if fault.reached > 0 else ():
                cut = int(len(data) * fault.reached)
                if not fault.torn:
                    cut = (offset + cut) // SECTOR * SECTOR - offset
                if data and cut > 0:
                    kept.append((offset, data[:cut]))
        self.platter = apply(self.platter, kept)
        self.pending = []
        self.lost = True

    def drop(self, keep_size: bool) -> None:
        if not self.lost:
            return
        size = len(self.cache)
        self.cache = bytearray(apply(self.platter, self.pending))
        if keep_size:
            if size < len(self.cache):
                del self.cache[size:]
            else:
                self.cache.extend(bytes(size - len(self.cache)))
        self.lost = self.cache != apply(self.platter, self.pending)
