"""The client's state machine, by hand: what it sends, when, and how calls end."""

from __future__ import annotations

from math import inf
from typing import Any

import msgpack
import pytest
from tidelog import (
    ClientClosed,
    DeadlineExceeded,
    OutcomeUnknown,
    ProtocolMismatch,
    StreamNotFound,
    WrongExpectedVersion,
)
from tidelog.exchange import PATIENCE, QUIET, Call, Exchange, State
from tidelog.wire import APPEND, HEAD, INFO, PING, READ, WAIT_DURABLE

LOG, BOOT, OTHER = b"L" * 16, b"B" * 16, b"O" * 16
REGION = b"region"


class Peer:
    """The machine and the broker's half of the wire, at a time that the test moves."""

    def __init__(self) -> None:
        self.exchange = Exchange(b"c" * 16, "ipc:///x")
        self.now = 100.0
        self.incarnation = 0

    def sent(self) -> list[Any]:
        """Requests of all frames that are due."""
        requests = []
        while (frame := self.exchange.take(self.now)) is not None:
            requests += msgpack.unpackb(frame)
        return requests

    def connect(self, log_id: bytes = LOG, boot_id: bytes = BOOT, head: int = 0) -> list[Any]:
        """Open, greet, answer → what the machine sends then."""
        self.open()
        ((_, request_id, *_),) = self.sent()
        limits = (65536, 4096, 1 << 23, 1 << 20, 4096, 65536)
        self.reply(request_id, 0, 1, log_id, boot_id, 0, head, 0, limits, (("ipc:///x", "p", "h"),), 500, "v")
        return self.sent()

    def state(self) -> State:
        return self.exchange.state

    def open(self) -> None:
        assert self.exchange.wants_socket(self.now)
        self.incarnation = self.exchange.opened(self.now)

    def reply(self, *fields: Any, bulk: bytes = b"") -> None:
        self.exchange.receive(msgpack.packb([fields]), bulk, self.now, self.incarnation)

    def tick(self, seconds: float) -> None:
        """Let time pass in steps in which somebody listens."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.2, until)
            self.exchange.tick(self.now)

    def append(self, timeout: float = 5.0) -> Call:
        call = Call(APPEND, (0, None, None, (("s", None, REGION),)), self.now + timeout)
        self.exchange.submit(call, self.now)
        return call

    def head(self, timeout: float = 5.0) -> Call:
        call = Call(HEAD, (None,), self.now + timeout)
        self.exchange.submit(call, self.now)
        return call


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_no_socket_is_wanted_before_there_is_a_call(peer: Peer) -> None:
    assert not peer.exchange.wants_socket(peer.now)
    peer.head()
    assert peer.exchange.wants_socket(peer.now)


def test_hello_goes_alone_and_calls_wait_for_its_answer(peer: Peer) -> None:
    call = peer.append()
    peer.open()
    hello = peer.sent()
    assert [request[0] for request in hello] == [1]
    assert hello[0][2:] == ["tidelog", 1, b"c" * 16, 1]
    assert peer.sent() == []
    assert not call.sent


def test_calls_go_out_in_order_once_hello_is_answered_and_many_in_one_frame(peer: Peer) -> None:
    calls = [peer.append() for _ in range(5)]
    requests = peer.connect()
    assert [request[1] for request in requests] == [call.id for call in calls]
    assert all(request[3] is None for request in requests)
    assert requests[0][4:] == [0, None, None, [["s", None, REGION]]]


def test_message_holds_at_most_1024_requests_and_about_a_mebibyte(peer: Peer) -> None:
    peer.head()
    peer.connect()
    for _ in range(2500):
        peer.head()
    sizes = []
    while (frame := peer.exchange.take(peer.now)) is not None:
        sizes.append(len(msgpack.unpackb(frame)))
    assert sizes == [1024, 1024, 452]
    for _ in range(3):
        call = Call(APPEND, (0, None, None, (("s", None, bytes(700_000)),)), inf)
        peer.exchange.submit(call, peer.now)
    assert [len(msgpack.unpackb(peer.exchange.take(peer.now) or b"")) for _ in range(3)] == [1, 1, 1]


def test_reply_settles_its_call_with_bulk_for_the_last(peer: Peer) -> None:
    first, second = peer.head(), Call(READ, (0, "", None, None, None, False, None, None), inf)
    peer.exchange.submit(second, peer.now)
    peer.connect()
    frame = msgpack.packb([[first.id, 0, 7, 0], [second.id, 0, 0, 1, 1, 1]])
    peer.exchange.receive(frame, b"stored", peer.now, peer.incarnation)
    assert (first.settled, first.reply[2], first.bulk) == (True, 7, b"")
    assert (second.settled, second.bulk) == (True, b"stored")
    assert not peer.exchange.busy()


def test_unanswered_append_is_sent_again_with_the_head_it_knew_at_first(peer: Peer) -> None:
    call = peer.append()
    assert peer.connect(head=40)[0][3] is None
    peer.exchange.note_head(90)
    peer.exchange.lose(peer.now)
    (again,) = peer.connect(head=95)
    assert again[1:4] == [call.id, again[2], 40]
    assert again[4:] == [0, None, None, [["s", None, REGION]]]


def test_nothing_is_sent_again_before_the_new_hello_is_answered(peer: Peer) -> None:
    peer.append()
    peer.connect()
    peer.exchange.lose(peer.now)
    peer.open()
    assert [request[0] for request in peer.sent()] == [1]
    assert peer.incarnation == 2


def test_reply_of_an_older_incarnation_is_ignored(peer: Peer) -> None:
    call = peer.append()
    peer.connect()
    peer.exchange.lose(peer.now)
    peer.connect()
    peer.exchange.receive(msgpack.packb([[call.id, 0, 2, 0, 0, 0, 0, 0]]), b"", peer.now, 1)
    assert not call.settled
    peer.reply(call.id, 0, 2, 0, 0, 0, 0, 0)
    assert call.settled
    assert peer.exchange.head == 1


def test_frame_that_the_socket_refused_leaves_its_calls_unsent(peer: Peer) -> None:
    peer.head()
    peer.connect()
    call = peer.append(timeout=1.0)
    peer.exchange.take(peer.now)
    peer.exchange.refused(peer.now)
    assert peer.state() is State.IDLE
    peer.tick(1.1)
    assert isinstance(call.error, DeadlineExceeded)
    assert not call.error.maybe_applied


def test_hello_that_the_socket_refused_is_offered_again(peer: Peer) -> None:
    peer.head()
    peer.open()
    assert peer.sent()
    assert not peer.exchange.wants_writable
    peer.exchange.refused(peer.now)
    assert peer.exchange.wants_writable
    assert peer.sent()


def test_hello_required_means_a_new_connection(peer: Peer) -> None:
    call = peer.append()
    peer.connect()
    peer.reply(call.id, 24, "hello", [])
    assert not call.settled
    assert peer.connect()[0][1] == call.id


def test_silence_is_asked_with_a_ping_and_its_answer_calms(peer: Peer) -> None:
    peer.head(timeout=60)
    peer.connect()
    peer.tick(QUIET - 0.05)
    assert peer.sent() == []
    peer.tick(0.2)
    ((kind, ping_id),) = peer.sent()
    assert kind == PING
    peer.reply(ping_id, 0, 77)
    assert peer.exchange.head == 77
    peer.tick(0.1)
    assert peer.sent() == []


def test_unanswered_ping_ends_the_connection_and_patience_grows(peer: Peer) -> None:
    peer.head(timeout=600)
    peer.connect()
    peer.tick(QUIET + PATIENCE + 0.3)
    assert peer.state() is State.IDLE
    peer.tick(1.0)
    peer.connect()
    peer.tick(QUIET + PATIENCE + 0.3)
    assert peer.state() is State.READY
    peer.tick(PATIENCE)
    assert peer.state() is State.IDLE


def test_time_in_which_nobody_listened_proves_nothing(peer: Peer) -> None:
    peer.head(timeout=600)
    peer.connect()
    peer.exchange.tick(peer.now)
    peer.now += 60
    peer.exchange.tick(peer.now)
    assert peer.state() is State.READY
    assert peer.sent() == []


def test_unanswered_hello_is_tried_on_a_new_connection_with_a_higher_incarnation(peer: Peer) -> None:
    call = peer.append(timeout=60)
    peer.open()
    peer.sent()
    peer.tick(PATIENCE)
    assert peer.state() is State.IDLE
    peer.tick(1.0)
    assert peer.connect()[0][1] == call.id
    assert peer.incarnation == 2


def test_never_sent_call_says_that_no_broker_answers(peer: Peer) -> None:
    call = peer.append(timeout=1.0)
    peer.open()
    peer.tick(1.1)
    assert isinstance(call.error, DeadlineExceeded)
    assert not call.error.maybe_applied
    assert "ipc:///x" in call.error.text


def test_sent_append_may_be_applied_and_a_read_never_is(peer: Peer) -> None:
    append, head = peer.append(timeout=1.0), peer.head(timeout=1.0)
    peer.connect()
    peer.tick(1.1)
    assert append.error is not None
    assert append.error.maybe_applied
    assert head.error is not None
    assert not head.error.maybe_applied


def test_reply_after_the_deadline_is_ignored(peer: Peer) -> None:
    call = peer.append(timeout=1.0)
    peer.connect()
    peer.tick(1.1)
    peer.reply(call.id, 0, 2, 0, 0, 0, 0, 0)
    assert isinstance(call.error, DeadlineExceeded)


def test_broker_that_is_starting_is_asked_again_as_if_for_the_first_time(peer: Peer) -> None:
    call = peer.append()
    peer.connect()
    first = call.id
    peer.reply(call.id, 10, "starting", ["starting"])
    assert not call.settled
    peer.tick(0.2)
    (again,) = peer.sent()
    assert again[1] != first
    assert again[3] is None


def test_unknown_outcome_is_asked_again_with_the_head(peer: Peer) -> None:
    call = peer.append()
    peer.connect(head=3)
    peer.reply(call.id, 20, "sync failed", [])
    peer.tick(0.2)
    assert peer.sent()[0][3] == 3
    peer.reply(call.id, 0, 3, 0, 1, 1, 1, 1)
    assert call.error is None
    assert call.settled


def test_unknown_outcome_twice_from_the_same_life_is_final(peer: Peer) -> None:
    call = peer.append()
    peer.connect()
    peer.reply(call.id, 20, "", [])
    peer.tick(0.2)
    peer.sent()
    peer.reply(call.id, 20, "", [])
    assert isinstance(call.error, OutcomeUnknown)


def test_unknown_outcome_of_two_lives_is_asked_until_the_deadline(peer: Peer) -> None:
    call = peer.append(timeout=2.0)
    peer.connect()
    peer.reply(call.id, 20, "", [])
    peer.exchange.lose(peer.now)
    peer.tick(0.2)
    peer.connect(boot_id=OTHER)
    peer.reply(call.id, 20, "", [])
    assert not call.settled
    peer.tick(2.0)
    assert isinstance(call.error, DeadlineExceeded)
    assert call.error.maybe_applied


def test_wait_durable_hands_unknown_outcome_on(peer: Peer) -> None:
    call = Call(WAIT_DURABLE, (BOOT, 0, 5), inf)
    peer.exchange.submit(call, peer.now)
    peer.connect()
    peer.reply(call.id, 20, "", [])
    assert isinstance(call.error, OutcomeUnknown)


def test_errors_carry_their_facts(peer: Peer) -> None:
    append, head = peer.append(), peer.head()
    peer.connect()
    peer.reply(append.id, 4, "no", ["s", 3, None, False])
    assert isinstance(append.error, WrongExpectedVersion)
    assert (append.error.stream, append.error.expected, append.error.actual) == ("s", 3, None)
    peer.reply(head.id, 6, "no", ["s"])
    assert isinstance(head.error, StreamNotFound)


def test_another_log_behind_the_endpoint_gets_nothing_that_was_meant_for_the_first(peer: Peer) -> None:
    call = peer.append()
    peer.connect()
    peer.exchange.lose(peer.now)
    assert peer.connect(log_id=OTHER) == []
    assert isinstance(call.error, ProtocolMismatch)
    assert call.error.maybe_applied


def test_refused_hello_ends_the_calls_and_starting_does_not(peer: Peer) -> None:
    call = peer.append(timeout=60)
    peer.open()
    ((_, request_id, *_),) = peer.sent()
    peer.reply(request_id, 10, "starting", ["starting"])
    assert not call.settled
    peer.tick(1.0)
    peer.open()
    ((_, request_id, *_),) = peer.sent()
    peer.reply(request_id, 13, "protocol 9", [9])
    assert isinstance(call.error, ProtocolMismatch)
    assert not call.error.maybe_applied


def test_garbage_ends_the_connection_not_the_client(peer: Peer) -> None:
    call = peer.append(timeout=60)
    peer.connect()
    for garbage in (
        b"\xc1",
        b"",
        msgpack.packb([[call.id]]),
        msgpack.packb([[{}, 0]]),
        msgpack.packb([[None, 1, "", []]]),
    ):
        peer.exchange.receive(garbage, b"", peer.now, peer.incarnation)
        assert peer.state() is State.IDLE
        peer.tick(1.0)
        assert peer.connect()[0][1] == call.id
    assert call.error is None


def test_close_ends_every_call_and_refuses_new_ones(peer: Peer) -> None:
    waiting, retried = peer.append(), peer.append()
    peer.connect()
    peer.reply(retried.id, 10, "", ["stopping"])
    peer.exchange.close(ClientClosed("closed"))
    assert isinstance(waiting.error, ClientClosed)
    assert waiting.error.maybe_applied
    assert isinstance(retried.error, ClientClosed)
    with pytest.raises(ClientClosed):
        peer.head()
    assert not peer.exchange.wants_socket(peer.now)


def test_what_can_not_be_packed_is_refused_at_the_call(peer: Peer) -> None:
    for fields in (("\ud800",), (2**70,)):
        with pytest.raises((ValueError, OverflowError)):
            peer.exchange.submit(Call(INFO, fields, inf), peer.now)
    assert not peer.exchange.busy()


def test_timer_is_never_later_than_a_deadline_or_a_retry(peer: Peer) -> None:
    call = peer.append(timeout=0.1)
    assert peer.exchange.timer(peer.now) <= peer.now + 0.1
    peer.connect()
    peer.reply(call.id, 10, "", ["starting"])
    assert peer.exchange.timer(peer.now) <= peer.now + 0.1


def test_a_call_that_ended_in_the_queue_is_never_sent(peer: Peer) -> None:
    peer.head()
    peer.connect()
    first, late, last = peer.append(), peer.append(timeout=0.1), peer.append()
    peer.now += 0.2
    peer.exchange.tick(peer.now)
    assert isinstance(late.error, DeadlineExceeded)
    assert not late.error.maybe_applied
    assert [request[1] for request in peer.sent()] == [first.id, last.id]
