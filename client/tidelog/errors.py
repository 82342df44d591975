"""The one tree of errors; each carries facts, none has to be parsed.

    TidelogError
    ├── InvalidArgument (also ValueError)
    │   ├── EventTooLarge(size, max)
    │   └── AppendTooLarge(size, max)
    ├── WrongExpectedVersion(stream, expected, actual)
    ├── DuplicateEventId
    ├── StreamNotFound(stream)
    ├── Truncated(first_available)
    ├── StorageFull, Overloaded, Unavailable(reason)
    ├── NotPermitted, AuthenticationFailed, ProtocolMismatch
    ├── SessionFenced(epoch), SerialGap(last), SerialReused(serial), NotApplied(serial)
    ├── CursorMoved(cursor, expected, actual), LeaseLost(cursor)
    ├── OutcomeUnknown
    ├── Lagged(position)
    ├── CorruptLog(segment, offset), InvalidHeader
    └── ConnectionLost, DeadlineExceeded (also TimeoutError), ClientClosed, UsedAfterFork

`retryable`: the same call may succeed later. `maybe_applied`: an append may be in the log; only a retry with the same
ids or serial settles it. Codes are those of PROTOCOL.md §7 and never change.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TidelogError(Exception):
    """Base of all. `code` is the wire's (0: never on the wire), `text` is for people, `facts` the wire's row."""

    code: ClassVar[int] = 0
    names: ClassVar[tuple[str, ...]] = ()
    retryable: bool = False
    maybe_applied: bool = False
    shares_fate: bool = False
    """In the broker: the refusal was decided on appends that are not durable yet, and holds only if they become so."""

    def __init__(self, text: str = "", *facts: Any, maybe_applied: bool | None = None) -> None:
        super().__init__(text or type(self).__name__)
        self.text = text
        self.facts = facts
        for name, fact in zip(self.names, facts, strict=False):
            setattr(self, name, fact)
        if maybe_applied is not None:
            self.maybe_applied = maybe_applied

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.text, self.facts, self.maybe_applied)


def _rebuild(kind: type[TidelogError], text: str, facts: tuple[Any, ...], maybe_applied: bool) -> TidelogError:
    return kind(text, *facts, maybe_applied=maybe_applied)


class InvalidArgument(TidelogError, ValueError):
    """The request's shape or a value in it is refused; nothing was changed."""

    code = 1


class EventTooLarge(InvalidArgument):
    """An event's size (16 + type + metadata + payload bytes) is over the limit."""

    code = 2
    names = ("size", "max")
    size: int
    max: int


class AppendTooLarge(InvalidArgument):
    """An append has too many events or bytes; `size` and `max` are in the unit that the text names."""

    code = 3
    names = ("size", "max")
    size: int
    max: int


class WrongExpectedVersion(TidelogError):
    """The stream is not where the writer believed. `actual` is its last version, or None without an event."""

    code = 4
    names = ("stream", "expected", "actual", "deleted")
    stream: str
    expected: Any
    actual: int | None
    deleted: bool


class DuplicateEventId(TidelogError):
    """An event id is known from another append; nothing was written."""

    code = 5


class StreamNotFound(TidelogError):
    """The stream never had an event."""

    code = 6
    names = ("stream",)
    stream: str


class Truncated(TidelogError):
    """The explicit start lies below what is still there."""

    code = 7
    names = ("first_available",)
    first_available: int


class StorageFull(TidelogError):
    """No room on disk; the append is not in the log. Appends go on when there is room again."""

    code = 8
    retryable = True


class Overloaded(TidelogError):
    """A limit of the broker is reached; nothing was done."""

    code = 9
    retryable = True


class Unavailable(TidelogError):
    """The broker can't do this now; `reason` is starting, stopping, read-only, failed or timeout."""

    code = 10
    names = ("reason",)
    retryable = True
    reason: str


class NotPermitted(TidelogError):
    """The name under which this client is known has no right to this."""

    code = 11


class AuthenticationFailed(TidelogError):
    """The broker does not know this client's key, or the client not the broker's."""

    code = 12


class ProtocolMismatch(TidelogError):
    """Broker and client speak different protocols, or the other side is no Tidelog broker."""

    code = 13


class SessionFenced(TidelogError):
    """Another holder opened the session; `epoch` is the one in force."""

    code = 14
    names = ("epoch",)
    epoch: int


class SerialGap(TidelogError):
    """The serial skips some; `last` is the newest in the log."""

    code = 15
    names = ("last",)
    last: int


class SerialReused(TidelogError):
    """The serial is in the log with other events."""

    code = 16
    names = ("serial",)
    serial: int


class NotApplied(TidelogError):
    """An earlier append of the session was refused, so this one was not tried."""

    code = 17
    names = ("serial",)
    serial: int


class CursorMoved(TidelogError):
    """The cursor does not stand where the caller believed."""

    code = 18
    names = ("cursor", "expected", "actual")
    cursor: str
    expected: int | None
    actual: int | None


class LeaseLost(TidelogError):
    """Another holder moves the cursor now."""

    code = 19
    names = ("cursor",)
    cursor: str


class OutcomeUnknown(TidelogError):
    """The broker itself can't say whether the append is in the log."""

    code = 20
    maybe_applied = True


class Lagged(TidelogError):
    """A subscriber fell behind; `position` is the next it wants."""

    code = 21
    names = ("position",)
    position: int


class CorruptLog(TidelogError):
    """Stored bytes are damaged: at this segment and offset."""

    code = 22
    names = ("segment", "offset")
    segment: str
    offset: int


class InvalidHeader(TidelogError):
    """A file is not of this format, or of a newer version."""

    code = 23


class HelloRequired(TidelogError):
    """The broker does not know this connection; the client library says HELLO again by itself."""

    code = 24
    retryable = True


class ConnectionLost(TidelogError):
    """No broker answers at the endpoint."""

    retryable = True


class DeadlineExceeded(TidelogError, TimeoutError):
    """The call's time is over. With `maybe_applied`, an append was sent and its outcome is not known."""

    retryable = True


class ClientClosed(TidelogError):
    """The client was closed."""


class UsedAfterFork(TidelogError):
    """The client belongs to the parent process; make one in this process."""


def _subclasses(kind: type[TidelogError]) -> list[type[TidelogError]]:
    direct = kind.__subclasses__()
    return direct + [deeper for child in direct for deeper in _subclasses(child)]


BY_CODE: dict[int, type[TidelogError]] = {kind.code: kind for kind in _subclasses(TidelogError) if kind.code}
"""Wire code → class; read by the client, and the table that PROTOCOL.md §7 prints."""


def from_wire(code: int, text: str, facts: list[Any] | tuple[Any, ...]) -> TidelogError:
    """The error that a reply names; an unknown code (a newer broker's) is a plain TidelogError."""
    return BY_CODE.get(code, TidelogError)(text, *facts)
