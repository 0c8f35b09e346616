"""Facts at RabbitMQ: sent beside signals, waiting in a bounded queue, collected into a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands

from signalbus.brokers.rabbitmq import ledger
from signalbus.brokers.rabbitmq.broker import RabbitBroker
from signalbus.errors import StorageError
from signalbus.ledger import Batch, Origin
from signalbus.testing.proxy import FaultProxy
from tests.brokers.rabbitmq.conftest import Brokers
from tests.brokers.world import wait_until
from tests.support import eventually

pytestmark = pytest.mark.rabbitmq
QUEUE = "signalbus.ledger"


def batch(number: int) -> Batch:
    row = ("acked", 1.0 + number, f"signal-{number}", "order.placed", "billing")
    return Batch(origin=Origin(recorder="r", session="s"), first=number + 1, rows=[row])


class Kept:
    """A store in memory that may have trouble at first."""

    def __init__(self, trouble: int = 0) -> None:
        self.signals: list[object] = []
        self.trouble = trouble

    def __call__(self, batches: Sequence[Batch]) -> None:
        if self.trouble:
            self.trouble -= 1
            raise StorageError("the disk is full")
        self.signals += [row[2] for each in batches for row in each.rows]


@asynccontextmanager
async def collecting(broker: RabbitBroker, store: Callable[[Sequence[Batch]], object]) -> AsyncIterator[None]:
    task = asyncio.create_task(broker.collect(store))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def named(*numbers: int) -> list[str]:
    return [f"signal-{number}" for number in numbers]


async def test_facts_wait_for_a_router_that_is_away(brokers: Brokers, raw: AbstractChannel) -> None:
    teller = await brokers.open()
    teller.append([batch(number) for number in range(100)])
    await teller.aclose()
    assert (await raw.queue_declare(QUEUE, passive=True)).message_count == 100
    kept = Kept()
    async with collecting(await brokers.open(), kept):
        await eventually(lambda: len(kept.signals) >= 100)
    assert kept.signals == named(*range(100))
    await wait_until(lambda: _is_empty(raw))


async def _is_empty(raw: AbstractChannel) -> bool:
    return (await raw.queue_declare(QUEUE, passive=True)).message_count == 0


async def test_what_a_store_cannot_take_comes_again(brokers: Brokers) -> None:
    broker, kept = await brokers.open(), Kept(trouble=2)
    async with collecting(broker, kept):
        broker.append([batch(number) for number in range(20)])
        await eventually(lambda: set(kept.signals) == set(named(*range(20))))
    assert broker.health().counters["collections_lost"] >= 2


async def test_a_message_that_holds_no_facts_is_dropped_and_counted(brokers: Brokers, raw: AbstractChannel) -> None:
    broker, kept = await brokers.open(), Kept()
    await raw.basic_publish(b"{}", routing_key=QUEUE, properties=commands.Basic.Properties(delivery_mode=2))
    broker.append([batch(1)])
    async with collecting(broker, kept):
        await eventually(lambda: kept.signals == named(1))
        await wait_until(lambda: _is_empty(raw))
    assert broker.health().counters["facts_unreadable"] == 1


async def test_collecting_and_telling_survive_the_loss_of_the_connection(brokers: Brokers, proxy: FaultProxy) -> None:
    broker, kept = await brokers.open(proxy.url_for(brokers.url)), Kept()
    async with collecting(broker, kept):
        broker.append([batch(1)])
        await eventually(lambda: kept.signals == named(1))
        proxy.cut()
        broker.append([batch(2)])
        await eventually(lambda: "signal-2" in kept.signals, 30)


async def test_facts_beyond_the_bound_are_dropped_the_oldest_first(
    brokers: Brokers, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WAITING_BYTES", 2_000)
    broker = await brokers.open(proxy.url_for(brokers.url))
    await proxy.refuse()
    proxy.cut()
    broker.append([batch(number) for number in range(100)])
    dropped = broker.health().counters["facts_dropped"]
    assert 50 < dropped < 100
    await proxy.heal()
    kept = Kept()
    async with collecting(await brokers.open(), kept):
        await eventually(lambda: kept.signals == named(*range(dropped, 100)), 30)
