"""Where this client believes its cursors to stand. PURE; the link's mutex keeps two threads out.

A cursor moves by compare-and-set, and several moves may be under way at once: each expects what the one before it sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CursorMoved, InvalidArgument, LeaseLost, TidelogError

if TYPE_CHECKING:
    from .exchange import Call


class Held:
    """One cursor: where the last move under way takes it, and where it is known to stand."""

    def __init__(self, position: int | None) -> None:
        self.position = self.confirmed = position


class HeldCursors:
    """The cursors that this client has read or moved."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._why: dict[str, TidelogError] = {}
        self._leases: dict[str, int] = {}

    def found(self, name: str, position: int | None) -> None:
        """The broker said where it stands."""
        self._why.pop(name, None)
        self._held[name] = Held(position)

    def lost(self, name: str, why: TidelogError) -> None:
        """Nothing is known about it any more; who moves it is told why until he has read it again. A lease of ours stays."""
        self._held.pop(name, None)
        self._why[name] = why
        if isinstance(why, LeaseLost):
            self._leases.pop(name, None)

    def leased(self, name: str, lease: int | None) -> None:
        """The number of our lease, or that we have none."""
        if lease is None:
            self._leases.pop(name, None)
        else:
            self._leases[name] = lease

    def lease(self, name: str) -> int | None:
        """The number of our lease."""
        return self._leases.get(name)

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
        words = [name, held.position, position, self._leases.get(name)]
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
