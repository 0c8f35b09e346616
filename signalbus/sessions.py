"""Who is connected, what it says of itself, and how that ended. Values only; knows no broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import cast

import orjson


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReport:
    """What a session says of one subscription it serves, or one type it responds to.

    ``in_flight``: handlers that run. ``waiting``: deliveries in hand for which none runs yet. ``stuck_seconds``: since
    it last settled anything while it held something. ``usual_seconds``: what its handler takes on average.
    ``received``, ``acked`` and ``failed`` (retried, or dead) count deliveries since the bus was opened.
    """

    name: str
    concurrency: int
    in_flight: int
    waiting: int = 0
    stuck_seconds: float = 0.0
    usual_seconds: float = 0.0
    last_error: str = ""
    received: int = 0
    acked: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """What a session says of itself. ``published`` counts signals since the bus was created."""

    subscriptions: tuple[ServiceReport, ...] = ()
    responders: tuple[ServiceReport, ...] = ()
    published: int = 0

    @property
    def in_flight(self) -> int:
        """How many handlers run."""
        return sum(service.in_flight for service in (*self.subscriptions, *self.responders))

    @property
    def last_error(self) -> str:
        """An error that one of its handlers had, if any."""
        return next((each.last_error for each in (*self.subscriptions, *self.responders) if each.last_error), "")


def encode_report(report: SessionReport) -> bytes:
    """Return a report as it travels."""
    return orjson.dumps(asdict(report))


def decode_report(encoded: bytes) -> SessionReport:
    """Return a report that travelled; an empty one if it cannot be read (another version's)."""
    try:
        fields = cast("Mapping[str, list[Mapping[str, object]]]", orjson.loads(encoded))
        return SessionReport(
            subscriptions=tuple(_service(service) for service in fields["subscriptions"]),
            responders=tuple(_service(service) for service in fields["responders"]),
            published=_count(fields.get("published")),
        )
    except (ValueError, TypeError, KeyError):
        return SessionReport()


def _service(fields: Mapping[str, object]) -> ServiceReport:
    known = {name: fields[name] for name in ServiceReport.__slots__ if name in fields}
    return ServiceReport(**known)  # type: ignore[arg-type]  # another session's word; only shown


def _count(told: object) -> int:
    return told if isinstance(told, int) else 0  # older ones do not say
