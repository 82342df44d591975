"""A published message says below which head its topic is complete: that is behind its own append, for the next one's message may
be lost, even the next of its group (spec §10)."""

from __future__ import annotations

from math import inf

import pytest
from core.test_rules import Memory
from tidelog.follow import Follow, Verdict
from tidelog_broker.core.topics import BODY, HAS_BYTES, Topics


@pytest.mark.parametrize("topic", [b"Sa/1\0", b"Ca\0"])
@pytest.mark.parametrize("came", [1, 2, 3])
def test_what_is_lost_behind_the_first_messages_of_a_group_is_asked_for_at_the_next_heartbeat(
    topic: bytes, came: int
) -> None:
    memory = Memory()
    topics = Topics(b"L" * 16)
    topics.note(b"\x01" + topic)
    for _ in range(3):
        memory.admit(("a/1", None, memory.events(2)), ("b/1", None, memory.events(1)))
    appender = memory.appender
    messages = [body for _, body in topics.messages(memory.index, appender.staged, appender.parts, 0)]
    assert len(messages) == 3
    memory.commit()

    follow = Follow(0)
    follow.heartbeat(0, 0.0, 0.0)
    for body in messages[:came]:
        _, since, to, head, _, flags, _ = BODY.unpack_from(body)
        assert follow.message(since, to, head, bool(flags & HAS_BYTES)) is Verdict.TAKE
        follow.took(to, head)
    follow.heartbeat(memory.index.head, 1.0, 0.0)
    assert follow.read_at == (1.0 if came < 3 else inf)
