"""Numbers for Prometheus, in its text format 0.0.4. What cannot be asked for is left out, and shown as failed.

All are taken from looks that are shared, so that no scrape costs the broker more than one look a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..brokers.base import BrokerState, QueueInfo, SessionStatus
from ..deadletters import LetterGroup, LetterState
from ..errors import SignalBusError
from ..escapes import escape
from ..inspection import Inspection
from ..signals import utc_now
from ..trace.listing import StoreStats
from .events import Streams
from .looks import Look, Looks
from .rates import OTHERS, OUTCOMES, PUBLISHED, SUBSCRIPTIONS, Tally
from .state import troubles_of

T = TypeVar("T")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_route(inspection: Inspection, looks: Looks, streams: Streams) -> Route:
    """Return ``/metrics``."""
    process = ProcessCollector(registry=None)

    async def scrape(request: Request) -> Response:
        families = [*await _families(inspection, looks), _gauge("event_streams", "Readers of events.", streams.open)]
        return Response(generate_latest(_Families([*families, *process.collect()])), media_type=CONTENT_TYPE)

    return Route("/metrics", scrape)


class _Families(CollectorRegistry):
    """A registry of what was collected already, as collecting waits and registries do not."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._collected = families

    def collect(self) -> Iterable[Metric]:
        return self._collected


async def _families(inspection: Inspection, looks: Looks) -> list[Metric]:
    failed = GaugeMetricFamily(
        "signalbus_look_failed", "Whether these numbers could not be asked for.", labels=["look"]
    )
    queues = await _asked(looks.queues, "queues", failed)
    sessions = await _asked(looks.sessions, "sessions", failed)
    groups = await _asked(looks.groups, "dead_letters", failed)
    store = await _asked(looks.store, "ledger", failed)
    return [
        *_broker(inspection),
        *(_queues(queues) if queues is not None else ()),
        *(_sessions(sessions, looks.tally) if sessions is not None else ()),
        *(_letters(groups) if groups is not None else ()),
        *(_ledger(store, inspection.traces.behind) if store is not None else ()),
        failed,
    ]


async def _asked(look: Look[T], name: str, failed: GaugeMetricFamily) -> T | None:
    try:
        answer = await look()
    except SignalBusError:
        failed.add_metric([name], 1)
        return None
    failed.add_metric([name], 0)
    return answer


def _broker(inspection: Inspection) -> Iterator[Metric]:
    health = inspection.bus.broker.health()
    yield _gauge("troubles", "What keeps this process from its work; /readyz says what.", len(troubles_of(inspection)))
    states = GaugeMetricFamily("signalbus_broker_state", "The state of the connection to the broker.", labels=["state"])
    for state in BrokerState:
        states.add_metric([state.value], state is health.state)
    yield states
    events = CounterMetricFamily("signalbus_broker_events", "Counters of our connection.", labels=["event"])
    for name, count in health.counters.items():
        events.add_metric([name], count)
    yield events


def _queues(queues: Sequence[QueueInfo]) -> Iterator[Metric]:
    now = utc_now()
    kept = sorted(queues, key=lambda queue: queue.name)[:SUBSCRIPTIONS]
    yield _gauge("subscriptions", "Subscriptions there are.", len(queues))
    for name, text, values in (
        ("queue_ready", "Signals to be handed out.", [(queue.name, queue.ready) for queue in kept]),
        ("queue_in_hand", "Signals in the hands of subscribers.", [(queue.name, queue.unsettled) for queue in kept]),
        ("queue_delayed", "Signals that wait for a retry.", [(queue.name, queue.delayed) for queue in kept]),
        ("queue_consumers", "Who serves the subscription.", [(queue.name, queue.consumers) for queue in kept]),
        (
            "queue_oldest_seconds",
            "Age of the oldest signal to be handed out.",
            [(q.name, max(0.0, (now - q.oldest).total_seconds()) if q.oldest and q.ready else None) for q in kept],
        ),
    ):
        yield _by_subscription(name, text, values)


def _by_subscription(name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    family = GaugeMetricFamily(f"signalbus_{name}", text, labels=["subscription"])
    told = {escape(subscription): value for subscription, value in values}
    for subscription, value in told.items():
        if value is not None:  # the broker does not tell
            family.add_metric([subscription], value)
    return family


def _sessions(sessions: Sequence[SessionStatus], tally: Tally) -> Iterator[Metric]:
    silent = sum(status.report is None for status in sessions)
    yield _gauge("sessions", "Sessions that live.", len(sessions))
    yield _gauge("sessions_silent", "Sessions that live, and do not answer.", silent)
    published = tally.totals[PUBLISHED, ""]
    yield CounterMetricFamily("signalbus_published", "Signals published, as sessions tell, since we look.", published)
    family = CounterMetricFamily(
        "signalbus_deliveries", "Deliveries, as sessions tell, since we look.", labels=["subscription", "outcome"]
    )
    deliveries = Counter[tuple[str, str]]()  # no label twice, whatever names there are
    for (outcome, subscription), count in tally.totals.items():
        if outcome in OUTCOMES:
            deliveries[escape(subscription), outcome] += count
    for labels, count in sorted(deliveries.items()):
        family.add_metric(labels, count)
    yield family


def _letters(groups: Sequence[LetterGroup]) -> Iterator[Metric]:
    family = GaugeMetricFamily("signalbus_dead_letters", "Dead letters.", labels=["subscription", "state"])
    counts = Counter[tuple[str, LetterState]]()
    kept = set(sorted({group.subscription for group in groups})[:SUBSCRIPTIONS])
    for group in groups:
        for state, count in group.counts.items():
            counts[escape(group.subscription) if group.subscription in kept else OTHERS, state] += count
    for (subscription, state), count in sorted(counts.items()):
        family.add_metric([subscription, state.value], count)
    yield family


def _ledger(store: StoreStats, behind: int) -> Iterator[Metric]:
    yield _gauge("ledger_facts", "Facts that are stored.", store.facts)
    yield _gauge("ledger_bytes", "Bytes of facts and payloads, roughly.", store.bytes)
    yield _gauge("ledger_dropped_facts", "Facts that recorders had no room for.", store.dropped)
    yield _gauge("ledger_behind_facts", "Facts that are not sorted in yet.", behind)
    if store.oldest is not None:
        yield _gauge("ledger_oldest_timestamp_seconds", "When the oldest signal was published.", store.oldest)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"signalbus_{name}", text, value)
