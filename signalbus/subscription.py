"""A subscription as its owner holds it: a handler that is served, from the opening of its bus to the end.

`SubscriptionService` is the part that the bus starts and stops; `Subscription` is the handle that users get.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Generator
from typing import Generic, ParamSpec, Protocol, Self, TypeVar

from .brokers.base import Broker, SubscriptionSpec
from .errors import BrokerUnavailable, BusClosed
from .handlers import Handler
from .services import Surroundings
from .sessions import ServiceReport
from .subscriber import Subscriber, SubscriberOptions, SubscriptionStats

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1  # seconds before a declaration is repeated; doubles
LONGEST_PAUSE = 1.0

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class SubscriptionService:
    """Serves one subscription in an open bus. Started once, stopped once."""

    def __init__(self, spec: SubscriptionSpec, handler: Handler, options: SubscriberOptions) -> None:
        self.spec = spec
        self._handler = handler
        self._options = options
        self._surroundings: Surroundings | None = None
        self._subscriber: Subscriber | None = None
        self._starting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._paused = False

    @property
    def name(self) -> str:
        """The name of the subscription."""
        return self.spec.name

    def start(self, surroundings: Surroundings) -> asyncio.Task[None]:
        """Begin to declare and serve; the task ends when the broker counts us as a consumer, or fails."""
        self._surroundings = surroundings
        self._starting = asyncio.create_task(self._start(surroundings), name=f"start {self.spec.name}")
        return self._starting

    async def wait_served(self) -> None:
        """Wait for the start. Raises what kept it from succeeding, and `BusClosed` before it began."""
        if self._starting is None:
            raise BusClosed(f"subscription {self.spec.name!r} is served once its bus is open: async with bus: ...")
        await asyncio.shield(self._starting)

    async def pause(self) -> None:
        """Take no more deliveries. Idempotent."""
        self._paused = True
        if self._subscriber is not None:
            await self._subscriber.pause()

    def resume(self) -> None:
        """Take deliveries again. Idempotent."""
        self._paused = False
        if self._subscriber is not None:
            self._subscriber.resume()

    async def stop(self) -> None:
        """Stop, within the drain timeout of the bus. Idempotent."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._subscriber is not None and self._surroundings is not None:
            await self._subscriber.stop(self._surroundings.drain_timeout)
        if self._serving is not None:
            # It ended with the stop, unless it is in a call to a broker that does not answer.
            self._serving.cancel()
            await asyncio.wait([self._serving])

    async def delete(self) -> None:
        """Delete the subscription at the broker, with what waits in it."""
        if self._surroundings is not None:
            await self._surroundings.broker.delete(self.spec.name, self._surroundings.timeout)

    def stats(self) -> SubscriptionStats:
        """Return the counters since the start."""
        return self._subscriber.stats if self._subscriber is not None else SubscriptionStats()

    def report(self) -> ServiceReport | None:
        """Return what to say of it to others; nothing before it is served."""
        return self._subscriber.report() if self._subscriber is not None else None

    async def _start(self, surroundings: Surroundings) -> None:
        broker, timeout = surroundings.broker, surroundings.timeout
        await self._declare(broker, timeout)
        subscriber = Subscriber(
            broker,
            self.spec,
            self._handler,
            self._options,
            surroundings.session,
            surroundings.tell,
            surroundings.telemetry,
            surroundings.recorder,
        )
        self._subscriber = subscriber
        if self._paused:
            await subscriber.pause()
        self._serving = surroundings.supervisor.start(self.spec.name, lambda: subscriber.serve(timeout))
        if self._paused:
            return
        try:
            async with asyncio.timeout(timeout):
                await subscriber.ready.wait()
        except TimeoutError as error:
            cause = subscriber.stats.last_error or "the broker gave no answer"
            raise BrokerUnavailable(f"{self.spec.name!r} is not served after {timeout} s: {cause}") from error

    async def _declare(self, broker: Broker, timeout: float) -> None:
        """Declare; again when the connection was lost meanwhile, which one call cannot wait out."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        pause = FIRST_PAUSE
        while True:
            try:
                await broker.declare(self.spec, max(deadline - clock(), 0.0))
                return
            except BrokerUnavailable as error:
                if clock() + pause >= deadline:
                    raise
                log.warning("%s: not declared yet, trying again: %s", self.spec.name, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


class _Cancel(Protocol):
    def __call__(self, service: SubscriptionService, *, delete: bool) -> Awaitable[None]: ...


class Subscription(Generic[P, R_co]):
    """A handler with the patterns it serves. Calling it calls the handler; awaiting it waits until it is served."""

    def __init__(self, service: SubscriptionService, function: Callable[P, R_co], cancel: _Cancel) -> None:
        functools.update_wrapper(self, function)
        self._service = service
        self._function = function
        self._cancel = cancel

    @property
    def name(self) -> str:
        """The name of the subscription, which is that of its queue."""
        return self._service.spec.name

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns over signal types."""
        return self._service.spec.patterns

    @property
    def durable(self) -> bool:
        """Whether it outlives the session."""
        return self._service.spec.durable

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the handler directly, as tests do."""
        return self._function(*args, **kwargs)

    def __await__(self) -> Generator[object, None, Self]:
        """Wait until the broker counts us as a consumer. Raises what kept it from that."""
        return self._wait_served().__await__()

    def __repr__(self) -> str:
        return f"<Subscription {self.name!r} of {', '.join(self.patterns)}>"

    async def pause(self) -> None:
        """Take no more deliveries; running handlers go on, signals wait in the queue. Idempotent."""
        await self._service.pause()

    async def resume(self) -> None:
        """Take deliveries again. Idempotent."""
        self._service.resume()

    async def cancel(self, *, delete: bool = False) -> None:
        """Stop serving, as when the bus closes. Idempotent.

        A durable subscription goes on collecting signals for whoever serves it next; ``delete`` removes it from the
        broker, with everything that waits in it. One that is not durable is always removed.
        """
        await self._cancel(self._service, delete=delete)

    def stats(self) -> SubscriptionStats:
        """Return the counters of this process since the bus was opened."""
        return self._service.stats()

    async def _wait_served(self) -> Self:
        await self._service.wait_served()
        return self
