"""What the broker remembers beside the index, bounded by settings: recent event ids, sessions, cursors. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from tidelog.limits import CURSORS_MAX, ID_WINDOW_EVENTS, SESSIONS_MAX

from .cursors import Cursors
from .idwindow import IdWindow
from .sessions import Sessions


@dataclass(slots=True)
class Known:
    """The three of them."""

    window: IdWindow
    sessions: Sessions
    cursors: Cursors

    @classmethod
    def nothing(
        cls, id_window_events: int = ID_WINDOW_EVENTS, sessions_max: int = SESSIONS_MAX, cursors_max: int = CURSORS_MAX
    ) -> Known:
        """As in an empty log."""
        return cls(IdWindow(id_window_events), Sessions(sessions_max), Cursors(cursors_max))
