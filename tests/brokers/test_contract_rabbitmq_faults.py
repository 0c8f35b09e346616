"""Faults of RabbitMQ and of the way to it, at the bus: what was confirmed arrives, and the bus comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from signalbus import BrokerUnavailable, Bus, ConfigError, Delivery, PublishUnconfirmed, Retry, Signal, Unroutable
from signalbus.errors import Backpressure
from signalbus.testing.ports import free_port
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers import contract
from tests.brokers.conftest import RABBITMQ_OPTIONS
from tests.brokers.world import Inbox, World, wait_acked, wait_until
from tests.faults.history import History
from tests.faults.nemesis import MEMORY_ALARM, close_connections
from tests.support import eventually

pytestmark = pytest.mark.rabbitmq

QUORUM = pytest.mark.parametrize("broker", ["rabbitmq-quorum"])
BOTH = pytest.mark.parametrize("broker", ["rabbitmq-quorum", "rabbitmq-classic"])
LINKS = 3  # connections of one bus


@pytest.fixture
async def world(fault_node: PrivateNode, rabbitmq_options: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world whose node may be harmed."""
    world = World(f"{await fault_node.vhost()}?{rabbitmq_options}", tmp_path, fault_node)
    yield world
    await world.aclose()


@dataclass
class Traffic:
    """A publisher and a subscriber, each a bus of its own, with publishes always in flight."""

    history: History
    inbox: Inbox
    publisher: Bus
    subscriber: Bus
    stop: asyncio.Event

    async def end(self, world: World) -> None:
        """Stop publishing, wait until all has come to rest, and check S1, S2, S4 and L1."""
        self.stop.set()
        await eventually(lambda: self.history.ok <= set(self.inbox.data), 30, message="S1: every stored signal")
        await world.wait_empty(self.subscriber, "work", timeout=30)
        self.history.check(self.inbox.data)
        assert self.history.slowest < 1, "L1"
        # S6: nothing was given up on the way.
        assert await self.subscriber.broker.dead_letters(10, 5) == []


@asynccontextmanager
async def traffic(world: World, *, url: str | None = None, publishers: int = 8) -> AsyncIterator[Traffic]:
    history, inbox, stop = History(), Inbox(), asyncio.Event()
    async with AsyncExitStack() as stack:
        subscriber = world.bus(url)
        subscriber.subscribe("work.#", handler=inbox, name="work", concurrency=4)
        publisher = world.bus(url)
        await stack.enter_async_context(subscriber)
        await stack.enter_async_context(publisher)
        running = Traffic(history, inbox, publisher, subscriber, stop)
        tasks = [asyncio.create_task(history.keep_publishing(publisher, stop)) for _ in range(publishers)]
        try:
            await history.wait_ok(50)
            yield running
        finally:
            stop.set()
            # L3: a publisher that ended early ended with an error, which is the test's.
            await asyncio.gather(*tasks)


def node_of(world: World) -> PrivateNode:
    assert world.node is not None
    return world.node


# Rows 1, 2 and 9: the broker goes away


async def restart_in_load(world: World, *, kill: bool) -> None:
    late = Inbox(retry_once)
    async with world.serving("late", handler=late, name="late") as other, traffic(world) as running:
        # Once there and back before the kill: RabbitMQ 3.10 notes a new quorum queue on disk only after a second,
        # and a kill within it loses the queue with what was confirmed into it.
        await other.publish("late", "early")
        await late.wait(2)
        await other.publish("late", "delayed")
        await eventually(lambda: other.subscriptions()[0].stats().retried == 2)
        await node_of(world).restart(kill=kill)
        # L2: no traffic of ours wakes it up but the publishers that waited.
        await running.history.wait_ok(100, 15)
        # A retry that waited at the broker is there again; so is the original, if its ack was lost.
        await eventually(
            lambda: ("delayed", 2) in [(data, delivery.attempt) for data, delivery in late.got], 15, message="the retry"
        )
        await running.inbox.wait(len(running.inbox.got) + 100)
        await running.end(world)
        assert running.history.repeated or running.history.info


def retry_once(data: object, delivery: Delivery) -> None:
    if delivery.attempt == 1:
        raise Retry(delay=timedelta(seconds=2))


@QUORUM
async def test_every_confirmed_signal_survives_a_kill_of_the_broker(broker: str, world: World) -> None:
    await restart_in_load(world, kill=True)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("kill", [True, False], ids=["kill", "stop"])
async def test_every_confirmed_signal_survives_a_restart(broker: str, kill: bool, world: World) -> None:
    await restart_in_load(world, kill=kill)


@pytest.mark.slow
@QUORUM
async def test_a_bus_that_opens_before_its_broker_waits_for_it(broker: str, world: World) -> None:
    await node_of(world).stop()
    bus = world.bus(connect_timeout=40.0)
    inbox = Inbox()
    bus.subscribe("#", handler=inbox, name="work")
    opening = asyncio.create_task(bus.open())
    await eventually(lambda: bus.stats().broker.state == "connecting", 5)
    assert bus.stats().broker.reason  # L5
    await node_of(world).start()
    await opening
    await bus.publish("a", 1)
    assert await inbox.wait(1) == [1]


# Rows 13 to 17: connections are lost


@BOTH
async def test_connections_closed_by_the_broker_in_load_lose_nothing(broker: str, world: World) -> None:
    async with traffic(world) as running:
        tasks = len(asyncio.all_tasks())
        for _ in range(10):
            await close_connections(world)
            await running.history.wait_ok(20, 15)
        await running.inbox.wait(len(running.inbox.got) + 20)
        # L4: as many connections and tasks as at the start.
        await wait_until(lambda: connection_count(world, 2 * LINKS), 10)
        # What is in flight varies; ten reconnections of six connections that leak one each do not hide in it.
        await eventually(lambda: len(asyncio.all_tasks()) < tasks + 20, 10, message="as few tasks as before")
        await running.end(world)
        assert running.subscriber.stats().broker.counters["reconnects"] >= 10


async def connection_count(world: World, expected: int) -> bool:
    return int(await node_of(world).eval("length(rabbit_networking:connections())")) == expected


@QUORUM
async def test_a_publish_during_a_reconnection_keeps_its_id(broker: str, world: World) -> None:
    async with FaultProxy(world.url) as proxy, world.serving("#", handler=(inbox := Inbox())):
        publisher = world.bus(proxy.url_for(world.url))
        async with publisher:
            # Cut inside the frames of a big body, and answers are lost too: the outcome is unknown.
            proxy.cut_after(200_000, 400_000)
            signals = [Signal(type="a", data="x" * 30_000) for _ in range(40)]
            publishing = asyncio.create_task(publisher.publish_many(signals, timeout=20))
            await proxy.wait_connections_total(LINKS + 1)
            await proxy.heal()
            receipts = await publishing
        assert [receipt.id for receipt in receipts] == [signal.id for signal in signals]
        assert max(receipt.attempts for receipt in receipts) > 1
        await eventually(lambda: {delivery.id for _, delivery in inbox.got} == {signal.id for signal in signals})


@QUORUM
async def test_a_black_hole_ends_publishes_in_time_and_is_overcome(broker: str, world: World) -> None:
    async with FaultProxy(world.url) as proxy:
        url = proxy.url_for(world.url).replace(RABBITMQ_OPTIONS, f"{RABBITMQ_OPTIONS}&heartbeat=1")
        async with traffic(world, url=url) as running:
            proxy.black_hole()
            with pytest.raises((PublishUnconfirmed, BrokerUnavailable)):
                await running.publisher.publish(Signal(type="work.item", data="lost"), timeout=1)
            running.history.invoked.add("lost")
            await eventually(lambda: running.publisher.stats().broker.state != "up", 8)  # L5: 3 heartbeats
            await proxy.heal()
            await running.history.wait_ok(50, 10)
            await eventually(lambda: running.subscriber.stats().broker.state == "up", 10)
            await running.end(world)


# Row 25: alarms


@BOTH
async def test_a_memory_alarm_stops_publishers_and_not_consumers(broker: str, world: World) -> None:
    node = node_of(world)
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    inbox = Inbox(wait)
    async with world.serving("#", handler=inbox, prefetch=10) as subscriber, world.bus() as publisher:
        await publisher.publish_many([("work.item", number) for number in range(50)])
        await node.eval(f"rabbit_alarm:set_alarm({MEMORY_ALARM})")
        try:
            clock = asyncio.get_running_loop().time

            async def held_up() -> bool:
                started = clock()
                try:
                    await publisher.publish("work.item", 50, timeout=1)
                except (Backpressure, PublishUnconfirmed, BrokerUnavailable):
                    assert clock() - started < 2
                    return True
                return False

            # The broker's connections hear of the alarm a moment later, and block when something is published: one
            # signal is on its way then, and its outcome is unknown.
            await wait_until(held_up, 10)
            started = clock()
            with pytest.raises(Backpressure):
                await publisher.publish("work.item", 60, timeout=0.5)
            assert clock() - started < 1.5  # L1
            assert publisher.stats().broker.state == "blocked"  # L5
            # The backlog drains meanwhile, acks included.
            release.set()
            await wait_acked(subscriber.subscriptions()[0], 50)
            await world.wait_empty(subscriber, "work")
        finally:
            await node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")
        await publisher.publish("work.item", "after")
        await eventually(lambda: "after" in inbox.data)
        assert publisher.stats().broker.state == "up"
    assert 60 not in inbox.data  # S4: Backpressure is 'not stored'


# Row 28: the queue is deleted under its consumer


@BOTH
async def test_a_queue_deleted_under_its_consumer_is_back_and_served(broker: str, world: World) -> None:
    inbox, neighbour = Inbox(), Inbox()
    async with world.serving("a", handler=inbox), world.serving("b", handler=neighbour, name="other") as bus:
        await bus.publish("a", 1)
        await inbox.wait(1)
        await bus.broker.delete("work", 5)

        async def routed_again() -> bool:
            try:
                await bus.publish("a", 2, timeout=1)
            except Unroutable:
                return False  # in between it is said, not swallowed
            return True

        await wait_until(routed_again, 15)
        await inbox.wait(2, 15)
        # S7: the neighbour has noticed nothing.
        await bus.publish("b", 3)
        assert await neighbour.wait(1) == [3]
        assert bus.stats().broker.counters["reconnects"] == 0


# Row 31: consumer_timeout closes a channel


@pytest.mark.slow
@BOTH
async def test_a_consumer_timeout_on_one_channel_leaves_the_others_alive(broker: str, world: World) -> None:
    node = node_of(world)
    await node.eval(
        "application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 1000)"
    )
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    slow, quick = Inbox(wait), Inbox()
    try:
        bus = world.bus()
        held = bus.subscribe("slow", handler=slow, name="slow", prefetch=1)
        bus.subscribe("quick", handler=quick, name="quick")
        async with bus:
            await bus.publish("slow", "held")
            await slow.wait(1)
            # It comes again, to the same process: a copy of what runs.
            await eventually(lambda: held.stats().redelivered >= 1, 15)
            before = len(quick.got)
            await bus.publish("quick", 1)
            await quick.wait(before + 1)
            assert bus.stats().broker.counters["reconnects"] == 0
            release.set()
            await wait_acked(held, 1)
            await world.wait_empty(bus, "slow", "quick")
        assert slow.data == ["held"]  # the run decided for both copies
    finally:
        await node.eval(
            "application:set_env(rabbit, consumer_timeout, 1800000), "
            "application:set_env(rabbit, channel_tick_interval, 60000)"
        )


# Row "phantom consumer": connected, no error, and nothing comes


CANCEL = {
    "rabbitmq-classic": (
        '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"signalbus.q.work">>)), '
        '[gen_server2:call(amqqueue:get_pid(Q), {basic_cancel, element(1, C), element(2, C), undefined, <<"x">>}, '
        "infinity) || C <- rabbit_amqqueue:consumers(Q)]"
    ),
    "rabbitmq-quorum": (
        '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"signalbus.q.work">>)), '
        "[ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout({element(2, C), element(1, C)}, cancel, "
        "#{})) || C <- rabbit_amqqueue:consumers(Q)]"
    ),
}


@BOTH
async def test_a_consumer_that_the_broker_forgot_is_found_and_healed(broker: str, world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        await bus.publish("a", 1)
        await wait_acked(bus.subscriptions()[0], 1)
        vhost = urlsplit(world.url).path[1:]
        await node_of(world).eval(CANCEL[broker] % vhost)
        (queue,) = await bus.broker.queues(5)
        assert queue.consumers == 0
        await bus.publish("a", 2)
        # silent_after is 3 s here.
        assert await inbox.wait(2, 15) == [1, 2]
        assert bus.stats().broker.counters["consumers_recycled"] >= 1
        assert bus.stats().broker.counters["reconnects"] == 0


# Bad addresses


@pytest.mark.parametrize("broker", ["rabbitmq-quorum"])
async def test_wrong_addresses_and_rights_are_typed_errors_that_say_what_to_do(broker: str, amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    host = parts.netloc.rpartition("@")[2]
    nobody = await contract.refused_in_time(contract.unreachable(f"amqp://127.0.0.1:{free_port()}/"))
    assert "Is it running" in str(nobody)
    await contract.refused_in_time(contract.unreachable("amqp://no-such-host.invalid/"))
    stranger = Bus(f"amqp://guest:s3cret@{host}{parts.path}", connect_timeout=10)
    wrong = await contract.refused_in_time(stranger, ConfigError)
    assert "s3cret" not in str(wrong)


@pytest.mark.parametrize("broker", ["rabbitmq-quorum"])
async def test_a_wrong_virtual_host_is_a_config_error(broker: str, amqp_url: str) -> None:
    url = urlsplit(amqp_url)._replace(path="/no-such-vhost").geturl()
    error = await contract.refused_in_time(Bus(url, connect_timeout=5), ConfigError)
    assert "vhost" in str(error)
