"""What every part of the client stands on: one link, a default timeout, calls and their answers."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from .cursors import HeldCursors
from .errors import InvalidArgument
from .ids import IdPool
from .link import Future, Link, Watched
from .wire import HEAD, Hello

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Calls:
    """A client's link, and how to ask the broker something over it."""

    endpoint: str
    timeout: float
    _link: Link
    _ids: IdPool
    _cursors: HeldCursors

    def _hello(self, timeout: float | None = None) -> Hello:
        """The broker's latest answer to HELLO, after asking it something."""
        call = self._call(HEAD, (None,), first, timeout)
        call.result()
        assert call.hello is not None
        return call.hello

    def _call(
        self, kind: int, fields: tuple[Any, ...], shape: Callable[[Future[T]], T], timeout: float | None
    ) -> Future[T]:
        deadline = monotonic() + (self.timeout if timeout is None else seconds(timeout))
        call = Future(self._link, kind, fields, deadline, shape)
        self._link.submit(call, monotonic())
        return call

    def _submit(self, call: Future[T], now: float, *, waits: bool) -> Future[T]:
        """Submit a call, for somebody who `waits` for it or may never do; what it had moved here is put back when that fails."""
        try:
            if waits:
                self._link.submit(call, now)
            else:
                self._link.submit_unattended(call, now)
        except BaseException:
            put_back(call)
            raise
        return call


def put_back(call: Future[Any]) -> None:
    """A call could not be submitted: what it had moved here is as before."""
    if isinstance(call, Watched) and call.undo is not None:
        call.undo()


def first(call: Future[int]) -> int:
    """A reply's one value."""
    return call.reply[2]  # type: ignore[no-any-return]


def numbers(call: Future[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A reply without its request id and code."""
    return call.reply[2:]


def whole(call: Future[tuple[Any, ...]]) -> tuple[Any, ...]:
    return call.reply


def seconds(timeout: object) -> float:
    if isinstance(timeout, int | float) and timeout >= 0:
        return float(timeout)
    raise InvalidArgument("a timeout is a number of seconds, 0 or more")
