"""Who serves what, and who is gone: monitors, and the state of each subscription. Knows no broker.

A session is declared dead by the broker alone. What it says of itself (a report) only tells how busy it is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from .brokers.base import QueueInfo, SessionStatus
from .errors import MonitorCancelled
from .sessions import Down, ServiceReport, SessionInfo, SessionReport, decode_report
from .signals import utc_now

log = logging.getLogger(__name__)

STALL_SECONDS = 5.0  # without a settlement, while signals wait
STALL_FACTOR = 10.0  # or as many times what a handler usually takes, if that is longer
LEAK_SECONDS = 2.0  # what a Down may take after its session is found gone

OnDown = Callable[[Down], object]


# Monitors


class _Waiting:
    """Awaiting it, with a timeout or not, never harms the monitor."""

    def __init__(self, future: asyncio.Future[Down]) -> None:
        self._future = future

    def __await__(self) -> Generator[object, None, Down]:
        return self._wait().__await__()

    async def _wait(self) -> Down:
        await asyncio.wait([self._future])
        if self._future.cancelled():
            raise MonitorCancelled("the monitor was cancelled, or its bus was closed, before the session ended")
        return self._future.result()


class Monitor:
    """A watch on one session, which yields exactly one `Down`. Made by `Bus.monitor`."""

    def __init__(self, session: str, future: asyncio.Future[Down], forget: Callable[[Monitor], None]) -> None:
        self.session = session
        self.since = utc_now()
        self._future = future
        self._forget = forget
        future.add_done_callback(lambda _: forget(self))

    @property
    def down(self) -> Awaitable[Down]:
        """The end of the session; may be awaited any number of times, and with a timeout.

        Raises `MonitorCancelled` once the monitor is cancelled or its bus closed.
        """
        return _Waiting(self._future)

    @property
    def age(self) -> timedelta:
        """How long it has been watching."""
        return utc_now() - self.since

    def cancel(self) -> None:
        """End the watch. Nothing comes of it afterwards, also if the session has ended already. Idempotent."""
        if not self._future.cancel():
            # It has fired: take that back, as `erlang:demonitor(..., [flush])` does.
            self._future = asyncio.get_running_loop().create_future()
            self._future.cancel()
        self._forget(self)

    async def wait_ended(self, timeout: float) -> bool:
        """Wait until it fired or was cancelled; False after ``timeout`` seconds."""
        done, _ = await asyncio.wait([self._future], timeout=timeout)
        return bool(done)

    def __repr__(self) -> str:
        state = "watching" if not self._future.done() else "cancelled" if self._future.cancelled() else "down"
        return f"<Monitor of {self.session}, {state}>"


class Watchers:
    """The monitors and ``on_down`` functions of one bus."""

    def __init__(self) -> None:
        self._monitors: set[Monitor] = set()
        self._functions: list[tuple[str, OnDown]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, session: str, future: asyncio.Future[Down]) -> Monitor:
        """Return a monitor on a broker's watch."""
        monitor = Monitor(session, future, self._monitors.discard)
        if not future.done():
            self._monitors.add(monitor)
        return monitor

    def monitors(self) -> list[Monitor]:
        """Return the monitors that still wait, the oldest first."""
        return sorted(self._monitors, key=lambda monitor: monitor.since)

    async def leaked(self, living: Iterable[str]) -> list[Monitor]:
        """Return the monitors that wait for sessions that are gone: there should be none."""
        alive = frozenset(living)
        gone = [monitor for monitor in self.monitors() if monitor.session not in alive]
        return [monitor for monitor in gone if not await monitor.wait_ended(LEAK_SECONDS)]

    def call(self, name: str, function: OnDown) -> None:
        """Call a function at the end of each session of that name."""
        self._functions.append((name, function))

    @property
    def wanted(self) -> bool:
        """Whether any function wants to be called."""
        return bool(self._functions)

    def ended(self, down: Down) -> None:
        """Pass the end of a session on to the functions that asked for it."""
        for name, function in self._functions:
            if name == down.name:
                task = asyncio.create_task(_run(function, down), name=f"on_down {name}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def aclose(self, timeout: float) -> None:
        """Let running functions end within ``timeout`` seconds, and cancel the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=timeout)


async def _run(function: OnDown, down: Down) -> None:
    try:
        result = function(down)
        if inspect.isawaitable(result):
            await result
    except Exception:
        # Foreign code. There is nobody to hand the error to, and the other functions have to run.
        log.exception("an on_down function failed for the end of session %s", down.session)


# The state of subscriptions


class SubscriptionState(StrEnum):
    """How a subscription is served."""

    UP = "up"  # it keeps up
    BUSY = "busy"  # signals wait, and are being worked on
    STALLED = "stalled"  # signals wait, somebody is there, and nothing is settled for longer than it should take
    GONE = "gone"  # nobody serves it


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberSession:
    """A session that serves a subscription. Not ``answering``: its event loop is blocked or its process stopped.

    A dead one is not listed. ``in_flight`` is None while it does not answer.
    """

    session: SessionInfo
    answering: bool
    in_flight: int | None
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """A subscription, and who serves it.

    ``waiting``: signals for which no handler runs yet. ``oldest_waiting``: the age of the oldest in the queue; None if
    there is none, or the broker cannot tell (RabbitMQ).
    """

    name: str
    patterns: tuple[str, ...]
    durable: bool
    state: SubscriptionState
    in_flight: int
    waiting: int
    oldest_waiting: timedelta | None
    sessions: tuple[SubscriberSession, ...]


def subscription_statuses(
    queues: Sequence[QueueInfo], sessions: Sequence[SessionStatus], now: datetime
) -> list[SubscriptionStatus]:
    """Put together what queues hold and what sessions say. Pure."""
    reports = [(status.info, decode_report(status.report)) for status in sessions if status.report is not None]
    silent = [status.info for status in sessions if status.report is None]
    return [_status(queue, reports, silent, now) for queue in queues]


def _status(
    queue: QueueInfo, reports: Sequence[tuple[SessionInfo, SessionReport]], silent: Sequence[SessionInfo], now: datetime
) -> SubscriptionStatus:
    serving = [
        (info, service) for info, report in reports for service in report.subscriptions if service.name == queue.name
    ]
    # A session that does not answer does not say what it serves: it is there if the broker counts more than answered.
    missing = silent if queue.consumers > len(serving) else ()
    services = [service for _, service in serving]
    oldest = now - queue.oldest if queue.ready and queue.oldest is not None else None
    return SubscriptionStatus(
        name=queue.name,
        patterns=queue.patterns,
        durable=queue.durable,
        state=_state(queue, services),
        in_flight=sum(service.in_flight for service in services),
        waiting=_waiting(queue, services),
        oldest_waiting=oldest if oldest is None else max(oldest, timedelta(0)),
        sessions=(
            *(
                SubscriberSession(
                    session=info, answering=True, in_flight=service.in_flight, last_error=service.last_error
                )
                for info, service in serving
            ),
            *(SubscriberSession(session=info, answering=False, in_flight=None) for info in missing),
        ),
    )


def _state(queue: QueueInfo, serving: Sequence[ServiceReport]) -> SubscriptionState:
    if not queue.consumers:
        return SubscriptionState.GONE
    outstanding = bool(queue.ready) or queue.unsettled is None or bool(queue.unsettled)
    if not serving:
        return SubscriptionState.STALLED if outstanding else SubscriptionState.UP
    waiting = _waiting(queue, serving)
    if waiting and all(_stuck(service) for service in serving):
        return SubscriptionState.STALLED
    if waiting or all(service.in_flight >= service.concurrency for service in serving):
        return SubscriptionState.BUSY
    return SubscriptionState.UP


def _waiting(queue: QueueInfo, serving: Sequence[ServiceReport]) -> int:
    return queue.ready + sum(service.waiting for service in serving)


def _stuck(service: ServiceReport) -> bool:
    return service.stuck_seconds > max(STALL_SECONDS, STALL_FACTOR * service.usual_seconds)
