"""From deliveries to handler runs to settlements. The broker is a script; every delivery ends in one settlement."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from signalbus import BrokerUnavailable, ConfigError, Delivery, Reject, Retry, RetryPolicy, Signal
from signalbus import subscriber as module
from signalbus.brokers.base import Broker, Consumer, Incoming, SubscriptionSpec
from signalbus.codec import EncodedSignal, encode
from signalbus.delivery import ACK, Ack, DeadLetter, DeadReason, Release, RetryLater, Settlement
from signalbus.handlers import compile_handler
from signalbus.subscriber import Subscriber, SubscriberOptions
from signalbus.telemetry import Telemetry
from tests.support import eventually

NOW = timedelta(0)
AT_ONCE = RetryPolicy(initial=NOW, max_attempts=3)


class FakeConsumer:
    """Hands out what the test delivers and keeps what is settled. ``script`` has the answers to come, else True."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[Incoming]] = asyncio.Queue()
        self.settled: list[tuple[Incoming, Settlement]] = []
        self.script: list[bool | Exception] = []
        self.stopped = False
        self.closed = 0

    def deliver(self, *batch: Incoming) -> None:
        self._queue.put_nowait(list(batch))

    async def receive(self) -> Sequence[Incoming]:
        return await self._queue.get()

    async def settle(self, incoming: Incoming, settlement: Settlement) -> bool:
        await asyncio.sleep(0)  # as a real one does: whoever is cancelled learns it here
        answer = self.script.pop(0) if self.script else True
        if isinstance(answer, Exception):
            raise answer
        self.settled.append((incoming, settlement))
        return answer

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._queue.put_nowait([])

    async def aclose(self) -> None:
        await self.stop()
        self.closed += 1


class FakeBroker:
    def __init__(self) -> None:
        self.consumers: list[FakeConsumer] = []
        self.failures: list[Exception] = []
        self.prefetch = 0

    async def consume(self, name: str, prefetch: int, timeout: float) -> Consumer:
        if self.failures:
            raise self.failures.pop(0)
        self.prefetch = prefetch
        self.consumers.append(FakeConsumer())
        return self.consumers[-1]


class Setup:
    """A subscriber that serves, its broker, and the current consumer."""

    def __init__(self, handler: Callable[..., object], **options: Any) -> None:
        self.broker = FakeBroker()
        spec = SubscriptionSpec(name="orders", patterns=("#",))
        options = {"retry": AT_ONCE, **options}
        self.told: list[tuple[str, str, str, Settlement]] = []
        self.subscriber = Subscriber(
            cast("Broker", self.broker),
            spec,
            compile_handler(handler),
            SubscriberOptions(**options),
            lambda: "session",
            lambda *word: self.told.append(word),
            Telemetry(),
        )
        self.stats = self.subscriber.stats

    @property
    def consumer(self) -> FakeConsumer:
        return self.broker.consumers[-1]

    async def wait_settled(self, count: int) -> list[Settlement]:
        await eventually(lambda: len(self.consumer.settled) >= count, 5, interval=0.001)
        await asyncio.sleep(0)  # one too many would come now
        assert len(self.consumer.settled) == count
        return [settlement for _, settlement in self.consumer.settled]


@asynccontextmanager
async def serving(handler: Callable[..., object], **options: Any) -> AsyncIterator[Setup]:
    setup = Setup(handler, **options)
    task = asyncio.create_task(setup.subscriber.serve(1.0))
    await asyncio.wait_for(setup.subscriber.ready.wait(), 5)
    try:
        yield setup
    finally:
        await setup.subscriber.stop(1.0)
        await asyncio.wait_for(task, 5)


def incoming(signal: EncodedSignal | None = None, **fields: Any) -> Incoming:
    return Incoming(signal=signal or encode(Signal(type="a", source="s", data={"n": 1})), **fields)


class Recorder:
    """A handler that counts its runs and waits where the test wants it to."""

    def __init__(self) -> None:
        self.runs: list[Delivery] = []
        self.running = 0
        self.most = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, data: dict[str, Any], delivery: Delivery) -> None:
        self.runs.append(delivery)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error


# One settlement each


async def test_a_handler_that_returns_is_acked() -> None:
    got: list[object] = []

    async def handle(data: dict[str, Any], delivery: Delivery) -> None:
        got.append((data, delivery.attempt, delivery.crashes, delivery.redelivered, delivery.subscription))

    async with serving(handle) as setup:
        setup.consumer.deliver(incoming(attempt=2, crashes=1))
        assert await setup.wait_settled(1) == [ACK]
    assert got == [({"n": 1}, 2, 1, True, "orders")]
    assert (setup.stats.received, setup.stats.redelivered, setup.stats.acked) == (1, 1, 1)
    assert (setup.stats.in_flight, setup.stats.waiting) == (0, 0)


def recurse() -> None:
    recurse()


class OwnBaseException(BaseException): ...


CORPUS: list[BaseException | Callable[[], object]] = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    MemoryError(),
    OwnBaseException(),
    TimeoutError(),
    asyncio.CancelledError(),
    BrokerUnavailable("the handler's own bus"),
    BaseExceptionGroup("several", [ValueError(), SystemExit(1)]),
    recurse,
]


def _raise(trouble: BaseException | Callable[[], object]) -> None:
    if isinstance(trouble, BaseException):
        raise trouble
    trouble()


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("trouble", CORPUS, ids=lambda trouble: getattr(trouble, "__name__", type(trouble).__name__))
async def test_whatever_a_handler_raises_is_one_failed_attempt(
    trouble: BaseException | Callable[[], object], kind: str
) -> None:
    async def handle(data: dict[str, Any]) -> None:
        _raise(trouble)

    def handle_in_thread(data: dict[str, Any]) -> None:
        _raise(trouble)

    async with serving(handle if kind == "async" else handle_in_thread) as setup:
        setup.consumer.deliver(incoming(), incoming(attempt=3))
        retried, dead = await setup.wait_settled(2)
        assert isinstance(retried, RetryLater)
        assert isinstance(dead, DeadLetter)
        assert dead.reason is DeadReason.ATTEMPTS
        # The worker is alive.
        assert setup.stats.in_flight == 0
    assert (setup.stats.retried, setup.stats.dead) == (1, 1)


async def test_a_handler_that_cancels_itself_is_retried() -> None:
    async def handle(data: dict[str, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.cancel()
        await asyncio.Event().wait()

    async with serving(handle) as setup:
        setup.consumer.deliver(incoming())
        (settlement,) = await setup.wait_settled(1)
        assert isinstance(settlement, RetryLater)


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_a_handler_that_cancels_itself_as_its_last_act_is_settled(error: Exception | None) -> None:
    async def handle(data: dict[str, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # takes effect at the next await, which is not the handler's any more
        if error is not None:
            raise error

    async with serving(handle) as setup:
        setup.consumer.deliver(incoming())
        (settlement,) = await setup.wait_settled(1)
        assert isinstance(settlement, Ack if error is None else RetryLater)


async def test_a_handler_over_its_timeout_is_retried() -> None:
    cancelled = asyncio.Event()

    async def handle(data: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(handle, timeout=timedelta(seconds=0.02)) as setup:
        setup.consumer.deliver(incoming())
        (settlement,) = await setup.wait_settled(1)
        assert isinstance(settlement, RetryLater)
        assert settlement.history[-1].error == "TimeoutError"
    assert cancelled.is_set()


async def test_retry_and_reject_are_obeyed() -> None:
    async def handle(data: dict[str, Any], delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise Retry(delay=timedelta(seconds=7))
        raise Reject("no such customer")

    async with serving(handle) as setup:
        setup.consumer.deliver(incoming())
        setup.consumer.deliver(incoming(attempt=2))
        retried, dead = await setup.wait_settled(2)
    assert isinstance(retried, RetryLater)
    assert retried.delay == timedelta(seconds=7)
    assert isinstance(dead, DeadLetter)
    assert (dead.reason, dead.detail) == (DeadReason.REJECTED, "no such customer")


async def test_retry_is_not_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(data: dict[str, Any]) -> None:
        raise Retry("not yet")

    with caplog.at_level(logging.WARNING):
        async with serving(handle) as setup:
            setup.consumer.deliver(incoming())
            await setup.wait_settled(1)
    assert caplog.records == []


@pytest.mark.parametrize(
    "poison",
    [
        incoming(malformed="header 'x' is not UTF-8"),
        incoming(EncodedSignal("i", "a", encode(Signal(type="a", source="s")).headers, b"{", "application/json")),
        incoming(encode(Signal(type="a", source="s", data=[1]))),
    ],
    ids=["malformed", "not_json", "other_shape"],
)
async def test_poison_is_a_dead_letter_at_once_and_no_handler_sees_it(poison: Incoming) -> None:
    got: list[object] = []

    async def handle(data: dict[str, Any]) -> None:
        got.append(data)

    async with serving(handle) as setup:
        setup.consumer.deliver(poison, incoming())
        dead, healthy = await setup.wait_settled(2)
    assert isinstance(dead, DeadLetter)
    assert dead.reason is DeadReason.UNDECODABLE
    assert dead.detail
    assert healthy == ACK
    assert got == [{"n": 1}]


async def test_after_too_many_crashes_no_handler_sees_it() -> None:
    got: list[int] = []

    async def handle(data: dict[str, Any], delivery: Delivery) -> None:
        got.append(delivery.crashes)

    async with serving(handle, max_crashes=3) as setup:
        setup.consumer.deliver(incoming(crashes=2), incoming(crashes=3))
        below, above = await setup.wait_settled(2)
    assert below == ACK
    assert isinstance(above, DeadLetter)
    assert above.reason is DeadReason.CRASHES
    assert got == [2]


# Concurrency and order


async def test_not_more_handlers_run_than_allowed() -> None:
    handler = Recorder()
    async with serving(handler, concurrency=3) as setup:
        assert setup.broker.prefetch == 16
        setup.consumer.deliver(*[incoming() for _ in range(10)])
        await eventually(lambda: len(handler.runs) == 3, 5)
        assert (setup.stats.in_flight, setup.stats.waiting) == (3, 7)
        handler.go.set()
        await setup.wait_settled(10)
    assert handler.most == 3


async def test_one_at_a_time_keeps_the_order() -> None:
    got: list[int] = []

    async def handle(n: int) -> None:
        await asyncio.sleep(0)
        got.append(n)

    async with serving(handle) as setup:
        for start in range(0, 50, 5):
            setup.consumer.deliver(
                *[incoming(encode(Signal(type="a", source="s", data=n))) for n in range(start, start + 5)]
            )
        await setup.wait_settled(50)
    assert got == list(range(50))


async def test_sync_handlers_do_not_block_the_loop() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(data: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)

    async with serving(handle, concurrency=2) as setup:
        setup.consumer.deliver(incoming(), incoming())
        await eventually(lambda: setup.stats.in_flight == 2, 5)
        release.set()
        assert await setup.wait_settled(2) == [ACK, ACK]


# Copies of a delivery whose connection was lost


async def test_a_copy_of_a_running_delivery_waits_for_its_verdict() -> None:
    handler = Recorder()
    async with serving(handler, concurrency=2) as setup:
        first = incoming()
        second = incoming(first.signal, crashes=1)
        setup.consumer.script = [False, True]
        setup.consumer.deliver(first)
        await handler.started.wait()
        setup.consumer.deliver(second)
        await eventually(lambda: setup.stats.received == 2, 5)
        handler.go.set()
        await setup.wait_settled(2)
        assert setup.consumer.settled == [(first, ACK), (second, ACK)]
    assert len(handler.runs) == 1
    assert (setup.stats.acked, setup.stats.lost_settlements) == (1, 1)


async def test_a_copy_carries_the_failure_out_if_the_first_could_not() -> None:
    handler = Recorder()
    handler.error = ValueError("no")
    async with serving(handler, concurrency=2) as setup:
        first = incoming()
        copies = [incoming(first.signal, crashes=1), incoming(first.signal, crashes=2)]
        setup.consumer.script = [False, True, True]
        setup.consumer.deliver(first)
        await handler.started.wait()
        setup.consumer.deliver(*copies)
        await eventually(lambda: setup.stats.received == 3, 5)
        handler.go.set()
        lost, carried, spare = await setup.wait_settled(3)
        # Retried once, not once for each copy.
        assert isinstance(lost, RetryLater)
        assert carried == lost
        assert spare == ACK
    assert len(handler.runs) == 1


@pytest.mark.parametrize(
    "again",
    [{"attempt": 2}, {"attempt": 2, "crashes": 1}, {}],
    ids=["retry", "retry_after_a_crash", "publishers_duplicate"],
)
async def test_what_is_no_copy_runs(again: dict[str, Any]) -> None:
    handler = Recorder()
    async with serving(handler, concurrency=2) as setup:
        first = incoming()
        setup.consumer.deliver(first)
        await handler.started.wait()
        setup.consumer.deliver(incoming(first.signal, **again))
        await eventually(lambda: len(handler.runs) == 2, 5)
        handler.go.set()
        await setup.wait_settled(2)


async def test_a_verdict_that_was_lost_is_applied_to_the_redelivery() -> None:
    handler = Recorder()
    handler.go.set()
    handler.error = ValueError("no")
    async with serving(handler) as setup:
        first = incoming()
        setup.consumer.script = [False]
        setup.consumer.deliver(first)
        (verdict,) = await setup.wait_settled(1)
        setup.consumer.deliver(incoming(first.signal, crashes=1))
        await setup.wait_settled(2)
        assert setup.consumer.settled[1][1] == verdict
        assert len(handler.runs) == 1
        # The retry is another attempt.
        setup.consumer.deliver(incoming(first.signal, attempt=2, crashes=1))
        await setup.wait_settled(3)
        assert len(handler.runs) == 2


async def test_a_replay_after_a_lost_verdict_runs() -> None:
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        first = incoming()
        setup.consumer.script = [False]
        setup.consumer.deliver(first)
        await setup.wait_settled(1)
        setup.consumer.deliver(incoming(first.signal))
        await setup.wait_settled(2)
    assert len(handler.runs) == 2


async def test_an_ack_that_was_lost_on_its_way_is_repeated_and_the_handler_does_not_run_again() -> None:
    # RabbitMQ does not confirm acks: the broker said yes, and delivers it again.
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        first = incoming()
        setup.consumer.deliver(first)
        await setup.wait_settled(1)
        setup.consumer.deliver(incoming(first.signal, crashes=1))
        assert await setup.wait_settled(2) == [ACK, ACK]
    assert len(handler.runs) == 1


async def test_a_replay_of_a_dead_letter_runs_even_if_its_subscriber_died() -> None:
    handler = Recorder()
    handler.go.set()
    handler.error = Reject("no")
    async with serving(handler) as setup:
        first = incoming()
        setup.consumer.deliver(first)
        await setup.wait_settled(1)
        handler.error = None
        setup.consumer.deliver(incoming(first.signal, crashes=1))
        await setup.wait_settled(2)
        assert setup.consumer.settled[1][1] == ACK
    assert len(handler.runs) == 2


async def test_an_old_verdict_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERDICT_SECONDS", 0.0)
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        first = incoming()
        setup.consumer.script = [False]
        setup.consumer.deliver(first)
        await setup.wait_settled(1)
        setup.consumer.deliver(incoming(first.signal, crashes=1))
        await setup.wait_settled(2)
    assert len(handler.runs) == 2


async def test_remembered_verdicts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERDICTS", 10)
    monkeypatch.setattr(module, "ACKS", 5)

    async def handle(data: dict[str, Any]) -> None: ...

    async with serving(handle) as setup:
        setup.consumer.script = [False, True] * 30
        setup.consumer.deliver(*[incoming() for _ in range(60)])
        await setup.wait_settled(60)
        assert len(setup.subscriber._unrecorded) == 10
        assert len(setup.subscriber._acked) == 5
        assert setup.subscriber._running == {}


# Brokers that fail


async def test_settling_is_repeated_while_the_broker_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        setup.consumer.script = [BrokerUnavailable("gone"), BrokerUnavailable("gone")]
        setup.consumer.deliver(incoming())
        assert await setup.wait_settled(1) == [ACK]
    assert len(handler.runs) == 1
    assert setup.stats.acked == 1


async def test_while_a_settlement_hangs_the_next_handler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        setup.consumer.script = [BrokerUnavailable("gone")]
        setup.consumer.deliver(incoming(), incoming())
        await setup.wait_settled(2)
        assert [delivery.id for delivery in handler.runs] == [
            delivered.signal.id for delivered, _ in reversed(setup.consumer.settled)
        ]


async def test_consuming_is_repeated_while_the_broker_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    handler = Recorder()
    handler.go.set()
    setup = Setup(handler)
    setup.broker.failures = [BrokerUnavailable("not yet"), BrokerUnavailable("not yet")]
    task = asyncio.create_task(setup.subscriber.serve(1.0))
    await asyncio.wait_for(setup.subscriber.ready.wait(), 5)
    assert setup.stats.last_error == "not yet"
    setup.consumer.deliver(incoming())
    await setup.wait_settled(1)
    await setup.subscriber.stop(1.0)
    await asyncio.wait_for(task, 5)


async def test_a_bug_in_settling_is_loud_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        setup.consumer.script = [RuntimeError("our bug")]
        setup.consumer.deliver(incoming())
        setup.consumer.deliver(incoming())
        await setup.wait_settled(1)
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    assert "our bug" in setup.stats.last_error


# Stopping


async def test_stopping_lets_handlers_end_and_gives_the_rest_back() -> None:
    handler = Recorder()
    setup = Setup(handler)
    task = asyncio.create_task(setup.subscriber.serve(1.0))
    await setup.subscriber.ready.wait()
    setup.consumer.deliver(*[incoming() for _ in range(5)])
    await handler.started.wait()
    stopping = asyncio.create_task(setup.subscriber.stop(5.0))
    await eventually(lambda: setup.stats.released == 4, 5)
    assert not stopping.done()
    handler.go.set()
    await stopping
    await asyncio.wait_for(task, 5)
    assert Counter(type(settlement) for _, settlement in setup.consumer.settled) == {Ack: 1, Release: 4}
    assert len(handler.runs) == 1
    assert setup.consumer.closed


async def test_what_arrives_while_stopping_is_given_back() -> None:
    handler = Recorder()
    async with serving(handler) as setup:
        setup.consumer.deliver(incoming(), incoming())
        setup.consumer.deliver(incoming())
        await setup.subscriber.stop(1.0)
        assert handler.runs == []
        assert {type(settlement) for _, settlement in setup.consumer.settled} <= {Release}


async def test_the_drain_deadline_cancels_and_leaves_unsettled() -> None:
    handler = Recorder()
    setup = Setup(handler)
    task = asyncio.create_task(setup.subscriber.serve(1.0))
    await setup.subscriber.ready.wait()
    setup.consumer.deliver(incoming())
    await handler.started.wait()
    clock = asyncio.get_running_loop().time
    started = clock()
    await setup.subscriber.stop(0.05)
    assert clock() - started < 1
    await asyncio.wait_for(task, 5)
    # Neither a retry nor a dead letter: it comes again, to somebody.
    assert setup.consumer.settled == []
    assert handler.running == 0
    assert setup.consumer.closed


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_stop() -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    async def handle(data: dict[str, Any]) -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    setup = Setup(handle)
    task = asyncio.create_task(setup.subscriber.serve(1.0))
    await setup.subscriber.ready.wait()
    setup.consumer.deliver(incoming())
    await started.wait()
    async with asyncio.timeout(2):
        await setup.subscriber.stop(0.05)
        await task
    release.set()


async def test_stopping_twice_and_at_once_is_fine() -> None:
    handler = Recorder()
    handler.go.set()
    async with serving(handler) as setup:
        setup.consumer.deliver(incoming())
        await asyncio.gather(setup.subscriber.stop(1.0), setup.subscriber.stop(1.0))
        await setup.subscriber.stop(1.0)


async def test_pausing_gives_back_what_waits_and_resuming_goes_on() -> None:
    handler = Recorder()
    async with serving(handler) as setup:
        first = setup.consumer
        first.deliver(incoming(), incoming(), incoming())
        await handler.started.wait()
        await setup.subscriber.pause()
        await eventually(lambda: setup.stats.released == 2, 5)
        assert not first.closed  # the running handler settles on it
        handler.go.set()
        await eventually(lambda: first.closed, 5)
        assert setup.stats.acked == 1
        setup.subscriber.resume()
        await eventually(lambda: setup.consumer is not first, 5)
        setup.consumer.deliver(incoming())
        assert await setup.wait_settled(1) == [ACK]


async def test_nothing_grows() -> None:
    async def handle(data: dict[str, Any]) -> None: ...

    async with serving(handle, concurrency=10) as setup:
        for _ in range(20):
            setup.consumer.deliver(*[incoming() for _ in range(50)])
        await setup.wait_settled(1_000)
        await eventually(lambda: not setup.subscriber._tasks, 5)
        assert setup.subscriber._running == {}
        assert not setup.subscriber._unrecorded
        gc.collect()


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"max_crashes": 0},
        {"prefetch": 0},
        {"prefetch": 3, "concurrency": 4},
        {"prefetch": 65_536},
        {"timeout": timedelta(0)},
        {"timeout": timedelta(minutes=30)},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SubscriberOptions(**options)


def test_the_window_hides_a_commit_and_is_shared_fairly() -> None:
    assert SubscriberOptions().window == 16
    assert SubscriberOptions(concurrency=100).window == 200
    assert SubscriberOptions(concurrency=1, prefetch=1).window == 1
