"""Rot behind a start: bytes that change under an open log, as a client sees them, and records that are wrong on purpose.

A page's stored bytes go to the client as they lie; its decoder finds what is wrong in them. Whatever is changed there, a
reader gets exactly the events that were written or CorruptLog for that page, never another event and never a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import msgpack
import pytest
from support.builders import seeded_random
from support.damage import PLAIN, Known, flips, make
from support.simdisk import SimDisk
from tidelog.errors import CorruptLog
from tidelog.messages import Recorded
from tidelog.reading import Pages
from tidelog.wire import CATEGORY, EVERYTHING, READ, STREAM
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.peers import Peer
from tidelog_broker.store import Store

READS: dict[str, tuple[Any, ...]] = {
    "everything": (EVERYTHING, ""),
    "a part": (EVERYTHING, "", 6, 21),
    "backwards": (EVERYTHING, "", None, None, None, True),
    "a category": (CATEGORY, "b"),
    "a stream": (STREAM, "a/1"),
    "one type": (EVERYTHING, "", None, None, None, False, ("t",)),
}


class Opened:
    """An open log, and reads of it through the broker's rules and the client's decoder."""

    def __init__(self, known: Known) -> None:
        self.disk = SimDisk(dict(known.image))
        self.store = store = Store(self.disk, known.settings, seeded_random(b"rot"))
        identity = Identity(store.log.log_id, bytes(16), "0", 100)
        self.broker = Broker(
            identity, store.index, AppendLimits(), store.log.body_bytes_max, store.original, store.recorded_at,
            dict, lambda: Verdict(True, True, "", 0, 0),
        )  # fmt: skip
        self.damage: Callable[[bytes], bytes] = bytes

    def read(self, *fields: Any) -> list[Recorded]:
        """All events of a read. Raises CorruptLog."""
        pages = Pages(*fields)
        events: list[Recorded] = []
        for _ in range(100):
            asked = pages.request()
            if asked is None:
                return events
            request = msgpack.unpackb(msgpack.packb((READ, 1, 0, *asked)), use_list=False)
            answer = self.broker.answer(Peer(b"peer"), request, 0)
            assert answer is not None
            reply, extents = answer
            assert reply[1] == 0, reply
            pages.arrived(reply)
            events += pages.decode(self.damage(b"".join(self.store.read(extents or []))))
        raise AssertionError("the read does not end")

    def recorded(self, fields: tuple[Any, ...]) -> tuple[list[Recorded], list[bytes]]:
        """A read without damage: its events and the bytes of its pages."""
        pages: list[bytes] = []

        def keep(data: bytes) -> bytes:
            pages.append(data)
            return data

        self.damage = keep
        events = self.read(*fields)
        assert events
        self.damage = bytes
        return events, pages

    def replace_page(self, pages: list[bytes], number: int, damaged: bytes) -> None:
        """The next read gets these bytes as its page `number`."""
        coming = iter([*pages[:number], damaged, *pages[number + 1 :]])
        self.damage = lambda data: next(coming, data)

    def is_refused(self, fields: tuple[Any, ...], right: list[Recorded]) -> bool:
        """Whether the read is refused as damaged; if not, it gives exactly what is right."""
        try:
            found = self.read(*fields)
        except CorruptLog:
            return True
        assert found == right
        return False


@cache
def opened() -> Opened:
    return Opened(make("rot", PLAIN, 10, 1))


@pytest.mark.parametrize("mask", [*(1 << bit for bit in range(8)), 0xFF])
@pytest.mark.parametrize("which", READS)
def test_a_flipped_byte_of_a_page_is_the_right_events_or_refused(which: str, mask: int) -> None:
    log, fields = opened(), READS[which]
    right, pages = log.recorded(fields)
    refused = 0
    for number, page in enumerate(pages):
        for offset, damaged in flips(page, mask):
            log.replace_page(pages, number, damaged)
            try:
                refused += log.is_refused(fields, right)
            except AssertionError:
                pytest.fail(f"page {number} of {len(pages)}: byte {offset} ({page[offset]:#x}) changes what is read")
    # What may be changed unseen are the headers of groups, which a client skips.
    headers = sum(page.count(b"TLGR") for page in pages)
    assert refused >= sum(map(len, pages)) - 64 * headers


def batches_of(page: bytes) -> list[tuple[int, int]]:
    """[start, stop) of each batch of events in a page."""
    found, at = [], 0
    while at < len(page):
        is_batch = page[at] == 0x42
        length = int.from_bytes(page[at + 4 : at + 8], "little") if is_batch else 64
        if is_batch:
            found.append((at, at + length))
        at += length
    return found


def zeroed(page: bytes) -> Iterator[tuple[str, bytes]]:
    """Whole batches, and runs of them, that became zeros, which look like padding."""
    batches = batches_of(page)
    for first, (start, _) in enumerate(batches):
        for _, stop in batches[first : first + 3]:
            yield f"zeros from {start} to {stop}", page[:start] + bytes(stop - start) + page[stop:]
        yield f"zeros from {start} on", page[:start] + bytes(len(page) - start)


def astray(page: bytes) -> Iterator[tuple[str, bytes]]:
    """A whole batch in the place of another one of the same length: a misdirected write."""
    for start, stop in batches_of(page):
        for other, end in batches_of(page):
            if start != other and stop - start == end - other:
                yield f"the batch of {other} at {start}", page[:start] + page[other:end] + page[stop:]


@pytest.mark.parametrize("which", READS)
@pytest.mark.parametrize("damages", [zeroed, astray])
def test_whole_batches_that_became_zeros_or_others_are_refused(
    damages: Callable[[bytes], Iterator[tuple[str, bytes]]], which: str
) -> None:
    log, fields = opened(), READS[which]
    right, pages = log.recorded(fields)
    tried = 0
    for number, page in enumerate(pages):
        for what, damaged in damages(page):
            tried += 1
            log.replace_page(pages, number, damaged)
            try:
                assert log.is_refused(fields, right)
            except AssertionError:
                pytest.fail(f"page {number} of {len(pages)}, {what}: events are missing or others, and nobody says so")
    assert tried


def test_rot_in_one_page_leaves_the_others_readable() -> None:
    """A byte of a closed segment changes on the disk under the open log."""
    known = make("rot while running", PLAIN, 10, 1)
    log = Opened(known)
    right = log.read(EVERYTHING, "")
    record = known.records[1]
    at = record.start + 64 + 80

    def flip() -> None:
        file = log.disk.open(record.name, writable=True)
        file.write(at, bytes([file.read(at, 1)[0] ^ 1]))
        file.close()

    flip()
    by_group = [[event for event in right if 4 * group <= event.position < 4 * group + 4] for group in range(10)]
    for group, events in enumerate(by_group):
        if group == 1:
            with pytest.raises(CorruptLog):
                log.read(EVERYTHING, "", 4, 8)
        else:
            assert log.read(EVERYTHING, "", 4 * group, 4 * group + 4) == events
    flip()
    assert log.read(EVERYTHING, "") == right
