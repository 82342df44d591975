"""A broker's core with its log in memory, for messages of any kind: what it answers, and whether it goes on answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from support.golden import region
from tidelog.batch import Batch, Incomplete, read_batch
from tidelog.wire import STREAM, Cover, decode_page
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.base import KeptWrite, kept_writes
from tidelog_broker.core.broker import Broker, Identity, Verdict
from tidelog_broker.core.index import OFFSET_MASK, Index
from tidelog_broker.core.requests import READ

BODY_BYTES_MAX = 1 << 16
LOG_BYTES_MAX = 1 << 15
CLIENT, OTHER, STRANGER = b"client", b"other", b"stranger"


class MemoryBroker:
    """The rules, and a bytearray for a log; a new one takes over when that has grown."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.log = bytearray(4_096)
        self.index = Index()
        limits = AppendLimits(id_window_events=256)
        identity = Identity(bytes(16), b"b" * 16, "0", 1_000)
        self.broker = Broker(
            identity, self.index, limits, BODY_BYTES_MAX, self._stored, self._recorded_at, self._info,
            lambda: Verdict(True, True, "", self.index.head, 0),
        )  # fmt: skip
        self.now = 1
        self.incarnation = 0
        self.ids = 1 << 64
        self.hello(OTHER)

    def _info(self) -> dict[str, Any]:
        return {"head": self.index.head}

    def _batch(self, number: int) -> Batch:
        rows = self.index.rows(number)
        offset = rows.places[number - rows.first] & OFFSET_MASK
        batch = read_batch(bytes(self.log[offset : offset + rows.lengths[number - rows.first]]))
        assert not isinstance(batch, Incomplete)
        return batch

    def _stored(self, number: int) -> Sequence[KeptWrite]:
        return kept_writes(self._batch(at) for at in range(number, self.index.append_stop(number)))

    def _recorded_at(self, number: int, checked: bool = False) -> int:
        return self._batch(number).recorded_at

    def hello(self, identity: bytes) -> None:
        """This connection says HELLO as a client of its own."""
        self.incarnation += 1
        client = identity.ljust(16, b".")
        replies = self.message(identity, msgpack.packb([[1, 1, "tidelog", 1, client, self.incarnation]]))
        assert [reply[:2] for _, reply in replies] == [(1, 0)]

    def message(self, identity: bytes, frame: bytes) -> list[tuple[bytes, tuple[Any, ...]]]:
        """One message through a whole drain → (identity, reply) of everything that was answered."""
        broker = self.broker
        self.now += 1
        broker.begin(self.now)
        broker.take(identity, frame)
        self._commit()
        for _ in range(3_000):
            if not broker.backlog:
                break
            broker.begin(self.now)
            self._commit()
        assert not broker.backlog, "an append waits for ever"
        while broker.later:
            peer, request = broker.later.popleft()
            if not peer.alive and request[0] != 11:
                continue
            answer = broker.answer(peer, request, self.now)
            if answer is not None:
                reply, extents = answer
                broker.say(peer, reply)
                if extents is not None and request[0] == READ:
                    self._decode(request, reply, extents)
        broker.wake(1 << 62)
        replies = []
        for peer in broker.touched:
            replies += [(peer.identity, reply) for reply in (*peer.fated, *peer.ready)]
            peer.fated.clear()
            peer.ready.clear()
        broker.touched.clear()
        for _, reply in replies:
            msgpack.packb(reply)  # what can't be packed can't be sent
        return replies

    def _commit(self) -> None:
        appender = self.broker.appender
        if not appender.staged:
            return
        offset = len(self.log) + 64
        body = b"".join(appender.parts)
        assert len(body) <= BODY_BYTES_MAX
        self.log += b"TLGR" + bytes(60) + body
        self.broker.committed(1, offset)

    def _decode(self, request: tuple[Any, ...], reply: tuple[Any, ...], extents: list[Any]) -> None:
        """What was let in must be what a client can read."""
        data = b"".join(bytes(self.log[offset : offset + size]) for _, offset, size in extents)
        cover = Cover(reply[6], reply[2], reply[3], request[3], request[4].encode())
        for event in decode_page(data, request[3] == STREAM, reply[2], reply[3], cover=cover):
            _, stream, _, kind, payload, metadata, raw, _ = event
            assert (type(stream), type(kind), type(payload), type(metadata)) == (str, str, bytes, bytes)
            assert type(raw) is bytes
            assert len(raw) == 16

    def answers(self) -> None:
        """Another client is served as ever: it appends, and reads what it wrote."""
        if len(self.log) > LOG_BYTES_MAX:
            self.begin()
        self.ids += 1
        head = self.index.head
        events = region(self.ids, ["t"], [b""], [b"good"])
        frame = msgpack.packb(
            [
                [3, 7, 0, None, 0, None, None, [["good", None, events]]],
                [2, 8],
                [4, 9, 0, 2, "good", *[None] * 3, False, None, None],
            ]
        )
        replies = self.message(OTHER, frame)
        mine = {reply[0]: reply[1:] for identity, reply in replies if identity == OTHER}
        assert mine.keys() == {7, 8, 9}
        assert mine[7][:5] == (0, 2, 0, head, head), mine[7]
        assert mine[8] == (0, head + 1)
        assert mine[9][0] == 0
