"""No power cut and no kill loses an acknowledged group, keeps a refused one, or is taken for damage (spec §§6, 7, 8).

All sequences of up to two operations, then seeded ones of three to six (support/workloads.py); what a state is, and the
promise that is checked in each, stand in support/crashes.py. TIDELOG_CRASH_STATES raises the target, TIDELOG_CRASH_SEED
changes the random part.
"""

from __future__ import annotations

import os
import time

import pytest
from support.crashes import Explorer
from support.workloads import OPERATIONS, explore

SEED = 20_250_101
STATES = int(os.environ.get("TIDELOG_CRASH_STATES", "100000"))


@pytest.mark.timeout(max(600, STATES // 200))
def test_every_crash_state_recovers_to_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    explorer = Explorer(target=STATES)
    start = time.monotonic()
    explore(explorer, int(os.environ.get("TIDELOG_CRASH_SEED", SEED)))
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(
            f"\n{explorer.distinct} distinct crash states of {explorer.looked_at} looked at, {explorer.workloads} workloads, "
            f"{len(explorer.continued)} states gone on from, {seconds:.1f} s"
        )
    assert explorer.workloads > len(OPERATIONS) ** 2 or STATES < 100_000
