"""The page of subscriptions: who serves them, whether they get anywhere, and how much goes through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ...brokers.base import QueueInfo, SessionStatus
from ...liveness import SubscriptionState, SubscriptionStatus, subscription_statuses
from ...signals import utc_now
from .site import Site

#: What wants attention first.
_ORDER = (SubscriptionState.GONE, SubscriptionState.STALLED, SubscriptionState.BUSY, SubscriptionState.UP)


LOOK_SECONDS = 0.5

Seen = tuple[Sequence[QueueInfo], Sequence[SessionStatus]]

#: What goes through, a second: ``published``, ``delivered``, ``acked``, ``failed``; None while nobody knows.
Rates = Callable[[], Awaitable[Mapping[str, float] | None]]


async def unknown_rates() -> None:
    """Know no rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A subscription with what its queue holds. ``delayed``: None where the broker cannot tell."""

    status: SubscriptionStatus
    delayed: int | None


class SubscriberPages:
    """Who is there."""

    def __init__(self, site: Site, rates: Rates) -> None:
        self._site = site
        self._rates = rates
        self._looking = asyncio.Lock()
        self._seen: Seen = ((), ())
        self._good_until = 0.0

    async def show(self, request: Request) -> Response:
        """Show each subscription with its sessions."""
        queues, sessions = await self._look()
        statuses = subscription_statuses(queues, sessions, utc_now())
        return self._site.page(
            request,
            "subscribers.html",
            served=_served(statuses, queues),
            sessions=sessions,
            rates=await self._rates() or {},
            now=time.time(),
        )

    async def _look(self) -> Seen:
        """Look at the broker, at most once in `LOOK_SECONDS`, however many read this page."""
        async with self._looking:
            if time.monotonic() >= self._good_until:
                bus = self._site.inspection.bus
                seconds = bus.settings.connect_timeout
                self._seen = (await bus.broker.queues(seconds), await bus.broker.sessions(seconds))
                self._good_until = time.monotonic() + LOOK_SECONDS
        return self._seen


def _served(statuses: Sequence[SubscriptionStatus], queues: Sequence[QueueInfo]) -> list[Served]:
    delayed = {queue.name: queue.delayed for queue in queues}
    found = [Served(status=status, delayed=delayed.get(status.name)) for status in statuses]
    return sorted(found, key=lambda each: (_ORDER.index(each.status.state), each.status.name))
