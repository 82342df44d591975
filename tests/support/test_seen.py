"""The table that the search for crash states remembers with is a set of 64-bit keys with numbers."""

from __future__ import annotations

from random import Random

from support.seen import Seen


def test_table_holds_what_a_dict_holds_through_every_growth() -> None:
    rng = Random(1)
    table, model = Seen(), dict[int, int]()
    for number in range(1, 30_000):
        key = rng.choice([rng.getrandbits(64), rng.randrange(1, 9_000)])
        assert table.put(key, number) == (key not in model)
        model[key] = number
    assert len(table) == len(model)
    assert all(table.get(key) == number for key, number in model.items())
    assert not any(table.get(rng.getrandbits(64) | 1 << 63 | 2) for _ in range(100))


def test_key_0_is_a_key() -> None:
    table = Seen()
    assert table.get(0) == 0
    assert table.put(0, 7)
    assert table.get(0) == 7
    assert not table.put(0, 8)
