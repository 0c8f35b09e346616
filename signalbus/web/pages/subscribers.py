"""The page of subscriptions: who serves them, whether they get anywhere, and how much goes through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ...brokers.base import QueueInfo
from ...liveness import SubscriptionState, SubscriptionStatus, subscription_statuses
from ...signals import utc_now
from .site import Site

#: What wants attention first.
_ORDER = (SubscriptionState.GONE, SubscriptionState.STALLED, SubscriptionState.BUSY, SubscriptionState.UP)


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

    async def show(self, request: Request) -> Response:
        """Show each subscription with its sessions."""
        bus = self._site.inspection.bus
        seconds = bus.settings.connect_timeout
        queues, sessions = await asyncio.gather(bus.broker.queues(seconds), bus.broker.sessions(seconds))
        statuses = subscription_statuses(queues, sessions, utc_now())
        return self._site.page(
            request,
            "subscribers.html",
            served=_served(statuses, queues),
            sessions=sessions,
            rates=await self._rates() or {},
            now=time.time(),
        )


def _served(statuses: Sequence[SubscriptionStatus], queues: Sequence[QueueInfo]) -> list[Served]:
    delayed = {queue.name: queue.delayed for queue in queues}
    found = [Served(status=status, delayed=delayed.get(status.name)) for status in statuses]
    return sorted(found, key=lambda each: (_ORDER.index(each.status.state), each.status.name))
