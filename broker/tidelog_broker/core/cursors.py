"""Named cursors and their leases (spec §10): where a consumer stands, and who may move it. PURE.

A cursor moves by compare-and-set. While somebody holds its lease, only with that lease: its number rises with each
holder, so one who lost it can't move the cursor any more, whatever he believes. What is staged for the next group stands
before what is durable until `commit` or `rollback`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tidelog.errors import CursorMoved, InvalidArgument, LeaseLost, Overloaded
from tidelog.limits import INT_MAX

from .format import CURSOR, LEASE
from .names import check_name, is_name

COMMIT_BYTES = 16
ACQUIRE, RELEASE, BREAK = 0, 1, 2
"""What LEASE asks for (PROTOCOL.md §5.2)."""


class Cursor(NamedTuple):
    """A cursor: the next position it wants (None: it was only leased so far), who holds it ("": nobody), the number of the lease
    (0: there was none yet), and the id of the commit that moved it last."""

    position: int | None
    holder: str
    lease: int
    commit: bytes


NEW = Cursor(None, "", 0, b"")


class Asked(NamedTuple):
    """A move that is asked for. `expected`: None never set, True whatever it is, else a position."""

    name: str
    expected: int | bool | None
    position: int
    lease: int | None
    commit: bytes


class Move(NamedTuple):
    """A checked request to move a cursor or its lease: what it is afterwards, and the control batch that says so."""

    name: str
    after: Cursor
    subtype: int

    def body(self) -> list[Any]:
        """The control batch's array (FORMAT.md §4)."""
        position, holder, lease, commit = self.after
        if self.subtype == LEASE:
            return [self.name, holder or None, lease]
        return [self.name, position, holder or None, lease, *([commit] if commit else [])]


class Cursors:
    """All cursors of a log; at most `limit`."""

    def __init__(self, limit: int, rows: Iterable[tuple[str, Cursor]] = ()) -> None:
        self.limit = limit
        self.by_name = dict(rows)
        self.steps: list[Move] = []
        self._staged: dict[str, Cursor] = {}

    def get(self, name: str) -> Cursor:
        """As it is with what is staged."""
        return self._staged.get(name) or self.by_name.get(name, NEW)

    def holder(self, name: object) -> str:
        """Who holds the lease of a cursor; "" if nobody does."""
        return self.get(name).holder if type(name) is str else ""

    def is_staged(self, name: str) -> bool:
        """Whether something about it is not durable yet."""
        return name in self._staged

    # -- rules

    @staticmethod
    def check(request: object) -> Asked:
        """A request's `[name, expected, position, lease]`, and a commit's id behind them. Raises InvalidArgument."""
        if type(request) is not tuple or len(request) not in (4, 5):
            raise InvalidArgument("a cursor is [name, expected position, new position, lease]")
        name, expected, position, lease, commit = (*request, b"")[:5]
        check_name(name, "cursor")
        if type(expected) is int:
            _check_number(expected)
        elif expected is not None and expected is not True:
            raise InvalidArgument("a cursor's expected position is nil, true or an integer")
        _check_number(position)
        if lease is not None:
            _check_number(lease)
        if type(commit) is not bytes or len(commit) not in (0, COMMIT_BYTES):
            raise InvalidArgument(f"a commit's id has {COMMIT_BYTES} bytes")
        return Asked(name, expected, position, lease, commit)

    def move(self, asked: Asked) -> Move:
        """What a move makes of the cursor. Raises CursorMoved, LeaseLost, Overloaded."""
        name, expected, position, lease, commit = asked
        cursor = self.get(name)
        if cursor.holder and lease != cursor.lease:
            raise self._fated(name, LeaseLost(f"cursor {name!r} is held by {cursor.holder}", name))
        if lease is not None and not cursor.holder:
            raise self._fated(name, LeaseLost(f"the lease {lease} of cursor {name!r} has ended", name))
        if expected is not True and expected != cursor.position:
            text = f"cursor {name!r} stands at {cursor.position}, expected {expected}"
            raise self._fated(name, CursorMoved(text, name, expected, cursor.position))
        self._check_room(name)
        return Move(name, cursor._replace(position=position, commit=commit), CURSOR)

    def is_repeat(self, asked: Asked) -> bool:
        """Whether the last commit of the cursor was this one: its answer was lost."""
        cursor = self.get(asked.name)
        return len(asked.commit) == COMMIT_BYTES and (cursor.commit, cursor.position) == (asked.commit, asked.position)

    def lease(self, name: object, what: object, lease: object, holder: str, *, gone: bool) -> Move | None:
        """Acquire, release or break the lease of a cursor → what is to be written; None when nothing changes.

        `gone`: whoever holds it now is not there any more. Raises InvalidArgument, LeaseLost, Overloaded.
        """
        check_name(name, "cursor")
        assert isinstance(name, str)
        if type(what) is not int or what not in (ACQUIRE, RELEASE, BREAK):
            raise InvalidArgument("a lease is asked for with 0 acquire, 1 release or 2 break")
        cursor = self.get(name)
        if what == RELEASE:
            if not cursor.holder or cursor.lease != lease:
                return None
            return Move(name, cursor._replace(holder=""), LEASE)
        if what == BREAK:
            return Move(name, cursor._replace(holder=""), LEASE) if cursor.holder else None
        if cursor.holder == holder:
            return None
        if cursor.holder and not gone:
            raise self._fated(name, LeaseLost(f"cursor {name!r} is held by {cursor.holder}", name))
        if cursor.lease == INT_MAX:
            raise InvalidArgument("this cursor has used up its leases")
        self._check_room(name)
        return Move(name, cursor._replace(holder=holder, lease=cursor.lease + 1), LEASE)

    def _check_room(self, name: str) -> None:
        known = self.by_name.keys() | self._staged.keys() if self._staged else self.by_name
        if name not in known and len(known) >= self.limit:
            raise Overloaded(f"there are {self.limit} cursors already (setting cursors_max)")

    def _fated(self, name: str, error: CursorMoved | LeaseLost) -> CursorMoved | LeaseLost:
        error.shares_fate = name in self._staged
        return error

    # -- staging

    def stage(self, move: Move) -> None:
        """Its control batch is staged."""
        self._staged[move.name] = move.after
        self.steps.append(move)

    def commit(self, steps: int) -> None:
        """So many of the staged moves, the oldest, are durable."""
        self.by_name.update((move.name, move.after) for move in self.steps[:steps])
        del self.steps[:steps]
        self._staged = {move.name: move.after for move in self.steps}

    def rollback(self) -> None:
        """Nothing staged is in the log."""
        self.steps.clear()
        self._staged.clear()

    # -- the log that is read

    def restore(self, subtype: int, body: list[Any]) -> bool:
        """The array of a cursor's or a lease's record of the log; False when it is none."""
        if subtype == LEASE:
            name, holder, lease = body[:3]
            position, commit = self.by_name.get(name, NEW)[::3]
        else:
            name, position, holder, lease, commit = (*body, b"")[:5]
        after = Cursor(position, "" if holder is None else holder, lease, commit)
        if not is_name(name) or holder == "" or (subtype == CURSOR and position is None):
            return False
        if not is_cursor(after) or lease < self.by_name.get(name, NEW).lease:
            return False
        self.by_name[name] = after
        return True

    def rows(self) -> list[tuple[str, Cursor]]:
        """All of them, sorted by name."""
        return [(name, self.by_name[name]) for name in sorted(self.by_name)]


def is_cursor(value: Cursor) -> bool:
    """Whether what was read can be a cursor."""
    position, holder, lease, commit = value
    numbers = (0 if position is None else position, lease)
    if not all(type(number) is int and 0 <= number <= INT_MAX for number in numbers):
        return False
    return type(holder) is str and type(commit) is bytes and len(commit) in (0, COMMIT_BYTES)


def _check_number(value: Any) -> None:
    if type(value) is not int or not 0 <= value <= INT_MAX:
        raise InvalidArgument("positions and leases of cursors are integers from 0 to 2^63-1")
