"""The fuzzer itself: it follows coverage to a fault that chance alone would not find, and makes the finding small."""

from __future__ import annotations

from random import Random

from fuzz.__main__ import Fuzzer
from fuzz.mutate import mutated
from fuzz.seeds import seeds
from fuzz.targets import Target

MAGIC = b"K\x07zQ"


def planted(data: bytes) -> None:
    """Four bytes in a row, each of which leads to a line of its own: 2^32 tries by chance, a few thousand step by step."""
    if len(data) < 8:
        return
    for place, byte in enumerate(MAGIC):
        if data[place] != byte:
            break
        if place == 0:
            continue
        if place == 1:
            continue
        if place == 2:
            continue
        raise KeyError("planted")


def run_planted(seed: int) -> Fuzzer:
    fuzzer = Fuzzer(Target("mark", planted, ("fuzz/test_engine.py",)), seed)
    rng = Random(seed)
    for _ in range(400_000):
        fuzzer._take(mutated(rng.choice(fuzzer.pool or [bytes(8)]), fuzzer.pool, rng, 64))
        if fuzzer.findings:
            break
    return fuzzer


def test_it_finds_a_planted_fault_behind_four_comparisons_and_makes_it_small() -> None:
    fuzzer = run_planted(1)
    fuzzer.edges.close()
    ((what, data),) = fuzzer.findings.items()
    assert what.startswith("KeyError at test_engine.py:")
    assert data[:4] == MAGIC
    assert len(fuzzer.smaller(what)) == 8


def test_the_corpus_it_keeps_reaches_what_all_inputs_reached() -> None:
    fuzzer = run_planted(2)
    kept = fuzzer.minimal()
    reached = set().union(*(fuzzer.edges.run(planted, data) for data in kept))
    fuzzer.edges.close()
    assert reached == fuzzer.reached
    assert len(kept) <= len(fuzzer.pool)


def test_mutations_are_the_same_for_the_same_seed_and_bounded() -> None:
    pool = list(seeds("request"))
    one = [mutated(pool[0], pool, Random(n), 100) for n in range(500)]
    assert one == [mutated(pool[0], pool, Random(n), 100) for n in range(500)]
    assert max(map(len, one)) <= 100
    assert len(set(one)) > 400
