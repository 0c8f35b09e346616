"""Consumers that are connected, report no error, and get nothing: found from the broker's side."""

from __future__ import annotations

import asyncio

from signalbus.brokers.rabbitmq.consumer import RabbitConsumer
from signalbus.delivery import ACK
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import Brokers, nothing_comes, number_of, publish, receive, signal
from tests.support import eventually

QUICK = "silent_after=1"


async def test_a_consumer_that_the_broker_does_not_know_is_made_again(brokers: Brokers) -> None:
    broker = await brokers.open(options=QUICK)
    consumer = await brokers.serve(broker)
    assert isinstance(consumer, RabbitConsumer)
    assert consumer.incarnation is not None
    # Behind our back, as a lost Basic.Consume or a forgotten restoration would leave it.
    await consumer.incarnation.channel.basic_cancel(consumer.incarnation.tag)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    assert number_of(incoming) == 1
    assert broker.health().counters["consumers_recycled"] == 1


async def test_a_consumer_with_free_credit_that_gets_nothing_is_made_again(brokers: Brokers) -> None:
    broker = await brokers.open(options=QUICK)
    consumer = await brokers.serve(broker)
    assert isinstance(consumer, RabbitConsumer)
    other = await brokers.open(options=QUICK)
    assert consumer.incarnation is not None
    # The broker thinks that we are full: it counts a consumer and delivers nothing.
    await consumer.incarnation.channel.basic_qos(prefetch_count=1)
    await consumer.incarnation.channel.basic_cancel(consumer.incarnation.tag)

    async def ignore(message: object) -> None:
        pass

    await consumer.incarnation.channel.basic_consume("signalbus.q.work", ignore)
    await publish(other, signal(1), signal(2))
    got = [number_of(incoming) for incoming in await receive(consumer, 2)]
    assert sorted(got, key=str) == [1, 2]
    assert broker.health().counters["consumers_recycled"] == 1


async def test_a_busy_or_idle_consumer_is_left_alone(brokers: Brokers, rabbitmq_node: PrivateNode) -> None:
    broker = await brokers.open(options="silent_after=0.3")
    consumer = await brokers.serve(broker, prefetch=2)
    await asyncio.sleep(1)  # idle
    await publish(broker, *[signal(number) for number in range(5)])
    first, second = await receive(consumer, 2)
    await nothing_comes(consumer, 1)  # full: messages wait, and rightly
    assert await consumer.settle(first, ACK)
    assert await consumer.settle(second, ACK)
    await receive(consumer, 2)
    await eventually(lambda: True)
    assert broker.health().counters.get("consumers_recycled", 0) == 0
