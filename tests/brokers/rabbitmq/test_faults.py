"""What happens to a node: killed, stopped, suspended, starved. Long rows of the fault matrix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from signalbus.brokers.base import BrokerState, PublishResult, SubscriptionSpec
from signalbus.brokers.rabbitmq import RabbitBroker
from signalbus.delivery import ACK
from signalbus.errors import Backpressure, BrokerError
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    FAST,
    TIMEOUT,
    Brokers,
    Sink,
    publish,
    publish_until_stored,
    receive,
    signal,
    wait_up,
)
from tests.support import eventually

pytestmark = pytest.mark.slow


async def settled() -> None:
    """Wait until a killed node would remember its queues.

    RabbitMQ 3.10 saves the directory of quorum queues half a second after a change. Killed before that it finds the
    queue in its schema but not its log: what was confirmed is lost, and the queue never elects a leader.
    """
    await asyncio.sleep(3)


class Load:
    """Publishes one signal after the other from several tasks, each until it is stored."""

    def __init__(self, broker: RabbitBroker, writers: int = 10) -> None:
        self.stored: set[object] = set()
        self._broker = broker
        self._number = 0
        self._stopped = False
        self._tasks = [asyncio.create_task(self._run()) for _ in range(writers)]

    async def _run(self) -> None:
        while not self._stopped:
            self._number += 1
            number = self._number
            await publish_until_stored(self._broker, signal(number), 120)
            self.stored.add(number)

    async def wait_stored(self, count: int, timeout: float = 60.0) -> None:
        """Wait until so many more are stored."""
        goal = len(self.stored) + count
        await eventually(lambda: len(self.stored) >= goal, timeout)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


async def _all_arrive(load: Load, sink: Sink) -> None:
    await load.stop()
    await eventually(lambda: load.stored <= set(sink.numbers), 60, message="an acknowledged signal is lost")


def _nothing_died(broker: RabbitBroker) -> None:
    assert broker.health().counters.get("tasks_restarted", 0) == 0, broker.health()


@pytest.fixture
async def node_brokers(fault_node: PrivateNode) -> AsyncIterator[Brokers]:
    brokers = Brokers(await fault_node.vhost())
    yield brokers
    await brokers.aclose()


@pytest.mark.parametrize("kill", [True, False])
async def test_rows_1_and_2_a_restarted_node_loses_nothing(
    node_brokers: Brokers, fault_node: PrivateNode, queue_type: str, kill: bool
) -> None:
    broker = await node_brokers.open(options=f"{FAST}&queue_type={queue_type}")
    sink = node_brokers.sink(await node_brokers.serve(broker, prefetch=50))
    await settled()
    load = Load(broker)
    await load.wait_stored(200)
    await fault_node.restart(kill=kill)
    started = time.monotonic()
    await wait_up(broker, 3 * 4 + 5)
    await load.wait_stored(200)
    assert time.monotonic() - started < 3 * 4 + 5 + 15
    await _all_arrive(load, sink)
    _nothing_died(broker)


async def test_row_3_a_pause_below_the_heartbeat_costs_no_connection(
    node_brokers: Brokers, fault_node: PrivateNode
) -> None:
    broker = await node_brokers.open(options="heartbeat=10&silent_after=3")
    sink = node_brokers.sink(await node_brokers.serve(broker, prefetch=50))
    load = Load(broker)
    await load.wait_stored(100)
    fault_node.suspend()
    await asyncio.sleep(5)
    fault_node.resume()
    await load.wait_stored(100)
    await _all_arrive(load, sink)
    assert broker.health().counters["reconnects"] == 0
    _nothing_died(broker)


async def test_row_4_a_pause_over_three_heartbeats_loses_nothing_and_cancels_nobody(
    node_brokers: Brokers, fault_node: PrivateNode
) -> None:
    broker = await node_brokers.open(options="heartbeat=2&backoff_cap=1&silent_after=3")
    sink = node_brokers.sink(await node_brokers.serve(broker, prefetch=50))
    load = Load(broker)
    await load.wait_stored(100)
    fault_node.suspend()
    await eventually(lambda: broker.health().state is BrokerState.CONNECTING, 3 * (2 + 1) + 5)
    await asyncio.sleep(2)
    fault_node.resume()
    await wait_up(broker)
    await load.wait_stored(100)
    await _all_arrive(load, sink)
    _nothing_died(broker)


async def test_closing_while_the_broker_is_suspended_takes_a_few_seconds(
    node_brokers: Brokers, fault_node: PrivateNode
) -> None:
    broker = await node_brokers.open()
    consumer = await node_brokers.serve(broker)
    await publish(broker, signal(1))
    await receive(consumer)
    fault_node.suspend()
    started = time.monotonic()
    await broker.aclose()
    took = time.monotonic() - started
    fault_node.resume()
    assert took < 10


async def test_row_15_a_black_hole_is_noticed_within_three_heartbeats(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url), "heartbeat=2&backoff_cap=1")
    consumer = await brokers.serve(broker)
    proxy.black_hole()
    started = time.monotonic()
    await eventually(lambda: broker.health().state is BrokerState.CONNECTING, 30)
    assert time.monotonic() - started < 3 * (2 + 1) + 2
    await proxy.heal()
    await wait_up(broker)
    assert await publish(broker, signal(1)) == [PublishResult.CONFIRMED]
    assert await receive(consumer)
    _nothing_died(broker)


async def test_row_22_two_hundred_clients_come_back_spread_out(fault_node: PrivateNode) -> None:
    brokers = Brokers(await fault_node.vhost())
    try:
        opened = [await brokers.open(options="backoff_cap=5") for _ in range(67)]  # three connections each
        await opened[0].declare(SubscriptionSpec(name="work", patterns=("#",)), TIMEOUT)
        await settled()
        await fault_node.restart(kill=True)
        async with asyncio.timeout(60):
            await asyncio.gather(*(wait_up(broker, 60) for broker in opened))
        await asyncio.gather(*(publish_until_stored(broker, signal(1)) for broker in opened))
        for broker in opened:
            _nothing_died(broker)
    finally:
        await brokers.aclose()


ALARMS = {
    "memory": (
        "vm_memory_monitor:set_vm_memory_high_watermark(0.00001)",
        "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 2000000000})",
    ),
    "disk": (
        "rabbit_disk_monitor:set_disk_free_limit(1000000000000000)",
        "rabbit_disk_monitor:set_disk_free_limit(50000000)",
    ),
}


@pytest.mark.parametrize("alarm", ALARMS)
async def test_rows_25_and_26_an_alarm_blocks_publishers_and_not_subscribers(
    node_brokers: Brokers, fault_node: PrivateNode, alarm: str
) -> None:
    """40 s with heartbeat 4: longer than the driver's patience with a connection that queues its heartbeats."""
    begin, end = ALARMS[alarm]
    broker = await node_brokers.open(options="heartbeat=4&backoff_cap=1&silent_after=3")
    consumer = await node_brokers.serve(broker, prefetch=5)
    assert set(await publish(broker, *[signal(number) for number in range(100)])) == {PublishResult.CONFIRMED}
    stored = set(range(100))
    await fault_node.eval(begin)
    started = time.monotonic()
    unsure: list[int] = []
    number = 100
    while broker.health().state is not BrokerState.BLOCKED:
        assert time.monotonic() - started < 15
        number += 1
        (result,) = await publish(broker, signal(number), timeout=0.5)
        (unsure.append if result is PublishResult.UNKNOWN else stored.add)(number)
    assert "alarm" in broker.health().reason
    # Consumers drain all the same.
    got: set[object] = set()
    for incoming in await receive(consumer, 5):
        assert await consumer.settle(incoming, ACK)
    sink = node_brokers.sink(consumer)
    await eventually(lambda: len(sink.got) >= 95, 20)
    # Calls end at their deadline, and say why.
    while time.monotonic() - started < 40:
        before = time.monotonic()
        with pytest.raises(Backpressure, match="alarm"):
            await broker.publish([signal(-1)], 1.0)
        assert time.monotonic() - before < 2.0
    # A publish that waits is stored once the alarm is over.
    waiting = asyncio.create_task(publish(broker, signal(1000), timeout=30))
    await fault_node.eval(end)
    assert await waiting == [PublishResult.CONFIRMED]
    assert broker.health().state is BrokerState.UP
    stored.add(1000)
    got |= set(range(5)) | set(sink.numbers)
    await eventually(lambda: stored <= (set(range(5)) | set(sink.numbers)), 20)
    assert broker.health().counters["reconnects"] == 0
    _nothing_died(broker)


async def test_a_retry_during_an_alarm_waits_and_is_not_lost(node_brokers: Brokers, fault_node: PrivateNode) -> None:
    from datetime import timedelta

    from signalbus.delivery import RetryLater

    broker = await node_brokers.open()
    consumer = await node_brokers.serve(broker)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    begin, end = ALARMS["memory"]
    await fault_node.eval(begin)
    settling = asyncio.create_task(consumer.settle(incoming, RetryLater(timedelta(seconds=1), ())))
    await asyncio.sleep(3)
    assert not settling.done()
    await fault_node.eval(end)
    assert await settling
    (again,) = await receive(consumer)
    assert again.attempt == 2


async def test_row_12_a_wiped_vhost_is_furnished_again(node_brokers: Brokers, fault_node: PrivateNode) -> None:
    broker = await node_brokers.open()
    consumer = await node_brokers.serve(broker)
    watch = await node_brokers.serve(broker, "watch", "order.*", durable=False)
    assert await publish(broker, signal(1)) == [PublishResult.CONFIRMED]
    await receive(consumer)
    name = node_brokers.url.rpartition("/")[2]
    await fault_node.delete_vhost(name)
    await eventually(lambda: broker.health().state is BrokerState.DEGRADED)
    with pytest.raises(BrokerError):
        await broker.publish([signal(2)], 0.5)
    await fault_node.vhost(name)
    await wait_up(broker)
    await eventually(lambda: not broker.health().warnings, message=str(broker.health()))
    await publish_until_stored(broker, signal(3))
    assert await receive(consumer)
    assert await watch.receive()
    _nothing_died(broker)
