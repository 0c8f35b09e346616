"""Publishing: outcomes are the truth, and every call ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import BrokerState, PublishResult, SubscriptionSpec
from signalbus.codec import EncodedSignal
from signalbus.errors import BrokerUnavailable, BusClosed
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    Brokers,
    number_of,
    publish,
    publish_until_stored,
    receive,
    signal,
    until,
    wait_up,
)
from tests.support import eventually

CONFIRMED, RETURNED, REFUSED = PublishResult.CONFIRMED, PublishResult.RETURNED, PublishResult.REFUSED


async def test_row_39_unroutable_among_routable_is_told_exactly_even_with_one_event_id(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    same = "018f0000-0000-7000-8000-000000000000"
    batch = [
        EncodedSignal(same, kind, {"cloudEvents_id": same, "cloudEvents_type": kind}, b"", None)
        for kind in ["order.placed", "nobody.listens"] * 100
    ]
    assert await publish(broker, *batch[:100]) == [CONFIRMED, RETURNED] * 50
    singles = await asyncio.gather(*(publish(broker, item) for item in batch[100:]))
    assert [result for (result,) in singles] == [CONFIRMED, RETURNED] * 50
    assert len(await receive(consumer, 100)) == 100


async def test_order_within_a_subscription_follows_the_calls(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, prefetch=1000)
    calls = [
        asyncio.create_task(publish(broker, *[signal(number) for number in range(start, start + size)]))
        for start, size in [(0, 200), (200, 1), (201, 50), (251, 1), (252, 248)]
    ]
    await asyncio.gather(*calls)
    assert [number_of(incoming) for incoming in await receive(consumer, 500)] == list(range(500))


async def test_rows_32_and_40_a_full_queue_refuses(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    await broker.declare(SubscriptionSpec(name="work", patterns=("order.*",)), 5)
    await raw.queue_declare("full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await raw.queue_bind("full", "signalbus.signals", "order.*")
    # A queue refuses once it is over its limit, so the first messages may pass.
    results = [result for number in range(20) for result in await publish(broker, signal(number))]
    assert results[0] is CONFIRMED
    assert results[-1] is REFUSED
    assert set(results) == {CONFIRMED, REFUSED}
    await raw.queue_delete("full")
    assert await publish(broker, signal()) == [CONFIRMED]


@pytest.mark.slow
async def test_row_38_a_body_over_the_brokers_limit_is_refused_and_others_are_stored(fault_node: PrivateNode) -> None:
    url = await fault_node.vhost()
    brokers = Brokers(url)
    await fault_node.eval("application:set_env(rabbit, max_message_size, 1000000)")
    try:
        broker = await brokers.open()
        await broker.declare(SubscriptionSpec(name="work", patterns=("order.*",)), 5)
        huge = signal(body=b"x" * 1_000_001)
        (outcome,) = await broker.publish([huge], 10)
        assert outcome.result is REFUSED
        assert "1000000" in outcome.reason
        # Learned: from now on it never reaches the wire, and nobody else pays for it.
        connects = broker.health().counters["connects"]
        await wait_up(broker)
        results = await publish(broker, signal(1), huge, signal(2, body=b"x" * 900_000), signal(3))
        assert results == [CONFIRMED, REFUSED, CONFIRMED, CONFIRMED]
        assert broker.health().counters["connects"] <= connects + 1
    finally:
        await brokers.aclose()
        await fault_node.eval("application:set_env(rabbit, max_message_size, 134217728)")


async def test_row_61_what_cannot_be_encoded_is_refused_and_its_neighbours_pass(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    bad = [
        EncodedSignal("1", "order.placed", {"cloudEvents_id": value}, b"", None)  # type: ignore[dict-item]
        for value in (float("nan"), {1}, "x" * 140_000, "\ud800")
    ]
    bad.append(EncodedSignal("1", "order.placed", {"cloudEvents_" + "k" * 300: "x"}, b"", None))
    bad.append(EncodedSignal("1", "order.placed", {"CC": "signalbus.dead"}, b"", None))
    batch = [item for pair in zip(bad, [signal(number) for number in range(6)], strict=True) for item in pair]
    assert await publish(broker, *batch) == [REFUSED, CONFIRMED] * 6
    assert [number_of(incoming) for incoming in await receive(consumer, 6)] == list(range(6))
    assert broker.health().counters["reconnects"] == 0


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_063, 131_065, 400_000])
async def test_bodies_of_any_size_arrive_whole(brokers: Brokers, size: int) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    assert await publish(broker, signal(body=body)) == [CONFIRMED]
    (incoming,) = await receive(consumer)
    assert incoming.signal.body == body


async def test_row_29_a_deleted_exchange_is_made_again_with_its_bindings(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    broker = await brokers.open()
    await broker.declare(SubscriptionSpec(name="work", patterns=("order.*", "x.#")), 5)
    publisher = await brokers.open()
    assert await publish(publisher, signal()) == [CONFIRMED]
    await raw.exchange_delete("signalbus.signals")
    await publish_until_stored(publisher, signal(), 10)
    assert await publish(publisher, signal(type="x.y.z")) == [CONFIRMED]
    assert publisher.health().counters["topology_repairs"] >= 1


async def test_row_29_a_deleted_binding_is_made_again_by_who_serves_it(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open(options="silent_after=0.6")
    await brokers.serve(broker)

    async def lost() -> bool:
        # Again, as it may be made again before we publish.
        await raw.queue_unbind("signalbus.q.work", "signalbus.signals", "order.*")
        return await publish(broker, signal()) == [RETURNED]

    await until(lost)

    async def stored() -> bool:
        return await publish(broker, signal()) == [CONFIRMED]

    await until(stored, 5)


async def test_a_lost_confirm_is_unknown_and_repeating_it_gives_a_duplicate(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    """A publish that failed may have arrived: its outcome is unknown, not refused."""
    subscriber = await brokers.open()
    consumer = await brokers.serve(subscriber)
    broker = await brokers.open(proxy.url_for(brokers.url))
    assert await publish(broker, signal(0)) == [CONFIRMED]
    proxy.drop_downstream()
    encoded = signal(1)
    assert await publish(broker, encoded, timeout=1.0) == [PublishResult.UNKNOWN]
    await proxy.heal()
    assert await publish_until_stored(broker, encoded) >= 1
    got = [number_of(incoming) for incoming in await receive(consumer, 3)]
    assert got == [0, 1, 1]


async def test_row_15_publishing_into_a_black_hole_ends_at_its_deadline(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    await broker.declare(SubscriptionSpec(name="work", patterns=("order.*",)), 5)
    proxy.black_hole()
    started = time.monotonic()
    results = await asyncio.gather(*(publish(broker, signal(number), timeout=1.0) for number in range(50)))
    assert time.monotonic() - started < 2.0
    assert {result for (result,) in results} == {PublishResult.UNKNOWN}
    await proxy.heal()
    await publish_until_stored(broker, signal())


async def test_nothing_sent_while_the_broker_is_away_is_unavailable(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    await broker.declare(SubscriptionSpec(name="work", patterns=("order.*",)), 5)
    await proxy.refuse()
    proxy.cut()
    await eventually(lambda: broker.health().state is BrokerState.CONNECTING)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{proxy.port}"):
        await broker.publish([signal()], 1.0)
    assert time.monotonic() - started < 2.0
    await proxy.accept()
    assert await publish(broker, signal()) == [CONFIRMED]


async def test_a_cancelled_publish_leaves_the_channel_in_step(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, prefetch=2000)
    tasks: list[asyncio.Task[Sequence[PublishResult]]] = []
    for _ in range(20):
        tasks.append(asyncio.create_task(publish(broker, *[signal(-1) for _ in range(20)])))
        await asyncio.sleep(0)
        tasks[-1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await publish(broker, signal(1), signal(2, "nobody.listens")) == [CONFIRMED, RETURNED]
    while True:
        if any(number_of(incoming) == 1 for incoming in await consumer.receive()):
            break


async def test_a_closed_broker_takes_nothing(brokers: Brokers) -> None:
    broker = await brokers.open()
    await broker.aclose()
    with pytest.raises(BusClosed):
        await broker.publish([signal()], 1)
    assert broker.health().state is BrokerState.CLOSED
