"""Who is connected, and how that ended. Values only; knows no broker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """Who is connected: one open bus.

    ``id`` names one incarnation: a bus that lost its broker and came back is another one, with another id, since what
    the first one held has gone to others meanwhile. ``incarnation`` counts them from 1.
    """

    id: str
    name: str
    host: str
    pid: int
    version: str
    started: datetime
    incarnation: int = 1

    def next(self) -> SessionInfo:
        """Return the following incarnation."""
        number = self.incarnation + 1
        return replace(self, id=f"{self.id.partition(':')[0]}:{number}", incarnation=number)


class DownReason(StrEnum):
    """How a session ended."""

    NORMAL = "normal"  # it was closed in good order
    CONNECTION_LOST = "connection_lost"  # its process died, or its connection to the broker
    HEARTBEAT_MISSED = "heartbeat_missed"  # it did not answer the broker any more, where the broker tells
    NOPROC = "noproc"  # it was gone when it was looked for: how it ended is not known
    KILLED_BY_SUPERVISOR = "killed_by_supervisor"  # a part of it failed too often, and it was given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """The end of one session.

    ``name``: of its bus, empty if unknown. ``at``: when the end was recorded. ``unsettled``: deliveries it held, which
    go to others now; None where nobody knows.
    """

    session: str
    reason: DownReason
    at: datetime
    name: str = ""
    unsettled: int | None = None
