"""What must follow from a failing call: the table of the fault matrix, from spec §§6.5, 8, 9 and 16 and nothing of the code.

A `Step` is one call that a phase makes, a `Kind` how it fails. The first rule that fits says the `Outcome`; a step that no
rule fits is an error of the table.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    """What callers saw · what the broker does · its exit code."""

    UNNOTICED = "ok, goes on, 0"
    REFUSED = "StorageFull, read-only until there is room, 0"
    FULL = "ok for what is prepared, not ready until there is room, 0"
    ENDS = "OutcomeUnknown, ends, 74"
    PAGE = "CorruptLog for this page alone, goes on, 0"
    NO_START = "no start, 74"
    NO_ROOM = "no start, 75"
    WAITS = "nobody is answered before the disk is, health names it, then ok, 0"


class Kind(NamedTuple):
    """`number` 0: a write takes `short` bytes and says so; the next, if the fault lasts, finds no room at all."""

    name: str
    number: int
    short: int = 0


KINDS = [
    Kind("EIO", errno.EIO),
    Kind("ENOSPC", errno.ENOSPC),
    Kind("EROFS", errno.EROFS),
    # Python itself repeats a call that a signal interrupted (PEP 475), so this error comes from a file system that gave
    # up: as little is known as behind EIO.
    Kind("EINTR", errno.EINTR),
    Kind("short", 0, 40),
]
ROOM = {"ENOSPC", "short"}
SYNCS = {"sync", "datasync", "sync_folder"}
STARTS = {"creation", "recovery", "recovery of an unfinished roll"}


class Step(NamedTuple):
    """`target`: what the call is about: segment, zeros, group, seal, spare, header, marks, quarantine, folder."""

    phase: str
    op: str
    target: str


class Rule(NamedTuple):
    """Empty sets fit everything. `once`: how it is when the fault does not last, if that differs."""

    why: str
    phases: set[str]
    ops: set[str]
    targets: set[str]
    kinds: set[str]
    outcome: Outcome
    once: Outcome | None = None


ANY: set[str] = set()
RULES = [
    Rule("§8: an error of any of recovery's syncs is 74, whatever it is called", STARTS, SYNCS, ANY, ANY, Outcome.NO_START),
    Rule("§16: full at start", STARTS, ANY, ANY, ROOM, Outcome.NO_ROOM),
    Rule("§8: recovery that can't read or write decides nothing", STARTS, ANY, ANY, ANY, Outcome.NO_START),
    Rule("§9: what the device can't give is CorruptLog, for this page", {"read"}, ANY, ANY, ANY, Outcome.PAGE),
    Rule("§6.5: a failed sync is never retried", ANY, SYNCS, ANY, ANY, Outcome.ENDS),
    Rule("§6.5: no room for a mark: there is no caller that it could be told", ANY, ANY, {"marks"}, ANY, Outcome.ENDS),
    Rule("§6.3: what could not be given back is deleted later", {"dropping a spare"}, {"unlink"}, ANY, ANY, Outcome.REFUSED),
    Rule("§6.5: without its truncate no rollback", {"rollback"}, {"truncate"}, ANY, ANY, Outcome.ENDS),
    Rule("§6.3: room runs out while preparing, what is prepared can be used", {"preparing"}, ANY, {"zeros", "spare"}, ROOM,
         Outcome.FULL),
    Rule("§6.3: a short step of zeros is a smaller step", ANY, {"write"}, {"zeros"}, {"short"},
         Outcome.REFUSED, Outcome.UNNOTICED),
    Rule("§6.3: no room while preparing", ANY, {"create", "write"}, {"zeros", "spare"}, ROOM, Outcome.REFUSED),
    Rule("§6.5: no room for a group, or for the seal before it: taken back, synced", ANY, {"write"}, {"group", "seal"}, ROOM,
         Outcome.REFUSED),
    Rule("§6.3: behind the seal there is no way back", {"roll"}, ANY, {"header", "segment"}, ROOM, Outcome.ENDS),
    Rule("§6.5: no clean stop", {"stop"}, ANY, ANY, ANY, Outcome.ENDS),
    Rule("§6.5: EIO, EROFS or anything else of a write", ANY, ANY, ANY, {"EIO", "EROFS", "EINTR"}, Outcome.ENDS),
]  # fmt: skip


def expected(step: Step, kind: Kind, *, lasting: bool) -> tuple[Outcome, str]:
    """What must come of it, and why."""
    for rule in RULES:
        sets = (rule.phases, rule.ops, rule.targets, rule.kinds)
        if all(not names or name in names for name, names in zip((*step, kind.name), sets, strict=True)):
            return (rule.outcome if lasting else rule.once or rule.outcome), rule.why
    raise AssertionError(f"no rule says what follows from {kind.name} of {step}")
