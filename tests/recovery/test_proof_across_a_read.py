"""An authentic header proves wherever it stands: the search behind T reads in chunks, and a header may lie across their edge."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cases import Case
from tidelog.errors import CorruptLog
from tidelog_broker.core.format import GROUP_HEADER_BYTES
from tidelog_broker.core.recovery import CHUNK_BYTES
from tidelog_broker.log import LogSettings

LARGE = LogSettings(
    segment_bytes=32 << 20, group_bytes_max=8 << 20, zero_step=1 << 20, prepare_ahead=1 << 20, mark_groups=1_000
)


@pytest.mark.parametrize("before", [0, 1, 32, GROUP_HEADER_BYTES - 1, GROUP_HEADER_BYTES])
def test_a_group_header_across_the_edge_of_two_reads_proves_that_the_group_before_it_was_durable(
    tmp_path: Path, before: int
) -> None:
    case = Case(tmp_path / "log", LARGE)
    case.open()
    case.commit([("s/1", [b"small"])])
    spare = CHUNK_BYTES - before - GROUP_HEADER_BYTES  # the body that brings the next header to the edge
    probe = case.writer.stage([("s/1", [b"x" * (spare - 1_000)])])
    case.commit([("s/1", [b"x" * (2 * spare - 1_000 - len(probe.body))])])
    assert case.log.end - case.offsets[1] == CHUNK_BYTES - before
    case.commit([("s/1", [b"behind it"])])
    case.stop()
    case.flip(case.offsets[1])  # the large group is no group any more, and no mark names it
    case.refused(CorruptLog, "group header numbered 3", str(case.offsets[2]))
    case.disk.kill()
