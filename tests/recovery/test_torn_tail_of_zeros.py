"""What a start cuts is kept up to its last non-zero byte (spec §8): zeros prove nothing, a torn write may lack its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cases import FIRST, Case
from tidelog_broker.core.recovery import CHUNK_BYTES
from tidelog_broker.log import LogSettings

LARGE = LogSettings(
    segment_bytes=64 << 20, group_bytes_max=16 << 20, zero_step=1 << 20, prepare_ahead=1 << 20, mark_groups=1_000
)


@pytest.mark.parametrize("hole", [(0, CHUNK_BYTES), (0, 2 * CHUNK_BYTES + 1), (CHUNK_BYTES - 1, 2 * CHUNK_BYTES + 1)])
def test_a_torn_group_whose_first_mebibytes_are_missing_is_quarantined_to_its_last_byte(
    tmp_path: Path, hole: tuple[int, int]
) -> None:
    case = Case(tmp_path / "log", LARGE)
    case.open()
    case.commit([("s/1", [b"small"])])
    case.commit([("s/1", [b"x" * (1 << 20)] * 10)])
    case.stop()
    start, stop = hole
    case.change(case.offsets[1] + start, bytes(stop - start))
    case.change(case.offsets[1] + 64, b"\0")  # no whole group, whatever the hole leaves
    torn = case.read(FIRST)[case.offsets[1] : case.end]
    assert case.open() == case.bodies[:1]
    report = case.log.report
    assert report.warnings
    assert (report.cut_offset, report.cut_bytes) == (case.offsets[1], len(torn))
    assert (case.path / report.quarantine).read_bytes() == torn
    case.log.abandon()
    case.disk.kill()
