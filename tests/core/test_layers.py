"""Whatever is in memory, frozen or in runs, merged or not: the index answers as one that never left memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest
from core.test_rules import random_log
from tidelog_broker.core.index import Index, Staged, Tail
from tidelog_broker.core.merging import merge_runs, to_merge, write_tail
from tidelog_broker.core.pages import Query, cut_page
from tidelog_broker.core.run import BadIndex, Run

LOG_ID = b"log of the tests"
NAMES = [*(f"{category}/{number}" for category in "ab" for number in range(3)), "plain", "none", "a/", "c/1"]


class Layers:
    """An index that freezes, writes and merges at random what another keeps in memory."""

    def __init__(self, seed: int, cached: int) -> None:
        self.whole = Index()
        self.index = Index(cached)
        self.random = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.offset = 4_096
        self.head = 0

    def run(self, name: str, write: Callable[[Callable[[bytes], None]], bytes]) -> Run:
        parts: list[bytes] = []
        trailer = write(parts.append)
        data = self.files[name] = b"".join(parts)
        assert data.endswith(trailer)
        return Run(name, lambda offset, count: data[offset : offset + count], len(data), LOG_ID)

    def group(self) -> None:
        rnd = self.random
        staged: list[Staged] = []
        versions: dict[str, int] = {}
        for _ in range(rnd.randint(1, 6)):
            for at, name in enumerate(rnd.sample(NAMES[:7], rnd.randint(1, 3))):
                known = self.whole.find(name)
                version = versions.get(name, known.next_version if known else 0)
                events = rnd.randint(1, 4)
                versions[name] = version + events
                staged.append((name, events, version, 1 << rnd.randint(0, 3), rnd.randint(80, 300), at == 0, False))
        for index in (self.whole, self.index):
            index.apply(1, self.offset + 64, staged)
        self.offset += 64 + sum(row[4] for row in staged)

    def step(self) -> None:
        index, dice = self.index, self.random.random()
        index.tidy()
        if dice < 0.15 and index.tail.positions:
            index.freeze()
        elif dice < 0.3 and index.frozen:
            tail = index.frozen[0]
            run = self.run(f"run-{tail.first}-{tail.stop}", lambda put: write_tail(tail, put, LOG_ID))
            index.adopt([*index.runs, run])
        elif dice < 0.4 and len(index.runs) > 1:
            count = to_merge([1] * len(index.runs)) or self.random.randint(2, len(index.runs))
            runs = index.runs[-count:]
            name = f"run-{runs[0].first}-{runs[-1].stop}"
            index.adopt([*index.runs[:-count], self.run(name, lambda put: merge_runs(runs, put, LOG_ID, 0))])

    def judge(self) -> None:
        whole, index = self.whole, self.index
        assert (index.head, index.stop, index.stream_count) == (whole.head, whole.stop, whole.stream_count)
        for name in NAMES:
            one, two = whole.peek(name), index.peek(name)
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                assert (one.next_version, one.end, one.deleted) == (two.next_version, two.end, two.deleted)
                assert whole.batches_of(one) == index.batches_of(two)
            series = whole.stream_series(name)
            assert list(series.ascending(0)) == list(index.stream_series(name).ascending(0))
        for category in "abcd":
            one_end, two_end = whole.find_category(category), index.find_category(category)
            assert (one_end and one_end.end) == (two_end and two_end.end)
        for prefix in ("", "a/", "b", "plain", "z"):
            for after in (None, "a/1", "b/2"):
                one_list, two_list = (layer.list_streams(prefix, after, 3) for layer in (whole, index))
                assert [stream.name for stream in one_list[1]] == [stream.name for stream in two_list[1]]
                assert one_list[0] == two_list[0]
        for _ in range(12):
            self.read()

    def read(self) -> None:
        rnd, whole = self.random, self.whole
        scope = rnd.randint(0, 2)
        name = ["", rnd.choice("abcd"), rnd.choice(NAMES[:7])][scope]
        stream = whole.peek(name)
        if scope == 2 and stream is None:
            return
        end = stream.next_version if stream else whole.head
        start, stop = sorted((rnd.randint(0, end), rnd.randint(0, end + 2)))
        query = Query(
            scope=scope, name=name, start=rnd.choice([None, start]), stop=rnd.choice([None, stop]),
            limit=rnd.choice([None, 1, 5]), backwards=rnd.random() < 0.5, signature=rnd.choice([0, 0, 1, 3]),
        )  # fmt: skip
        assert self.covered(self.whole, query) == self.covered(self.index, query), query

    @staticmethod
    def covered(index: Index, query: Query) -> list[tuple[int, int]]:
        """The places of the batches in all pages of a read; how it is cut into pages may differ."""
        places: list[tuple[int, int]] = []
        start, stop = query.start, query.stop
        for _ in range(1_000):
            page = cut_page(
                index,
                Query(
                    scope=query.scope, name=query.name, start=start, stop=stop, limit=query.limit,
                    backwards=query.backwards, signature=query.signature,
                ),
            )  # fmt: skip
            found = []
            for ordinal, offset, size in page.extents:
                place = ordinal << 40 | offset
                for rows in index.rows_from(place):
                    for at, length in zip(rows.places, rows.lengths, strict=True):
                        if place <= at < place + size:
                            found.append((at, length))
            assert len(found) == page.batches
            places = found + places if query.backwards else places + found
            if query.backwards:
                stop = page.start
                if page.start == page.stop or page.start <= (query.start or 0):
                    return places
            else:
                start = page.stop
                if page.stop >= (page.end if query.stop is None else min(query.stop, page.end)):
                    return places
        raise AssertionError("the pages never end")


@pytest.mark.parametrize("cached", [2, 1_000])
@pytest.mark.parametrize("seed", range(8))
def test_in_memory_frozen_or_in_runs_the_index_answers_the_same(
    seed: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tidelog_broker.core import postings, run

    for name, value in (("PIECE_ROWS", 5), ("TABLE_BYTES", 60), ("POSTINGS", 3)):
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(postings, "TAIL_BLOCK", 3)
    layers = Layers(seed, cached)
    for turn in range(120):
        layers.group()
        layers.step()
        if turn % 8 == 0:
            layers.judge()
    assert len(layers.index.runs) > 0


def test_any_flipped_byte_of_a_run_is_noticed_before_it_is_served() -> None:
    memory, _ = random_log(3)
    tail = memory.index.tail
    parts: list[bytes] = []
    write_tail(tail, parts.append, LOG_ID)
    good = b"".join(parts)

    def everything(data: bytes) -> object:
        run = Run("run", lambda offset, count: data[offset : offset + count], len(data), LOG_ID)
        pieces = [run.raw_piece(piece) for piece in range(len(run.firsts))]
        entries = list(run.entries())
        blocks = [run.postings(entry, at) for _, entry in entries for at in range(run.blocks(entry))]
        return pieces, entries, blocks, [run.may_hold(digest) for digest in range(64)], run.first, run.stop, run.end

    wanted = everything(good)
    noticed = 0
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 0x41
        try:
            assert everything(bytes(damaged)) == wanted, place  # the first 16 bytes say nothing
        except BadIndex:
            noticed += 1
    assert noticed >= len(good) - 16
    for length in range(len(good)):
        with pytest.raises(BadIndex):
            everything(good[:length])


def written(tail: Tail) -> Callable[[Callable[[bytes], None]], bytes]:
    return lambda put: write_tail(tail, put, LOG_ID)


def test_a_name_across_two_neighbours_is_no_stream_and_no_category() -> None:
    """Names lie side by side in a run with a NUL between them, and a request may hold any str."""
    layers = Layers(1, 1_000)
    index = layers.index
    index.apply(1, 4_160, [(f"c{number:02}/{number:02}", 1, 0, 1, 100, True, False) for number in range(40)])
    tail = index.freeze()
    index.adopt([layers.run("run", lambda put: write_tail(tail, put, LOG_ID))])
    while index.streams:
        index.streams.popitem()
    for one, two in zip(range(39), range(1, 40), strict=True):
        first, second = f"c{one:02}/{one:02}", f"c{two:02}/{two:02}"
        assert index.runs[0].find(f"s{first}\0s{second}".encode()) is None
        assert index.find(f"{first}\0s{second}") is None
        assert index.find_category(f"c{one:02}\0cc{two:02}") is None
        assert index.find(first) is not None


def test_what_is_not_needed_any_more_goes_as_fast_as_it_comes_and_keeps_no_rows_alive() -> None:
    gc.collect()
    before = sum(type(found) is Tail for found in gc.get_objects())
    layers = Layers(2, 64)
    index = layers.index
    for turn in range(200):
        fresh = [(f"n/{turn}-{number}", 1, 0, 1, 100, True, False) for number in range(512)]
        index.apply(1, 4_160 + turn * 100_000, [("hot/1", 1, turn, 1, 100, True, False), *fresh])
        tail = index.freeze()
        index.adopt([*index.runs, layers.run(f"run-{turn}", written(tail))])
        for _ in range(4):
            index.tidy()
        del tail
        assert sum(map(len, index._litter)) < 40_000
    assert index.find("hot/1") is not None
    gc.collect()
    assert sum(type(found) is Tail for found in gc.get_objects()) <= 4 + before
