"""The broker's loop without sockets: the real core, index and log over any disk, one call for each step of `Server.run`.

A `Loop` takes the messages a connection would bring, commits what they staged, and hands back the replies. It promises the order
of the real one: a reply that shares a group's fate is not there before the group's data-sync returned.
"""

from __future__ import annotations

from typing import Any

import msgpack
from e2e.raw_client import Event, Page, cut
from support.builders import seeded_random
from tidelog.errors import OutcomeUnknown, StorageFull
from tidelog_broker.core.appender import AppendLimits
from tidelog_broker.core.broker import Broker, Identity, Request, Verdict
from tidelog_broker.disk import Disk
from tidelog_broker.log import FailStop, LogSettings
from tidelog_broker.store import IndexSettings, Store

CLIENT = b"one connection"
PAGES_MAX = 10_000
APPENDED_FIELDS = 4
"""Request id, code, flags, generation; behind them four places a write."""


class Loop:
    """A broker over `disk` that has just started. Raises what Store raises."""

    def __init__(self, disk: Disk, settings: LogSettings, limits: AppendLimits, seed: bytes) -> None:
        index_settings = IndexSettings(id_window_events=limits.id_window_events)
        self.store = Store(disk, settings, seeded_random(seed), index_settings)
        self.log = self.store.log
        self.broker = Broker(
            Identity(self.log.log_id, b"b" * 16, "test", 1_000),
            self.store.index,
            limits,
            self.log.body_bytes_max,
            self.store.original,
            self.store.recorded_at,
            dict,
            lambda: Verdict(True, True, "", self.store.index.head, 0),
            known=self.store.known,
        )
        self.appender = self.broker.appender
        self.send([1, 0, "tidelog", 1, b"c" * 16, 1])
        self.hello = self.replies()[0]

    def send(self, *requests: list[Any]) -> None:
        """One message."""
        self.broker.take(CLIENT, msgpack.packb(requests))

    def replies(self) -> dict[int, Request]:
        """What would be sent now, by request id."""
        found: dict[int, Request] = {}
        for peer in self.broker.touched:
            for reply in (*peer.fated, *peer.ready):
                assert reply[0] not in found, "answered twice"
                found[reply[0]] = reply
            peer.fated, peer.ready = [], []
        self.broker.touched.clear()
        return found

    def commit(self) -> dict[int, Request]:
        """Make the staged group durable → the replies. Raises FailStop, when `replies` has what was still said."""
        try:
            if self.appender.parts:
                place = self.log.commit(self.appender.parts, len(self.appender.staged), self.appender.position)
                self.broker.committed(*place)
        except StorageFull as error:
            self.broker.failed(error)
        except FailStop as error:
            self.broker.failed(OutcomeUnknown(f"the disk failed: {error}"))
            raise
        return self.replies()

    def ask(self, kind: int, *fields: Any) -> tuple[Request, bytes]:
        """A request that no group decides, answered now: (reply, stored bytes)."""
        self.send([kind, 1 << 40, *fields])
        answer = self.broker.answer(*self.broker.later.pop(), 0)
        assert answer is not None, "it waits"
        reply, extents = answer
        return reply, b"".join(self.store.read(extents or []))

    def pages(
        self, scope: int, name: str, start: int | None, stop: int | None, limit: int | None, backwards: bool
    ) -> list[Page]:
        """All pages of a read, as a client asks for them; empty when there is no such stream."""
        pages: list[Page] = []
        wanted = limit
        while len(pages) < PAGES_MAX:
            reply, stored = self.ask(4, 0, scope, name, start, stop, wanted, backwards, None, None)
            if reply[1]:
                assert reply[1] == 6, reply
                return pages
            page = Page(cut(stored, scope, reply[2], reply[3]), *reply[2:6])
            pages.append(page)
            if wanted is not None:
                wanted -= min(wanted, len(page.events))
            if backwards:
                if page.start <= (start or 0) or page.start == page.stop or wanted == 0:
                    return pages
                stop = page.start
            else:
                if page.stop >= (page.end if stop is None else min(stop, page.end)) or wanted == 0:
                    return pages
                assert page.stop > page.start, "a page without progress"
                start = page.stop
        raise AssertionError("reading does not end")

    def read(
        self,
        scope: int = 0,
        name: str = "",
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """The events of a range in the order asked for."""
        found: list[Event] = []
        for page in self.pages(scope, name, start, stop, limit, backwards):
            found += page.events[::-1] if backwards else page.events
        return found if limit is None else found[:limit]
