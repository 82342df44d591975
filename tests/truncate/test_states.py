"""Truncation, base and deletion on a simulated disk: every state that a kill or a power cut leaves at any call is a whole log.

What must hold of a state: it opens; all that was acknowledged is there from the last acknowledged truncation on, with the right
versions; the index says what one made from the log alone says; appends go on, and another kill and another start find the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import pytest
from support.simdisk import Image, PowerCut, SimDisk
from truncate.driven import Driven, Model, answers, holds, rebuilt

STATES_AT_A_CALL = 12
STEPS_MAX = 400

Step = Callable[[Driven], object]


def several(driven: Driven) -> None:
    """Appends and two truncations in one group."""
    driven.stage(("a/1", [b"s" * 200]), ("c/1", [b"t"]))
    head = driven.store.index.head
    driven.stage_truncation(head - 3)
    driven.stage(("once/more", [b"u"]))
    driven.stage_truncation(head - 1)
    driven.commit()


def clear_again(driven: Driven) -> None:
    """A base that was written and not used: the next attempt makes it again."""
    last = driven.removable()
    if last > 1:
        driven.save(last - 1)
        driven.save(last)
        driven.remove()


WORKLOADS: dict[str, list[Step]] = {
    "in the middle, twice": [
        lambda d: d.fill(6), lambda d: d.truncate(13), Driven.clear, lambda d: d.fill(3), lambda d: d.truncate(30), Driven.clear,
        lambda d: d.fill(1),
    ],
    "everything": [
        lambda d: d.fill(5), lambda d: d.truncate(d.store.index.head), Driven.clear, lambda d: d.fill(4), Driven.clear,
    ],
    "in one group with appends": [lambda d: d.fill(7), several, Driven.clear, several, lambda d: d.fill(2), Driven.clear],
    "behind checkpoints": [
        lambda d: d.fill(4), Driven.save, lambda d: d.fill(4), lambda d: d.truncate(25), lambda d: d.fill(1), Driven.clear,
        Driven.save, lambda d: d.fill(2),
    ],
    "a base over another": [lambda d: d.fill(9), lambda d: d.truncate(34), clear_again, lambda d: d.fill(2), clear_again],
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """What a crash left, and what had been acknowledged, or was under way, by then."""

    image: Image
    acknowledged: Model
    under_way: Model
    where: str


class Looking:
    """Gathers the distinct states before each changing call of a workload."""

    def __init__(self, rng: Random) -> None:
        self.disk = SimDisk()
        self.driven: Driven | None = None
        self.states: list[State] = []
        self.looked = self.calls = 0
        self._rng = rng
        self._seen: set[bytes] = set()
        self.disk.before = self._look

    def _look(self, op: str, name: str) -> None:
        driven = self.driven
        if driven is None:
            return  # creation is tests/recovery's
        self.calls += 1
        for image in [self.disk.image(), *self.disk.crash_states(self._rng, STATES_AT_A_CALL)]:
            self.looked += 1
            key = blake2b(repr((sorted(image.items()), len(driven.model.events), driven.model.first)).encode()).digest()
            if key not in self._seen:
                self._seen.add(key)
                where = f"before {op} {name}"
                self.states.append(State(image, driven.model.copy(), driven.pending.copy(), where))


def model_of(state: State, head: int, first: int) -> Model:
    """What the state must be: as acknowledged, or as it would have been had the group under way become durable."""
    for model in (state.acknowledged, state.under_way):
        if (len(model.events), model.first) == (head, first):
            found = model.copy()
            found.ids = 10_000 + state.under_way.ids
            return found
    raise AssertionError(
        f"{state.where}: head {head}, first {first}; acknowledged {len(state.acknowledged.events)}, {state.acknowledged.first}"
    )


def judge(state: State, rng: Random, deep: bool) -> None:
    """Open, look, append, truncate, remove, be killed in between, look again."""
    disk = SimDisk(state.image)
    if rng.random() < 0.3:
        # Killed in the start itself; the next one finds the same.
        disk.cut_at = rng.randrange(1, 12)
        try:
            Driven(disk)
        except PowerCut:
            pass
        disk.dead, disk.cut_at = False, None
    driven = Driven(disk)
    index = driven.store.index
    driven.model = driven.pending = model_of(state, index.head, index.first_position)
    assert answers(driven.store) == rebuilt(state.image), state.where
    holds(driven, deep=deep)
    driven.append(("a/0", [b"later"]), ("new/1", [b"later"]))
    driven.truncate(rng.randrange(index.head + 1))
    driven.clear()
    driven.append(("a/1", [b"later"]))
    again = driven.reopened(SimDisk(disk.image()))
    assert answers(again.store) == rebuilt(disk.image()), state.where
    holds(again, deep=deep)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_state_that_a_crash_leaves_is_a_whole_log(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = Random(f"truncation: {name}")
    looking = Looking(rng)
    looking.driven = Driven(looking.disk)
    for step in WORKLOADS[name]:
        step(looking.driven)
    looking.disk.before = None
    holds(looking.driven)
    assert looking.driven.model.first > 0
    for number, state in enumerate(looking.states):
        judge(state, rng, deep=number % 8 == 0)
    assert looking.calls > 50
    with capsys.disabled():
        print(f"\n{len(looking.states)} distinct states of {looking.looked} at {looking.calls} calls: {name}")
