"""What a campaign of kills (support/histories_campaign.py) did and found, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from support.checker import Verdict
from support.killer import Point

ACKS = 500
"""Appends that are acknowledged in a cycle, at least."""
NAMES = {
    Point.NONE: "at random",
    Point.GROUP_SYNC: "between write and sync",
    Point.GROUP_TORN: "inside the write",
    Point.GROUP_SYNCED: "between sync and reply",
    Point.MARK: "before a mark's sync",
    Point.CUT_TORN: "inside the write of a truncation",
    Point.REMOVE: "before a segment is deleted",
}


@dataclass(slots=True)
class Report:
    """What a campaign did and found."""

    seed: int
    cycles: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    repeats: int = 0
    events: int = 0
    seen: int = 0
    checkpoints_cut: int = 0
    resumed: int = 0
    truncations: int = 0
    removed: int = 0
    removals_cut: int = 0
    upkeep: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        for name in ("acknowledged", "refused", "unknown", "unknown_stored", "repeats", "events", "seen",
                     "truncations"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(verdict, name))
        self.faults += [str(fault) for fault in verdict.faults]

    @property
    def share_unsynced(self) -> float:
        """How many of all kills, clients' too, surely fell between a group's write and its sync."""
        return self.kills[NAMES[Point.GROUP_SYNC]] / max(1, self.kills.total())

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {name}" for name, count in self.kills.most_common())
        work = ", ".join(f"{self.upkeep[name]} {name}" for name in sorted(self.upkeep))
        found = "no fault" if not self.faults else f"{len(self.faults)} FAULTS with seed {self.seed}"
        return (
            f"{self.cycles} cycles of at least {ACKS} acks: {self.acknowledged} acks, {self.unknown} unknown "
            f"({self.unknown_stored} stored), {self.refused} refused, {self.repeats} repeated, {self.events} events, "
            f"{self.seen} seen; {self.kills.total()} kills: {kills}; "
            f"{self.checkpoints_cut} during a checkpoint, {self.resumed} starts from one; {self.truncations} truncations, "
            f"{self.removed} segments removed, {self.removals_cut} kills meanwhile; {work}; {self.seconds:.1f} s, {found}"
        )
