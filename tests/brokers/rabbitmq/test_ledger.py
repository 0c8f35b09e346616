"""Facts at RabbitMQ: sent beside signals, waiting in a bounded queue, collected into a store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands

from signalbus.brokers.rabbitmq import collector, ledger
from signalbus.brokers.rabbitmq.arrivals import Arrivals, Read
from signalbus.brokers.rabbitmq.broker import RabbitBroker
from signalbus.brokers.rabbitmq.collector import CollectorState
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
async def collecting(
    broker: RabbitBroker, store: Callable[[Sequence[Batch]], object]
) -> AsyncIterator[collector.Collector]:
    collects = broker.collector(store)
    task = asyncio.create_task(collects.run())
    try:
        yield collects
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def reached(collects: collector.Collector, state: CollectorState, timeout: float = 15.0) -> None:
    await eventually(lambda: collects.state is state, timeout, message=f"{collects.state} instead of {state}")


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


async def test_a_batch_on_which_the_store_stumbles_holds_up_no_other(
    brokers: Brokers, raw: AbstractChannel, caplog: pytest.LogCaptureFixture
) -> None:
    broker, kept = await brokers.open(), Kept()

    def stumble(batches: Sequence[Batch]) -> None:
        if batch(7) in batches:
            raise OverflowError("a bug of ours")
        kept(batches)

    broker.append([batch(number) for number in range(20)])
    await wait_until(lambda: _has_ready(raw, 20))
    async with collecting(broker, stumble):
        await wait_until(lambda: _is_empty(raw))
        await eventually(lambda: len(kept.signals) == 19)
    assert kept.signals == named(*(number for number in range(20) if number != 7))
    health = broker.health()
    assert (health.counters["facts_unreadable"], health.counters.get("collections_lost", 0)) == (1, 0)
    assert "cannot be stored and are dropped" in caplog.text


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


# Several routers


async def test_of_two_collectors_one_stores_and_the_other_follows_it(brokers: Brokers) -> None:
    teller, first, second = await brokers.open(), Kept(), Kept()
    async with collecting(await brokers.open(), second) as follower:
        async with collecting(await brokers.open(), first) as leader:
            states = {CollectorState.ACTIVE, CollectorState.STANDBY}
            await eventually(lambda: {leader.state, follower.state} == states)
            if follower.state is CollectorState.ACTIVE:  # whoever came first
                first, second = second, first
            teller.append([batch(number) for number in range(100)])
            await eventually(lambda: first.signals == named(*range(100)))
            assert second.signals == []
            states_before = leader.state, follower.state
            await asyncio.sleep(2 * collector.PROBE_SECONDS)  # probes go on, and change nothing
            assert (leader.state, follower.state) == states_before
        await reached(follower, CollectorState.ACTIVE)
        teller.append([batch(number) for number in range(100, 200)])
        await eventually(lambda: {*first.signals, *second.signals} == set(named(*range(200))))


async def test_who_loses_the_broker_loses_its_turn_and_follows_afterwards(brokers: Brokers, proxy: FaultProxy) -> None:
    teller, first, second = await brokers.open(), Kept(), Kept()
    async with collecting(await brokers.open(proxy.url_for(brokers.url)), first) as leader:
        await reached(leader, CollectorState.ACTIVE)
        async with collecting(await brokers.open(), second) as follower:
            await reached(follower, CollectorState.STANDBY)
            proxy.cut()
            teller.append([batch(1)])
            await eventually(lambda: second.signals == named(1))
            assert follower.state is CollectorState.ACTIVE
            await reached(leader, CollectorState.STANDBY, 30)
            assert first.signals == []


async def test_a_store_in_trouble_hands_its_turn_over(brokers: Brokers) -> None:
    teller, bad, good = await brokers.open(), Kept(trouble=1_000), Kept()
    async with collecting(await brokers.open(), bad) as leader:
        await reached(leader, CollectorState.ACTIVE)
        async with collecting(await brokers.open(), good) as follower:
            await reached(follower, CollectorState.STANDBY)
            teller.append([batch(number) for number in range(20)])
            await eventually(lambda: good.signals == named(*range(20)))
            assert follower.state is CollectorState.ACTIVE


async def test_who_is_asked_to_stop_stores_and_acknowledges_what_it_took(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    broker, kept, storing, go_on = await brokers.open(), Kept(), threading.Event(), threading.Event()

    def slowly(batches: Sequence[Batch]) -> None:
        storing.set()
        assert go_on.wait(10)
        kept(batches)

    broker.append([batch(number) for number in range(50)])
    await wait_until(lambda: _has_ready(raw, 50))
    async with collecting(broker, slowly):
        assert await asyncio.to_thread(storing.wait, 10)
        await wait_until(lambda: _has_ready(raw, 0))
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert kept.signals == named(*range(50))
    await broker.aclose()
    assert await _has_ready(raw, 0)


async def _has_ready(raw: AbstractChannel, count: int) -> bool:
    return (await raw.queue_declare(QUEUE, passive=True)).message_count == count


async def test_an_active_collector_that_gets_nothing_begins_anew(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Arrivals] = []

    def remembered(channel: AbstractChannel, read: Read) -> Arrivals:
        made.append(Arrivals(channel, read))
        return made[-1]

    monkeypatch.setattr(collector, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(collector, "Arrivals", remembered)
    broker, kept = await brokers.open(), Kept()
    async with collecting(broker, kept) as collects:
        await reached(collects, CollectorState.ACTIVE)
        # Behind its back, as a lost Basic.Consume would leave it.
        await made[0]._channel.basic_cancel(made[0]._tag)
        broker.append([batch(1)])
        await eventually(lambda: kept.signals == named(1))
    assert broker.health().counters["consumers_recycled"] == 1
