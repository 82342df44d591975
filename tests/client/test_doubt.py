"""What may have been applied once stays so, though a broker that stops refuses the repeat (spec §6)."""

from __future__ import annotations

from client.test_exchange import OTHER, Peer
from tidelog import DeadlineExceeded
from tidelog.errors import OutcomeUnknown, Unavailable


def test_a_stopping_broker_does_not_take_back_an_unknown_outcome() -> None:
    peer = Peer()
    call = peer.append(timeout=3.0)
    peer.connect(head=3)
    peer.reply(call.id, OutcomeUnknown.code, "sync failed", [])
    peer.exchange.lose(peer.now)
    peer.tick(0.2)
    ((_, _, _, resend_head, *_),) = peer.connect(boot_id=OTHER, head=900)
    assert resend_head == 3
    peer.reply(call.id, Unavailable.code, "stopping", ["stopping"])
    peer.tick(0.4)
    ((_, _, _, resend_head, *_),) = peer.sent()
    assert resend_head == 3  # with none, a broker whose window forgot the ids would write it once more
    peer.reply(call.id, Unavailable.code, "stopping", ["stopping"])
    peer.tick(4.0)
    assert isinstance(call.error, DeadlineExceeded)
    assert call.error.maybe_applied
