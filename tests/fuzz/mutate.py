"""Mutations of bytes: flips, splices, deletions, interesting integers, length fields. Deterministic for a seeded Random."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

INTERESTING = [0, 1, 2, 7, 8, 15, 16, 55, 56, 63, 64, 100, 127, 128, 255, 256, 4_095, 4_096, 65_535, 65_536]
INTERESTING += [(1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
TOKENS = [
    b"TLGR", b"TLSL", b"B", b"C", b"\x90", b"\x91", b"\x94\xc4\x10", b"\xc0", b"\xc2", b"\xc3", b"\xc4\x00", b"\xc1",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\x00\x00\x00\x01", b"\x81\x01\x02",
    b"\xd4\x05x", b"\xcb" + bytes(8), b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xa1\xff", b"\xed\xa0\x80", b"\0" * 64,
]  # fmt: skip
"""Words of the formats: magics, kinds, msgpack's arrays, nil, bools, huge lengths, maps, exts, floats, bad UTF-8."""


def mutated(data: bytes, others: Sequence[bytes], rng: Random, bytes_max: int) -> bytes:
    """One to a few changes to `data`; `others` are what it may be spliced with."""
    out = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        _change(out, others, rng)
    return bytes(out[:bytes_max])


def _change(out: bytearray, others: Sequence[bytes], rng: Random) -> None:
    size = len(out)
    at = rng.randrange(size + 1)
    what = rng.randrange(12)
    if not size and what < 6:
        what = 9
    at = min(at, size - 1) if what < 6 else at
    if what == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif what == 1:
        out[at] = rng.randrange(256)
    elif what == 2:
        out[at] = (out[at] + rng.choice((-1, 1, -16, 16))) & 255
    elif what == 3:
        # A number, in either order of bytes: the formats are little-endian, msgpack is big.
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(INTERESTING) & ((1 << 8 * width) - 1)
        out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    elif what == 4:
        # A length that follows what stands there: a little more or less.
        width = rng.choice((1, 2, 4))
        order = rng.choice(("little", "big"))
        value = int.from_bytes(out[at : at + width], order) + rng.choice((-64, -4, -1, 1, 4, 64))  # type: ignore[arg-type]
        out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
    elif what == 5:
        stop = min(size, at + 1 + rng.randrange(32))
        out[at:stop] = bytes([rng.choice((0, 0xFF, out[at]))]) * (stop - at)
    elif what == 6:
        del out[at : at + 1 + rng.randrange(1 << rng.randrange(1, 8))]
    elif what == 7:
        start = rng.randrange(size + 1)
        out[at:at] = out[start : start + 1 + rng.randrange(1 << rng.randrange(1, 8))]
    elif what == 8:
        out[at:at] = rng.randbytes(1 + rng.randrange(8))
    elif what == 9:
        out[at:at] = rng.choice(TOKENS)
    elif what == 10:
        token = rng.choice(TOKENS)
        out[at : at + len(token)] = token
    elif others:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        piece = other[start : start + rng.randrange(1, 256)]
        out[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
