"""Removing all that was made under a prefix, once nobody uses it: for programs that made one for themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from aiormq.abc import AbstractChannel, AbstractConnection

from ...config import RabbitUrl
from ...errors import BrokerUnavailable
from .connection import Link
from .control import opened
from .delays import LONGEST_STEP
from .driver import DriverFailure, call
from .tasks import Keeper
from .topology import Declaration, Exchange, Queue, Topology

STEP_SECONDS = 10.0


async def remove(url: RabbitUrl, subscriptions: Sequence[str], timeout: float) -> None:
    """Delete the exchanges and queues of a prefix, and those of the named subscriptions, with all that is in them.

    What is not there is passed over. Raises `BrokerUnavailable` if not all of it could be deleted.
    """
    counters = Counter[str]()
    link = Link(url, "removal", counters, lambda: None, _prepare)
    keeper = Keeper(counters)
    keeper.keep("removal link", link.run)
    try:
        async with asyncio.timeout(timeout):
            connection = await link.wait_up(asyncio.get_running_loop().time() + timeout)
            async with opened(connection) as channel:
                await _delete(channel, _declared(Topology(url.prefix, url.queue_type), subscriptions))
    except (TimeoutError, DriverFailure) as error:
        raise BrokerUnavailable(
            f"not all that begins with {url.prefix!r} could be removed from {link.server}: {error}"
        ) from error
    finally:
        await keeper.aclose()


async def _prepare(connection: AbstractConnection) -> None:
    """Nothing is needed on it."""


def _declared(topology: Topology, subscriptions: Sequence[str]) -> list[Declaration]:
    steps = [2**power for power in range(LONGEST_STEP.bit_length())]
    return [
        *(topology.subscription(name) for name in subscriptions),
        *(declaration for step in steps for declaration in topology.delay_step(step)),
        topology.registry_stream(),
        *topology.base(),
    ]


async def _delete(channel: AbstractChannel, declared: Iterable[Declaration]) -> None:
    """Delete queues before the exchanges they hang on."""
    found = list(declared)
    for queue in found:
        if isinstance(queue, Queue):
            await call(channel.queue_delete(queue.name), STEP_SECONDS)
    for exchange in found:
        if isinstance(exchange, Exchange):
            await call(channel.exchange_delete(exchange.name), STEP_SECONDS)
