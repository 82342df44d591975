"""The rule that keeps a subscriber gapless, and the chain of pages of a read."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest
from support.builders import event_batch
from tidelog import InvalidArgument, ProtocolMismatch, Truncated
from tidelog.follow import Follow, Verdict
from tidelog.reading import Pages, types_filter


def test_message_that_reaches_over_next_is_taken() -> None:
    follow = Follow(5, 5)
    assert follow.message(5, 8, 8, True) is Verdict.TAKE
    assert follow.message(3, 8, 8, True) is Verdict.TAKE
    assert follow.next == 5
    follow.took(8, 9)
    assert (follow.next, follow.covered) == (8, 9)


def test_message_below_next_is_dropped_and_still_tells_what_is_covered() -> None:
    follow = Follow(100, 5)
    assert follow.message(4, 6, 6, True) is Verdict.DROP
    assert (follow.next, follow.covered) == (100, 6)


def test_message_without_bytes_or_beyond_next_is_read() -> None:
    follow = Follow(5, 5)
    assert follow.message(5, 8, 8, False) is Verdict.READ
    assert follow.message(6, 8, 8, True) is Verdict.READ
    assert not follow.lost


def test_hole_is_a_loss_only_once_the_subscription_is_live() -> None:
    follow = Follow(5, 5)
    follow.heartbeat(5, 0.0, 1.0)
    assert follow.live
    assert follow.message(6, 8, 8, True) is Verdict.READ
    assert follow.lost


def test_first_heartbeat_beyond_covered_is_read_at_once_and_later_ones_with_jitter() -> None:
    follow = Follow(0, 0)
    follow.heartbeat(7, 10.0, 0.5)
    assert (follow.read_at, follow.live) == (10.0, False)
    assert follow.read(7, 7, 7)
    assert (follow.read_at, follow.live) == (inf, True)
    follow.heartbeat(9, 11.0, 0.5)
    assert follow.read_at == 11.5
    follow.heartbeat(9, 11.2, 0.1)
    assert follow.read_at == pytest.approx(11.3)
    follow.took(9, 9)
    assert follow.read_at == inf


def test_covered_heartbeat_asks_for_nothing() -> None:
    follow = Follow(3, 12)
    follow.heartbeat(12, 1.0, 0.5)
    assert follow.read_at == inf


def test_read_is_over_when_it_reached_the_end() -> None:
    follow = Follow(0)
    assert not follow.read(5, 9, 9)
    assert (follow.next, follow.covered) == (5, 0)
    assert follow.read(9, 9, 20)
    assert (follow.next, follow.covered) == (9, 20)


def test_start_beyond_the_head_waits_there() -> None:
    follow = Follow(100)
    assert follow.read(100, 5, 5)
    assert (follow.next, follow.covered) == (100, 5)
    assert follow.message(95, 105, 105, True) is Verdict.TAKE


def test_silence_asks_for_a_read_and_is_no_loss() -> None:
    follow = Follow(5, 5)
    follow.heartbeat(5, 0.0, 1.0)
    follow.silent(9.0)
    assert follow.read_at == 9.0
    follow.message(7, 8, 8, True)
    assert not follow.lost


def test_any_loss_any_order_of_reads_leaves_neither_hole_nor_repeat() -> None:
    """A log, a publisher that drops at random, and a subscriber by the rule: it ends with every event once."""
    for seed in range(300):
        chance = random.Random(seed)
        follow = Follow(0)
        got: list[int] = []
        wire: list[tuple[int, int, bool]] = []
        head = 0
        for _ in range(60):
            start, head = head, head + chance.randint(1, 3)
            if chance.random() < 0.7:
                wire.append((start, head, chance.random() < 0.8))
            if chance.random() < 0.2:
                wire.append((head, head, True))
            while wire and chance.random() < 0.6:
                first, last, has_bytes = wire.pop(0)
                if first == last:
                    follow.heartbeat(last, 0.0, 0.0)
                    if follow.read_at == 0.0:
                        got += read_to_end(follow, head, chance)
                    continue
                verdict = follow.message(first, last, last, has_bytes)
                if verdict is Verdict.TAKE:
                    got += range(follow.next, last)
                    follow.took(last, last)
                elif verdict is Verdict.READ:
                    got += read_to_end(follow, head, chance)
        follow.heartbeat(head, 0.0, 0.0)
        if follow.read_at == 0.0:
            got += read_to_end(follow, head, chance)
        assert got == list(range(head)), seed


def read_to_end(follow: Follow, head: int, chance: random.Random) -> list[int]:
    """Read in pages of chance sizes up to the head → what was read."""
    got: list[int] = []
    over = False
    while not over:
        stop = max(min(head, follow.next + chance.randint(1, 4)), follow.next)
        got += range(follow.next, stop)
        over = follow.read(stop, head, head)
    return got


def serve(log: list[bytes], fields: tuple[Any, ...], page: int) -> tuple[tuple[int, ...], bytes]:
    """A read of a log of one-event batches, `page` of them a page → header and bytes."""
    _, _, start, stop, limit, backwards, _, _ = fields
    end = len(log)
    low = 0 if start is None else start
    high = end if stop is None else min(stop, end)
    if limit == 0 or low >= high:
        at = high if backwards else low
        return (1, 0, at, at, end, end), b""
    if backwards:
        first = max(low, high - page)
        return (1, 0, first, high, end, end), b"".join(log[first:high])
    last = min(high, low + page)
    return (1, 0, low, last, end, end), b"".join(log[low:last])


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("page", [1, 3, 50])
def test_pages_give_the_range_cut_by_limit_with_and_without_prefetch(backwards: bool, page: int) -> None:
    log = [event_batch("s", n, n, [b"%d" % n], event_type="even" if n % 2 == 0 else "odd") for n in range(20)]
    for start in (None, 0, 7, 20, 25):
        for stop in (None, 0, 7, 13, 20, 99):
            for limit in (None, 0, 1, 5, 20, 99):
                for types in (None, ("odd",)):
                    pages = Pages(0, "", start, stop, limit, backwards, types)
                    got, requests = [], 0
                    fields = pages.request()
                    while fields is not None:
                        requests += 1
                        header, data = serve(log, fields, page)
                        pages.arrived(header)
                        ahead = pages.ahead()
                        got += [e.position for e in pages.decode(data)]
                        fields = pages.request() if ahead is None else ahead
                        assert requests < 60
                    want = [
                        n for n in range(start or 0, min(20 if stop is None else stop, 20)) if types is None or n % 2
                    ]
                    want = want[::-1] if backwards else want
                    assert got == want[:limit], (start, stop, limit, types)


def test_page_that_does_not_go_on_is_refused() -> None:
    pages = Pages(0, "", 5)
    pages.request()
    with pytest.raises(ProtocolMismatch):
        pages.arrived((1, 0, 5, 5, 9, 9))


def test_backward_read_without_start_ends_where_the_rest_was_removed() -> None:
    pages = Pages(0, "", backwards=True)
    assert not pages.ended_by(Truncated("", 5))
    pages.arrived((1, 0, 6, 9, 9, 9))
    assert pages.ended_by(Truncated("", 7))


def test_numbers_outside_63_bits_are_refused() -> None:
    for name in ("start", "stop", "limit", "wait_for"):
        for wrong in (-1, 2**63, 1.0, True, "1"):
            with pytest.raises(InvalidArgument):
                Pages(0, "", **{name: wrong})  # type: ignore[arg-type]


def test_types_filter_takes_one_several_or_none() -> None:
    assert types_filter(None) is None
    assert types_filter("a") == ("a",)
    assert types_filter(["a", "b", "a"]) == ("a", "b")
    for wrong in ([5], [str(n) for n in range(65)]):
        with pytest.raises(InvalidArgument):
            types_filter(wrong)  # type: ignore[arg-type]
