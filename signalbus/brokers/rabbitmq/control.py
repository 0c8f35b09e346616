"""Questions and orders about topology, on a connection apart.

Each runs on a channel of its own that is thrown away: a refused one closes its channel, and with other work in
flight on the connection the broker would close that as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp.common import FieldTable

from ...errors import BrokerUnavailable, ConfigError
from .connection import Link
from .driver import NOT_FOUND, REFUSALS, DriverFailure, call, close_quietly
from .topology import Binding, Declaration, Exchange, Queue, Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0  # one declaration; a cluster without majority answers none
NO_QUEUE = "no queue '"  # as RabbitMQ words it, from 3.10 to 4.x
#: At the same time. The driver has room for ten frames, and drops its answer to a refusal when there is none: the
#: broker then closes the connection (504) when the number of the channel is used again.
CHANNELS = 4


class Counts:
    """What a passive declare tells of a queue."""

    __slots__ = ("consumers", "ready")

    def __init__(self, ready: int, consumers: int) -> None:
        self.ready = ready
        self.consumers = consumers


class Control:
    """Declares and asks over the control link. ``refused`` says what the broker refuses us, while it does."""

    def __init__(self, topology: Topology, counters: Counter[str]) -> None:
        self.topology = topology
        self.refused: str | None = None
        self._counters = counters
        self._link: Link | None = None
        self._steps: set[int] = set()
        self._few = asyncio.Semaphore(CHANNELS)

    def attach(self, link: Link) -> None:
        """Use this link from now on."""
        self._link = link

    @property
    def link(self) -> Link:
        """The control link."""
        assert self._link is not None
        return self._link

    async def prepare(self, connection: AbstractConnection) -> None:
        """Make the base topology on a new connection. A refusal degrades us; anything else loses the connection."""
        self._steps.clear()  # the broker may be another one, or have lost them
        await self._base(connection)

    async def recheck(self, timeout: float) -> None:
        """Try again what the broker refused."""
        connection = await self.link.wait_up(asyncio.get_running_loop().time() + timeout)
        await self._base(connection)

    async def _base(self, connection: AbstractConnection) -> None:
        try:
            async with opened(connection) as channel:
                await apply(channel, self.topology.base())
        except DriverFailure as failure:
            if failure.code not in REFUSALS:
                raise
            self.refused = failure.reason
            self._counters["topology_refused"] += 1
            log.error("RabbitMQ refuses our topology: %s", failure.reason)
        else:
            self.refused = None

    @asynccontextmanager
    async def channel(self, timeout: float) -> AsyncGenerator[AbstractChannel]:
        """Open a channel to throw away. Raises `BrokerUnavailable`; `DriverFailure` comes from what runs on it."""
        async with self._few:
            connection = await self.link.wait_up(asyncio.get_running_loop().time() + timeout)
            async with opened(connection) as channel:
                yield channel

    async def run(self, declarations: Sequence[Declaration], timeout: float) -> None:
        """Make declarations. Raises `ConfigError` when refused, `BrokerUnavailable` when not answered."""
        try:
            async with asyncio.timeout(timeout), self.channel(timeout) as channel:
                await apply(channel, declarations)
        except DriverFailure as failure:
            raise self.error(failure) from failure
        except TimeoutError as error:
            raise BrokerUnavailable(self.link.trouble(f"no answer within {timeout:.1f} s")) from error

    async def repair(self, timeout: float) -> None:
        """Make the base topology again, after something of it was missing. What fails shows later."""
        self._counters["topology_repairs"] += 1
        self._steps.clear()
        try:
            await self.run(self.topology.base(), timeout)
        except (BrokerUnavailable, ConfigError) as error:
            log.warning("the topology could not be repaired: %s", error)

    async def ensure_step(self, seconds: int, timeout: float) -> None:
        """Make one step of the delay ladder, once a connection."""
        if seconds not in self._steps:
            await self.run(self.topology.delay_step(seconds), timeout)
            self._steps.add(seconds)

    async def counts(self, queue: str, timeout: float) -> Counts | None:
        """Return what a queue holds; None if it is not there."""
        try:
            async with asyncio.timeout(timeout), self.channel(timeout) as channel:
                return await counts(channel, queue)
        except DriverFailure as failure:
            raise self.error(failure) from failure
        except TimeoutError as error:
            raise BrokerUnavailable(self.link.trouble(f"no answer within {timeout:.1f} s")) from error

    async def exists(self, queue: str, timeout: float) -> bool:
        """Tell whether there is a queue of that name. Raises `BrokerUnavailable` also while it cannot be reached."""
        try:
            async with asyncio.timeout(timeout), self.channel(timeout) as channel:
                await call(channel.queue_declare(queue, passive=True), STEP_SECONDS)
        except DriverFailure as failure:
            # A queue whose node is down, or that has crashed, is not found either, and says so with other words.
            if failure.code == NOT_FOUND and NO_QUEUE in failure.reason:
                return False
            raise self.error(failure) from failure
        except TimeoutError as error:
            raise BrokerUnavailable(self.link.trouble(f"no answer within {timeout:.1f} s")) from error
        return True

    def error(self, failure: DriverFailure) -> BrokerUnavailable | ConfigError:
        """Return the error that a failure on the control link means to our callers."""
        if failure.code in REFUSALS:
            return ConfigError(f"RabbitMQ at {self.link.server} refuses: {failure.reason}")
        return BrokerUnavailable(self.link.trouble(failure.reason))


@asynccontextmanager
async def opened(connection: AbstractConnection) -> AsyncGenerator[AbstractChannel]:
    """Open a channel for a few calls, and close it."""
    channel = await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
    try:
        yield channel
    finally:
        if not channel.is_closed:
            await close_quietly(channel.close())


async def apply(channel: AbstractChannel, declarations: Sequence[Declaration]) -> None:
    """Make declarations in order. Raises `DriverFailure`."""
    for declaration in declarations:
        await _declare(channel, declaration)


async def unbind(channel: AbstractChannel, binding: Binding) -> None:
    """Remove a binding; that it is not there is fine."""
    await call(channel.queue_unbind(binding.queue, binding.exchange, binding.key), STEP_SECONDS)


async def counts(channel: AbstractChannel, queue: str) -> Counts | None:
    """Return what a queue holds; None if it is not there, which closes the channel."""
    try:
        answer = await call(channel.queue_declare(queue, passive=True), STEP_SECONDS)
    except DriverFailure as failure:
        if failure.code == NOT_FOUND:
            return None
        raise
    return Counts(answer.message_count or 0, answer.consumer_count or 0)


async def _declare(channel: AbstractChannel, declaration: Declaration) -> None:
    match declaration:
        case Exchange():
            await call(
                channel.exchange_declare(
                    declaration.name,
                    exchange_type=declaration.kind,
                    durable=True,
                    arguments=cast("FieldTable", dict(declaration.arguments)),
                ),
                STEP_SECONDS,
            )
        case Queue():
            await call(
                channel.queue_declare(
                    declaration.name,
                    durable=not declaration.exclusive,
                    exclusive=declaration.exclusive,
                    auto_delete=declaration.auto_delete,
                    arguments=cast("FieldTable", dict(declaration.arguments)),
                ),
                STEP_SECONDS,
            )
        case Binding():
            await call(channel.queue_bind(declaration.queue, declaration.exchange, declaration.key), STEP_SECONDS)
