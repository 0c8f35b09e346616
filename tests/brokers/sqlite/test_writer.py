"""The writer thread: group commit, order, bounds, and what happens when it cannot go on."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker, store
from signalbus.brokers.sqlite import group as group_module
from signalbus.brokers.sqlite import outbox as outbox_module
from signalbus.brokers.sqlite.operations import Look
from signalbus.codec import EncodedSignal
from signalbus.delivery import ACK, RELEASE, DeadLetter, DeadReason, RetryLater
from signalbus.errors import Backpressure, BusClosed, ConfigError, InvalidSignal, StorageError
from tests.brokers.sqlite.support import (
    SECONDS,
    WORK,
    Place,
    data_of,
    receive,
    results,
    session,
    signal,
    signals,
    wait_until,
)
from tests.support import eventually


def _transactions(broker: SqliteBroker) -> int:
    return broker.health().counters.get("transactions", 0)


async def test_publishes_in_flight_share_a_transaction(place: Place) -> None:
    """Group commit: what was submitted while the last commit ran goes into the next one."""
    broker, _ = await place.serving(prefetch=1)
    before = _transactions(broker)
    outcomes = await asyncio.gather(*(broker.publish([item], SECONDS) for item in signals(500)))
    assert [results(outcome) for outcome in outcomes] == [["confirmed"]] * 500
    assert _transactions(broker) - before < 50


async def test_one_publish_alone_waits_for_no_group(place: Place) -> None:
    broker = await place.open()
    await broker.declare(WORK, SECONDS)
    before = _transactions(broker)
    for item in signals(20):
        await broker.publish([item], SECONDS)
    assert _transactions(broker) - before == 20


async def test_order_of_calls_is_order_of_deliveries(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=1_000)
    batches = [signals(3), signals(1), signals(700)]
    numbered = [[signal(f"{index}-{number}") for number in range(len(batch))] for index, batch in enumerate(batches)]
    await asyncio.gather(*(broker.publish(batch, SECONDS) for batch in numbered))
    received = await receive(consumer, 704)
    assert [data_of(incoming) for incoming in received] == [
        f"{index}-{number}" for index, batch in enumerate(batches) for number in range(len(batch))
    ]


async def test_a_batch_mixes_outcomes(place: Place) -> None:
    broker, _ = await place.serving()
    outcomes = await broker.publish([signal(), signal(type="nobody"), signal()], SECONDS)
    assert results(outcomes) == ["confirmed", "returned", "confirmed"]
    assert await broker.publish([], SECONDS) == ()


async def test_bodies_are_stored_once_and_removed_with_the_last_delivery(place: Place) -> None:
    broker = await place.open()
    for name in ("a", "b", "c"):
        await broker.declare(SubscriptionSpec(name=name, patterns=("work.#",)), SECONDS)
    await broker.publish([signal("shared")], SECONDS)
    first, second, third = [await broker.consume(name, 10, SECONDS) for name in ("a", "b", "c")]
    assert await _stored(broker) == 1
    assert await first.settle((await receive(first))[0], ACK)
    assert await _stored(broker) == 1
    reason = DeadLetter(DeadReason.REJECTED, "no", ())
    assert await second.settle((await receive(second))[0], reason)
    assert await _stored(broker) == 1
    (last,) = await receive(third)
    assert last.signal.body == b'"shared"'
    assert await third.settle(last, RetryLater(timedelta(milliseconds=10), ()))
    assert await third.settle((await receive(third))[0], ACK)
    assert await _stored(broker) == 0
    (dead,) = await broker.dead_letters(10, SECONDS)
    assert dead.signal.body == b'"shared"'


async def test_deleting_a_subscription_removes_its_backlog_and_no_more(place: Place) -> None:
    broker = await place.open()
    await broker.declare(WORK, SECONDS)
    await broker.declare(SubscriptionSpec(name="rare", patterns=("work.rare",)), SECONDS)
    await broker.publish(signals(2_500), SECONDS)
    await broker.publish([signal("kept", "work.rare")], SECONDS)
    await broker.delete(WORK.name, SECONDS)

    async def purged() -> bool:
        return await _stored(broker) == 1

    await wait_until(purged)
    consumer = await broker.consume("rare", 1, SECONDS)
    (incoming,) = await receive(consumer)
    assert incoming.signal.body == b'"kept"'
    assert await consumer.settle(incoming, ACK)
    await broker.aclose()
    with place.raw() as connection:
        for table in ("signals", "fanout", "ready", "claimed", "delayed", "purges"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


async def test_a_consumer_follows_a_subscription_that_is_deleted_and_declared_again(place: Place) -> None:
    broker, consumer = await place.serving()
    await broker.publish([signal("lost")], SECONDS)
    (lost,) = await receive(consumer)
    await broker.delete(WORK.name, SECONDS)
    assert await consumer.settle(lost, ACK) is False
    await broker.declare(WORK, SECONDS)
    await broker.publish([signal("new")], SECONDS)
    (new,) = await receive(consumer)
    assert await consumer.settle(new, ACK)
    assert (await place.queue(broker)).consumers == 1


# Consumers


async def test_prefetch_bounds_what_is_unsettled(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=3)
    await broker.publish(signals(10), SECONDS)
    held = await receive(consumer, 3)
    with pytest.raises(TimeoutError):
        await receive(consumer, timeout=0.1)
    assert (await place.queue(broker)).unsettled == 3
    assert await consumer.settle(held[1], ACK)
    assert data_of((await receive(consumer))[0]) == 3


async def test_two_consumers_of_one_broker_share_evenly(place: Place) -> None:
    broker, first = await place.serving(prefetch=50)
    second = await broker.consume(WORK.name, 50, SECONDS)
    await broker.publish(signals(40), SECONDS)
    assert len(await receive(first, 20)) == len(await receive(second, 20)) == 20


async def test_consumers_of_two_processes_share_what_comes_one_by_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that publishes what it consumes must not fill its own hands first."""
    monkeypatch.setattr(group_module, "_PATIENCE_SECONDS", 1.0)  # threads of a busy machine take long to wake up
    broker, here = await place.serving(prefetch=50)
    other = await place.open()
    there = await other.consume(WORK.name, 50, SECONDS)
    shares: Counter[str] = Counter()
    for number in range(20):
        await broker.publish([signal(number)], SECONDS)
        done, waiting = await asyncio.wait(
            [asyncio.create_task(here.receive(), name="here"), asyncio.create_task(there.receive(), name="there")],
            return_when=asyncio.FIRST_COMPLETED,
            timeout=SECONDS,
        )
        shares.update(task.get_name() for task in done)
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
    assert min(shares["here"], shares["there"]) >= 3, shares


async def test_what_was_not_received_goes_back_on_stop(place: Place) -> None:
    broker, consumer = await place.serving()
    await broker.publish(signals(5), SECONDS)
    await eventually(lambda: len(consumer._buffer) == 5)
    await consumer.stop()
    assert (await place.queue(broker)).ready == 5
    assert await consumer.receive() == ()
    await consumer.stop()


async def test_released_deliveries_come_again_in_order(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=3)
    await broker.publish(signals(3), SECONDS)
    for incoming in reversed(await receive(consumer, 3)):
        assert await consumer.settle(incoming, RELEASE)
    again = await receive(consumer, 3)
    assert sorted(data_of(incoming) for incoming in again) == [0, 1, 2]
    assert {(incoming.attempt, incoming.crashes) for incoming in again} == {(1, 0)}


async def test_consuming_what_does_not_exist_names_it(place: Place) -> None:
    broker = await place.open()
    with pytest.raises(ConfigError, match="'nothing' does not exist"):
        await broker.consume("nothing", 1, SECONDS)
    with pytest.raises(ConfigError, match="prefetch is 0"):
        await broker.consume("nothing", 0, SECONDS)


# Bounds


async def test_publishes_wait_for_room_and_give_up_at_their_deadline(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_PENDING_SIGNALS", 10)
    broker, _ = await place.serving()
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    stored = asyncio.create_task(broker.publish(signals(10), 30.0))
    await asyncio.sleep(0)
    begun = time.monotonic()
    with pytest.raises(Backpressure):
        await broker.publish([signal()], 0.3)
    assert time.monotonic() - begun < 1.3
    waiting = asyncio.create_task(broker.publish(signals(3), 30.0))
    peer.tell()
    assert results(await stored) == ["confirmed"] * 10
    assert results(await waiting) == ["confirmed"] * 3


async def test_waiting_publishes_keep_their_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_PENDING_SIGNALS", 10)
    broker, consumer = await place.serving(prefetch=200)
    await asyncio.gather(*(broker.publish([item], SECONDS) for item in signals(200)))
    assert [data_of(incoming) for incoming in await receive(consumer, 200)] == list(range(200))


async def test_headers_that_cannot_be_stored_are_the_publishers_fault(place: Place) -> None:
    broker = await place.open()
    bad = EncodedSignal("id", "work.x", {"number": 2**70}, b"", None)
    with pytest.raises(InvalidSignal, match="headers"):
        await broker.publish([bad], SECONDS)


async def test_cancelling_a_call_harms_no_other(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=100)
    receiving = asyncio.create_task(consumer.receive())
    await asyncio.sleep(0)
    receiving.cancel()
    calls = [asyncio.create_task(broker.publish([item], SECONDS)) for item in signals(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls[1::2])
    assert [results(outcome) for outcome in outcomes] == [["confirmed"]] * 25
    received = await receive(consumer, 50)
    assert [data_of(incoming) for incoming in received] == list(range(50)), "cancelled, but sent all the same"


# Failing and ending


async def test_an_operation_that_sqlite_refuses_fails_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, consumer = await place.serving(prefetch=100)
    insert = store.insert_signals

    def refuse(connection: sqlite3.Connection, values: list[object]) -> None:
        if any(isinstance(value, bytes) and b"too big" in value for value in values):
            connection.execute("SELECT zeroblob(?)", (10**12,))
        insert(connection, values)

    monkeypatch.setattr(store, "insert_signals", refuse)
    calls = [broker.publish([signal(data)], SECONDS) for data in ("a", "too big", "b")]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, StorageError) for answer in answers] == [False, True, False]
    assert [data_of(incoming) for incoming in await receive(consumer, 2)] == ["a", "b"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_writer_thread_fails_every_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, consumer = await place.serving()
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(group_module.Group, "publish", fail)
    assert results(await broker.publish([signal()], SECONDS)) == ["unknown"]
    with pytest.raises(StorageError, match="a bug"):
        await broker.publish([signal()], SECONDS)
    with pytest.raises(StorageError, match="a bug"):
        await broker.queues(SECONDS)
    with pytest.raises(StorageError, match="a bug"):
        await consumer.settle(incoming, ACK)
    assert "a bug" in broker.health().reason
    await broker.aclose()


async def test_closing_flushes_what_is_queued(place: Place) -> None:
    broker = await place.open()
    await broker.declare(WORK, SECONDS)
    calls = [asyncio.create_task(broker.publish([item], SECONDS)) for item in signals(300)]
    await asyncio.sleep(0)
    await asyncio.gather(broker.aclose(), broker.aclose())
    await broker.aclose()
    assert [results(await call) for call in calls] == [["confirmed"]] * 300


async def test_a_closed_broker_says_so(place: Place) -> None:
    broker, consumer = await place.serving()
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    receiving = asyncio.create_task(consumer.receive())
    await asyncio.sleep(0)
    await broker.aclose()
    assert await asyncio.wait_for(receiving, SECONDS) == ()
    assert await consumer.settle(incoming, ACK) is False
    await consumer.aclose()
    for call in (broker.publish([signal()], 1.0), broker.queues(1.0), broker.consume(WORK.name, 1, 1.0)):
        with pytest.raises(BusClosed):
            await call
    with pytest.raises(BusClosed):
        await broker.open(session(), SECONDS)


async def test_a_broker_that_was_never_opened_says_so(place: Place) -> None:
    broker = SqliteBroker(place.url)
    with pytest.raises(BusClosed):
        await broker.publish([signal()], 1.0)
    with pytest.raises(BusClosed):
        await broker.declare(WORK, 1.0)
    await broker.aclose()
    assert broker.health().state == "closed"


def test_an_event_loop_that_ends_without_closing_ends_the_writer(tmp_path: Path) -> None:
    """Its deliveries go back, as nobody can settle them any more."""
    place = Place(tmp_path)
    kept: list[object] = []

    async def forget_to_close() -> None:
        broker, consumer = await place.serving()
        await broker.publish([signal()], SECONDS)
        kept.append(await receive(consumer))

    async def look() -> None:
        broker, consumer = await place.serving()
        (incoming,) = await receive(consumer)
        assert incoming.crashes == 0
        await broker.aclose()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(forget_to_close())
    loop.close()
    asyncio.run(look())


async def _stored(broker: SqliteBroker) -> int:
    """Return how many signals are in the database."""
    errands = broker._opened()
    return await errands.ask(Look[int](errands.future(), time.monotonic() + SECONDS, _count_signals))


def _count_signals(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM signals").fetchone()[0])
