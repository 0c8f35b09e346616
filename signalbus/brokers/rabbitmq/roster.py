"""Which sessions live, as far as this one has heard. Pure."""

from __future__ import annotations

from collections import OrderedDict

from ...sessions import SessionInfo

REMEMBERED = 10_000  # sessions that have ended, at most


class Roster:
    """The living sessions by id. ``complete`` while the news of all others reach us, so that nobody is missing."""

    def __init__(self) -> None:
        self.living: dict[str, SessionInfo] = {}
        self.complete = False
        self._ended: OrderedDict[str, None] = OrderedDict()

    def lives(self, info: SessionInfo) -> None:
        """Note a living session. What has ended stays so: its news may come late."""
        if info.id not in self._ended:
            self.living[info.id] = info

    def ended(self, session: str) -> bool:
        """Note an end; return whether it is news."""
        self.living.pop(session, None)
        if session in self._ended:
            return False
        self._ended[session] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        return True

    def has_ended(self, session: str) -> bool:
        """Return whether an end is known."""
        return session in self._ended
