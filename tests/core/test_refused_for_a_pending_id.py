"""A refusal because of an id that is not durable yet waits for its group, whatever else the request overlaps with (spec §6)."""

from __future__ import annotations

from typing import Any

import pytest
from core.test_rules import Memory
from support.golden import region
from tidelog.errors import DuplicateEventId


def of(*ids: int) -> tuple[Any, ...]:
    return "b", None, b"".join([region(ids[0], ["t"] * len(ids), [b""] * len(ids), [b"x"] * len(ids))])


def test_a_request_of_a_pending_and_an_unknown_id_is_refused_with_the_fate_of_the_pending_one() -> None:
    memory = Memory()
    # Many pending appends: which of the two ids is looked at first must not decide.
    pending = range(10, 210, 10)
    for first in pending:
        memory.admit(("a", None, region(first, ["t"], [b""], [b"x"])))
    for first in pending:
        for ids in ((first, first + 1), (first - 1, first)):
            with pytest.raises(DuplicateEventId) as refused:
                memory.admit(of(*ids))
            assert refused.value.shares_fate, ids
    memory.appender.rollback()
    for first in pending:
        memory.admit(of(first, first + 1))  # nothing of it was ever in the log
    memory.commit()
    with pytest.raises(DuplicateEventId) as settled:
        memory.admit(of(11, 12))
    assert not settled.value.shares_fate
