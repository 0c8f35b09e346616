"""Operations on what is there now: subscriptions, sessions, queues, and numbers about all of it."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import TypeAdapter

from ..brokers.base import BrokerState, QueueInfo, SessionStatus
from ..config import masked
from ..deadletters import LetterGroup
from ..errors import SignalBusError
from ..inspection import Inspection
from ..liveness import SubscriberSession, SubscriptionStatus, subscription_statuses
from ..sessions import decode_report
from ..signals import utc_now
from .looks import Look, Looks
from .operations import Context, Nothing, Operation, read
from .values import QUEUES, SESSIONS, SUBSCRIBERS, WIRE, Shape

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Numbers about a bus. What could not be asked for is null, and ``troubles`` says why.

    ``rates``: signals ``published``, and deliveries ``delivered``, ``acked`` and ``failed``, a second, as all sessions
    tell. ``ready`` and ``in_hand``: of all subscriptions. ``dead_letters`` by state.
    """

    at: datetime
    broker: BrokerState
    troubles: tuple[str, ...] = ()
    rates: dict[str, float] | None = None
    sessions: int | None = None
    subscriptions: int | None = None
    ready: int | None = None
    in_hand: int | None = None
    dead_letters: dict[str, int] | None = None
    facts: int | None = None
    counters: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What answers here: ``url`` is its broker, without the password."""

    version: str
    url: str


STATS = Shape(TypeAdapter(tuple[Stats], config=WIRE))
ABOUT = Shape(TypeAdapter(tuple[About], config=WIRE))


def troubles_of(inspection: Inspection) -> list[str]:
    """Return what is wrong now, one sentence each; asks nobody."""
    health = inspection.bus.broker.health()
    told = list(inspection.troubles())
    if health.state is not BrokerState.UP:
        told.append(f"the broker is {health.state}" + (f": {health.reason}" if health.reason else ""))
    return list(dict.fromkeys(told))


async def stats_of(inspection: Inspection, looks: Looks) -> Stats:
    """Return the numbers, as far as there are any. What raises is told among the troubles."""
    failed: list[str] = []
    queues = await _answered(looks.queues, "the queues", failed)
    sessions = await _answered(looks.sessions, "the sessions", failed)
    groups = await _answered(looks.groups, "the dead letters", failed)
    store = await _answered(looks.store, "the ledger", failed)
    health = inspection.bus.broker.health()
    return Stats(
        at=utc_now(),
        broker=health.state,
        troubles=(*troubles_of(inspection), *failed),
        rates=looks.tally.rates if sessions is not None else None,
        sessions=None if sessions is None else len(sessions),
        subscriptions=None if queues is None else len(queues),
        ready=None if queues is None else sum(queue.ready for queue in queues),
        in_hand=None if queues is None else sum(queue.unsettled or 0 for queue in queues),
        dead_letters=None if groups is None else _by_state(groups),
        facts=None if store is None else store.facts,
        counters=dict(health.counters),
    )


async def _answered(look: Look[T], what: str, failed: list[str]) -> T | None:
    try:
        return await look()
    except SignalBusError as error:
        failed.append(f"{what} cannot be asked for: {error}")
        return None


def _by_state(groups: Sequence[LetterGroup]) -> dict[str, int]:
    counts = Counter[str]()
    for group in groups:
        counts.update({state.value: count for state, count in group.counts.items()})
    return dict(counts)


async def _stats(context: Context, asked: Nothing) -> Stats:
    return await stats_of(context.inspection, context.looks)


async def _about(context: Context, asked: Nothing) -> About:
    bus = context.inspection.bus
    return About(version=importlib.metadata.version("signalbus-router"), url=masked(bus.settings.url))


async def _subscribers(context: Context, asked: Nothing) -> Sequence[SubscriptionStatus]:
    return subscription_statuses(await context.looks.queues(), await context.looks.sessions(), utc_now())


async def _sessions(context: Context, asked: Nothing) -> Sequence[SubscriberSession]:
    return [_session(status) for status in await context.looks.sessions()]


async def _topology(context: Context, asked: Nothing) -> Sequence[QueueInfo]:
    return await context.looks.queues()


def _session(status: SessionStatus) -> SubscriberSession:
    if status.report is None:
        return SubscriberSession(session=status.info, answering=False, in_flight=None)
    report = decode_report(status.report)
    return SubscriberSession(
        session=status.info, answering=True, in_flight=report.in_flight, last_error=report.last_error
    )


OPERATIONS: tuple[Operation, ...] = (
    read("/subscribers", Nothing, SUBSCRIBERS, _subscribers, "List subscriptions, and who serves each."),
    read("/sessions", Nothing, SESSIONS, _sessions, "List who is connected, oldest first."),
    read("/topology", Nothing, QUEUES, _topology, "List subscriptions, and what their queues hold."),
    read("/about", Nothing, ABOUT, _about, "Say what answers here, and for which broker."),
    read("/stats", Nothing, STATS, _stats, "Return numbers about the bus."),
)
