"""Tidelog's client library: the public names. Everything a user needs is importable from here."""

from typing import TYPE_CHECKING, Any

from .errors import (
    AppendTooLarge,
    AuthenticationFailed,
    ClientClosed,
    ConnectionLost,
    CorruptLog,
    CursorMoved,
    DeadlineExceeded,
    DuplicateEventId,
    EventTooLarge,
    HelloRequired,
    InvalidArgument,
    InvalidHeader,
    Lagged,
    LeaseLost,
    NotApplied,
    NotPermitted,
    OutcomeUnknown,
    Overloaded,
    ProtocolMismatch,
    SerialGap,
    SerialReused,
    SessionFenced,
    StorageFull,
    StreamNotFound,
    TidelogError,
    Truncated,
    Unavailable,
    UsedAfterFork,
    WrongExpectedVersion,
)
from .messages import (
    ANY,
    EXISTS,
    NO_STREAM,
    Appended,
    CaughtUp,
    Checkpoint,
    CursorInfo,
    Event,
    ExpectedVersion,
    Health,
    Recorded,
    StreamInfo,
    StreamRow,
    Write,
)

if TYPE_CHECKING:
    from .blocking import Client
    from .link import Future
    from .session import Session
    from .subscription import Subscription

__all__ = [
    "ANY",
    "EXISTS",
    "NO_STREAM",
    "AppendTooLarge",
    "Appended",
    "AuthenticationFailed",
    "CaughtUp",
    "Checkpoint",
    "Client",
    "ClientClosed",
    "ConnectionLost",
    "CorruptLog",
    "CursorInfo",
    "CursorMoved",
    "DeadlineExceeded",
    "DuplicateEventId",
    "Event",
    "EventTooLarge",
    "ExpectedVersion",
    "Future",
    "Health",
    "HelloRequired",
    "InvalidArgument",
    "InvalidHeader",
    "Lagged",
    "LeaseLost",
    "NotApplied",
    "NotPermitted",
    "OutcomeUnknown",
    "Overloaded",
    "ProtocolMismatch",
    "Recorded",
    "SerialGap",
    "SerialReused",
    "Session",
    "SessionFenced",
    "StorageFull",
    "StreamInfo",
    "StreamNotFound",
    "StreamRow",
    "Subscription",
    "TidelogError",
    "Truncated",
    "Unavailable",
    "UsedAfterFork",
    "Write",
    "WrongExpectedVersion",
]

_LAZY = {"Client": "blocking", "Future": "link", "Session": "session", "Subscription": "subscription"}


def __getattr__(name: str) -> Any:
    """What needs zmq is imported when first named: the broker's pure parts share this package's other modules."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = found
    return found
