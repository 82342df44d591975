"""The pure rules against plain models: pages, the id window, determinism, what is published."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from support.golden import region
from tidelog.batch import read_batch, signature_of
from tidelog.errors import (
    AppendTooLarge,
    DuplicateEventId,
    InvalidArgument,
    OutcomeUnknown,
    WrongExpectedVersion,
)
from tidelog_broker.core import pages
from tidelog_broker.core.appender import Appender, AppendLimits, GroupFull
from tidelog_broker.core.base import kept_writes
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.idwindow import IdWindow, event_ids
from tidelog_broker.core.index import Index
from tidelog_broker.core.pages import Query, cut_page
from tidelog_broker.core.sessions import Sessions
from tidelog_broker.core.topics import BODY, Topics


class Memory:
    """A broker's core with the log in memory: one segment, a bytearray."""

    def __init__(self, window: int = 65_536, body_bytes_max: int = 1 << 20) -> None:
        self.bytes = bytearray(4_096)
        self.index = Index()
        limits = AppendLimits(id_window_events=window)
        self.appender = Appender(self.index, limits, body_bytes_max, lambda number: kept_writes(self.stored(number)))
        self.now = 0
        self.ids = 0

    def stored(self, number: int) -> list[Any]:
        return [self.batch(at) for at in range(number, self.index.append_stop(number))]

    def batch(self, number: int) -> Any:
        rows = self.index.rows(number)
        return read_batch(bytes(self.bytes), rows.places[number - rows.first] & ((1 << 40) - 1))

    def events(self, count: int, kind: str = "t") -> bytes:
        self.ids += count
        return region(self.ids - count, [kind] * count, [b""] * count, [b"x"] * count)

    def admit(self, *writes: tuple[Any, ...], resend: int | None = None) -> Any:
        self.now += 1
        packed = msgpack.packb((3, 1, 0, resend, 0, None, None, writes))
        return self.appender.admit(msgpack.unpackb(packed, use_list=False), self.now, 0)[0]

    def commit(self) -> None:
        offset = len(self.bytes) + 64
        self.bytes += bytes(64) + b"".join(self.appender.parts)
        self.appender.commit(1, offset)


def random_log(seed: int) -> tuple[Memory, list[tuple[int, str, int, str, int]]]:
    """A log of random appends and its events as (position, stream, version, type, append)."""
    rnd = random.Random(seed)
    memory = Memory()
    model: list[tuple[int, str, int, str, int]] = []
    versions: dict[str, int] = {}
    for append in range(60):
        names = rnd.sample([f"{c}/{n}" for c in "ab" for n in range(3)] + ["plain"], rnd.randint(1, 3))
        kinds = [rnd.choice("tuv") for _ in names]
        counts = [rnd.randint(1, 4) for _ in names]
        memory.admit(*((n, None, memory.events(c, k)) for n, c, k in zip(names, counts, kinds, strict=True)))
        for name, count, kind in zip(names, counts, kinds, strict=True):
            for _ in range(count):
                model.append((len(model), name, versions.get(name, 0), kind, append))
                versions[name] = versions.get(name, 0) + 1
        if rnd.random() < 0.4:
            memory.commit()
    memory.commit()
    return memory, model


def page_events(memory: Memory, query: Query, page: pages.Page) -> list[tuple[int, str, int]]:
    """(position, stream, version) of what a page's bytes hold inside its range; checks that they are whole records."""
    found = []
    for _, offset, size in page.extents:
        at = offset
        while at < offset + size:
            if memory.bytes[at] == 0x42:
                batch = read_batch(bytes(memory.bytes), at)
                assert not isinstance(batch, type(None))
                for place in range(batch.events):  # type: ignore[union-attr]
                    row = (batch.first_position + place, batch.stream, batch.first_version + place)  # type: ignore[union-attr]
                    if page.start <= (row[2] if query.scope == pages.STREAM else row[0]) < page.stop:
                        found.append(row)
                at += batch.length  # type: ignore[union-attr]
            else:
                at += 64
        assert at == offset + size
    return found


@pytest.mark.parametrize("page_bytes", [150, 700, 1 << 20])
@pytest.mark.parametrize("extents", [2, 256])
@pytest.mark.parametrize("seed", range(3))
def test_pages_put_together_are_exactly_the_range_and_hold_whole_appends(
    seed: int, extents: int, page_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES_MAX", page_bytes)
    monkeypatch.setattr(pages, "EXTENTS_MAX", extents)
    memory, model = random_log(seed)
    rnd = random.Random(seed)
    append_of = {row[0]: row[4] for row in model}
    for _ in range(60):
        scope, name = rnd.choice([(0, ""), (1, "a"), (1, "b"), (1, "none"), (2, "a/1"), (2, "plain")])
        start, stop = rnd.choice([None, rnd.randint(0, 160)]), rnd.choice([None, rnd.randint(0, 160)])
        backwards, kinds = rnd.random() < 0.5, rnd.choice([None, ("t",), ("u", "v")])
        low, high = start or 0, 1 << 60 if stop is None else stop
        wanted = [
            row[:3]
            for row in model
            if low <= (row[2] if scope == 2 else row[0]) < high
            and (scope == 0 or (row[1] == name if scope == 2 else row[1].startswith(name + "/")))
            and (kinds is None or row[3] in kinds)
        ]
        got: list[tuple[int, str, int]] = []
        seen: set[int] = set()
        for _ in range(500):
            query = Query(
                scope=scope, name=name, start=start, stop=stop, limit=None, backwards=backwards,
                signature=signature_of(kinds) if kinds else 0,
            )  # fmt: skip
            page = cut_page(memory.index, query)
            rows = page_events(memory, query, page)
            kept = [row for row in rows if kinds is None or model[row[0]][3] in kinds]
            got = kept + got if backwards else got + kept
            assert page.start <= page.stop
            appends = {append_of[row[0]] for row in rows}
            assert scope == 2 or appends.isdisjoint(seen)
            seen |= appends
            if backwards:
                if page.start <= low or page.start == page.stop:
                    break
                assert stop is None or page.start < stop
                stop = page.start
            else:
                if page.stop >= min(high, page.end):
                    break
                assert page.stop > (start or 0)
                start = page.stop
        assert got == wanted


def test_a_limit_keeps_pages_small_and_never_cuts_into_an_append() -> None:
    memory, _ = random_log(1)
    for limit in (0, 1, 5):
        page = cut_page(
            memory.index, Query(scope=0, name="", start=10, stop=None, limit=limit, backwards=False, signature=0)
        )
        assert page.stop - page.start <= limit + 12
        assert (page.extents == []) == (limit == 0)


@pytest.mark.parametrize("window", [1, 7, 50])
def test_after_a_restart_the_id_window_is_as_if_it_had_never_ended(window: int) -> None:
    memory = Memory(window)
    rnd = random.Random(window)
    saved: set[int] = set()
    for _ in range(200):
        for _ in range(rnd.randint(1, 3)):
            memory.admit((f"s/{rnd.randint(0, 5)}", None, memory.events(rnd.randint(1, 9))))
        memory.commit()
        again = IdWindow(window)
        number = 0
        while number < memory.index.stop:
            if number in saved:
                again = IdWindow.from_image(again.image())  # a checkpoint was made here, and the start goes on from it
            stored = memory.stored(number)
            ids = {part: number for batch in stored for part in event_ids(batch.region, 0, batch.events)}
            again.restore(ids, stored[0].first_position)
            number = memory.index.append_stop(number)
        saved.add(rnd.randrange(memory.index.stop))
        live = memory.appender.window
        assert (again.young, again.old, again.begins) == (live.young, live.old, live.begins)
        assert len(live.young) + len(live.old) >= min(window, memory.index.head)


def test_a_rollback_leaves_no_trace_in_window_versions_and_positions() -> None:
    memory = Memory(window=3)
    memory.admit(("a", False, memory.events(2)))
    memory.commit()
    before = dict(memory.appender.window.young)
    lost = memory.events(4)
    memory.admit(("a", 1, lost))
    memory.admit(("b", False, memory.events(1)))
    memory.appender.rollback()
    assert memory.appender.window.young == before
    assert memory.admit(("b", False, memory.events(1)))[4:] == (2, 2, 0, 0)
    assert memory.admit(("a", 1, lost))[4:] == (3, 6, 2, 5)


def test_the_same_requests_with_the_same_times_make_the_same_batches() -> None:
    one, two = random_log(5)[0], random_log(5)[0]
    assert one.bytes == two.bytes


def test_grouping_does_not_change_a_batch() -> None:
    apart, together = Memory(), Memory()
    for memory, every in ((apart, 1), (together, 7)):
        for number in range(21):
            memory.admit((f"s/{number % 4}", None, memory.events(1 + number % 3)))
            if number % every == every - 1:
                memory.commit()
    rows = [[memory.batch(n) for n in range(21)] for memory in (apart, together)]
    assert rows[0] == rows[1]


def test_known_ids_are_answered_before_expected_versions_and_other_overlaps_are_refused() -> None:
    memory = Memory()
    first, second = memory.events(3), memory.events(1)
    original = memory.admit(("a", False, first), ("b", None, None), ("c", None, second))
    for _ in range(2):
        again = memory.admit(("a", False, first), ("b", None, None), ("c", None, second))
        assert again[4:] == original[4:]
        assert again[2] & 1
        for writes in [
            [("a", None, first)],
            [("a", None, first), ("d", None, second)],
            [("a", None, second), ("c", None, first)],
            [("a", None, region(0, ["t"] * 3, [b""] * 3, [b"x", b"x", b"y"])), ("c", None, second)],
            [("e", None, region(2, ["t"] * 2, [b""] * 2, [b"x"] * 2))],
        ]:
            with pytest.raises(DuplicateEventId):
                memory.admit(*writes)
        if memory.appender.parts:
            memory.commit()


def test_a_resend_from_before_the_window_is_unknown_never_a_second_write() -> None:
    memory = Memory(window=2)
    for _ in range(8):
        memory.admit(("a", None, memory.events(1)))
        memory.commit()
    begins = memory.appender.window.begins
    assert begins > 0
    with pytest.raises(OutcomeUnknown):
        memory.admit(("a", None, region(0, ["t"], [b""], [b"x"])), resend=begins - 1)
    assert memory.admit(("a", None, memory.events(1)), resend=begins)[4] == 8


def test_refusals_of_pending_state_share_its_fate_and_others_do_not() -> None:
    memory = Memory()
    memory.admit(("a", False, memory.events(1)))
    with pytest.raises(WrongExpectedVersion) as pending:
        memory.admit(("a", False, memory.events(1)))
    with pytest.raises(WrongExpectedVersion) as settled:
        memory.admit(("b", True, memory.events(1)))
    assert (pending.value.shares_fate, settled.value.shares_fate) == (True, False)


@pytest.mark.parametrize(
    "writes",
    [
        (),
        (("a", None, None),),
        (("a", None, b""),),
        (("a", None, b"\x94\xc4\x00\xa1t\xc0\x90"),),
        (("a", None, b"\x80"),),
        (("a", None, msgpack.packb([b"i" * 16, "t", None, ["text"]])),),
        (("a", None, msgpack.packb([b"i" * 15, "t", None, [b""]])),),
        (("a", None, msgpack.packb([b"i" * 16, ["t", "u"], None, [b""]])),),
        (("a", None, msgpack.packb([b"i" * 16, "$t", None, [b""]])),),
        (("a", None, msgpack.packb([b"i" * 16, "", None, [b""]])),),
        (("a", None, msgpack.packb([b"i" * 16, "t", [1], [b""]])),),
        (("a", None, msgpack.packb([b"i" * 32, "t", None, [b"", b""]])),),
        (("a", -1, msgpack.packb([b"i" * 16, "t", None, [b""]])),),
        (("a", 1.0, msgpack.packb([b"i" * 16, "t", None, [b""]])),),
        (("a\x00b", None, msgpack.packb([b"i" * 16, "t", None, [b""]])),),
        (("é" * 128, None, msgpack.packb([b"i" * 16, "t", None, [b""]])),),
        ((1, None, msgpack.packb([b"i" * 16, "t", None, [b""]])),),
        (("a", None),),
        "abc",
    ],
)
def test_a_write_of_a_wrong_shape_is_invalid_and_stages_nothing(writes: Any) -> None:
    memory = Memory()
    with pytest.raises(InvalidArgument):
        memory.appender.admit((3, 1, 0, None, 0, None, None, writes), 1, 0)
    assert memory.appender.parts == []
    assert memory.appender.position == 0


def test_an_append_that_no_group_can_hold_is_too_large_even_between_others() -> None:
    memory = Memory(body_bytes_max=2_000)
    memory.admit(("a", None, memory.events(1)))
    big = region(1000, ["t"], [b""], [b"x" * 3_000])
    with pytest.raises(AppendTooLarge):
        memory.admit(("b", None, big))


def test_published_ranges_of_each_topic_join_without_a_gap() -> None:
    rnd = random.Random(3)
    memory = Memory()
    topics = Topics(b"L" * 16)
    names = [b"A", b"Ca\0", b"Cb\0", b"Sa/1\0", b"Splain\0"]
    for name in names:
        topics.note(b"\x01" + name)
    ends = dict.fromkeys(names, 0)
    for _ in range(50):
        for _ in range(rnd.randint(1, 3)):
            chosen = rnd.sample(["a/1", "a/2", "b/1", "plain"], rnd.randint(1, 3))
            memory.admit(*((name, None, memory.events(rnd.randint(1, 3))) for name in chosen))
        appender = memory.appender
        for topic, body in topics.messages(memory.index, appender.staged, appender.parts, 0):
            _, since, to, head, _, flags, _ = BODY.unpack_from(body)
            assert since == ends[topic]
            assert since < to
            assert flags == 1
            assert topic[:1] == b"S" or to <= head
            ends[topic] = to
        memory.commit()
    assert ends[b"A"] == memory.index.head
    assert ends[b"Ca\0"] == memory.index.tail.categories["a"][0].end
    assert ends[b"Sa/1\0"] == memory.index.tail.streams["a/1"][0].next_version


def with_maps(rnd: random.Random, first_id: int) -> bytes:
    """A region with maps where arrays belong: iterating over a map gives its keys, so it may pass for an array."""
    payloads = rnd.choice([[b"p"], {b"p": 1}, {b"p": {}}])
    metadata = rnd.choice([None, [b"m"], {b"m": 1}])
    packed: bytes = msgpack.packb([first_id.to_bytes(16, "big"), rnd.choice(["t", {"t": 1}]), metadata, payloads])
    return packed


def random_session(rnd: random.Random, now: Sessions) -> Any:
    """None, or a session with the next serial or another, in its epoch or another."""
    kind = rnd.random()
    if kind < 0.5:
        return None
    name = rnd.choice(["p", "q", "none"])
    session = now.by_name.get(name)
    epoch, last = (session.epoch, session.last) if session else (1, 0)
    if kind < 0.55:
        right = [name, epoch, last + 1]
        return rnd.choice(
            [[], right[:2], [*right, 1], "p11", [7, 1, 1], [name, float(epoch), last + 1], [name, epoch, last + 1.0]]
        )
    return [name, epoch + rnd.choice([0] * 12 + [1, -1]), last + rnd.choice([1] * 12 + [0, 2, -1, 2**63])]


def random_cursor(rnd: random.Random) -> Any:
    return rnd.choice([None] * 9 + [["c", True, rnd.randrange(9), None], ["c", None, 1, None]])


def random_request(rnd: random.Random, now: Sessions) -> tuple[Any, ...]:
    """A request that is plain, nearly plain, or not at all, as it comes out of msgpack. `now`: sessions to go on with."""
    count = rnd.choice([1, 1, 1, 1, 2])
    first_id = rnd.choice([rnd.randrange(1 << 60), rnd.randrange(40)])
    kinds = [rnd.choice(["t", "t", "u", "µ", "$x", ""])] * count
    metadata = [rnd.choice([b"", b"m"])] * count
    events: Any = region(first_id, kinds, metadata, [b"p" * rnd.choice([0, 5, 90, 200])] * count)
    if rnd.random() < 0.1:
        at = rnd.randrange(len(events))
        events = events[:at] + bytes([rnd.randrange(256)]) + events[at + rnd.randrange(2) :]
    events = rnd.choice([events] * 20 + [None, 5, "text", b"", with_maps(rnd, first_id)])
    name = rnd.choice(["a", "b/1", "c", "c", "d\x01", 7])
    expected = rnd.choice([None, None, None, True, False, 0, 1, 2, 3, -1, 1.0, 2**63])
    writes: Any = [(name, expected, events)] * rnd.choice([1] * 20 + [0, 2])
    request: list[Any] = [3, 9, 0, None, rnd.choice([0, 0, 0, 1]), random_session(rnd, now), random_cursor(rnd), writes]
    if rnd.random() < 0.1:
        request[rnd.choice([3, 4, 5, 6])] = rnd.choice([None, 0, 1, -1, "x"])
    packed = msgpack.packb(request[: rnd.choice([8] * 20 + [7])])
    unpacked: tuple[Any, ...] = msgpack.unpackb(packed, use_list=False)
    return unpacked


@pytest.mark.parametrize("seed", range(4))
def test_the_short_way_of_plain_appends_decides_nothing_of_its_own(seed: int) -> None:
    rnd = random.Random(seed)
    short, long = Memory(window=8, body_bytes_max=3_000), Memory(window=8, body_bytes_max=3_000)
    for memory in (short, long):
        memory.appender.limits = AppendLimits(event_bytes_max=150, append_bytes_max=200, id_window_events=8)
        memory.appender._plain_bytes_max = 150
    taken = in_session = accepted = 0
    for now in range(3_000):
        request = random_request(rnd, short.appender.sessions)
        opening = (16, 9, 0, rnd.choice("pq"), None) if now % 100 == 0 else None
        answers: list[tuple[Any, ...]] = []
        for memory in (short, long):
            try:
                if opening is not None:
                    answers.append(memory.appender.open_session(opening, now))
                    continue
                plain = memory.appender.admit_plain(request, now, 0) if memory is short else None
                taken += plain is not None
                in_session += plain is not None and request[5] is not None
                accepted += plain is not None and request[4] == 1
                answers.append((plain, plain[2] != 0) if plain is not None else memory.appender.admit(request, now, 0))
            except Exception as error:
                answers.append((type(error), getattr(error, "facts", ()), getattr(error, "shares_fate", None)))
        assert answers[0] == answers[1], request
        assert short.appender.accepted == long.appender.accepted
        if answers[0][0] is GroupFull or rnd.random() < 0.1:
            assert short.appender.parts == long.appender.parts
            if rnd.random() < 0.2:
                short.appender.rollback()
                long.appender.rollback()
            elif short.appender.parts:
                short.commit()
                long.commit()
    assert short.bytes == long.bytes
    assert short.index.head > 100
    assert taken > 30
    assert in_session > 10
    assert accepted > 5
    assert short.appender.sessions.images() == long.appender.sessions.images()
    assert short.appender.cursors.rows() == long.appender.cursors.rows()


def test_maps_are_no_columns_in_the_short_way_either() -> None:
    memory = Memory()
    memory.admit(("a", None, memory.events(1)))
    memory.commit()
    for region_of_maps in (
        msgpack.packb([b"i" * 16, "t", None, {b"p": b"v"}]),
        msgpack.packb([b"i" * 16, "t", {b"m": b"v"}, [b"p"]]),
        msgpack.packb([b"i" * 16, "t", None, {b"p": b"v" * 100_000}]),
    ):
        packed = msgpack.packb((3, 1, 0, None, 0, None, None, [("a", None, region_of_maps)]))
        request = msgpack.unpackb(packed, use_list=False)
        assert memory.appender.admit_plain(request, 1, 0) is None
        with pytest.raises(InvalidArgument):
            memory.appender.admit(request, 1, 0)


def test_appends_that_wait_for_the_next_group_are_all_admitted_in_their_order() -> None:
    index = Index()
    broker = Broker(
        Identity(b"l" * 16, b"b" * 16, "0", 500),
        index,
        AppendLimits(),
        2_000,
        lambda _: [],
        lambda number, checked=False: 0,
        dict,
        _verdict,
    )
    hello = msgpack.packb([(1, 1, "tidelog", 1, b"c" * 16, 1)])
    broker.begin(1)
    broker.take(b"id", hello)
    rows = [(3, 10 + n, 0, None, 0, None, None, [("s", None, region(n, ["t"], [b""], [b"x" * 600]))]) for n in range(9)]
    broker.take(b"id", msgpack.packb(rows))
    groups = 0
    while broker.appender.parts:
        broker.committed(1, 4_096)
        groups += 1
        assert groups < 20
        broker.begin(1 + groups)
    assert groups == 5
    peer = broker.peers.find(b"id")
    assert peer is not None
    assert [(reply[0], reply[4]) for reply in peer.fated] == [(10 + n, n) for n in range(9)]


def _verdict() -> Verdict:
    return Verdict(True, True, "", 0, 0)
