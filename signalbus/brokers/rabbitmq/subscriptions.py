"""The subscriptions of this process at the broker: declared, remembered, and made again after losses."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from aiormq.abc import AbstractConnection

from ...errors import BrokerUnavailable, ConfigError
from ..base import QueueInfo, SubscriptionSpec
from .connection import Link
from .control import Control, Counts, apply, counts, opened, unbind
from .driver import NOT_FOUND, REFUSALS, DriverFailure, call
from .registry import Registered, Registry
from .topology import Binding

if TYPE_CHECKING:
    from .consumer import RabbitConsumer

log = logging.getLogger(__name__)

T = TypeVar("T")

STEP_SECONDS = 10.0
VERIFY_SECONDS = 3.0
VERIFY_PAUSE = 0.05
RETRY_PAUSE = 0.1
FRESH_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A subscription as it is at the broker. ``counted``: its queue counts deliveries itself."""

    name: str
    queue: str
    return_key: str
    durable: bool
    counted: bool


@dataclass(slots=True)
class _Temporary:
    spec: SubscriptionSpec
    queue: str
    connection: AbstractConnection


class Subscriptions:
    """Declares durable subscriptions over the control link, temporary ones on the connection that consumes them.

    An exclusive queue belongs to one connection and dies with it; no other one may even look at it.
    """

    def __init__(self, control: Control, registry: Registry, link: Link) -> None:
        self.consumers: set[RabbitConsumer] = set()
        self.session = ""
        self.announce: Callable[[], Awaitable[None]] = _nobody  # tells others that durable subscriptions have changed
        self._control = control
        self._topology = control.topology
        self._registry = registry
        self._link = link
        self._durable: dict[str, SubscriptionSpec] = {}
        self._declared_at: dict[str, float] = {}  # until the first consumer: no need to declare it again at once
        self._temporary: dict[str, _Temporary] = {}

    @property
    def temporary(self) -> Mapping[str, tuple[str, ...]]:
        """The patterns of our temporary subscriptions by name."""
        return {name: temporary.spec.patterns for name, temporary in self._temporary.items()}

    @property
    def unsettled(self) -> int:
        """How many deliveries are in our hands."""
        incarnations = [consumer.incarnation for consumer in self.consumers]
        return sum(incarnation.unsettled for incarnation in incarnations if incarnation is not None)

    # Asked by the bus

    async def declare(self, spec: SubscriptionSpec, timeout: float) -> None:
        """Make a subscription exist with these patterns. Raises as `Broker.declare` says."""

        async def work(deadline: float) -> None:
            if spec.durable:
                await self._declare_durable(spec, await self._control.link.wait_up(deadline))
                self._declared_at[spec.name] = asyncio.get_running_loop().time()
            else:
                await self._declare_temporary(spec, await self._link.wait_up(deadline))

        await self._until_done(work, timeout, f"subscription {spec.name!r} not declared")

    async def delete(self, name: str, timeout: float) -> None:
        """Delete a subscription with everything in its queue."""
        temporary = self._temporary.pop(name, None)
        self._durable.pop(name, None)
        self._declared_at.pop(name, None)
        for consumer in list(self.consumers):
            if consumer.name == name:
                consumer.vanish()

        async def work(deadline: float) -> None:
            if temporary is not None:
                if temporary.connection is self._link.connection:
                    async with opened(temporary.connection) as channel:
                        await call(channel.queue_delete(temporary.queue), STEP_SECONDS)
                return
            connection = await self._control.link.wait_up(deadline)
            async with opened(connection) as channel:
                # Deleting a queue that is not there succeeds, since RabbitMQ 3.
                await call(channel.queue_delete(self._topology.queue(name)), STEP_SECONDS)
            if name in await self._registry.read(connection):
                await self._registry.write(connection, name, None, self.session)
                await self.announce()

        await self._until_done(work, timeout, f"subscription {name!r} not deleted")

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """Return what the queues of all durable subscriptions and of our temporary ones hold, by name."""

        async def work(deadline: float) -> Sequence[QueueInfo]:
            found: list[QueueInfo] = []
            connection = await self._control.link.wait_up(deadline)
            registered: Mapping[str, tuple[str, ...]] = {
                **{name: spec.patterns for name, spec in self._durable.items()},
                **{name: entry.patterns for name, entry in (await self._registry.read(connection)).items()},
            }
            for name, patterns in registered.items():
                queue = self._topology.queue(name)
                await self._add(found, connection, queue, SubscriptionSpec(name=name, patterns=patterns))
            for temporary in list(self._temporary.values()):
                await self._add(found, temporary.connection, temporary.queue, temporary.spec)
            return sorted(found, key=lambda info: info.name)

        return await self._until_done(work, timeout, "queues not listed")

    async def _until_done(self, work: Callable[[float], Awaitable[T]], timeout: float, otherwise: str) -> T:
        """Repeat what a lost connection interrupted, until the deadline. What is refused is refused."""
        deadline = asyncio.get_running_loop().time() + timeout
        reason = f"{otherwise} within {timeout:.1f} s"
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await work(deadline)
                    except DriverFailure as failure:
                        if failure.code in REFUSALS:
                            raise self._control.error(failure) from failure
                        reason = f"{otherwise}: {failure.reason}"
                        if failure.code == NOT_FOUND:
                            await self._control.repair(timeout)
                    await asyncio.sleep(RETRY_PAUSE)
        except TimeoutError as error:
            raise BrokerUnavailable(self._control.link.trouble(reason)) from error

    # Asked by consumers

    async def ensure(self, name: str, connection: AbstractConnection) -> Declared:
        """Make the queue of a declared subscription again, as it was declared. ``connection`` is to consume it.

        Raises `ConfigError` when nobody has declared it, or its queue has other settings.
        """
        if (temporary := self._temporary.get(name)) is not None:
            await self._declare_temporary(temporary.spec, connection)
            return self._declared_temporary(name)
        clock = asyncio.get_running_loop().time
        if clock() - self._declared_at.pop(name, 0.0) > FRESH_SECONDS:
            # While nobody served it, others may have declared it anew, or deleted it.
            spec = self._durable.get(name) or await self._registered(name)
            try:
                await self._declare_durable(spec, await self._control.link.wait_up(clock() + STEP_SECONDS))
            except DriverFailure as failure:
                raise self._control.error(failure) from failure
        return self._declared_durable(name)

    async def verify(self, declared: Declared, connection: AbstractConnection) -> None:
        """Wait until the broker counts a consumer on the queue. Raises `DriverFailure` if it does not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + VERIFY_SECONDS
        while True:
            seen = await self.look(declared, connection)
            if seen is not None and seen.consumers:
                return
            if loop.time() >= deadline:
                raise DriverFailure("the broker does not count us as a consumer")
            await asyncio.sleep(VERIFY_PAUSE)

    async def look(self, declared: Declared, connection: AbstractConnection) -> Counts | None:
        """Return what the queue holds, None if it is gone."""
        if declared.durable:
            return await self._control.counts(declared.queue, STEP_SECONDS)
        async with opened(connection) as channel:
            return await counts(channel, declared.queue)

    async def prepare(self, connection: AbstractConnection) -> None:
        """Make the temporary subscriptions again on a new consuming connection."""
        for temporary in list(self._temporary.values()):
            try:
                await self._declare_temporary(temporary.spec, connection)
            except DriverFailure as failure:
                if failure.code not in REFUSALS:
                    raise
                # One that is refused must not keep the others from being served; its consumer will report it.
                log.warning("temporary subscription %r is refused: %s", temporary.spec.name, failure.reason)

    async def restore(self, timeout: float) -> None:
        """Make the base topology and the bindings of all durable subscriptions again: an exchange was missing."""
        await self._control.repair(timeout)
        try:
            async with asyncio.timeout(timeout):
                connection = await self._control.link.wait_up(asyncio.get_running_loop().time() + timeout)
                for entry in (await self._registry.read(connection)).values():
                    queue = self._topology.queue(entry.name)
                    async with opened(connection) as channel:
                        if await counts(channel, queue) is not None:
                            await apply(channel, self._topology.bindings(queue, entry.patterns, return_key=queue))
        except (DriverFailure, BrokerUnavailable, TimeoutError) as error:
            log.warning("bindings could not be restored: %s", error)

    async def rebind(self) -> None:
        """Make the bindings again of durable subscriptions that we serve, in case somebody removed them."""
        for consumer in list(self.consumers):
            if (spec := self._durable.get(consumer.name)) is not None and consumer.served.is_set():
                declared = self._declared_durable(spec.name)
                bindings = self._topology.bindings(declared.queue, spec.patterns, return_key=declared.return_key)
                await self._control.run(bindings, STEP_SECONDS)

    # Steps

    async def _declare_durable(self, spec: SubscriptionSpec, connection: AbstractConnection) -> None:
        declared = self._declared_durable(spec.name)
        earlier = (await self._registry.read(connection)).get(spec.name)
        async with opened(connection) as channel:
            await apply(channel, [self._topology.subscription(spec.name)])
            if earlier is None or set(earlier.patterns) != set(spec.patterns):
                if earlier is not None:
                    await self._refuse_if_served(spec, earlier, connection)
                # Before any binding is made, so that every binding is in some record.
                await self._registry.write(connection, spec.name, spec.patterns, self.session)
                await self.announce()
            await apply(channel, self._topology.bindings(declared.queue, spec.patterns, return_key=declared.return_key))
            for pattern in sorted((earlier.ever if earlier is not None else frozenset[str]()) - set(spec.patterns)):
                await unbind(channel, Binding(queue=declared.queue, exchange=self._topology.signals, key=pattern))
        self._durable[spec.name] = spec

    async def _refuse_if_served(
        self, spec: SubscriptionSpec, earlier: Registered, connection: AbstractConnection
    ) -> None:
        async with opened(connection) as channel:
            seen = await counts(channel, self._topology.queue(spec.name))
        if seen is not None and seen.consumers:
            raise ConfigError(
                f"subscription {spec.name!r} is served by {seen.consumers} others with the patterns "
                f"{', '.join(earlier.patterns)}, not {', '.join(spec.patterns)}; stop them first, "
                "or choose another name"
            )

    async def _declare_temporary(self, spec: SubscriptionSpec, connection: AbstractConnection) -> None:
        known = self._temporary.get(spec.name)
        if known is not None and known.connection is connection:
            queue = known.queue
        else:
            queue = self._topology.temporary_queue(spec.name, secrets.token_hex(6))
        async with opened(connection) as channel:
            await apply(channel, [self._topology.temporary(queue)])
            key = self._return_key(spec.name)
            await apply(channel, self._topology.bindings(queue, spec.patterns, return_key=key))
            if known is not None and known.queue == queue:
                for pattern in set(known.spec.patterns) - set(spec.patterns):
                    await unbind(channel, Binding(queue=queue, exchange=self._topology.signals, key=pattern))
        self._temporary[spec.name] = _Temporary(spec, queue, connection)

    async def _registered(self, name: str) -> SubscriptionSpec:
        """Return a subscription that another process has declared."""
        try:
            connection = await self._control.link.wait_up(asyncio.get_running_loop().time() + STEP_SECONDS)
            entry = (await self._registry.read(connection)).get(name)
        except DriverFailure as failure:
            raise self._control.error(failure) from failure
        if entry is None:
            raise ConfigError(f"there is no subscription {name!r}; declare it before serving it")
        return SubscriptionSpec(name=name, patterns=entry.patterns)

    async def _add(
        self, found: list[QueueInfo], connection: AbstractConnection, queue: str, spec: SubscriptionSpec
    ) -> None:
        try:
            async with opened(connection) as channel:
                seen = await counts(channel, queue)
        except DriverFailure:
            if spec.durable:
                raise
            return  # it went with its connection, and will be made again
        if seen is not None:
            found.append(
                QueueInfo(
                    name=spec.name,
                    patterns=spec.patterns,
                    durable=spec.durable,
                    ready=seen.ready,
                    unsettled=None,
                    delayed=None,
                    consumers=seen.consumers,
                )
            )

    def _declared_durable(self, name: str) -> Declared:
        queue = self._topology.queue(name)
        counted = self._topology.queue_type == "quorum"
        return Declared(name=name, queue=queue, return_key=queue, durable=True, counted=counted)

    def _declared_temporary(self, name: str) -> Declared:
        queue = self._temporary[name].queue
        return Declared(name=name, queue=queue, return_key=self._return_key(name), durable=False, counted=False)

    def _return_key(self, name: str) -> str:
        # The same for every incarnation of the queue, so that delayed retries find the present one.
        return self._topology.temporary_queue(name, self.session)


async def _nobody() -> None:
    """Tell nobody."""
