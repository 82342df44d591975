"""Pages of one read, the next one asked for before this one is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Any

from .calls import Calls, seconds, whole
from .errors import ClientClosed, CorruptLog, TidelogError, Truncated
from .link import Future
from .messages import Recorded
from .reading import Pages
from .wire import READ, READ_CHECKED


class Pager:
    """Pages of one read, the next one asked for before this one is decoded. Iterates over lists of events."""

    def __init__(self, client: Calls, pages: Pages, timeout: float | None = None, first: bool = True) -> None:
        self.pages = pages
        self._link = client._link
        self._timeout = client.timeout if timeout is None else seconds(timeout)
        self._call: Future[tuple[Any, ...]] | None = None
        if first:
            self._ask(pages.request(), monotonic() + self._timeout)

    def __iter__(self) -> Iterator[list[Recorded]]:
        try:
            while (events := self.next()) is not None:
                yield events
        finally:
            self.close()

    def next(self) -> list[Recorded] | None:
        """The next page's events (there may be none), or None at the end.

        Raises what the read raises; DeadlineExceeded leaves the pager as it was, to be asked again.
        """
        call = self._call
        if call is None:
            return None
        if not call.settled:
            self._link.wait(call, self._timeout)
        pages = self.pages
        try:
            reply = call.result()
        except Truncated as error:
            if not pages.ended_by(error):
                raise
            self._call = None
            return None
        pages.arrived(reply)
        self._link.exchange.note_head(pages.head)
        self._call = None
        # No deadline for a page asked for ahead: its reader may take its time before it comes back.
        self._ask(pages.ahead(), inf)
        try:
            events = pages.decode(call.bulk)
        except CorruptLog:
            events = self._checked(*pages.covered())
        if self._call is None:
            self._ask(pages.request(), inf)
        return events

    def _checked(self, *fields: Any) -> list[Recorded]:
        """The page again, each batch checked by the broker, which says where it is damaged and remembers that.

        Raises CorruptLog(segment, offset), or what the read raises.
        """
        self.close()
        # Kept where `cancel` finds it, and while it has failed `failed` tells that what the page held is not known.
        call = self._call = Future(self._link, READ_CHECKED, fields, monotonic() + self._timeout, whole)
        self._link.submit(call, monotonic(), push=True)
        self.pages.again(call.result())
        events = self.pages.decode(call.bulk)
        self._call = None
        return events

    @property
    def failed(self) -> bool:
        """Whether the page under way has ended with an error: this pager can't go on."""
        return self._call is not None and self._call.settled and self._call.error is not None

    def cancel(self, error: TidelogError) -> None:
        """End a `next` that waits in another thread, with this error."""
        call = self._call
        if call is not None:
            self._link.cancel(call, error)

    def close(self) -> None:
        """Forget the page asked for ahead."""
        self.cancel(ClientClosed("the read was closed"))
        self._call = None

    def _ask(self, fields: tuple[Any, ...] | None, deadline: float) -> None:
        if fields is not None:
            call = Future(self._link, READ, fields, deadline, whole)
            self._link.submit(call, monotonic(), push=True)
            self._call = call
