"""A resend of what is known gets its places, however long ago its client last heard of the head: only of unknown ids the outcome
is unknown (spec §4)."""

from __future__ import annotations

import pytest
from core.test_rules import Memory
from tidelog.errors import DuplicateEventId

WINDOW = 2


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "pending"])
def test_a_known_append_is_answered_though_its_client_knew_a_head_from_before_the_window(durable: bool) -> None:
    memory = Memory(window=WINDOW)
    known_head = memory.index.head
    while memory.appender.window.begins <= known_head:
        memory.admit(("a", None, memory.events(1)))  # others write, and this client is told of nothing
        memory.commit()
    mine = memory.events(2)
    first = memory.admit(("b", False, mine))
    if durable:
        memory.commit()
    staged = list(memory.appender.staged)
    again = memory.admit(("b", False, mine), resend=known_head)
    assert (again[4:], again[2] & 1) == (first[4:], 1)
    with pytest.raises(DuplicateEventId):
        memory.admit(("c", None, mine), resend=known_head)
    assert memory.appender.staged == staged
