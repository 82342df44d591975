"""A repeat whose original can't be read back any more (spec §4): nobody can tell, so nobody says yes or no."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from e2e.raw_client import RawClient, Refused, event
from support.process import BrokerProcess
from tidelog.errors import OutcomeUnknown


def rot(data: Path, payload: bytes) -> None:
    """Flip one bit of a payload in the segment that holds it."""
    (segment,) = data.glob("0*-*")
    content = segment.read_bytes()
    assert content.count(payload) == 1
    at = content.index(payload)
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))


def test_a_repeat_has_an_unknown_outcome_while_what_it_repeats_cannot_be_read(broker: BrokerProcess) -> None:
    """Neither a duplicate, for the bytes can't be compared, nor a conflict, nor written again; others go on."""
    payload = b"these bytes will rot, and nothing can tell what they were"
    with closing(RawClient(broker.endpoint)) as raw:
        append = raw.prepare(("s", None, [event("t", payload)]))
        other = raw.prepare(("s", None, [event("t", b"whole")]))
        raw._append(append, None)
        raw._append(other, None)
        rot(broker.data, payload)
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                raw.resend(append)
            assert refused.value.code == OutcomeUnknown.code
        assert raw.read_head() == 2
        assert raw.resend(other).duplicate
        assert raw.append(("s", 1, [event("t", b"more")])).places == [(2, 2, 2, 2)]
    assert broker.running


def test_hello_tells_the_smaller_of_the_append_limit_and_what_a_group_holds(
    start_broker: Callable[..., BrokerProcess],
) -> None:
    """An append of the size that HELLO tells is one that the broker can take."""
    least, greatest = 1 << 20, 16 << 20
    for group, append, told in (
        (greatest, 2 << 20, 2 << 20),
        (least, 2 << 20, least - 64),  # a group's own header takes 64 bytes
        (least, least - 64, least - 64),
        (least, least - 65, least - 65),
    ):
        broker = start_broker("--group-bytes-max", str(group), "--append-bytes-max", str(append))
        with closing(RawClient(broker.endpoint)) as raw:
            assert raw.limits[2] == told
        broker.close()
