"""kill -9 under load (T-10): what was acknowledged is there, what was seen stays, the rest is whole or absent. The same with
truncations, backups, restores, exports and migrations going on, which are killed, too (T-40, T-41, T-54).

What a cycle is and who is killed where stands in support/histories_campaign.py, what is judged in support/checker.py.
TIDELOG_KILL_CYCLES and TIDELOG_KILL_SEED change the length and the dice; scripts/kills is the long run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.histories_campaign import campaign
from support.kill_report import ACKS, NAMES
from support.killer import Point

CYCLES = int(os.environ.get("TIDELOG_KILL_CYCLES", "100"))
SEED = int(os.environ.get("TIDELOG_KILL_SEED", "0")) or random.randrange(1, 1 << 32)


@pytest.mark.timeout(120 + 10 * CYCLES)
def test_every_acknowledged_append_survives_kill_9_and_nobody_sees_what_vanishes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 writer, 2 subscriber processes and one that truncates; kills of the broker at chosen points, in recovery, of clients."""
    report = campaign(CYCLES, SEED, folder, lambda text: None)
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults, f"seed {SEED}: " + "\n".join(report.faults)
    assert report.cycles == CYCLES
    assert report.acknowledged >= ACKS * CYCLES
    assert report.seen > report.events
    # A run that leaves nothing open, refuses nothing and repeats nothing would test too little.
    assert report.unknown
    assert report.refused
    assert report.repeats
    if CYCLES >= 25:
        assert report.share_unsynced >= 1 / 3
        assert report.kills["in recovery"]
        assert report.kills["of clients"]
        assert report.truncations
        # A segment's end comes when it comes: whether one is being deleted is nothing to wait for long.
        assert all(report.kills[name] for point, name in NAMES.items() if point != Point.REMOVE)
    if CYCLES >= 100:
        assert report.removed
        assert report.removals_cut
        assert report.upkeep["restores"]
        assert report.upkeep["migrations"]
