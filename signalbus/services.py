"""What a bus serves: subscriptions and responders, from its opening to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .brokers.base import Broker
from .delivery import Settlement
from .ledger import Recorder, silent
from .supervision import Supervisor
from .telemetry import Telemetry

log = logging.getLogger(__name__)

Tell = Callable[[str, str, str, Settlement], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an open bus lends to its services. ``timeout`` in seconds, for each call to the broker.

    ``session`` returns the id of the session, which is another one after the broker was lost. ``tell`` passes a
    settlement on to the session that waits for it: (session, signal id, subscription, settlement).
    """

    broker: Broker
    session: Callable[[], str]
    supervisor: Supervisor
    tell: Tell
    telemetry: Telemetry
    max_signal_bytes: int
    timeout: float
    drain_timeout: float
    recorder: Recorder = field(default_factory=silent)


class Service(Protocol):
    """A part that is started once its bus is open, and stopped once."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        ...

    def start(self, surroundings: Surroundings) -> asyncio.Task[None]:
        """Begin to serve; the task ends when the broker counts us, or fails."""
        ...

    async def stop(self) -> None:
        """Stop, within the drain timeout of the bus. Idempotent."""
        ...


S = TypeVar("S", bound=Service)


class Services(Generic[S]):
    """Services by key. Those that are added while the bus is open start at once."""

    def __init__(self) -> None:
        self._services: dict[str, S] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._surroundings: Surroundings | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._services

    def items(self) -> list[tuple[str, S]]:
        """Return the services with their keys, in the order of their making."""
        return list(self._services.items())

    def add(self, key: str, service: S) -> None:
        """Take a service in."""
        self._services[key] = service
        if self._surroundings is not None:
            self._start(service, self._surroundings)

    def discard(self, key: str, service: S) -> bool:
        """Forget a service; False if it was forgotten already."""
        if self._services.get(key) is not service:
            return False
        del self._services[key]
        return True

    async def start(self, surroundings: Surroundings) -> None:
        """Start them all, and return when all are served. Raises what kept one from it."""
        self._surroundings = surroundings
        for task in [self._start(service, surroundings) for service in self._services.values()]:
            await task

    @property
    def starting(self) -> bool:
        """Whether any is just starting."""
        return bool(self._starting)

    async def wait_started(self) -> None:
        """Wait for those that are just starting, whatever comes of it."""
        if self._starting:
            await asyncio.wait(self._starting)

    async def stop(self) -> None:
        """Stop them all, at the same time."""
        self._surroundings = None
        await asyncio.gather(*(service.stop() for service in self._services.values()))

    def _start(self, service: S, surroundings: Surroundings) -> asyncio.Task[None]:
        task = service.start(surroundings)
        self._starting.add(task)
        task.add_done_callback(self._started)
        return task

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error)
