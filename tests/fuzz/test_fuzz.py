"""Mutated inputs through every decoder: only the errors that it declares, bounded memory and time, and what it takes packs back.

scripts/fuzz is the search that follows coverage; here its corpus runs whole, and 100,000 mutations and more of corpus and
seeds, the same in every run.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from random import Random
from typing import Any
from zlib import crc32

import msgpack
import pytest
from fuzz.edges import Edges
from fuzz.mutate import mutated
from fuzz.seeds import CORPUS, corpus, found, seeds, starting_points
from fuzz.targets import TARGETS
from tidelog.batch import HEADER
from tidelog.errors import CorruptLog
from tidelog.wire import decode_page

INPUTS = {name: 20_000 for name in TARGETS} | {"broker": 8_000, "reply": 12_000, "base": 12_000, "eventfold": 12_000}
BYTES_MAX = 4_096
MEASURED_EVERY = 50
MEMORY_MAX = 8 << 20
"""Bytes that one input of 4 KiB may make a decoder hold at once: chunks of 4 MiB are read ahead by size, not by content."""
CPU_S_MAX = 5.0
"""CPU time of one input; the slowest takes milliseconds."""

DONE: dict[str, int] = {}


def run(target: str, data: bytes, *, measured: bool = False) -> None:
    if measured:
        tracemalloc.start()
    began = time.process_time()
    try:
        TARGETS[target].run(data)
        took = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
    except BaseException as error:
        pytest.fail(f"{target}: {type(error).__name__}: {error} by the input {data.hex()}")
    finally:
        if measured:
            tracemalloc.stop()
    assert took < CPU_S_MAX, f"{target}: {took:.1f} s for the input {data.hex()}"
    assert peak < MEMORY_MAX, f"{target}: {peak} bytes for the input {data.hex()}"


@pytest.mark.parametrize("target", TARGETS)
def test_the_whole_corpus_and_all_seeds_keep_the_promises(target: str) -> None:
    for data in [*seeds(target), *corpus(target)]:
        run(target, data, measured=True)


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_found_once_stays_fixed(target: str) -> None:
    for data in found(target):
        run(target, data, measured=True)


def stored(columns: list[Any], count: int) -> bytes:
    """A batch whose checksum is right, whatever its columns are."""
    region: bytes = msgpack.packb(columns)
    head = HEADER.pack(
        0x42, 0, 1, 1, HEADER.size + 1 + len(region) + 4, 0, 1, count, len(region), 0, 0, 5, (1 << 64) - 1
    )
    body: bytes = head + b"s" + region
    return body + crc32(body).to_bytes(4, "little")


WRONG_COLUMNS: dict[str, tuple[list[Any], int]] = {
    "payloads as a map": ([bytes(16), "t", None, {"a": b"x"}], 1),
    "metadata as a map": ([bytes(16), "t", {"a": b"x"}, [b"x"]], 1),
    "a type that is a map": ([bytes(16), [{"a": 1}], None, [b"x"]], 1),
    "a type of two that is a map": ([bytes(32), [{"a": 1}, "t"], None, [b"x", b"y"]], 2),
    "fewer types than events": ([bytes(32), ["t"], None, [b"x", b"y"]], 2),
    "fewer metadata than events": ([bytes(32), "t", [b"m"], [b"x", b"y"]], 2),
    "more types than events": ([bytes(16), ["t", "u"], None, [b"x"]], 1),
    "three columns": ([bytes(16), "t", None], 1),
    "no array": (["x"], 1),
}


@pytest.mark.parametrize("filtered", [False, True], ids=["all types", "one type"])
@pytest.mark.parametrize("what", WRONG_COLUMNS)
def test_columns_of_another_shape_under_a_right_checksum_are_refused(what: str, filtered: bool) -> None:
    types = frozenset(["t"]) if filtered else None
    with pytest.raises(CorruptLog):
        decode_page(stored(*WRONG_COLUMNS[what]), False, 0, 9, types, (1 << 64) - 1)


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_raise_only_what_is_declared_and_stay_in_bounds(target: str) -> None:
    rng = Random(f"{target} in CI")
    pool = starting_points(target)
    for number in range(INPUTS[target]):
        run(target, mutated(rng.choice(pool), pool, rng, BYTES_MAX), measured=number % MEASURED_EVERY == 0)
    DONE[target] = INPUTS[target]


@pytest.mark.parametrize("target", TARGETS)
def test_every_truncation_of_every_seed_and_one_byte_more_keep_the_promises(target: str) -> None:
    for data in seeds(target)[:12]:
        step = max(1, len(data) // 300)
        for size in range(0, len(data), step):
            run(target, data[:size])
        run(target, data + b"\0")
        run(target, data + data)


def test_seeds_are_taken_so_that_mutations_begin_behind_the_first_check() -> None:
    """A target whose harness broke would refuse everything at once, and find nothing for ever."""
    for name, target in TARGETS.items():
        # The functions that a seed enters are watched by lines: a handful would mean an early refusal.
        files = [str(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
        edges = Edges(path for path in files if path.endswith(target.files))
        try:
            reached = set().union(*(edges.run(target.run, data) for data in seeds(name)))
        finally:
            edges.close()
        assert len(reached) >= LEAST_EDGES[name], (name, len(reached))


LEAST_EDGES = {
    "group": 70, "batch": 15, "segment": 15, "mark": 8, "page": 35, "published": 30, "reply": 150, "request": 8,
    "broker": 200, "events": 100, "base": 60, "eventfold": 60, "known": 90,
}  # fmt: skip


def test_the_corpus_is_small_and_named_by_its_content() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for target in TARGETS:
        mine = list((CORPUS / target).iterdir())
        assert 0 < len(mine) < 60
        assert all(len(path.name) == 12 and int(path.name, 16) >= 0 for path in mine)


def test_over_100_000_mutated_inputs_were_run(capsys: pytest.CaptureFixture[str]) -> None:
    if len(DONE) < len(TARGETS):
        pytest.skip("only a part of the targets was chosen")
    assert sum(DONE.values()) >= 100_000
    with capsys.disabled():
        rows = ", ".join(f"{name} {count:,}" for name, count in DONE.items())
        print(f"\nfuzzing: {sum(DONE.values()):,} mutated inputs ({rows})")
