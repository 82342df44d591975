"""A frame that the socket would not take leaves its calls as they were before: what an older connection carried may be in the log
(spec §6), whatever became of its next copy."""

from __future__ import annotations

from client.test_exchange import Peer
from tidelog import DeadlineExceeded
from tidelog.exchange import State


def refused_again(peer: Peer) -> None:
    """The connection is lost, and the next one takes HELLO and then no more."""
    peer.exchange.lose(peer.now)
    peer.tick(1.0)
    peer.open()
    ((_, request_id, *_),) = peer.sent()
    limits = (65536, 4096, 1 << 23, 1 << 20, 4096, 65536)
    peer.reply(request_id, 0, 1, b"L" * 16, b"B" * 16, 0, 9, 0, limits, (("ipc:///x", "p", "h"),), 500, "v")
    assert peer.exchange.take(peer.now) is not None
    peer.exchange.refused(peer.now)
    assert peer.state() is State.IDLE


def test_an_append_whose_second_copy_was_refused_by_the_socket_may_still_be_applied() -> None:
    peer = Peer()
    call = peer.append(timeout=3.0)
    assert len(peer.connect(head=5)) == 1
    refused_again(peer)
    peer.tick(5.0)
    assert isinstance(call.error, DeadlineExceeded)
    assert call.error.maybe_applied


def test_an_append_whose_second_copy_was_refused_by_the_socket_is_sent_with_the_head_it_knew_at_first() -> None:
    peer = Peer()
    peer.append(timeout=30.0)
    ((_, _, _, resend_head, *_),) = peer.connect(head=5)
    assert resend_head is None
    refused_again(peer)
    peer.tick(1.0)
    ((_, _, _, resend_head, *_),) = peer.connect(head=9)
    assert resend_head == 5
