"""An authentic header proves wherever it stands: also just behind bytes that only look like the beginning of one."""

from __future__ import annotations

import pytest
from support.cases import Case
from tidelog.errors import CorruptLog
from tidelog_broker.core.format import GROUP_HEADER_BYTES, GROUP_MAGIC


@pytest.mark.parametrize("between", [0, GROUP_HEADER_BYTES - 9])
def test_a_payload_that_ends_in_our_magic_hides_no_group_behind_it(case: Case, between: int) -> None:
    case.open()
    case.commit([("s/1", [b"before"])])
    case.commit([("s/1", [b"x" * 100 + GROUP_MAGIC + b"y" * between])])
    case.commit([("s/1", [b"behind it"])])
    case.stop()
    stored = case.read()
    assert 0 < case.offsets[2] - stored.index(GROUP_MAGIC, case.offsets[1] + 1) < GROUP_HEADER_BYTES
    case.flip(case.offsets[1] + GROUP_HEADER_BYTES)  # the group with the magic is none any more, and no mark names it
    case.refused(CorruptLog, "group header numbered 3", str(case.offsets[2]))
