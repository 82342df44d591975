"""The frozen bytes of a base: readers read them for ever, the writer goes on making them."""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path

from support.independent import reader
from support.simdisk import SimDisk
from tidelog_broker.core.base import BaseReader
from truncate.driven import Driven, holds

GOLDEN = Path(__file__).parent / "golden"
BASE = "base-00000000000000000005"
FROZEN = {
    "0000000004-00000000000000000011": "ca00a7fd3cb34497f2b9405c75b40c7c",
    "base-00000000000000000005": "daad5fe5402848cd41c1e326d425a7b0",
    "marks": "4d2f9365d676599ea8682661de527a5d",
}
"""blake2b, 16 bytes: the files never change again. A new version of the format gets files of its own."""


def golden_log() -> Driven:
    """Streams that lost all, a part and nothing, with and without a category, and ids in both generations of the window."""
    driven = Driven(SimDisk())
    driven.append(("all/1", [b"1", b"2"]), ("käse", [b"3"]))
    driven.append(("part/1", [b"4"]), ("all/2", [b"5"]))
    driven.append(("a/1", [bytes(1_200)]), ("/unnamed", [b"7", b"8"]))
    driven.append(("part/1", [bytes(1_500), b"10"]), ("all/1", [b"11"]))
    driven.truncate(8)
    driven.append(("part/1", [b"12"]), ("none/1", [b"13"]))
    driven.append(("a/1", [b"14"]))
    driven.truncate(13)
    assert driven.clear()
    driven.store.log.close()
    return driven


def files(image: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in image.items() if not name.startswith("index")}


def test_the_golden_files_are_frozen() -> None:
    found = {path.name: blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in GOLDEN.iterdir()}
    assert found == FROZEN


def test_the_writer_still_makes_the_golden_bytes() -> None:
    assert files(golden_log().sim.image()) == {path.name: path.read_bytes() for path in GOLDEN.iterdir()}


def test_the_broker_opens_the_golden_log() -> None:
    made = golden_log()
    holds(made.reopened(SimDisk({path.name: path.read_bytes() for path in GOLDEN.iterdir()})))


def test_a_reader_of_the_base_finds_what_removed_segments_told() -> None:
    data = (GOLDEN / BASE).read_bytes()
    found = BaseReader(BASE, lambda offset, count: data[offset : offset + count], len(data))
    base = found.base
    assert (base.group, base.ordinal, base.head, base.number, base.first_position) == (5, 3, 11, 8, 13)
    assert (base.window_events, base.window_begins, base.window_young_begins) == (8, 0, 8)
    assert [(append.number, len(append.ids) // 16) for append in found.kept()] == [(0, 3), (2, 2), (4, 3), (6, 3)]
    assert list(found.rows()) == [
        ("categories", ["", 8]), ("categories", ["a", 0]), ("categories", ["all", 11]), ("categories", ["none", 0]),
        ("categories", ["part", 0]), ("streams", ["/unnamed", 2, 8, False]), ("streams", ["a/1", 1, 0, False]),
        ("streams", ["all/1", 3, 11, False]), ("streams", ["all/2", 1, 5, False]), ("streams", ["käse", 1, 3, False]),
        ("streams", ["part/1", 3, 0, False]),
    ]  # fmt: skip


def test_the_independent_reader_reads_the_golden_log() -> None:
    events, verdict = reader.read_log(GOLDEN)
    assert str(verdict) == "whole"
    rows = [(event.position, event.stream, event.version, event.payload) for event in events]
    assert rows == [(11, "part/1", 3, b"12"), (12, "none/1", 0, b"13"), (13, "a/1", 1, b"14")]


if __name__ == "__main__":
    # Made once, with the first version: python -m truncate.test_golden FOLDER
    for file, content in files(golden_log().sim.image()).items():
        (Path(sys.argv[1]) / file).write_bytes(content)
