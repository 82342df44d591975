"""Where this client believes its cursors to stand. PURE; the link's mutex keeps two threads out.

A cursor moves by compare-and-set, and several moves may be under way at once: each expects what the one before it sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CursorMoved, InvalidArgument, LeaseLost, TidelogError

if TYPE_CHECKING:
    from .exchange import Call


class Held:
    """One cursor: where the last move under way takes it, where it is known to stand, and the lease, if we have it."""

    def __init__(self, position: int | None, lease: int | None) -> None:
        self.position = self.confirmed = position
        self.lease = lease


class HeldCursors:
    """The cursors that this client has read or moved."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._why: dict[str, TidelogError] = {}

    def found(self, name: str, position: int | None, lease: int | None = None) -> None:
        """The broker said where it stands; `lease` if it is ours."""
        self._why.pop(name, None)
        self._held[name] = Held(position, lease)

    def lost(self, name: str, why: TidelogError | None = None) -> None:
        """Nothing is known about it any more; who moves it is told why until he has read it again."""
        self._held.pop(name, None)
        self._why.pop(name, None)
        if why is not None:
            self._why[name] = why

    def lease(self, name: str) -> int | None:
        """The number of our lease."""
        held = self._held.get(name)
        return None if held is None else held.lease

    def move(self, name: str, position: int) -> tuple[list[Any], Move]:
        """(what a request says of it: `[name, expected, position, lease]`, what must be told how it ended).

        Raises what ended our knowledge of it, and InvalidArgument when we never read it: what it is expected to be is what keeps
        two consumers apart.
        """
        held = self._held.get(name)
        if held is None and name in self._why:
            why = self._why[name]
            raise type(why)(why.text, *why.facts, maybe_applied=False)  # this move was not sent
        if held is None:
            raise InvalidArgument(
                f"where cursor {name!r} stands is not known: read it first, by client.cursor() or subscribe(cursor=…)"
            )
        words = [name, held.position, position, held.lease]
        held.position = position
        return words, Move(self, name, held, position)

    def ended(self, move: Move, error: TidelogError | None) -> None:
        """A move has ended."""
        held = move.held
        if self._held.get(move.name) is not held:
            return
        if error is None:
            held.confirmed = move.position
        elif error.maybe_applied or error.code in _LOST:
            self.lost(move.name, error)
        else:
            # Whatever was sent behind it expected it, and fails too.
            held.position = held.confirmed


class Move:
    """A move under way."""

    __slots__ = ("_cursors", "held", "name", "position")

    def __init__(self, cursors: HeldCursors, name: str, held: Held, position: int) -> None:
        self._cursors = cursors
        self.name = name
        self.held = held
        self.position = position

    def ended(self, call: Call) -> None:
        """Its call is settled."""
        self._cursors.ended(self, call.error)

    def undo(self) -> None:
        """Its call was not sent."""
        self.held.position = self.held.confirmed


_LOST = (CursorMoved.code, LeaseLost.code)
"""Somebody else moves it."""
