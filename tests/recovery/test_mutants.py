"""The search for crash states finds each seeded fault: what the proof of spec §8 rests on, taken away piece by piece.

What it does not find (40,000 states each), and why:
- chain or number of a group unread, always the same slot of the marks, no mark at a roll: guards against damage (lost or
  misplaced writes, a segment that goes missing), not against crashes; test_recovery.py fails on each.
- length of a group against the file unread: the checksum over the shorter body stands for it; no test fails.
- the first sync of segments in recovery, or one of its syncs of the directory, alone: others follow; all gone are found.
- no sync of the spare's zeros: the sync behind the header stands for both.
- no sync of the directory between a creation and its rename: the simulated journal keeps their order.
- marks not replaced at start: the page cache is always dropped before they are judged here.
"No sync at a clean stop" is found only because a stop that leaves something unsynced is itself called wrong: it loses nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.crashes import ALIGNED, SMALL, Counterexample, Explorer, Point, World, chain
from support.mutants import mutate
from support.workloads import OPERATIONS, explore
from tidelog_broker.core import format as records
from tidelog_broker.core.recovery import SegmentReader
from tidelog_broker.log import Log
from tidelog_broker.marks import Marks

SEED = 7
STATES = 30_000

MARK_BEFORE_SYNC = """self._write(offset, header + body)
    ahead = type(chain)(chain.group + 1, header[-8:], next_position)
    self._marks.write_slot(ahead, self._header.ordinal, offset + 64 + len(body), self._header, clean=False)
"""

Piece = tuple[Any, str, str, str]
"""(owner, function, what is replaced, by what)."""

SETTLE_FOLDER = (Log, "_settle", "self._disk.sync_folder()", "pass")
CUT_FOLDER = (Log, "_cut", "self._disk.sync_folder()", "pass")
MARKS_FOLDER = (Marks, "_replace", "file.sync()\n    self._disk.sync_folder()", "file.sync()")
RENAME_FOLDER = (Marks, "_replace", "self._disk.sync_folder()\n    file.name", "file.name")
FAILED_SYNC = 'raise FailStop(f"data-sync of group {chain.group + 1}: {error}") from error'
SEAL_OR_NEXT = "head.number >= (g + 1 if head.seal else g + 2)"

MUTANTS: dict[str, list[Piece]] = {
    "no data-sync of a group": [(Log, "commit", "self._file.datasync()", "pass")],
    "a failed data-sync is tried again": [(Log, "commit", FAILED_SYNC, "self._file.datasync()")],
    "a failed data-sync is forgotten": [(Log, "commit", FAILED_SYNC, "pass")],
    "mark before the sync": [(Log, "commit", "self._write(offset, header + body)\n", MARK_BEFORE_SYNC)],
    "no truncate in a rollback": [(Log, "_write", "self._file.truncate(self.end)", "pass")],
    "no sync of a rollback": [(Log, "_write", "self._file.sync()", "pass")],
    "no truncate of the tail": [(Log, "_cut", "self._file.truncate(self.end)", "pass")],
    "no zeros at the cut": [(Log, "_cut", "self._write_zeros(self.end, self._header.zero_step)", "pass")],
    "no sync of the cut": [(Log, "_cut", "self._file.sync()", "pass")],
    "no sync of the segments in recovery": [
        (Log, "_settle", "file.sync()", "pass"),
        (Log, "_cut", "self._file.sync()", "pass"),
    ],
    "the cache is judged": [(Log, "_settle", "file.drop_cache()", "pass")],
    "no sync of the directory in recovery": [SETTLE_FOLDER, CUT_FOLDER, MARKS_FOLDER, RENAME_FOLDER],
    "no marks before the first segment": [(Marks, "create", "marks._replace(", "dict(")],
    "unfinished files stay": [(Log, "_delete_unfinished", "self._disk.unlink(name)", "pass")],
    "no sync of the seal": [(Log, "_roll", "self._file.sync()", "pass")],
    "no seal": [(Log, "_roll", "self._write(offset, seal)", "pass")],
    "no sync of a segment's header": [(Log, "_use_spare", "spare.sync()", "pass")],
    "no sync of the directory behind a roll": [(Log, "_use_spare", "self._disk.sync_folder()", "pass")],
    "no sync of a mark": [(Marks, "write_slot", "self._file.datasync()", "pass")],
    "no sync of new marks": [(Marks, "_replace", "file.sync()", "pass")],
    "no sync at a clean stop": [(Log, "close", "self._file.sync()", "pass")],
    "body's checksum unread": [(SegmentReader, "_next", "crc32(body) != head.body_crc", "False")],
    "tag unread": [
        (records, "authentic_header", "if tag_of(key, bytes(data[at : at + _GROUP.size])) != tag:", "if False:")
    ],
    "any header behind the end is damage": [(SegmentReader, "tail", SEAL_OR_NEXT, "True")],
    "an unfinished roll is damage": [(SegmentReader, "tail", "g + 1 if head.seal", "g if head.seal")],
    "with align, the end lies inside the last group's block": [
        (Log, "commit", "self.end = self._header.aligned(stop)", "self.end = stop"),
        (Log, "_recover", "self.end = reader.offset", "self.end = reader.end"),
    ],
}


@pytest.mark.parametrize("title", MUTANTS)
def test_search_finds_seeded_fault(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    for piece in MUTANTS[title]:
        mutate(monkeypatch, *piece)
    explorer = Explorer(limit=16, nested_one_in=8, target=STATES)
    with pytest.raises(Counterexample) as found:
        explore(explorer, SEED, ALIGNED if "align" in title else SMALL)
    # Not an accident of the mutant's own making.
    assert not any(word in str(found.value) for word in ("TypeError", "NameError", "AttributeError", "SyntaxError"))


def test_search_finds_two_unsynced_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group 2 is written before the sync of group 1; both are acknowledged behind the second sync only."""
    world = World(Explorer(limit=200), SMALL, SEED)
    world.run([("prepare all", OPERATIONS["prepare all"])], 9)
    first = world.writer.stage([("s/1", [world.writer.payload(900)])])
    with monkeypatch.context() as patch:
        patch.setattr(type(world.log._file), "datasync", lambda self: None)
        world.promise(first)
        world.log.commit(first.parts, first.batches, first.next_position)
    world.writer.accept(first)
    second = world.writer.stage([("s/1", [world.writer.payload(900)])])
    assert world.in_flight is not None
    both = chain(world.in_flight, second.body)
    world.points[both] = Point(2, second.next_position, second.versions)
    monkeypatch.setattr(world, "allowed", lambda: {world.committed, world.in_flight, both})
    world.armed = True
    with pytest.raises(Counterexample, match="authentic group header numbered 2"):
        world.log.commit(second.parts, second.batches, second.next_position)
