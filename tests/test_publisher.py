"""Publishing is repeated until the outcome is certain, with the same id. The broker is a script of outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from signalbus import (
    Backpressure,
    BatchError,
    BrokerError,
    BrokerUnavailable,
    InvalidSignal,
    PublishUnconfirmed,
    Receipt,
    Signal,
    StorageError,
    Unroutable,
)
from signalbus.brokers.base import CONFIRMED, RETURNED, Broker, PublishOutcome, PublishResult
from signalbus.codec import EncodedSignal, encode
from signalbus.publisher import BATCH, Publisher

UNKNOWN = PublishOutcome(PublishResult.UNKNOWN, "connection lost")
REFUSED = PublishOutcome(PublishResult.REFUSED, "queue is full")

Step = PublishOutcome | BrokerError


class ScriptedBroker:
    """Answers the tries of each signal (by type) with its script; the last step repeats."""

    def __init__(self, *steps: Step, **by_type: Sequence[Step]) -> None:
        self._scripts = {name: list(script) for name, script in by_type.items()}
        self._default = list(steps) or [CONFIRMED]
        self.calls: list[list[EncodedSignal]] = []
        self.timeouts: list[float] = []

    async def publish(self, batch: Sequence[EncodedSignal], timeout: float) -> Sequence[PublishOutcome]:
        self.calls.append(list(batch))
        self.timeouts.append(timeout)
        await asyncio.sleep(0)
        steps = [self._next(signal.type) for signal in batch]
        for step in steps:
            if isinstance(step, BrokerError):
                raise step
        return [step for step in steps if isinstance(step, PublishOutcome)]

    def _next(self, signal_type: str) -> Step:
        script = self._scripts.setdefault(signal_type, list(self._default))
        return script.pop(0) if len(script) > 1 else script[0]


def make(broker: ScriptedBroker, limit: int = 1_000_000) -> Publisher:
    return Publisher(cast("Broker", broker), limit)


def signal(name: str = "a", data: object = None) -> EncodedSignal:
    return encode(Signal(type=name, source="s", data=data))


async def test_a_confirmed_signal_gives_a_receipt() -> None:
    broker = ScriptedBroker(CONFIRMED)
    publisher, sent = make(broker), signal()
    receipt = await publisher.publish(sent, 1, "raise")
    assert (receipt.id, receipt.type, receipt.routed, receipt.attempts) == (sent.id, "a", True, 1)
    assert publisher.stats.published == 1


async def test_an_equal_outcome_that_is_another_object_is_confirmed_too() -> None:
    broker = ScriptedBroker(PublishOutcome(PublishResult.CONFIRMED))
    assert (await make(broker).publish(signal(), 1, "raise")).attempts == 1
    assert len(broker.calls) == 1


@pytest.mark.parametrize("outcome", [UNKNOWN, REFUSED])
async def test_an_uncertain_outcome_is_repeated_with_the_same_signal(outcome: PublishOutcome) -> None:
    broker = ScriptedBroker(outcome, outcome, CONFIRMED)
    publisher, sent = make(broker), signal()
    receipt = await publisher.publish(sent, 5, "raise")
    assert receipt.attempts == 3
    assert broker.calls == [[sent]] * 3
    assert (publisher.stats.published, publisher.stats.repeated, publisher.stats.failed) == (1, 2, 0)


async def test_unknown_to_the_end_is_unconfirmed() -> None:
    broker = ScriptedBroker(UNKNOWN)
    publisher, sent = make(broker), signal()
    with pytest.raises(PublishUnconfirmed, match="connection lost") as caught:
        await publisher.publish(sent, 1.0, "raise")
    assert caught.value.signal_id == sent.id
    assert len(broker.calls) >= 2
    assert publisher.stats.failed == 1


async def test_refused_to_the_end_is_backpressure() -> None:
    with pytest.raises(Backpressure, match="queue is full"):
        await make(ScriptedBroker(REFUSED)).publish(signal(), 0.2, "raise")


@pytest.mark.parametrize("later", [REFUSED, BrokerUnavailable("gone"), Backpressure("alarm")])
async def test_once_the_outcome_was_unknown_it_is_not_called_a_failure(later: Step) -> None:
    # The first try may have stored it: 'not stored' would be a lie.
    with pytest.raises(PublishUnconfirmed):
        await make(ScriptedBroker(UNKNOWN, later)).publish(signal(), 0.2, "raise")


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), Backpressure("alarm"), StorageError("disk full")])
async def test_an_error_before_anything_was_sent_passes_and_is_counted(error: BrokerError) -> None:
    publisher = make(ScriptedBroker(error))
    with pytest.raises(type(error)) as caught:
        await publisher.publish(signal(), 5, "raise")
    assert caught.value is error
    assert publisher.stats.failed == 1


@pytest.mark.parametrize("first", [RETURNED, UNKNOWN])
async def test_unroutable_is_an_error_or_a_receipt_as_asked(first: PublishOutcome) -> None:
    with pytest.raises(Unroutable):
        await make(ScriptedBroker(first, RETURNED)).publish(signal(), 5, "raise")
    publisher = make(ScriptedBroker(first, RETURNED))
    receipt = await publisher.publish(signal(), 5, "ignore")
    assert receipt.routed is False
    assert publisher.stats.unroutable == 1


@pytest.mark.parametrize("outcome", [UNKNOWN, REFUSED])
@pytest.mark.parametrize("timeout", [0.0, 0.01, 0.3])
async def test_the_deadline_holds(outcome: PublishOutcome, timeout: float) -> None:
    broker = ScriptedBroker(outcome)
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(BrokerError):
        await make(broker).publish(signal(), timeout, "raise")
    assert clock() - started < timeout + 1.0, "without a deadline it would go on for ever"
    assert all(0 <= given <= timeout for given in broker.timeouts)
    assert broker.timeouts == sorted(broker.timeouts, reverse=True)


async def test_a_signal_over_the_limit_is_refused_before_it_is_sent() -> None:
    broker = ScriptedBroker()
    publisher = make(broker, limit=1_000)
    exact = signal(data=b"x" * (1_000 - signal(data=b"").size))
    assert exact.size == 1_000
    await publisher.publish(exact, 1, "raise")
    over = signal(data=b"x" * len(exact.body) + b"y")
    with pytest.raises(InvalidSignal, match="1001 bytes"):
        await publisher.publish(over, 1, "raise")
    with pytest.raises(InvalidSignal):
        await publisher.publish_many([exact, over], 1, "raise")
    assert broker.calls == [[exact]]


async def test_cancelling_a_publish_cancels_it() -> None:
    publisher = make(ScriptedBroker(UNKNOWN))
    task = asyncio.create_task(publisher.publish(signal(), 60, "raise"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Batches


async def test_a_batch_is_sent_in_order_in_windows() -> None:
    broker = ScriptedBroker()
    batch = [signal() for _ in range(2 * BATCH + 1)]
    receipts = await make(broker).publish_many(batch, 5, "raise")
    assert [receipt.id for receipt in receipts] == [sent.id for sent in batch]
    assert [len(call) for call in broker.calls] == [BATCH, BATCH, 1]
    assert [sent for call in broker.calls for sent in call] == batch


async def test_an_empty_batch_asks_nobody() -> None:
    broker = ScriptedBroker()
    assert await make(broker).publish_many([], 1, "raise") == []
    assert broker.calls == []


async def test_only_the_uncertain_part_of_a_batch_is_repeated() -> None:
    broker = ScriptedBroker(good=[CONFIRMED], lost=[UNKNOWN, CONFIRMED], full=[REFUSED, UNKNOWN, CONFIRMED])
    batch = [signal("good"), signal("lost"), signal("full"), signal("good")]
    receipts = await make(broker).publish_many(batch, 5, "raise")
    assert [receipt.id for receipt in receipts] == [sent.id for sent in batch]
    assert [receipt.attempts for receipt in receipts] == [1, 2, 3, 1]
    assert broker.calls == [batch, [batch[1], batch[2]], [batch[2]]]


async def test_a_batch_error_has_an_outcome_for_each_in_order() -> None:
    broker = ScriptedBroker(good=[CONFIRMED], lost=[UNKNOWN], full=[REFUSED], nobody=[RETURNED])
    publisher = make(broker)
    batch = [signal(name) for name in ("good", "lost", "nobody", "full", "good")]
    with pytest.raises(BatchError, match="3 of 5") as caught:
        await publisher.publish_many(batch, 0.2, "raise")
    kinds = [type(outcome) for outcome in caught.value.outcomes]
    assert kinds == [Receipt, PublishUnconfirmed, Unroutable, Backpressure, Receipt]
    first, lost, nobody = caught.value.outcomes[:3]
    assert isinstance(first, Receipt)
    assert first.id == batch[0].id
    assert isinstance(lost, PublishUnconfirmed)
    assert lost.signal_id == batch[1].id
    assert isinstance(nobody, Unroutable)
    assert nobody.signal_id == batch[2].id
    assert (publisher.stats.published, publisher.stats.unroutable, publisher.stats.failed) == (2, 1, 2)


async def test_unrouted_signals_of_a_batch_may_be_ignored() -> None:
    broker = ScriptedBroker(good=[CONFIRMED], nobody=[RETURNED])
    receipts = await make(broker).publish_many([signal("good"), signal("nobody")], 1, "ignore")
    assert [receipt.routed for receipt in receipts] == [True, False]


async def test_a_batch_that_could_not_be_sent_fails_as_a_whole_with_the_reason() -> None:
    publisher = make(ScriptedBroker(BrokerUnavailable("gone")))
    with pytest.raises(BatchError, match="gone") as caught:
        await publisher.publish_many([signal(), signal()], 1, "raise")
    assert [type(outcome) for outcome in caught.value.outcomes] == [BrokerUnavailable] * 2
    assert publisher.stats.failed == 2


async def test_the_deadline_is_for_the_whole_batch() -> None:
    broker = ScriptedBroker(UNKNOWN)
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(BatchError) as caught:
        await make(broker).publish_many([signal() for _ in range(3 * BATCH)], 0.3, "raise")
    assert clock() - started < 0.9  # 0.3 for each of the three chunks would be more
    assert len(caught.value.outcomes) == 3 * BATCH
