"""No power cut and no kill loses an acknowledged group, keeps a refused one, or is taken for damage (spec §§6, 7, 8).

All sequences of up to two operations, truncations, removals, checkpoints, backups and migrations among them, and all of three of
a core, then seeded ones of three to six (support/workloads.py); what a state is, and the promise that is checked in each,
stand in support/crashes.py. TIDELOG_CRASH_STATES sets the target, TIDELOG_CRASH_SEED changes the random part; with a target
below the usual one not all sequences need be run.
"""

from __future__ import annotations

import os

import pytest
from support.search import search

SEED = 20_250_101
USUAL = 300_000
STATES = int(os.environ.get("TIDELOG_CRASH_STATES", USUAL))


@pytest.mark.timeout(max(900, STATES // 100))
def test_every_crash_state_recovers_to_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    whole = STATES >= USUAL
    totals = search(STATES, int(os.environ.get("TIDELOG_CRASH_SEED", SEED)), whole=whole)
    with capsys.disabled():
        print(f"\n{totals}")
    assert totals.distinct >= STATES
    assert totals.short_complete or not whole
