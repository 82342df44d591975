"""The search for crash states finds each seeded fault: what the proof of spec §8 rests on, taken away piece by piece.

`SURVIVORS` are faults that no crash shows, each with the reason; they are guards against damage, or stand twice.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import Writer
from support.crashes import SMALL, Counterexample, Explorer, World, chain, explore
from support.mutants import mutate
from support.simdisk import SimFile
from tidelog_broker import marks
from tidelog_broker.core import format as records
from tidelog_broker.core.recovery import SegmentReader
from tidelog_broker.log import Log
from tidelog_broker.marks import Marks

SEED = 7
STATES = 20_000

MARK_BEFORE_SYNC = """self._write(offset, header + body)
    ahead = type(chain)(chain.group + 1, header[-8:], next_position)
    self._marks.write_slot(ahead, self._header.ordinal, offset + 64 + len(body), self._header, clean=False)
"""
RETRY = """self._file.datasync()
        _ = FailStop(f"data-sync of group {chain.group + 1}: {error}")"""
KEEP_MARKS = """self._marks._file = self._disk.open("marks", writable=True)
    self._marks.write_slot("""
CLEAN = "self._last_group[0], self._last_group[1], self._header, clean=False)"

CAUGHT: list[tuple[str, Any, str, str, str]] = [
    ("no data-sync of a group", Log, "commit", "self._file.datasync()", "pass"),
    ("a failed data-sync is tried again", Log, "commit", 'raise FailStop(f"data-sync of group {chain.group + 1}: {error}") from error', RETRY),
    ("mark before the sync", Log, "commit", "self._write(offset, header + body)\n", MARK_BEFORE_SYNC),
    ("no truncate in a rollback", Log, "_write", "self._file.truncate(self.end)", "pass"),
    ("no sync of a rollback", Log, "_write", "self._file.sync()", "pass"),
    ("no truncate of the tail", Log, "_cut", "self._file.truncate(self.end)", "pass"),
    ("no zeros at the cut", Log, "_cut", "self._write_zeros(self.end, self._header.zero_step)", "pass"),
    ("no sync of the cut", Log, "_cut", "self._file.sync()", "pass"),
    ("no sync of segments before they are judged", Log, "_settle", "file.sync()", "pass"),
    ("the cache is judged", Log, "_settle", "file.drop_cache()", "pass"),
    ("no sync of the directory in recovery", Log, "_settle", "self._disk.sync_folder()", "pass"),
    ("no sync of the directory behind the cut", Log, "_cut", "self._disk.sync_folder()", "pass"),
    ("marks are not replaced at start", Log, "_recover", "self._marks.replace_file(", KEEP_MARKS),
    ("no marks before the first segment", Marks, "create", "marks._replace(", "dict("),
    ("unfinished files stay", Log, "_delete_unfinished", "self._disk.unlink(name)", "pass"),
    ("no sync of the seal", Log, "_roll", "self._file.sync()", "pass"),
    ("no seal", Log, "_roll", "self._write(offset, seal)", "pass"),
    ("no mark at a roll", Log, "_roll", "self.mark()", "pass"),
    ("no sync of a segment's header", Log, "_use_spare", "spare.sync()", "pass"),
    ("no sync of the directory behind a roll", Log, "_use_spare", "self._disk.sync_folder()", "pass"),
    ("no sync of the spare", Log, "_new_spare", "spare.sync()", "pass"),
    ("no sync of the directory behind the spare", Log, "_new_spare", "self._disk.sync_folder()", "pass"),
    ("no sync of a mark", Marks, "write_slot", "self._file.datasync()", "pass"),
    ("no sync of new marks", Marks, "_replace", "file.sync()", "pass"),
    ("no sync of the directory before marks are renamed", Marks, "_replace", "self._disk.sync_folder()\n    self._disk.rename", "self._disk.rename"),
    ("always the same slot", Marks, "write_slot", "self._sequence % 2 * BLOCK", "BLOCK"),
    ("no sync at a clean stop", Log, "close", "self._file.sync()", "pass"),
    ("mark before the sync of a clean stop", Log, "close", "self._file.truncate(self.end)", "self._file.truncate(self.end - 1)"),
    ("chain unread", SegmentReader, "_next", "or head.previous_tag != self.chain.tag\n", "\n"),
    ("number unread", SegmentReader, "_next", "head.number != self.chain.group + 1\n", "False\n"),
    ("chain and number unread", SegmentReader, "_next", "head.number != self.chain.group + 1\n        or head.previous_tag != self.chain.tag\n", "False\n"),
    ("body's checksum unread", SegmentReader, "_next", "crc32(body) != head.body_crc", "False"),
    ("length unread", SegmentReader, "_next", "or at + GROUP_HEADER_BYTES + head.body_bytes > self._size\n", "\n"),
    ("tag unread", records, "authentic_header", "if tag_of(key, bytes(data[at : at + _GROUP.size])) != tag:", "if False:"),
    ("any header behind the end is damage", SegmentReader, "tail", "head.number >= (g + 1 if head.seal else g + 2)", "True"),
    ("an unfinished roll is damage", SegmentReader, "tail", "g + 1 if head.seal", "g if head.seal"),
    ("the seal is taken for the next group's place", Log, "_recover", "self.end = reader.offset", "self.end = reader.offset + 64"),
]


@pytest.mark.parametrize(("owner", "name", "old", "new"), [m[1:] for m in CAUGHT], ids=[m[0] for m in CAUGHT])
def test_search_finds_seeded_fault(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str
) -> None:
    mutate(monkeypatch, owner, name, old, new)
    explorer = Explorer(limit=16, nested_one_in=8, target=STATES)
    with pytest.raises(Counterexample):
        explore(explorer, SEED)
