"""A table of 64-bit keys with small numbers, in 12 bytes a place: what a search of millions of states remembers."""

from __future__ import annotations

from array import array

FIRST_BITS = 12


class Seen:
    """Keys are digests, so their low bits are spread well; a key of 0 counts as 1. Numbers: 1 to 2**32 - 1."""

    def __init__(self) -> None:
        self._count = 0
        self._make(1 << FIRST_BITS)

    def _make(self, places: int) -> None:
        self._mask = places - 1
        self._keys = array("Q", bytes(8 * places))
        self._numbers = array("I", bytes(4 * places))

    def __len__(self) -> int:
        return self._count

    def _place(self, key: int) -> int:
        """Where the key stands, or the free place for it. There always is one."""
        keys, mask = self._keys, self._mask
        place = key & mask
        while keys[place] and keys[place] != key:
            place = (place + 1) & mask
        return place

    def get(self, key: int) -> int:
        """The key's number; 0 when it was never put in."""
        return self._numbers[self._place(key or 1)]

    def put(self, key: int, number: int = 1) -> bool:
        """Remember the key; True when it is new."""
        place = self._place(key or 1)
        is_new = not self._keys[place]
        self._keys[place], self._numbers[place] = key or 1, number
        self._count += is_new
        if 3 * self._count > 2 * self._mask:
            keys, numbers = self._keys, self._numbers
            self._make(2 * (self._mask + 1))
            for old, its_number in zip(keys, numbers, strict=True):
                if old:
                    new = self._place(old)
                    self._keys[new], self._numbers[new] = old, its_number
        return is_new
