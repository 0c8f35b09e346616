"""Subscriptions: declared, changed, listed and deleted."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.abc import AbstractChannel
from pamqp.common import Arguments

from signalbus.brokers.base import BrokerState, Consumer, PublishResult, SubscriptionSpec
from signalbus.brokers.rabbitmq import RabbitBroker, registry
from signalbus.brokers.rabbitmq.deliveries import Take, consume
from signalbus.brokers.rabbitmq.lane import Received
from signalbus.delivery import ACK
from signalbus.errors import BrokerUnavailable, ConfigError
from signalbus.testing.proxy import FaultProxy
from tests.brokers.rabbitmq.conftest import FAST, TIMEOUT, Brokers, number_of, publish, receive, signal, until
from tests.support import eventually

CONFIRMED, RETURNED = PublishResult.CONFIRMED, PublishResult.RETURNED


async def _until_received(publisher: RabbitBroker, consumer: Consumer) -> None:
    receiving = asyncio.ensure_future(consumer.receive())
    async with asyncio.timeout(10):
        while not receiving.done():
            await publish(publisher, signal(1))
            await asyncio.wait([receiving], timeout=0.05)
    assert receiving.result()


def _spec(*patterns: str, name: str = "work", durable: bool = True) -> SubscriptionSpec:
    return SubscriptionSpec(name=name, patterns=patterns, durable=durable)


async def test_patterns_nobody_serves_are_replaced_by_another_process(brokers: Brokers, queue_type: str) -> None:
    first = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    await first.declare(_spec("order.*", "both.x"), TIMEOUT)
    await first.aclose()
    second = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    await second.declare(_spec("item.*", "both.x"), TIMEOUT)
    results = await publish(second, signal(1, "order.a"), signal(2, "item.a"), signal(3, "both.x"))
    assert results == [RETURNED, CONFIRMED, CONFIRMED]


async def test_patterns_of_a_change_that_broke_off_are_removed_too(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    await broker.declare(_spec("order.*"), TIMEOUT)
    await broker.declare(_spec("item.*"), TIMEOUT)
    # As if the process had died between the new binding and the removal of the old one.
    await raw.queue_bind("signalbus.q.work", "signalbus.signals", "order.*")
    await broker.declare(_spec("item.*"), TIMEOUT)
    assert await publish(broker, signal(1, "order.a"), signal(2, "item.a")) == [RETURNED, CONFIRMED]


async def test_declaring_again_keeps_what_waits(brokers: Brokers) -> None:
    broker = await brokers.open()
    await broker.declare(_spec("order.*"), TIMEOUT)
    await publish(broker, signal(1))
    await broker.declare(_spec("order.*"), TIMEOUT)
    await broker.declare(_spec("order.*", "item.*"), TIMEOUT)
    consumer = await broker.consume("work", 10, TIMEOUT)
    (incoming,) = await receive(consumer)
    assert number_of(incoming) == 1


async def test_other_patterns_while_others_serve_are_a_configuration_error(brokers: Brokers) -> None:
    first, second = await brokers.open(), await brokers.open()
    await brokers.serve(first, "work", "order.*")
    with pytest.raises(ConfigError, match=r"served by 1 others with the patterns order\.\*"):
        await second.declare(_spec("item.*"), TIMEOUT)
    await second.declare(_spec("order.*"), TIMEOUT)
    assert await publish(second, signal(1), signal(2, "item.a")) == [CONFIRMED, RETURNED]


async def test_who_comes_back_to_changed_patterns_is_degraded_until_the_others_are_gone(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    away, other = await brokers.open(proxy.url_for(brokers.url)), await brokers.open()
    consumer = await brokers.serve(away, "work", "order.*")
    await proxy.refuse()
    proxy.cut()
    await until(lambda: _unserved(other))
    successor = await brokers.serve(other, "work", "item.*")
    await proxy.accept()
    await eventually(lambda: away.health().state is BrokerState.DEGRADED)
    assert "served by 1 others with the patterns item.*" in away.health().reason
    assert await publish(other, signal(1, "order.a"), signal(2, "item.a")) == [RETURNED, CONFIRMED]
    (incoming,) = await receive(successor)
    assert await successor.settle(incoming, ACK)
    await successor.aclose()
    await eventually(lambda: away.health().state is BrokerState.UP)
    assert await publish(other, signal(3, "order.a"), signal(4, "item.a")) == [CONFIRMED, RETURNED]
    (incoming,) = await receive(consumer)
    assert number_of(incoming) == 3


async def _unserved(broker: RabbitBroker) -> bool:
    (info,) = await broker.queues(TIMEOUT)
    return info.consumers == 0


async def test_another_queue_type_is_a_configuration_error(brokers: Brokers) -> None:
    await brokers.open()
    with pytest.raises(ConfigError, match="x-queue-type"):
        await brokers.open(options=f"{FAST}&queue_type=classic")


async def test_a_subscription_that_another_process_declared_can_be_served(brokers: Brokers) -> None:
    first, second = await brokers.open(), await brokers.open()
    await first.declare(_spec("order.*"), TIMEOUT)
    consumer = await second.consume("work", 10, TIMEOUT)
    await publish(first, signal(1))
    (incoming,) = await receive(consumer)
    assert number_of(incoming) == 1


async def test_serving_what_nobody_declared_is_a_configuration_error(brokers: Brokers) -> None:
    broker = await brokers.open()
    with pytest.raises(ConfigError, match="'nobody'"):
        await broker.consume("nobody", 10, TIMEOUT)


async def test_queues_lists_the_subscriptions_of_all_processes(brokers: Brokers) -> None:
    first, second = await brokers.open(), await brokers.open()
    assert not await second.queues(TIMEOUT)
    await first.declare(_spec("order.*", name="b"), TIMEOUT)
    await first.declare(_spec("#", name="a"), TIMEOUT)
    await second.declare(_spec("#", name="t", durable=False), TIMEOUT)
    await publish(first, signal(1))
    listed = await second.queues(TIMEOUT)
    assert [(info.name, info.patterns, info.durable) for info in listed] == [
        ("a", ("#",), True),
        ("b", ("order.*",), True),
        ("t", ("#",), False),
    ]

    async def counted() -> bool:
        return [info.ready for info in await second.queues(TIMEOUT)] == [1, 1, 1]

    await until(counted)


async def test_a_slow_broker_never_looks_like_one_without_subscriptions(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    async def slow(channel: AbstractChannel, queue: str, take: Take, *, arguments: Arguments) -> str:
        def take_later(message: Received) -> None:
            loop.call_later(0.2, take, message)

        return await consume(channel, queue, take_later, arguments=arguments)

    first = await brokers.open()
    await first.declare(_spec("order.*"), TIMEOUT)
    monkeypatch.setattr(registry, "consume", slow)
    monkeypatch.setattr(registry, "EMPTY_SECONDS", 0.0)
    for _ in range(3):
        other = await brokers.open()
        assert [info.name for info in await other.queues(TIMEOUT)] == ["work"]
        await other.aclose()
    last = await brokers.open()
    await last.declare(_spec("item.*"), TIMEOUT)
    assert await publish(last, signal(1, "order.a"), signal(2, "item.a")) == [RETURNED, CONFIRMED]


async def test_the_registry_is_empty_only_once_however_many_look(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [await brokers.open() for _ in range(3)]
    assert await asyncio.gather(*(broker.queues(TIMEOUT) for broker in opened)) == [[], [], []]
    # Whoever comes waits in vain for no record.
    monkeypatch.setattr(registry, "EMPTY_SECONDS", 2 * TIMEOUT)
    assert not await (await brokers.open()).queues(TIMEOUT)


async def test_a_registry_that_was_deleted_is_made_again(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    await broker.declare(_spec("order.*"), TIMEOUT)
    await raw.queue_delete("signalbus.registry")
    await broker.declare(_spec("order.*"), TIMEOUT)
    other = await brokers.open()
    assert [info.name for info in await other.queues(TIMEOUT)] == ["work"]


async def test_delete_removes_the_queue_its_content_and_its_record(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await brokers.serve(broker, "watch", "order.*", durable=False)
    await publish(broker, signal(1))
    for name in ("work", "watch", "work", "never was"):
        await broker.delete(name, TIMEOUT)
    while await consumer.receive():
        pass  # what had come before; then the stream ends
    assert await publish(broker, signal(2)) == [RETURNED]
    assert not await broker.queues(TIMEOUT)
    await broker.declare(_spec("item.*"), TIMEOUT)
    assert await publish(broker, signal(2)) == [RETURNED]


async def test_a_temporary_subscription_survives_a_lost_connection_and_dies_with_its_session(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    broker, other = await brokers.open(proxy.url_for(brokers.url)), await brokers.open()
    await broker.declare(_spec("order.*", name="unserved", durable=False), TIMEOUT)
    consumer = await brokers.serve(broker, "watch", "order.*", durable=False)
    proxy.cut()

    async def routed() -> bool:
        return await publish(other, signal(1)) == [CONFIRMED]

    await until(routed)
    # What the broker put into the old queue before it noticed is gone with that queue.
    await _until_received(other, consumer)
    await broker.aclose()

    async def gone() -> bool:
        return await publish(other, signal(1)) == [RETURNED]

    await until(gone)


async def test_row_16_a_half_open_connection_does_not_lock_a_temporary_subscription_out(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    consumer = await brokers.serve(broker, "watch", "order.*", durable=False)
    other = await brokers.open()
    proxy.half_open("client")
    await _until_received(other, consumer)


async def test_two_sessions_can_have_temporary_subscriptions_of_one_name(brokers: Brokers) -> None:
    first, second = await brokers.open(), await brokers.open()
    consumers = [await brokers.serve(broker, "watch", "order.*", durable=False) for broker in (first, second)]
    assert await publish(first, signal(1)) == [CONFIRMED]
    for consumer in consumers:
        assert len(await receive(consumer)) == 1


async def test_without_streams_subscriptions_work_and_health_says_what_is_missing(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    # A foreign queue in the stream's place, which no declaration of ours can change.
    await raw.queue_declare("signalbus.registry", durable=True, arguments={"x-queue-type": "classic"})
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    assert await publish(broker, signal(1)) == [CONFIRMED]
    assert await receive(consumer)
    assert any("no streams" in warning for warning in broker.health().warnings)
    assert [info.name for info in await broker.queues(TIMEOUT)] == ["work"]


async def test_calls_on_a_black_hole_end_at_their_deadline(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    proxy.black_hole()
    clock = asyncio.get_running_loop().time
    for call in (
        lambda: broker.declare(_spec("order.*"), 1.0),
        lambda: broker.declare(_spec("order.*", durable=False), 1.0),
        lambda: broker.delete("work", 1.0),
        lambda: broker.consume("work", 1, 1.0),
        lambda: broker.queues(1.0),
        lambda: broker.dead_letters(1, 1.0),
    ):
        started = clock()
        with pytest.raises(BrokerUnavailable):
            await call()
        assert clock() - started < 4.0
