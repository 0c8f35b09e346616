"""Consuming: settlements, counts, and what the broker does to consumers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import PublishResult
from signalbus.brokers.rabbitmq import RabbitBroker
from signalbus.delivery import ACK, RELEASE, DeadLetter, DeadReason, Failure, RetryLater
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    FAST,
    TIMEOUT,
    Brokers,
    nothing_comes,
    number_of,
    publish,
    publish_until_stored,
    receive,
    signal,
    until,
    wait_up,
)
from tests.support import eventually

FAILURE = Failure(
    attempt=1, error="ValueError", message="no", at=datetime(2026, 1, 1, tzinfo=UTC), session="s", traceback="t"
)
DEAD = DeadLetter(DeadReason.REJECTED, "no such customer", (FAILURE,))


def later(seconds: float) -> RetryLater:
    return RetryLater(timedelta(seconds=seconds), (FAILURE,))


async def _ready(channel: AbstractChannel, queue: str) -> int:
    answer = await channel.queue_declare(queue, passive=True)
    return answer.message_count or 0


def _at_most(seconds: float, usual: float) -> float:
    """Return how long a retry may take. ``usual``: from publish to receive, which the way back takes again."""
    return seconds * 1.1 + 1.0 + 3 * usual


async def test_a_settled_delivery_is_gone_and_settles_once(brokers: Brokers, queue_type: str) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1), signal(2))
    first, second = await receive(consumer, 2)
    assert await consumer.settle(second, ACK)
    assert await consumer.settle(first, ACK)
    assert not await consumer.settle(first, ACK)
    assert not await consumer.settle(first, DEAD)
    await consumer.aclose()
    consumer = await broker.consume("work", 10, TIMEOUT)
    await nothing_comes(consumer)


async def test_a_dead_letter_is_stored_with_its_story(brokers: Brokers, queue_type: str) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker)
    encoded = signal(1)
    await publish(broker, encoded)
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, DEAD)
    for _ in range(30):  # more looks than RabbitMQ 4 would allow by default
        (letter,) = await broker.dead_letters(10, TIMEOUT)
        assert letter.signal == encoded
        assert (letter.subscription, letter.reason, letter.detail) == ("work", DEAD.reason, DEAD.detail)
        assert letter.history == (FAILURE,)
        assert abs((datetime.now(UTC) - letter.at).total_seconds()) < 60


async def test_dead_letters_come_oldest_first_up_to_the_limit(brokers: Brokers, queue_type: str) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker, prefetch=200)
    await publish(broker, *[signal(number) for number in range(200)])
    for incoming in await receive(consumer, 200):
        assert await consumer.settle(incoming, DEAD)
    for limit in (20, 150, 60, 1, 200, 1000, 20):
        letters = await broker.dead_letters(limit, TIMEOUT)
        assert [int(letter.signal.body) for letter in letters] == list(range(min(limit, 200)))
        assert [letter.position for letter in letters] == list(range(min(limit, 200)))


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 1.5, pytest.param(5.3, marks=pytest.mark.slow)])
async def test_row_36_a_retry_comes_after_its_delay_as_the_next_attempt(
    brokers: Brokers, queue_type: str, seconds: float
) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker)
    published = time.monotonic()
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    started = time.monotonic()
    usual = started - published
    assert await consumer.settle(incoming, later(seconds))
    assert not await consumer.settle(incoming, ACK)
    (again,) = await receive(consumer)
    assert seconds - 0.01 <= time.monotonic() - started <= _at_most(seconds, usual)
    assert (again.attempt, again.crashes, again.history) == (2, 0, (FAILURE,))
    assert again.signal == incoming.signal
    assert await consumer.settle(again, ACK)
    await nothing_comes(consumer)


async def test_row_36_a_short_delay_does_not_wait_behind_a_long_one(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    delays = (8.0, 1.0, 4.0)  # so far apart that slow settling does not change the order
    published = time.monotonic()
    await publish(broker, *[signal(number) for number in range(3)])
    deliveries = await receive(consumer, 3)
    usual = time.monotonic() - published
    started: list[float] = []
    for incoming, seconds in zip(deliveries, delays, strict=True):
        started.append(time.monotonic())
        assert await consumer.settle(incoming, later(seconds))
    arrivals: list[int] = []
    for _ in range(3):
        (incoming,) = await receive(consumer)
        number = int(incoming.signal.body)
        arrivals.append(number)
        assert delays[number] <= time.monotonic() - started[number] <= _at_most(delays[number], usual)
    assert arrivals == [1, 2, 0]


async def test_a_delayed_retry_of_a_temporary_subscription_finds_its_next_queue(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    consumer = await brokers.serve(broker, "watch", "order.*", durable=False)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, later(1.0))
    proxy.cut()
    (again,) = await receive(consumer)
    assert again.attempt == 2


async def test_a_release_goes_back_uncounted_to_its_place(brokers: Brokers, queue_type: str) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker, prefetch=2)
    await publish(broker, *[signal(number) for number in range(4)])
    for _ in range(5):
        for incoming in await receive(consumer, 2):
            assert (incoming.attempt, incoming.crashes) == (1, 0)
            assert await consumer.settle(incoming, RELEASE)
    await consumer.aclose()
    consumer = await broker.consume("work", 10, TIMEOUT)
    assert [number_of(incoming) for incoming in await receive(consumer, 4)] == [0, 1, 2, 3]


async def test_stop_gives_back_what_nobody_received_and_the_rest_can_still_be_settled(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, prefetch=3)
    await publish(broker, *[signal(number) for number in range(3)])
    received = await receive(consumer, 3)
    await publish(broker, signal(3))
    assert await consumer.settle(received[0], ACK)
    await until(lambda: _empty(broker))
    await consumer.stop()
    await consumer.stop()
    assert not await consumer.receive()
    assert await consumer.settle(received[1], ACK)
    assert await consumer.settle(received[2], later(0.1))  # not waited out by somebody who stops
    await consumer.aclose()
    other = await broker.consume("work", 10, TIMEOUT)
    numbers = {number_of(incoming): incoming.attempt for incoming in await receive(other, 2)}
    assert numbers == {3: 1, 2: 2}


async def _empty(broker: RabbitBroker) -> bool:
    (info,) = await broker.queues(TIMEOUT)
    return info.ready == 0


async def test_a_retry_that_waits_here_keeps_its_attempt_when_the_consumer_stops(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, later(0.9))
    await consumer.aclose()
    other = await broker.consume("work", 10, TIMEOUT)
    (again,) = await receive(other)
    assert (again.attempt, again.history) == (2, (FAILURE,))


async def test_no_more_than_prefetch_are_unsettled_waiting_ones_included(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, prefetch=2)
    await publish(broker, *[signal(number) for number in range(4)])
    for incoming in await receive(consumer, 2):
        assert await consumer.settle(incoming, later(0.8))
    await nothing_comes(consumer, 0.4)
    assert [number_of(incoming) for incoming in await receive(consumer, 2)] == [0, 1]


async def test_a_lost_connection_takes_the_deliveries_along_and_counts_once(
    brokers: Brokers, proxy: FaultProxy, queue_type: str
) -> None:
    options = f"{FAST}&queue_type={queue_type}"
    broker = await brokers.open(proxy.url_for(brokers.url), options)
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    for crashes in (1, 2, 3):
        proxy.cut()
        again = incoming
        while again.crashes < crashes:  # a classic queue's copy may have a twin, if its ack was cut off
            again = max(await consumer.receive(), key=lambda incoming: incoming.crashes)
        assert (again.attempt, again.crashes, again.redelivered) == (1, crashes, True)
        assert not await consumer.settle(incoming, ACK)
        incoming = again
    assert await consumer.settle(incoming, ACK)
    assert broker.health().counters["settles_lost"] == 3


async def test_row_28_a_deleted_queue_is_made_and_served_again(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await raw.queue_delete("signalbus.q.work")
    tries = 0
    async with asyncio.timeout(10):
        while await publish(broker, signal(1)) != [PublishResult.CONFIRMED]:
            tries += 1
            await asyncio.sleep(0.02)
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, ACK)


async def test_row_30_a_queue_with_other_arguments_degrades_and_the_others_go_on(
    brokers: Brokers, raw: AbstractChannel, proxy: FaultProxy
) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    await brokers.serve(broker, "work", "order.*")
    other = await brokers.serve(broker, "other", "order.*")
    await proxy.refuse()
    proxy.cut()
    await raw.queue_delete("signalbus.q.work")
    await raw.queue_declare("signalbus.q.work", durable=True, arguments={"x-max-length": 5})
    await proxy.accept()
    await eventually(lambda: broker.health().state == "degraded")
    assert "signalbus.q.work" in broker.health().reason
    await publish_until_stored(broker, signal(1))
    (incoming,) = await receive(other)
    assert await other.settle(incoming, ACK)
    tries = broker.health().counters["consumers_lost"]
    await asyncio.sleep(2)
    assert broker.health().counters["consumers_lost"] - tries < 20  # bounded retries
    await raw.queue_delete("signalbus.q.work")
    await wait_up(broker)


async def test_row_34_a_dead_letter_without_a_queue_is_kept_until_there_is_one(
    brokers: Brokers, raw: AbstractChannel, queue_type: str
) -> None:
    broker = await brokers.open(options=f"{FAST}&queue_type={queue_type}")
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1), signal(2))
    first, second = await receive(consumer, 2)
    await raw.queue_delete("signalbus.dead")
    assert await consumer.settle(first, DEAD)
    await raw.exchange_delete("signalbus.dead")
    assert await consumer.settle(second, DEAD)
    assert len(await broker.dead_letters(10, TIMEOUT)) == 2


async def test_a_delay_step_that_was_deleted_is_made_again(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, later(1))
    (incoming,) = await receive(consumer)
    await raw.queue_delete("signalbus.delay.1")
    assert await consumer.settle(incoming, later(1))
    (incoming,) = await receive(consumer)
    await raw.exchange_delete("signalbus.delay.1")
    assert await consumer.settle(incoming, later(1))
    (incoming,) = await receive(consumer)
    assert incoming.attempt == 4


async def test_a_retry_whose_subscription_is_gone_can_be_seen(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, later(1))
    await broker.delete("work", TIMEOUT)
    await until(lambda: _holds(raw, "signalbus.lost", 1))


async def _holds(channel: AbstractChannel, queue: str, count: int) -> bool:
    return await _ready(channel, queue) == count


@pytest.mark.slow
async def test_row_31_a_consumer_timeout_recycles_only_its_channel(fault_node: PrivateNode) -> None:
    """Row 31, with the quorum default; the handler that is too slow settles in vain."""
    await fault_node.eval(
        "application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 1000)"
    )
    brokers = Brokers(await fault_node.vhost())
    try:
        broker = await brokers.open()
        slow = await brokers.serve(broker, "slow", "order.slow")
        quick = await brokers.serve(broker, "quick", "order.quick")
        await publish(broker, signal(1, "order.slow"), signal(2, "order.quick"))
        (incoming,) = await receive(slow)
        (held,) = await receive(quick)
        assert await quick.settle(held, ACK)
        connects = broker.health().counters["connects"]
        (again,) = await receive(slow, timeout=20)
        assert again.crashes == 1
        assert not await slow.settle(incoming, ACK)
        assert await slow.settle(again, ACK)
        assert broker.health().counters["connects"] == connects
        await publish(broker, signal(3, "order.quick"))
        (incoming,) = await receive(quick)
        assert incoming.crashes == 0
    finally:
        await brokers.aclose()
        await fault_node.eval(
            "application:set_env(rabbit, consumer_timeout, 1800000), "
            "application:set_env(rabbit, channel_tick_interval, 60000)"
        )


async def test_row_37_the_brokers_limit_ends_in_a_dead_letter_and_ours_comes_first(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    """The broker's limit is far above ours; a message that everybody loses ends there all the same."""
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    for attempt in range(1, 7):  # our retries count none of the broker's
        (incoming,) = await receive(consumer)
        assert incoming.attempt == attempt
        assert await consumer.settle(incoming, later(0.01) if attempt % 2 else later(1.0))
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, ACK)

    await consumer.aclose()
    await publish(broker, signal(2))
    got: asyncio.Queue[int] = asyncio.Queue()

    async def take(message: object) -> None:
        got.put_nowait(message.delivery_tag)  # type: ignore[attr-defined]

    await raw.basic_consume("signalbus.q.work", take)
    for _ in range(101):
        await raw.basic_nack(await asyncio.wait_for(got.get(), 5), requeue=True)

    async def dead() -> bool:
        return bool(await broker.dead_letters(10, TIMEOUT))

    await until(dead)
    (letter,) = await broker.dead_letters(10, TIMEOUT)
    assert (letter.reason, letter.subscription) == (DeadReason.BROKER, "work")
    assert int(letter.signal.body) == 2
    assert "delivery_limit" in letter.detail


async def test_competing_consumers_share_the_work(brokers: Brokers) -> None:
    one, two = await brokers.open(), await brokers.open()
    first = brokers.sink(await brokers.serve(one, prefetch=5))
    second = brokers.sink(await brokers.serve(two, prefetch=5))
    await publish(one, *[signal(number) for number in range(200)])
    await eventually(lambda: len(first.got) + len(second.got) >= 200)
    assert first.got
    assert second.got
    assert sorted(int(incoming.signal.body) for incoming in first.got + second.got) == list(range(200))
