"""What every broker must do, seen from the bus. Plain async functions that take a `World`; the name is the promise.

``test_contract_sqlite.py`` and ``test_contract_rabbitmq.py`` run them. Behaviour of one broker alone is not here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from pydantic import BaseModel

from signalbus import (
    BatchError,
    BrokerUnavailable,
    Bus,
    BusClosed,
    ConfigError,
    Delivery,
    InvalidSignal,
    Receipt,
    Reject,
    Retry,
    RetryPolicy,
    Signal,
    Unroutable,
)
from signalbus.brokers.base import PublishResult
from signalbus.codec import TRACE_PARENT, EncodedSignal, encode
from signalbus.delivery import DeadReason
from tests.brokers.world import Inbox, World, wait_acked, wait_until
from tests.support import eventually

Behaviour = Callable[[World], Awaitable[None]]

CONTRACT: list[Behaviour] = []

MOMENT = timedelta(milliseconds=20)
QUICK = RetryPolicy(max_attempts=3, initial=MOMENT, jitter=False)


def contract(function: Behaviour) -> Behaviour:
    """Make a function part of the suite."""
    CONTRACT.append(function)
    return function


# Publish and subscribe


class Order(BaseModel):
    order_id: str
    total: float


@contract
async def a_published_signal_arrives_with_all_its_attributes(world: World) -> None:
    got: list[tuple[Signal, Delivery]] = []
    arrived = asyncio.Event()

    async def handle(signal: Signal, delivery: Delivery) -> None:
        got.append((signal, delivery))
        arrived.set()

    async with world.serving("order.*", handler=handle) as bus:
        sent = Signal(
            type="order.placed",
            source="shop",
            subject="42",
            time=datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
            dataschema="https://example.com/order",
            correlationid="c",
            causationid="d",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            tracestate="a=b",
            extensions={"tenant": "Zoë \U0001f600", "count": -(2**31), "big": 2**31 - 1, "yes": True, "no": False},
            data={"a": [1, 2.5, None, "é"], "huge": 2**100},
        )
        receipt = await bus.publish(sent)
        assert (receipt.id, receipt.type, receipt.routed) == (sent.id, sent.type, True)
        await asyncio.wait_for(arrived.wait(), 10)
    signal, delivery = got[0]
    assert signal.data == sent.data
    assert signal.extensions == sent.extensions
    assert {name: type(value) for name, value in signal.extensions.items()} == {
        name: type(value) for name, value in sent.extensions.items()
    }
    for name in ("id", "type", "source", "subject", "time", "dataschema", "correlationid", "causationid"):
        assert getattr(signal, name) == getattr(sent, name), name
    assert (signal.traceparent, signal.tracestate) == (sent.traceparent, "a=b")
    assert (delivery.attempt, delivery.crashes, delivery.redelivered) == (1, 0, False)


@contract
async def models_are_validated_on_the_way_in(world: World) -> None:
    got: list[Order] = []

    async def handle(order: Order) -> None:
        got.append(order)

    async with world.serving("order.placed", handler=handle) as bus:
        await bus.publish("order.placed", Order(order_id="a", total=1.5))
        await wait_acked(bus.subscriptions()[0], 1)
    assert got == [Order(order_id="a", total=1.5)]


@contract
async def each_matching_subscription_gets_one_copy(world: World) -> None:
    bus = world.bus()
    patterns = {"all": "#", "orders": "order.*", "placed": "*.placed", "exact": "order.placed", "other": "user.#"}
    inboxes = {name: Inbox() for name in patterns}
    for name, pattern in patterns.items():
        bus.subscribe(pattern, handler=inboxes[name], name=name)
    async with bus:
        for number, kind in enumerate(("order.placed", "order.paid", "user", "user.a.b", "cart.placed")):
            await bus.publish(kind, number)
        expected = {"all": [0, 1, 2, 3, 4], "orders": [0, 1], "placed": [0, 4], "exact": [0], "other": [2, 3]}
        for subscription in bus.subscriptions():
            await wait_acked(subscription, len(expected[subscription.name]))
    assert {name: inbox.data for name, inbox in inboxes.items()} == expected


@contract
async def several_matching_patterns_are_one_delivery(world: World) -> None:
    inbox = Inbox()
    async with world.serving("order.#", "order.*", "#", "order.placed", handler=inbox) as bus:
        await bus.publish("order.placed", 1)
        await bus.publish("order.placed", 2)
        await wait_acked(bus.subscriptions()[0], 2)
    assert inbox.data == [1, 2]


@contract
async def subscribers_of_one_subscription_share_its_work(world: World) -> None:
    async def busy(data: object, delivery: Delivery) -> None:
        await asyncio.sleep(0.005)

    inboxes = [Inbox(busy) for _ in range(3)]
    async with AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(world.serving("#", handler=inbox, prefetch=4, concurrency=2))
            for inbox in inboxes
        ]
        await buses[0].publish_many([("a", number) for number in range(150)])
        await eventually(lambda: sum(len(inbox.got) for inbox in inboxes) >= 150)
        await world.wait_empty(buses[0], "work")
    assert sorted(data for inbox in inboxes for data in inbox.data) == list(range(150))
    assert all(inbox.got for inbox in inboxes)


@contract
async def order_is_kept_with_one_handler_at_a_time(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        for number in range(20):
            await bus.publish("a", number)
        await bus.publish_many([("a", number) for number in range(20, 300)])
        await inbox.wait(300)
    assert inbox.data == list(range(300))


@contract
async def signals_wait_for_a_durable_subscription_that_nobody_serves(world: World) -> None:
    async with world.serving("#", handler=Inbox()):
        pass
    async with world.bus() as publisher:
        receipt = await publisher.publish("a", "kept")
        assert receipt.routed
    inbox = Inbox()
    async with world.serving("#", handler=inbox):
        assert await inbox.wait(1) == ["kept"]


@contract
async def patterns_of_a_subscription_that_nobody_serves_are_replaced(world: World) -> None:
    async with world.serving("old.*", "both.*", handler=Inbox()):
        pass
    inbox = Inbox()
    async with world.serving("new.*", "both.*", handler=inbox) as bus:
        with pytest.raises(Unroutable):
            await bus.publish("old.a", 1)
        await bus.publish("new.a", 2)
        await bus.publish("both.a", 3)
        assert await inbox.wait(2) == [2, 3]


# Unroutable


@contract
async def an_unroutable_signal_is_an_error_unless_that_is_fine(world: World) -> None:
    inbox = Inbox()
    async with world.serving("order.*", handler=inbox) as bus:
        with pytest.raises(Unroutable) as caught:
            await bus.publish("user.created", 1)
        assert caught.value.signal_type == "user.created"
        receipt = await bus.publish("user.created", 1, unroutable="ignore")
        assert receipt.routed is False
        assert (await bus.publish("order.placed", 2, unroutable="ignore")).routed is True
        assert await inbox.wait(1) == [2]
        assert bus.stats().publisher.unroutable == 2


@contract
async def unroutable_and_routable_in_flight_with_one_id_are_told_apart(world: World) -> None:
    # Fault row 39: drivers match returns to publishes by message id.
    inbox = Inbox()
    async with world.serving("known.*", handler=inbox, concurrency=8) as bus:
        pairs = [Signal(type="known.a", data=number) for number in range(100)]
        strangers = [Signal(type="unknown.a", data=-1, id=signal.id) for signal in pairs]
        mixed = [signal for pair in zip(pairs, strangers, strict=True) for signal in pair]
        results = await asyncio.gather(*(bus.publish(signal) for signal in mixed), return_exceptions=True)
        assert [type(result) for result in results] == [Receipt, Unroutable] * 100
        same = Signal(type="known.a", data="same")
        other = Signal(type="unknown.a", data="same", id=same.id)
        results = await asyncio.gather(*(bus.publish(s) for s in [same, other] * 20), return_exceptions=True)
        assert [type(result) for result in results] == [Receipt, Unroutable] * 20
        await inbox.wait(120)
        await world.wait_empty(bus, "work")
    assert Counter(inbox.data) == Counter([*range(100), *["same"] * 20])


# Batches


@contract
async def publish_many_keeps_the_order_and_gives_a_receipt_each(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        signals = [Signal(type=f"a.{number % 7}", data=number) for number in range(1_200)]
        receipts = await bus.publish_many(signals)
        assert [receipt.id for receipt in receipts] == [signal.id for signal in signals]
        await inbox.wait(1_200)
    assert inbox.data == list(range(1_200))


@contract
async def a_batch_error_says_which_signals_are_not_stored(world: World) -> None:
    inbox = Inbox()
    async with world.serving("known", handler=inbox) as bus:
        batch = [("known" if number % 3 else "unknown", number) for number in range(30)]
        with pytest.raises(BatchError) as caught:
            await bus.publish_many(batch)
        stored = [
            number
            for (_, number), outcome in zip(batch, caught.value.outcomes, strict=True)
            if isinstance(outcome, Receipt)
        ]
        assert all(isinstance(outcome, Receipt | Unroutable) for outcome in caught.value.outcomes)
        assert stored == [number for number in range(30) if number % 3]
        assert await inbox.wait(20) == stored
        receipts = await bus.publish_many(batch, unroutable="ignore")
        assert [receipt.routed for receipt in receipts] == [bool(number % 3) for number in range(30)]


@contract
async def a_bad_signal_in_a_batch_means_that_nothing_is_sent(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        with pytest.raises(InvalidSignal):
            await bus.publish_many([("a", 1), ("b", float("nan"))])
        await bus.publish("a", 2)
        assert await inbox.wait(1) == [2]


@contract
async def five_thousand_signals_through_three_subscriptions_are_accounted_for(world: World) -> None:
    # S1, S2, S6: every delivery ends handled or as a dead letter, and nothing else arrives.
    count = 5_000
    seen: dict[str, Counter[int]] = {"quick": Counter(), "shaky": Counter(), "strict": Counter()}
    bus = world.bus(publish_timeout=60.0)

    @bus.subscribe("#", name="quick", concurrency=50)
    async def quick(number: int) -> None:
        seen["quick"][number] += 1

    @bus.subscribe("#", name="shaky", concurrency=50, retry=QUICK)
    async def shaky(number: int, delivery: Delivery) -> None:
        seen["shaky"][number] += 1
        if number % 50 == 0 and delivery.attempt == 1:
            raise ValueError("the first time")

    @bus.subscribe("#", name="strict", concurrency=50, retry=QUICK)
    async def strict(number: int) -> None:
        seen["strict"][number] += 1
        if number % 100 == 7:
            raise Reject("no")

    async with bus:
        receipts = await bus.publish_many([("a", number) for number in range(count)])
        assert len({receipt.id for receipt in receipts}) == count
        await wait_acked(quick, count, 40)
        await wait_acked(shaky, count, 40)
        await wait_acked(strict, count - count // 100, 40)
        dead = await world.dead(bus, count // 100)
        await world.wait_empty(bus, "quick", "shaky", "strict")
    assert seen["quick"] == Counter(range(count))
    assert seen["shaky"] == Counter(range(count)) + Counter(range(0, count, 50))
    assert seen["strict"] == Counter(range(count))
    assert {letter.subscription for letter in dead} == {"strict"}
    assert {letter.reason for letter in dead} == {DeadReason.REJECTED}
    assert sorted(int(letter.signal.body) for letter in dead) == list(range(7, count, 100))


# Bodies


@contract
async def bodies_from_nothing_to_ten_megabytes_arrive(world: World) -> None:
    got: list[bytes] = []

    async def handle(body: bytes) -> None:
        got.append(body)

    bodies = [b"", b"\x00", b"\xff" * 131_073, os.urandom(1_000_003), os.urandom(10_000_000)]
    async with world.serving("#", handler=handle) as bus:
        for body in bodies:
            await bus.publish("a", body)
        await wait_acked(bus.subscriptions()[0], len(bodies), 30)
    assert [len(body) for body in got] == [len(body) for body in bodies]
    assert got == bodies


@contract
async def a_signal_over_the_size_limit_is_refused_and_the_bus_goes_on(world: World) -> None:
    inbox = Inbox()
    bus = world.bus(max_signal_bytes=100_000)
    bus.subscribe("#", handler=inbox, name="work")
    async with bus:
        with pytest.raises(InvalidSignal, match="max_signal_bytes"):
            await bus.publish("a", "x" * 100_000)
        await bus.publish("a", "x" * 99_000)
        assert [len(data) for data in await inbox.wait(1)] == [99_000]


# Failures


@contract
async def a_failing_handler_is_retried_with_growing_delays(world: World) -> None:
    times: list[float] = []

    def fail(data: object, delivery: Delivery) -> None:
        times.append(asyncio.get_running_loop().time())
        raise ValueError(f"attempt {delivery.attempt}")

    inbox = Inbox(fail)
    policy = RetryPolicy(max_attempts=4, initial=timedelta(seconds=0.1), multiplier=2, jitter=False)
    async with world.serving("#", handler=inbox, retry=policy) as bus:
        receipt = await bus.publish("a", 1)
        (letter,) = await world.dead(bus, 1)
        assert letter.signal.id == receipt.id
    assert [delivery.attempt for _, delivery in inbox.got] == [1, 2, 3, 4]
    assert {delivery.id for _, delivery in inbox.got} == {receipt.id}
    assert [len(delivery.history) for _, delivery in inbox.got] == [0, 1, 2, 3]
    waits = [after - before for before, after in itertools.pairwise(times)]
    for wait, delay in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert delay - 0.01 <= wait < delay + 3.0  # two commits, and a handler that waits for its turn
    assert (letter.subscription, letter.reason, letter.attempt) == ("work", DeadReason.ATTEMPTS, 4)
    assert [failure.message for failure in letter.history] == [f"attempt {n}" for n in (1, 2, 3, 4)]
    assert "ValueError" in letter.history[-1].traceback


@contract
async def six_subscribers_make_exactly_the_attempts_that_are_allowed(world: World) -> None:
    # NServiceBus documents limit x instances; here the count travels with the delivery.
    def fail(data: object, delivery: Delivery) -> None:
        raise ValueError

    inboxes = [Inbox(fail) for _ in range(6)]
    policy = RetryPolicy(max_attempts=5, initial=MOMENT, jitter=False)
    async with AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(world.serving("#", handler=inbox, retry=policy, prefetch=2, concurrency=2))
            for inbox in inboxes
        ]
        await buses[0].publish_many([("a", number) for number in range(20)])
        dead = await world.dead(buses[0], 20)
        await world.wait_empty(buses[0], "work")
    runs = Counter((data, delivery.attempt) for inbox in inboxes for data, delivery in inbox.got)
    assert runs == Counter({(number, attempt): 1 for number in range(20) for attempt in range(1, 6)})
    assert {letter.attempt for letter in dead} == {5}
    assert {len(letter.history) for letter in dead} == {5}
    assert sum(bool(inbox.got) for inbox in inboxes) > 1


@contract
async def retry_with_a_delay_reject_never_and_rules_are_obeyed(world: World) -> None:
    times: dict[str, list[float]] = {}

    def act(data: str, delivery: Delivery) -> None:
        times.setdefault(data, []).append(asyncio.get_running_loop().time())
        match data:
            case "later" if delivery.attempt == 1:
                raise Retry(delay=timedelta(seconds=1.2))
            case "soon" if delivery.attempt == 1:
                raise Retry(delay=timedelta(0))
            case "rejected":
                raise Reject("no such customer")
            case "never":
                raise KeyError("missing")
            case "rule":
                raise TimeoutError("slow")
            case _:
                pass

    # A delay of its own would be far longer than those that the handler asks for.
    policy = RetryPolicy(
        max_attempts=3,
        initial=timedelta(minutes=1),
        jitter=False,
        never=(LookupError,),
        rules={TimeoutError: RetryPolicy(max_attempts=1)},
    )
    inbox = Inbox(act)
    async with world.serving("#", handler=inbox, retry=policy, concurrency=8) as bus:
        for data in ("later", "soon", "rejected", "never", "rule"):
            await bus.publish("a", data)
        dead = {letter.signal.body: letter for letter in await world.dead(bus, 3)}
        await wait_acked(bus.subscriptions()[0], 2)
        await world.wait_empty(bus, "work")
    assert {data: len(runs) for data, runs in times.items()} == {
        "later": 2,
        "soon": 2,
        "rejected": 1,
        "never": 1,
        "rule": 1,
    }
    assert 1.19 <= times["later"][1] - times["later"][0] < 5
    assert times["soon"][1] - times["soon"][0] < 5
    rejected = dead[b'"rejected"']
    assert (rejected.reason, rejected.detail) == (DeadReason.REJECTED, "no such customer")
    assert dead[b'"never"'].reason is DeadReason.NEVER_RETRIED
    assert dead[b'"rule"'].reason is DeadReason.ATTEMPTS


POISON: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", "application/json"),
    "nul": (b"\x00", "application/json"),
    "no_utf8": (b'{"order_id": "\xff"}', "application/json"),
    "no_json": (b"hello", "application/json"),
    "deep": (b"[" * 100_000, "application/json"),
    "nan": (b'{"order_id": "a", "total": NaN}', "application/json"),
    "digits": (b'{"order_id": "a", "total": ' + b"1" * 1_000_000 + b"}", "application/json"),
    "surrogate": (b'{"order_id": "\\ud800", "total": 1}', "application/json"),
    "wrong_type": (b'{"order_id": "a", "total": 1}', "text/plain"),
    "wrong_shape": (b'{"order_id": 7}', "application/json"),
    "gzip": (b"\x1f\x8b\x08\x00\x00", "application/json"),
    "structured": (b'{"specversion": "1.0"}', "application/cloudevents+json"),
    "zip_bomb": (b"\x00" * 1_000_000, "application/json"),
}


@contract
async def undecodable_data_is_dead_lettered_at_once_and_the_queue_goes_on(world: World) -> None:
    # Fault row 59. Published below the bus, which would refuse most of it.
    got: list[Order] = []

    async def handle(order: Order) -> None:
        got.append(order)

    async with world.serving("#", handler=handle) as bus:
        batch: dict[str, EncodedSignal] = {}
        for name, (body, content_type) in POISON.items():
            good = encode(Signal(type="a", source="s"))
            batch[name] = EncodedSignal(good.id, good.type, good.headers, body, content_type)
        outcomes = await bus.broker.publish(list(batch.values()), 10)
        assert {outcome.result for outcome in outcomes} == {PublishResult.CONFIRMED}
        await bus.publish("a", Order(order_id="healthy", total=1))
        await wait_acked(bus.subscriptions()[0], 1)
        dead = {letter.signal.id: letter for letter in await world.dead(bus, len(batch))}
    assert got == [Order(order_id="healthy", total=1)]
    for name, poison in batch.items():
        letter = dead[poison.id]
        assert letter.reason is DeadReason.UNDECODABLE, name
        assert letter.attempt == 1, name
        assert letter.detail, name
        assert letter.signal.body == poison.body, name


@contract
async def a_dead_letter_keeps_the_signal_as_it_was(world: World) -> None:
    def reject(data: object, delivery: Delivery) -> None:
        raise Reject("no\nreason \U0001f600")

    sent = Signal(type="order.placed", source="s", subject="é", extensions={"n": 7, "b": True}, data={"x": [1, None]})
    async with world.serving("#", handler=Inbox(reject)) as bus:
        await bus.publish(sent)
        (letter,) = await world.dead(bus, 1)
    expected = encode(sent)
    assert letter.signal.body == expected.body
    assert letter.signal.content_type == expected.content_type
    headers = dict(letter.signal.headers)
    headers.pop(TRACE_PARENT, None)  # added on its way where there is telemetry
    assert headers == dict(expected.headers)
    assert (letter.signal.id, letter.signal.type) == (sent.id, sent.type)
    assert letter.detail == "no\nreason \U0001f600"
    assert abs((letter.at - datetime.now(UTC)).total_seconds()) < 60


@contract
async def dead_letters_are_looked_at_and_stay(world: World) -> None:
    def reject(data: object, delivery: Delivery) -> None:
        raise Reject("no")

    async with world.serving("#", handler=Inbox(reject)) as bus:
        await bus.publish_many([("a", number) for number in range(5)])
        first = await world.dead(bus, 5)
        assert len(await bus.broker.dead_letters(2, 5)) == 2
        again = await world.dead(bus, 5)
    assert {letter.signal.id for letter in again} == {letter.signal.id for letter in first}
    for look in (first, again):
        assert [letter.at for letter in look] == sorted(letter.at for letter in look)
    async with world.bus() as other:
        assert len(await world.dead(other, 5)) == 5


@contract
async def a_huge_failure_still_becomes_a_dead_letter(world: World) -> None:
    def fail(data: object, delivery: Delivery) -> None:
        raise ValueError("\ud800" + "x" * 10**6)

    policy = RetryPolicy(max_attempts=14, initial=timedelta(0))
    async with world.serving("#", handler=Inbox(fail), retry=policy) as bus:
        await bus.publish("a", 1)
        (letter,) = await world.dead(bus, 1)
    assert letter.attempt == 14
    assert letter.history[0].attempt == 1
    assert letter.history[-1].attempt == 14


@contract
async def a_handler_over_its_timeout_is_retried_and_others_run(world: World) -> None:
    async def act(data: object, delivery: Delivery) -> None:
        if data == "slow" and delivery.attempt == 1:
            await asyncio.Event().wait()

    inbox = Inbox(act)
    async with world.serving("#", handler=inbox, timeout=0.2, retry=QUICK) as bus:
        await bus.publish("a", "slow")
        await bus.publish("a", "quick")
        await wait_acked(bus.subscriptions()[0], 2)
    assert Counter(inbox.data) == {"slow": 2, "quick": 1}
    retried = inbox.got[-1][1] if inbox.data[-1] == "slow" else inbox.got[1][1]
    assert retried.history[0].error == "TimeoutError"


@contract
async def sync_handlers_run_in_threads_and_are_retried_too(world: World) -> None:
    got: list[tuple[int, int]] = []

    def handle(number: int, delivery: Delivery) -> None:
        got.append((number, delivery.attempt))
        time.sleep(0.01)
        if delivery.attempt == 1 and number == 3:
            raise SystemExit(3)

    async with world.serving("#", handler=handle, concurrency=4, retry=QUICK) as bus:
        await bus.publish_many([("a", number) for number in range(20)])
        await wait_acked(bus.subscriptions()[0], 20)
    assert Counter(got) == Counter([*((number, 1) for number in range(20)), (3, 2)])


# Death


@contract
async def deliveries_of_a_killed_subscriber_go_to_another(world: World) -> None:
    victim = await world.worker(behaviour="hold", concurrency=5, prefetch=5)
    async with world.bus() as publisher:
        await publisher.publish_many([("a", number) for number in range(8)])
        held = [entry["data"] for entry in await world.wait_steps("start", 5)]
        await victim.kill()
        inbox = Inbox()
        async with world.serving("#", handler=inbox):
            await inbox.wait(8)
            await world.wait_empty(publisher, "work")
    assert sorted(inbox.data) == list(range(8))
    for data, delivery in inbox.got:
        assert delivery.attempt == 1, data
        # S6: what it held says that it was held.
        assert delivery.crashes == (1 if data in held else 0), data
        assert delivery.redelivered == (data in held), data


@contract
async def a_signal_that_kills_its_subscribers_becomes_a_dead_letter(world: World) -> None:
    # Fault row 62.
    first = await world.worker(behaviour="die-on-fatal", max_crashes=2, prefetch=1)
    async with world.bus() as publisher:
        await publisher.publish("a", "fatal")
        await publisher.publish("a", "healthy")
        assert await first.wait() < 0
        second = await world.worker(ready=False, behaviour="die-on-fatal", max_crashes=2, prefetch=1)
        assert await second.wait() < 0
        inbox = Inbox()
        async with world.serving("#", handler=inbox, max_crashes=2):
            (letter,) = await world.dead(publisher, 1)
            await world.wait_empty(publisher, "work")
    assert (letter.reason, letter.crashes) == (DeadReason.CRASHES, 2)
    assert letter.signal.body == b'"fatal"'
    effects = [entry["data"] for entry in world.steps("effect")]
    assert inbox.data + effects == ["healthy"]
    assert [entry["crashes"] for entry in world.steps("start") if entry["data"] == "fatal"] == [0, 1]


@contract
async def a_temporary_subscription_is_gone_when_its_process_is_killed(world: World) -> None:
    victim = await world.worker(durable=False, name="passing")
    async with world.bus() as bus:
        await bus.publish("a", 1)
        await world.wait_steps("effect", 1)
        await victim.kill()

        async def unroutable() -> bool:
            return not (await bus.publish("a", 2, unroutable="ignore")).routed

        await wait_until(unroutable, 10)
        assert "passing" not in {queue.name for queue in await bus.broker.queues(5)}


@contract
async def the_backlog_of_a_killed_subscriber_drains_without_new_traffic(world: World) -> None:
    # Wolverine 1430: after a reconnection the backlog waited for the next publish.
    victim = await world.worker(behaviour="hold", prefetch=3)
    inbox = Inbox()
    async with world.bus() as publisher, world.serving("other", handler=Inbox(), name="other"):
        await publisher.publish_many([("a", number) for number in range(40)])
        await world.wait_steps("start", 1)
        async with world.serving("#", handler=inbox, name="work"):
            await inbox.wait(37)
            await victim.kill()
            await inbox.wait(40)
    assert sorted(inbox.data) == list(range(40))


# Retries and restarts


@contract
async def a_retry_that_waits_survives_the_end_of_its_bus(world: World) -> None:
    def later(data: str, delivery: Delivery) -> None:
        raise Retry(delay=timedelta(seconds=1.5 if data == "long" else 0.4))

    async with world.serving("#", handler=Inbox(later), concurrency=2) as first:
        started = asyncio.get_running_loop().time()
        await first.publish("a", "long")
        await first.publish("a", "short")
        await eventually(lambda: first.subscriptions()[0].stats().retried == 2)
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as second:
        await inbox.wait(2)
        waited = asyncio.get_running_loop().time() - started
        await wait_acked(second.subscriptions()[0], 2)
    assert Counter(inbox.data) == {"long": 1, "short": 1}
    assert [delivery.attempt for _, delivery in inbox.got] == [2, 2]
    assert [len(delivery.history) for _, delivery in inbox.got] == [1, 1]
    assert waited >= 1.4


@contract
async def a_retry_that_waits_survives_the_death_of_its_process(world: World) -> None:
    victim = await world.worker(behaviour="fail", max_attempts=100)
    async with world.bus() as publisher:
        await publisher.publish_many([("a", number) for number in range(10)])
        await world.wait_steps("start", 25)
        await victim.kill()
        inbox = Inbox()
        async with world.serving("#", handler=inbox):
            await inbox.wait(10)
            await world.wait_empty(publisher, "work")
    assert set(inbox.data) == set(range(10))


@contract
async def wall_clock_jumps_change_nothing(world: World) -> None:
    # Fault row 77.
    def act(data: object, delivery: Delivery) -> None:
        if delivery.attempt < 3:
            raise Retry(delay=timedelta(seconds=0.3))

    inbox = Inbox(act)
    years, real = 10 * 365 * 86_400, time.time
    async with world.serving("#", handler=inbox) as bus:
        for number, jump in enumerate((0, years, -years, 3600)):
            with mock.patch("time.time", lambda jump=jump: real() + jump):
                await bus.publish("a", number)
                await inbox.wait(3 * number + 2, 5)
        await wait_acked(bus.subscriptions()[0], 4, 5)
    assert Counter(inbox.data) == dict.fromkeys(range(4), 3)


# Flow


@contract
async def not_more_than_prefetch_is_held(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    holding = Inbox(wait)
    async with world.serving("#", handler=holding, prefetch=4, concurrency=2) as slow:
        await slow.publish_many([("a", number) for number in range(20)])
        await holding.wait(2)
        other = Inbox()
        async with world.serving("#", handler=other) as quick:
            # The rest is free for others, who take all of it.
            await other.wait(16)
            stats = slow.subscriptions()[0].stats()
            assert (stats.received, stats.in_flight) == (4, 2)
            release.set()
            await wait_acked(slow.subscriptions()[0], 4)
            await world.wait_empty(quick, "work")
    assert sorted(holding.data + other.data) == list(range(20))


@contract
async def a_slow_subscription_does_not_hold_up_the_others(world: World) -> None:
    # Fault row 54.
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    slow, quick = Inbox(wait), Inbox()
    bus = world.bus()
    stuck = bus.subscribe("#", handler=slow, name="slow", prefetch=5)
    bus.subscribe("#", handler=quick, name="quick", concurrency=10)
    async with bus:
        await bus.publish_many([("a", number) for number in range(500)])
        await quick.wait(500, 10)
        assert stuck.stats().received <= 5
        release.set()
        await wait_acked(stuck, 500)
    assert slow.data == list(range(500))


@contract
async def many_subscriptions_live_in_one_bus(world: World) -> None:
    bus = world.bus(connect_timeout=30.0)
    inboxes = [Inbox() for _ in range(40)]
    for number, inbox in enumerate(inboxes):
        bus.subscribe(f"many.{number}", "all", handler=inbox, name=f"many-{number}")
    async with bus:
        await bus.publish_many([(f"many.{number % 40}", number) for number in range(120)])
        await bus.publish("all", "all")
        for inbox in inboxes:
            await inbox.wait(4)
    assert [inbox.data for inbox in inboxes] == [[n, n + 40, n + 80, "all"] for n in range(40)]


# Subscriptions at run time


@contract
async def subscribing_at_run_time_works_at_once(world: World) -> None:
    async with world.bus() as bus:
        first, second = Inbox(), Inbox()
        subscription = await bus.subscribe("a", handler=first, name="first")
        await bus.publish("a", 1)
        bus.subscribe("b", handler=second, name="second")  # not awaited: what is published next reaches it
        await bus.publish("b", 2)
        assert await first.wait(1) == [1]
        assert await second.wait(1) == [2]
        assert [subscription.name for subscription in bus.subscriptions()] == ["first", "second"]
        assert subscription.patterns == ("a",)


@contract
async def a_paused_subscription_takes_nothing_until_it_is_resumed(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        (subscription,) = bus.subscriptions()
        await bus.publish("a", 1)
        await wait_acked(subscription, 1)
        await subscription.pause()
        await subscription.pause()
        await bus.publish_many([("a", 2), ("a", 3)])
        await wait_until(lambda: waiting(bus, 2))
        assert inbox.data == [1]
        await subscription.resume()
        await wait_acked(subscription, 3)
        assert inbox.data == [1, 2, 3]
        assert {delivery.crashes for _, delivery in inbox.got} == {0}


async def waiting(bus: Bus, count: int) -> bool:
    (queue,) = await bus.broker.queues(5)
    return queue.ready == count


@contract
async def pausing_gives_back_what_was_not_started(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    first, second = Inbox(wait), Inbox()
    async with world.serving("#", handler=first, prefetch=10) as one, world.serving("x", handler=second, name="x"):
        (subscription,) = one.subscriptions()
        await one.publish_many([("a", number) for number in range(10)])
        await first.wait(1)
        await subscription.pause()
        async with world.serving("#", handler=second):
            await second.wait(9)
        # Never started, so not an attempt.
        assert {delivery.attempt for _, delivery in second.got} == {1}
        assert {delivery.crashes for _, delivery in second.got} == {world.crashes_after_release}
        release.set()
        await wait_acked(subscription, 1)
    assert sorted(first.data + second.data) == list(range(10))


@contract
async def a_cancelled_subscription_collects_unless_it_is_deleted(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        (subscription,) = bus.subscriptions()
        await subscription.cancel()
        await subscription.cancel()
        assert bus.subscriptions() == []
        assert (await bus.publish("a", 1)).routed
        again = await bus.subscribe("#", handler=inbox, name="work")
        assert await inbox.wait(1) == [1]
        await wait_acked(again, 1)
        await again.cancel(delete=True)
        with pytest.raises(Unroutable):
            await bus.publish("a", 2)
        await bus.subscribe("#", handler=inbox, name="work")
        await bus.publish("a", 3)
        assert await inbox.wait(2) == [1, 3]


@contract
async def deleting_forgets_what_waits(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        (subscription,) = bus.subscriptions()
        await subscription.pause()
        await bus.publish_many([("a", number) for number in range(5)])
        await subscription.cancel(delete=True)
        again = await bus.subscribe("#", handler=inbox, name="work")
        await bus.publish("a", "new")
        await wait_acked(again, 1)
    assert inbox.data == ["new"]


@contract
async def a_temporary_subscription_lives_as_long_as_its_bus(world: World) -> None:
    inbox = Inbox()
    async with world.bus() as publisher:
        async with world.serving("#", handler=inbox, durable=False) as bus:
            await publisher.publish("a", 1)
            await wait_acked(bus.subscriptions()[0], 1)
        with pytest.raises(Unroutable):
            await publisher.publish("a", 2)
    assert inbox.data == [1]


@contract
async def what_is_there_can_be_seen(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    inbox = Inbox(wait)
    async with world.serving("order.*", "user.#", handler=inbox, prefetch=1) as bus:
        await bus.publish_many([("order.a", number) for number in range(3)])
        await inbox.wait(1)
        await wait_until(lambda: waiting(bus, 2))
        (queue,) = await bus.broker.queues(5)
        assert (queue.name, set(queue.patterns), queue.durable) == ("work", {"order.*", "user.#"}, True)
        assert queue.consumers == 1
        assert queue.unsettled in (1, None)
        stats = bus.stats()
        assert stats.publisher.published == 3
        assert stats.subscriptions["work"].in_flight == 1
        assert stats.broker.state == "up"
        assert [(child.name, child.state.value, child.restarts) for child in stats.children] == [("work", "running", 0)]
        release.set()
        await world.wait_empty(bus, "work")


# Closing


@contract
async def closing_lets_running_handlers_end(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    inbox = Inbox(wait)
    bus = world.bus()
    subscription = bus.subscribe("#", handler=inbox, name="work", concurrency=3, prefetch=10)
    await bus.open()
    await bus.publish_many([("a", number) for number in range(10)])
    await inbox.wait(3)
    closing = [asyncio.create_task(bus.aclose()) for _ in range(3)]
    await eventually(lambda: subscription.stats().released == 7)
    assert not any(task.done() for task in closing)
    release.set()
    await asyncio.gather(*closing)
    await bus.aclose()
    with pytest.raises(BusClosed):
        await bus.publish("a", 99)
    assert subscription.stats().acked == 3
    rest = Inbox()
    async with world.serving("#", handler=rest):
        await rest.wait(7)
    assert sorted(inbox.data + rest.data) == list(range(10))
    assert {delivery.attempt for _, delivery in rest.got} == {1}
    assert {delivery.crashes for _, delivery in rest.got} == {world.crashes_after_release}


@contract
async def closing_ends_within_the_drain_deadline(world: World) -> None:
    async def hang(data: object, delivery: Delivery) -> None:
        await asyncio.Event().wait()

    inbox = Inbox(hang)
    bus = world.bus(drain_timeout=0.3)
    subscription = bus.subscribe("#", handler=inbox, name="work")
    await bus.open()
    await bus.publish("a", 1)
    await inbox.wait(1)
    clock = asyncio.get_running_loop().time
    started = clock()
    await bus.aclose()
    assert clock() - started < 0.3 + 4  # L1; on a slow disk, what follows the drain takes seconds
    assert subscription.stats().dead == 0
    again = Inbox()
    async with world.serving("#", handler=again):
        assert await again.wait(1) == [1]
    assert again.got[0][1].attempt == 1


@contract
async def a_closed_bus_refuses_and_is_not_opened_again(world: World) -> None:
    bus = world.bus()
    with pytest.raises(BusClosed):
        await bus.publish("a", 1)
    async with bus:
        pass
    with pytest.raises(BusClosed):
        await bus.publish("a", 1)
    with pytest.raises(BusClosed):
        await bus.open()
    with pytest.raises(BusClosed):
        bus.subscribe("#", handler=Inbox(), name="work")
    never_opened = world.bus()
    await never_opened.aclose()
    await never_opened.aclose()


@contract
async def a_handler_may_publish_and_cancel_its_own_subscription(world: World) -> None:
    done = asyncio.Event()
    bus = world.bus()

    @bus.subscribe("first", name="first")
    async def first(number: int) -> None:
        await bus.publish("second", number + 1)

    @bus.subscribe("second", name="second")
    async def second(number: int) -> None:
        await first.cancel()
        done.set()

    async with bus:
        await bus.publish("first", 1)
        await asyncio.wait_for(done.wait(), 10)
        await wait_acked(second, 1)
        assert [subscription.name for subscription in bus.subscriptions()] == ["second"]


@contract
async def cancelling_publishes_leaves_the_bus_whole(world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox, concurrency=10) as bus:
        tasks = [asyncio.create_task(bus.publish("a", number)) for number in range(200)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        confirmed = {number for number, result in enumerate(results) if isinstance(result, Receipt)}
        assert confirmed >= set(range(1, 200, 2))
        await bus.publish("a", "last")
        await eventually(lambda: {*confirmed, "last"} <= set(inbox.data))
    # S2: a cancelled publish may have happened, but nothing else.
    assert set(inbox.data) <= {*range(200), "last"}


# What cannot work says so


@dataclass
class Unannotated:
    async def __call__(self, data) -> None:  # type: ignore[no-untyped-def]
        ...


@contract
async def one_name_with_other_patterns_in_a_second_bus_is_a_config_error(world: World) -> None:
    inbox = Inbox()
    async with world.serving("a", handler=inbox) as first:
        second = world.bus()
        second.subscribe("b", handler=Inbox(), name="work")
        with pytest.raises(ConfigError, match="work"):
            await second.open()
        # S7: the first is not harmed.
        await first.publish("a", 1)
        assert await inbox.wait(1) == [1]
        with pytest.raises(Unroutable):
            await first.publish("b", 2)


@contract
async def wrong_subscriptions_are_refused_before_anything_is_sent(world: World) -> None:
    bus = world.bus()
    bus.subscribe("a", handler=Inbox(), name="work")
    wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="work")),
        (ConfigError, lambda: bus.subscribe("a", handler=Unannotated(), name="x")),
        (ConfigError, lambda: bus.subscribe(handler=Inbox(), name="x")),
        (ConfigError, lambda: bus.subscribe("a.#.b.#", handler=Inbox(), name="x")),
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="a b")),
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="../../etc")),
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="x" * 101)),
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="x", concurrency=0)),
        (ConfigError, lambda: bus.subscribe("a", handler=Inbox(), name="x", timeout=3_600)),
    ]
    for error, call in wrong:
        with pytest.raises(error) as caught:
            call()
        assert len(str(caught.value)) > 20
    assert [subscription.name for subscription in bus.subscriptions()] == ["work"]


@contract
async def an_open_bus_refuses_what_would_be_wrong_at_run_time_too(world: World) -> None:
    inbox = Inbox()
    async with world.serving("a", handler=inbox) as first, world.bus() as second:
        with pytest.raises(ConfigError, match="work"):
            await second.subscribe("b", handler=Inbox(), name="work")
        await second.publish("a", 1)
        await first.publish("a", 2)
        assert sorted(await inbox.wait(2)) == [1, 2]


def unreachable(url: str) -> Bus:
    """Return a bus for which nobody listens."""
    return Bus(url, name="test", connect_timeout=0.5)


async def refused_in_time(bus: Bus, error: type[Exception] = BrokerUnavailable) -> Exception:
    """Open a bus that cannot work, and check that it ends in time with the error (L1)."""
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(error) as caught:
        await bus.open()
    assert clock() - started < bus.settings.connect_timeout + 1
    assert len(str(caught.value)) > 40
    return caught.value
