"""Who is connected: routing id → client and incarnation (PROTOCOL.md §3). PURE.

At most one copy of a request is alive: once a client's newer incarnation said HELLO, what an older one left queued is
dropped.
"""

from __future__ import annotations

from typing import Any

from tidelog.errors import InvalidArgument, ProtocolMismatch
from tidelog.limits import INT_MAX

PROTOCOL = 1
PEERS_MAX = 65_536
"""Connections remembered; the one longest known is forgotten first and has to say HELLO again."""


class Peer:
    """One connection. `fated` replies are sent when the staged group is durable, and share its fate; `ready` at once."""

    __slots__ = ("alive", "client", "fated", "identity", "incarnation", "ready")

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.client = b""
        self.incarnation = 0
        self.alive = False
        self.fated: list[tuple[Any, ...]] = []
        self.ready: list[tuple[Any, ...]] = []


class Peers:
    """All connections that said HELLO."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, Peer] = {}
        self._by_client: dict[bytes, Peer] = {}
        self._retired: dict[bytes, None] = {}
        self._greeted: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._by_identity)

    def find(self, identity: bytes) -> Peer | None:
        """The peer that said HELLO on this connection, or None."""
        return self._by_identity.get(identity)

    def of_client(self, client: bytes) -> Peer | None:
        """The connection on which a client said HELLO last, or None."""
        return self._by_client.get(client)

    def has_greeted(self, client: bytes) -> bool:
        """Whether a client has ever said HELLO to this broker."""
        return client in self._greeted

    def is_retired(self, identity: bytes) -> bool:
        """True for a connection whose client went on with a newer incarnation: its requests are dropped."""
        return identity in self._retired

    def hello(self, identity: bytes, request: tuple[Any, ...]) -> Peer:
        """Take in a HELLO. Raises ProtocolMismatch or InvalidArgument."""
        if len(request) < 6 or request[2] != "tidelog" or request[3] != PROTOCOL:
            raise ProtocolMismatch(f"this broker speaks protocol {PROTOCOL}", PROTOCOL)
        client, incarnation = request[4], request[5]
        if type(client) is not bytes or len(client) != 16 or type(incarnation) is not int:
            raise InvalidArgument("HELLO carries a client id of 16 bytes and an incarnation")
        if not 1 <= incarnation <= INT_MAX:
            raise InvalidArgument("an incarnation is an integer from 1 to 2^63-1")
        older = self._by_client.get(client)
        if older is not None:
            if incarnation <= older.incarnation:
                raise ProtocolMismatch(
                    f"incarnation {incarnation} is not above {older.incarnation}, which this client had", PROTOCOL
                )
            self._retire(older)
        if identity in self._by_identity:
            self._retire(self._by_identity[identity])
        self._retired.pop(identity, None)
        peer = Peer(identity)
        peer.client, peer.incarnation, peer.alive = client, incarnation, True
        self._by_identity[identity] = peer
        self._by_client[client] = peer
        self._greeted[client] = None
        if len(self._greeted) > PEERS_MAX:
            del self._greeted[next(iter(self._greeted))]
        if len(self._by_identity) > PEERS_MAX:
            self.forget(next(iter(self._by_identity.values())))
        return peer

    def _retire(self, peer: Peer) -> None:
        self.forget(peer)
        self._retired[peer.identity] = None
        if len(self._retired) > PEERS_MAX:
            del self._retired[next(iter(self._retired))]

    def forget(self, peer: Peer) -> None:
        """The connection is gone or takes no replies; on it, HELLO is required again."""
        peer.alive = False
        self._by_identity.pop(peer.identity, None)
        if self._by_client.get(peer.client) is peer:
            del self._by_client[peer.client]
